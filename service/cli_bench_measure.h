/* service/cli_bench_measure.h - what `pikv bench` measures: read bandwidth, prompt speed, decode speed.
 *
 * Bytes of a decode step, by count: every dense weight once, the weights of every expert that at least
 * one token of the step was routed to (counted from the router's choices, not assumed), the embedding
 * rows, and what attention read of the cache (kv_stats). Activations, a few KiB, are left out, so the
 * share of the bound is slightly understated.
 *
 *   share of the bound = (bytes of the step / seconds of the step) / read bandwidth */
#ifndef SERVICE_CLI_BENCH_MEASURE_H
#define SERVICE_CLI_BENCH_MEASURE_H

#include "model/sampler.h"
#include "service/cli_parts.h"
#include "service/plan_model.h"

/* Memory of the device, larger than any cache: a CPU's threads read it, a device with memory of its own adds one
 * array of `bytes` to another. */
typedef struct bandwidth_probe {
    dev *d;
    uint8_t *buffer;         /* NULL on a device with memory of its own, */
    void *there, *there_too; /* which has these */
    size_t bytes;
} bandwidth_probe;
err_t bandwidth_probe_open(dev *d, size_t bytes, bandwidth_probe *out, err_info *info) MUST_CHECK;
void bandwidth_probe_close(bandwidth_probe *probe);
/* Bytes per second over whole passes that take `seconds` or more. */
double bandwidth_probe_run(const bandwidth_probe *probe, double seconds);

typedef struct bench_run {
    const cli_parts *parts;
    plan_weights weights; /* bytes that a step reads */
    uint32_t n_seqs;      /* sequences held */
    uint32_t n_context;   /* tokens in each before decoding */
    uint32_t n_step_tokens_max;
    kv_seq **seqs;                /* [n_seqs] */
    float *logits;                /* [MODEL_LOGIT_ROWS_MAX][n_vocab] */
    uint32_t *tokens, *positions; /* [n_step_tokens_max] */
    kv_row *rows;                 /* [n_seqs] */
    uint8_t *is_active;           /* [n_experts]; of the present layer */
    uint64_t n_active;            /* distinct experts, summed over layers */
    uint8_t *scratch;             /* [n_threads][scratch_bytes] */
    size_t scratch_bytes;
} bench_run;

/* Opens the sequences and fills each with n_context tokens. */
err_t bench_run_open(const cli_parts *parts, bench_run *r, err_info *info) MUST_CHECK;
void bench_run_close(bench_run *r);

typedef struct bench_result {
    double seconds;
    uint64_t n_tokens;
    double weight_bytes, kv_bytes; /* read, in total */
    double experts_per_layer;      /* distinct ones, mean over layers and steps */
} bench_result;

/* `n_steps` decode steps of the first `n_seqs` sequences, which are cut back afterwards. */
err_t bench_decode(bench_run *r, uint32_t n_seqs, uint32_t n_steps, bench_result *out) MUST_CHECK;

/* A prompt of n_tokens in one fresh sequence. */
err_t bench_prompt(bench_run *r, uint32_t n_tokens, bench_result *out) MUST_CHECK;

#endif
