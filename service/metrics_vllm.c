/* service/metrics_vllm.c - our numbers under vLLM's names (--metrics-compat vllm), so that dashboards,
 * autoscalers and routers that know those work unchanged. See metrics_page.h.
 *
 * Only what is the same quantity here is said, with vLLM's types, labels and edges; docs/metrics.md lists
 * what is left out and why. A sequence of ours is what vLLM counts as a request. `engine` numbers the
 * copies of a model behind one port; a group of ranks is one copy. */
#include "service/metrics_page.h"

#include <inttypes.h>

static const double TTFT[] = {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                              1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560};
static const double TOKEN[] = {.01, .025, .05, .075, .1,  .15, .2, .3, .4, .5,
                               .75, 1,    2.5, 5,    7.5, 10,  20, 40, 80};
static const double REQUEST[] = {.3, .5, .8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
static const double LENGTH[] = {1,    2,    5,    10,    20,    50,    100,    200,   500,
                                1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000};
static const double CHOICES[] = {1, 2, 5, 10, 20};
static const double STEP_TOKENS[] = {1,   8,    16,   32,   64,   128,  256,
                                     512, 1024, 2048, 4096, 8192, 16384};

/* Ours, and what vLLM calls it. */
typedef struct vllm_histogram {
    metric_histogram from;
    const char *name, *help;
    const double *edges;
    uint32_t n_edges;
} vllm_histogram;

#define ROW(id, name, edges, help)                                   \
    {                                                                \
        METRIC_##id, name, help, edges, sizeof edges / sizeof *edges \
    }
static const vllm_histogram HISTOGRAMS[] = {
    ROW(TTFT, "time_to_first_token_seconds", TTFT, "Arrival to first token"),
    ROW(ITL, "inter_token_latency_seconds", TOKEN, "Between two tokens of a sequence"),
    ROW(ITL, "time_per_output_token_seconds", TOKEN,
        "inter_token_latency_seconds, by the name it had in older versions"),
    ROW(TPOT, "request_time_per_output_token_seconds", TOKEN,
        "Mean time between two tokens of a sequence"),
    ROW(E2E, "e2e_request_latency_seconds", REQUEST, "Arrival to the end of a sequence"),
    ROW(QUEUE, "request_queue_time_seconds", REQUEST, "Arrival to the first step"),
    ROW(PREFILL, "request_prefill_time_seconds", REQUEST, "First step to first token"),
    ROW(DECODE, "request_decode_time_seconds", REQUEST, "First token to last"),
    ROW(INFERENCE, "request_inference_time_seconds", REQUEST, "First step to last token"),
    ROW(PROMPT_LENGTH, "request_prompt_tokens", LENGTH, "Prompt tokens per sequence"),
    ROW(OUTPUT_LENGTH, "request_generation_tokens", LENGTH, "Output tokens per sequence"),
    ROW(PREFILL_COMPUTED, "request_prefill_kv_computed_tokens", LENGTH,
        "Prompt tokens per sequence that the prefix cache did not have"),
    ROW(MAX_TOKENS, "request_params_max_tokens", LENGTH, "max_tokens of a sequence"),
    ROW(CHOICES, "request_params_n", CHOICES, "n of a request, once per prompt"),
    ROW(BATCH_TOKENS, "iteration_tokens_total", STEP_TOKENS, "Tokens of one step"),
};
#undef ROW

static void write_histograms(page *p, const metrics_gauges *g)
{
    for (size_t i = 0; i < sizeof HISTOGRAMS / sizeof *HISTOGRAMS; i++) {
        const vllm_histogram *row = &HISTOGRAMS[i];
        histogram_shape shape = {
            .family = row->name, .help = row->help, .edges = row->edges, .n_edges = row->n_edges};
        /* No sequence can be longer. */
        while (row->edges == LENGTH && shape.n_edges > 0 &&
               shape.edges[shape.n_edges - 1] > g->context_max)
            shape.n_edges--;
        page_family(p, row->name, "histogram", row->help);
        page_histogram(p, row->from, &shape);
    }
}

static void write_queue(page *p, const metrics_gauges *g)
{
    /* A sequence that was preempted is back in the queue for vLLM. */
    const uint32_t n_waiting = g->n_waiting + g->n_preempted;
    const page_value reasons[] = {{"capacity", n_waiting}, {"deferred", 0}};
    const page_value states[] = {{"awake", 1}, {"weights_offloaded", 0}, {"discard_all", 0}};
    page_gauge(p, "num_requests_running", g->n_running, "Sequences that own KV pages");
    page_gauge(p, "num_requests_waiting", n_waiting, "Sequences in the queue, preempted ones too");
    page_family(p, "num_requests_waiting_by_reason", "gauge",
                "The same by reason; nothing but room is waited for here");
    page_labelled(p, "num_requests_waiting_by_reason", "reason", reasons,
                  sizeof reasons / sizeof *reasons);
    page_family(p, "engine_sleep_state", "gauge", "Always awake: there is no sleep here");
    page_labelled(p, "engine_sleep_state", "sleep_state", states, sizeof states / sizeof *states);
}

static void write_cache(page *p, const metrics_gauges *g)
{
    const kv_stats *kv = &g->kv;
    const double used =
        kv->pool_budget_bytes > 0 ? (double)kv->used_bytes / (double)kv->pool_budget_bytes : 0;
    char labels[256];
    page_gauge(p, "kv_cache_usage_perc", used, "Share of the pool that sequences use, 0 to 1");
    page_gauge(p, "gpu_cache_usage_perc", used,
               "kv_cache_usage_perc, by the name it had in older versions");
    page_counter(p, "prefix_cache_queries_total", kv->prefix_query_tokens,
                 "Prompt tokens looked up in the prefix cache");
    page_counter(p, "prefix_cache_hits_total", kv->prefix_hit_tokens,
                 "Prompt tokens taken from the prefix cache");
    snprintf(labels, sizeof labels,
             "block_size=\"%" PRIu32 "\",cache_dtype=\"%s\",enable_prefix_caching=\"%s\","
             "num_gpu_blocks=\"%" PRIu64 "\"",
             g->page_tokens, g->kv_type == NULL ? "" : g->kv_type,
             g->has_prefix_cache ? "True" : "False",
             g->page_tokens > 0 ? g->capacity_tokens / g->page_tokens : 0);
    page_family(p, "cache_config_info", "gauge",
                "Settings of the KV cache; blocks times block size is its capacity in tokens");
    page_count(p, "cache_config_info", labels, 1);
}

static void write_counters(page *p)
{
    const metrics_now *now = p->now;
    const uint64_t n_prompt = now->counters[METRIC_PROMPT_TOKENS];
    const uint64_t n_cached = now->counters[METRIC_PROMPT_CACHED_TOKENS];
    /* The two are read one after the other, beside an engine that counts. */
    const uint64_t n_computed = n_prompt > n_cached ? n_prompt - n_cached : 0;
    const page_value sources[] = {{"local_compute", n_computed},
                                  {"local_cache_hit", n_prompt - n_computed},
                                  {"external_kv_transfer", 0}};
    const page_value reasons[] = {{"stop", now->outcomes[OUTCOME_STOP]},
                                  {"length", now->outcomes[OUTCOME_LENGTH]},
                                  {"abort", now->outcomes[OUTCOME_ABORT]},
                                  {"error", now->outcomes[OUTCOME_ERROR]}};
    page_counter(p, "num_preemptions_total", now->counters[METRIC_PREEMPTIONS],
                 "Sequences preempted because the KV pool was full");
    page_counter(p, "prompt_tokens_total", n_prompt, "Prompt tokens of admitted sequences");
    page_counter(p, "generation_tokens_total", now->counters[METRIC_GENERATION_TOKENS],
                 "Tokens generated");
    page_family(p, "prompt_tokens_by_source_total", "counter",
                "Prompt tokens of admitted sequences, by where their keys and values came from");
    page_labelled(p, "prompt_tokens_by_source_total", "source", sources,
                  sizeof sources / sizeof *sources);
    page_family(p, "request_success_total", "counter", "Sequences finished, by reason");
    page_labelled(p, "request_success_total", "finished_reason", reasons,
                  sizeof reasons / sizeof *reasons);
}

void metrics_text_vllm(const page *ours, const metrics_gauges *g)
{
    page p = *ours;
    p.prefix = "vllm:";
    p.labels = ",engine=\"0\"";
    write_queue(&p, g);
    write_cache(&p, g);
    write_counters(&p);
    write_histograms(&p, g);
}
