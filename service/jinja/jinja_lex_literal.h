/* service/jinja/jinja_lex_literal.h - names, numbers and strings in a template's tags. */
#ifndef SERVICE_JINJA_JINJA_LEX_LITERAL_H
#define SERVICE_JINJA_JINJA_LEX_LITERAL_H

#include "base/error.h"
#include "service/jinja/jinja_heap.h"
#include "service/jinja/jinja_value.h"

typedef struct jinja_lex_source {
    const char *text; /* valid UTF-8 */
    size_t n_bytes;
} jinja_lex_source;

/* Each reads at src->text[at] and says where it ends. */
bool jinja_lex_name(const jinja_lex_source *src, size_t at, size_t *end);
err_t jinja_lex_number(const jinja_lex_source *src, size_t at, uint32_t line, jinja_value *out,
                       size_t *end, err_info *info) MUST_CHECK;
/* With Python's escapes; an unknown one stays as it is. */
err_t jinja_lex_string(jinja_heap *heap, const jinja_lex_source *src, size_t at, uint32_t line,
                       jinja_value *out, size_t *end, err_info *info) MUST_CHECK;

#endif
