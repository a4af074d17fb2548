/* service/metrics.h - what the server counts, and how Prometheus reads it.
 *
 * Counters, gauges and histograms are rows of tables; each is a set of atomics, so that counting is
 * one relaxed add and a scrape never waits for the engine. Counters only grow and are never reset by
 * a scrape. Text format 0.0.4; base units; no label takes a value from a client.
 *
 * Threads: any. Tables with labels of fixed sets (outcome, reason, phase, layer, expert) are sized at
 * open. */
#ifndef SERVICE_METRICS_H
#define SERVICE_METRICS_H

#include "base/error.h"
#include "kvcache/kv_methods.h"
#include "kvcache/kv_stats.h"
#include "service/rank_report.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct metrics metrics;

/* Whose names the page shows beside ours: --metrics-compat. */
typedef enum metrics_compat { METRICS_COMPAT_NONE, METRICS_COMPAT_VLLM } metrics_compat;

typedef struct metrics_shape {
    const char *model_name; /* label model_name; copied */
    uint32_t n_layers, n_experts;
    metrics_compat compat;
} metrics_shape;
err_t metrics_open(const metrics_shape *shape, metrics **out) MUST_CHECK;
void metrics_close(metrics *m); /* NULL is fine */

/* While paused nothing but refusals is counted: the warm-up before ready is nobody's request. */
void metrics_pause(metrics *m, bool is_paused);

#define METRIC_COUNTERS(X)                                                                         \
    X(PROMPT_TOKENS, "prompt_tokens_total",                                                        \
      "Prompt tokens of admitted sequences, cached ones included")                                 \
    X(PROMPT_CACHED_TOKENS, "prompt_cached_tokens_total",                                          \
      "Prompt tokens of admitted sequences that the prefix cache had")                             \
    X(GENERATION_TOKENS, "generation_tokens_total", "Tokens generated")                            \
    X(PREEMPTIONS, "preemptions_total", "Sequences preempted because the KV pool was full")        \
    X(CLIENT_DISCONNECTS, "client_disconnects_total", "Requests whose client left before the end") \
    X(STEPS, "engine_steps_total", "Steps of the engine")

#define METRIC_HISTOGRAMS(X)                                                                       \
    X(TTFT, "time_to_first_token_seconds", "Arrival to first token")                               \
    X(ITL, "inter_token_latency_seconds", "Between two tokens of a sequence")                      \
    X(E2E, "e2e_request_latency_seconds", "Arrival to the end of a sequence")                      \
    X(QUEUE, "request_queue_time_seconds", "Arrival to the first step")                            \
    X(PREFILL, "request_prefill_time_seconds", "First step to first token")                        \
    X(DECODE, "request_decode_time_seconds", "First token to last")                                \
    X(INFERENCE, "request_inference_time_seconds", "First step to last token")                     \
    X(TPOT, "request_time_per_output_token_seconds", "Mean time between two tokens of a sequence") \
    X(PROMPT_LENGTH, "request_prompt_tokens", "Prompt tokens per sequence")                        \
    X(OUTPUT_LENGTH, "request_generation_tokens", "Output tokens per sequence")                    \
    X(PREFILL_COMPUTED, "request_prefill_computed_tokens",                                         \
      "Prompt tokens per sequence that the prefix cache did not have")                             \
    X(MAX_TOKENS, "request_params_max_tokens", "max_tokens of a sequence")                         \
    X(CHOICES, "request_params_n", "n of a request, once per prompt")                              \
    X(BATCH_TOKENS, "batch_tokens", "Tokens of one step")                                          \
    X(STEP_PREFILL, "step_seconds", "Duration of a step; prefill: with prompt tokens")             \
    X(STEP_DECODE, "step_seconds", "Duration of a step; decode: without")

/* Neighbours of one name are one family, told apart by the label phase. */
typedef enum metric_counter {
#define X(id, name, help) METRIC_##id,
    METRIC_COUNTERS(X)
#undef X
        METRIC_COUNTER_COUNT
} metric_counter;

typedef enum metric_histogram {
#define X(id, name, help) METRIC_##id,
    METRIC_HISTOGRAMS(X)
#undef X
        METRIC_HISTOGRAM_COUNT
} metric_histogram;

typedef enum metric_outcome {
    OUTCOME_STOP,
    OUTCOME_LENGTH,
    OUTCOME_ABORT,
    OUTCOME_ERROR,
    OUTCOME_COUNT
} metric_outcome;
typedef enum metric_reject {
    REJECT_BAD_REQUEST,
    REJECT_AUTH,
    REJECT_NOT_FOUND,
    REJECT_TOO_LARGE,
    REJECT_QUEUE_FULL,
    REJECT_DRAINING,
    REJECT_COUNT
} metric_reject;

void metrics_add(metrics *m, metric_counter counter, uint64_t n);
void metrics_observe(metrics *m, metric_histogram histogram, double value);
void metrics_count_outcome(metrics *m, metric_outcome outcome);
void metrics_count_methods(metrics *m, const kv_methods *methods); /* beside an outcome */
void metrics_count_reject(metrics *m, metric_reject reason);
/* Router's choices of one layer: chosen [n_tokens][top_k]. */
void metrics_count_experts(metrics *m, uint32_t layer, const uint32_t *chosen, uint32_t n_tokens,
                           uint32_t top_k);

/* Values that others own, read at the moment of the scrape. */
typedef struct metrics_gauges {
    uint32_t n_running, n_waiting, n_preempted;
    uint32_t http_active;
    uint64_t weight_bytes, scratch_bytes;
    double load_seconds; /* exec to ready */
    bool is_ready;
    kv_stats kv;
    const char *dev_name, *kv_type; /* labels of build_info and cache_config_info */
    uint32_t page_tokens, context_max;
    bool has_prefix_cache;
    uint64_t capacity_tokens; /* of pool and tiers, when they were opened */
    const rank_report *ranks; /* [n_ranks] */
    uint32_t n_ranks;
} metrics_gauges;

/* The whole page into a fresh heap string (length out). Includes process_* and build_info. */
err_t metrics_write(const metrics *m, const metrics_gauges *gauges, char **text,
                    size_t *n_bytes) MUST_CHECK;

uint64_t metrics_read(const metrics *m, metric_counter counter);

#endif
