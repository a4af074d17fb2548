/* Expressions. One function for each kind of node that is more than a line, and one switch. */
#include "service/jinja/jinja_eval.h"
#include "base/check.h"

#include <string.h>

static err_t eval_name(jinja_run *run, const jinja_node *node, jinja_value *out)
{
    for (const jinja_scope *scope = run->scope; scope != NULL; scope = scope->outer) {
        for (const jinja_binding *b = scope->first; b != NULL; b = b->next) {
            if (b->name != node->name) continue;
            *out = b->value;
            return ERR_OK;
        }
    }
    *out = run->variables[node->name];
    if (out->type != JINJA_ABSENT) return ERR_OK;
    const jinja_value name = run->template->names[node->name];
    const jinja_def *function = jinja_find_function(name);
    *out = function != NULL ? (jinja_value){.type = JINJA_FUNCTION, .function = function}
                            : jinja_undefined(JINJA_ABSENT, name.text, name.n_bytes);
    return ERR_OK;
}

static err_t eval_items(jinja_run *run, const jinja_node *node, jinja_form form, jinja_value *out)
{
    TRY(jinja_open_list(run, form, node->n_kids, out));
    const jinja_value list = *out;
    for (uint32_t i = 0; i < node->n_kids; i++)
        TRY(jinja_eval(run, node->kids[i], &list.list->items[i]));
    return jinja_close_list(run, list, node->n_kids);
}

static err_t eval_dict(jinja_run *run, const jinja_node *node, jinja_value *out)
{
    TRY(jinja_open_dict(run, node->n_kids / 2, out));
    for (uint32_t i = 0; i < node->n_kids; i += 2) {
        jinja_value key, value;
        TRY(jinja_eval(run, node->kids[i], &key));
        TRY(jinja_eval(run, node->kids[i + 1], &value));
        TRY(jinja_dict_put(run, *out, key, value));
    }
    return jinja_close_dict(run, *out);
}

static err_t eval_item(jinja_run *run, const jinja_node *node, jinja_value *out)
{
    jinja_value object, index;
    TRY(jinja_eval(run, node->kids[0], &object));
    TRY(jinja_eval(run, node->kids[1], &index));
    return jinja_get_item(run, object, index, out);
}

static err_t eval_slice(jinja_run *run, const jinja_node *node, jinja_value *out)
{
    jinja_value object, bounds[3] = {{0}};
    TRY(jinja_eval(run, node->kids[0], &object));
    for (uint32_t i = 0; i < 3; i++)
        if (node->kids[i + 1] != NULL) TRY(jinja_eval(run, node->kids[i + 1], &bounds[i]));
    return jinja_get_slice(run, object, bounds, out);
}

/* a < b < c: each is evaluated once, and none behind the first that fails. */
static err_t eval_compare(jinja_run *run, const jinja_node *node, jinja_value *out)
{
    jinja_value left, right;
    bool holds = true;
    TRY(jinja_eval(run, node->kids[0], &left));
    for (uint32_t i = 1; i < node->n_kids && holds; i++) {
        TRY(jinja_eval(run, node->kids[i], &right));
        TRY(jinja_compare(run, (jinja_op)node->ops[i - 1], left, right, &holds));
        left = right;
    }
    *out = jinja_bool(holds);
    return ERR_OK;
}

static err_t eval_math(jinja_run *run, const jinja_node *node, jinja_value *out)
{
    jinja_value left, right;
    TRY(jinja_eval(run, node->kids[0], &left));
    TRY(jinja_eval(run, node->kids[1], &right));
    return jinja_math(run, (jinja_op)node->op, left, right, out);
}

static err_t eval_concat(jinja_run *run, const jinja_node *node, jinja_value *out)
{
    jinja_value joined = jinja_string("", 0);
    for (uint32_t i = 0; i < node->n_kids; i++) {
        jinja_value x;
        TRY(jinja_eval(run, node->kids[i], &x));
        TRY(jinja_str(run, x, &x));
        TRY(jinja_join_text(run, joined, x, &joined));
    }
    *out = joined;
    return ERR_OK;
}

