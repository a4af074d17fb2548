#include "service/jinja/jinja_string.h"

#include "base/check.h"
#include "service/jinja/jinja_text.h"

#include <stdlib.h>
#include <string.h>

/* ---- strip and replace */

static bool is_stripped(jinja_value chars, uint32_t c)
{
    if (chars.type != JINJA_STRING) return jinja_char_is_space(c);
    for (size_t at = 0; at < chars.n_bytes;) {
        unsigned n;
        if (jinja_char_at(chars.text + at, &n) == c) return true;
        at += n;
    }
    return false;
}

err_t jinja_strip(jinja_run *run, jinja_value s, jinja_value chars, unsigned sides,
                  jinja_value *out)
{
    const bool is_known =
        chars.type == JINJA_ABSENT || chars.type == JINJA_NONE || chars.type == JINJA_STRING;
    if (!is_known) return jinja_fail(run, "strip arg must be None or str");
    size_t begin = 0, end = s.n_bytes;
    const size_t each = 1 + (chars.type == JINJA_STRING ? chars.n_bytes : 0);
    while ((sides & JINJA_STRIP_LEFT) != 0 && begin < end) {
        unsigned n;
        TRY(jinja_charge(run, each / 16 + 1));
        if (!is_stripped(chars, jinja_char_at(s.text + begin, &n))) break;
        begin += n;
    }
    while ((sides & JINJA_STRIP_RIGHT) != 0 && begin < end) {
        unsigned n = jinja_char_before(s.text + begin, end - begin), n_read;
        TRY(jinja_charge(run, each / 16 + 1));
        if (!is_stripped(chars, jinja_char_at(s.text + end - n, &n_read))) break;
        end -= n;
    }
    *out = jinja_string(s.text + begin, end - begin);
    out->is_escaped = s.is_escaped;
    return ERR_OK;
}

/* Where `old` is next, from `at`; an empty one is between any two characters. */
static const char *find_old(jinja_value s, size_t at, jinja_value old)
{
    if (at > s.n_bytes) return NULL;
    if (old.n_bytes == 0) return s.text + at;
    return memmem(s.text + at, s.n_bytes - at, old.text, old.n_bytes);
}

/* Counts (text NULL) or writes the result; returns its bytes. */
static size_t replace_into(jinja_value s, const jinja_value old_new[2], int64_t times, char *text)
{
    const jinja_value old = old_new[0], new = old_new[1];
    size_t n = 0, at = 0;
    for (int64_t i = 0; i != times; i++) {
        const char *found = find_old(s, at, old);
        if (found == NULL) break;
        const size_t n_before = (size_t)(found - s.text) - at;
        if (text != NULL) memcpy(text + n, s.text + at, n_before);
        if (text != NULL) memcpy(text + n + n_before, new.text, new.n_bytes);
        n += n_before + new.n_bytes;
        at += n_before + old.n_bytes;
        if (old.n_bytes > 0) continue;
        unsigned n_char = 0;
        if (at < s.n_bytes) (void)jinja_char_at(s.text + at, &n_char);
        if (text != NULL) memcpy(text + n, s.text + at, n_char);
        n += n_char;
        at += n_char + (n_char == 0); /* behind the last one: done */
    }
    if (at > s.n_bytes) return n;
    if (text != NULL) memcpy(text + n, s.text + at, s.n_bytes - at);
    return n + s.n_bytes - at;
}

err_t jinja_replace(jinja_run *run, jinja_value s, const jinja_value old_new[2], int64_t times,
                    jinja_value *out)
{
    char *text = NULL;
    TRY(jinja_charge(run, s.n_bytes / 4 + 1));
    const size_t n = replace_into(s, old_new, times, NULL);
    TRY(jinja_take_text(run, n, &text));
    (void)replace_into(s, old_new, times, text);
    *out = jinja_string(text, n);
    return ERR_OK;
}

err_t jinja_escape(jinja_run *run, jinja_value v, jinja_value *out)
{
    static const char *const pairs[][2] = {
        {"&", "&amp;"}, {">", "&gt;"}, {"<", "&lt;"}, {"'", "&#39;"}, {"\"", "&#34;"}};
    TRY(jinja_str(run, v, out));
    if (out->is_escaped) return ERR_OK;
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        const jinja_value old_new[2] = {jinja_string(pairs[i][0], 1),
                                        jinja_string(pairs[i][1], strlen(pairs[i][1]))};
        TRY(jinja_replace(run, *out, old_new, -1, out));
    }
    out->is_escaped = true;
    return ERR_OK;
}

/* ---- upper and lower */

static bool begins_word(uint32_t c)
{
    return jinja_char_is_space(c) || c == '-' || c == '(' || c == '{' || c == '[' || c == '<';
}

static unsigned cased(jinja_value s, size_t at, uint32_t c, jinja_casing casing, uint32_t before,
                      uint32_t out[JINJA_CASED_MAX])
{
    const bool is_first = at == 0;
    switch (casing) {
    case JINJA_UPPER: return jinja_char_upper(c, out);
    case JINJA_LOWER: return jinja_char_lower(s.text, s.n_bytes, at, out);
    case JINJA_CAPITALIZED:
        return is_first ? jinja_char_title(c, out) : jinja_char_lower(s.text, s.n_bytes, at, out);
    case JINJA_TITLE:
        if (is_first || !jinja_char_is_cased(before)) return jinja_char_title(c, out);
        return jinja_char_lower(s.text, s.n_bytes, at, out);
    case JINJA_TITLE_WORDS:
        if (is_first || begins_word(before)) return jinja_char_upper(c, out);
        return jinja_char_lower(s.text, s.n_bytes, at, out);
    case JINJA_SWAPPED: break;
    }
    if (jinja_char_is_upper(c)) return jinja_char_lower(s.text, s.n_bytes, at, out);
    if (jinja_char_is_lower(c)) return jinja_char_upper(c, out);
    out[0] = c;
    return 1;
}

