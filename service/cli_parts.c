/* service/cli_parts.c - see cli_parts.h. */
#include "service/cli_parts.h"

#include "base/check.h"
#include "base/clock.h"

#include <ctype.h>
#include <string.h>

static const char *const LOAD_FORMATS[] = {[MODEL_LOAD_AUTO] = "auto",
                                           [MODEL_LOAD_SAFETENSORS] = "safetensors",
                                           [MODEL_LOAD_DUMMY] = "dummy",
                                           NULL};

static const cfg_field parts_fields[] = {
    DEVICE_CONFIG_FIELDS(cli_parts_config),
    CFG_PICK(cli_parts_config, load_format, "load-format", LOAD_FORMATS, "auto",
             "where weights come from: auto, safetensors, dummy"),
    CFG_FLAG(cli_parts_config, help, "help", "false", "print this and exit"),
};

const cfg_table cli_parts_config_table = {.title = "Machine and model",
                                          .fields = parts_fields,
                                          .n_fields = sizeof parts_fields / sizeof parts_fields[0]};

/* PIKV_KV_PAGE_TOKENS=32 -> kv-page-tokens. False if it is no such variable, or too long to be one. */
static bool field_name_of(const char *variable, char *name, size_t name_bytes)
{
    static const char prefix[] = "PIKV_";
    const size_t prefix_bytes = sizeof prefix - 1;
    const char *equals = strchr(variable, '=');
    if (equals == NULL || strncmp(variable, prefix, prefix_bytes) != 0) return false;
    const size_t n_bytes = (size_t)(equals - variable) - prefix_bytes;
    if (n_bytes == 0 || n_bytes >= name_bytes) return false;
    for (size_t i = 0; i < n_bytes; i++) {
        const char c = variable[prefix_bytes + i];
        name[i] = c == '_' ? '-' : (char)tolower((unsigned char)c);
    }
    name[n_bytes] = '\0';
    return true;
}

static err_t read_environment(const cli_settings *s, char *const *environment, err_info *info)
{
    char name[96];
    for (size_t i = 0; environment != NULL && environment[i] != NULL; i++) {
        if (!field_name_of(environment[i], name, sizeof name)) continue;
        if (cfg_is_service_link(environment[i])) continue;
        if (cfg_find(s->bindings, s->n_bindings, name, NULL) == NULL) continue;
        const char *value = strchr(environment[i], '=') + 1;
        TRY(cfg_set(s->bindings, s->n_bindings, name, value, info));
    }
    return ERR_OK;
}

err_t cli_settings_read(cli_settings *s, int argc, char **argv, char *const *environment,
                        err_info *info)
{
    TRY(read_environment(s, environment, info));
    cfg_args args = {.argc = argc, .argv = argv, .aliases = s->aliases};
    TRY(cfg_set_arguments(s->bindings, s->n_bindings, &args, info));
    if (args.n_positional > 1) {
        return err_set(info, ERR_BAD_CONFIG, "%s takes one model directory, not also '%s'",
                       s->command, argv[1]);
    }
    s->model_dir = args.n_positional == 1 ? argv[0] : "models/storyteller";
    return ERR_OK;
}

void cli_print_help(const cli_settings *s, FILE *out)
{
    fprintf(out, "usage: %s\n\n", s->usage);
    cfg_print_help(s->bindings, s->n_bindings, out);
}

int cli_report_run(cli_report *report, int argc, char **argv, char *const *environment)
{
    cli_settings *const s = &report->settings;
    err_info info = {0};
    err_t err = cfg_defaults(s->bindings, s->n_bindings);
    if (err == ERR_OK) err = cli_settings_read(s, argc, argv, environment, &info);
    int status = err == ERR_OK ? CLI_EXIT_OK : CLI_EXIT_USAGE;
    if (err == ERR_OK && *report->help) {
        cli_print_help(s, stdout);
    } else if (err == ERR_OK) {
        err = report->run(report->config, s->model_dir, &info);
        if (err != ERR_OK)
            status = err == ERR_BAD_CONFIG ? report->status_of_bad_config : CLI_EXIT_FAILED;
    }
    if (err != ERR_OK)
        fprintf(stderr, "pikv %s: %s\n", s->command,
                info.code != ERR_OK ? info.message : err_sentence(err));
    cfg_deinit(s->bindings, s->n_bindings);
    return status;
}

static err_t open_cache(const cli_parts_wanted *wanted, cli_parts *out, err_info *info)
{
    const uint32_t n_positions = model_get_config(out->m)->n_positions;
    const kv_limits limits = {.n_seqs_max = wanted->n_seqs_max,
                              .n_step_tokens_max = wanted->n_step_tokens_max,
                              .n_seq_tokens_max =
                                  wanted->n_context_max > 0 ? wanted->n_context_max : n_positions};
    return kv_cache_open(out->d, wanted->kv, model_get_kv_shape(out->m), &limits, &out->cache,
                         info);
}

err_t cli_parts_open(const cli_parts_wanted *wanted, cli_parts *out, err_info *info)
{
    *out = (cli_parts){0};
    const uint64_t start_ns = clock_mono_ns();
    const device_config *device = &wanted->config->device;
    const device_user alone = {.n_here = 1, .n_threads = device->n_threads};
    TRY(device_open(device, &alone, &out->d, info));
    if (wanted->with_tokenizer) TRY(tokenizer_open(wanted->model_dir, &out->t, info));
    const model_options options = {.load = (model_load)wanted->config->load_format,
                                   .n_step_tokens_max = wanted->n_step_tokens_max,
                                   .n_positions_max = wanted->n_context_max};
    TRY(model_open(out->d, wanted->model_dir, &options, &out->m, info));
    if (out->t != NULL) TRY(tokenizer_check_vocab(out->t, model_get_config(out->m)->n_vocab, info));
    if (wanted->kv != NULL) TRY(open_cache(wanted, out, info));
    model_touch_weights(out->m);
    out->load_seconds = clock_seconds_since(start_ns);
    return ERR_OK;
}

void cli_parts_close(cli_parts *parts)
{
    kv_cache_close(parts->cache);
    model_close(parts->m);
    tokenizer_close(parts->t);
    dev_close(parts->d);
    *parts = (cli_parts){0};
}