static err_t eval_choose(jinja_run *run, const jinja_node *node, jinja_value *out)
{
    jinja_value condition;
    TRY(jinja_eval(run, node->kids[0], &condition));
    const jinja_node *chosen = jinja_truth(condition) ? node->kids[1] : node->kids[2];
    if (chosen != NULL) return jinja_eval(run, chosen, out);
    *out = jinja_undefined(JINJA_ABSENT, "the inline if without else", 26);
    return ERR_OK;
}

/* and, or: the value that decides. */
static err_t eval_logic(jinja_run *run, const jinja_node *node, jinja_value *out)
{
    TRY(jinja_eval(run, node->kids[0], out));
    if (jinja_truth(*out) == (node->kind == JINJA_N_OR)) return ERR_OK;
    return jinja_eval(run, node->kids[1], out);
}

static err_t eval_sign(jinja_run *run, const jinja_node *node, jinja_value *out)
{
    jinja_value x;
    TRY(jinja_eval(run, node->kids[0], &x));
    if (node->kind == JINJA_N_NEGATE) return jinja_negate(run, x, out);
    if (!jinja_is_number(x)) return jinja_negate(run, x, out); /* for its error */
    *out = jinja_is_whole(x) ? jinja_int(jinja_whole(x)) : x;
    return ERR_OK;
}

static err_t eval_attribute(jinja_run *run, const jinja_node *node, jinja_value *out)
{
    jinja_value object;
    TRY(jinja_eval(run, node->kids[0], &object));
    return jinja_get_attribute(run, object, node->value, out);
}

static err_t eval_not(jinja_run *run, const jinja_node *node, jinja_value *out)
{
    jinja_value x;
    TRY(jinja_eval(run, node->kids[0], &x));
    *out = jinja_bool(!jinja_truth(x));
    return ERR_OK;
}

static err_t eval_kind(jinja_run *run, const jinja_node *node, jinja_value *out)
{
    switch ((jinja_kind)node->kind) {
    case JINJA_N_CONST: *out = node->value; return ERR_OK;
    case JINJA_N_CAPTURED: *out = run->captured; return ERR_OK;
    case JINJA_N_NAME: return eval_name(run, node, out);
    case JINJA_N_TUPLE: return eval_items(run, node, JINJA_FORM_TUPLE, out);
    case JINJA_N_LIST: return eval_items(run, node, JINJA_FORM_LIST, out);
    case JINJA_N_DICT: return eval_dict(run, node, out);
    case JINJA_N_ATTRIBUTE: return eval_attribute(run, node, out);
    case JINJA_N_ITEM: return eval_item(run, node, out);
    case JINJA_N_SLICE: return eval_slice(run, node, out);
    case JINJA_N_CALL: return jinja_call(run, node, NULL, out);
    case JINJA_N_METHOD:
    case JINJA_N_FILTER:
    case JINJA_N_TEST: return jinja_eval_def(run, node, out);
    case JINJA_N_EACH: return jinja_eval_each(run, node, out);
    case JINJA_N_NOT: return eval_not(run, node, out);
    case JINJA_N_AND:
    case JINJA_N_OR: return eval_logic(run, node, out);
    case JINJA_N_COMPARE: return eval_compare(run, node, out);
    case JINJA_N_MATH: return eval_math(run, node, out);
    case JINJA_N_CONCAT: return eval_concat(run, node, out);
    case JINJA_N_NEGATE:
    case JINJA_N_PLUS: return eval_sign(run, node, out);
    case JINJA_N_CHOOSE: return eval_choose(run, node, out);
    default: break;
    }
    assert(false); /* a statement */
    return ERR_UNSUPPORTED;
}

err_t jinja_eval(jinja_run *run, const jinja_node *node, jinja_value *out)
{
    TRY(jinja_enter(run));
    run->line = node->line;
    TRY(eval_kind(run, node, out));
    jinja_leave(run);
    return ERR_OK;
}
