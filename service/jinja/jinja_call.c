/* Calls: filters, tests and methods with their arguments, functions, macros, and map and select. */
#include "base/check.h"
#include "service/jinja/jinja_eval.h"

#include <string.h>

/* ---- what has a table entry */

/* Evaluates kids[first ...] into args[1 ...]; one that was not given stays ABSENT. */
static err_t eval_arguments(jinja_run *run, const jinja_node *node, uint32_t first,
                            jinja_value args[JINJA_ARGS_MAX])
{
    assert(node->n_kids - first < JINJA_ARGS_MAX);
    for (uint32_t i = first; i < node->n_kids; i++)
        if (node->kids[i] != NULL) TRY(jinja_eval(run, node->kids[i], &args[1 + i - first]));
    return ERR_OK;
}

err_t jinja_eval_def(jinja_run *run, const jinja_node *node, jinja_value *out)
{
    jinja_value args[JINJA_ARGS_MAX] = {{0}};
    TRY(jinja_eval(run, node->kids[0], &args[0]));
    if (node->kind == JINJA_N_METHOD && args[0].type == JINJA_UNDEFINED)
        return jinja_fail_undefined(run, args[0]);
    TRY(eval_arguments(run, node, 1, args));
    run->line = node->line;
    return node->def->fn(run, args, out);
}

/* The item, or its attribute, of map and select. */
static err_t eval_one(jinja_run *run, const jinja_node *node, jinja_value attribute,
                      const jinja_value *args, jinja_value *out)
{
    jinja_value own[JINJA_ARGS_MAX];
    memcpy(own, args, sizeof own);
    if (attribute.type != JINJA_ABSENT) TRY(jinja_get_path(run, args[0], attribute, &own[0]));
    *out = own[0];
    if (node->op == JINJA_EACH_ATTRIBUTE) {
        if (out->type == JINJA_UNDEFINED && args[1].type != JINJA_ABSENT) *out = args[1];
        return ERR_OK;
    }
    return node->def->fn != NULL ? node->def->fn(run, own, out) : ERR_OK;
}

err_t jinja_eval_each(jinja_run *run, const jinja_node *node, jinja_value *out)
{
    jinja_value input, attribute = {0}, args[JINJA_ARGS_MAX] = {{0}}, list;
    const jinja_value *items;
    size_t n, n_kept = 0;
    TRY(jinja_eval(run, node->kids[0], &input));
    if (node->kids[1] != NULL) TRY(jinja_eval(run, node->kids[1], &attribute));
    TRY(eval_arguments(run, node, 2, args));
    run->line = node->line;
    if (!jinja_truth(input)) input = jinja_string("", 0); /* Jinja asks first: none is no items */
    TRY(jinja_iterate(run, input, &items, &n));
    TRY(jinja_open_list(run, JINJA_FORM_ITERATOR, n, &list));
    for (size_t i = 0; i < n; i++) {
        jinja_value result;
        args[0] = items[i];
        TRY(jinja_charge(run, 2));
        TRY(eval_one(run, node, attribute, args, &result));
        if (node->op == JINJA_EACH_SELECT || node->op == JINJA_EACH_REJECT) {
            if (jinja_truth(result) != (node->op == JINJA_EACH_SELECT)) continue;
            result = items[i];
        }
        list.list->items[n_kept++] = result;
    }
    *out = list;
    return jinja_close_list(run, list, n_kept);
}

/* ---- functions */

/* The arguments of a CALL: positional ones, then the named ones. */
typedef struct call_args {
    jinja_value *at; /* [n] */
    uint32_t n, n_positional;
    const jinja_value *keywords; /* [n - n_positional] */
} call_args;

/* What *list and **dict add, if a call has them. */
typedef struct unpacked {
    const jinja_value *items; /* [n_items] */
    size_t n_items;
    const jinja_dict *dict; /* NULL: none */
} unpacked;

static err_t eval_unpacked(jinja_run *run, const jinja_node *call, unpacked *out)
{
    const bool has_dict = call->op & JINJA_UNPACKS_DICT;
    jinja_value v;
    *out = (unpacked){0};
    if (call->op & JINJA_UNPACKS_LIST) {
        TRY(jinja_eval(run, call->kids[call->n_kids - 1 - has_dict], &v));
        TRY(jinja_iterate(run, v, &out->items, &out->n_items));
    }
    if (!has_dict) return ERR_OK;
    TRY(jinja_eval(run, call->kids[call->n_kids - 1], &v));
    if (v.type != JINJA_DICT) return jinja_fail(run, "argument after ** must be a mapping");
    out->dict = v.dict;
    return ERR_OK;
}

