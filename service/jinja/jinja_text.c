/* Decoding without checks: every text was checked when it came in. */
#include "service/jinja/jinja_text.h"

#include "base/check.h"

uint32_t jinja_char_at(const char *text, unsigned *n_bytes)
{
    const uint8_t *b = (const uint8_t *)text;
    if (b[0] < 0x80) {
        *n_bytes = 1;
        return b[0];
    }
    if (b[0] < 0xE0) {
        *n_bytes = 2;
        return (uint32_t)(b[0] & 0x1F) << 6 | (b[1] & 0x3F);
    }
    if (b[0] < 0xF0) {
        *n_bytes = 3;
        return (uint32_t)(b[0] & 0x0F) << 12 | (uint32_t)(b[1] & 0x3F) << 6 | (b[2] & 0x3F);
    }
    *n_bytes = 4;
    return (uint32_t)(b[0] & 0x07) << 18 | (uint32_t)(b[1] & 0x3F) << 12 |
           (uint32_t)(b[2] & 0x3F) << 6 | (b[3] & 0x3F);
}

static bool is_continuation(char c)
{
    return ((uint8_t)c & 0xC0) == 0x80;
}

unsigned jinja_char_before(const char *text, size_t at)
{
    unsigned n = 1;
    while (n < at && n < JINJA_CHAR_BYTES_MAX && is_continuation(text[at - n]))
        n++;
    return n;
}

unsigned jinja_char_write(uint32_t c, char out[JINJA_CHAR_BYTES_MAX])
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xC0 | c >> 6);
        out[1] = (char)(0x80 | (c & 0x3F));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xE0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 0x3F));
        out[2] = (char)(0x80 | (c & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 0x3F));
    out[2] = (char)(0x80 | (c >> 6 & 0x3F));
    out[3] = (char)(0x80 | (c & 0x3F));
    return 4;
}

size_t jinja_char_count(const char *text, size_t n_bytes)
{
    size_t n = 0;
    for (size_t i = 0; i < n_bytes; i++)
        n += !is_continuation(text[i]);
    return n;
}

size_t jinja_char_offset(const char *text, size_t n_bytes, size_t index)
{
    size_t at = 0;
    for (; at < n_bytes && index > 0; index--) {
        at++;
        while (at < n_bytes && is_continuation(text[at]))
            at++;
    }
    return at;
}

bool jinja_char_is_space(uint32_t c)
{
    if (c < 0x80) return c == ' ' || (c >= 9 && c <= 13) || (c >= 0x1C && c <= 0x1F);
    return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
           c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

void jinja_trim_left(const char *text, size_t *begin, size_t end)
{
    while (*begin < end) {
        unsigned n;
        if (!jinja_char_is_space(jinja_char_at(text + *begin, &n))) return;
        *begin += n;
    }
}

void jinja_trim_right(const char *text, size_t begin, size_t *end)
{
    while (*end > begin) {
        const unsigned n = jinja_char_before(text + begin, *end - begin);
        unsigned n_read;
        if (!jinja_char_is_space(jinja_char_at(text + *end - n, &n_read))) return;
        *end -= n;
    }
}
