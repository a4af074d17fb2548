/* As Python writes them: 1_000, 0x1f, 1.5e-3, '\u00e9'. */
#include "service/jinja/jinja_lex_literal.h"

#include "base/config.h"
#include "service/jinja/jinja_text.h"

#include <string.h>

enum { NUMBER_BYTES_MAX = 400 };

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static char byte_at(const jinja_lex_source *src, size_t at)
{
    return at < src->n_bytes ? src->text[at] : '\0';
}

bool jinja_lex_name(const jinja_lex_source *src, size_t at, size_t *end)
{
    *end = at;
    for (;; (*end)++) {
        const char c = byte_at(src, *end);
        const bool is_letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
        if (!is_letter && !(*end > at && is_digit(c))) return *end > at;
    }
}

/* -1 if it is no digit of any base. */
static int digit_of(char c)
{
    if (is_digit(c)) return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* Digits of a base with single _ between them. */
static size_t skip_digits(const jinja_lex_source *src, size_t at, int base,
                          bool may_begin_with_line)
{
    bool is_behind_digit = may_begin_with_line;
    size_t end = at;
    for (size_t i = at;; i++) {
        const char c = byte_at(src, i);
        const int digit = digit_of(c);
        if (digit >= 0 && digit < base) {
            end = i + 1;
            is_behind_digit = true;
        } else if (c == '_' && is_behind_digit) {
            is_behind_digit = false;
        } else {
            return end;
        }
    }
}

static int base_of_prefix(char c)
{
    switch (c) {
    case 'x':
    case 'X': return 16;
    case 'o':
    case 'O': return 8;
    case 'b':
    case 'B': return 2;
    default: return 0;
    }
}

static err_t read_integer(const jinja_lex_source *src, size_t at, size_t end, int base,
                          int64_t *out)
{
    int64_t n = 0;
    for (size_t i = at; i < end; i++) {
        if (src->text[i] == '_') continue;
        if (__builtin_mul_overflow(n, (int64_t)base, &n)) return ERR_OVERFLOW;
        if (__builtin_add_overflow(n, (int64_t)digit_of(src->text[i]), &n)) return ERR_OVERFLOW;
    }
    *out = n;
    return ERR_OK;
}

/* Where a fraction or an exponent behind the digits ends; `at` if there is neither. */
static size_t skip_real(const jinja_lex_source *src, size_t at)
{
    size_t end = at;
    if (byte_at(src, end) == '.' && is_digit(byte_at(src, end + 1)))
        end = skip_digits(src, end + 1, 10, false);
    if (byte_at(src, end) == 'e' || byte_at(src, end) == 'E') {
        const char sign = byte_at(src, end + 1);
        const size_t digits = end + 1 + (sign == '+' || sign == '-');
        if (is_digit(byte_at(src, digits))) end = skip_digits(src, digits, 10, false);
    }
    return end;
}

static err_t read_real(const jinja_lex_source *src, size_t at, size_t end, double *out)
{
    char text[NUMBER_BYTES_MAX];
    size_t n = 0;
    for (size_t i = at; i < end; i++) {
        if (src->text[i] == '_') continue;
        if (n + 1 == sizeof text) return ERR_OVERFLOW;
        text[n++] = src->text[i];
    }
    text[n] = '\0';
    return cfg_parse_f64(text, out);
}

err_t jinja_lex_number(const jinja_lex_source *src, size_t at, uint32_t line, jinja_value *out,
                       size_t *end, err_info *info)
{
    err_t err;
    int base = byte_at(src, at) == '0' ? base_of_prefix(byte_at(src, at + 1)) : 0;
    if (base != 0 && skip_digits(src, at + 2, base, true) == at + 2) base = 0;
    int64_t integer = 0;
    double real = 0.0;
    if (base != 0) {
        *end = skip_digits(src, at + 2, base, true);
        err = read_integer(src, at + 2, *end, base, &integer);
        *out = jinja_int(integer);
    } else {
        *end = skip_digits(src, at, 10, false);
        /* a.0.1 is two indices: no number with a point begins behind a point */
        const bool is_index = at > 0 && src->text[at - 1] == '.';
        const size_t real_end = is_index ? *end : skip_real(src, *end);
        if (real_end > *end) {
            *end = real_end;
            err = read_real(src, at, *end, &real);
            *out = jinja_float(real);
        } else {
            err = read_integer(src, at, *end, 10, &integer);
            *out = jinja_int(integer);
        }
    }
    if (err != ERR_OK)
        return err_set(info, ERR_UNSUPPORTED, "line %u: a number this large is not supported",
                       line);
    return ERR_OK;
}

/* ---- strings */

/* Up to n_max digits of a base; -1 if there are fewer than n_min. */
static int64_t read_escape(const char *text, size_t n, size_t n_min, size_t n_max, int base,
                           size_t *n_read)
{
    int64_t value = 0;
    size_t i = 0;
    for (; i < n && i < n_max && digit_of(text[i]) >= 0 && digit_of(text[i]) < base; i++)
        value = value * base + digit_of(text[i]);
    *n_read = i;
    return i < n_min ? -1 : value;
}

static size_t hex_digits(char c)
{
    return c == 'x' ? 2 : c == 'u' ? 4 : 8;
}

/* What \c of one letter stands for; 0 if it has no such meaning. */
static char simple_escape(char c)
{
    static const char letters[] = "\\'\"abfnrtv", meanings[] = "\\'\"\a\b\f\n\r\t\v";
    const char *found = c == '\0' ? NULL : strchr(letters, c);
    return found == NULL ? '\0' : meanings[found - letters];
}

/* Writes what the escape behind a backslash means. Returns the bytes read; 0 if it cannot be read. */
static size_t unescape(const char *text, size_t n, char *out, size_t *n_out)
{
    const char c = text[0];
    if (c == '\n') return 1;
    if (simple_escape(c) != '\0') {
        out[(*n_out)++] = simple_escape(c);
        return 1;
    }
    const bool is_octal = c >= '0' && c <= '7';
    if (!is_octal && c != 'x' && c != 'u' && c != 'U') {
        if (c == 'N') return 0;
        out[(*n_out)++] = '\\';
        out[(*n_out)++] = c;
        return 1;
    }
    size_t n_read;
    const int64_t value =
        is_octal ? read_escape(text, n, 1, 3, 8, &n_read)
                 : read_escape(text + 1, n - 1, hex_digits(c), hex_digits(c), 16, &n_read);
    if (value < 0 || value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF)) return 0;
    *n_out += jinja_char_write((uint32_t)value, out + *n_out);
    return n_read + !is_octal;
}

err_t jinja_lex_string(jinja_heap *heap, const jinja_lex_source *src, size_t at, uint32_t line,
                       jinja_value *out, size_t *end, err_info *info)
{
    const char quote = src->text[at];
    size_t close = at + 1;
    while (close < src->n_bytes && src->text[close] != quote)
        close += src->text[close] == '\\' ? 2 : 1;
    if (close >= src->n_bytes)
        return err_set(info, ERR_BAD_MODEL, "line %u: a string has no end", line);
    char *text =
        jinja_heap_take_text(heap, close - at); /* no escape is longer than it is written */
    if (text == NULL) return err_set(info, ERR_NO_MEMORY, "%s", err_sentence(ERR_NO_MEMORY));
    size_t n = 0;
    for (size_t i = at + 1; i < close; i++) {
        if (src->text[i] != '\\') {
            text[n++] = src->text[i];
            continue;
        }
        const size_t n_read = unescape(src->text + i + 1, close - i - 1, text, &n);
        if (n_read == 0)
            return err_set(info, ERR_UNSUPPORTED, "line %u: the escape \\%c is not supported", line,
                           src->text[i + 1]);
        i += n_read;
    }
    *out = jinja_string(text, n);
    *end = close + 1;
    return ERR_OK;
}
