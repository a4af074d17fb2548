/* base/utf8.h - UTF-8 as RFC 3629 defines it (no surrogates, no overlong forms, <= U+10FFFF). */
#ifndef BASE_UTF8_H
#define BASE_UTF8_H

#include <stdbool.h>
#include <stddef.h>

typedef enum utf8_status {
    UTF8_COMPLETE,   /* `bytes` bytes form one character */
    UTF8_INCOMPLETE, /* a valid beginning, cut by the end of the input; `bytes` are there */
    UTF8_INVALID     /* `bytes` (1..3) can begin no character: one U+FFFD stands for them */
} utf8_status;

typedef struct utf8_step {
    utf8_status status;
    unsigned bytes;
} utf8_step;

/* Looks at the beginning of a non-empty text. Invalid runs follow the maximal-subpart rule of
 * Unicode 15 section 3.9, as every major decoder does. */
utf8_step utf8_next(const char *text, size_t bytes);

bool utf8_valid(const char *text, size_t bytes);

/* Number of characters; each invalid run counts as one. */
size_t utf8_count(const char *text, size_t bytes);

/* Writes `text` to `out` with every invalid run (an incomplete end too) replaced by U+FFFD. `out`
 * holds at least 3 * bytes. Returns the bytes written. */
size_t utf8_repair_into(const char *text, size_t bytes, char *out);

#endif
