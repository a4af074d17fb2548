/* Statements, and what all of the parser shares. A statement's function begins behind its name and ends
 * before the %} of its last tag, as jinja2/parser.py has it. */
#include "service/jinja/jinja_parse.h"

#include "base/check.h"
#include "service/jinja/jinja.h"

#include <stdlib.h>
#include <string.h>

enum { PARSE_DEPTH_MAX = 200, TEMPLATE_BYTES_MAX = 256 << 20 };

/* ---- shared */

static err_t no_memory(const jinja_parser *p)
{
    return err_set(p->info, ERR_NO_MEMORY, "no memory for the template");
}

err_t jinja_parse_enter(jinja_parser *p)
{
    if (++p->depth <= PARSE_DEPTH_MAX) return ERR_OK;
    return err_set(p->info, ERR_UNSUPPORTED, "line %u: nesting this deep is not supported",
                   p->at->line);
}

void jinja_parse_leave(jinja_parser *p)
{
    p->depth--;
}

err_t jinja_parse_unexpected(const jinja_parser *p)
{
    const jinja_token *t = p->at;
    const jinja_value text = t->value;
    if (text.type == JINJA_STRING && t->kind != JINJA_T_DATA)
        return err_set(p->info, ERR_BAD_MODEL, "line %u: unexpected '%.*s'", t->line,
                       (int)min_size(text.n_bytes, 80), text.text);
    const char *what = t->kind == JINJA_T_END         ? "end of the template"
                       : t->kind == JINJA_T_PRINT_END ? "}}"
                       : t->kind == JINJA_T_BLOCK_END ? "%}"
                                                      : "number";
    return err_set(p->info, ERR_BAD_MODEL, "line %u: unexpected %s", t->line, what);
}

err_t jinja_parse_unsupported(const jinja_parser *p, uint32_t line, const char *what,
                              jinja_value name)
{
    if (name.type != JINJA_STRING) name = jinja_string("", 0);
    return err_set(p->info, ERR_UNSUPPORTED, "line %u: %s %.*s is not supported", line, what,
                   (int)min_size(name.n_bytes, 80), name.text);
}

bool jinja_parse_is(const jinja_parser *p, const char *operator_text)
{
    return p->at->kind == JINJA_T_OPERATOR && jinja_is_text(p->at->value, operator_text);
}

bool jinja_parse_is_name(const jinja_parser *p, const char *name)
{
    return p->at->kind == JINJA_T_NAME && jinja_is_text(p->at->value, name);
}

bool jinja_parse_skip(jinja_parser *p, const char *operator_text)
{
    const bool is_there = jinja_parse_is(p, operator_text);
    p->at += is_there;
    return is_there;
}

bool jinja_parse_skip_name(jinja_parser *p, const char *name)
{
    const bool is_there = jinja_parse_is_name(p, name);
    p->at += is_there;
    return is_there;
}

err_t jinja_parse_expect(jinja_parser *p, const char *operator_text)
{
    return jinja_parse_skip(p, operator_text) ? ERR_OK : jinja_parse_unexpected(p);
}

err_t jinja_parse_expect_name(jinja_parser *p, jinja_value *out)
{
    if (p->at->kind != JINJA_T_NAME) return jinja_parse_unexpected(p);
    *out = p->at++->value;
    return ERR_OK;
}

err_t jinja_parse_node(jinja_parser *p, jinja_kind kind, jinja_node **out)
{
    jinja_node *node = jinja_heap_take(p->heap, 1, sizeof *node);
    if (node == NULL) return no_memory(p);
    node->kind = (uint8_t)kind;
    node->line = p->at->line;
    *out = node;
    return ERR_OK;
}

err_t jinja_parse_add(jinja_parser *p, jinja_node *node, jinja_node *kid)
{
    const uint32_t n = node->n_kids;
    if ((n & (n - 1)) == 0) { /* 0, 1, 2, 4, ...: full */
        jinja_node **grown = jinja_heap_take(p->heap, n == 0 ? 1 : (size_t)n * 2, sizeof *grown);
        if (grown == NULL) return no_memory(p);
        if (n > 0) memcpy(grown, node->kids, n * sizeof *grown);
        node->kids = grown;
    }
    node->kids[node->n_kids++] = kid;
    if (kid != NULL && kid->depth >= node->depth) node->depth = (uint16_t)(kid->depth + 1);
    if (node->depth <= JINJA_NODE_DEPTH_MAX) return ERR_OK;
    return err_set(p->info, ERR_UNSUPPORTED, "line %u: nesting this deep is not supported",
                   p->at->line);
}