err_t jinja_case(jinja_run *run, jinja_value s, jinja_casing casing, jinja_value *out)
{
    char *text = NULL;
    TRY(jinja_charge(run, s.n_bytes / 2 + 1));
    TRY(jinja_take_text(run, (size_t)s.n_bytes * 3 + 1, &text)); /* no character grows more */
    size_t n_out = 0;
    uint32_t before = 0;
    for (size_t at = 0; at < s.n_bytes;) {
        unsigned n;
        uint32_t become[JINJA_CASED_MAX];
        const uint32_t c = jinja_char_at(s.text + at, &n);
        const unsigned n_become = cased(s, at, c, casing, before, become);
        for (unsigned i = 0; i < n_become; i++)
            n_out += jinja_char_write(become[i], text + n_out);
        before = c;
        at += n;
    }
    *out = jinja_string(text, n_out);
    out->is_escaped = s.is_escaped;
    return ERR_OK;
}

/* ---- lines and lists */

static bool ends_line(uint32_t c)
{
    return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 ||
           c == 0x2029;
}

/* The end of the line that begins at `at`, and where the next one begins. */
static size_t line_end(jinja_value s, size_t at, size_t *next)
{
    while (at < s.n_bytes) {
        unsigned n;
        const uint32_t c = jinja_char_at(s.text + at, &n);
        if (ends_line(c)) {
            *next = at + n;
            if (c == '\r' && *next < s.n_bytes && s.text[*next] == '\n') ++*next;
            return at;
        }
        at += n;
    }
    *next = at;
    return at;
}

err_t jinja_split_lines(jinja_run *run, jinja_value s, bool keeps_ends, jinja_value *out)
{
    size_t n = 0, next;
    TRY(jinja_charge(run, s.n_bytes / 4 + 1));
    for (size_t at = 0; at < s.n_bytes; at = next, n++)
        (void)line_end(s, at, &next);
    TRY(jinja_open_list(run, JINJA_FORM_LIST, n, out));
    size_t at = 0;
    for (size_t i = 0; i < n; i++, at = next) {
        const size_t end = line_end(s, at, &next);
        out->list->items[i] = jinja_string(s.text + at, (keeps_ends ? next : end) - at);
        out->list->items[i].is_escaped = s.is_escaped;
    }
    return jinja_close_list(run, *out, n);
}

err_t jinja_join(jinja_run *run, const jinja_value *items, size_t n, jinja_value separator,
                 jinja_value *out)
{
    void *taken;
    TRY(jinja_take(run, n + 1, sizeof(jinja_value), &taken));
    jinja_value *texts = taken;
    size_t n_bytes = 0;
    for (size_t i = 0; i < n; i++) {
        TRY(jinja_str(run, items[i], &texts[i]));
        n_bytes += texts[i].n_bytes + (i > 0 ? separator.n_bytes : 0u);
    }
    char *text = NULL;
    TRY(jinja_take_text(run, n_bytes, &text));
    size_t at = 0;
    for (size_t i = 0; i < n; i++) {
        if (i > 0 && separator.n_bytes > 0) memcpy(text + at, separator.text, separator.n_bytes);
        at += i > 0 ? separator.n_bytes : 0u;
        if (texts[i].n_bytes > 0) memcpy(text + at, texts[i].text, texts[i].n_bytes);
        at += texts[i].n_bytes;
    }
    *out = jinja_string(text, n_bytes);
    return ERR_OK;
}

/* ---- numbers in texts */

/* The number without spaces and without the _ that may be between digits; "" if it is none. */
static void copy_number(jinja_value s, char *out, size_t out_bytes)
{
    size_t begin = 0, end = s.n_bytes, n = 0;
    jinja_trim_left(s.text, &begin, end);
    jinja_trim_right(s.text, begin, &end);
    out[0] = '\0';
    if (end - begin >= out_bytes) return;
    for (size_t i = begin; i < end; i++) {
        const bool is_between = s.text[i] == '_' && i > begin && i + 1 < end &&
                                s.text[i - 1] >= '0' && s.text[i - 1] <= '9' &&
                                s.text[i + 1] >= '0' && s.text[i + 1] <= '9';
        if (is_between) continue;
        if (s.text[i] == '_' || s.text[i] == '\0' || s.text[i] == ' ') n = 0;
        if (s.text[i] == '_' || s.text[i] == '\0' || s.text[i] == ' ') break;
        out[n++] = s.text[i];
    }
    out[n] = '\0';
}

bool jinja_read_int(jinja_value s, int64_t *out)
{
    char text[64];
    copy_number(s, text, sizeof text);
    const char *digits = text + (text[0] == '-' || text[0] == '+');
    if (digits[0] == '\0' || strspn(digits, "0123456789") != strlen(digits)) return false;
    int64_t n = 0;
    for (; *digits != '\0'; digits++) {
        if (__builtin_mul_overflow(n, (int64_t)10, &n)) return false;
        if (__builtin_sub_overflow(n, (int64_t)(*digits - '0'), &n)) return false;
    }
    if (text[0] != '-' && n == INT64_MIN) return false;
    *out = text[0] == '-' ? n : -n;
    return true;
}

bool jinja_read_float(jinja_value s, double *out)
{
    char text[400], *end;
    copy_number(s, text, sizeof text);
    /* strtod takes hexadecimal and nan(...), which Python does not */
    if (text[0] == '\0' || strpbrk(text, "xX(pP") != NULL) return false;
    *out = strtod(text, &end);
    return *end == '\0';
}
