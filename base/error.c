/* base/error.c - see error.h.
 *
 * A message may carry bytes of a file or a client and later travels into JSON answers and onto
 * terminals, so it is cleaned here, once: no control characters, only valid UTF-8. */
#include "base/error.h"

#include "base/utf8.h"

#include <assert.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

const char *err_sentence(err_t code)
{
    static const char *const sentences[ERR_COUNT] = {
#define X(code, sentence) sentence,
        ERR_MAP(X)
#undef X
    };
    return (unsigned)code < ERR_COUNT ? sentences[code] : "unknown error";
}

const char *err_name(err_t code)
{
    static const char *const names[ERR_COUNT] = {
#define X(code, sentence) #code,
        ERR_MAP(X)
#undef X
    };
    return (unsigned)code < ERR_COUNT ? names[code] : "ERR_UNKNOWN";
}

/* C0, DEL, and C1 in its two-byte form. */
static bool is_control(const char *text, unsigned bytes)
{
    const unsigned char first = (unsigned char)text[0];
    if (bytes == 1) return first < 0x20 || first == 0x7f;
    return bytes == 2 && first == 0xc2 && (unsigned char)text[1] < 0xa0;
}

static void clean(char *message)
{
    size_t rest = strlen(message);
    for (char *at = message; rest > 0;) {
        const utf8_step step = utf8_next(at, rest);
        if (step.status == UTF8_INCOMPLETE) { /* the cut went through a character */
            *at = '\0';
            return;
        }
        if (step.status == UTF8_INVALID || is_control(at, step.bytes)) {
            memset(at, '?', step.bytes);
        }
        at += step.bytes;
        rest -= step.bytes;
    }
}

err_t err_set(err_info *info, err_t code, const char *format, ...)
{
    assert(code != ERR_OK);
    if (info == NULL || info->code != ERR_OK) return code;
    va_list values;
    va_start(values, format);
    const int n_wanted = vsnprintf(info->message, sizeof info->message, format, values);
    va_end(values);
    if (n_wanted < 0) info->message[0] = '\0';
    clean(info->message);
    info->code = code;
    return code;
}
