/* tests/base/test_config.c - settings from text. */
#include "base/config.h"
#include "tests/test_main.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct settings {
    bool eager, prefix_cache;
    uint32_t page_tokens, routing;
    uint64_t cache_bytes;
    double budget;
    char *model;
    cfg_strings api_keys, names;
} settings;

static const char *const routings[] = {"full", "topk", "pikv", NULL};

static const cfg_field fields[] = {
    CFG_FLAG(settings, eager, "eager", "false", "no graphs"),
    CFG_FLAG(settings, prefix_cache, "enable-prefix-caching", "true", "reuse prompts"),
    CFG_NUM32(settings, page_tokens, "kv-page-tokens", 4, 64, "32", "positions per page"),
    CFG_NUM64(settings, cache_bytes, "kv-cache-bytes", 0, 1e15, "1Gi", "pool"),
    CFG_REAL(settings, budget, "kv-budget", 0, 1, "0.1", "share kept"),
    CFG_TEXT(settings, model, "model", NULL, "DIR", "weights"),
    CFG_LIST(settings, api_keys, "api-key", NULL, "KEY", "accepted keys"),
    CFG_LIST(settings, names, "served-model-name", "tiny", "NAME", "names"),
    CFG_PICK(settings, routing, "kv-routing", routings, "full", "who is read"),
};
static const cfg_table table = {"Test", fields, sizeof fields / sizeof fields[0]};

/* A settings struct with its binding, and the last error. */
typedef struct fixture {
    settings s;
    cfg_binding binding;
    err_info info;
} fixture;

static fixture *open_defaults(void)
{
    fixture *f = calloc(1, sizeof *f);
    ck_assert_ptr_nonnull(f);
    f->binding = (cfg_binding){&table, &f->s};
    ck_assert_int_eq(cfg_defaults(&f->binding, 1), ERR_OK);
    return f;
}

static void close_settings(fixture *f)
{
    cfg_deinit(&f->binding, 1);
    ck_assert_ptr_null(f->s.model);
    free(f);
}

static err_t set(fixture *f, const char *name, const char *value)
{
    f->info = (err_info){0};
    return cfg_set(&f->binding, 1, name, value, &f->info);
}

static void assert_refused(fixture *f, const char *name, const char *value, const char *message)
{
    ck_assert_int_ne(set(f, name, value), ERR_OK);
    ck_assert_str_eq(f->info.message, message);
}

START_TEST(defaults_come_from_the_table)
{
    fixture *f = open_defaults();
    ck_assert(!f->s.eager);
    ck_assert(f->s.prefix_cache);
    ck_assert_uint_eq(f->s.page_tokens, 32);
    ck_assert_uint_eq(f->s.cache_bytes, UINT64_C(1) << 30);
    ck_assert_double_eq(f->s.budget, 0.1);
    ck_assert_ptr_null(f->s.model);
    ck_assert_uint_eq(f->s.api_keys.n_items, 0);
    ck_assert_uint_eq(f->s.names.n_items, 1);
    close_settings(f);
}
END_TEST

START_TEST(a_value_outside_its_limits_is_named_with_them)
{
    fixture *f = open_defaults();
    assert_refused(f, "kv-page-tokens", "0", "kv-page-tokens: 0 is outside [4, 64]");
    assert_refused(f, "kv-page-tokens", "65", "kv-page-tokens: 65 is outside [4, 64]");
    assert_refused(f, "kv-budget", "1.5", "kv-budget: 1.5 is outside [0, 1]");
    assert_refused(f, "kv-budget", "-0.1", "kv-budget: -0.1 is outside [0, 1]");
    assert_refused(f, "kv-budget", "nan", "kv-budget: \"nan\" is not a number");
    assert_refused(f, "kv-page-tokens", "", "kv-page-tokens: \"\" is not a number");
    assert_refused(f, "kv-page-tokens", "-5", "kv-page-tokens: \"-5\" is not a number");
    assert_refused(f, "kv-page-tokens", "8x", "kv-page-tokens: \"8x\" is not a number");
    assert_refused(f, "kv-page-tokens", "7.5", "kv-page-tokens: \"7.5\" is not a whole number");
    assert_refused(f, "kv-cache-bytes", "99999999999999999999",
                   "kv-cache-bytes: \"99999999999999999999\" is too large");
    assert_refused(f, "eager", "maybe", "eager: \"maybe\" is neither true nor false");
    assert_refused(f, "kv-routing", "best", "kv-routing: \"best\" is none of full, topk, pikv");
    ck_assert_uint_eq(f->s.page_tokens, 32);
    ck_assert_int_eq(set(f, "kv-page-tokens", "4"), ERR_OK);
    ck_assert_int_eq(set(f, "kv-page-tokens", "64"), ERR_OK);
    close_settings(f);
}
END_TEST

