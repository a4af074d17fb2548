/* service/api_fields_json.c - see api_fields_json.h. */
#include "service/api_fields_json.h"

#include "base/check.h"
#include "base/utf8.h"
#include "service/api_request.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* jansson spends 100 bytes and more on a value that takes two in the body, so bodies are looked
 * through before a tree is built: brackets and commas outside strings. */
static bool is_bloated(const char *body, size_t body_bytes)
{
    size_t n_containers = 0, n_commas = 0;
    bool in_string = false;
    for (size_t i = 0; i < body_bytes; i++) {
        const char c = body[i];
        if (in_string && c == '\\') {
            i++;
        } else if (c == '"') {
            in_string = !in_string;
        } else if (!in_string) {
            n_containers += c == '[' || c == '{';
            n_commas += c == ',';
        }
    }
    return n_containers > API_NESTING_MAX || n_commas > API_VALUES_MAX;
}

bool api_json_lacked_memory(const json_error_t *reason)
{
    return json_error_code(reason) == json_error_out_of_memory || reason->text[0] == '\0';
}

json_t *api_body_read(const char *body, size_t body_bytes, api_error *error)
{
    json_error_t reason;
    if (is_bloated(body, body_bytes)) {
        api_refuse(error, API_FAULT_REQUEST, NULL,
                   "the body holds more than %d arrays and objects or %d values", API_NESTING_MAX,
                   API_VALUES_MAX);
        return NULL;
    }
    json_t *document =
        json_loadb(body, body_bytes, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &reason);
    if (document == NULL) {
        const bool is_memory = api_json_lacked_memory(&reason);
        api_refuse(error, is_memory ? API_FAULT_MEMORY : API_FAULT_REQUEST, NULL,
                   "the body is not valid JSON: line %d column %d: %s", reason.line, reason.column,
                   reason.text);
        return NULL;
    }
    if (!json_is_object(document)) {
        api_refuse(error, API_FAULT_REQUEST, NULL, "the body is not a JSON object");
        json_decref(document);
        return NULL;
    }
    return document;
}

const json_t *api_field(const json_t *object, const char *name)
{
    const json_t *value = json_object_get(object, name);
    return json_is_null(value) ? NULL : value;
}

/* What fits of a dumped value. */
typedef struct excerpt {
    char text[API_ECHO_BYTES + 1];
    size_t n_bytes;
} excerpt;

/* Stops the dump by returning -1 once the excerpt is full: a value may be megabytes long. */
static int excerpt_append(const char *bytes, size_t n_bytes, void *ctx)
{
    excerpt *e = ctx;
    const size_t room = API_ECHO_BYTES - e->n_bytes;
    const size_t n = min_size(n_bytes, room);
    memcpy(e->text + e->n_bytes, bytes, n);
    e->n_bytes += n;
    return n < n_bytes ? -1 : 0;
}

static void excerpt_init(excerpt *e, const json_t *value)
{
    static const char more[] = "...";
    e->n_bytes = 0;
    const size_t flags = JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(9);
    if (json_dump_callback(value, excerpt_append, e, flags) != 0) {
        e->n_bytes = min_size(e->n_bytes, API_ECHO_BYTES - (sizeof more - 1));
        while (e->n_bytes > 0 && ((unsigned char)e->text[e->n_bytes] & 0xc0) == 0x80)
            e->n_bytes--;
        memcpy(e->text + e->n_bytes, more, sizeof more - 1);
        e->n_bytes += sizeof more - 1;
    }
    e->text[e->n_bytes] = '\0';
}

bool api_refuse_value(api_error *error, const char *name, const json_t *value, const char *format,
                      ...)
{
    char reason[API_ECHO_BYTES];
    excerpt shown;
    va_list values;
    va_start(values, format);
    const int n = vsnprintf(reason, sizeof reason, format, values);
    va_end(values);
    excerpt_init(&shown, value);
    return api_refuse(error, API_FAULT_REQUEST, name, "%s: %s %s", name, shown.text,
                      n < 0 ? "" : reason);
}

