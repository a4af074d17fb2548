/* Filters, tests and methods are looked up here, and their arguments put into the order in which their
 * tables name them, so that a rendering only evaluates them. */
#include "service/jinja/jinja_parse.h"
#include "service/jinja/jinja_run.h"

#include <string.h>

static err_t take_keyword_name(jinja_parser *p, jinja_node *call, uint32_t *capacity)
{
    if (call->n_keywords == *capacity) {
        *capacity = *capacity * 2 + 4;
        jinja_value *grown = jinja_heap_take(p->heap, *capacity, sizeof *grown);
        if (grown == NULL) return err_set(p->info, ERR_NO_MEMORY, "no memory for a call");
        if (call->n_keywords > 0) memcpy(grown, call->keywords, call->n_keywords * sizeof *grown);
        call->keywords = grown;
    }
    for (uint32_t i = 0; i < call->n_keywords; i++)
        if (jinja_equal(call->keywords[i], p->at->value)) return jinja_parse_unexpected(p);
    call->keywords[call->n_keywords++] = p->at->value;
    p->at += 2;
    return ERR_OK;
}

/* *list or **dict, one of each, kept apart until all the others are there. */
static err_t parse_unpacked(jinja_parser *p, jinja_node *unpacked[2])
{
    const int which = jinja_parse_is(p, "**");
    if (unpacked[which] != NULL) return jinja_parse_unexpected(p);
    p->at++;
    return jinja_parse_expression(p, &unpacked[which]);
}

/* (a, b, name=c, *d, **e) behind a callee: a CALL. */
static err_t parse_arguments(jinja_parser *p, jinja_node *callee, jinja_node **out)
{
    jinja_node *call, *unpacked[2] = {NULL, NULL};
    TRY(jinja_parse_over(p, JINJA_N_CALL, callee, NULL, &call));
    if (callee == NULL) TRY(jinja_parse_add(p, call, NULL));
    TRY(jinja_parse_expect(p, "("));
    uint32_t capacity = 0;
    for (bool is_first = true; !jinja_parse_is(p, ")"); is_first = false) {
        if (!is_first) TRY(jinja_parse_expect(p, ","));
        if (jinja_parse_is(p, ")")) break;
        if (jinja_parse_is(p, "*") || jinja_parse_is(p, "**")) {
            TRY(parse_unpacked(p, unpacked));
            continue;
        }
        const bool is_named = p->at->kind == JINJA_T_NAME && p->at[1].kind == JINJA_T_OPERATOR &&
                              jinja_is_text(p->at[1].value, "=");
        const bool is_late = unpacked[1] != NULL || (!is_named && unpacked[0] != NULL) ||
                             (!is_named && call->n_keywords > 0);
        if (is_late) return jinja_parse_unexpected(p);
        if (is_named) TRY(take_keyword_name(p, call, &capacity));
        jinja_node *argument;
        TRY(jinja_parse_expression(p, &argument));
        TRY(jinja_parse_add(p, call, argument));
    }
    for (int which = 0; which < 2; which++) {
        if (unpacked[which] == NULL) continue;
        TRY(jinja_parse_add(p, call, unpacked[which]));
        call->op |= which == 0 ? JINJA_UNPACKS_LIST : JINJA_UNPACKS_DICT;
    }
    *out = call;
    return jinja_parse_expect(p, ")");
}

/* What filters, tests and methods take is put in order here, so it must be there. */
static err_t refuse_unpacked(const jinja_parser *p, const jinja_node *call)
{
    if (call->op == 0) return ERR_OK;
    return err_set(p->info, ERR_UNSUPPORTED,
                   "line %u: unpacked arguments of what is neither a macro nor a function are not "
                   "supported",
                   p->at->line);
}

static uint32_t n_positional(const jinja_node *call)
{
    return call->n_kids - 1 - call->n_keywords;
}

/* The value of a named argument, which is then as if it had not been there; NULL if it was not. */
static jinja_node *take_keyword(jinja_node *call, const char *name, size_t n_bytes)
{
    for (uint32_t i = 0; i < call->n_keywords; i++) {
        const jinja_value keyword = call->keywords[i];
        if (keyword.n_bytes != n_bytes || memcmp(keyword.text, name, n_bytes) != 0) continue;
        const uint32_t at = 1 + n_positional(call) + i;
        jinja_node *taken = call->kids[at];
        for (uint32_t k = i; k + 1 < call->n_keywords; k++)
            call->keywords[k] = call->keywords[k + 1];
        for (uint32_t k = at; k + 1 < call->n_kids; k++)
            call->kids[k] = call->kids[k + 1];
        call->n_keywords--;
        call->n_kids--;
        return taken;
    }
    return NULL;
}

static jinja_node *take_first(jinja_node *call)
{
    if (n_positional(call) == 0) return NULL;
    jinja_node *taken = call->kids[1];
    for (uint32_t k = 1; k + 1 < call->n_kids; k++)
        call->kids[k] = call->kids[k + 1];
    call->n_kids--;
    return taken;
}

