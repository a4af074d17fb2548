/* Jinja's precedence, from loose to tight: if else, or, and, not, comparisons, + -, ~, * / // %, **,
 * unary, and then attributes, calls, filters and tests. */
#include "service/jinja/jinja_parse.h"

#include <string.h>

static err_t over(jinja_parser *p, jinja_kind kind, jinja_node *a, jinja_node *b, jinja_node **out)
{
    return jinja_parse_over(p, kind, a, b, out);
}

/* ---- primary expressions */

static err_t parse_name(jinja_parser *p, bool may_be_member, jinja_node **out)
{
    const jinja_value name = p->at->value;
    const bool is_true = jinja_is_text(name, "true") || jinja_is_text(name, "True");
    const bool is_false = jinja_is_text(name, "false") || jinja_is_text(name, "False");
    if (is_true || is_false || jinja_is_text(name, "none") || jinja_is_text(name, "None")) {
        TRY(jinja_parse_node(p, JINJA_N_CONST, out));
        (*out)->value = is_true || is_false ? jinja_bool(is_true) : jinja_none();
        p->at++;
        return ERR_OK;
    }
    TRY(jinja_parse_node(p, JINJA_N_NAME, out));
    TRY(jinja_parse_intern(p, name, &(*out)->name));
    p->at++;
    if (may_be_member && jinja_parse_skip(p, ".")) {
        (*out)->kind = JINJA_N_MEMBER;
        return jinja_parse_expect_name(p, &(*out)->value);
    }
    static const char *const odd[] = {"self", "super", "cycler", "joiner", "lipsum", NULL};
    bool is_odd = false;
    if (p->n_macros > 0 && (*out)->name == JINJA_NAME_VARARGS) p->extra |= JINJA_TAKES_VARARGS;
    if (p->n_macros > 0 && (*out)->name == JINJA_NAME_KWARGS) p->extra |= JINJA_TAKES_KWARGS;
    for (size_t i = 0; odd[i] != NULL; i++)
        is_odd = is_odd || jinja_is_text(name, odd[i]);
    if (is_odd && p->uses[(*out)->name].odd_line == 0)
        p->uses[(*out)->name].odd_line = (*out)->line;
    return ERR_OK;
}

/* 'a' 'b' is one string. */
static err_t parse_strings(jinja_parser *p, jinja_node **out)
{
    TRY(jinja_parse_node(p, JINJA_N_CONST, out));
    (*out)->value = p->at++->value;
    while (p->at->kind == JINJA_T_STRING) {
        const jinja_value a = (*out)->value, b = p->at++->value;
        char *joined = jinja_heap_take_text(p->heap, (size_t)a.n_bytes + b.n_bytes + 1);
        if (joined == NULL) return err_set(p->info, ERR_NO_MEMORY, "no memory for a string");
        memcpy(joined, a.text, a.n_bytes);
        memcpy(joined + a.n_bytes, b.text, b.n_bytes);
        (*out)->value = jinja_string(joined, (size_t)a.n_bytes + b.n_bytes);
    }
    return ERR_OK;
}

static err_t parse_list(jinja_parser *p, jinja_node **out)
{
    TRY(jinja_parse_node(p, JINJA_N_LIST, out));
    while (!jinja_parse_is(p, "]")) {
        if ((*out)->n_kids > 0) TRY(jinja_parse_expect(p, ","));
        if (jinja_parse_is(p, "]")) break;
        jinja_node *item;
        TRY(jinja_parse_expression(p, &item));
        TRY(jinja_parse_add(p, *out, item));
    }
    return jinja_parse_expect(p, "]");
}

static err_t parse_dict(jinja_parser *p, jinja_node **out)
{
    TRY(jinja_parse_node(p, JINJA_N_DICT, out));
    while (!jinja_parse_is(p, "}")) {
        if ((*out)->n_kids > 0) TRY(jinja_parse_expect(p, ","));
        if (jinja_parse_is(p, "}")) break;
        jinja_node *key, *value;
        TRY(jinja_parse_expression(p, &key));
        TRY(jinja_parse_expect(p, ":"));
        TRY(jinja_parse_expression(p, &value));
        TRY(jinja_parse_add(p, *out, key));
        TRY(jinja_parse_add(p, *out, value));
    }
    return jinja_parse_expect(p, "}");
}

