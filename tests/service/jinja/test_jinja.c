/* Promises of service/jinja/jinja.h that no golden text shows: refusals and their words, limits, a stack
 * that does not grow with what comes in, and allocations that fail. */
#include "service/jinja/jinja.h"
#include "tests/test_main.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { SOURCE_BYTES = 1 << 16 };

static const jinja_limits ROOMY = {
    .output_bytes = 1 << 20, .memory_bytes = 8 << 20, .steps = 2000000, .now = 0};

/* ---- allocations that fail */

static long n_until_failure = -1; /* allocations that still succeed; -1: all */

static bool fails_now(void)
{
    if (n_until_failure < 0) return false;
    if (n_until_failure == 0) return true;
    n_until_failure--;
    return false;
}

void *__real_malloc(size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__wrap_malloc(size_t bytes)
{
    return fails_now() ? NULL : __real_malloc(bytes);
}

void *__real_calloc(size_t n, size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes)
{
    return fails_now() ? NULL : __real_calloc(n, bytes);
}

void *__real_realloc(void *old, size_t bytes);
void *__wrap_realloc(void *old, size_t bytes);
void *__wrap_realloc(void *old, size_t bytes)
{
    return fails_now() ? NULL : __real_realloc(old, bytes);
}

/* ---- shared */

static json_t *parse(const char *json)
{
    json_error_t error;
    json_t *parsed = json_loads(json, 0, &error);
    ck_assert_msg(parsed != NULL, "%s", error.text);
    return parsed;
}

/* The error of compiling or rendering `source` over `json`; *text only of a success. */
static err_t run(const char *source, const char *json, const jinja_limits *limits, char **text,
                 err_info *info)
{
    jinja *template;
    size_t n_bytes;
    json_t *context = parse(json);
    *text = NULL;
    err_t err = jinja_compile(source, strlen(source), &template, info);
    if (err == ERR_OK) err = jinja_render(template, context, limits, text, &n_bytes, info);
    jinja_free(template);
    json_decref(context);
    return err;
}

static void check_fails(const char *source, err_t want, const char *words)
{
    char *text;
    err_info info = {0};
    const err_t err = run(source, "{\"xs\": [1, 2, 3]}", &ROOMY, &text, &info);
    ck_assert_msg(err == want, "%.200s: %s %s", source, err_name(err), info.message);
    ck_assert_msg(strstr(info.message, words) != NULL, "%.200s: %s", source, info.message);
    ck_assert_ptr_null(text);
}

typedef struct refusal {
    const char *source, *words;
} refusal;

START_TEST(what_lies_outside_the_subset_is_named_with_its_line)
{
    static const refusal refusals[] = {
        {"a\n\n{% include 'x' %}", "line 3: {% include %} is not supported"},
        {"{% extends 'x' %}", "line 1: {% extends %} is not supported"},
        {"{% do x %}", "{% do %}"},
        {"\n{{ x|nosuch }}", "line 2: filter nosuch is not supported"},
        {"\n\n{{ x is nosuch }}", "line 3: test nosuch is not supported"},
        {"{{ x.nosuch() }}", "line 1: method nosuch is not supported"},
        {"{{ nosuch(1) }}", "line 1: function nosuch is not supported"},
        {"{{ lipsum() }}", "name lipsum is not supported"},
        {"{{ x|map('nosuch') }}", "filter nosuch is not supported"},
        {"{{ x|select('nosuch') }}", "test nosuch is not supported"},
        {"{{ x|map(y) }}", "not named in quotes"},
        {"{{ x|trim(wide=1) }}", "filter trim with \"wide\" is not supported"},
        {"{{ x|replace('a') }}", "filter replace without \"new\" is not supported"},
        {"{{ x|upper(1) }}", "filter upper with this many arguments"},
        {"{{ x|trim(*y) }}", "unpacked arguments of what is neither a macro nor a function"},
        {"{{ x.strip(**y) }}", "unpacked arguments of what is neither"},
        {"{{ x.__class__ }}", "attribute __class__ is not supported"},
        {"{{ 99999999999999999999 }}", "a number this large is not supported"},
        {"{{ '\\N{DASH}' }}", "the escape \\N is not supported"},
        {"{{ gr\xC3\xB6\xC3\x9F }}", "a name outside ASCII is not supported"},
    };
    for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++)
        check_fails(refusals[i].source, ERR_UNSUPPORTED, refusals[i].words);
}
END_TEST