/* Gives `node` the arguments of `call` in the order of def->params. */
static err_t bind(jinja_parser *p, const char *what, const jinja_def *def, jinja_node *call,
                  jinja_node *node)
{
    node->def = def;
    TRY(refuse_unpacked(p, call));
    for (const char *param = def->params; *param != '\0';) {
        size_t n = strcspn(param, " ");
        const bool is_optional = param[n - 1] == '?';
        jinja_node *argument = take_first(call);
        if (argument == NULL) argument = take_keyword(call, param, n - is_optional);
        if (argument == NULL && !is_optional)
            return err_set(p->info, ERR_UNSUPPORTED,
                           "line %u: %s %s without \"%.*s\" is not supported", node->line, what,
                           def->name, (int)n, param);
        TRY(jinja_parse_add(p, node, argument));
        param += n + (param[n] == ' ');
    }
    if (call->n_keywords > 0)
        return err_set(p->info, ERR_UNSUPPORTED, "line %u: %s %s with \"%.*s\" is not supported",
                       node->line, what, def->name, (int)call->keywords[0].n_bytes,
                       call->keywords[0].text);
    if (call->n_kids > 1)
        return err_set(p->info, ERR_UNSUPPORTED,
                       "line %u: %s %s with this many arguments is not supported", node->line, what,
                       def->name);
    return ERR_OK;
}

/* x.name(...): a method, known by its name alone. */
static err_t parse_method(jinja_parser *p, jinja_node *call, jinja_node **out)
{
    const jinja_node *callee = call->kids[0];
    const jinja_def *def = jinja_find_method(callee->value);
    if (def == NULL) return jinja_parse_unsupported(p, callee->line, "method", callee->value);
    TRY(jinja_parse_over(p, JINJA_N_METHOD, callee->kids[0], NULL, out));
    (*out)->line = callee->line;
    (*out)->value = callee->value;
    static const char *const named[] = {"split", "rsplit", "splitlines", "replace", NULL};
    bool takes_names = false; /* most of Python's methods do not */
    for (size_t i = 0; named[i] != NULL; i++)
        takes_names = takes_names || jinja_is_text(callee->value, named[i]);
    if (call->n_keywords > 0 && !takes_names)
        return jinja_parse_unsupported(p, callee->line, "a named argument of", callee->value);
    /* cycle takes any number: they are left as they are */
    if (strcmp(def->params, "*") != 0) return bind(p, "method", def, call, *out);
    (*out)->def = def;
    TRY(refuse_unpacked(p, call));
    if (call->n_keywords > 0 || call->n_kids > JINJA_ARGS_MAX)
        return jinja_parse_unsupported(p, callee->line, "this call of", callee->value);
    for (jinja_node *item; (item = take_first(call)) != NULL;)
        TRY(jinja_parse_add(p, *out, item));
    return ERR_OK;
}

err_t jinja_parse_call(jinja_parser *p, jinja_node **node)
{
    jinja_node *call;
    const uint32_t line = p->at->line;
    TRY(parse_arguments(p, *node, &call));
    const uint8_t kind = call->kids[0]->kind;
    if (kind == JINJA_N_ATTRIBUTE) return parse_method(p, call, node);
    if (kind != JINJA_N_NAME)
        return err_set(p->info, ERR_UNSUPPORTED,
                       "line %u: a call of something without a name is not supported", line);
    jinja_name_use *use = &p->uses[call->kids[0]->name];
    if (use->called_line == 0) use->called_line = line;
    *node = call;
    return ERR_OK;
}

err_t jinja_parse_check_calls(jinja_parser *p)
{
    for (uint32_t i = 0; i < p->n_names; i++) {
        const jinja_name_use use = p->uses[i];
        if (use.is_assigned || i == JINJA_NAME_CALLER || i == JINJA_NAME_LOOP) continue;
        if (use.odd_line > 0) return jinja_parse_unsupported(p, use.odd_line, "name", p->names[i]);
        if (use.called_line == 0 || jinja_find_function(p->names[i]) != NULL) continue;
        return jinja_parse_unsupported(p, use.called_line, "function", p->names[i]);
    }
    return ERR_OK;
}

/* ---- filters */

/* The name in quotes that select("name") and map("name") take. */
static err_t take_name(jinja_parser *p, jinja_node *call, jinja_value *out)
{
    const jinja_node *first = take_first(call);
    *out = (jinja_value){0};
    if (first == NULL) return ERR_OK;
    if (first->kind != JINJA_N_CONST || first->value.type != JINJA_STRING)
        return err_set(p->info, ERR_UNSUPPORTED,
                       "line %u: a filter or test that is not named in quotes is not supported",
                       first->line);
    *out = first->value;
    return ERR_OK;
}

static err_t parse_map(jinja_parser *p, jinja_node *call, jinja_node *node)
{
    jinja_node *attribute = take_keyword(call, "attribute", 9);
    TRY(jinja_parse_add(p, node, attribute));
    if (attribute != NULL) {
        static const jinja_def map_attribute = {"map", "default?", NULL};
        node->op = JINJA_EACH_ATTRIBUTE;
        return bind(p, "filter", &map_attribute, call, node);
    }
    jinja_value name;
    TRY(take_name(p, call, &name));
    node->op = JINJA_EACH_FILTER;
    const jinja_def *def = name.type == JINJA_STRING ? jinja_find_filter(name) : NULL;
    if (def == NULL) return jinja_parse_unsupported(p, node->line, "filter", name);
    return bind(p, "filter", def, call, node);
}