err_t jinja_parse_primary(jinja_parser *p, bool may_be_member, jinja_node **out)
{
    switch (p->at->kind) {
    case JINJA_T_NAME: return parse_name(p, may_be_member, out);
    case JINJA_T_STRING: return parse_strings(p, out);
    case JINJA_T_INTEGER:
    case JINJA_T_FLOAT:
        TRY(jinja_parse_node(p, JINJA_N_CONST, out));
        (*out)->value = p->at++->value;
        return ERR_OK;
    default: break;
    }
    if (jinja_parse_skip(p, "(")) {
        const jinja_tuple_rule rule = {.may_be_empty = true};
        TRY(jinja_parse_tuple(p, &rule, out));
        return jinja_parse_expect(p, ")");
    }
    if (jinja_parse_skip(p, "[")) return parse_list(p, out);
    if (jinja_parse_skip(p, "{")) return parse_dict(p, out);
    return jinja_parse_unexpected(p);
}

/* ---- attributes, indices, slices */

static err_t parse_bound(jinja_parser *p, jinja_node *slice)
{
    jinja_node *bound = NULL;
    if (!jinja_parse_is(p, ":") && !jinja_parse_is(p, "]")) TRY(jinja_parse_expression(p, &bound));
    return jinja_parse_add(p, slice, bound);
}

/* Behind [. */
static err_t parse_index(jinja_parser *p, jinja_node **node)
{
    jinja_node *index = NULL, *slice;
    if (!jinja_parse_is(p, ":")) {
        TRY(jinja_parse_expression(p, &index));
        if (jinja_parse_skip(p, "]")) return over(p, JINJA_N_ITEM, *node, index, node);
    }
    TRY(over(p, JINJA_N_SLICE, *node, NULL, &slice));
    TRY(jinja_parse_add(p, slice, index));
    TRY(jinja_parse_expect(p, ":"));
    TRY(parse_bound(p, slice));
    if (jinja_parse_skip(p, ":"))
        TRY(parse_bound(p, slice));
    else
        TRY(jinja_parse_add(p, slice, NULL));
    *node = slice;
    return jinja_parse_expect(p, "]");
}

/* Behind the point: a name or a number. */
static err_t parse_attribute(jinja_parser *p, jinja_node **node)
{
    if (p->at->kind == JINJA_T_INTEGER) {
        jinja_node *index;
        TRY(jinja_parse_node(p, JINJA_N_CONST, &index));
        index->value = p->at++->value;
        return over(p, JINJA_N_ITEM, *node, index, node);
    }
    const uint32_t line = p->at->line;
    jinja_value name;
    TRY(jinja_parse_expect_name(p, &name));
    if (name.n_bytes >= 2 && memcmp(name.text, "__", 2) == 0)
        return jinja_parse_unsupported(p, line, "attribute", name);
    TRY(over(p, JINJA_N_ATTRIBUTE, *node, NULL, node));
    (*node)->value = name;
    return ERR_OK;
}

err_t jinja_parse_postfix(jinja_parser *p, jinja_node **node)
{
    for (;;) {
        if (jinja_parse_skip(p, "."))
            TRY(parse_attribute(p, node));
        else if (jinja_parse_skip(p, "["))
            TRY(parse_index(p, node));
        else if (jinja_parse_is(p, "("))
            TRY(jinja_parse_call(p, node));
        else
            return ERR_OK;
    }
}

static err_t parse_filters_and_tests(jinja_parser *p, jinja_node **node)
{
    for (;;) {
        if (jinja_parse_is(p, "|"))
            TRY(jinja_parse_filters(p, false, node));
        else if (jinja_parse_is_name(p, "is"))
            TRY(jinja_parse_test(p, node));
        else if (jinja_parse_is(p, "("))
            TRY(jinja_parse_call(p, node));
        else
            return ERR_OK;
    }
}

/* ---- operators */