err_t jinja_parse_over(jinja_parser *p, jinja_kind kind, jinja_node *a, jinja_node *b,
                       jinja_node **out)
{
    jinja_node *node = NULL;
    TRY(jinja_parse_node(p, kind, &node));
    if (a != NULL) TRY(jinja_parse_add(p, node, a));
    if (a != NULL) node->line = a->line;
    if (b != NULL) TRY(jinja_parse_add(p, node, b));
    *out = node;
    return ERR_OK;
}

err_t jinja_parse_intern(jinja_parser *p, jinja_value name, uint32_t *out)
{
    for (*out = 0; *out < p->n_names; (*out)++)
        if (jinja_equal(p->names[*out], name)) return ERR_OK;
    if (p->n_names == p->names_capacity) {
        const uint32_t capacity = p->names_capacity * 2 + 16;
        jinja_value *names = jinja_heap_take(p->heap, capacity, sizeof *names);
        jinja_name_use *uses = jinja_heap_take(p->heap, capacity, sizeof *uses);
        if (names == NULL || uses == NULL) return no_memory(p);
        if (p->n_names > 0) {
            memcpy(names, p->names, p->n_names * sizeof *names);
            memcpy(uses, p->uses, p->n_names * sizeof *uses);
        }
        p->names = names;
        p->uses = uses;
        p->names_capacity = capacity;
    }
    char *text = jinja_heap_take_text(p->heap, (size_t)name.n_bytes + 1);
    if (text == NULL) return no_memory(p);
    memcpy(text, name.text, name.n_bytes);
    text[name.n_bytes] = '\0';
    p->uses[p->n_names] = (jinja_name_use){0};
    p->names[p->n_names++] = jinja_string(text, name.n_bytes);
    return ERR_OK;
}

/* ---- targets */

static err_t mark_target(jinja_parser *p, const jinja_node *target)
{
    if (target->kind == JINJA_N_NAME) {
        p->uses[target->name].is_assigned = true;
    } else if (target->kind == JINJA_N_TUPLE) {
        for (uint32_t i = 0; i < target->n_kids; i++)
            TRY(mark_target(p, target->kids[i]));
    } else if (target->kind != JINJA_N_MEMBER) {
        return err_set(p->info, ERR_BAD_MODEL, "line %u: a target that cannot be assigned to",
                       target->line);
    }
    return ERR_OK;
}

err_t jinja_parse_target(jinja_parser *p, const jinja_tuple_rule *rule, jinja_node **out)
{
    TRY(jinja_parse_tuple(p, rule, out));
    return mark_target(p, *out);
}

static err_t parse_name_target(jinja_parser *p, uint32_t *out)
{
    jinja_value name;
    TRY(jinja_parse_expect_name(p, &name));
    TRY(jinja_parse_intern(p, name, out));
    p->uses[*out].is_assigned = true;
    return ERR_OK;
}

/* ---- statements */

static bool at_end_name(const jinja_parser *p, const char *const *end_names)
{
    for (; end_names != NULL && *end_names != NULL; end_names++)
        if (jinja_parse_is_name(p, *end_names)) return true;
    return false;
}

/* Statements call statements: these two know each other. */
static err_t parse_statement(jinja_parser *p, jinja_node **out);

/* Up to a tag that begins with one of `end_names` (NULL: up to the end); p->at is then at that name. */
static err_t parse_block(jinja_parser *p, const char *const *end_names, jinja_node **out)
{
    static const jinja_tuple_rule printed = {0};
    TRY(jinja_parse_enter(p));
    TRY(jinja_parse_node(p, JINJA_N_BLOCK, out));
    for (;;) {
        jinja_node *node = NULL;
        if (p->at->kind == JINJA_T_DATA) {
            TRY(jinja_parse_node(p, JINJA_N_TEXT, &node));
            node->value = p->at++->value;
        } else if (p->at->kind == JINJA_T_PRINT_BEGIN) {
            const uint32_t line = p->at++->line;
            TRY(jinja_parse_tuple(p, &printed, &node));
            TRY(jinja_parse_over(p, JINJA_N_PRINT, node, NULL, &node));
            node->line = line;
            if (p->at->kind != JINJA_T_PRINT_END) return jinja_parse_unexpected(p);
            p->at++;
        } else if (p->at->kind == JINJA_T_BLOCK_BEGIN) {
            p->at++;
            if (at_end_name(p, end_names)) break;
            TRY(parse_statement(p, &node));
            if (p->at->kind != JINJA_T_BLOCK_END) return jinja_parse_unexpected(p);
            p->at++;
        } else {
            if (end_names == NULL) break;
            return err_set(p->info, ERR_BAD_MODEL, "line %u: {%% %s %%} is missing", p->at->line,
                           end_names[0]);
        }
        TRY(jinja_parse_add(p, *out, node));
    }
    jinja_parse_leave(p);
    return ERR_OK;
}

