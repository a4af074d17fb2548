/* service/cli_bench_measure.c - see cli_bench_measure.h. */
#include "service/cli_bench_measure.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/random.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* ---- bandwidth ---------------------------------------------------------------------------------- */

enum { PROBE_GRAIN = 1 << 20 };

static err_t open_device_probe(bandwidth_probe *out, err_info *info)
{
    TRY(dev_alloc(out->d, out->bytes, &out->there, info));
    return dev_alloc(out->d, out->bytes, &out->there_too, info);
}

err_t bandwidth_probe_open(dev *d, size_t bytes, bandwidth_probe *out, err_info *info)
{
    *out = (bandwidth_probe){.d = d, .bytes = round_up(bytes, PROBE_GRAIN)};
    if (d->memory != NULL) return open_device_probe(out, info);
    void *buffer =
        mmap(NULL, out->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (buffer == MAP_FAILED)
        return err_set(info, ERR_NO_MEMORY, "probe-bytes: no memory for %zu bytes", out->bytes);
    madvise(buffer, out->bytes, MADV_HUGEPAGE); /* the bound must not be lowered by page walks */
    memset(buffer, 1, out->bytes);              /* otherwise all pages are the one zero page */
    out->buffer = buffer;
    return ERR_OK;
}

void bandwidth_probe_close(bandwidth_probe *probe)
{
    if (probe->buffer != NULL) munmap(probe->buffer, probe->bytes);
    if (probe->d != NULL) dev_free(probe->d, probe->there);
    if (probe->d != NULL) dev_free(probe->d, probe->there_too);
    *probe = (bandwidth_probe){0};
}

/* The width that every x86-64 and ARMv8 has; two loads a cycle of it outrun any memory. */
typedef uint64_t lanes __attribute__((vector_size(16)));

typedef struct probe_pass {
    const uint8_t *buffer;
    _Atomic uint64_t sum; /* of everything read, so that no load may be dropped */
} probe_pass;

static void read_range(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    enum { N_SUMS = 8 }; /* independent chains, as many as hide an add's latency */
    probe_pass *pass = ctx;
    const lanes *at = (const lanes *)(const void *)(pass->buffer + begin * PROBE_GRAIN);
    const lanes *last = (const lanes *)(const void *)(pass->buffer + end * PROBE_GRAIN);
    lanes sums[N_SUMS] = {{0}};
    (void)worker;
    for (; at < last; at += N_SUMS) {
#pragma GCC unroll 8 /* keeps the sums in registers */
        for (int i = 0; i < N_SUMS; i++)
            sums[i] += at[i];
    }
    for (int i = 1; i < N_SUMS; i++)
        sums[0] += sums[i];
    pass->sum += sums[0][0] + sums[0][1];
}

/* Sums of two arrays: two bytes read and one written for each that an array has. */
static double run_device_probe(const bandwidth_probe *probe)
{
    float first;
    const add_args args = {
        .x = probe->there, .y = probe->there_too, .n = probe->bytes / sizeof(float)};
    probe->d->ops->add(probe->d, &args);
    dev_download(probe->d, &first, probe->there, sizeof first); /* waits */
    return 3 * (double)probe->bytes;
}

static double run_host_probe(const bandwidth_probe *probe)
{
    probe_pass pass = {.buffer = probe->buffer};
    parallel_for(probe->d->pool, probe->bytes / PROBE_GRAIN, 1, read_range, &pass);
    return (double)probe->bytes;
}

double bandwidth_probe_run(const bandwidth_probe *probe, double seconds)
{
    const uint64_t start_ns = clock_mono_ns();
    double bytes = 0, elapsed;
    do {
        bytes += (probe->buffer != NULL ? run_host_probe : run_device_probe)(probe);
        elapsed = clock_seconds_since(start_ns);
    } while (elapsed < seconds);
    return bytes / elapsed;
}

/* ---- steps -------------------------------------------------------------------------------------- */

static void note_experts(void *ctx, uint32_t layer, const uint32_t *chosen, uint32_t n_tokens,
                         uint32_t top_k)
{
    bench_run *r = ctx;
    const uint32_t n_experts = model_get_config(r->parts->m)->n_experts;
    (void)layer;
    memset(r->is_active, 0, n_experts);
    for (size_t i = 0; i < (size_t)n_tokens * top_k; i++)
        r->is_active[chosen[i]] = 1;
    for (uint32_t e = 0; e < n_experts; e++)
        r->n_active += r->is_active[e];
}

static const sampler_params greedy = {.top_p = 1, .repetition_penalty = 1, .n_logprobs = -1};

typedef struct draws {
    bench_run *r;
    model_draw row[MODEL_LOGIT_ROWS_MAX];
} draws;

/* Those that the device has not drawn. */
static void draw_rows(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    const draws *d = ctx;
    for (size_t row = begin; row < end; row++) {
        sampler_result result;
        sampler_input in = d->row[row].in;
        if (d->row[row].is_drawn) continue;
        in.logits = d->r->logits + row * in.n_vocab;
        in.scratch = d->r->scratch + worker * d->r->scratch_bytes;
        sampler_run(&greedy, NULL, &in, &result);
    }
}

/* The logits of each row's last token, and a draw from them, as the engine does it. */
static void run_logits(bench_run *r, uint32_t n_rows)
{
    uint32_t last[MODEL_LOGIT_ROWS_MAX];
    const uint32_t n_vocab = model_get_config(r->parts->m)->n_vocab;
    sampler_result results[MODEL_LOGIT_ROWS_MAX];
    draws d = {.r = r};
    for (uint32_t first = 0; first < n_rows; first += MODEL_LOGIT_ROWS_MAX) {
        const uint32_t n_left = n_rows - first;
        const uint32_t n = n_left < MODEL_LOGIT_ROWS_MAX ? n_left : MODEL_LOGIT_ROWS_MAX;
        for (uint32_t i = 0; i < n; i++) {
            const kv_row *row = &r->rows[first + i];
            last[i] = row->first_token + row->n_tokens - 1;
            d.row[i] = (model_draw){.params = &greedy, .in = {.n_vocab = n_vocab}};
        }
        model_sample(r->parts->m, last, n, d.row, r->logits, results);
        parallel_for(r->parts->d->pool, n, 1, draw_rows, &d);
    }
}

static void add_row(bench_run *r, uint32_t row, kv_seq *seq, uint32_t n_tokens)
{
    const uint32_t first = row == 0 ? 0 : r->rows[row - 1].first_token + r->rows[row - 1].n_tokens;
    const uint32_t n_vocab = model_get_config(r->parts->m)->n_vocab;
    const uint32_t start = kv_seq_length(seq);
    r->rows[row] = (kv_row){.seq = seq, .first_token = first, .n_tokens = n_tokens};
    for (uint32_t t = 0; t < n_tokens; t++) {
        /* Random text: greedy output of random weights soon repeats itself, and so would its experts. */
        r->tokens[first + t] = random_at(1, row, start + t).word[0] % n_vocab;
        r->positions[first + t] = start + t;
    }
}

static err_t run_step(bench_run *r, uint32_t n_rows)
{
    const kv_row *last = &r->rows[n_rows - 1];
    const model_batch batch = {.tokens = r->tokens,
                               .positions = r->positions,
                               .n_tokens = last->first_token + last->n_tokens,
                               .on_experts = note_experts,
                               .on_experts_ctx = r};
    TRY(kv_step_begin(r->parts->cache, r->rows, n_rows));
    model_forward(r->parts->m, r->parts->cache, &batch);
    kv_step_end(r->parts->cache);
    return model_status(r->parts->m, NULL);
}

/* Appends n_tokens to one sequence, in chunks. */
static err_t fill_seq(bench_run *r, kv_seq *seq, uint32_t n_tokens)
{
    while (n_tokens > 0) {
        const uint32_t n_most = (uint32_t)min_size(r->n_step_tokens_max, n_tokens);
        const uint32_t n = (uint32_t)min_size(n_most, kv_seq_step_tokens_max(seq));
        add_row(r, 0, seq, n);
        TRY(run_step(r, 1));
        n_tokens -= n;
    }
    return ERR_OK;
}

static err_t reserve_run(bench_run *r)
{
    const model_config *shape = model_get_config(r->parts->m);
    const size_t n_threads = thread_pool_n_threads(r->parts->d->pool);
    r->scratch_bytes = round_up(sampler_scratch_bytes(shape->n_vocab), 64);
    r->seqs = calloc(r->n_seqs, sizeof(kv_seq *));
    r->rows = calloc(r->n_seqs, sizeof *r->rows);
    r->tokens = calloc(r->n_step_tokens_max, sizeof *r->tokens);
    r->positions = calloc(r->n_step_tokens_max, sizeof *r->positions);
    r->is_active = calloc(shape->n_experts, 1);
    r->logits = calloc(MODEL_LOGIT_ROWS_MAX, shape->n_vocab * sizeof *r->logits);
    r->scratch = calloc(n_threads, r->scratch_bytes);
    const bool is_whole = r->seqs != NULL && r->rows != NULL && r->tokens != NULL &&
                          r->positions != NULL && r->is_active != NULL && r->logits != NULL &&
                          r->scratch != NULL;
    return is_whole ? ERR_OK : ERR_NO_MEMORY;
}

static err_t open_seq(const bench_run *r, uint32_t n_prompt_tokens, kv_seq **out)
{
    const kv_seq_options options = {.salt = "",
                                    .n_prompt_tokens = n_prompt_tokens,
                                    .no_prefix_read = true,
                                    .no_prefix_write = true};
    return kv_seq_open(r->parts->cache, &options, out);
}

err_t bench_run_open(const cli_parts *parts, bench_run *r, err_info *info)
{
    r->parts = parts;
    TRY(plan_weights_of(model_get_config(parts->m), &r->weights, info));
    err_t err = reserve_run(r);
    for (uint32_t i = 0; i < r->n_seqs && err == ERR_OK; i++) {
        err = open_seq(r, r->n_context, &r->seqs[i]);
        if (err == ERR_OK) err = fill_seq(r, r->seqs[i], r->n_context);
    }
    if (err == ERR_OK) return ERR_OK;
    bench_run_close(r);
    return err_set(info, err, "%u sequences of %u tokens: %s", r->n_seqs, r->n_context,
                   err_sentence(err));
}

void bench_run_close(bench_run *r)
{
    for (uint32_t i = 0; r->seqs != NULL && i < r->n_seqs; i++) {
        if (r->seqs[i] != NULL) kv_seq_close(r->seqs[i], NULL);
    }
    free(r->seqs);
    free(r->rows);
    free(r->tokens);
    free(r->positions);
    free(r->is_active);
    free(r->logits);
    free(r->scratch);
    const bench_run sizes = *r;
    *r = (bench_run){.n_seqs = sizes.n_seqs, .n_context = sizes.n_context};
}

/* Bytes of the weights that every step reads. The embedding counts one row per token; with tied
 * embeddings the matrix is read as the head. */
static double dense_bytes(const plan_weights *w, uint64_t n_tokens)
{
    return (double)w->step_bytes + (double)w->row_bytes * (double)n_tokens;
}

static uint64_t kv_bytes_read(const bench_run *r)
{
    kv_stats stats;
    kv_stats_read(r->parts->cache, &stats);
    return stats.bytes_read;
}

err_t bench_decode(bench_run *r, uint32_t n_seqs, uint32_t n_steps, bench_result *out)
{
    const model_config *shape = model_get_config(r->parts->m);
    const uint64_t kv_before = kv_bytes_read(r);
    err_t err = ERR_OK;
    r->n_active = 0;
    const uint64_t start_ns = clock_mono_ns();
    for (uint32_t step = 0; step < n_steps && err == ERR_OK; step++) {
        for (uint32_t i = 0; i < n_seqs; i++) {
            add_row(r, i, r->seqs[i], 1);
            r->rows[i].is_decode = true;
        }
        err = run_step(r, n_seqs);
        if (err == ERR_OK) run_logits(r, n_seqs);
    }
    *out = (bench_result){.seconds = clock_seconds_since(start_ns),
                          .n_tokens = (uint64_t)n_seqs * n_steps,
                          .kv_bytes = (double)(kv_bytes_read(r) - kv_before)};
    out->weight_bytes = n_steps * dense_bytes(&r->weights, n_seqs) +
                        (double)r->n_active * (double)r->weights.expert_bytes;
    out->experts_per_layer = (double)r->n_active / ((double)n_steps * shape->n_layers);
    for (uint32_t i = 0; i < n_seqs && err == ERR_OK; i++) { /* one that evicts begins anew */
        const uint32_t n = kv_seq_truncate(r->seqs[i], r->n_context);
        err = fill_seq(r, r->seqs[i], r->n_context - n);
    }
    return err;
}

err_t bench_prompt(bench_run *r, uint32_t n_tokens, bench_result *out)
{
    kv_seq *seq;
    TRY(open_seq(r, n_tokens, &seq));
    const uint64_t start_ns = clock_mono_ns();
    const err_t err = fill_seq(r, seq, n_tokens);
    if (err == ERR_OK) run_logits(r, 1);
    *out = (bench_result){.seconds = clock_seconds_since(start_ns), .n_tokens = n_tokens};
    kv_seq_close(seq, NULL);
    return err;
}