bool api_field_bool(const json_t *object, const char *name, bool *value, api_error *error)
{
    const json_t *field = api_field(object, name);
    if (field == NULL) return true;
    if (!json_is_boolean(field)) return api_refuse_value(error, name, field, "is not a boolean");
    *value = json_is_true(field);
    return true;
}

/* False if it is no integer at all. Beyond 2^63 jansson has refused the body already; a real is
 * compared before it is cast, since the cast of a number that does not fit is undefined. */
static bool as_int64(const json_t *value, int64_t *out)
{
    if (json_is_integer(value)) {
        *out = json_integer_value(value);
        return true;
    }
    if (!json_is_real(value)) return false;
    const double x = json_real_value(value);
    if (!(x >= -9223372036854775808.0 && x < 9223372036854775808.0)) return false;
    if (x != floor(x)) return false;
    *out = (int64_t)x;
    return true;
}

bool api_value_int(const json_t *value, const char *name, api_int_range range, int64_t *out,
                   api_error *error)
{
    int64_t x;
    if (!as_int64(value, &x)) return api_refuse_value(error, name, value, "is not an integer");
    if (x < range.min || x > range.max) {
        return api_refuse_value(error, name, value, "is outside [%lld, %lld]", (long long)range.min,
                                (long long)range.max);
    }
    *out = x;
    return true;
}

bool api_field_int(const json_t *object, const char *name, api_int_range range, int64_t *value,
                   api_error *error)
{
    const json_t *field = api_field(object, name);
    return field == NULL || api_value_int(field, name, range, value, error);
}

bool api_field_u32(const json_t *object, const char *name, api_int_range range, uint32_t *value,
                   api_error *error)
{
    assert(range.min >= 0);
    assert(range.max <= UINT32_MAX);
    int64_t x = *value;
    if (!api_field_int(object, name, range, &x, error)) return false;
    *value = (uint32_t)x;
    return true;
}

bool api_field_real(const json_t *object, const char *name, api_real_range range, float *value,
                    api_error *error)
{
    const json_t *field = api_field(object, name);
    if (field == NULL) return true;
    if (!json_is_number(field)) return api_refuse_value(error, name, field, "is not a number");
    const double x = json_number_value(field);
    /* As a float too: 1e-60 is above 0 and becomes 0. */
    const bool is_above = range.excludes_min
                              ? x > range.min && (x > 1 || (double)(float)x > range.min)
                              : x >= range.min;
    if (!(is_above && x <= range.max)) {
        return api_refuse_value(error, name, field, "is outside %c%g, %g]",
                                range.excludes_min ? '(' : '[', range.min, range.max);
    }
    *value = (float)x;
    return true;
}

bool api_field_text(const json_t *object, const char *name, size_t n_bytes_max, api_text *value,
                    api_error *error)
{
    const json_t *field = api_field(object, name);
    if (field == NULL) return true;
    if (!json_is_string(field)) return api_refuse_value(error, name, field, "is not a string");
    if (json_string_length(field) > n_bytes_max) {
        return api_refuse_value(error, name, field, "is longer than %zu bytes", n_bytes_max);
    }
    *value = (api_text){json_string_value(field), json_string_length(field)};
    return true;
}

json_t *api_text_new(const char *bytes, size_t n_bytes)
{
    size_t repaired_bytes;
    if (utf8_valid(bytes, n_bytes)) return json_stringn_nocheck(bytes, n_bytes);
    if (size_mul(n_bytes, 3, &repaired_bytes) != ERR_OK) return NULL;
    char *repaired = malloc(repaired_bytes);
    if (repaired == NULL) return NULL;
    const size_t n = utf8_repair_into(bytes, n_bytes, repaired);
    json_t *text = json_stringn_nocheck(repaired, n);
    free(repaired);
    return text;
}

bool api_put(json_t *object, const char *name, json_t *value)
{
    return json_object_set_new_nocheck(object, name, value) == 0;
}

char *api_dump(const json_t *document, size_t *n_bytes)
{
    char *text = json_dumps(document, JSON_COMPACT | JSON_REAL_PRECISION(9));
    if (text != NULL) *n_bytes = strlen(text); /* a NUL inside a string is dumped as \u0000 */
    return text;
}
