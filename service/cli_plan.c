/* service/cli_plan.c - `pikv plan`: what a model needs and how fast it can be, from its config.json alone. */
#include "model/experts_config.h"
#include "service/cli_parts.h"
#include "service/plan_report.h"

#include <stdlib.h>

/* Where the field takes 0 for the model's. */
enum { CONTEXT_MAX = 1 << 24 };

typedef struct plan_config {
    uint32_t n_context, n_seqs, n_ranks, n_redundant, n_step_tokens;
    double bandwidth, link_bandwidth, link_latency;
    uint32_t device;    /* 1: cuda */
    uint64_t gpu_bytes; /* 0: unknown */
    double gpu_share;
    bool json, help;
} plan_config;

static const char *const devices[] = {"cpu", "cuda", NULL};

static const cfg_field plan_fields[] = {
    CFG_NUM32(plan_config, n_context, "context", 0, CONTEXT_MAX, "0",
              "tokens of each sequence; 0: the model's max_position_embeddings"),
    CFG_NUM32(plan_config, n_seqs, "batch", 1, 4096, "1", "sequences decoded together"),
    CFG_NUM32(plan_config, n_ranks, "ranks", 1, KV_SHARDS_MAX, "1",
              "ranks: each has experts, and at least one shard of the cache"),
    CFG_NUM32(plan_config, n_redundant, "num-redundant-experts", 0, EXPERT_SLOTS_MAX, "0",
              "replicas of experts in every layer"),
    CFG_NUM32(plan_config, n_step_tokens, "max-num-batched-tokens", 1, 65536, "512",
              "tokens of the largest step, for staging; at least --batch are taken"),
    CFG_REAL(plan_config, bandwidth, "bandwidth", 1, 1e18, "3.35e12",
             "bytes per second that a rank reads of its memory; default: an H100 SXM's data sheet"),
    CFG_REAL(plan_config, link_bandwidth, "link-bandwidth", 1, 1e18, "4.5e11",
             "bytes per second that a rank receives; default: NVLink of an H100, one way"),
    CFG_REAL(plan_config, link_latency, "link-latency", 0, 60, "1e-05",
             "seconds of the smallest collective; default: about NCCL's inside one machine"),
    CFG_PICK(plan_config, device, "device", devices, "cpu",
             "cuda: what a GPU of a rank holds is planned as well"),
    CFG_NUM64(plan_config, gpu_bytes, "gpu-memory-bytes", 0, 1e18, "0",
              "cuda: memory of the GPU, to say what would not fit; 0: unknown"),
    CFG_REAL(plan_config, gpu_share, "gpu-memory-utilization", 0.01, 1, "0.9",
             "cuda: share of it that may be in use"),
    CFG_FLAG(plan_config, json, "json", "false", "one JSON object"),
    CFG_FLAG(plan_config, help, "help", "false", "print this and exit"),
};

static const cfg_table plan_config_table = {
    .title = "Plan", .fields = plan_fields, .n_fields = sizeof plan_fields / sizeof plan_fields[0]};

static const cfg_alias aliases[] = {{"-h", "help"}, {NULL, NULL}};

static err_t plan_cache_for(const plan_config *config, const kv_config *kv, const char *dir,
                            const model_config *about, plan_input *in, err_info *info)
{
    plan_kv_shape shape;
    err_t err = plan_kv_shape_init(about, dir, &shape, info);
    const plan_cache_input input = {
        .config = kv,
        .shape = &shape.shape,
        .n_tokens = in->n_tokens,
        .n_seqs = in->n_seqs,
        .n_step_tokens = config->n_step_tokens > in->n_seqs ? config->n_step_tokens : in->n_seqs,
        .n_ranks = in->n_ranks};
    if (err == ERR_OK) err = plan_cache_of(&input, &in->cache, info);
    const plan_device_input device = {.model = about,
                                      .kv = kv,
                                      .shape = &shape.shape,
                                      .weights = &in->weights,
                                      .cache = &in->cache,
                                      .n_tokens = in->n_tokens,
                                      .n_seqs = in->n_seqs,
                                      .n_step_tokens = input.n_step_tokens,
                                      .n_ranks = in->n_ranks,
                                      .n_redundant = in->n_redundant,
                                      .memory_bytes = config->gpu_bytes,
                                      .memory_share = config->gpu_share};
    if (err == ERR_OK && config->device == 1) err = plan_device_of(&device, &in->device, info);
    plan_kv_shape_deinit(&shape);
    return err;
}

static err_t print(const plan_report *report, bool is_json, err_info *info)
{
    if (is_json) {
        char *text = plan_report_json(report);
        if (text == NULL) return err_set(info, ERR_NO_MEMORY, "plan: out of memory");
        puts(text);
        free(text);
    } else {
        plan_report_print(report, stdout);
    }
    if (fflush(stdout) == 0 && !ferror(stdout)) return ERR_OK;
    return err_set(info, ERR_IO, "plan: standard output cannot be written");
}

static err_t run_plan(const plan_config *config, const kv_config *kv, const char *dir,
                      err_info *info)
{
    model_config about;
    plan_result result;
    plan_report report;
    if (config->gpu_bytes > 0 && config->device == 0)
        return err_set(info, ERR_BAD_CONFIG,
                       "gpu-memory-bytes: there is no GPU; --device cuda has one");
    TRY(model_config_read(dir, &about, info));
    plan_input in = {.n_layers = about.n_layers,
                     .d_model = about.d_model,
                     .n_heads = about.n_heads,
                     .head_dim = model_value_dim(&about),
                     .n_experts = about.n_experts,
                     .top_k = about.top_k,
                     .n_tokens = config->n_context > 0 ? config->n_context : about.n_positions,
                     .n_seqs = config->n_seqs,
                     .n_ranks = config->n_ranks,
                     .n_redundant = config->n_redundant,
                     .page_tokens = kv->page_tokens,
                     .bandwidth = config->bandwidth,
                     .link_bandwidth = config->link_bandwidth,
                     .link_latency = config->link_latency};
    TRY(plan_weights_of(&about, &in.weights, info));
    TRY(plan_cache_for(config, kv, dir, &about, &in, info));
    TRY(plan_make(&in, &result, info));
    plan_report_fill(&(plan_report_source){dir, &about, kv, &in, &result}, &report);
    return print(&report, config->json, info);
}

typedef struct plan_settings {
    plan_config plan;
    kv_config kv;
} plan_settings;

static err_t run(void *config, const char *model_dir, err_info *info)
{
    const plan_settings *const settings = config;
    return run_plan(&settings->plan, &settings->kv, model_dir, info);
}

int cli_plan(int argc, char **argv, char *const *environment)
{
    plan_settings settings = {0};
    const cfg_binding bindings[] = {{&plan_config_table, &settings.plan},
                                    {&kv_config_table, &settings.kv}};
    cli_report report = {
        .settings = {.command = "plan",
                     .usage = "pikv plan [MODEL_DIR] --context N --ranks G [flags]",
                     .bindings = bindings,
                     .n_bindings = sizeof bindings / sizeof bindings[0],
                     .aliases = aliases},
        .help = &settings.plan.help,
        .config = &settings,
        .run = run,
        .status_of_bad_config = CLI_EXIT_USAGE};
    return cli_report_run(&report, argc, argv, environment);
}
