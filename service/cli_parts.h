/* service/cli_parts.h - what the commands without HTTP have in common: settings, and the parts that
 * they open in the same order.
 *
 * Settings are read as `serve` reads them (flag over PIKV_* variable over default); variables of `serve`
 * that a command does not know are left alone, since one environment often serves both. */
#ifndef SERVICE_CLI_PARTS_H
#define SERVICE_CLI_PARTS_H

#include "base/config.h"
#include "kvcache/kv_cache.h"
#include "model/model.h"
#include "model/tokenizer.h"
#include "service/cli.h"
#include "service/device_config.h"

#include <stdbool.h>

typedef struct cli_parts_config {
    device_config device;
    uint32_t load_format; /* --load-format, a model_load */
    bool help;
} cli_parts_config;
extern const cfg_table cli_parts_config_table;

typedef struct cli_settings {
    const char *command; /* "generate": for messages and help */
    const char *usage;   /* "pikv generate MODEL_DIR -p TEXT [flags]" */
    const cfg_binding *bindings;
    size_t n_bindings;
    const cfg_alias *aliases;
    const char *model_dir; /* out; borrowed from argv */
} cli_settings;

/* Environment and arguments over what the structs hold already (see cfg_defaults). */
err_t cli_settings_read(cli_settings *s, int argc, char **argv, char *const *environment,
                        err_info *info) MUST_CHECK;
void cli_print_help(const cli_settings *s, FILE *out);

/* A command that only reports: defaults, settings, then its help or its work, and what went wrong in one line. `config` is
 * handed on. Frees what the bindings hold. */
typedef struct cli_report {
    cli_settings settings;
    const bool *help; /* the flag, once settings are read */
    void *config;
    err_t (*run)(void *config, const char *model_dir, err_info *info);
    int status_of_bad_config; /* when `run` returns ERR_BAD_CONFIG */
} cli_report;
int cli_report_run(cli_report *report, int argc, char **argv, char *const *environment);

typedef struct cli_parts {
    dev *d;
    tokenizer *t; /* NULL unless wanted */
    model *m;
    kv_cache *cache; /* NULL unless wanted */
    double load_seconds;
} cli_parts;

typedef struct cli_parts_wanted {
    const cli_parts_config *config;
    const kv_config *kv; /* NULL: without a cache */
    const char *model_dir;
    bool with_tokenizer;
    uint32_t n_seqs_max, n_step_tokens_max;
    uint32_t n_context_max; /* 0: the model's */
} cli_parts_wanted;

err_t cli_parts_open(const cli_parts_wanted *wanted, cli_parts *out, err_info *info) MUST_CHECK;
void cli_parts_close(cli_parts *parts); /* also half-opened */

#endif
