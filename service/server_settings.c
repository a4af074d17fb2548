/* service/server_settings.c - four sources, one set of settings. See server_config.h.
 *
 * The file's own name may come from the command line or the environment, both of which are stronger than
 * the file. So the arguments and the environment are read twice: once only to learn the name, then
 * in the order of strength. Names that people know from other servers are aliases of ours. */
#include "service/server_config.h"

#include "base/check.h"
#include "base/utf8.h"
#include "service/tools/tool_reader.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_TABLES = 5, PORT_MAX = 65535 };

static const cfg_alias aliases[] = {
    {"-m", "model"},
    {"--model-path", "model"},
    {"-tp", "tensor-parallel-size"},
    {"-pp", "pipeline-parallel-size"},
    {"-dp", "data-parallel-size"},
    {"--block-size", "kv-page-tokens"},
    {"--kv-cache-memory", "kv-cache-memory-bytes"},
    {NULL, NULL},
};

static void bind_tables(server_settings *s, cfg_binding bindings[N_TABLES])
{
    bindings[0] = (cfg_binding){&serve_config_table, &s->serve};
    bindings[1] = (cfg_binding){&engine_config_table, &s->engine};
    bindings[2] = (cfg_binding){&kv_config_table, &s->kv};
    bindings[3] = (cfg_binding){&ranks_config_table, &s->ranks};
    bindings[4] = (cfg_binding){&experts_config_table, &s->experts};
}

/* "--max-model-len auto" is how others write "as long as the model can". Pointers into argv and
 * environment are replaced in copies; the words themselves stay. */
static void replace(char **word, const char *by)
{
    *word = (char *)(uintptr_t)by; /* base/config.h only reads the words */
}

static void resolve_auto(int argc, char **argv, char **environment)
{
    static const char flag[] = "--max-model-len";
    for (int i = 0; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (strcmp(argv[i], "--max-model-len=auto") == 0) {
            replace(&argv[i], "--max-model-len=0");
        }
        const bool is_value = i > 0 && strcmp(argv[i - 1], flag) == 0;
        if (is_value && strcmp(argv[i], "auto") == 0) replace(&argv[i], "0");
    }
    for (char **variable = environment; *variable != NULL; variable++) {
        if (strcmp(*variable, "PIKV_MAX_MODEL_LEN=auto") == 0) {
            replace(variable, "PIKV_MAX_MODEL_LEN=0");
        }
    }
}

/* The sources, in copies that may be reordered. */
typedef struct sources {
    int argc;
    char **argv;        /* [argc] */
    char **environment; /* NULL-terminated */
} sources;

static void sources_deinit(sources *from)
{
    free(from->argv);
    free(from->environment);
}

static err_t sources_init(sources *from, int argc, char **argv, char *const *environment)
{
    size_t n_variables = 0;
    while (environment[n_variables] != NULL)
        n_variables++;
    *from = (sources){.argc = argc,
                      .argv = calloc((size_t)argc + 1, sizeof *argv),
                      .environment = calloc(n_variables + 1, sizeof *environment)};
    if (from->argv == NULL || from->environment == NULL) {
        sources_deinit(from);
        return ERR_NO_MEMORY;
    }
    for (int i = 0; i < argc; i++)
        from->argv[i] = argv[i];
    for (size_t i = 0; i < n_variables; i++)
        from->environment[i] = environment[i];
    resolve_auto(argc, from->argv, from->environment);
    return ERR_OK;
}

/* Environment, then arguments: they may only be read onto what is weaker. */
static err_t set_strong(server_settings *s, const sources *from, err_info *info)
{
    cfg_binding bindings[N_TABLES];
    bind_tables(s, bindings);
    TRY(cfg_set_environment(bindings, N_TABLES, from->environment, info));
    char **argv = calloc((size_t)from->argc + 1, sizeof *argv); /* reordered below */
    if (argv == NULL) return err_set(info, ERR_NO_MEMORY, "out of memory");
    memcpy(argv, from->argv, (size_t)from->argc * sizeof *argv);
    cfg_args args = {.argc = from->argc, .argv = argv, .aliases = aliases};
    err_t err = cfg_set_arguments(bindings, N_TABLES, &args, info);
    if (err == ERR_OK && args.n_positional > 1) {
        err = err_set(info, ERR_BAD_CONFIG, "unexpected argument \"%s\": the model is \"%s\"",
                      argv[1], argv[0]);
    } else if (err == ERR_OK && args.n_positional == 1) {
        err = cfg_set(bindings, N_TABLES, "model", argv[0], info);
    }
    free(argv);
    return err;
}

/* The name of the file, by a first reading of the strong sources. */
static err_t find_config_file(const sources *from, char **path, err_info *info)
{
    server_settings first = {0};
    cfg_binding bindings[N_TABLES];
    bind_tables(&first, bindings);
    *path = NULL;
    err_t err = cfg_defaults(bindings, N_TABLES);
    if (err == ERR_OK) err = set_strong(&first, from, info);
    if (err == ERR_OK) {
        *path = first.serve.config_file;
        first.serve.config_file = NULL;
    }
    cfg_deinit(bindings, N_TABLES);
    return err;
}

