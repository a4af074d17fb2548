/* jinja_render: the members of the context that the template names become values (strings are borrowed
 * from it), and the tree is executed. */
#include "service/jinja/jinja_eval.h"

#include <stdlib.h>

enum { TEXT_BYTES_FIRST = 1024 };

static err_t convert(jinja_run *run, const json_t *json, unsigned depth, jinja_value *out);

static err_t convert_array(jinja_run *run, const json_t *json, unsigned depth, jinja_value *out)
{
    const size_t n = json_array_size(json);
    TRY(jinja_open_list(run, JINJA_FORM_LIST, n, out));
    for (size_t i = 0; i < n; i++)
        TRY(convert(run, json_array_get(json, i), depth + 1, &out->list->items[i]));
    return jinja_close_list(run, *out, n);
}

static err_t convert_string(jinja_run *run, const char *text, size_t n_bytes, jinja_value *out)
{
    if (n_bytes >= UINT32_MAX) return jinja_fail(run, "a text is too long");
    *out = jinja_string(text, n_bytes);
    return ERR_OK;
}

static err_t convert_object(jinja_run *run, const json_t *json, unsigned depth, jinja_value *out)
{
    json_t *object = (json_t *)(uintptr_t)json; /* jansson iterates over what is not const */
    TRY(jinja_open_dict(run, json_object_size(json), out));
    for (void *at = json_object_iter(object); at != NULL; at = json_object_iter_next(object, at)) {
        jinja_dict *dict = out->dict; /* keys differ: they need no look-up */
        TRY(convert_string(run, json_object_iter_key(at), json_object_iter_key_len(at),
                           &dict->keys[dict->n]));
        TRY(convert(run, json_object_iter_value(at), depth + 1, &dict->values[dict->n]));
        dict->n++;
    }
    return jinja_close_dict(run, *out);
}

static err_t convert(jinja_run *run, const json_t *json, unsigned depth, jinja_value *out)
{
    if (depth > JINJA_VALUE_DEPTH_MAX)
        return jinja_fail(run, "a value nests more than %d deep", JINJA_VALUE_DEPTH_MAX);
    TRY(jinja_charge(run, 1));
    switch (json_typeof(json)) {
    case JSON_OBJECT: return convert_object(run, json, depth, out);
    case JSON_ARRAY: return convert_array(run, json, depth, out);
    case JSON_STRING:
        return convert_string(run, json_string_value(json), json_string_length(json), out);
    case JSON_INTEGER: *out = jinja_int(json_integer_value(json)); return ERR_OK;
    case JSON_REAL: *out = jinja_float(json_real_value(json)); return ERR_OK;
    case JSON_TRUE:
    case JSON_FALSE: *out = jinja_bool(json_is_true(json)); return ERR_OK;
    case JSON_NULL: break;
    }
    *out = jinja_none();
    return ERR_OK;
}

static err_t render(jinja_run *run, const json_t *context)
{
    void *variables;
    TRY(jinja_take(run, run->template->n_names, sizeof(jinja_value), &variables));
    run->variables = variables;
    for (uint32_t i = 0; i < run->template->n_names; i++) {
        const json_t *member = json_object_get(context, run->template->names[i].text);
        if (member != NULL) TRY(convert(run, member, 0, &run->variables[i]));
    }
    TRY(jinja_exec(run, run->template->root));
    run->text[run->n_bytes] = '\0';
    return ERR_OK;
}

err_t jinja_render(const jinja *template, const json_t *context, const jinja_limits *limits,
                   char **text, size_t *n_bytes, err_info *info)
{
    jinja_run run = {.template = template,
                     .limits = limits,
                     .info = info,
                     .line = 1,
                     .steps_left = limits->steps,
                     .capacity = TEXT_BYTES_FIRST};
    *text = NULL;
    *n_bytes = 0;
    run.text = malloc(run.capacity);
    if (run.text == NULL) return err_set(info, ERR_NO_MEMORY, "no memory to render");
    jinja_heap_init(&run.heap, limits->memory_bytes);
    jinja_heap_init(&run.texts, limits->memory_bytes);
    const err_t err = render(&run, context);
    jinja_heap_deinit(&run.texts);
    jinja_heap_deinit(&run.heap);
    if (err != ERR_OK) {
        free(run.text);
        return err;
    }
    *text = run.text;
    *n_bytes = run.n_bytes;
    return ERR_OK;
}