/* Named arguments, those of the dict behind the call's own. */
static err_t join_keywords(jinja_run *run, const jinja_node *call, const jinja_dict *dict,
                           call_args *out)
{
    void *taken;
    out->keywords = call->keywords;
    if (dict == NULL || dict->n == 0) return ERR_OK;
    TRY(jinja_take(run, call->n_keywords + (size_t)dict->n, sizeof(jinja_value), &taken));
    jinja_value *names = taken;
    if (call->n_keywords > 0) memcpy(names, call->keywords, call->n_keywords * sizeof *names);
    for (uint32_t i = 0; i < dict->n; i++) {
        if (dict->keys[i].type != JINJA_STRING) return jinja_fail(run, "keywords must be strings");
        for (uint32_t k = 0; k < call->n_keywords; k++)
            if (jinja_equal(names[k], dict->keys[i]))
                return jinja_fail(run, "a call got an argument twice");
        names[call->n_keywords + i] = dict->keys[i];
        out->at[out->n++] = dict->values[i];
    }
    out->keywords = names;
    return ERR_OK;
}

static err_t eval_call_args(jinja_run *run, const jinja_node *call, call_args *out)
{
    const uint32_t n_own = jinja_call_own_args(call), n_first = n_own - call->n_keywords;
    unpacked more;
    void *at;
    TRY(eval_unpacked(run, call, &more));
    const size_t n_most = n_own + more.n_items + (more.dict != NULL ? more.dict->n : 0u);
    TRY(jinja_take(run, n_most + 1u, sizeof(jinja_value), &at));
    *out = (call_args){.at = at, .n_positional = (uint32_t)(n_first + more.n_items)};
    for (uint32_t i = 0; i < n_first; i++)
        TRY(jinja_eval(run, call->kids[1 + i], &out->at[out->n++]));
    for (size_t i = 0; i < more.n_items; i++)
        out->at[out->n++] = more.items[i];
    for (uint32_t i = n_first; i < n_own; i++)
        TRY(jinja_eval(run, call->kids[1 + i], &out->at[out->n++]));
    run->line = call->line;
    return join_keywords(run, call, more.dict, out);
}

/* dict and namespace: args[0] is the one positional argument, args[1] a dict of the named ones. */
static err_t call_open(jinja_run *run, const jinja_def *def, const call_args *in, jinja_value *out)
{
    jinja_value args[JINJA_ARGS_MAX] = {{0}};
    if (in->n_positional > 1) return jinja_fail(run, "%s takes one value at most", def->name);
    if (in->n_positional == 1) args[0] = in->at[0];
    TRY(jinja_open_dict(run, in->n, &args[1]));
    for (uint32_t i = in->n_positional; i < in->n; i++)
        TRY(jinja_dict_put(run, args[1], in->keywords[i - in->n_positional], in->at[i]));
    TRY(jinja_close_dict(run, args[1]));
    return def->fn(run, args, out);
}

static err_t call_function(jinja_run *run, const jinja_def *def, const call_args *in,
                           jinja_value *out)
{
    if (strcmp(def->params, "*") == 0) return call_open(run, def, in, out);
    jinja_value args[JINJA_ARGS_MAX] = {{0}};
    uint32_t n = 0, n_taken = 0;
    for (const char *param = def->params; *param != '\0'; n++) {
        const size_t n_word = strcspn(param, " ");
        const bool is_optional = param[n_word - 1] == '?';
        const jinja_value name = jinja_string(param, n_word - is_optional);
        if (n < in->n_positional) {
            args[n] = in->at[n];
            n_taken++;
        }
        for (uint32_t k = in->n_positional; k < in->n && n >= in->n_positional; k++) {
            if (!jinja_equal(in->keywords[k - in->n_positional], name)) continue;
            args[n] = in->at[k];
            n_taken++;
        }
        if (args[n].type == JINJA_ABSENT && !is_optional)
            return jinja_fail(run, "%s() lacks '%.*s'", def->name, (int)name.n_bytes, name.text);
        param += n_word + (param[n_word] == ' ');
    }
    if (n_taken < in->n) return jinja_fail(run, "%s() got unexpected arguments", def->name);
    return def->fn(run, args, out);
}

/* ---- macros */