START_TEST(what_is_no_template_is_told_from_what_is_not_supported)
{
    static const refusal refusals[] = {
        {"a\n{% if x %}", "line 2: {% endif %} is missing"},
        {"{% endif %}", "line 1: unexpected 'endif'"},
        {"\n{{ 1 + }}", "line 2: unexpected }}"},
        {"{{ (1 ]", "unexpected ']'"},
        {"{{ 'a", "a string has no end"},
        {"{{ 1", "unexpected end of the template"},
        {"{# a", "a comment has no end"},
        {"{% raw %}", "{% raw %} has no end"},
        {"{% break %}", "{% break %} outside a loop"},
        {"{% for x in y %}{% macro m() %}{% break %}{% endmacro %}{% endfor %}", "outside a loop"},
        {"{% set 1 = 2 %}", "a target that cannot be assigned to"},
        {"\xFF", "it is not UTF-8"},
    };
    for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++)
        check_fails(refusals[i].source, ERR_BAD_MODEL, refusals[i].words);
}
END_TEST

START_TEST(an_error_of_rendering_has_its_line_and_raise_exception_its_own_words)
{
    check_fails("a\nb {{ 1 + 'a' }}", ERR_BAD_REQUEST, "line 2: '+' cannot be used with 'int'");
    check_fails("\n\n{{ xs.y.z }}", ERR_BAD_REQUEST, "line 3: 'list object' has no attribute 'y'");
    check_fails("{{ y.z }}", ERR_BAD_REQUEST, "line 1: 'y' is undefined");
    check_fails("{{ xs.append(1) }}", ERR_BAD_REQUEST, "may not change a list");
    err_info info = {0};
    char *text;
    ck_assert_int_eq(run("\n{{ raise_exception('No ' ~ 3) }}", "{}", &ROOMY, &text, &info),
                     ERR_BAD_REQUEST);
    ck_assert_str_eq(info.message, "No 3");
}
END_TEST

/* ---- limits */

