/* Methods of strings, and those that strings share with lists. */
#include "base/check.h"
#include "service/jinja/jinja_filters.h"
#include "service/jinja/jinja_string.h"
#include "service/jinja/jinja_text.h"

#include <string.h>

static err_t check_text(jinja_run *run, jinja_value v)
{
    if (v.type == JINJA_STRING) return ERR_OK;
    return jinja_fail(run, "'%s' is not a string", jinja_type_name(v));
}

static bool is_given(jinja_value v)
{
    return v.type != JINJA_ABSENT && v.type != JINJA_NONE;
}

/* ---- strip, case, replace */

static err_t strip(jinja_run *run, const jinja_value *args, unsigned sides, jinja_value *out)
{
    TRY(check_text(run, args[0]));
    return jinja_strip(run, args[0], args[1], sides, out);
}

static err_t method_strip(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    return strip(run, args, JINJA_STRIP_LEFT | JINJA_STRIP_RIGHT, out);
}

static err_t method_lstrip(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    return strip(run, args, JINJA_STRIP_LEFT, out);
}

static err_t method_rstrip(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    return strip(run, args, JINJA_STRIP_RIGHT, out);
}

static err_t recase(jinja_run *run, const jinja_value *args, jinja_casing casing, jinja_value *out)
{
    TRY(check_text(run, args[0]));
    return jinja_case(run, args[0], casing, out);
}

static err_t method_upper(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    return recase(run, args, JINJA_UPPER, out);
}

static err_t method_lower(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    return recase(run, args, JINJA_LOWER, out);
}

static err_t method_title(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    return recase(run, args, JINJA_TITLE, out);
}

static err_t method_capitalize(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    return recase(run, args, JINJA_CAPITALIZED, out);
}

static err_t method_swapcase(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    return recase(run, args, JINJA_SWAPPED, out);
}

static err_t method_replace(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    for (int i = 0; i < 3; i++)
        TRY(check_text(run, args[i]));
    if (args[3].type != JINJA_ABSENT && !jinja_is_whole(args[3]))
        return jinja_fail(run, "replace counts with an integer");
    const int64_t times = args[3].type == JINJA_ABSENT ? -1 : jinja_whole(args[3]);
    jinja_value old_new[2] = {args[1], args[2]};
    if (args[0].is_escaped) TRY(jinja_escape(run, args[2], &old_new[1]));
    TRY(jinja_replace(run, args[0], old_new, times < 0 ? -1 : times, out));
    out->is_escaped = args[0].is_escaped;
    return ERR_OK;
}

static err_t remove_affix(jinja_run *run, const jinja_value *args, bool is_prefix, jinja_value *out)
{
    TRY(check_text(run, args[0]));
    TRY(check_text(run, args[1]));
    const size_t n = args[0].n_bytes, n_affix = args[1].n_bytes;
    *out = args[0];
    if (n < n_affix || n_affix == 0) return ERR_OK;
    const char *at = is_prefix ? args[0].text : args[0].text + n - n_affix;
    if (memcmp(at, args[1].text, n_affix) != 0) return ERR_OK;
    *out = jinja_string(args[0].text + (is_prefix ? n_affix : 0), n - n_affix);
    out->is_escaped = args[0].is_escaped;
    return ERR_OK;
}

static err_t method_removeprefix(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    return remove_affix(run, args, true, out);
}

static err_t method_removesuffix(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    return remove_affix(run, args, false, out);
}

/* ---- split and join */

static err_t push_piece(jinja_run *run, jinja_value list, size_t *n, jinja_value s, size_t begin,
                        size_t end)
{
    TRY(jinja_charge(run, 1));
    list.list->items[*n] = jinja_string(s.text + begin, end - begin);
    list.list->items[(*n)++].is_escaped = s.is_escaped;
    return ERR_OK;
}

/* Where the next piece ends and the one behind it begins; false at the end of the text. */
static bool find_separator(jinja_value s, jinja_value separator, size_t at, size_t *end,
                           size_t *next)
{
    if (separator.type == JINJA_STRING) {
        const char *found = memmem(s.text + at, s.n_bytes - at, separator.text, separator.n_bytes);
        if (found == NULL) return false;
        *end = (size_t)(found - s.text);
        *next = *end + separator.n_bytes;
        return true;
    }
    for (*end = at; *end < s.n_bytes;) {
        unsigned n;
        if (jinja_char_is_space(jinja_char_at(s.text + *end, &n))) break;
        *end += n;
    }
    *next = *end;
    jinja_trim_left(s.text, next, s.n_bytes);
    return *end < s.n_bytes;
}

