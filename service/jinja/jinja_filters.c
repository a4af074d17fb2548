/* Filters of single values, and the table of all. */
#include "service/jinja/jinja_filters.h"

#include "service/jinja/jinja_string.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- texts */

static err_t filter_trim(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    jinja_value s;
    TRY(jinja_str(run, args[0], &s));
    return jinja_strip(run, s, args[1], JINJA_STRIP_LEFT | JINJA_STRIP_RIGHT, out);
}

static err_t recase(jinja_run *run, jinja_value v, jinja_casing casing, jinja_value *out)
{
    jinja_value s;
    TRY(jinja_str(run, v, &s));
    return jinja_case(run, s, casing, out);
}

static err_t filter_upper(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    return recase(run, args[0], JINJA_UPPER, out);
}

static err_t filter_lower(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    return recase(run, args[0], JINJA_LOWER, out);
}

static err_t filter_capitalize(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    return recase(run, args[0], JINJA_CAPITALIZED, out);
}

static err_t filter_title(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    TRY(recase(run, args[0], JINJA_TITLE_WORDS, out));
    out->is_escaped = false; /* put together from pieces, in Jinja */
    return ERR_OK;
}

static err_t filter_string(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    return jinja_str(run, args[0], out);
}

static err_t filter_replace(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    jinja_value s, old_new[2];
    TRY(jinja_str(run, args[0], &s));
    TRY(jinja_str(run, args[1], &old_new[0]));
    TRY(jinja_str(run, args[2], &old_new[1]));
    const bool is_counted = jinja_is_whole(args[3]);
    if (!is_counted && args[3].type != JINJA_ABSENT && args[3].type != JINJA_NONE)
        return jinja_fail(run, "replace counts with an integer");
    return jinja_replace(run, s, old_new, is_counted ? jinja_whole(args[3]) : -1, out);
}

static err_t filter_escape(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    return jinja_escape(run, args[0], out);
}

static err_t filter_safe(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    TRY(jinja_str(run, args[0], out));
    out->is_escaped = true;
    return ERR_OK;
}

/* do_indent: all lines, or all but the first, and empty ones only if asked to. */
static err_t filter_indent(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    jinja_value by = args[1], lines, s = args[0];
    const bool has_first = jinja_truth(args[2]), has_blank = jinja_truth(args[3]);
    if (s.type != JINJA_STRING) return jinja_fail(run, "indent takes a string");
    if (by.type == JINJA_ABSENT) by = jinja_int(4);
    if (jinja_is_whole(by)) TRY(jinja_math(run, JINJA_MULTIPLY, jinja_string(" ", 1), by, &by));
    if (by.type != JINJA_STRING) return jinja_fail(run, "indent takes a width or a string");
    TRY(jinja_join_text(run, s, jinja_string("\n", 1), &s));
    TRY(jinja_split_lines(run, s, false, &lines));
    jinja_value *items = lines.list->items;
    for (uint32_t i = 0; i < lines.list->n; i++) {
        const bool is_indented = i == 0 ? has_first : has_blank || items[i].n_bytes > 0;
        if (is_indented) TRY(jinja_join_text(run, by, items[i], &items[i]));
    }
    TRY(jinja_join(run, items, lines.list->n, jinja_string("\n", 1), out));
    out->is_escaped = args[0].is_escaped;
    return ERR_OK;
}

/* ---- numbers */

static err_t filter_int(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    const jinja_value v = args[0];
    int64_t n;
    double x = NAN;
    *out = args[1].type == JINJA_ABSENT ? jinja_int(0) : args[1];
    const bool has_base =
        args[2].type != JINJA_ABSENT && !(jinja_is_whole(args[2]) && jinja_whole(args[2]) == 10);
    if (has_base) return jinja_fail(run, "int with another base than 10 is not supported");
    if (v.type == JINJA_UNDEFINED) return jinja_fail_undefined(run, v);
    if (jinja_is_whole(v)) *out = jinja_int(jinja_whole(v));
    if (v.type == JINJA_STRING && jinja_read_int(v, &n)) {
        *out = jinja_int(n);
        return ERR_OK;
    }
    if (v.type == JINJA_FLOAT) x = v.real;
    if (v.type == JINJA_STRING && !jinja_read_float(v, &x)) return ERR_OK;
    if (isinf(x) && v.type == JINJA_FLOAT) return jinja_fail(run, "infinity is no integer");
    if (isnan(x) || isinf(x)) return ERR_OK;
    if (!(x > -9.2e18 && x < 9.2e18)) return jinja_fail(run, "an integer needs more than 64 bits");
    *out = jinja_int((int64_t)x);
    return ERR_OK;
}

static err_t filter_float(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    const jinja_value v = args[0];
    double x = 0.0;
    if (v.type == JINJA_UNDEFINED) return jinja_fail_undefined(run, v);
    if (jinja_is_number(v))
        *out = jinja_float(jinja_real(v));
    else if (v.type == JINJA_STRING && jinja_read_float(v, &x))
        *out = jinja_float(x);
    else
        *out = args[1].type == JINJA_ABSENT ? jinja_float(0.0) : args[1];
    return ERR_OK;
}

