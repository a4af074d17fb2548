/* base/utf8.c - see utf8.h.
 *
 * The first byte fixes the length and, for E0, ED, F0 and F4, a narrower range of the second byte;
 * that is how overlong forms, surrogates and values above U+10FFFF are refused as early as
 * possible, which the maximal-subpart rule needs. (Unicode 15, table 3-7.) */
#include "base/utf8.h"

#include <assert.h>
#include <string.h>

typedef struct lead {
    unsigned bytes;       /* of the whole character; 0: not a first byte */
    unsigned char lo, hi; /* range of the second byte */
} lead;

static lead lead_of(unsigned char first)
{
    if (first < 0x80) return (lead){1, 0, 0};
    if (first < 0xc2) return (lead){0, 0, 0};
    if (first < 0xe0) return (lead){2, 0x80, 0xbf};
    if (first == 0xe0) return (lead){3, 0xa0, 0xbf};
    if (first == 0xed) return (lead){3, 0x80, 0x9f};
    if (first < 0xf0) return (lead){3, 0x80, 0xbf};
    if (first == 0xf0) return (lead){4, 0x90, 0xbf};
    if (first < 0xf4) return (lead){4, 0x80, 0xbf};
    if (first == 0xf4) return (lead){4, 0x80, 0x8f};
    return (lead){0, 0, 0};
}

utf8_step utf8_next(const char *text, size_t bytes)
{
    assert(bytes > 0);
    const unsigned char *at = (const unsigned char *)text;
    const lead l = lead_of(at[0]);
    if (l.bytes == 0) return (utf8_step){UTF8_INVALID, 1};
    for (unsigned i = 1; i < l.bytes; i++) {
        if (i == bytes) return (utf8_step){UTF8_INCOMPLETE, i};
        const unsigned char lo = i == 1 ? l.lo : 0x80;
        const unsigned char hi = i == 1 ? l.hi : 0xbf;
        if (at[i] < lo || at[i] > hi) return (utf8_step){UTF8_INVALID, i};
    }
    return (utf8_step){UTF8_COMPLETE, l.bytes};
}

bool utf8_valid(const char *text, size_t bytes)
{
    for (size_t i = 0; i < bytes;) {
        const utf8_step step = utf8_next(text + i, bytes - i);
        if (step.status != UTF8_COMPLETE) return false;
        i += step.bytes;
    }
    return true;
}

size_t utf8_count(const char *text, size_t bytes)
{
    size_t n_characters = 0;
    for (size_t i = 0; i < bytes; n_characters++)
        i += utf8_next(text + i, bytes - i).bytes;
    return n_characters;
}

size_t utf8_repair_into(const char *text, size_t bytes, char *out)
{
    static const char replacement[] = "\xef\xbf\xbd"; /* U+FFFD */
    char *end = out;
    for (size_t i = 0; i < bytes;) {
        const utf8_step step = utf8_next(text + i, bytes - i);
        const int is_good = step.status == UTF8_COMPLETE;
        const size_t n = is_good ? step.bytes : sizeof replacement - 1;
        memcpy(end, is_good ? text + i : replacement, n);
        end += n;
        i += step.bytes;
    }
    return (size_t)(end - out);
}
