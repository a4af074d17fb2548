/* Methods of dicts, lists and loops, and the table of them; those of strings are in jinja_methods_text.c.
 * One that some types share (count, index, copy) is told apart by its receiver. */
#include "service/jinja/jinja_filters.h"

#include <string.h>

static err_t fail_method(jinja_run *run, jinja_value v, const char *name)
{
    return jinja_fail(run, "'%s object' has no attribute '%s'", jinja_type_name(v), name);
}

static err_t list_view(jinja_run *run, const jinja_value *items, uint32_t n, jinja_value *out)
{
    TRY(jinja_open_list(run, JINJA_FORM_VIEW, n, out));
    if (n > 0) memcpy(out->list->items, items, n * sizeof *items);
    return jinja_close_list(run, *out, n);
}

static err_t method_keys(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    if (args[0].type != JINJA_DICT) return fail_method(run, args[0], "keys");
    return list_view(run, args[0].dict->keys, args[0].dict->n, out);
}

static err_t method_values(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    if (args[0].type != JINJA_DICT) return fail_method(run, args[0], "values");
    return list_view(run, args[0].dict->values, args[0].dict->n, out);
}

static err_t method_items(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    if (args[0].type != JINJA_DICT) return fail_method(run, args[0], "items");
    const jinja_dict *dict = args[0].dict;
    TRY(jinja_open_list(run, JINJA_FORM_VIEW, dict->n, out));
    for (uint32_t i = 0; i < dict->n; i++)
        TRY(jinja_make_pair(run, dict->keys[i], dict->values[i], &out->list->items[i]));
    return jinja_close_list(run, *out, dict->n);
}

static err_t method_get(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    const jinja_value *found;
    if (args[0].type != JINJA_DICT) return fail_method(run, args[0], "get");
    const bool is_list = args[1].type == JINJA_DICT || jinja_is_list(args[1], JINJA_FORM_LIST);
    if (is_list) return jinja_fail(run, "unhashable type: '%s'", jinja_type_name(args[1]));
    TRY(jinja_find(run, args[0].dict, args[1], &found));
    *out = found != NULL ? *found : args[2].type == JINJA_ABSENT ? jinja_none() : args[2];
    return ERR_OK;
}

static err_t method_copy(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    const bool is_list = jinja_is_list(args[0], JINJA_FORM_LIST);
    if (!is_list && args[0].type != JINJA_DICT) return fail_method(run, args[0], "copy");
    *out = args[0]; /* nothing changes it */
    return ERR_OK;
}

static err_t method_changes(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    (void)out;
    return jinja_fail(run, "a template may not change a %s", jinja_type_name(args[0]));
}

static err_t method_cycle(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    uint32_t n = 0;
    while (n + 1 < JINJA_ARGS_MAX && args[n + 1].type != JINJA_ABSENT)
        n++;
    if (args[0].type != JINJA_LOOP) return fail_method(run, args[0], "cycle");
    if (n == 0) return jinja_fail(run, "no items for cycling given");
    *out = args[1 + args[0].loop->index0 % n];
    return ERR_OK;
}

static err_t method_changed(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    jinja_value given;
    bool is_same = false;
    uint32_t n = 0;
    while (n + 1 < JINJA_ARGS_MAX && args[n + 1].type != JINJA_ABSENT)
        n++;
    if (args[0].type != JINJA_LOOP) return fail_method(run, args[0], "changed");
    TRY(jinja_open_list(run, JINJA_FORM_TUPLE, n, &given));
    if (n > 0) memcpy(given.list->items, args + 1, n * sizeof *args);
    TRY(jinja_close_list(run, given, n));
    jinja_loop *loop = args[0].loop;
    if (loop->last_changed.type != JINJA_ABSENT)
        TRY(jinja_same(run, loop->last_changed, given, &is_same));
    loop->last_changed = given;
    *out = jinja_bool(!is_same);
    return ERR_OK;
}

static const jinja_def METHODS[] = {
    {"append", "item", method_changes},
    {"changed", "*", method_changed},
    {"clear", "", method_changes},
    {"copy", "", method_copy},
    {"cycle", "*", method_cycle},
    {"extend", "items", method_changes},
    {"get", "key default?", method_get},
    {"insert", "at item", method_changes},
    {"items", "", method_items},
    {"keys", "", method_keys},
    {"pop", "at? default?", method_changes},
    {"popitem", "", method_changes},
    {"remove", "item", method_changes},
    {"reverse", "", method_changes},
    {"setdefault", "key default?", method_changes},
    {"sort", "key? reverse?", method_changes},
    {"update", "items?", method_changes},
    {"values", "", method_values},
};

const jinja_def *jinja_find_method(jinja_value name)
{
    const jinja_def *def = jinja_find_def(METHODS, sizeof METHODS / sizeof *METHODS, name);
    return def != NULL ? def : jinja_find_text_method(name);
}