static err_t set_all(server_settings *s, const sources *from, err_info *info)
{
    cfg_binding bindings[N_TABLES];
    bind_tables(s, bindings);
    char *path;
    TRY(find_config_file(from, &path, info));
    err_t err = cfg_defaults(bindings, N_TABLES);
    if (err == ERR_OK && path != NULL) {
        const config_target target = {bindings, N_TABLES, aliases};
        err = config_yaml_load(&target, path, info);
        if (err == ERR_OK && s->serve.config_file != NULL) {
            err =
                err_set(info, ERR_BAD_CONFIG, "%s: a file cannot name another with `config`", path);
        }
    }
    free(path);
    if (err == ERR_OK) err = set_strong(s, from, info);
    return err;
}

static err_t refuse_parallel(const char *name, uint32_t n, err_info *info)
{
    if (n == 1) return ERR_OK;
    return err_set(
        info, ERR_BAD_CONFIG,
        "%s: %" PRIu32 " is not possible: ranks share experts and the KV cache (--ranks)", name, n);
}

static err_t derive_monitor_port(serve_config *serve, err_info *info)
{
    uint64_t port;
    serve->monitor_port_is_auto = strcmp(serve->monitor_port_text, "auto") == 0;
    if (serve->monitor_port_is_auto) {
        /* Any free one beside a port that is itself any, and beside the last. */
        const bool has_next = serve->port > 0 && serve->port < PORT_MAX;
        serve->monitor_port = has_next ? serve->port + 1 : 0;
        return ERR_OK;
    }
    if (cfg_parse_u64(serve->monitor_port_text, &port) != ERR_OK || port > PORT_MAX) {
        return err_set(info, ERR_BAD_CONFIG,
                       "monitor-port: \"%.40s\" is neither auto nor in [0, %d]",
                       serve->monitor_port_text, PORT_MAX);
    }
    serve->monitor_port = (uint32_t)port;
    return ERR_OK;
}

/* Each needs the other: a parser alone would do nothing. */
static err_t check_tools(const serve_config *serve, err_info *info)
{
    const char *name = serve->tool_call_parser;
    if (name == NULL && serve->auto_tool_choice)
        return err_set(info, ERR_BAD_CONFIG,
                       "enable-auto-tool-choice: --tool-call-parser must say how the model marks "
                       "calls");
    if (name == NULL) return ERR_OK;
    if (tool_find_parser(name) == NULL) {
        char known[128] = "";
        for (size_t i = 0, n = 0; tool_parsers[i] != NULL && n < sizeof known; i++)
            n += (size_t)snprintf(known + n, sizeof known - n, "%s%s", i > 0 ? ", " : "",
                                  tool_parsers[i]->name);
        return err_set(info, ERR_BAD_CONFIG, "tool-call-parser: \"%.40s\" is none of %s", name,
                       known);
    }
    if (serve->auto_tool_choice) return ERR_OK;
    return err_set(info, ERR_BAD_CONFIG,
                   "tool-call-parser: only with --enable-auto-tool-choice are calls looked for");
}

/* What no single row can say. */
static err_t check_together(server_settings *s, err_info *info)
{
    serve_config *serve = &s->serve;
    TRY(refuse_parallel("tensor-parallel-size", serve->tensor_parallel, info));
    TRY(refuse_parallel("pipeline-parallel-size", serve->pipeline_parallel, info));
    TRY(refuse_parallel("data-parallel-size", serve->data_parallel, info));
    if (serve->expert_parallel && s->place.n_ranks == 1) {
        return err_set(info, ERR_BAD_CONFIG,
                       "enable-expert-parallel: one rank holds all experts; --ranks N makes more");
    }
    TRY(check_tools(serve, info));
    for (size_t i = 0; i < serve->served_model_names.n_items; i++) {
        const char *name = serve->served_model_names.items[i];
        if (*name != '\0' && utf8_valid(name, strlen(name))) continue;
        return err_set(info, ERR_BAD_CONFIG, "served-model-name: a name is empty or not UTF-8");
    }
    return derive_monitor_port(serve, info);
}

err_t server_settings_load(server_settings *out, int argc, char **argv, char *const *environment,
                           err_info *info)
{
    sources from;
    *out = (server_settings){0};
    if (sources_init(&from, argc, argv, environment) != ERR_OK) {
        return err_set(info, ERR_NO_MEMORY, "out of memory");
    }
    err_t err = set_all(out, &from, info);
    if (err == ERR_OK) err = rank_place_find(&out->ranks, environment, &out->place, info);
    if (err == ERR_OK) err = check_together(out, info);
    sources_deinit(&from);
    return err;
}

void server_settings_deinit(server_settings *s)
{
    cfg_binding bindings[N_TABLES];
    bind_tables(s, bindings);
    cfg_deinit(bindings, N_TABLES);
}

void server_settings_print_help(FILE *out)
{
    server_settings none = {0};
    cfg_binding bindings[N_TABLES];
    bind_tables(&none, bindings);
    cfg_print_help(bindings, N_TABLES, out);
}

void server_settings_print(const server_settings *s, FILE *out)
{
    const cfg_binding bindings[N_TABLES] = {
        {&serve_config_table, (void *)(uintptr_t)&s->serve},
        {&engine_config_table, (void *)(uintptr_t)&s->engine},
        {&kv_config_table, (void *)(uintptr_t)&s->kv},
        {&ranks_config_table, (void *)(uintptr_t)&s->ranks},
        {&experts_config_table, (void *)(uintptr_t)&s->experts},
    };
    cfg_print_yaml(bindings, N_TABLES, out);
}
