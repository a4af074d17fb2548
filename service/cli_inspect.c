/* service/cli_inspect.c - `pikv inspect`: what a model's folder holds, and whether it can be served. */
#include "service/cli_parts.h"
#include "service/inspect.h"

enum { CONTEXT_MAX = 1 << 24 };

typedef struct inspect_config {
    uint32_t n_context, n_seqs, n_step_tokens, n_threads;
    bool check, json, help;
} inspect_config;

static const cfg_field inspect_fields[] = {
    CFG_FLAG(inspect_config, check, "check", "false",
             "read every tensor once, and report NaN and Inf"),
    CFG_NUM32(inspect_config, n_context, "context", 0, CONTEXT_MAX, "0",
              "memory: tokens of each sequence; 0: the model's max_position_embeddings"),
    CFG_NUM32(inspect_config, n_seqs, "batch", 1, 4096, "1", "memory: sequences decoded together"),
    CFG_NUM32(inspect_config, n_step_tokens, "max-num-batched-tokens", 1, 65536, "512",
              "memory: tokens of the largest step"),
    CFG_NUM32(inspect_config, n_threads, "threads", 0, 1024, "0",
              "threads that read; 0: all processors"),
    CFG_FLAG(inspect_config, json, "json", "false", "one JSON object"),
    CFG_FLAG(inspect_config, help, "help", "false", "print this and exit"),
};

static const cfg_table inspect_config_table = {.title = "Inspection",
                                               .fields = inspect_fields,
                                               .n_fields = sizeof inspect_fields /
                                                           sizeof inspect_fields[0]};

static const cfg_alias aliases[] = {{"-t", "threads"}, {"-h", "help"}, {NULL, NULL}};

static err_t run_inspect(const inspect_config *config, const kv_config *kv, const char *dir,
                         err_info *info)
{
    inspect_request request = {.dir = dir,
                               .kv = kv,
                               .n_context = config->n_context,
                               .n_seqs = config->n_seqs,
                               .n_step_tokens = config->n_step_tokens,
                               .is_json = config->json};
    if (config->check) {
        const uint32_t n_threads = config->n_threads > 0 ? config->n_threads : threads_available();
        const err_t err = thread_pool_open(n_threads, &request.check);
        if (err != ERR_OK) return err_set(info, err, "threads: %s", err_sentence(err));
    }
    const err_t err = inspect_model(&request, stdout, info);
    thread_pool_close(request.check);
    return err;
}

int cli_inspect(int argc, char **argv, char *const *environment)
{
    inspect_config config = {0};
    kv_config kv = {0};
    const cfg_binding bindings[] = {{&inspect_config_table, &config}, {&kv_config_table, &kv}};
    const size_t n_bindings = sizeof bindings / sizeof bindings[0];
    cli_settings settings = {.command = "inspect",
                             .usage = "pikv inspect [MODEL_DIR] [--check] [--json] [flags]",
                             .bindings = bindings,
                             .n_bindings = n_bindings,
                             .aliases = aliases};
    err_info info = {0};
    err_t err = cfg_defaults(bindings, n_bindings);
    if (err == ERR_OK) err = cli_settings_read(&settings, argc, argv, environment, &info);
    int status = err == ERR_OK ? CLI_EXIT_OK : CLI_EXIT_USAGE;
    if (err == ERR_OK && config.help) {
        cli_print_help(&settings, stdout);
    } else if (err == ERR_OK) {
        err = run_inspect(&config, &kv, settings.model_dir, &info);
        if (err != ERR_OK) status = CLI_EXIT_FAILED;
    }
    if (err != ERR_OK)
        fprintf(stderr, "pikv inspect: %s\n",
                info.code != ERR_OK ? info.message : err_sentence(err));
    cfg_deinit(bindings, n_bindings);
    return status;
}