START_TEST(sizes_take_suffixes)
{
    static const struct {
        const char *text;
        uint64_t bytes;
    } cases[] = {{"0", 0},        {"12k", 12000},   {"3m", 3000000},    {"2g", 2000000000},
                 {"1.5Ki", 1536}, {"4Mi", 4 << 20}, {"0.5Gi", 1 << 29}, {"2t", 2000000000000}};
    fixture *f = open_defaults();
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        ck_assert_int_eq(set(f, "kv-cache-bytes", cases[i].text), ERR_OK);
        ck_assert_uint_eq(f->s.cache_bytes, cases[i].bytes);
    }
    assert_refused(f, "kv-cache-bytes", "4G",
                   "kv-cache-bytes: \"4G\" is ambiguous: small k m g t mean 1000, Ki Mi Gi Ti mean "
                   "1024");
    assert_refused(f, "kv-cache-bytes", "0.0001k",
                   "kv-cache-bytes: \"0.0001k\" is not a whole number");
    close_settings(f);
}
END_TEST

START_TEST(an_unknown_key_is_named_with_the_nearest)
{
    fixture *f = open_defaults();
    assert_refused(f, "kv-page-token", "8",
                   "unknown setting \"kv-page-token\"; did you mean \"kv-page-tokens\"?");
    assert_refused(f, "quite-something-else", "8", "unknown setting \"quite-something-else\"");
    ck_assert_int_eq(set(f, "x", "1"), ERR_NOT_FOUND);
    char longest[300];
    memset(longest, 'a', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    ck_assert_int_eq(set(f, longest, "1"), ERR_NOT_FOUND);
    ck_assert_int_eq(set(f, "kv_page_tokens", "8"), ERR_OK); /* _ counts as - */
    ck_assert_uint_eq(f->s.page_tokens, 8);
    close_settings(f);
}
END_TEST

/* The words of `text`, cut in place; NULL-terminated. */
enum { N_WORDS_MAX = 16 };
static char **split(char *text, char *words[N_WORDS_MAX])
{
    size_t n = 0;
    for (char *word; (word = strsep(&text, " ")) != NULL;) {
        ck_assert_uint_lt(n, N_WORDS_MAX - 1);
        words[n++] = word;
    }
    words[n] = NULL;
    return words;
}

START_TEST(the_environment_sets_what_it_names)
{
    fixture *f = open_defaults();
    char *words[N_WORDS_MAX];
    char good[] = "HOME=/ PIKV_KV_PAGE_TOKENS=16 PIKV_API_KEY=a,b,,c PIKV_SERVED_MODEL_NAME=";
    ck_assert_int_eq(cfg_set_environment(&f->binding, 1, split(good, words), &f->info), ERR_OK);
    ck_assert_uint_eq(f->s.page_tokens, 16);
    ck_assert_uint_eq(f->s.api_keys.n_items, 3);
    ck_assert_str_eq(f->s.api_keys.items[2], "c");
    ck_assert_uint_eq(f->s.names.n_items, 0);
    char bad[] = "PIKV_KV_PAGE_TOKEN=16";
    ck_assert_int_eq(cfg_set_environment(&f->binding, 1, split(bad, words), &f->info),
                     ERR_NOT_FOUND);
    ck_assert_ptr_nonnull(strstr(f->info.message, "\"kv-page-tokens\""));
    close_settings(f);
}
END_TEST

START_TEST(what_kubernetes_says_of_services_is_no_setting)
{
    static const char *const links[] = {"PIKV_PORT=tcp://10.0.0.1:8000",
                                        "PIKV_PORT=udp://10.0.0.1:53",
                                        "PIKV_MONITOR_PORT=sctp://10.0.0.1:1",
                                        "PIKV_SERVICE_HOST=10.0.0.1",
                                        "PIKV_SERVICE_PORT=8000",
                                        "PIKV_SERVICE_PORT_HTTP=8000",
                                        "PIKV_PORT_8000_TCP=tcp://10.0.0.1:8000",
                                        "PIKV_PORT_8000_TCP_PROTO=tcp",
                                        "PIKV_PORT_53_UDP_ADDR=10.0.0.1",
                                        "PIKV_A_B_PORT_1_SCTP_PORT=1"};
    static const char *const others[] = {"PIKV_PORT=8000",
                                         "PIKV_PORT=",
                                         "PIKV_MONITOR_PORT=8001",
                                         "PIKV_PORT=http://10.0.0.1",
                                         "PIKV_PORT_8000=tcp://10.0.0.1:8000",
                                         "PIKV_PORT_TCP=1",
                                         "PIKV_SERVICE=1",
                                         "PIKV_API_KEY=_PORT=tcp://",
                                         "PIKV_API_KEY=a_SERVICE_HOST=b",
                                         "PIKV_PORT",
                                         "OTHER_PORT=tcp://10.0.0.1:1",
                                         "PIKVX_SERVICE_HOST=1",
                                         ""};
    for (size_t i = 0; i < sizeof links / sizeof links[0]; i++)
        ck_assert_msg(cfg_is_service_link(links[i]), "%s", links[i]);
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
        ck_assert_msg(!cfg_is_service_link(others[i]), "%s", others[i]);
    fixture *f = open_defaults();
    char *words[N_WORDS_MAX];
    char mixed[] = "PIKV_SERVICE_HOST=1 PIKV_KV_PAGE_TOKENS=16 PIKV_PORT=tcp://1";
    ck_assert_int_eq(cfg_set_environment(&f->binding, 1, split(mixed, words), &f->info), ERR_OK);
    ck_assert_uint_eq(f->s.page_tokens, 16);
    close_settings(f);
}
END_TEST

static err_t arguments(fixture *f, cfg_args *args, char **argv)
{
    static const cfg_alias aliases[] = {{"-m", "model"}, {"--weights", "model"}, {NULL, NULL}};
    *args = (cfg_args){.argv = argv, .aliases = aliases};
    while (argv[args->argc] != NULL)
        args->argc++;
    f->info = (err_info){0};
    return cfg_set_arguments(&f->binding, 1, args, &f->info);
}

START_TEST(flags_take_values_in_every_usual_form)
{
    fixture *f = open_defaults();
    cfg_args args;
    char *argv[N_WORDS_MAX];
    char line[] = "first --kv-page-tokens 8 --kv_budget=0.5 --eager --no-enable-prefix-caching "
                  "-m dir second -- --eager";
    ck_assert_int_eq(arguments(f, &args, split(line, argv)), ERR_OK);
    ck_assert_uint_eq(f->s.page_tokens, 8);
    ck_assert_double_eq(f->s.budget, 0.5);
    ck_assert(f->s.eager);
    ck_assert(!f->s.prefix_cache);
    ck_assert_str_eq(f->s.model, "dir");
    ck_assert_uint_eq(args.n_positional, 3);
    ck_assert_str_eq(argv[0], "first");
    ck_assert_str_eq(argv[1], "second");
    ck_assert_str_eq(argv[2], "--eager");
    char alias[] = "--weights=other --eager=false";
    ck_assert_int_eq(arguments(f, &args, split(alias, argv)), ERR_OK);
    ck_assert_str_eq(f->s.model, "other");
    ck_assert(!f->s.eager);
    close_settings(f);
}
END_TEST

START_TEST(a_list_takes_words_up_to_the_next_flag_and_replaces_the_weaker_list)
{
    fixture *f = open_defaults();
    cfg_args args;
    char *argv[N_WORDS_MAX];
    char line[] = "--served-model-name a b --eager --served-model-name=c,d";
    ck_assert_int_eq(arguments(f, &args, split(line, argv)), ERR_OK);
    ck_assert_uint_eq(f->s.names.n_items, 3); /* "tiny" is gone */
    ck_assert_str_eq(f->s.names.items[0], "a");
    ck_assert_str_eq(f->s.names.items[1], "b");
    ck_assert_str_eq(f->s.names.items[2], "c,d");
    ck_assert_uint_eq(args.n_positional, 0);
    close_settings(f);
}
END_TEST

START_TEST(broken_flags_are_refused_by_name)
{
    static const struct {
        const char *line, *message;
    } cases[] = {
        {"--model", "--model needs a value (DIR)"},
        {"--model --eager", "--model needs a value (DIR)"},
        {"--no-eager=1", "--no-eager takes no value"},
        {"--no-model", "unknown setting \"no-model\""},
        {"-z", "unknown flag -z"},
        {"--eagre", "unknown setting \"eagre\"; did you mean \"eager\"?"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        fixture *f = open_defaults();
        cfg_args args;
        char line[64], *argv[N_WORDS_MAX];
        snprintf(line, sizeof line, "%s", cases[i].line);
        ck_assert_int_ne(arguments(f, &args, split(line, argv)), ERR_OK);
        ck_assert_str_eq(f->info.message, cases[i].message);
        close_settings(f);
    }
}
END_TEST

static char *printed(fixture *f, void (*print)(const cfg_binding *, size_t, FILE *))
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *stream = open_memstream(&text, &bytes);
    print(&f->binding, 1, stream);
    fclose(stream);
    return text;
}

START_TEST(a_copy_has_every_value_and_shares_no_string)
{
    fixture *f = open_defaults(), *copy = open_defaults();
    static const char *const values[][2] = {
        {"eager", "true"},       {"enable-prefix-caching", "false"},
        {"kv-page-tokens", "8"}, {"kv-cache-bytes", "7"},
        {"kv-budget", "0.25"},   {"model", "dir"},
        {"api-key", "a"},        {"api-key", "b"},
        {"kv-routing", "pikv"}};
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++)
        ck_assert_int_eq(set(f, values[i][0], values[i][1]), ERR_OK);
    ck_assert_int_eq(set(copy, "api-key", "replaced"), ERR_OK);
    ck_assert_int_eq(cfg_copy(&table, &f->s, &copy->s), ERR_OK);
    char *original = printed(f, cfg_print_yaml), *text = printed(copy, cfg_print_yaml);
    ck_assert_str_eq(text, original);
    ck_assert_str_eq(copy->s.api_keys.items[1], "b"); /* masked in print */
    ck_assert_ptr_ne(copy->s.model, f->s.model);
    ck_assert_ptr_ne(copy->s.api_keys.items, f->s.api_keys.items);
    close_settings(f); /* the copy lives on */
    ck_assert_str_eq(copy->s.model, "dir");
    ck_assert_str_eq(copy->s.names.items[0], "tiny");
    free(original);
    free(text);
    close_settings(copy);
}
END_TEST

