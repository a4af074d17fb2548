/* Python's arithmetic and comparisons. Integers have 64 bits: what would need more is an error. */
#include "service/jinja/jinja_string.h"

#include "base/check.h"

#include <math.h>
#include <string.h>

static const char *const OPERATOR_TEXTS[] = {
    "+", "-", "*", "/", "//", "%", "**", "==", "!=", "<", "<=", ">", ">=", "in", "not in"};

static err_t fail_types(jinja_run *run, jinja_op op, jinja_value a, jinja_value b)
{
    if (a.type == JINJA_UNDEFINED) return jinja_fail_undefined(run, a);
    if (b.type == JINJA_UNDEFINED) return jinja_fail_undefined(run, b);
    return jinja_fail(run, "'%s' cannot be used with '%s' and '%s'", OPERATOR_TEXTS[op],
                      jinja_type_name(a), jinja_type_name(b));
}

/* ---- numbers */

static int64_t floor_divide(int64_t a, int64_t b)
{
    const int64_t q = a / b;
    return q - (a % b != 0 && (a % b < 0) != (b < 0));
}

/* Python's float divmod: the remainder has the sign of b. */
static double floor_modulo(double a, double b)
{
    double r = fmod(a, b);
    if (r != 0.0 && (r < 0.0) != (b < 0.0)) r += b;
    return r == 0.0 ? copysign(0.0, b) : r;
}

static bool power(int64_t base, int64_t exponent, int64_t *out)
{
    int64_t result = 1;
    while (exponent > 0) {
        if ((exponent & 1) != 0 && __builtin_mul_overflow(result, base, &result)) return false;
        exponent >>= 1;
        if (exponent > 0 && __builtin_mul_overflow(base, base, &base)) return false;
    }
    *out = result;
    return true;
}

static err_t fail_large(jinja_run *run)
{
    return jinja_fail(run, "an integer needs more than 64 bits");
}

static err_t math_whole(jinja_run *run, jinja_op op, int64_t a, int64_t b, jinja_value *out)
{
    int64_t n = 0;
    bool fits = true;
    const bool divides = op == JINJA_DIVIDE || op == JINJA_FLOOR_DIVIDE || op == JINJA_MODULO;
    if (divides && b == 0) return jinja_fail(run, "division by zero");
    switch (op) {
    case JINJA_ADD: fits = !__builtin_add_overflow(a, b, &n); break;
    case JINJA_SUBTRACT: fits = !__builtin_sub_overflow(a, b, &n); break;
    case JINJA_MULTIPLY: fits = !__builtin_mul_overflow(a, b, &n); break;
    case JINJA_DIVIDE: *out = jinja_float((double)a / (double)b); return ERR_OK;
    case JINJA_FLOOR_DIVIDE:
        fits = !(a == INT64_MIN && b == -1);
        if (fits) n = floor_divide(a, b);
        break;
    case JINJA_MODULO:
        if (b != -1) n = a - floor_divide(a, b) * b;
        break;
    default: /* ** */
        if (b < 0 && a == 0) return jinja_fail(run, "0 cannot be raised to a negative power");
        if (b < 0) {
            *out = jinja_float(pow((double)a, (double)b));
            return ERR_OK;
        }
        fits = power(a, b, &n);
    }
    *out = jinja_int(n);
    return fits ? ERR_OK : fail_large(run);
}

static err_t math_real(jinja_run *run, jinja_op op, double a, double b, jinja_value *out)
{
    double x;
    const bool divides = op == JINJA_DIVIDE || op == JINJA_FLOOR_DIVIDE || op == JINJA_MODULO;
    if (divides && b == 0.0) return jinja_fail(run, "division by zero");
    switch (op) {
    case JINJA_ADD: x = a + b; break;
    case JINJA_SUBTRACT: x = a - b; break;
    case JINJA_MULTIPLY: x = a * b; break;
    case JINJA_DIVIDE: x = a / b; break;
    case JINJA_FLOOR_DIVIDE: x = floor((a - floor_modulo(a, b)) / b + 0.5); break;
    case JINJA_MODULO: x = floor_modulo(a, b); break;
    default:
        if (a == 0.0 && b < 0.0) return jinja_fail(run, "0.0 cannot be raised to a negative power");
        if (a < 0.0 && b != floor(b)) return jinja_fail(run, "a complex number is not supported");
        x = pow(a, b);
        if (isinf(x) && !isinf(a) && !isinf(b)) return jinja_fail(run, "a number is too large");
    }
    *out = jinja_float(x);
    return ERR_OK;
}

