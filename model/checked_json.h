/* model/checked_json.h - JSON of model files, refused unless it is plain.
 *
 * cJSON is lenient: it takes control characters and leading zeros, keeps duplicate keys, cuts a name at
 * \u0000, and answers NULL alike for bad text and for no memory. So the text passes a strict scanner
 * first (RFC 8259, valid UTF-8, no \u0000, bounded nesting and number of values, which bounds the
 * tree's memory), and after that a NULL can only mean memory. No object of a tree has two equal keys.
 *
 * Only *_json.c files include this header. Ownership: trees are freed with cJSON_Delete. */
#ifndef MODEL_CHECKED_JSON_H
#define MODEL_CHECKED_JSON_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

enum { MODEL_JSON_DEPTH_MAX = 16, MODEL_JSON_FILE_BYTES_MAX = 16 << 20 };

struct cJSON;

typedef struct model_json_text {
    const char *file; /* how messages call it */
    const char *text; /* need not end with a NUL */
    size_t n_bytes;
    size_t n_values_max;
} model_json_text;

/* The root is an object. ERR_BAD_MODEL, ERR_NO_MEMORY. */
err_t model_json_parse(const model_json_text *source, struct cJSON **out,
                       err_info *info) MUST_CHECK;

/* Reads DIR/NAME (a regular file of at most MODEL_JSON_FILE_BYTES_MAX) and parses it. A missing file is
 * ERR_NOT_FOUND, without a message: the caller knows whether it may be missing. */
err_t model_json_read(const char *dir, const char *name, struct cJSON **out,
                      err_info *info) MUST_CHECK;

/* One object of a file, for the readers below. */
typedef struct model_json_object {
    const char *file;
    const struct cJSON *object;
    err_info *info;
} model_json_object;

/* A number's value: finite, integral, in [lo, hi], and hi <= 2^53, where doubles are still exact. */
err_t model_json_integer(const model_json_object *from, const struct cJSON *item,
                         const uint64_t limits[2], uint64_t *out) MUST_CHECK;

/* The member `key` as an integer in [lo, hi]. Absent or null is ERR_BAD_MODEL. */
err_t model_json_u32(const model_json_object *from, const char *key, const uint32_t limits[2],
                     uint32_t *out) MUST_CHECK;

/* The member `key` as a real number in [lo, hi]. Absent or null is ERR_BAD_MODEL. */
err_t model_json_real(const model_json_object *from, const char *key, const double limits[2],
                      float *out) MUST_CHECK;

/* The member `key`, or NULL if it is absent or null. */
const struct cJSON *model_json_member(const model_json_object *from, const char *key);

/* A short printable form of a value, for messages. */
enum { MODEL_JSON_SHOWN_BYTES = 64 };
const char *model_json_show(const struct cJSON *item, char out[MODEL_JSON_SHOWN_BYTES]);

#endif