START_TEST(a_copy_of_an_unset_string_is_unset)
{
    fixture *f = open_defaults(), *copy = open_defaults();
    ck_assert_int_eq(set(copy, "model", "dir"), ERR_OK);
    ck_assert_int_eq(cfg_copy(&table, &f->s, &copy->s), ERR_OK);
    ck_assert_ptr_null(copy->s.model);
    ck_assert_uint_eq(copy->s.api_keys.n_items, 0);
    close_settings(f);
    close_settings(copy);
}
END_TEST

START_TEST(the_printed_configuration_masks_secrets)
{
    fixture *f = open_defaults();
    ck_assert_int_eq(set(f, "api-key", "hunter2"), ERR_OK);
    ck_assert_int_eq(set(f, "model", "a \"b\"\n"), ERR_OK);
    char *text = printed(f, cfg_print_yaml);
    ck_assert_str_eq(text, "# Test\neager: false\nenable-prefix-caching: true\nkv-page-tokens: 32\n"
                           "kv-cache-bytes: 1073741824\nkv-budget: 0.1\n"
                           "model: \"a \\\"b\\\"\\x0a\"\napi-key: [\"***\"]\n"
                           "served-model-name: [\"tiny\"]\nkv-routing: \"full\"\n");
    free(text);
    close_settings(f);
}
END_TEST