static bool find_separator_back(jinja_value s, jinja_value separator, size_t end, size_t *begin,
                                size_t *before)
{
    if (separator.type == JINJA_STRING) {
        for (size_t at = end; at >= separator.n_bytes; at--) {
            if (memcmp(s.text + at - separator.n_bytes, separator.text, separator.n_bytes) != 0)
                continue;
            *begin = at;
            *before = at - separator.n_bytes;
            return true;
        }
        return false;
    }
    for (*begin = end; *begin > 0;) {
        const unsigned n = jinja_char_before(s.text, *begin);
        unsigned n_read;
        if (jinja_char_is_space(jinja_char_at(s.text + *begin - n, &n_read))) break;
        *begin -= n;
    }
    *before = *begin;
    jinja_trim_right(s.text, 0, before);
    return *begin > 0;
}

typedef struct split_args {
    jinja_value s, separator; /* separator: ABSENT for spaces */
    size_t n_max;             /* pieces */
} split_args;

static err_t read_split(jinja_run *run, const jinja_value *args, split_args *out)
{
    *out = (split_args){.s = args[0]};
    TRY(check_text(run, args[0]));
    if (is_given(args[1])) {
        TRY(check_text(run, args[1]));
        if (args[1].n_bytes == 0) return jinja_fail(run, "empty separator");
        out->separator = args[1];
    }
    if (args[2].type != JINJA_ABSENT && !jinja_is_whole(args[2]))
        return jinja_fail(run, "split counts with an integer");
    const int64_t times = args[2].type == JINJA_ABSENT ? -1 : jinja_whole(args[2]);
    const size_t n_possible = (size_t)args[0].n_bytes + 1;
    out->n_max = times < 0 ? n_possible : min_size((size_t)times + 1, n_possible);
    return jinja_charge(run, args[0].n_bytes / 8 + 1);
}

/* How many pieces there are, so that the list is no longer than needed. */
static size_t count_pieces(const split_args *in)
{
    size_t n = 1, at = 0, end, next;
    while (n < in->n_max && find_separator(in->s, in->separator, at, &end, &next)) {
        at = next;
        n++;
    }
    return n;
}

static err_t method_split(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    split_args in;
    TRY(read_split(run, args, &in));
    const bool by_spaces = in.separator.type != JINJA_STRING;
    size_t at = 0, n = 0, end, next;
    if (by_spaces) jinja_trim_left(in.s.text, &at, in.s.n_bytes);
    TRY(jinja_open_list(run, JINJA_FORM_LIST, count_pieces(&in) + 1, out));
    while (n + 1 < in.n_max && find_separator(in.s, in.separator, at, &end, &next)) {
        TRY(push_piece(run, *out, &n, in.s, at, end));
        at = next;
    }
    end = in.s.n_bytes;
    if (by_spaces && n + 1 < in.n_max) jinja_trim_right(in.s.text, at, &end);
    if (!by_spaces || at < end) TRY(push_piece(run, *out, &n, in.s, at, end));
    return jinja_close_list(run, *out, n);
}

static err_t method_rsplit(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    split_args in;
    TRY(read_split(run, args, &in));
    const bool by_spaces = in.separator.type != JINJA_STRING;
    size_t end = in.s.n_bytes, n = 0, begin, before;
    if (by_spaces) jinja_trim_right(in.s.text, 0, &end);
    TRY(jinja_open_list(run, JINJA_FORM_LIST, min_size(in.n_max, in.s.n_bytes + 1u), out));
    while (n + 1 < in.n_max && find_separator_back(in.s, in.separator, end, &begin, &before)) {
        TRY(push_piece(run, *out, &n, in.s, begin, end));
        end = before;
    }
    begin = 0;
    if (by_spaces && n + 1 < in.n_max) jinja_trim_left(in.s.text, &begin, end);
    if (!by_spaces || begin < end) TRY(push_piece(run, *out, &n, in.s, begin, end));
    for (size_t i = 0; i < n / 2; i++) {
        const jinja_value swapped = out->list->items[i];
        out->list->items[i] = out->list->items[n - 1 - i];
        out->list->items[n - 1 - i] = swapped;
    }
    return jinja_close_list(run, *out, n);
}

static err_t method_splitlines(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    TRY(check_text(run, args[0]));
    return jinja_split_lines(run, args[0], jinja_truth(args[1]), out);
}

static err_t method_join(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    const jinja_value *items;
    size_t n;
    TRY(check_text(run, args[0]));
    TRY(jinja_iterate(run, args[1], &items, &n));
    if (args[0].is_escaped) return jinja_fail(run, "join of an escaped string is not supported");
    for (size_t i = 0; i < n; i++)
        TRY(check_text(run, items[i]));
    return jinja_join(run, items, n, args[0], out);
}

