/* service/server_config.c - the table of the server's own settings. See server_config.h. */
#include "service/server_config.h"

static const char *const load_formats[] = {"auto", "safetensors", "dummy", NULL}; /* model_load */
static const char *const generations[] = {"auto", "vllm", NULL}; /* generation_source */
static const char *const content_formats[] = {"auto", "string", "openai",
                                              NULL}; /* chat_content_format */
static const char *const log_levels[] = {"error", "warn", "info", "debug", NULL}; /* log_level */
static const char *const log_formats[] = {"text", "json", NULL};                  /* log_format */
static const char *const compats[] = {"none", "vllm", NULL}; /* metrics_compat */

#define S serve_config
static const cfg_field fields[] = {
    CFG_TEXT(S, model_dir, "model", "models/storyteller", "DIR",
             "folder of the model (or positional)"),
    CFG_LIST(S, served_model_names, "served-model-name", NULL, "NAME",
             "names that requests may use; replies show the first (default: last part of DIR)"),
    CFG_PICK(S, load_format, "load-format", load_formats, "auto", "where weights come from"),
    CFG_PICK(S, generation, "generation-config", generations, "auto",
             "sampling of requests that say none: the model's generation_config.json, or vllm's"),
    CFG_TEXT(S, chat_template_file, "chat-template", NULL, "FILE",
             "Jinja template of chats (default: the model's)"),
    CFG_PICK(S, content_format, "chat-template-content-format", content_formats, "auto",
             "messages' contents as texts or as lists of parts; auto: as the template reads them"),
    CFG_FLAG(S, auto_tool_choice, "enable-auto-tool-choice", "false",
             "chats may bring tools; calls are found by --tool-call-parser"),
    CFG_TEXT(S, tool_call_parser, "tool-call-parser", NULL, "NAME",
             "how the model marks calls: deepseek_v3, granite, hermes or mistral"),
    DEVICE_CONFIG_FIELDS(S),
    CFG_TEXT(S, host, "host", "127.0.0.1", "ADDRESS", "address to listen on"),
    CFG_NUM32(S, port, "port", 0, 65535, "8000", "port; 0: any free one, see the log"),
    CFG_FLAG(S, monitor, "monitor", "true", "second listener with health and metrics only"),
    CFG_FLAG(S, dashboard, "dashboard", "true",
             "page at / that shows the server, and a playground"),
    CFG_TEXT(S, monitor_host, "monitor-host", NULL, "ADDRESS", "its address (default: --host)"),
    CFG_TEXT(S, monitor_port_text, "monitor-port", "auto", "N", "its port; auto: port + 1; 0: any"),
    CFG_LIST(S, api_keys, "api-key", NULL, "KEY", "keys that clients must show; visible in ps"),
    CFG_TEXT(S, api_key_file, "api-key-file", NULL, "FILE", "file with one key a line"),
    CFG_NUM64(S, body_bytes_max, "max-body-bytes", 1024, 1073741824, "8Mi", "largest request body"),
    CFG_NUM32(S, n_connections_max, "max-connections", 1, 65536, "1024", "beyond it: 503"),
    CFG_NUM32(S, request_timeout_s, "request-timeout", 0, 86400, "600",
              "seconds from arrival to the end of a request; 0: none"),
    CFG_NUM32(S, stream_write_timeout_s, "stream-write-timeout", 1, 3600, "30",
              "seconds that a client may leave a reply unread"),
    CFG_NUM32(S, shutdown_timeout_s, "shutdown-timeout", 0, 3600, "30",
              "seconds that running requests get after SIGTERM"),
    CFG_NUM32(S, n_logprobs_max, "max-logprobs", 0, 20, "20", "largest `logprobs` of a request"),
    CFG_NUM32(S, n_choices_max, "max-choices", 1, 65536, "256", "n times prompts of one request"),
    CFG_PICK(S, metrics_compat, "metrics-compat", compats, "none",
             "whose metric names /metrics shows beside its own"),
    CFG_PICK(S, log_level, "log-level", log_levels, "info", "least important level shown"),
    CFG_PICK(S, log_format, "log-format", log_formats, "text", "form of the log's lines"),
    CFG_NUM32(S, tensor_parallel, "tensor-parallel-size", 1, 1024, "1", "only 1 in this build"),
    CFG_NUM32(S, pipeline_parallel, "pipeline-parallel-size", 1, 1024, "1", "only 1 in this build"),
    CFG_NUM32(S, data_parallel, "data-parallel-size", 1, 1024, "1", "only 1 in this build"),
    CFG_FLAG(S, expert_parallel, "enable-expert-parallel", "false",
             "ranks always share the experts: only with --ranks"),
    CFG_TEXT(S, config_file, "config", NULL, "FILE", "YAML file: the keys are the names of flags"),
    CFG_FLAG(S, check, "check", "false", "validate the model, every value of it, and leave"),
    CFG_FLAG(S, print_config, "print-config", "false", "print the settings as YAML and leave"),
};
#undef S

const cfg_table serve_config_table = {"Server", fields, sizeof fields / sizeof fields[0]};
