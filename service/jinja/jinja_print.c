/* str(), repr() and json.dumps() of Python, byte for byte. A printer counts first and writes then, with
 * the same code, so that a text is made in one piece. */
#include "base/check.h"
#include "service/jinja/jinja_run.h"
#include "service/jinja/jinja_text.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { REAL_BYTES = 40 };

typedef struct printer {
    jinja_run *run;
    char *text; /* NULL while counting */
    size_t n_bytes;
    const jinja_json_style *style; /* NULL: repr */
} printer;

static err_t put(printer *pr, const char *text, size_t n_bytes)
{
    TRY(jinja_charge(pr->run, n_bytes / 64 + 1));
    if (pr->text != NULL && n_bytes > 0) memcpy(pr->text + pr->n_bytes, text, n_bytes);
    pr->n_bytes += n_bytes;
    return ERR_OK;
}

static err_t put_word(printer *pr, const char *word)
{
    return put(pr, word, strlen(word));
}

/* ---- numbers */

/* The fewest digits that read back as x: 0.1, 1e-05, 1e+16, 100000.0. */
static void write_real(double x, char out[REAL_BYTES])
{
    char digits[REAL_BYTES];
    int n_digits = 1;
    do
        snprintf(digits, sizeof digits, "%.*e", n_digits - 1, x);
    while (strtod(digits, NULL) != x && ++n_digits <= 17);
    const int exponent = atoi(strchr(digits, 'e') + 1);
    if (exponent < -4 || exponent >= 16) {
        snprintf(out, REAL_BYTES, "%s", digits);
        return;
    }
    const int n_fraction = n_digits - 1 - exponent;
    snprintf(out, REAL_BYTES, "%.*f", n_fraction > 0 ? n_fraction : 1, x);
}

static err_t put_number(printer *pr, jinja_value v)
{
    char text[REAL_BYTES];
    const bool is_json = pr->style != NULL;
    if (v.type == JINJA_INT)
        snprintf(text, sizeof text, "%" PRId64, v.integer);
    else if (isnan(v.real))
        snprintf(text, sizeof text, is_json ? "NaN" : "nan");
    else if (isinf(v.real))
        snprintf(text, sizeof text, "%s%s", v.real < 0 ? "-" : "", is_json ? "Infinity" : "inf");
    else
        write_real(v.real, text);
    return put_word(pr, text);
}

/* ---- strings */

/* What stands for a character in quotes; 0 bytes: itself. */
static int escape_repr(uint32_t c, char quote, char out[16])
{
    if (c == '\n') return snprintf(out, 16, "\\n");
    if (c == '\r') return snprintf(out, 16, "\\r");
    if (c == '\t') return snprintf(out, 16, "\\t");
    if (c == '\\' || c == (uint8_t)quote) return snprintf(out, 16, "\\%c", (char)c);
    if (jinja_char_is_printable(c)) return 0;
    if (c < 0x100) return snprintf(out, 16, "\\x%02x", c);
    return c < 0x10000 ? snprintf(out, 16, "\\u%04x", c) : snprintf(out, 16, "\\U%08x", c);
}

static int escape_json(uint32_t c, bool ascii_only, char out[16])
{
    static const char letters[] = "\b\t\n\f\r\"\\", names[] = "btnfr\"\\";
    const char *found = c != 0 && c < 0x80 ? strchr(letters, (char)c) : NULL;
    if (found != NULL) return snprintf(out, 16, "\\%c", names[found - letters]);
    if (c < 0x20) return snprintf(out, 16, "\\u%04x", c);
    if (!ascii_only || c < 0x7F) return 0;
    if (c < 0x10000) return snprintf(out, 16, "\\u%04x", c);
    const uint32_t low = c - 0x10000;
    return snprintf(out, 16, "\\u%04x\\u%04x", 0xD800 + (low >> 10), 0xDC00 + (low & 0x3FF));
}

static err_t put_quoted(printer *pr, jinja_value v)
{
    const bool has_single = v.n_bytes > 0 && memchr(v.text, '\'', v.n_bytes) != NULL;
    const bool has_double = v.n_bytes > 0 && memchr(v.text, '"', v.n_bytes) != NULL;
    const char quote = pr->style != NULL || (has_single && !has_double) ? '"' : '\'';
    TRY(put(pr, &quote, 1));
    TRY(jinja_charge(pr->run, v.n_bytes / 16));
    size_t begin = 0;
    for (size_t at = 0; at < v.n_bytes;) {
        unsigned n;
        char escape[16];
        const uint32_t c = jinja_char_at(v.text + at, &n);
        const int n_escape = pr->style != NULL ? escape_json(c, pr->style->ascii_only, escape)
                                               : escape_repr(c, quote, escape);
        if (n_escape > 0) {
            TRY(put(pr, v.text + begin, at - begin));
            TRY(put(pr, escape, (size_t)n_escape));
            begin = at + n;
        }
        at += n;
    }
    TRY(put(pr, v.text + begin, v.n_bytes - begin));
    return put(pr, &quote, 1);
}

/* ---- containers */

static err_t put_value(printer *pr, jinja_value v, unsigned level);

static err_t put_break(printer *pr, unsigned level)
{
    const jinja_json_style *style = pr->style;
    if (style == NULL || style->indent == NULL) return ERR_OK;
    TRY(put(pr, "\n", 1));
    for (unsigned i = 0; i < level; i++)
        TRY(put(pr, style->indent, style->indent_bytes));
    return ERR_OK;
}

static err_t put_separator(printer *pr)
{
    if (pr->style == NULL) return put(pr, ", ", 2);
    return put(pr, pr->style->item_separator.text, pr->style->item_separator.n_bytes);
}