START_TEST(every_limit_is_kept_and_named)
{
    static const refusal endless[] = {
        {"{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", "more than 1048576 bytes"},
        {"{% set ns = namespace(s='xy') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% "
         "endfor %}",
         "bytes of memory"},
        {"{{ 'x' * 99999999999 }}", "steps"},
        {"{{ 'x' * 9999999 }}", "bytes of memory"},
        {"{{ [1, 2] * 9999999 }}", "steps"},
        {"{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}", ""},
        {"{% set ns = namespace(x=[]) %}{% for i in range(999) %}{% set ns.x = [ns.x] %}{% endfor "
         "%}",
         "nests more than 200 deep"},
        {"{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% "
         "endfor %}"
         "{{ ns.x == [ns.x[0], [ns.x[1][0], ns.x[1][1]]] }}{{ ns.x|tojson|length }}",
         "more than 2000000 steps"},
        {"{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "nests too deeply"},
        {"{{ range(100001) }}", "limited to 100000 items"},
        {"{{ 9223372036854775807 + 1 }}", "more than 64 bits"},
        {"{{ 2 ** 64 }}", "more than 64 bits"},
    };
    for (size_t i = 0; i < sizeof endless / sizeof *endless; i++)
        check_fails(endless[i].source, ERR_BAD_REQUEST, endless[i].words);
}
END_TEST

/* A limit is one of what is made, not of what is asked for: at it a text is made, below it none. */
START_TEST(the_limit_of_the_text_is_exact)
{
    jinja_limits limits = ROOMY;
    char *text;
    err_info info = {0};
    limits.output_bytes = 5;
    ck_assert_int_eq(run("ab{{ 123 }}", "{}", &limits, &text, &info), ERR_OK);
    ck_assert_str_eq(text, "ab123");
    free(text);
    limits.output_bytes = 4;
    ck_assert_int_eq(run("ab{{ 123 }}", "{}", &limits, &text, &info), ERR_BAD_REQUEST);
}
END_TEST

/* `before` n times, `middle`, `after` n times. */
static const char *nest(const char *before, const char *middle, const char *after, size_t n)
{
    static char source[SOURCE_BYTES];
    size_t at = 0;
    ck_assert_uint_lt((strlen(before) + strlen(after)) * n + strlen(middle), sizeof source);
    for (size_t i = 0; i < n; i++)
        at += (size_t)sprintf(source + at, "%s", before);
    at += (size_t)sprintf(source + at, "%s", middle);
    for (size_t i = 0; i < n; i++)
        at += (size_t)sprintf(source + at, "%s", after);
    source[at] = '\0';
    return source;
}

static void *nest_deeply(void *unused)
{
    static const char *const shapes[][3] = {
        {"(", "1", ")"},      {"[", "1", "]"},       {"{1: ", "1", "}"},        {"not ", "1", ""},
        {"-", "1", ""},       {"", "x", ".x"},       {"", "x", "[0]"},          {"", "x", "|e"},
        {"", "1", "+1"},      {"", "x", " is eq 1"}, {"1 if 1 else ", "1", ""}, {"x[", "1", "]"},
        {"x.get(", "1", ")"}, {"", "1", " and 1"},   {"", "1", " if 1"},
    };
    char *text;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        char source[SOURCE_BYTES + 16];
        snprintf(source, sizeof source, "{{ %s }}",
                 nest(shapes[i][0], shapes[i][1], shapes[i][2], 3000));
        err_info info = {0};
        const err_t err = run(source, "{}", &ROOMY, &text, &info);
        ck_assert_msg(err != ERR_OK, "%s", shapes[i][0]);
    }
    const char *tags = nest("{% if 1 %}", "x", "{% endif %}", 2000);
    check_fails(tags, ERR_UNSUPPORTED, "nesting this deep");
    check_fails("{% macro f(n) %}{% if 1 %}{{ [[f(n + 1)]]|first ~ '' }}{% endif %}{% endmacro "
                "%}{{ f(1) }}",
                ERR_BAD_REQUEST, "nests too deeply");
    check_fails("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", ERR_BAD_REQUEST,
                "nests too deeply");
    static char json[SOURCE_BYTES + 16];
    snprintf(json, sizeof json, "{\"x\": %s}", nest("[", "", "]", 1500));
    err_info info = {0};
    ck_assert_int_eq(run("{{ x }}", json, &ROOMY, &text, &info), ERR_BAD_REQUEST);
    snprintf(json, sizeof json, "{\"x\": %s}", nest("[", "", "]", 190));
    ck_assert_int_eq(run("{{ x == x[0] }}{{ x|tojson(indent=1) }}", json, &ROOMY, &text, &info),
                     ERR_OK);
    free(text);
    return unused;
}

/* The sanitizers' frames are several times as large. */
#if defined(__SANITIZE_ADDRESS__)
enum { STACK_BYTES = 6 << 20 };
#else
enum { STACK_BYTES = 1 << 20 };
#endif

START_TEST(nothing_nests_deeper_than_a_small_stack_holds)
{
    pthread_attr_t attributes;
    pthread_t thread;
    pthread_attr_init(&attributes);
    ck_assert_int_eq(pthread_attr_setstacksize(&attributes, STACK_BYTES), 0);
    ck_assert_int_eq(pthread_create(&thread, &attributes, nest_deeply, NULL), 0);
    pthread_join(thread, NULL);
}
END_TEST

/* ---- from_json, which transformers does not have */

static void check_renders(const char *source, const char *expected)
{
    char *text;
    err_info info = {0};
    const err_t err = run(source, "{}", &ROOMY, &text, &info);
    ck_assert_msg(err == ERR_OK, "%s: %s", source, info.message);
    ck_assert_str_eq(text, expected);
    free(text);
}

START_TEST(json_becomes_values)
{
    check_renders(
        "{% set x = '{\"a\": [1, 2.5, null, true], \"b\": {\"c\": \"d\\u00e9\"}}'|from_json %}"
        "{{ x.a }}{{ x.b.c }}{{ x|tojson }}",
        "[1, 2.5, None, True]d\xc3\xa9{\"a\": [1, 2.5, null, true], "
        "\"b\": {\"c\": \"d\xc3\xa9\"}}");
    check_renders("{{ '7'|from_json + 1 }}{{ '\"s\"'|from_json }}", "8s");
    check_fails("{{ '{'|from_json }}", ERR_BAD_REQUEST, "line 1: from_json: no JSON");
    check_fails("{{ ''|from_json }}", ERR_BAD_REQUEST, "line 1: from_json: no JSON");
    check_fails("{{ xs|from_json }}", ERR_BAD_REQUEST, "from_json takes a text");
    check_fails("{{ ('[' * 300 ~ ']' * 300)|from_json }}", ERR_BAD_REQUEST, "more than 200 deep");
}
END_TEST