/* -x|f is (-x)|f, and -x.y is (-x).y, as in Jinja. */
static err_t parse_unary(jinja_parser *p, bool has_filters, jinja_node **out)
{
    TRY(jinja_parse_enter(p));
    const bool is_negative = jinja_parse_skip(p, "-");
    if (is_negative || jinja_parse_skip(p, "+")) {
        jinja_node *x;
        TRY(parse_unary(p, false, &x));
        TRY(over(p, is_negative ? JINJA_N_NEGATE : JINJA_N_PLUS, x, NULL, out));
    } else {
        TRY(jinja_parse_primary(p, false, out));
    }
    jinja_parse_leave(p);
    TRY(jinja_parse_postfix(p, out));
    return has_filters ? parse_filters_and_tests(p, out) : ERR_OK;
}

static err_t over_math(jinja_parser *p, jinja_op op, jinja_node *right, jinja_node **left)
{
    TRY(over(p, JINJA_N_MATH, *left, right, left));
    (*left)->op = (uint8_t)op;
    return ERR_OK;
}

static err_t parse_power(jinja_parser *p, jinja_node **out)
{
    TRY(parse_unary(p, true, out));
    while (jinja_parse_skip(p, "**")) {
        jinja_node *right;
        TRY(parse_unary(p, true, &right));
        TRY(over_math(p, JINJA_POWER, right, out));
    }
    return ERR_OK;
}

typedef struct operator_word {
    const char *text;
    jinja_op op;
} operator_word;

static const operator_word *find_operator(jinja_parser *p, const operator_word *words)
{
    for (; words->text != NULL; words++)
        if (jinja_parse_skip(p, words->text)) return words;
    return NULL;
}

static err_t parse_product(jinja_parser *p, jinja_node **out)
{
    static const operator_word words[] = {{"*", JINJA_MULTIPLY},
                                          {"//", JINJA_FLOOR_DIVIDE},
                                          {"/", JINJA_DIVIDE},
                                          {"%", JINJA_MODULO},
                                          {NULL, JINJA_ADD}};
    TRY(parse_power(p, out));
    for (const operator_word *word; (word = find_operator(p, words)) != NULL;) {
        jinja_node *right;
        TRY(parse_power(p, &right));
        TRY(over_math(p, word->op, right, out));
    }
    return ERR_OK;
}

static err_t parse_concat(jinja_parser *p, jinja_node **out)
{
    TRY(parse_product(p, out));
    if (!jinja_parse_is(p, "~")) return ERR_OK;
    TRY(over(p, JINJA_N_CONCAT, *out, NULL, out));
    while (jinja_parse_skip(p, "~")) {
        jinja_node *x;
        TRY(parse_product(p, &x));
        TRY(jinja_parse_add(p, *out, x));
    }
    return ERR_OK;
}

static err_t parse_sum(jinja_parser *p, jinja_node **out)
{
    static const operator_word words[] = {
        {"+", JINJA_ADD}, {"-", JINJA_SUBTRACT}, {NULL, JINJA_ADD}};
    TRY(parse_concat(p, out));
    for (const operator_word *word; (word = find_operator(p, words)) != NULL;) {
        jinja_node *right;
        TRY(parse_concat(p, &right));
        TRY(over_math(p, word->op, right, out));
    }
    return ERR_OK;
}

static bool parse_comparison(jinja_parser *p, jinja_op *op)
{
    static const operator_word words[] = {{"==", JINJA_EQ}, {"!=", JINJA_NE}, {"<", JINJA_LT},
                                          {"<=", JINJA_LE}, {">", JINJA_GT},  {">=", JINJA_GE},
                                          {NULL, JINJA_EQ}};
    const operator_word *word = find_operator(p, words);
    if (word != NULL) {
        *op = word->op;
        return true;
    }
    if (jinja_parse_skip_name(p, "in")) {
        *op = JINJA_IN;
        return true;
    }
    const bool is_not_in = jinja_parse_is_name(p, "not") && p->at[1].kind == JINJA_T_NAME &&
                           jinja_is_text(p->at[1].value, "in");
    if (is_not_in) {
        *op = JINJA_NOT_IN;
        p->at += 2;
    }
    return is_not_in;
}