static err_t filter_abs(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    const jinja_value v = args[0];
    if (v.type == JINJA_UNDEFINED) return jinja_fail_undefined(run, v);
    if (!jinja_is_number(v)) return jinja_fail(run, "bad operand type for abs()");
    const bool is_negative = jinja_is_whole(v) ? jinja_whole(v) < 0 : signbit(v.real);
    *out = jinja_is_whole(v) ? jinja_int(jinja_whole(v)) : v;
    return is_negative ? jinja_negate(run, v, out) : ERR_OK;
}

/* Rounds as decimal digits do, halves to even, like Python's round(). */
static err_t filter_round(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    enum { DIGITS_MAX = 300 };
    const jinja_value v = args[0], digits = args[1], method = args[2];
    const int64_t n = jinja_is_whole(digits) ? jinja_whole(digits) : 0;
    if (v.type == JINJA_UNDEFINED) return jinja_fail_undefined(run, v);
    if (!jinja_is_number(v)) return jinja_fail(run, "only numbers can be rounded");
    if (n < 0 || n > DIGITS_MAX)
        return jinja_fail(run, "rounding to %d digits is not supported", (int)n);
    if (method.type == JINJA_ABSENT || jinja_is_text(method, "common")) {
        char text[2 * DIGITS_MAX + 60];
        *out = jinja_is_whole(v) ? jinja_int(jinja_whole(v)) : v;
        if (v.type != JINJA_FLOAT || !isfinite(v.real)) return ERR_OK;
        snprintf(text, sizeof text, "%.*f", (int)n, v.real);
        *out = jinja_float(strtod(text, NULL));
        return ERR_OK;
    }
    const double scale = pow(10.0, (double)n);
    const bool is_ceil = jinja_is_text(method, "ceil");
    if (!is_ceil && !jinja_is_text(method, "floor"))
        return jinja_fail(run, "method must be common, ceil or floor");
    const double x = jinja_real(v) * scale;
    *out = jinja_float((is_ceil ? ceil(x) : floor(x)) / scale);
    return ERR_OK;
}

/* ---- any value */

static err_t filter_default(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    const bool is_missing =
        args[0].type == JINJA_UNDEFINED || (jinja_truth(args[2]) && !jinja_truth(args[0]));
    (void)run;
    *out = args[0];
    if (is_missing) *out = args[1].type == JINJA_ABSENT ? jinja_string("", 0) : args[1];
    return ERR_OK;
}

static err_t json_indent(jinja_run *run, jinja_value indent, jinja_json_style *style)
{
    if (indent.type == JINJA_ABSENT || indent.type == JINJA_NONE) return ERR_OK;
    if (jinja_is_whole(indent))
        TRY(jinja_math(run, JINJA_MULTIPLY, jinja_string(" ", 1), indent, &indent));
    if (indent.type != JINJA_STRING)
        return jinja_fail(run, "tojson indents by a width or a string");
    style->indent = indent.text;
    style->indent_bytes = indent.n_bytes;
    style->item_separator = jinja_string(",", 1);
    return ERR_OK;
}

/* transformers' own: json.dumps without escapes for HTML, and with its options. */
static err_t filter_tojson(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    const jinja_value separators = args[3];
    jinja_json_style style = {.item_separator = jinja_string(", ", 2),
                              .key_separator = jinja_string(": ", 2),
                              .ascii_only = jinja_truth(args[1]),
                              .sort_keys = jinja_truth(args[4])};
    TRY(json_indent(run, args[2], &style));
    if (separators.type != JINJA_ABSENT && separators.type != JINJA_NONE) {
        const bool is_pair = separators.type == JINJA_LIST && separators.list->n == 2 &&
                             separators.list->items[0].type == JINJA_STRING &&
                             separators.list->items[1].type == JINJA_STRING;
        if (!is_pair) return jinja_fail(run, "tojson takes two separators");
        style.item_separator = separators.list->items[0];
        style.key_separator = separators.list->items[1];
    }
    return jinja_to_json(run, args[0], &style, out);
}

/* ---- the table */

static const jinja_def FILTERS[] = {
    {"abs", "", filter_abs},
    {"capitalize", "", filter_capitalize},
    {"d", "default_value? boolean?", filter_default},
    {"default", "default_value? boolean?", filter_default},
    {"e", "", filter_escape},
    {"escape", "", filter_escape},
    {"float", "default?", filter_float},
    {"from_json", "", jinja_filter_from_json},
    {"indent", "width? first? blank?", filter_indent},
    {"int", "default? base?", filter_int},
    {"lower", "", filter_lower},
    {"replace", "old new count?", filter_replace},
    {"round", "precision? method?", filter_round},
    {"safe", "", filter_safe},
    {"string", "", filter_string},
    {"title", "", filter_title},
    {"tojson", "ensure_ascii? indent? separators? sort_keys?", filter_tojson},
    {"trim", "chars?", filter_trim},
    {"upper", "", filter_upper},
};

const jinja_def *jinja_find_def(const jinja_def *defs, size_t n, jinja_value name)
{
    for (size_t i = 0; i < n; i++)
        if (jinja_is_text(name, defs[i].name)) return &defs[i];
    return NULL;
}

const jinja_def *jinja_find_filter(jinja_value name)
{
    const jinja_def *def = jinja_find_def(FILTERS, sizeof FILTERS / sizeof *FILTERS, name);
    return def != NULL ? def : jinja_find_list_filter(name);
}
