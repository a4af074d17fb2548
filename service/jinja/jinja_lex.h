/* service/jinja/jinja_lex.h - the words of a template.
 *
 * What lies between tags is one DATA token, with the whitespace already taken away that `-`, trim_blocks
 * and lstrip_blocks take; comments and raw blocks are gone. One trailing newline of the source is dropped,
 * and \r\n and \r are \n, as Jinja has it. */
#ifndef SERVICE_JINJA_JINJA_LEX_H
#define SERVICE_JINJA_JINJA_LEX_H

#include "base/error.h"
#include "service/jinja/jinja_heap.h"
#include "service/jinja/jinja_value.h"

typedef enum jinja_token_kind {
    JINJA_T_END,
    JINJA_T_DATA,
    JINJA_T_PRINT_BEGIN,
    JINJA_T_PRINT_END,
    JINJA_T_BLOCK_BEGIN,
    JINJA_T_BLOCK_END,
    JINJA_T_NAME,
    JINJA_T_STRING,
    JINJA_T_INTEGER,
    JINJA_T_FLOAT,
    JINJA_T_OPERATOR
} jinja_token_kind;

typedef struct jinja_token {
    uint8_t kind; /* jinja_token_kind */
    uint32_t line;
    jinja_value value; /* DATA, NAME, OPERATOR, STRING: text; INTEGER, FLOAT: the number */
} jinja_token;

typedef struct jinja_tokens {
    jinja_token *at; /* [n], in the heap; the last one is END */
    size_t n;
} jinja_tokens;

/* Texts are in the heap. ERR_BAD_MODEL, ERR_UNSUPPORTED, ERR_NO_MEMORY. */
err_t jinja_lex(jinja_heap *heap, const char *source, size_t n_bytes, jinja_tokens *out,
                err_info *info) MUST_CHECK;

#endif
