/* service/server_config.h - all settings of `pikv serve`, gathered from four sources.
 *
 * Command line over environment (PIKV_*) over YAML file (--config) over default. Each module owns its own
 * table; this one holds those of the server itself. */
#ifndef SERVICE_SERVER_CONFIG_H
#define SERVICE_SERVER_CONFIG_H

#include "base/config.h"
#include "kvcache/kv_config.h"
#include "service/device_config.h"
#include "service/engine.h"
#include "service/rank_place.h"

/* Whose sampling a request gets that says none. */
typedef enum generation_source { GENERATION_AUTO, GENERATION_VLLM } generation_source;

typedef struct serve_config {
    char *model_dir;         /* positional, or --model; default models/storyteller */
    char *host;              /* 127.0.0.1 */
    uint32_t port;           /* 8000; 0: any, printed */
    bool monitor;            /* --monitor: second listener, health and metrics only; on */
    bool dashboard;          /* --dashboard: the page at /; on */
    char *monitor_host;      /* NULL: host */
    char *monitor_port_text; /* --monitor-port: "auto" (port + 1), or a number; 0: any, printed */
    cfg_strings served_model_names; /* --served-model-name; default: last part of model_dir */
    cfg_strings api_keys;           /* --api-key */
    char *api_key_file;             /* one key a line */
    uint32_t load_format;           /* model_load: auto, safetensors, dummy */
    uint32_t generation;            /* --generation-config: generation_source */
    char *chat_template_file;       /* --chat-template; NULL: the model's own */
    uint32_t content_format;        /* --chat-template-content-format: chat_content_format */
    char *tool_call_parser;         /* --tool-call-parser: of tool_parsers; NULL: none */
    bool auto_tool_choice;          /* --enable-auto-tool-choice: only with a parser */
    device_config device;
    uint64_t body_bytes_max;         /* --max-body-bytes */
    uint32_t n_connections_max;      /* --max-connections */
    uint32_t request_timeout_s;      /* --request-timeout; 0: none */
    uint32_t shutdown_timeout_s;     /* --shutdown-timeout, 30 */
    uint32_t stream_write_timeout_s; /* --stream-write-timeout */
    uint32_t n_logprobs_max;         /* --max-logprobs, 20 */
    uint32_t n_choices_max;          /* --max-choices: n x prompts of one request */
    uint32_t metrics_compat;         /* as in service/metrics.h */
    uint32_t log_level, log_format;  /* as in base/log.h */
    uint32_t tensor_parallel, pipeline_parallel, data_parallel; /* accepted as 1 */
    bool expert_parallel; /* what ranks do in any case; refused with one */
    char *config_file;    /* --config */
    bool check;           /* --check: validate the model and leave */
    bool print_config;    /* --print-config: show the settings and leave */

    /* Derived, not in the table: */
    uint32_t monitor_port;
    bool monitor_port_is_auto;
} serve_config;

extern const cfg_table serve_config_table;

/* Everything that `pikv serve` can be told. */
typedef struct server_settings {
    serve_config serve;
    engine_config engine;
    kv_config kv;
    ranks_config ranks;
    experts_config experts;
    rank_place place; /* derived, from the environment too, which it borrows from */
} server_settings;

/* Defaults, then file, environment and arguments in rising strength. argv[0] is the first word after
 * "serve". Close with server_settings_deinit also after a failure. ERR_BAD_CONFIG, ERR_NOT_FOUND (an
 * unknown setting), ERR_IO (no such file). */
err_t server_settings_load(server_settings *out, int argc, char **argv, char *const *environment,
                           err_info *info) MUST_CHECK;
void server_settings_deinit(server_settings *s);
void server_settings_print_help(FILE *out);
void server_settings_print(const server_settings *s, FILE *out);

/* Sets what a YAML file says: one flat mapping from keys to scalars or lists of scalars. ERR_IO,
 * ERR_NO_MEMORY, ERR_BAD_CONFIG and ERR_NOT_FOUND with file and line: syntax, duplicate and unknown
 * keys, nesting, anchors and aliases (a bomb's means), more than one document. `aliases` as in cfg_args. */
typedef struct config_target {
    const cfg_binding *bindings;
    size_t n_bindings;
    const cfg_alias *aliases; /* NULL allowed */
} config_target;
err_t config_yaml_load(const config_target *target, const char *path, err_info *info) MUST_CHECK;
/* The same for text in memory; `name` stands for the file in messages. */
err_t config_yaml_parse(const config_target *target, const char *name, const char *text,
                        size_t text_bytes, err_info *info) MUST_CHECK;

#endif
