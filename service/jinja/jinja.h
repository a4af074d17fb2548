/* service/jinja/jinja.h - the subset of Jinja in which chat templates are written.
 *
 * A template is compiled once, when the server starts; what lies outside the subset is refused there,
 * with the construct and its line. Rendering is a pure function of the template and a JSON object: no
 * files, no includes, no attribute that is not data. Blocks are trimmed as transformers does
 * (trim_blocks, lstrip_blocks), loop controls are on, and undefined values print as nothing.
 *
 * Threads: a compiled template is const; any number of threads may render it. */
#ifndef SERVICE_JINJA_JINJA_H
#define SERVICE_JINJA_JINJA_H

#include "base/error.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct jinja jinja;

/* `source` is UTF-8 and is not kept. ERR_UNSUPPORTED ("line 12: {% include %} is not supported"),
 * ERR_BAD_MODEL (not a template: "line 3: ..."), ERR_NO_MEMORY. */
err_t jinja_compile(const char *source, size_t n_bytes, jinja **out, err_info *info) MUST_CHECK;
void jinja_free(jinja *template); /* NULL is fine */

/* How it takes `content` of a message. */
typedef struct jinja_content {
    bool reads_parts; /* it walks over a content, or reads fields of its parts */
    bool asks_type;   /* it also asks whether a content is a text or a list */
    bool names_tools; /* it names `tools` */
} jinja_content;
err_t jinja_find_content(const jinja *template, jinja_content *out) MUST_CHECK; /* ERR_NO_MEMORY */

/* Bounds of one rendering, as both templates and messages come from elsewhere. */
typedef struct jinja_limits {
    size_t output_bytes; /* of the text */
    size_t memory_bytes; /* of everything made on the way */
    uint64_t steps;      /* nodes evaluated */
    int64_t now;         /* seconds since 1970, what strftime_now tells; the caller's, so that
                          * tests are fixed */
} jinja_limits;

/* Renders with the members of `context` (an object, only read) as variables. *text is a fresh heap
 * string, NUL-terminated and possibly holding NULs, *n_bytes without the terminator. ERR_BAD_REQUEST:
 * raise_exception with the template's own message, an operation on the wrong type, or a limit that is
 * named; ERR_NO_MEMORY. */
err_t jinja_render(const jinja *template, const json_t *context, const jinja_limits *limits,
                   char **text, size_t *n_bytes, err_info *info) MUST_CHECK;

#endif
