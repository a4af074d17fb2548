/* service/api_fields_json.h - the one checked reader of JSON that clients sent.
 *
 * A field that is absent or null keeps the default that the caller has put in *value. Anything else has
 * the wanted type and lies within its limits, or is refused with a message that names key, value
 * and limit. Integers may be written as integral reals (16.0, 1e2), which jansson's own getter reads
 * as 0. All readers return false after a refusal, so that they chain with &&. */
#ifndef SERVICE_API_FIELDS_JSON_H
#define SERVICE_API_FIELDS_JSON_H

#include "service/api_error.h"

#include <jansson.h>
#include <stdint.h>

typedef struct api_int_range {
    int64_t min, max;
} api_int_range;

typedef struct api_real_range {
    double min, max;
    bool excludes_min;
} api_real_range;

/* A string inside a document: valid UTF-8, may hold NULs. */
typedef struct api_text {
    const char *bytes;
    size_t n_bytes;
} api_text;

/* The object of a request's body, or NULL. Duplicate keys, trailing text, NaN, and bodies with more values
 * than any honest request has are refused. Give it back with json_decref. */
json_t *api_body_read(const char *body, size_t body_bytes, api_error *error);

/* Why json_loadb gave no document: it lacked memory. jansson rarely says so, more often nothing; and of memory that
 * ended inside a text it says that the text is bad, which nobody can tell from one that is. */
bool api_json_lacked_memory(const json_error_t *reason);

/* The field's value; NULL if it is absent or null. */
const json_t *api_field(const json_t *object, const char *name);

bool api_field_bool(const json_t *object, const char *name, bool *value, api_error *error);
bool api_field_int(const json_t *object, const char *name, api_int_range range, int64_t *value,
                   api_error *error);
bool api_field_u32(const json_t *object, const char *name, api_int_range range, uint32_t *value,
                   api_error *error);
bool api_field_real(const json_t *object, const char *name, api_real_range range, float *value,
                    api_error *error);
/* Borrowed from the document. *value stays as it is if the field is absent. */
bool api_field_text(const json_t *object, const char *name, size_t n_bytes_max, api_text *value,
                    api_error *error);

/* An element of a list or a map: `name` is the field that it belongs to. */
bool api_value_int(const json_t *value, const char *name, api_int_range range, int64_t *out,
                   api_error *error);

/* Refuses with "name: VALUE reason", the value cut to API_ECHO_BYTES. */
bool api_refuse_value(api_error *error, const char *name, const json_t *value, const char *format,
                      ...) __attribute__((format(printf, 4, 5)));

/* A JSON string of a model's bytes: what is not UTF-8 becomes U+FFFD. NULL without memory. */
json_t *api_text_new(const char *bytes, size_t n_bytes);

/* object[name] = value, taking the reference. False (and nothing leaks) if value is NULL. */
bool api_put(json_t *object, const char *name, json_t *value);

/* The compact document in one line, numbers with 9 digits (which is what a float needs); free it. */
char *api_dump(const json_t *document, size_t *n_bytes);

#endif
