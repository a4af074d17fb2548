/* base/config_numbers.c - the number readers and the number writer of config.h.
 *
 * strtod accepts more than a setting should (hexadecimal, "inf", leading blanks), so the text is
 * checked first. The program never calls setlocale: the decimal point is a point. */
#include "base/check.h"
#include "base/config.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

err_t cfg_parse_u64(const char *text, uint64_t *out)
{
    if (*text == '\0') return ERR_BAD_ARGUMENT;
    uint64_t x = 0;
    for (const char *at = text; *at != '\0'; at++) {
        if (*at < '0' || *at > '9') return ERR_BAD_ARGUMENT;
        if (__builtin_mul_overflow(x, 10u, &x)) return ERR_OVERFLOW;
        if (__builtin_add_overflow(x, (uint64_t)(*at - '0'), &x)) return ERR_OVERFLOW;
    }
    *out = x;
    return ERR_OK;
}

static const char *skip_digits(const char *at, bool *any)
{
    while (*at >= '0' && *at <= '9') {
        *any = true;
        at++;
    }
    return at;
}

/* [+-] digits [. digits] [e [+-] digits], with a digit before or after the point. */
static bool is_decimal(const char *text)
{
    bool any = false;
    const char *at = text;
    if (*at == '+' || *at == '-') at++;
    at = skip_digits(at, &any);
    if (*at == '.') at = skip_digits(at + 1, &any);
    if (!any) return false;
    if (*at == 'e' || *at == 'E') {
        bool any_exponent = false;
        at++;
        if (*at == '+' || *at == '-') at++;
        at = skip_digits(at, &any_exponent);
        if (!any_exponent) return false;
    }
    return *at == '\0';
}

err_t cfg_parse_f64(const char *text, double *out)
{
    if (!is_decimal(text)) return ERR_BAD_ARGUMENT;
    const double x = strtod(text, NULL);
    if (!isfinite(x)) return ERR_OVERFLOW;
    *out = x;
    return ERR_OK;
}

const char *cfg_format_f64(double x, char out[CFG_F64_TEXT_BYTES])
{
    for (int n_digits = 6; n_digits <= 17; n_digits++) {
        snprintf(out, CFG_F64_TEXT_BYTES, "%.*g", n_digits, x);
        if (strtod(out, NULL) == x) break; /* a NaN ends at 17 digits: "nan" */
    }
    return out;
}