static err_t partition(jinja_run *run, const jinja_value *args, bool is_back, jinja_value *out)
{
    TRY(check_text(run, args[0]));
    TRY(check_text(run, args[1]));
    const jinja_value s = args[0];
    size_t first = 0, second = 0;
    if (args[1].n_bytes == 0) return jinja_fail(run, "empty separator");
    TRY(jinja_charge(run, s.n_bytes / 8 + 1));
    const bool is_found = is_back ? find_separator_back(s, args[1], s.n_bytes, &second, &first)
                                  : find_separator(s, args[1], 0, &first, &second);
    if (!is_found) first = second = is_back ? 0 : s.n_bytes;
    TRY(jinja_open_list(run, JINJA_FORM_TUPLE, 3, out));
    out->list->items[0] = jinja_string(s.text, first);
    out->list->items[1] = jinja_string(s.text + first, second - first);
    out->list->items[2] = jinja_string(s.text + second, s.n_bytes - second);
    return jinja_close_list(run, *out, 3);
}

static err_t method_partition(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    return partition(run, args, false, out);
}

static err_t method_rpartition(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    return partition(run, args, true, out);
}

/* ---- search */

/* The part of args[0] between the character numbers args[2] and args[3]; false if it ends before it
 * begins, where not even an empty text is found. */
static err_t read_span(jinja_run *run, const jinja_value *args, jinja_value *span, size_t *n_before,
                       bool *is_there)
{
    const jinja_value bounds[3] = {args[2], args[3], {0}};
    int64_t n;
    TRY(check_text(run, args[0]));
    TRY(jinja_length(run, args[0], &n));
    TRY(jinja_get_slice(run, args[0], bounds, span));
    int64_t start = jinja_is_whole(args[2]) ? jinja_whole(args[2]) : 0;
    int64_t stop = jinja_is_whole(args[3]) ? jinja_whole(args[3]) : n;
    if (start < 0) start = start + n < 0 ? 0 : start + n;
    if (stop < 0) stop += n;
    *is_there = start <= (stop < n ? stop : n);
    *n_before = (size_t)start;
    return ERR_OK;
}

static err_t affix(jinja_run *run, const jinja_value *args, bool is_prefix, jinja_value *out)
{
    jinja_value s;
    size_t n_before;
    bool is_there, holds = false;
    TRY(read_span(run, args, &s, &n_before, &is_there));
    const bool is_tuple = jinja_is_list(args[1], JINJA_FORM_TUPLE);
    const uint32_t n = is_tuple ? args[1].list->n : 1;
    for (uint32_t i = 0; i < n && !holds; i++) {
        const jinja_value x = is_tuple ? args[1].list->items[i] : args[1];
        TRY(check_text(run, x));
        TRY(jinja_charge(run, x.n_bytes / 64 + 1));
        if (!is_there || x.n_bytes > s.n_bytes) continue;
        const char *at = is_prefix ? s.text : s.text + s.n_bytes - x.n_bytes;
        holds = x.n_bytes == 0 || memcmp(at, x.text, x.n_bytes) == 0;
    }
    *out = jinja_bool(holds);
    return ERR_OK;
}

static err_t method_startswith(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    return affix(run, args, true, out);
}

static err_t method_endswith(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    return affix(run, args, false, out);
}

/* The number of the character at which args[1] begins; -1 if it is not there. */
static err_t find(jinja_run *run, const jinja_value *args, bool is_back, int64_t *out)
{
    jinja_value s;
    size_t n_before, begin, at = 0;
    bool is_there;
    TRY(read_span(run, args, &s, &n_before, &is_there));
    TRY(check_text(run, args[1]));
    TRY(jinja_charge(run, s.n_bytes / 8 + 1));
    *out = -1;
    if (!is_there) return ERR_OK;
    if (args[1].n_bytes == 0)
        at = is_back ? s.n_bytes : 0;
    else if (is_back ? !find_separator_back(s, args[1], s.n_bytes, &begin, &at)
                     : !find_separator(s, args[1], 0, &at, &begin))
        return ERR_OK;
    *out = (int64_t)(n_before + jinja_char_count(s.text, at));
    return ERR_OK;
}

static err_t find_or_fail(jinja_run *run, const jinja_value *args, bool is_back, bool fails,
                          jinja_value *out)
{
    int64_t at;
    TRY(find(run, args, is_back, &at));
    if (at < 0 && fails) return jinja_fail(run, "substring not found");
    *out = jinja_int(at);
    return ERR_OK;
}

static err_t method_find(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    return find_or_fail(run, args, false, false, out);
}

static err_t method_rfind(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    return find_or_fail(run, args, true, false, out);
}

static err_t method_rindex(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    return find_or_fail(run, args, true, true, out);
}