static err_t parse_select(jinja_parser *p, bool has_attribute, jinja_node *call, jinja_node *node)
{
    jinja_node *attribute = has_attribute ? take_first(call) : NULL;
    if (has_attribute && attribute == NULL)
        return err_set(p->info, ERR_BAD_MODEL, "line %u: a filter lacks its attribute", node->line);
    TRY(jinja_parse_add(p, node, attribute));
    jinja_value name;
    TRY(take_name(p, call, &name));
    static const jinja_def truth = {"select", "", NULL};
    const jinja_def *def = name.type == JINJA_STRING ? jinja_find_test(name) : &truth;
    if (def == NULL) return jinja_parse_unsupported(p, node->line, "test", name);
    return bind(p, "test", def, call, node);
}

/* Filters that apply others; *is_each says whether it is one. */
static err_t parse_each(jinja_parser *p, jinja_value name, jinja_node *call, jinja_node **node,
                        bool *is_each)
{
    const bool is_map = jinja_is_text(name, "map");
    const bool has_attribute =
        jinja_is_text(name, "selectattr") || jinja_is_text(name, "rejectattr");
    const bool is_reject = jinja_is_text(name, "reject") || jinja_is_text(name, "rejectattr");
    *is_each = is_map || is_reject || has_attribute || jinja_is_text(name, "select");
    if (!*is_each) return ERR_OK;
    const uint32_t line = call->line;
    TRY(jinja_parse_over(p, JINJA_N_EACH, *node, NULL, node));
    (*node)->line = line;
    if (is_map) return parse_map(p, call, *node);
    (*node)->op = is_reject ? JINJA_EACH_REJECT : JINJA_EACH_SELECT;
    return parse_select(p, has_attribute, call, *node);
}

/* An empty call where there are no parentheses. */
static err_t parse_maybe_arguments(jinja_parser *p, jinja_node **out)
{
    if (jinja_parse_is(p, "(")) return parse_arguments(p, NULL, out);
    TRY(jinja_parse_node(p, JINJA_N_CALL, out));
    return jinja_parse_add(p, *out, NULL);
}

err_t jinja_parse_filters(jinja_parser *p, bool has_begun, jinja_node **node)
{
    while (has_begun || jinja_parse_skip(p, "|")) {
        has_begun = false;
        const uint32_t line = p->at->line;
        jinja_value name;
        jinja_node *call;
        bool is_each;
        TRY(jinja_parse_expect_name(p, &name));
        TRY(parse_maybe_arguments(p, &call));
        TRY(parse_each(p, name, call, node, &is_each));
        if (is_each) continue;
        const jinja_def *def = jinja_find_filter(name);
        if (def == NULL) return jinja_parse_unsupported(p, line, "filter", name);
        TRY(jinja_parse_over(p, JINJA_N_FILTER, *node, NULL, node));
        (*node)->line = line;
        TRY(bind(p, "filter", def, call, *node));
    }
    return ERR_OK;
}

/* ---- tests */

/* `is divisibleby 3`: one argument without parentheses. */
static bool begins_argument(const jinja_parser *p)
{
    switch (p->at->kind) {
    case JINJA_T_NAME:
        return !jinja_parse_is_name(p, "else") && !jinja_parse_is_name(p, "or") &&
               !jinja_parse_is_name(p, "and") && !jinja_parse_is_name(p, "is");
    case JINJA_T_STRING:
    case JINJA_T_INTEGER:
    case JINJA_T_FLOAT: return true;
    default: return jinja_parse_is(p, "[") || jinja_parse_is(p, "{");
    }
}

err_t jinja_parse_test(jinja_parser *p, jinja_node **node)
{
    const uint32_t line = p->at->line;
    p->at++; /* is */
    const bool is_negated = jinja_parse_skip_name(p, "not");
    jinja_value name;
    jinja_node *call;
    TRY(jinja_parse_expect_name(p, &name));
    TRY(parse_maybe_arguments(p, &call));
    if (call->n_kids == 1 && begins_argument(p)) {
        jinja_node *argument;
        TRY(jinja_parse_enter(p));
        TRY(jinja_parse_primary(p, false, &argument));
        TRY(jinja_parse_postfix(p, &argument));
        jinja_parse_leave(p);
        TRY(jinja_parse_add(p, call, argument));
    } else if (jinja_parse_is_name(p, "is")) {
        return jinja_parse_unexpected(p);
    }
    const jinja_def *def = jinja_find_test(name);
    if (def == NULL) return jinja_parse_unsupported(p, line, "test", name);
    TRY(jinja_parse_over(p, JINJA_N_TEST, *node, NULL, node));
    (*node)->line = line;
    TRY(bind(p, "test", def, call, *node));
    return is_negated ? jinja_parse_over(p, JINJA_N_NOT, *node, NULL, node) : ERR_OK;
}