/* ---- texts and lists */

static err_t join_lists(jinja_run *run, const jinja_list *a, const jinja_list *b, jinja_value *out)
{
    TRY(jinja_open_list(run, (jinja_form)a->form, (size_t)a->n + b->n, out));
    if (a->n > 0) memcpy(out->list->items, a->items, a->n * sizeof(jinja_value));
    if (b->n > 0) memcpy(out->list->items + a->n, b->items, b->n * sizeof(jinja_value));
    return jinja_close_list(run, *out, (size_t)a->n + b->n);
}

static err_t repeat(jinja_run *run, jinja_value v, int64_t times, jinja_value *out)
{
    const size_t n = times > 0 ? (size_t)times : 0;
    size_t total;
    if (v.type == JINJA_STRING) {
        char *text = NULL;
        if (size_mul(n, v.n_bytes, &total) != ERR_OK) return jinja_fail(run, "a text is too long");
        TRY(jinja_take_text(run, total, &text));
        for (size_t at = 0; at < total; at += v.n_bytes)
            memcpy(text + at, v.text, v.n_bytes);
        *out = jinja_string(text, total);
        out->is_escaped = v.is_escaped;
        return ERR_OK;
    }
    if (size_mul(n, v.list->n, &total) != ERR_OK) return jinja_fail(run, "a list is too long");
    TRY(jinja_open_list(run, (jinja_form)v.list->form, total, out));
    for (size_t at = 0; at < total; at++)
        out->list->items[at] = v.list->items[at % v.list->n];
    return jinja_close_list(run, *out, total);
}

static bool is_sequence(jinja_value v)
{
    return v.type == JINJA_STRING || jinja_is_list(v, JINJA_FORM_LIST) ||
           jinja_is_list(v, JINJA_FORM_TUPLE);
}

/* What is joined to an escaped string is escaped, too. */
static err_t join_strings(jinja_run *run, jinja_value a, jinja_value b, jinja_value *out)
{
    const bool is_escaped = a.is_escaped || b.is_escaped;
    if (is_escaped) TRY(jinja_escape(run, a, &a));
    if (is_escaped) TRY(jinja_escape(run, b, &b));
    TRY(jinja_join_text(run, a, b, out));
    out->is_escaped = is_escaped;
    return ERR_OK;
}

err_t jinja_math(jinja_run *run, jinja_op op, jinja_value a, jinja_value b, jinja_value *out)
{
    if (jinja_is_whole(a) && jinja_is_whole(b))
        return math_whole(run, op, jinja_whole(a), jinja_whole(b), out);
    if (jinja_is_number(a) && jinja_is_number(b))
        return math_real(run, op, jinja_real(a), jinja_real(b), out);
    if (op == JINJA_ADD && a.type == JINJA_STRING && b.type == JINJA_STRING)
        return join_strings(run, a, b, out);
    const bool are_lists = is_sequence(a) && is_sequence(b) && a.type == JINJA_LIST &&
                           b.type == JINJA_LIST && a.list->form == b.list->form;
    if (op == JINJA_ADD && are_lists) return join_lists(run, a.list, b.list, out);
    if (op == JINJA_MULTIPLY && is_sequence(a) && jinja_is_whole(b))
        return repeat(run, a, jinja_whole(b), out);
    if (op == JINJA_MULTIPLY && is_sequence(b) && jinja_is_whole(a))
        return repeat(run, b, jinja_whole(a), out);
    if (op == JINJA_MODULO && a.type == JINJA_STRING)
        return jinja_fail(run, "formatting a string with %% is not supported");
    return fail_types(run, op, a, b);
}

err_t jinja_negate(jinja_run *run, jinja_value v, jinja_value *out)
{
    if (jinja_is_whole(v)) return math_whole(run, JINJA_SUBTRACT, 0, jinja_whole(v), out);
    if (v.type == JINJA_UNDEFINED) return jinja_fail_undefined(run, v);
    if (v.type != JINJA_FLOAT) return jinja_fail(run, "'%s' has no sign", jinja_type_name(v));
    *out = jinja_float(-v.real);
    return ERR_OK;
}