/* ---- contents */

START_TEST(a_template_shows_how_it_reads_contents)
{
#define EACH "{% for m in messages %}"
#define END  "{% endfor %}"
    static const struct {
        const char *source;
        bool reads_parts, asks_type;
    } cases[] = {
        {"plain", false, false},
        {EACH "{{ m.content }}" END, false, false},
        {EACH "{% for c in m.content %}{{ c.text }}" END END, true, false},
        {EACH "{% for c in m['content'] %}{{ c.text }}" END END, true, false},
        {EACH "{% for c in m.get('content') | list %}x" END END, true, false},
        {EACH "{% for c in m.content[1:] %}x" END END, true, false},
        {EACH "{{ m.content[0].text }}" END, true, false},
        {EACH "{{ m.content[0]['type'] }}" END, true, false},
        {EACH "{{ m.content[0] }}{{ m.content[:3] }}" END, false, false}, /* characters */
        {EACH "{% for c in m.calls %}{{ c.content }}" END END, false, false},
        {EACH "{% for c in m.content.split('x') %}{{ c }}" END END, false, false},
        {EACH "{% if m.content is string %}{{ m.content }}{% endif %}" END, false, true},
        {EACH "{% if m.content is not string %}{% for c in m.content %}x" END "{% endif %}" END,
         true, true},
        {EACH "{% if m.content is sequence %}{% for c in m.content %}x" END "{% endif %}" END, true,
         true},
        {EACH "{% if m.role is string %}{% for c in m.content %}x" END "{% endif %}" END, true,
         false},
        /* under other names */
        {"{% set all = messages[1:] %}{% for m in all %}{% for c in m.content %}x" END END, true,
         false},
        {"{% for c in messages[0].content %}x" END, true, false},
        {"{% set last = messages | last %}{% set c = last.content %}{{ c }}", false, false},
        {EACH "{% set said = m.content if m.content else '' %}{% for c in said %}x" END END, true,
         false},
        {EACH "{% with c = m.content %}{% for p in c or [] %}x" END "{% endwith %}" END, true,
         false},
        {"{% for other in rows %}{% for c in other.content %}x" END END, false, false},
        /* in macros, whose calls may come first or last */
        {"{% macro show(x, n) %}{% for c in n %}x" END "{% endmacro %}" EACH
         "{{ show(1, m.content) }}" END,
         true, false},
        {"{% macro show(x, n) %}{% for c in n %}x" END "{% endmacro %}" EACH
         "{{ show(m.content, 1) }}" END,
         false, false},
        {"{% macro all() %}" EACH "{{ show(c=m.content) }}" END "{% endmacro %}"
         "{% macro show(c) %}{% if c is string %}{{ c }}{% else %}{% for p in c %}x" END
         "{% endif %}{% endmacro %}",
         true, true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        jinja *template;
        jinja_content content;
        err_info info = {0};
        const char *source = cases[i].source;
        ck_assert_msg(jinja_compile(source, strlen(source), &template, &info) == ERR_OK, "%s: %s",
                      source, info.message);
        ck_assert_int_eq(jinja_find_content(template, &content), ERR_OK);
        ck_assert_msg(content.reads_parts == cases[i].reads_parts, "%s", source);
        ck_assert_msg(content.asks_type == cases[i].asks_type, "%s", source);
        jinja_free(template);
    }
}
END_TEST

/* ---- memory */

static const char BUSY[] =
    "{% macro m(a, b=[1, 2]) %}{% for x in b if x %}{{ x ~ a }}{% endfor %}{% endmacro %}"
    "{% set ns = namespace(s='') %}{% for k, v in o|dictsort %}{% set ns.s = ns.s ~ k ~ v %}{% "
    "endfor %}"
    "{% set t %}{{ m('y') }}{% endset %}{{ t|upper }}{{ ns.s }}{{ o|tojson(indent=2) }}{{ o }}"
    "{% macro n() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ n(*[1], **o) }}"
    "{% for x in [[1], 2] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}"
    "{{ [{'k': 1}, {'k': 2}]|groupby('k') }}{{ [1, 2, 3]|slice(2)|list }}"
    "{{ '{\"q\": [1, \"t\"]}'|from_json }}"
    "{{ 'long' * 3000 }}{{ 'a,b'.split(',')|map('upper')|join('-') }}";

START_TEST(every_failed_allocation_is_an_error_and_no_leak)
{
    json_t *context = parse("{\"o\": {\"b\": [1, 2.5, null], \"a\": \"x\"}}");
    long n_failures = 0;
    for (err_t err = ERR_NO_MEMORY; err != ERR_OK; n_failures++) {
        jinja *template;
        jinja_content content;
        char *text = NULL;
        size_t n_bytes;
        err_info info = {0};
        n_until_failure = n_failures;
        err = jinja_compile(BUSY, sizeof BUSY - 1, &template, &info);
        if (err == ERR_OK) err = jinja_find_content(template, &content);
        if (err == ERR_OK) err = jinja_render(template, context, &ROOMY, &text, &n_bytes, &info);
        n_until_failure = -1;
        ck_assert_msg(err == ERR_OK || err == ERR_NO_MEMORY, "%s", info.message);
        ck_assert((text != NULL) == (err == ERR_OK));
        free(text);
        jinja_free(template);
    }
    ck_assert_int_ge(n_failures, 5);
    json_decref(context);
}
END_TEST

/* A text put together piece by piece is extended where it lies: the cost is not the square of its length. */
START_TEST(a_text_grows_in_place)
{
    char *text;
    err_info info = {0};
    const jinja_limits limits = {
        .output_bytes = 1 << 20, .memory_bytes = 16 << 20, .steps = 3000000, .now = 0};
    const err_t err = run("{% set ns = namespace(s='') %}{% for i in range(20000) %}"
                          "{% set ns.s = ns.s ~ 'twelve bytes' %}{% endfor %}{{ ns.s|length }}",
                          "{}", &limits, &text, &info);
    ck_assert_msg(err == ERR_OK, "%s", info.message);
    ck_assert_str_eq(text, "240000");
    free(text);
}
END_TEST

static void *render_often(void *shared)
{
    json_t *context = parse("{\"o\": {\"b\": [1, 2.5, null], \"a\": \"x\"}}");
    size_t n_bytes, n_first = 0;
    char *first = NULL, *text;
    for (int i = 0; i < 50; i++) {
        ck_assert_int_eq(jinja_render(shared, context, &ROOMY, &text, &n_bytes, NULL), ERR_OK);
        if (i == 0) n_first = n_bytes;
        ck_assert(n_bytes == n_first && (i == 0 || memcmp(first, text, n_bytes) == 0));
        if (i == 0)
            first = text;
        else
            free(text);
    }
    free(first);
    json_decref(context);
    return NULL;
}

START_TEST(threads_share_a_template)
{
    enum { N_THREADS = 4 };
    pthread_t threads[N_THREADS];
    jinja *template;
    ck_assert_int_eq(jinja_compile(BUSY, sizeof BUSY - 1, &template, NULL), ERR_OK);
    for (int i = 0; i < N_THREADS; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, render_often, template), 0);
    for (int i = 0; i < N_THREADS; i++)
        pthread_join(threads[i], NULL);
    jinja_free(template);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(what_lies_outside_the_subset_is_named_with_its_line),
    TEST_CASE(what_is_no_template_is_told_from_what_is_not_supported),
    TEST_CASE(an_error_of_rendering_has_its_line_and_raise_exception_its_own_words),
    TEST_CASE(every_limit_is_kept_and_named),
    TEST_CASE(the_limit_of_the_text_is_exact),
    TEST_CASE(nothing_nests_deeper_than_a_small_stack_holds),
    TEST_CASE(json_becomes_values),
    TEST_CASE(a_template_shows_how_it_reads_contents),
    TEST_CASE(every_failed_allocation_is_an_error_and_no_leak),
    TEST_CASE(a_text_grows_in_place),
    TEST_CASE(threads_share_a_template),
    TEST_CASES_END};
