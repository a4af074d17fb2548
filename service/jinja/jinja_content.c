/* What a template does with the content of a message: it wants to be given texts, or lists of parts.
 *
 * Found by reading the template, not by trying it: names that stand for `messages`, for one of them or for its
 * content are followed through set, for, with, filters, slices and the parameters of macros, in whatever order
 * they come (a name means the same everywhere here). A loop over a content, or a part's own field read through an
 * index, says that contents may be lists; a test for the type of a content, that they need not be. vLLM looks for
 * the loop alone, and not through other names of a content or into macros. */
#include "base/check.h"
#include "service/jinja/jinja.h"
#include "service/jinja/jinja_run.h"

#include <stdlib.h>
#include <string.h>

enum { PASSES_MAX = 16 }; /* names for names for names; none has been seen to need more than four */

/* What a value may be, bits. */
enum { IS_MESSAGES = 1, IS_MESSAGE = 2, IS_CONTENT = 4, IS_PART = 8 };

typedef struct search {
    const jinja *template;
    uint8_t *is;               /* [n_names] */
    const jinja_node **macros; /* [n_names], the last of that name; NULL: none */
    bool has_changed;
    jinja_content found;
} search;

static bool is_text(const jinja_node *node, const char *text)
{
    return node->kind == JINJA_N_CONST && node->value.type == JINJA_STRING &&
           jinja_is_text(node->value, text);
}

static uint8_t of_item(uint8_t object, bool is_content, bool is_field)
{
    uint8_t is = 0;
    if (object & IS_MESSAGES && !is_field) is |= IS_MESSAGE;
    if (object & IS_MESSAGE && is_content) is |= IS_CONTENT;
    if (object & IS_CONTENT && !is_field) is |= IS_PART;
    return is;
}

static uint8_t what(const search *s, const jinja_node *node)
{
    if (node == NULL) return 0;
    switch ((jinja_kind)node->kind) {
    case JINJA_N_NAME: return s->is[node->name];
    case JINJA_N_FILTER:
    case JINJA_N_EACH:
    case JINJA_N_SLICE: return what(s, node->kids[0]);
    case JINJA_N_ATTRIBUTE:
        return of_item(what(s, node->kids[0]), jinja_is_text(node->value, "content"), true);
    case JINJA_N_ITEM:
        return of_item(what(s, node->kids[0]), is_text(node->kids[1], "content"),
                       node->kids[1]->kind == JINJA_N_CONST &&
                           node->kids[1]->value.type == JINJA_STRING);
    case JINJA_N_METHOD:
        return of_item(what(s, node->kids[0]),
                       jinja_is_text(node->value, "get") && is_text(node->kids[1], "content"),
                       true);
    case JINJA_N_CHOOSE: return what(s, node->kids[1]) | what(s, node->kids[2]);
    case JINJA_N_OR: return what(s, node->kids[0]) | what(s, node->kids[1]);
    default: return 0;
    }
}

static void give(search *s, uint32_t name, uint8_t is)
{
    if ((s->is[name] | is) == s->is[name]) return;
    s->is[name] |= is;
    s->has_changed = true;
}

static void give_target(search *s, const jinja_node *target, uint8_t is)
{
    if (target->kind == JINJA_N_NAME) give(s, target->name, is);
}

/* Arguments are what the parameters are. */
static void see_call(search *s, const jinja_node *call)
{
    const jinja_node *callee = call->kids[0];
    const jinja_node *macro = callee->kind == JINJA_N_NAME ? s->macros[callee->name] : NULL;
    if (macro == NULL) return;
    const uint32_t n_params = macro->n_kids - 1, n_args = jinja_call_own_args(call);
    const uint32_t n_positional = n_args - call->n_keywords;
    for (uint32_t i = 0; i < n_args; i++) {
        const uint8_t is = what(s, call->kids[1 + i]);
        for (uint32_t p = 0; p < n_params; p++) {
            const bool is_it = i < n_positional ? i == p
                                                : jinja_equal(call->keywords[i - n_positional],
                                                              s->template->names[macro->names[p]]);
            if (is_it) give(s, macro->names[p], is);
        }
    }
}

static void see_field(search *s, const jinja_node *object, jinja_value name)
{
    if (!(what(s, object) & IS_PART)) return;
    if (jinja_is_text(name, "text") || jinja_is_text(name, "type")) s->found.reads_parts = true;
}

static void see_test(search *s, const jinja_node *node)
{
    static const char *const types[] = {"string", "sequence", "iterable", "mapping"};
    if (!(what(s, node->kids[0]) & IS_CONTENT)) return;
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
        if (strcmp(node->def->name, types[i]) == 0) s->found.asks_type = true;
}

static void see(search *s, const jinja_node *node)
{
    if (node == NULL) return;
    switch ((jinja_kind)node->kind) {
    case JINJA_N_MACRO: s->macros[node->name] = node; break;
    case JINJA_N_CALL: see_call(s, node); break;
    case JINJA_N_SET: give_target(s, node->kids[0], what(s, node->kids[1])); break;
    case JINJA_N_WITH:
        for (uint32_t i = 1; i < node->n_kids; i += 2)
            give_target(s, node->kids[i], what(s, node->kids[i + 1]));
        break;
    case JINJA_N_FOR: {
        const uint8_t over = what(s, node->kids[1]);
        give_target(s, node->kids[0], over & IS_MESSAGES ? IS_MESSAGE : 0);
        if (over & IS_CONTENT) s->found.reads_parts = true;
        break;
    }
    case JINJA_N_ATTRIBUTE: see_field(s, node->kids[0], node->value); break;
    case JINJA_N_ITEM:
        if (node->kids[1]->kind == JINJA_N_CONST) see_field(s, node->kids[0], node->kids[1]->value);
        break;
    case JINJA_N_TEST: see_test(s, node); break;
    default: break;
    }
    for (uint32_t i = 0; i < node->n_kids; i++)
        see(s, node->kids[i]);
}

err_t jinja_find_content(const jinja *template, jinja_content *out)
{
    search s = {.template = template,
                .is = calloc(template->n_names, sizeof *s.is),
                .macros = calloc(template->n_names, sizeof *s.macros)};
    const bool is_ok = s.is != NULL && s.macros != NULL;
    for (uint32_t i = 0; is_ok && i < template->n_names; i++)
        if (jinja_is_text(template->names[i], "messages")) s.is[i] = IS_MESSAGES;
    for (uint32_t i = 0; is_ok && i < template->n_names; i++)
        if (jinja_is_text(template->names[i], "tools")) s.found.names_tools = true;
    s.has_changed = is_ok;
    for (unsigned pass = 0; pass < PASSES_MAX && s.has_changed; pass++) {
        s.has_changed = pass == 0; /* macros that stand behind their calls */
        see(&s, template->root);
    }
    free(s.is);
    free(s.macros);
    *out = s.found;
    return is_ok ? ERR_OK : ERR_NO_MEMORY;
}