/* Behind a tag's expression: its %} and what follows it. */
static err_t parse_body(jinja_parser *p, const char *const *end_names, jinja_node **out)
{
    (void)jinja_parse_skip(p, ":"); /* Jinja takes Python's colon, too */
    if (p->at->kind != JINJA_T_BLOCK_END) return jinja_parse_unexpected(p);
    p->at++;
    return parse_block(p, end_names, out);
}

static err_t parse_last_body(jinja_parser *p, const char *end_name, jinja_node **out)
{
    const char *const end_names[] = {end_name, NULL};
    TRY(parse_body(p, end_names, out));
    p->at++;
    return ERR_OK;
}

static err_t parse_if(jinja_parser *p, jinja_node **out)
{
    static const char *const end_names[] = {"endif", "elif", "else", NULL};
    static const jinja_tuple_rule rule = {.no_choice = true};
    TRY(jinja_parse_node(p, JINJA_N_IF, out));
    do {
        jinja_node *condition, *body;
        TRY(jinja_parse_tuple(p, &rule, &condition));
        TRY(parse_body(p, end_names, &body));
        TRY(jinja_parse_add(p, *out, condition));
        TRY(jinja_parse_add(p, *out, body));
    } while (jinja_parse_skip_name(p, "elif"));
    if (jinja_parse_skip_name(p, "endif")) return ERR_OK;
    p->at++;
    jinja_node *otherwise;
    TRY(parse_last_body(p, "endif", &otherwise));
    return jinja_parse_add(p, *out, otherwise);
}

static err_t parse_for(jinja_parser *p, jinja_node **out)
{
    static const char *const end_names[] = {"endfor", "else", NULL};
    static const jinja_tuple_rule target_rule = {.is_target = true, .end_name = "in"};
    static const jinja_tuple_rule sequence_rule = {.no_choice = true, .end_name = "recursive"};
    jinja_node *target, *sequence, *condition = NULL, *body, *otherwise = NULL;
    TRY(jinja_parse_node(p, JINJA_N_FOR, out));
    TRY(jinja_parse_target(p, &target_rule, &target));
    if (!jinja_parse_skip_name(p, "in")) return jinja_parse_unexpected(p);
    TRY(jinja_parse_tuple(p, &sequence_rule, &sequence));
    if (jinja_parse_skip_name(p, "if")) TRY(jinja_parse_expression(p, &condition));
    (*out)->op = jinja_parse_skip_name(p, "recursive");
    p->n_loops++;
    TRY(parse_body(p, end_names, &body));
    p->n_loops--;
    if (jinja_parse_skip_name(p, "else"))
        TRY(parse_last_body(p, "endfor", &otherwise));
    else
        p->at++;
    jinja_node *const kids[] = {target, sequence, condition, body, otherwise};
    for (size_t i = 0; i < sizeof kids / sizeof *kids; i++)
        TRY(jinja_parse_add(p, *out, kids[i]));
    return ERR_OK;
}

static err_t parse_set(jinja_parser *p, jinja_node **out)
{
    static const jinja_tuple_rule target_rule = {.is_target = true, .may_be_member = true};
    static const jinja_tuple_rule value_rule = {0};
    jinja_node *target, *value, *body;
    TRY(jinja_parse_target(p, &target_rule, &target));
    if (jinja_parse_skip(p, "=")) {
        TRY(jinja_parse_tuple(p, &value_rule, &value));
        return jinja_parse_over(p, JINJA_N_SET, target, value, out);
    }
    TRY(jinja_parse_node(p, JINJA_N_CAPTURED, &value));
    TRY(jinja_parse_filters(p, false, &value));
    TRY(parse_last_body(p, "endset", &body));
    TRY(jinja_parse_over(p, JINJA_N_SET_BLOCK, target, body, out));
    return jinja_parse_add(p, *out, value);
}

