/* The settings of `pikv serve`: four sources in order of strength, and clear refusals. */
#include "service/server_config.h"
#include "tests/test_main.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { WORDS_MAX = 16 };

static err_t load(server_settings *s, const char *const *words, const char *const *variables,
                  err_info *info)
{
    char *argv[WORDS_MAX + 1] = {NULL}, *environment[WORDS_MAX + 1] = {NULL};
    int argc = 0;
    for (; words[argc] != NULL; argc++)
        argv[argc] = (char *)(uintptr_t)words[argc];
    for (size_t i = 0; variables[i] != NULL; i++)
        environment[i] = (char *)(uintptr_t)variables[i];
    *info = (err_info){0};
    return server_settings_load(s, argc, argv, environment, info);
}

#define WORDS(...) ((const char *const[]){__VA_ARGS__, NULL})
#define NOTHING    ((const char *const[]){NULL})

static server_settings must_load(const char *const *words, const char *const *variables)
{
    server_settings s;
    err_info info;
    if (load(&s, words, variables, &info) != ERR_OK) ck_abort_msg("%s", info.message);
    return s;
}

static void must_refuse(const char *const *words, const char *const *variables, const char *message)
{
    server_settings s;
    err_info info;
    ck_assert_int_ne(load(&s, words, variables, &info), ERR_OK);
    ck_assert_str_eq(info.message, message);
    server_settings_deinit(&s);
}

/* A file that holds `text`; unlink it. */
static char *write_file(const char *text)
{
    char *path = strdup("/tmp/pikv-config-XXXXXX");
    ck_assert_ptr_nonnull(path);
    const int fd = mkstemp(path);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
    return path;
}

START_TEST(defaults_serve_the_model_of_the_repository)
{
    server_settings s = must_load(NOTHING, NOTHING);
    ck_assert_str_eq(s.serve.model_dir, "models/storyteller");
    ck_assert_str_eq(s.serve.host, "127.0.0.1");
    ck_assert_uint_eq(s.serve.port, 8000);
    ck_assert(s.serve.monitor && s.serve.monitor_port_is_auto);
    ck_assert_uint_eq(s.serve.monitor_port, 8001);
    ck_assert_uint_eq(s.serve.body_bytes_max, 8u << 20);
    ck_assert_uint_eq(s.serve.shutdown_timeout_s, 30);
    ck_assert_uint_eq(s.engine.n_context_max, 0);
    server_settings_deinit(&s);
}
END_TEST

START_TEST(arguments_beat_variables_beat_the_file)
{
    char *path = write_file("port: 1\nhost: file\nisa: ref\nserved-model-name: [a, b]\n");
    server_settings s = must_load(WORDS("--port", "3", "--config", path),
                                  WORDS("PIKV_PORT=2", "PIKV_HOST=variable", "HOME=/"));
    ck_assert_uint_eq(s.serve.port, 3);
    ck_assert_str_eq(s.serve.host, "variable");
    ck_assert_str_eq(s.serve.device.isa, "ref");
    ck_assert_uint_eq(s.serve.served_model_names.n_items, 2);
    ck_assert_uint_eq(s.serve.n_logprobs_max, 20);
    ck_assert_uint_eq(s.serve.monitor_port, 4);
    server_settings_deinit(&s);
    char variable[64];
    snprintf(variable, sizeof variable, "PIKV_CONFIG=%s", path);
    s = must_load(WORDS("--served-model-name", "c"), WORDS(variable));
    ck_assert_uint_eq(s.serve.port, 1);
    ck_assert_uint_eq(s.serve.served_model_names.n_items, 1);
    ck_assert_str_eq(s.serve.served_model_names.items[0], "c");
    server_settings_deinit(&s);
    unlink(path);
    free(path);
}
END_TEST

START_TEST(names_known_from_elsewhere_are_understood)
{
    server_settings s = must_load(WORDS("some/model", "--max-model-len", "auto", "--max-num-seqs",
                                        "7", "-tp", "1", "--block-size", "16",
                                        "--no-enable-prefix-caching", "--api-key", "k1", "k2"),
                                  NOTHING);
    ck_assert_str_eq(s.serve.model_dir, "some/model");
    ck_assert_uint_eq(s.engine.n_context_max, 0);
    ck_assert_uint_eq(s.engine.n_seqs_max, 7);
    ck_assert_uint_eq(s.kv.page_tokens, 16);
    ck_assert(!s.kv.prefix_caching);
    ck_assert_uint_eq(s.serve.api_keys.n_items, 2);
    server_settings_deinit(&s);
    s = must_load(WORDS("--max-model-len=32k"), WORDS("PIKV_MAX_MODEL_LEN=auto"));
    ck_assert_uint_eq(s.engine.n_context_max, 32000);
    server_settings_deinit(&s);
}
END_TEST