START_TEST(help_names_every_flag_with_its_limits)
{
    fixture *f = open_defaults();
    char *text = printed(f, cfg_print_help);
    ck_assert_ptr_nonnull(strstr(text, "--kv-page-tokens N"));
    ck_assert_ptr_nonnull(strstr(text, "positions per page [4, 64] (default 32)"));
    ck_assert_ptr_nonnull(strstr(text, "--[no-]enable-prefix-caching"));
    ck_assert_ptr_nonnull(strstr(text, "who is read: full, topk, pikv (default full)"));
    ck_assert_ptr_nonnull(strstr(text, "--api-key KEY ..."));
    free(text);
    close_settings(f);
}
END_TEST

START_TEST(numbers_are_read_strictly)
{
    uint64_t u;
    double x;
    ck_assert_int_eq(cfg_parse_u64("18446744073709551615", &u), ERR_OK);
    ck_assert_uint_eq(u, UINT64_MAX);
    ck_assert_int_eq(cfg_parse_u64("18446744073709551616", &u), ERR_OVERFLOW);
    static const char *const bad_u64[] = {"", "-1", "+1", " 1", "1 ", "0x1", "1.0"};
    for (size_t i = 0; i < sizeof bad_u64 / sizeof bad_u64[0]; i++)
        ck_assert_int_ne(cfg_parse_u64(bad_u64[i], &u), ERR_OK);
    ck_assert_int_eq(cfg_parse_f64("-1.5e3", &x), ERR_OK);
    ck_assert_double_eq(x, -1500);
    static const char *const bad_f64[] = {"",      ".",  "1e",  "inf",  "nan",
                                          "0x1p3", " 1", "1,5", "1e999"};
    for (size_t i = 0; i < sizeof bad_f64 / sizeof bad_f64[0]; i++)
        ck_assert_int_ne(cfg_parse_f64(bad_f64[i], &x), ERR_OK);
}
END_TEST