static err_t parse_with(jinja_parser *p, jinja_node **out)
{
    jinja_node *with = NULL, *body = NULL;
    TRY(jinja_parse_node(p, JINJA_N_WITH, &with));
    TRY(jinja_parse_add(p, with, NULL));
    while (p->at->kind != JINJA_T_BLOCK_END) {
        jinja_node *target, *value;
        if (with->n_kids > 1) TRY(jinja_parse_expect(p, ","));
        /* a target here is one name or a tuple in parentheses: the comma separates */
        TRY(jinja_parse_enter(p));
        TRY(jinja_parse_primary(p, false, &target));
        jinja_parse_leave(p);
        TRY(mark_target(p, target));
        TRY(jinja_parse_expect(p, "="));
        TRY(jinja_parse_expression(p, &value));
        TRY(jinja_parse_add(p, with, target));
        TRY(jinja_parse_add(p, with, value));
    }
    TRY(parse_last_body(p, "endwith", &body));
    with->kids[0] = body;
    if (body->depth >= with->depth) with->depth = (uint16_t)(body->depth + 1);
    *out = with;
    return ERR_OK;
}

/* (a, b=1) of a macro; defaults belong to the last parameters. */
static err_t parse_signature(jinja_parser *p, jinja_node *macro)
{
    TRY(jinja_parse_expect(p, "("));
    uint32_t n_params = 0;
    while (!jinja_parse_is(p, ")")) {
        if (n_params > 0) TRY(jinja_parse_expect(p, ","));
        uint32_t *names = jinja_heap_take(p->heap, n_params + 1, sizeof *names);
        if (names == NULL) return no_memory(p);
        if (n_params > 0) memcpy(names, macro->names, n_params * sizeof *names);
        macro->names = names;
        TRY(parse_name_target(p, &names[n_params++]));
        jinja_node *value = NULL;
        if (jinja_parse_skip(p, "="))
            TRY(jinja_parse_expression(p, &value));
        else if (n_params > 1 && macro->kids[n_params - 1] != NULL)
            return jinja_parse_unexpected(p);
        TRY(jinja_parse_add(p, macro, value));
    }
    return jinja_parse_expect(p, ")");
}

static err_t parse_macro_body(jinja_parser *p, const char *end_name, jinja_node *macro)
{
    const unsigned n_loops = p->n_loops; /* a macro cannot leave the loop around it */
    p->n_loops = 0;
    const uint8_t extra =
        p->extra; /* of the macro around this one, which sees what this one sees */
    p->extra = 0;
    p->n_macros++;
    TRY(parse_last_body(p, end_name, &macro->kids[0]));
    p->n_macros--;
    macro->op = p->extra;
    p->extra |= extra;
    p->n_loops = n_loops;
    if (macro->kids[0]->depth >= macro->depth) macro->depth = (uint16_t)(macro->kids[0]->depth + 1);
    return ERR_OK;
}

static err_t parse_macro(jinja_parser *p, jinja_node **out)
{
    jinja_node *macro = NULL;
    TRY(jinja_parse_node(p, JINJA_N_MACRO, &macro));
    TRY(jinja_parse_add(p, macro, NULL));
    TRY(parse_name_target(p, &macro->name));
    TRY(parse_signature(p, macro));
    *out = macro;
    return parse_macro_body(p, "endmacro", macro);
}

static err_t parse_call_block(jinja_parser *p, jinja_node **out)
{
    jinja_node *call = NULL, *macro = NULL;
    TRY(jinja_parse_node(p, JINJA_N_MACRO, &macro));
    TRY(jinja_parse_add(p, macro, NULL));
    macro->name = JINJA_NAME_CALLER;
    if (jinja_parse_is(p, "(")) TRY(parse_signature(p, macro));
    TRY(jinja_parse_expression(p, &call));
    if (call->kind != JINJA_N_CALL)
        return err_set(p->info, ERR_UNSUPPORTED,
                       "line %u: {%% call %%} of something other than a macro is not supported",
                       call->line);
    TRY(parse_macro_body(p, "endcall", macro));
    return jinja_parse_over(p, JINJA_N_CALL_BLOCK, call, macro, out);
}