static err_t method_index(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    if (args[0].type != JINJA_LIST) return find_or_fail(run, args, false, true, out);
    if (is_given(args[2]) || is_given(args[3]))
        return jinja_fail(run, "index with bounds is not supported for a list");
    for (uint32_t i = 0; i < args[0].list->n; i++) {
        bool is_same;
        TRY(jinja_same(run, args[0].list->items[i], args[1], &is_same));
        if (!is_same) continue;
        *out = jinja_int(i);
        return ERR_OK;
    }
    return jinja_fail(run, "the value is not in the list");
}

static err_t method_count(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    int64_t n = 0;
    jinja_value s;
    size_t n_before, at = 0, end;
    bool is_there, is_same;
    for (uint32_t i = 0; args[0].type == JINJA_LIST && i < args[0].list->n; i++) {
        TRY(jinja_same(run, args[0].list->items[i], args[1], &is_same));
        n += is_same;
    }
    if (args[0].type != JINJA_LIST) {
        TRY(read_span(run, args, &s, &n_before, &is_there));
        TRY(check_text(run, args[1]));
        TRY(jinja_charge(run, s.n_bytes / 8 + 1));
        if (is_there && args[1].n_bytes == 0) n = (int64_t)jinja_char_count(s.text, s.n_bytes) + 1;
        while (is_there && args[1].n_bytes > 0 && find_separator(s, args[1], at, &end, &at))
            n++;
    }
    *out = jinja_int(n);
    return ERR_OK;
}

/* ---- what a text consists of */

static err_t consists_of(jinja_run *run, const jinja_value *args, bool (*is_of)(uint32_t c),
                         jinja_value *out)
{
    TRY(check_text(run, args[0]));
    TRY(jinja_charge(run, args[0].n_bytes / 4 + 1));
    bool holds = args[0].n_bytes > 0;
    for (size_t at = 0; at < args[0].n_bytes && holds;) {
        unsigned n;
        holds = is_of(jinja_char_at(args[0].text + at, &n));
        at += n;
    }
    *out = jinja_bool(holds);
    return ERR_OK;
}

static bool is_alnum(uint32_t c)
{
    return jinja_char_is_alpha(c) || jinja_char_is_numeric(c);
}

#define CONSISTS_OF(name, is_of)                                                          \
    static err_t method_##name(jinja_run *run, const jinja_value *args, jinja_value *out) \
    {                                                                                     \
        return consists_of(run, args, is_of, out);                                        \
    }

CONSISTS_OF(isalnum, is_alnum)
CONSISTS_OF(isalpha, jinja_char_is_alpha)
CONSISTS_OF(isdecimal, jinja_char_is_decimal)
CONSISTS_OF(isdigit, jinja_char_is_digit)
CONSISTS_OF(isnumeric, jinja_char_is_numeric)
CONSISTS_OF(isspace, jinja_char_is_space)

static err_t method_isupper(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    TRY(check_text(run, args[0]));
    return jinja_find_test(jinja_string("upper", 5))->fn(run, args, out);
}

static err_t method_islower(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    TRY(check_text(run, args[0]));
    return jinja_find_test(jinja_string("lower", 5))->fn(run, args, out);
}

static const jinja_def TEXT_METHODS[] = {
    {"capitalize", "", method_capitalize},
    {"count", "sub start? end?", method_count},
    {"endswith", "suffix start? end?", method_endswith},
    {"find", "sub start? end?", method_find},
    {"index", "sub start? end?", method_index},
    {"isalnum", "", method_isalnum},
    {"isalpha", "", method_isalpha},
    {"isdecimal", "", method_isdecimal},
    {"isdigit", "", method_isdigit},
    {"islower", "", method_islower},
    {"isnumeric", "", method_isnumeric},
    {"isspace", "", method_isspace},
    {"isupper", "", method_isupper},
    {"join", "iterable", method_join},
    {"lower", "", method_lower},
    {"lstrip", "chars?", method_lstrip},
    {"partition", "sep", method_partition},
    {"removeprefix", "prefix", method_removeprefix},
    {"removesuffix", "suffix", method_removesuffix},
    {"replace", "old new count?", method_replace},
    {"rfind", "sub start? end?", method_rfind},
    {"rindex", "sub start? end?", method_rindex},
    {"rpartition", "sep", method_rpartition},
    {"rsplit", "sep? maxsplit?", method_rsplit},
    {"rstrip", "chars?", method_rstrip},
    {"split", "sep? maxsplit?", method_split},
    {"splitlines", "keepends?", method_splitlines},
    {"startswith", "prefix start? end?", method_startswith},
    {"strip", "chars?", method_strip},
    {"swapcase", "", method_swapcase},
    {"title", "", method_title},
    {"upper", "", method_upper},
};

const jinja_def *jinja_find_text_method(jinja_value name)
{
    return jinja_find_def(TEXT_METHODS, sizeof TEXT_METHODS / sizeof *TEXT_METHODS, name);
}
