/* Look-ups in the tables of jinja_unicode.h. Runs with a step of 2 may overlap the next one, so a search
 * for the last run that begins at or before a character looks at a few before it, too. */
#include "service/jinja/jinja_unicode.h"

#include "service/jinja/jinja_text.h"

enum { N_OVERLAPPING = 4, SIGMA = 0x3A3, SMALL_SIGMA = 0x3C3, FINAL_SIGMA = 0x3C2 };

static bool in_run(uint32_t first, uint32_t n, uint32_t step, uint32_t c)
{
    return c >= first && (c - first) % step == 0 && (c - first) / step < n;
}

static bool in_set(const jinja_run_of_chars *runs, uint32_t n, uint32_t c)
{
    uint32_t low = 0, high = n; /* runs[low - 1].first <= c < runs[high].first */
    while (low < high) {
        const uint32_t middle = (low + high) / 2;
        if (runs[middle].first <= c)
            low = middle + 1;
        else
            high = middle;
    }
    for (uint32_t i = 0; i < N_OVERLAPPING && i < low; i++) {
        const jinja_run_of_chars *run = &runs[low - 1 - i];
        if (in_run(run->first, run->n, run->step, c)) return true;
    }
    return false;
}

static uint32_t recase(const jinja_case_run *runs, uint32_t n, uint32_t c)
{
    uint32_t low = 0, high = n;
    while (low < high) {
        const uint32_t middle = (low + high) / 2;
        if (runs[middle].first <= c)
            low = middle + 1;
        else
            high = middle;
    }
    for (uint32_t i = 0; i < N_OVERLAPPING && i < low; i++) {
        const jinja_case_run *run = &runs[low - 1 - i];
        if (in_run(run->first, run->n, run->step, c)) return (uint32_t)((int32_t)c + run->distance);
    }
    return c;
}

/* How many characters c becomes in this table; 0 if it is not one of those. */
static unsigned become_several(const uint32_t table[][4], uint32_t n, uint32_t c,
                               uint32_t out[JINJA_CASED_MAX])
{
    for (uint32_t i = 0; i < n && table[i][0] <= c; i++) {
        if (table[i][0] != c) continue;
        unsigned n_out = 0;
        while (n_out < JINJA_CASED_MAX && table[i][1 + n_out] != 0) {
            out[n_out] = table[i][1 + n_out];
            n_out++;
        }
        return n_out;
    }
    return 0;
}

unsigned jinja_char_upper(uint32_t c, uint32_t out[JINJA_CASED_MAX])
{
    out[0] = c;
    if (c < 0x80) {
        if (c >= 'a' && c <= 'z') out[0] = c - ('a' - 'A');
        return 1;
    }
    const unsigned n = become_several(jinja_upper_several, jinja_upper_several_n, c, out);
    if (n > 0) return n;
    out[0] = recase(jinja_upper_cases, jinja_upper_cases_n, c);
    return 1;
}

unsigned jinja_char_title(uint32_t c, uint32_t out[JINJA_CASED_MAX])
{
    const unsigned n = become_several(jinja_title_several, jinja_title_several_n, c, out);
    if (n > 0) return n;
    for (uint32_t i = 0; i < jinja_title_cases_n; i++) {
        const jinja_case_run *run = &jinja_title_cases[i];
        if (!in_run(run->first, run->n, run->step, c)) continue;
        out[0] = (uint32_t)((int32_t)c + run->distance);
        return 1;
    }
    return jinja_char_upper(c, out);
}

/* A sigma is a final one behind a letter and before none, whatever marks lie between. */
static bool is_final_sigma(const char *text, size_t n_bytes, size_t at)
{
    enum { N_LOOKED_AT_MAX = 64 }; /* marks; so that a text of sigmas and marks costs no square */
    uint32_t c = 0;
    unsigned n;
    size_t i = at;
    bool is_there = false;
    for (int k = 0; k < N_LOOKED_AT_MAX && i > 0; k++) {
        i -= jinja_char_before(text, i);
        c = jinja_char_at(text + i, &n);
        is_there = !in_set(jinja_ignorable_runs, jinja_ignorable_runs_n, c);
        if (is_there) break;
    }
    if (!is_there || !jinja_char_is_cased(c)) return false;
    (void)jinja_char_at(text + at, &n);
    for (i = at + n; i < n_bytes; i += n) {
        c = jinja_char_at(text + i, &n);
        if (!in_set(jinja_ignorable_runs, jinja_ignorable_runs_n, c))
            return !jinja_char_is_cased(c);
        if (i - at > N_LOOKED_AT_MAX * JINJA_CHAR_BYTES_MAX) break;
    }
    return true;
}

unsigned jinja_char_lower(const char *text, size_t n_bytes, size_t at,
                          uint32_t out[JINJA_CASED_MAX])
{
    unsigned n;
    const uint32_t c = jinja_char_at(text + at, &n);
    out[0] = c;
    if (c < 0x80) {
        if (c >= 'A' && c <= 'Z') out[0] = c + ('a' - 'A');
        return 1;
    }
    if (c == SIGMA) {
        out[0] = is_final_sigma(text, n_bytes, at) ? FINAL_SIGMA : SMALL_SIGMA;
        return 1;
    }
    n = become_several(jinja_lower_several, jinja_lower_several_n, c, out);
    if (n > 0) return n;
    out[0] = recase(jinja_lower_cases, jinja_lower_cases_n, c);
    return 1;
}

bool jinja_char_is_upper(uint32_t c)
{
    return in_set(jinja_upper_runs, jinja_upper_runs_n, c);
}

bool jinja_char_is_lower(uint32_t c)
{
    return in_set(jinja_lower_runs, jinja_lower_runs_n, c);
}

bool jinja_char_is_cased(uint32_t c)
{
    return jinja_char_is_lower(c) || jinja_char_is_upper(c) ||
           in_set(jinja_title_runs, jinja_title_runs_n, c);
}

bool jinja_char_is_alpha(uint32_t c)
{
    return in_set(jinja_alpha_runs, jinja_alpha_runs_n, c);
}

bool jinja_char_is_digit(uint32_t c)
{
    return in_set(jinja_digit_runs, jinja_digit_runs_n, c);
}

bool jinja_char_is_decimal(uint32_t c)
{
    return in_set(jinja_decimal_runs, jinja_decimal_runs_n, c);
}

bool jinja_char_is_numeric(uint32_t c)
{
    return in_set(jinja_numeric_runs, jinja_numeric_runs_n, c);
}

bool jinja_char_is_printable(uint32_t c)
{
    if (c < 0x7F) return c >= 0x20;
    return !in_set(jinja_unprintable_runs, jinja_unprintable_runs_n, c);
}