static err_t parse_filter_block(jinja_parser *p, jinja_node **out)
{
    jinja_node *value, *body;
    TRY(jinja_parse_node(p, JINJA_N_CAPTURED, &value));
    TRY(jinja_parse_filters(p, true, &value));
    TRY(parse_last_body(p, "endfilter", &body));
    return jinja_parse_over(p, JINJA_N_FILTER_BLOCK, body, value, out);
}

/* transformers marks with it what the assistant said; for the text it is only a scope. */
static err_t parse_generation(jinja_parser *p, jinja_node **out)
{
    jinja_node *body;
    const unsigned n_loops = p->n_loops;
    p->n_loops = 0;
    TRY(parse_last_body(p, "endgeneration", &body));
    p->n_loops = n_loops;
    return jinja_parse_over(p, JINJA_N_SCOPE, body, NULL, out);
}

static err_t parse_jump(jinja_parser *p, jinja_kind kind, jinja_node **out)
{
    if (p->n_loops == 0)
        return err_set(p->info, ERR_BAD_MODEL, "line %u: {%% %s %%} outside a loop", p->at->line,
                       kind == JINJA_N_BREAK ? "break" : "continue");
    return jinja_parse_node(p, kind, out);
}

static err_t parse_statement(jinja_parser *p, jinja_node **out)
{
    const jinja_token *tag = p->at;
    jinja_value name;
    TRY(jinja_parse_expect_name(p, &name));
    if (jinja_is_text(name, "if")) return parse_if(p, out);
    if (jinja_is_text(name, "for")) return parse_for(p, out);
    if (jinja_is_text(name, "set")) return parse_set(p, out);
    if (jinja_is_text(name, "with")) return parse_with(p, out);
    if (jinja_is_text(name, "macro")) return parse_macro(p, out);
    if (jinja_is_text(name, "call")) return parse_call_block(p, out);
    if (jinja_is_text(name, "filter")) return parse_filter_block(p, out);
    if (jinja_is_text(name, "generation")) return parse_generation(p, out);
    if (jinja_is_text(name, "break")) return parse_jump(p, JINJA_N_BREAK, out);
    if (jinja_is_text(name, "continue")) return parse_jump(p, JINJA_N_CONTINUE, out);
    const bool is_end = name.n_bytes >= 3 && memcmp(name.text, "end", 3) == 0;
    p->at = tag;
    if (is_end || jinja_is_text(name, "else") || jinja_is_text(name, "elif"))
        return jinja_parse_unexpected(p);
    return err_set(p->info, ERR_UNSUPPORTED, "line %u: {%% %.*s %%} is not supported", tag->line,
                   (int)min_size(name.n_bytes, 80), name.text);
}

/* ---- the whole */

static err_t compile(jinja *t, const char *source, size_t n_bytes, err_info *info)
{
    jinja_tokens tokens;
    TRY(jinja_lex(&t->heap, source, n_bytes, &tokens, info));
    jinja_parser p = {.at = tokens.at, .heap = &t->heap, .info = info};
    uint32_t known;
    TRY(jinja_parse_intern(&p, jinja_string("loop", 4), &known));
    assert(known == JINJA_NAME_LOOP);
    TRY(jinja_parse_intern(&p, jinja_string("caller", 6), &known));
    assert(known == JINJA_NAME_CALLER);
    TRY(jinja_parse_intern(&p, jinja_string("varargs", 7), &known));
    assert(known == JINJA_NAME_VARARGS);
    TRY(jinja_parse_intern(&p, jinja_string("kwargs", 6), &known));
    assert(known == JINJA_NAME_KWARGS);
    TRY(parse_block(&p, NULL, &t->root));
    TRY(jinja_parse_check_calls(&p));
    t->names = p.names;
    t->n_names = p.n_names;
    return ERR_OK;
}

err_t jinja_compile(const char *source, size_t n_bytes, jinja **out, err_info *info)
{
    *out = NULL;
    jinja *t = calloc(1, sizeof *t);
    if (t == NULL) return err_set(info, ERR_NO_MEMORY, "%s", err_sentence(ERR_NO_MEMORY));
    jinja_heap_init(&t->heap, TEMPLATE_BYTES_MAX);
    const err_t err = compile(t, source, n_bytes, info);
    if (err != ERR_OK) {
        jinja_free(t);
        return err;
    }
    *out = t;
    return ERR_OK;
}

void jinja_free(jinja *template)
{
    if (template == NULL) return;
    jinja_heap_deinit(&template->heap);
    free(template);
}