START_TEST(what_this_build_cannot_do_is_said_at_the_start)
{
    must_refuse(
        WORDS("-tp", "2"), NOTHING,
        "tensor-parallel-size: 2 is not possible: ranks share experts and the KV cache (--ranks)");
    must_refuse(
        NOTHING, WORDS("PIKV_DATA_PARALLEL_SIZE=8"),
        "data-parallel-size: 8 is not possible: ranks share experts and the KV cache (--ranks)");
    must_refuse(WORDS("--enable-expert-parallel"), NOTHING,
                "enable-expert-parallel: one rank holds all experts; --ranks N makes more");
    must_refuse(WORDS("a", "b"), NOTHING, "unexpected argument \"b\": the model is \"a\"");
    must_refuse(WORDS("--prot", "1"), NOTHING, "unknown setting \"prot\"; did you mean \"port\"?");
    must_refuse(WORDS("--port", "65536"), NOTHING, "port: 65536 is outside [0, 65535]");
    must_refuse(WORDS("--monitor-port", "x"), NOTHING,
                "monitor-port: \"x\" is neither auto nor in [0, 65535]");
    must_refuse(WORDS("--served-model-name", "\xff"), NOTHING,
                "served-model-name: a name is empty or not UTF-8");
    must_refuse(WORDS("--config", "/no/such/file"), NOTHING,
                "config: /no/such/file: No such file or directory");
}
END_TEST

START_TEST(the_monitor_port_follows_the_port_unless_it_is_given)
{
    static const struct {
        const char *port, *monitor;
        uint32_t expected;
        bool is_auto;
    } cases[] = {{"9000", "auto", 9001, true},
                 {"0", "auto", 0, true},
                 {"65535", "auto", 0, true},
                 {"9000", "0", 0, false},
                 {"9000", "7000", 7000, false}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        server_settings s =
            must_load(WORDS("--port", cases[i].port, "--monitor-port", cases[i].monitor), NOTHING);
        ck_assert_uint_eq(s.serve.monitor_port, cases[i].expected);
        ck_assert_int_eq(s.serve.monitor_port_is_auto, cases[i].is_auto);
        server_settings_deinit(&s);
    }
}
END_TEST

/* ---- YAML ---------------------------------------------------------------------------------------------- */

static err_t parse(const char *text, serve_config *config, err_info *info)
{
    const cfg_binding binding = {&serve_config_table, config};
    static const cfg_alias aliases[] = {{"--listen", "host"}, {NULL, NULL}};
    const config_target target = {&binding, 1, aliases};
    *config = (serve_config){0};
    *info = (err_info){0};
    ck_assert_int_eq(cfg_defaults(&binding, 1), ERR_OK);
    return config_yaml_parse(&target, "f.yaml", text, strlen(text), info);
}

static void deinit(serve_config *config)
{
    const cfg_binding binding = {&serve_config_table, config};
    cfg_deinit(&binding, 1);
}

START_TEST(a_file_is_a_flat_mapping_of_scalars_and_lists)
{
    serve_config config;
    err_info info;
    ck_assert_int_eq(parse("# comment\nport: 0\nmax_body_bytes: 2Mi\nmonitor: no\nlisten: \"::1\"\n"
                           "api-key-file: ~\nserved-model-name:\n  - a\n  - \"b: c\"\n",
                           &config, &info),
                     ERR_OK);
    ck_assert_uint_eq(config.port, 0);
    ck_assert_uint_eq(config.body_bytes_max, 2u << 20);
    ck_assert(!config.monitor);
    ck_assert_str_eq(config.host, "::1");
    ck_assert_ptr_null(config.api_key_file);
    ck_assert_uint_eq(config.served_model_names.n_items, 2);
    ck_assert_str_eq(config.served_model_names.items[1], "b: c");
    deinit(&config);
    ck_assert_int_eq(parse("# nothing\n", &config, &info), ERR_OK);
    deinit(&config);
    ck_assert_int_eq(parse("", &config, &info), ERR_OK);
    deinit(&config);
}
END_TEST