static err_t put_list(printer *pr, const jinja_list *list, unsigned level)
{
    static const char *const opening[] = {"[", "(", NULL, "dict_view([", "range("};
    static const char *const closing[] = {"]", ")", NULL, "])", ")"};
    const bool is_json = pr->style != NULL;
    const bool is_plain = list->form == JINJA_FORM_LIST || list->form == JINJA_FORM_TUPLE;
    if (!is_plain)
        return jinja_fail(pr->run,
                          is_json ? "Object of type %s is not JSON serializable"
                                  : "printing a %s is not supported",
                          jinja_type_name((jinja_value){.type = JINJA_LIST,
                                                        .list = (jinja_list *)(uintptr_t)list}));
    const unsigned form = is_json ? JINJA_FORM_LIST : list->form;
    TRY(put_word(pr, opening[form]));
    for (uint32_t i = 0; i < list->n; i++) {
        if (i > 0) TRY(put_separator(pr));
        TRY(put_break(pr, level + 1));
        TRY(put_value(pr, list->items[i], level + 1));
    }
    if (form == JINJA_FORM_TUPLE && list->n == 1) TRY(put(pr, ",", 1));
    if (list->n > 0) TRY(put_break(pr, level));
    return put_word(pr, closing[form]);
}

static err_t put_key(printer *pr, jinja_value key)
{
    if (pr->style == NULL) return put_value(pr, key, 0);
    if (key.type == JINJA_STRING) return put_quoted(pr, key);
    const bool is_plain = key.type == JINJA_NONE || jinja_is_number(key);
    if (!is_plain) return jinja_fail(pr->run, "keys must be str, int, float, bool or None");
    TRY(put(pr, "\"", 1));
    TRY(put_value(pr, key, 0));
    return put(pr, "\"", 1);
}

/* The numbers of the entries in the order of their keys. */
static err_t sort_keys(jinja_run *run, const jinja_dict *dict, uint32_t **out)
{
    void *numbers;
    TRY(jinja_take(run, dict->n + 1u, sizeof(uint32_t), &numbers));
    uint32_t *at = numbers;
    for (uint32_t i = 0; i < dict->n; i++) { /* by insertion: few, and often sorted already */
        uint32_t k = i;
        int order = 1;
        for (; k > 0; k--) {
            TRY(jinja_order(run, dict->keys[at[k - 1]], dict->keys[i], &order));
            if (order <= 0) break;
            at[k] = at[k - 1];
        }
        at[k] = i;
    }
    *out = at;
    return ERR_OK;
}

static err_t put_dict(printer *pr, const jinja_dict *dict, unsigned level)
{
    uint32_t *sorted = NULL;
    if (pr->style != NULL && pr->style->sort_keys) TRY(sort_keys(pr->run, dict, &sorted));
    TRY(put(pr, "{", 1));
    for (uint32_t i = 0; i < dict->n; i++) {
        const uint32_t at = sorted != NULL ? sorted[i] : i;
        if (i > 0) TRY(put_separator(pr));
        TRY(put_break(pr, level + 1));
        TRY(put_key(pr, dict->keys[at]));
        if (pr->style == NULL)
            TRY(put(pr, ": ", 2));
        else
            TRY(put(pr, pr->style->key_separator.text, pr->style->key_separator.n_bytes));
        TRY(put_value(pr, dict->values[at], level + 1));
    }
    if (dict->n > 0) TRY(put_break(pr, level));
    return put(pr, "}", 1);
}

static err_t put_value(printer *pr, jinja_value v, unsigned level)
{
    const bool is_json = pr->style != NULL;
    TRY(jinja_charge(pr->run, 1));
    switch ((jinja_type)v.type) {
    case JINJA_NONE: return put_word(pr, is_json ? "null" : "None");
    case JINJA_BOOL:
        if (is_json) return put_word(pr, v.truth ? "true" : "false");
        return put_word(pr, v.truth ? "True" : "False");
    case JINJA_INT:
    case JINJA_FLOAT: return put_number(pr, v);
    case JINJA_STRING: return put_quoted(pr, v);
    case JINJA_LIST: return put_list(pr, v.list, level);
    case JINJA_DICT: return put_dict(pr, v.dict, level);
    case JINJA_UNDEFINED:
        if (!is_json) return put_word(pr, "Undefined");
        break;
    default: break;
    }
    if (!is_json) return jinja_fail(pr->run, "printing a %s is not supported", jinja_type_name(v));
    return jinja_fail(pr->run, "Object of type %s is not JSON serializable", jinja_type_name(v));
}

static err_t print_value(jinja_run *run, jinja_value v, const jinja_json_style *style,
                         jinja_value *out)
{
    printer pr = {.run = run, .style = style};
    TRY(put_value(&pr, v, 0));
    const size_t n_bytes = pr.n_bytes;
    char *text = NULL;
    TRY(jinja_take_text(run, n_bytes, &text));
    pr = (printer){.run = run, .style = style, .text = text};
    TRY(put_value(&pr, v, 0));
    assert(pr.n_bytes == n_bytes);
    *out = jinja_string(text, n_bytes);
    return ERR_OK;
}

err_t jinja_str(jinja_run *run, jinja_value v, jinja_value *out)
{
    if (v.type == JINJA_STRING) {
        *out = v;
        return ERR_OK;
    }
    if (v.type == JINJA_UNDEFINED) {
        *out = jinja_string("", 0);
        return ERR_OK;
    }
    return print_value(run, v, NULL, out);
}

err_t jinja_to_json(jinja_run *run, jinja_value v, const jinja_json_style *style, jinja_value *out)
{
    return print_value(run, v, style, out);
}
