#include "service/jinja/jinja_text.h"
unsigned jinja_char_upper(uint32_t c, uint32_t out[JINJA_CASED_MAX])
{
    out[0] = c >= 'a' && c <= 'z' ? c - 32 : c;
    return 1;
}
unsigned jinja_char_title(uint32_t c, uint32_t out[JINJA_CASED_MAX])
{
    return jinja_char_upper(c, out);
}
unsigned jinja_char_lower(const char *text, size_t n_bytes, size_t at,
                          uint32_t out[JINJA_CASED_MAX])
{
    unsigned n;
    (void)n_bytes;
    uint32_t c = jinja_char_at(text + at, &n);
    out[0] = c >= 'A' && c <= 'Z' ? c + 32 : c;
    return 1;
}
bool jinja_char_is_upper(uint32_t c)
{
    return c >= 'A' && c <= 'Z';
}
bool jinja_char_is_lower(uint32_t c)
{
    return c >= 'a' && c <= 'z';
}
bool jinja_char_is_cased(uint32_t c)
{
    return jinja_char_is_upper(c) || jinja_char_is_lower(c);
}
bool jinja_char_is_alpha(uint32_t c)
{
    return jinja_char_is_cased(c);
}
bool jinja_char_is_digit(uint32_t c)
{
    return c >= '0' && c <= '9';
}
bool jinja_char_is_decimal(uint32_t c)
{
    return c >= '0' && c <= '9';
}
bool jinja_char_is_numeric(uint32_t c)
{
    return c >= '0' && c <= '9';
}
bool jinja_char_is_printable(uint32_t c)
{
    return c >= 32 && c != 127;
}
