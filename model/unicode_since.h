/* model/unicode_since.h - characters that Unicode has gained from version 14 (2021) to 16, by category.
 *
 * The reference, the Oniguruma of tokenizers 0.23, knows them; the PCRE2 of a Debian release may be
 * older. To name a character twice does no harm. The library itself was asked about every character. */
#ifndef MODEL_UNICODE_SINCE_H
#define MODEL_UNICODE_SINCE_H

#include <stddef.h>
#include <stdint.h>

typedef struct unicode_since {
    uint32_t first, last;
    char category[3]; /* "Lo" */
} unicode_since;

enum { N_UNICODE_SINCE = 125 };
extern const unicode_since unicode_since_2021[N_UNICODE_SINCE];

#endif
