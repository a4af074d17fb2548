/* service/server_config.h - all settings of `pikv serve`, gathered from four sources.
 *
 * Command line over environment (PIKV_*) over YAML file (--config) over default. Each module owns its own table;
 * this one holds those of the server itself. */
#ifndef SERVICE_SERVER_CONFIG_H
#define SERVICE_SERVER_CONFIG_H

#include "base/config.h"
#include "kvcache/kv_config.h"
#include "service/engine.h"

typedef struct serve_config {
    char *model_dir;                 /* positional, or --model; default models/storyteller */
    char *host;                      /* 127.0.0.1 */
    uint32_t port;                   /* 8000; 0: any, printed */
    char *monitor_host;              /* second listener: health and metrics only */
    uint32_t monitor_port;           /* --monitor-port; 0: any, printed */
    bool monitor;                    /* --monitor: run the second listener; off by default, since /metrics is on the first one too */
    cfg_strings served_model_names;  /* --served-model-name; default: last part of model_dir */
    cfg_strings api_keys;            /* --api-key */
    char *api_key_file;              /* one key a line */
    char *load_format;               /* auto, safetensors, dummy */
    char *isa;                       /* auto, ref, avx2, avx512 */
    uint32_t n_threads;              /* 0: all */
    uint64_t body_bytes_max;         /* --max-body-bytes */
    uint32_t n_connections_max;      /* --max-connections */
    uint32_t request_timeout_s;      /* --request-timeout; 0: none */
    uint32_t shutdown_timeout_s;     /* --shutdown-timeout, 30 */
    uint32_t stream_write_timeout_s; /* --stream-write-timeout */
    uint32_t n_logprobs_max;         /* --max-logprobs, 20 */
    uint32_t n_choices_max;          /* n x prompts of one request */
    uint32_t log_level, log_format;  /* choices */
    char *config_file;               /* --config */
    bool check;                      /* --check */
    bool print_config;               /* --print-config */
} serve_config;

extern const cfg_table serve_config_table;

/* Everything that `pikv serve` can be told. */
typedef struct server_settings {
    serve_config serve;
    engine_config engine;
    kv_config kv;
} server_settings;

/* Defaults, then file, environment and arguments in rising strength. argv[0] is the first word after
 * "serve". Close with server_settings_deinit also after a failure. */
err_t server_settings_load(server_settings *out, int argc, char **argv, char *const *environment,
                           err_info *info) MUST_CHECK;
void server_settings_deinit(server_settings *s);
void server_settings_print_help(FILE *out);
void server_settings_print(const server_settings *s, FILE *out);

#endif
