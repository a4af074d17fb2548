/* model/unicode.h - what a tokenizer needs of Unicode's tables, by utf8proc (unicode_utf8proc.c).
 *
 * Texts are valid UTF-8. Every call is const and takes time in proportion to the text: marks behind a
 * character are sorted by counting, for a client may send a million of them. */
#ifndef MODEL_UNICODE_H
#define MODEL_UNICODE_H

#include "base/error.h"
#include "model/text_buffer.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum unicode_form { UNICODE_NFC, UNICODE_NFD, UNICODE_NFKC, UNICODE_NFKD } unicode_form;

/* Appends the text in that form. ERR_NO_MEMORY. */
err_t unicode_normalize(unicode_form form, text_view text, text_buffer *out) MUST_CHECK;

/* Appends the text with each character in lower case, whatever stands around it. */
err_t unicode_lower(text_view text, text_buffer *out) MUST_CHECK;

/* The character at the beginning or at the end of a non-empty text. */
uint32_t unicode_first(text_view text, size_t *n_bytes);
uint32_t unicode_last(text_view text, size_t *n_bytes);

bool unicode_is_space(uint32_t c); /* White_Space */
bool unicode_is_word(uint32_t c);  /* \w: letters, marks, decimal digits, connectors, joiners */

#endif