/* ---- comparisons */

static int sign_of(bool is_less, bool is_more)
{
    return is_less ? -1 : is_more;
}

static int order_numbers(jinja_value a, jinja_value b)
{
    if (jinja_is_whole(a) && jinja_is_whole(b))
        return sign_of(jinja_whole(a) < jinja_whole(b), jinja_whole(a) > jinja_whole(b));
    return sign_of(jinja_real(a) < jinja_real(b), jinja_real(a) > jinja_real(b));
}

static err_t order_lists(jinja_run *run, const jinja_list *a, const jinja_list *b, int *out)
{
    for (uint32_t i = 0; i < a->n && i < b->n; i++) {
        bool is_same;
        TRY(jinja_same(run, a->items[i], b->items[i], &is_same));
        if (!is_same) return jinja_order(run, a->items[i], b->items[i], out);
    }
    *out = sign_of(a->n<b->n, a->n> b->n);
    return ERR_OK;
}

err_t jinja_order(jinja_run *run, jinja_value a, jinja_value b, int *out)
{
    TRY(jinja_charge(run, 1));
    if (jinja_is_number(a) && jinja_is_number(b)) {
        *out = order_numbers(a, b);
        return ERR_OK;
    }
    if (a.type == JINJA_STRING && b.type == JINJA_STRING) { /* UTF-8 sorts as its characters do */
        const size_t n = min_size(a.n_bytes, b.n_bytes);
        TRY(jinja_charge(run, n / 64));
        const int c = n > 0 ? memcmp(a.text, b.text, n) : 0;
        *out = c != 0 ? c : sign_of(a.n_bytes<b.n_bytes, a.n_bytes> b.n_bytes);
        return ERR_OK;
    }
    if (a.type == JINJA_LIST && b.type == JINJA_LIST && is_sequence(a) &&
        a.list->form == b.list->form)
        return order_lists(run, a.list, b.list, out);
    return fail_types(run, JINJA_LT, a, b);
}

static err_t contains(jinja_run *run, jinja_value in, jinja_value x, bool *out)
{
    const jinja_value *items;
    size_t n;
    *out = false;
    if (in.type == JINJA_STRING) {
        if (x.type != JINJA_STRING) return fail_types(run, JINJA_IN, x, in);
        TRY(jinja_charge(run, in.n_bytes / 32 + 1));
        *out = x.n_bytes == 0 || memmem(in.text, in.n_bytes, x.text, x.n_bytes) != NULL;
        return ERR_OK;
    }
    if (in.type == JINJA_DICT) {
        const jinja_value *found;
        const bool is_list = x.type == JINJA_DICT || jinja_is_list(x, JINJA_FORM_LIST);
        if (is_list) return jinja_fail(run, "unhashable type: '%s'", jinja_type_name(x));
        TRY(jinja_find(run, in.dict, x, &found));
        *out = found != NULL;
        return ERR_OK;
    }
    TRY(jinja_iterate(run, in, &items, &n));
    for (size_t i = 0; i < n && !*out; i++)
        TRY(jinja_same(run, items[i], x, out));
    return ERR_OK;
}

/* NaN is neither less nor equal nor more. */
static bool is_unordered(jinja_value a, jinja_value b)
{
    return jinja_is_number(a) && jinja_is_number(b) &&
           (isnan(jinja_real(a)) || isnan(jinja_real(b)));
}

err_t jinja_compare(jinja_run *run, jinja_op op, jinja_value a, jinja_value b, bool *out)
{
    int order;
    switch (op) {
    case JINJA_EQ: return jinja_same(run, a, b, out);
    case JINJA_NE:
        TRY(jinja_same(run, a, b, out));
        *out = !*out;
        return ERR_OK;
    case JINJA_IN: return contains(run, b, a, out);
    case JINJA_NOT_IN:
        TRY(contains(run, b, a, out));
        *out = !*out;
        return ERR_OK;
    default: break;
    }
    TRY(jinja_order(run, a, b, &order));
    const bool holds = op == JINJA_LT   ? order < 0
                       : op == JINJA_LE ? order <= 0
                       : op == JINJA_GT ? order > 0
                                        : order >= 0;
    *out = holds && !is_unordered(a, b);
    return ERR_OK;
}