START_TEST(numbers_are_written_shortest)
{
    char out[CFG_F64_TEXT_BYTES];
    ck_assert_str_eq(cfg_format_f64(0.1, out), "0.1");
    ck_assert_str_eq(cfg_format_f64(64, out), "64");
    ck_assert_str_eq(cfg_format_f64(1048576, out), "1048576");
    ck_assert_str_eq(cfg_format_f64(1.0 / 3, out), "0.3333333333333333");
    ck_assert_str_eq(cfg_format_f64(NAN, out), "nan");
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(defaults_come_from_the_table),
    TEST_CASE(a_value_outside_its_limits_is_named_with_them),
    TEST_CASE(sizes_take_suffixes),
    TEST_CASE(an_unknown_key_is_named_with_the_nearest),
    TEST_CASE(the_environment_sets_what_it_names),
    TEST_CASE(what_kubernetes_says_of_services_is_no_setting),
    TEST_CASE(flags_take_values_in_every_usual_form),
    TEST_CASE(a_list_takes_words_up_to_the_next_flag_and_replaces_the_weaker_list),
    TEST_CASE(broken_flags_are_refused_by_name),
    TEST_CASE(a_copy_has_every_value_and_shares_no_string),
    TEST_CASE(a_copy_of_an_unset_string_is_unset),
    TEST_CASE(the_printed_configuration_masks_secrets),
    TEST_CASE(help_names_every_flag_with_its_limits),
    TEST_CASE(numbers_are_read_strictly),
    TEST_CASE(numbers_are_written_shortest),
    TEST_CASES_END,
};