static err_t bind_parameter(jinja_run *run, const jinja_node *macro, uint32_t param,
                            const call_args *in, uint32_t *n_taken)
{
    const uint32_t name = macro->names[param];
    jinja_value v = {0};
    if (param < in->n_positional) v = in->at[param];
    for (uint32_t k = in->n_positional; k < in->n; k++) {
        if (!jinja_equal(in->keywords[k - in->n_positional], run->template->names[name])) continue;
        if (param < in->n_positional && (macro->op & JINJA_TAKES_KWARGS))
            continue; /* it is theirs */
        if (param < in->n_positional) return jinja_fail(run, "macro got an argument twice");
        v = in->at[k];
    }
    *n_taken += v.type != JINJA_ABSENT;
    const jinja_node *otherwise = macro->kids[1 + param];
    if (v.type == JINJA_ABSENT && otherwise != NULL) TRY(jinja_eval(run, otherwise, &v));
    if (v.type == JINJA_ABSENT) {
        const jinja_value text = run->template->names[name];
        v = jinja_undefined(JINJA_ABSENT, text.text, text.n_bytes);
    }
    return jinja_set_variable(run, name, v);
}

/* varargs and kwargs: what no parameter took, where the macro looks at them. */
static err_t bind_extra(jinja_run *run, const jinja_node *macro, const call_args *in,
                        uint32_t *n_taken)
{
    const uint32_t n_params = macro->n_kids - 1;
    jinja_value v;
    if (macro->op & JINJA_TAKES_VARARGS) {
        const uint32_t n = in->n_positional > n_params ? in->n_positional - n_params : 0;
        TRY(jinja_open_list(run, JINJA_FORM_TUPLE, n, &v));
        for (uint32_t i = 0; i < n; i++)
            v.list->items[i] = in->at[n_params + i];
        TRY(jinja_close_list(run, v, n));
        TRY(jinja_set_variable(run, JINJA_NAME_VARARGS, v));
        *n_taken += n;
    }
    if (!(macro->op & JINJA_TAKES_KWARGS)) return ERR_OK;
    TRY(jinja_open_dict(run, in->n - in->n_positional, &v));
    for (uint32_t k = in->n_positional; k < in->n; k++) {
        const jinja_value keyword = in->keywords[k - in->n_positional];
        bool is_taken = false;
        for (uint32_t i = in->n_positional; i < n_params; i++)
            is_taken = is_taken || jinja_equal(keyword, run->template->names[macro->names[i]]);
        if (is_taken) continue;
        TRY(jinja_dict_put(run, v, keyword, in->at[k]));
        ++*n_taken;
    }
    TRY(jinja_close_dict(run, v));
    return jinja_set_variable(run, JINJA_NAME_KWARGS, v);
}

static err_t run_macro(jinja_run *run, const jinja_macro *macro, const call_args *in,
                       const jinja_macro *caller, jinja_value *out)
{
    const jinja_node *node = macro->node;
    const uint32_t n_params = node->n_kids - 1;
    jinja_scope *scope = run->scope;
    uint32_t n_taken = 0;
    TRY(jinja_open_scope(run, macro->scope));
    if (caller != NULL) {
        const jinja_value v = {.type = JINJA_MACRO, .macro = caller};
        TRY(jinja_set_variable(run, JINJA_NAME_CALLER, v));
    }
    for (uint32_t i = 0; i < n_params; i++)
        TRY(bind_parameter(run, node, i, in, &n_taken));
    TRY(bind_extra(run, node, in, &n_taken));
    if (n_taken < in->n) return jinja_fail(run, "macro got unexpected arguments");
    TRY(jinja_capture(run, node->kids[0], out));
    run->scope = scope;
    return ERR_OK;
}

err_t jinja_call(jinja_run *run, const jinja_node *call, const jinja_macro *caller,
                 jinja_value *out)
{
    jinja_value callee;
    call_args in;
    TRY(jinja_eval(run, call->kids[0], &callee));
    if (callee.type == JINJA_UNDEFINED) return jinja_fail_undefined(run, callee);
    TRY(eval_call_args(run, call, &in));
    if (callee.type == JINJA_MACRO) return run_macro(run, callee.macro, &in, caller, out);
    if (callee.type == JINJA_FUNCTION) return call_function(run, callee.function, &in, out);
    if (callee.type == JINJA_LOOP) {
        if (in.n != 1) return jinja_fail(run, "loop() takes one sequence");
        return jinja_recurse(run, callee.loop, in.at[0], out);
    }
    return jinja_fail(run, "'%s' object is not callable", jinja_type_name(callee));
}
