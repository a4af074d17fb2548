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

typedef struct inspect_settings {
    inspect_config inspect;
    kv_config kv;
} inspect_settings;

static err_t run(void *config, const char *model_dir, err_info *info)
{
    const inspect_settings *const settings = config;
    return run_inspect(&settings->inspect, &settings->kv, model_dir, info);
}

int cli_inspect(int argc, char **argv, char *const *environment)
{
    inspect_settings settings = {0};
    const cfg_binding bindings[] = {{&inspect_config_table, &settings.inspect},
                                    {&kv_config_table, &settings.kv}};
    cli_report report = {
        .settings = {.command = "inspect",
                     .usage = "pikv inspect [MODEL_DIR] [--check] [--json] [flags]",
                     .bindings = bindings,
                     .n_bindings = sizeof bindings / sizeof bindings[0],
                     .aliases = aliases},
        .help = &settings.inspect.help,
        .config = &settings,
        .run = run,
        .status_of_bad_config = CLI_EXIT_FAILED};
    return cli_report_run(&report, argc, argv, environment);
}
