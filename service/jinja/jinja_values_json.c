/* from_json: not of Jinja, but of llama.cpp's engine, and published templates use it. Also the values of the context,
 * whose strings are borrowed; those of from_json are copied, for its document goes. */
#include "service/jinja/jinja_values_json.h"

#include "service/jinja/jinja_filters.h"

typedef struct conversion {
    jinja_run *run;
    bool copies;
} conversion;

static err_t convert(const conversion *c, const json_t *json, unsigned depth, jinja_value *out);

static err_t convert_array(const conversion *c, const json_t *json, unsigned depth,
                           jinja_value *out)
{
    const size_t n = json_array_size(json);
    TRY(jinja_open_list(c->run, JINJA_FORM_LIST, n, out));
    for (size_t i = 0; i < n; i++)
        TRY(convert(c, json_array_get(json, i), depth + 1, &out->list->items[i]));
    return jinja_close_list(c->run, *out, n);
}

static err_t convert_string(const conversion *c, const char *text, size_t n_bytes, jinja_value *out)
{
    if (n_bytes >= UINT32_MAX) return jinja_fail(c->run, "a text is too long");
    if (c->copies) return jinja_make_text(c->run, text, n_bytes, out);
    *out = jinja_string(text, n_bytes);
    return ERR_OK;
}

static err_t convert_object(const conversion *c, const json_t *json, unsigned depth,
                            jinja_value *out)
{
    json_t *object = (json_t *)(uintptr_t)json; /* jansson iterates over what is not const */
    TRY(jinja_open_dict(c->run, json_object_size(json), out));
    for (void *at = json_object_iter(object); at != NULL; at = json_object_iter_next(object, at)) {
        jinja_dict *dict = out->dict; /* keys differ: they need no look-up */
        TRY(convert_string(c, json_object_iter_key(at), json_object_iter_key_len(at),
                           &dict->keys[dict->n]));
        TRY(convert(c, json_object_iter_value(at), depth + 1, &dict->values[dict->n]));
        dict->n++;
    }
    return jinja_close_dict(c->run, *out);
}

static err_t convert(const conversion *c, const json_t *json, unsigned depth, jinja_value *out)
{
    if (depth > JINJA_VALUE_DEPTH_MAX)
        return jinja_fail(c->run, "a value nests more than %d deep", JINJA_VALUE_DEPTH_MAX);
    TRY(jinja_charge(c->run, 1));
    switch (json_typeof(json)) {
    case JSON_OBJECT: return convert_object(c, json, depth, out);
    case JSON_ARRAY: return convert_array(c, json, depth, out);
    case JSON_STRING:
        return convert_string(c, json_string_value(json), json_string_length(json), out);
    case JSON_INTEGER: *out = jinja_int(json_integer_value(json)); return ERR_OK;
    case JSON_REAL: *out = jinja_float(json_real_value(json)); return ERR_OK;
    case JSON_TRUE:
    case JSON_FALSE: *out = jinja_bool(json_is_true(json)); return ERR_OK;
    case JSON_NULL: break;
    }
    *out = jinja_none();
    return ERR_OK;
}

err_t jinja_borrow_json(jinja_run *run, const json_t *json, jinja_value *out)
{
    return convert(&(conversion){.run = run}, json, 0, out);
}

err_t jinja_filter_from_json(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    json_error_t reason;
    if (args[0].type != JINJA_STRING) return jinja_fail(run, "from_json takes a text");
    TRY(jinja_charge(run, args[0].n_bytes));
    json_t *document =
        json_loadb(args[0].text, args[0].n_bytes,
                   JSON_DECODE_ANY | JSON_ALLOW_NUL | JSON_REJECT_DUPLICATES, &reason);
    if (document == NULL &&
        reason.text[0] == '\0') /* all that jansson says of memory, most often */
        return err_set(run->info, ERR_NO_MEMORY, "no memory to render");
    if (document == NULL) return jinja_fail(run, "from_json: no JSON: %.80s", reason.text);
    const err_t err = convert(&(conversion){.run = run, .copies = true}, document, 0, out);
    json_decref(document);
    return err;
}