static err_t parse_compare(jinja_parser *p, jinja_node **out)
{
    TRY(parse_sum(p, out));
    jinja_node *chain = NULL;
    for (jinja_op op; parse_comparison(p, &op);) {
        if (chain == NULL) TRY(over(p, JINJA_N_COMPARE, *out, NULL, &chain));
        jinja_node *right;
        TRY(parse_sum(p, &right));
        TRY(jinja_parse_add(p, chain, right));
        uint8_t *ops = jinja_heap_take(p->heap, chain->n_kids, 1); /* chains are short */
        if (ops == NULL) return err_set(p->info, ERR_NO_MEMORY, "no memory for a comparison");
        if (chain->ops != NULL) memcpy(ops, chain->ops, chain->n_kids - 2);
        ops[chain->n_kids - 2] = (uint8_t)op;
        chain->ops = ops;
        *out = chain;
    }
    return ERR_OK;
}

static err_t parse_not(jinja_parser *p, jinja_node **out)
{
    if (!jinja_parse_skip_name(p, "not")) return parse_compare(p, out);
    TRY(jinja_parse_enter(p));
    TRY(parse_not(p, out));
    jinja_parse_leave(p);
    return over(p, JINJA_N_NOT, *out, NULL, out);
}

static err_t parse_and(jinja_parser *p, jinja_node **out)
{
    TRY(parse_not(p, out));
    while (jinja_parse_skip_name(p, "and")) {
        jinja_node *right;
        TRY(parse_not(p, &right));
        TRY(over(p, JINJA_N_AND, *out, right, out));
    }
    return ERR_OK;
}

static err_t parse_or(jinja_parser *p, jinja_node **out)
{
    TRY(parse_and(p, out));
    while (jinja_parse_skip_name(p, "or")) {
        jinja_node *right;
        TRY(parse_and(p, &right));
        TRY(over(p, JINJA_N_OR, *out, right, out));
    }
    return ERR_OK;
}

err_t jinja_parse_expression(jinja_parser *p, jinja_node **out)
{
    TRY(jinja_parse_enter(p));
    TRY(parse_or(p, out));
    while (jinja_parse_skip_name(p, "if")) {
        jinja_node *condition, *otherwise = NULL;
        TRY(parse_or(p, &condition));
        if (jinja_parse_skip_name(p, "else")) TRY(jinja_parse_expression(p, &otherwise));
        TRY(over(p, JINJA_N_CHOOSE, condition, *out, out));
        TRY(jinja_parse_add(p, *out, otherwise));
    }
    jinja_parse_leave(p);
    return ERR_OK;
}

static bool is_tuple_end(const jinja_parser *p, const jinja_tuple_rule *rule)
{
    if (p->at->kind == JINJA_T_PRINT_END || p->at->kind == JINJA_T_BLOCK_END) return true;
    return jinja_parse_is(p, ")") ||
           (rule->end_name != NULL && jinja_parse_is_name(p, rule->end_name));
}

static err_t parse_tuple_item(jinja_parser *p, const jinja_tuple_rule *rule, jinja_node **out)
{
    if (rule->is_target) {
        TRY(jinja_parse_enter(p));
        TRY(jinja_parse_primary(p, rule->may_be_member, out));
        jinja_parse_leave(p);
        return ERR_OK;
    }
    return rule->no_choice ? parse_or(p, out) : jinja_parse_expression(p, out);
}

err_t jinja_parse_tuple(jinja_parser *p, const jinja_tuple_rule *rule, jinja_node **out)
{
    jinja_node *tuple, *item = NULL;
    TRY(jinja_parse_node(p, JINJA_N_TUPLE, &tuple));
    bool is_tuple = false;
    for (;;) {
        if (tuple->n_kids > 0) TRY(jinja_parse_expect(p, ","));
        if (is_tuple_end(p, rule)) break;
        TRY(parse_tuple_item(p, rule, &item));
        TRY(jinja_parse_add(p, tuple, item));
        if (!jinja_parse_is(p, ",")) break;
        is_tuple = true;
    }
    *out = !is_tuple && item != NULL ? item : tuple;
    if (item == NULL && !rule->may_be_empty) return jinja_parse_unexpected(p);
    return ERR_OK;
}