START_TEST(a_file_is_refused_with_its_line)
{
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"host: a\nprot: 1\n", "f.yaml:2: unknown setting \"prot\"; did you mean \"port\"?"},
        {"port: 1\nhost: a\nport: 2\n", "f.yaml:3: the key \"port\" appears twice"},
        {"max-body-bytes: 1Mi\nmax_body_bytes: 1Mi\n",
         "f.yaml:2: the key \"max-body-bytes\" appears twice"},
        {"host: a\nlisten: b\n", "f.yaml:2: the key \"host\" appears twice"},
        {"port: 99999\n", "f.yaml:1: port: 99999 is outside [0, 65535]"},
        {"\n\nport: x\n", "f.yaml:3: port: \"x\" is not a number"},
        {"port: [1]\n", "f.yaml:1: this key takes one value, not a list"},
        {"port:\n  deep: 1\n",
         "f.yaml:2: a value is neither a scalar nor a list (no nesting, anchors or aliases)"},
        {"api-key: [[a]]\n", "f.yaml:1: a list may only hold plain values"},
        {"host: &x a\n",
         "f.yaml:1: a value is neither a scalar nor a list (no nesting, anchors or aliases)"},
        {"host: *x\n",
         "f.yaml:1: a value is neither a scalar nor a list (no nesting, anchors or aliases)"},
        {"? [a]\n: b\n", "f.yaml:1: a key is not plain text"},
        {"- a\n", "f.yaml:1: the file is not a mapping of keys to values"},
        {"a\n", "f.yaml:1: the file is not a mapping of keys to values"},
        {"port: 1\n---\nport: 2\n", "f.yaml:2: there is a second document"},
        {"host: \"a\\0b\"\n", "f.yaml:1: a value holds a NUL"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        serve_config config;
        err_info info;
        if (parse(cases[i].text, &config, &info) == ERR_OK) ck_abort_msg("%s", cases[i].text);
        ck_assert_str_eq(info.message, cases[i].message);
        deinit(&config);
    }
}
END_TEST

START_TEST(broken_yaml_is_an_error_not_a_crash)
{
    static const char *const texts[] = {
        "port: [1\n",        "\"", "a: b: c\n", "\t- x\n", "%YAML 9.9\n---\n",
        "port: !!int 1 }\n", "{",  "\xff\xfe",  "a: \xc3"};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        serve_config config;
        err_info info;
        ck_assert_int_ne(parse(texts[i], &config, &info), ERR_OK);
        ck_assert_int_eq(strncmp(info.message, "f.yaml:", 7), 0);
        deinit(&config);
    }
}
END_TEST

START_TEST(a_deep_file_costs_nothing)
{
    enum { DEPTH = 100000 };
    char *text = malloc(DEPTH + 16);
    ck_assert_ptr_nonnull(text);
    memset(stpcpy(text, "api-key: "), '[', DEPTH);
    text[DEPTH + 9] = '\0';
    serve_config config;
    err_info info;
    ck_assert_int_eq(parse(text, &config, &info), ERR_BAD_CONFIG);
    deinit(&config);
    free(text);
}
END_TEST

START_TEST(every_file_in_configs_loads)
{
    static const char *const files[] = {
        "configs/default.yaml", "configs/small-memory.yaml", "configs/paper-a.yaml",
        "configs/paper-b.yaml", "configs/paper-c.yaml",      "configs/paper-d.yaml",
        "configs/paper-e.yaml", "configs/paper-f.yaml",      "configs/paper-g.yaml"};
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        server_settings s = must_load(WORDS("--config", files[i]), NOTHING);
        ck_assert_str_eq(s.serve.model_dir, "models/storyteller");
        server_settings_deinit(&s);
    }
}
END_TEST

const test_case test_cases[] = {TEST_CASE(defaults_serve_the_model_of_the_repository),
                                TEST_CASE(arguments_beat_variables_beat_the_file),
                                TEST_CASE(names_known_from_elsewhere_are_understood),
                                TEST_CASE(what_this_build_cannot_do_is_said_at_the_start),
                                TEST_CASE(the_monitor_port_follows_the_port_unless_it_is_given),
                                TEST_CASE(a_file_is_a_flat_mapping_of_scalars_and_lists),
                                TEST_CASE(a_file_is_refused_with_its_line),
                                TEST_CASE(broken_yaml_is_an_error_not_a_crash),
                                TEST_CASE(a_deep_file_costs_nothing),
                                TEST_CASE(every_file_in_configs_loads),
                                TEST_CASES_END};
