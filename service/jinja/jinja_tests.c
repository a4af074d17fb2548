/* What stands behind `is`. */
#include "service/jinja/jinja_filters.h"
#include "service/jinja/jinja_string.h"
#include "service/jinja/jinja_text.h"

static err_t answer(bool truth, jinja_value *out)
{
    *out = jinja_bool(truth);
    return ERR_OK;
}

#define TYPE_TEST(name, condition)                                                      \
    static err_t test_##name(jinja_run *run, const jinja_value *args, jinja_value *out) \
    {                                                                                   \
        const jinja_value v = args[0];                                                  \
        (void)run;                                                                      \
        return answer(condition, out);                                                  \
    }

static bool has_items(jinja_value v)
{
    return v.type == JINJA_STRING || v.type == JINJA_DICT || v.type == JINJA_UNDEFINED;
}

static bool is_sequence(jinja_value v)
{
    if (v.type != JINJA_LIST) return has_items(v);
    return v.list->form != JINJA_FORM_ITERATOR && v.list->form != JINJA_FORM_VIEW;
}

static bool is_callable(jinja_value v)
{
    return v.type == JINJA_MACRO || v.type == JINJA_FUNCTION || v.type == JINJA_METHOD ||
           v.type == JINJA_UNDEFINED;
}

TYPE_TEST(boolean, v.type == JINJA_BOOL)
TYPE_TEST(callable, is_callable(v))
TYPE_TEST(defined, v.type != JINJA_UNDEFINED)
TYPE_TEST(escaped, v.type == JINJA_STRING && v.is_escaped)
TYPE_TEST(false, v.type == JINJA_BOOL && !v.truth)
TYPE_TEST(float, v.type == JINJA_FLOAT)
TYPE_TEST(integer, v.type == JINJA_INT)
TYPE_TEST(iterable, has_items(v) || v.type == JINJA_LIST || v.type == JINJA_LOOP)
TYPE_TEST(mapping, v.type == JINJA_DICT)
TYPE_TEST(none, v.type == JINJA_NONE)
TYPE_TEST(number, jinja_is_number(v))
TYPE_TEST(sequence, is_sequence(v))
TYPE_TEST(string, v.type == JINJA_STRING)
TYPE_TEST(true, v.type == JINJA_BOOL && v.truth)
TYPE_TEST(undefined, v.type == JINJA_UNDEFINED)

#define COMPARE_TEST(name, op)                                                          \
    static err_t test_##name(jinja_run *run, const jinja_value *args, jinja_value *out) \
    {                                                                                   \
        bool holds;                                                                     \
        TRY(jinja_compare(run, op, args[0], args[1], &holds));                          \
        return answer(holds, out);                                                      \
    }

COMPARE_TEST(eq, JINJA_EQ)
COMPARE_TEST(ne, JINJA_NE)
COMPARE_TEST(lt, JINJA_LT)
COMPARE_TEST(le, JINJA_LE)
COMPARE_TEST(gt, JINJA_GT)
COMPARE_TEST(ge, JINJA_GE)
COMPARE_TEST(in, JINJA_IN)

static err_t has_remainder(jinja_run *run, jinja_value a, jinja_value b, int64_t remainder,
                           jinja_value *out)
{
    jinja_value rest;
    TRY(jinja_math(run, JINJA_MODULO, a, b, &rest));
    return answer(jinja_equal(rest, jinja_int(remainder)), out);
}

static err_t test_divisibleby(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    return has_remainder(run, args[0], args[1], 0, out);
}

static err_t test_even(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    return has_remainder(run, args[0], jinja_int(2), 0, out);
}

static err_t test_odd(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    return has_remainder(run, args[0], jinja_int(2), 1, out);
}

/* Python's `is`, which for numbers and texts is an accident: they are the same if they look it. */
static err_t test_sameas(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    const jinja_value a = args[0], b = args[1];
    bool is_same = false;
    if (a.type == b.type && a.type == JINJA_LIST)
        is_same = a.list == b.list;
    else if (a.type == b.type && a.type == JINJA_DICT)
        is_same = a.dict == b.dict;
    else if (a.type == b.type && a.type != JINJA_UNDEFINED)
        TRY(jinja_same(run, a, b, &is_same));
    return answer(is_same, out);
}

/* str.islower and str.isupper: some cased character, and none of the other case. */
static err_t has_one_case(jinja_run *run, jinja_value v, bool is_upper, jinja_value *out)
{
    jinja_value s;
    bool has_cased = false;
    TRY(jinja_str(run, v, &s));
    TRY(jinja_charge(run, s.n_bytes / 4 + 1));
    for (size_t at = 0; at < s.n_bytes;) {
        unsigned n;
        const uint32_t c = jinja_char_at(s.text + at, &n);
        const bool is_right = is_upper ? jinja_char_is_upper(c) : jinja_char_is_lower(c);
        if (!is_right && jinja_char_is_cased(c)) return answer(false, out);
        has_cased = has_cased || is_right;
        at += n;
    }
    return answer(has_cased, out);
}

static err_t test_lower(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    return has_one_case(run, args[0], false, out);
}

static err_t test_upper(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    return has_one_case(run, args[0], true, out);
}

static const jinja_def TESTS[] = {
    {"!=", "other", test_ne},        {"<", "other", test_lt},
    {"<=", "other", test_le},        {"==", "other", test_eq},
    {">", "other", test_gt},         {">=", "other", test_ge},
    {"boolean", "", test_boolean},   {"callable", "", test_callable},
    {"defined", "", test_defined},   {"divisibleby", "num", test_divisibleby},
    {"eq", "other", test_eq},        {"equalto", "other", test_eq},
    {"escaped", "", test_escaped},   {"even", "", test_even},
    {"false", "", test_false},       {"float", "", test_float},
    {"ge", "other", test_ge},        {"greaterthan", "other", test_gt},
    {"gt", "other", test_gt},        {"in", "seq", test_in},
    {"integer", "", test_integer},   {"iterable", "", test_iterable},
    {"le", "other", test_le},        {"lessthan", "other", test_lt},
    {"lower", "", test_lower},       {"lt", "other", test_lt},
    {"mapping", "", test_mapping},   {"ne", "other", test_ne},
    {"none", "", test_none},         {"number", "", test_number},
    {"odd", "", test_odd},           {"sameas", "other", test_sameas},
    {"sequence", "", test_sequence}, {"string", "", test_string},
    {"true", "", test_true},         {"undefined", "", test_undefined},
    {"upper", "", test_upper},
};

const jinja_def *jinja_find_test(jinja_value name)
{
    return jinja_find_def(TESTS, sizeof TESTS / sizeof *TESTS, name);
}
