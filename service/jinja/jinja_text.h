/* service/jinja/jinja_text.h - characters of valid UTF-8 texts, as Python's str sees them. */
#ifndef SERVICE_JINJA_JINJA_TEXT_H
#define SERVICE_JINJA_JINJA_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { JINJA_CHAR_BYTES_MAX = 4, JINJA_CASED_MAX = 3 /* characters that one may become */ };

/* The character at text, and its bytes. */
uint32_t jinja_char_at(const char *text, unsigned *n_bytes);
/* Bytes of the character that ends before text[at], at > 0. */
unsigned jinja_char_before(const char *text, size_t at);
/* Returns the bytes. */
unsigned jinja_char_write(uint32_t c, char out[JINJA_CHAR_BYTES_MAX]);
size_t jinja_char_count(const char *text, size_t n_bytes);
/* Where character number `index` begins; n_bytes if there are not so many. */
size_t jinja_char_offset(const char *text, size_t n_bytes, size_t index);

bool jinja_char_is_space(uint32_t c);     /* str.isspace */
bool jinja_char_is_printable(uint32_t c); /* what repr shows as it is */

/* Python's str.upper, title and lower of one character: how many it becomes. What lower makes of a capital
 * sigma depends on what is around it, text[at]. In jinja_unicode.c. */
unsigned jinja_char_upper(uint32_t c, uint32_t out[JINJA_CASED_MAX]);
unsigned jinja_char_title(uint32_t c, uint32_t out[JINJA_CASED_MAX]);
unsigned jinja_char_lower(const char *text, size_t n_bytes, size_t at,
                          uint32_t out[JINJA_CASED_MAX]);
bool jinja_char_is_upper(uint32_t c);
bool jinja_char_is_lower(uint32_t c);
bool jinja_char_is_cased(uint32_t c); /* upper, lower or title */
bool jinja_char_is_alpha(uint32_t c);
bool jinja_char_is_digit(uint32_t c);   /* str.isdigit: with superscripts */
bool jinja_char_is_decimal(uint32_t c); /* str.isdecimal */
bool jinja_char_is_numeric(uint32_t c); /* str.isnumeric: with fractions and numerals */

/* text[*begin, *end) without spaces at one or both ends. */
void jinja_trim_left(const char *text, size_t *begin, size_t end);
void jinja_trim_right(const char *text, size_t begin, size_t *end);

#endif
