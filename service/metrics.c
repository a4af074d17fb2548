/* service/metrics.c - see metrics.h: counting. The page is written in metrics_text.c and its neighbours.
 *
 * Edges of the latency histograms are vLLM's, so that dashboards can be compared, with more of them at
 * the low end: a small model makes a token in a millisecond, and all of its tokens would lie in vLLM's
 * first bucket. */
#include "service/metrics_internal.h"

#include "base/check.h"

#include <stdlib.h>
#include <string.h>

static const double TTFT_EDGES[] = {.001, .002, .005, .01, .02, .04, .06, .08, .1,  .25, .5,  .75,
                                    1,    2.5,  5,    7.5, 10,  20,  40,  80,  160, 640, 2560};
static const double ITL_EDGES[] = {.0005, .001, .002, .005, .01, .025, .05, .075, .1, .15, .2, .3,
                                   .4,    .5,   .75,  1,    2.5, 5,    7.5, 10,   20, 40,  80};
static const double REQUEST_EDGES[] = {.001, .005, .01, .05, .1,  .3,  .5,   .8,  1,
                                       1.5,  2,    2.5, 5,   10,  15,  20,   30,  40,
                                       50,   60,   120, 240, 480, 960, 1920, 7680};
static const double LENGTH_EDGES[] = {1,    2,    5,    10,    20,    50,    100,    200,   500,
                                      1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000};
static const double CHOICES_EDGES[] = {1, 2, 5, 10, 20};
static const double BATCH_EDGES[] = {1,   2,   4,    8,    16,   32,   64,   128,
                                     256, 512, 1024, 2048, 4096, 8192, 16384};
static const double STEP_EDGES[] = {.0002, .0005, .001, .002, .005, .01, .02, .05, .1,
                                    .2,    .5,    1,    2,    5,    10,  20,  60};

/* What the other rows of METRIC_HISTOGRAMS use. */
#define E2E_EDGES              REQUEST_EDGES
#define QUEUE_EDGES            REQUEST_EDGES
#define PREFILL_EDGES          REQUEST_EDGES
#define DECODE_EDGES           REQUEST_EDGES
#define INFERENCE_EDGES        REQUEST_EDGES
#define TPOT_EDGES             ITL_EDGES
#define PROMPT_LENGTH_EDGES    LENGTH_EDGES
#define OUTPUT_LENGTH_EDGES    LENGTH_EDGES
#define PREFILL_COMPUTED_EDGES LENGTH_EDGES
#define MAX_TOKENS_EDGES       LENGTH_EDGES
#define BATCH_TOKENS_EDGES     BATCH_EDGES
#define STEP_PREFILL_EDGES     STEP_EDGES
#define STEP_DECODE_EDGES      STEP_EDGES

static const char *const PHASES[METRIC_HISTOGRAM_COUNT] = {
    [METRIC_STEP_PREFILL] = "prefill", [METRIC_STEP_DECODE] = "decode"};

histogram_shape metrics_histogram_shape(metric_histogram which)
{
    static const histogram_shape shapes[METRIC_HISTOGRAM_COUNT] = {
#define X(id, name, sentence)             \
    [METRIC_##id] = {.family = name,      \
                     .help = sentence,    \
                     .edges = id##_EDGES, \
                     .n_edges = sizeof id##_EDGES / sizeof id##_EDGES[0]},
        METRIC_HISTOGRAMS(X)
#undef X
    };
    assert((unsigned)which < METRIC_HISTOGRAM_COUNT);
    histogram_shape shape = shapes[which];
    assert(shape.n_edges <= HISTOGRAM_EDGES_MAX);
    shape.phase = PHASES[which];
    return shape;
}

/* Backslash, quote and line feed are escaped, as the text format wants them in a label's value. */
static char *escape_label(const char *text)
{
    char *out = malloc(2 * strlen(text) + 1);
    if (out == NULL) return NULL;
    char *end = out;
    for (; *text != '\0'; text++) {
        if (*text == '\\' || *text == '"' || *text == '\n') *end++ = '\\';
        *end++ = *text == '\n' ? 'n' : *text;
    }
    *end = '\0';
    return out;
}

const char *metrics_scheduling_name(uint32_t index)
{
    if (index == 0) return "none";
    if (index == 1) return "quest";
    if (index == 2) return "flexgen";
    return kv_scorers[index - 3] != NULL ? kv_scorers[index - 3]->name : NULL;
}

/* 0 for a policy that evicts nothing; its scorer's place in the list, from 1 on. */
static uint32_t scorer_place(const kv_policy *policy)
{
    uint32_t scorer = 0;
    if (!policy->evicts) return 0;
    while (kv_scorers[scorer] != policy->scorer)
        scorer++;
    return scorer + 1;
}

static uint32_t scheduling_index(const kv_policy *policy)
{
    const uint32_t place = scorer_place(policy);
    if (policy->limits_reads) return 1;
    if (policy->limits_pool) return 2;
    return place > 0 ? place + 2 : 0;
}

/* A counter for every combination of methods. */
static err_t open_methods(metrics *m)
{
    size_t n;
    while (kv_routings[m->methods.n_routings] != NULL)
        m->methods.n_routings++;
    while (metrics_scheduling_name(m->methods.n_schedulings) != NULL)
        m->methods.n_schedulings++;
    while (kv_codecs[m->methods.n_codecs] != NULL)
        m->methods.n_codecs++;
    m->methods.n_selections = 1;
    while (kv_scorers[m->methods.n_selections - 1] != NULL)
        m->methods.n_selections++;
    TRY(size_mul(m->methods.n_routings, m->methods.n_schedulings, &n));
    TRY(size_mul(n, m->methods.n_selections, &n));
    TRY(size_mul(n, m->methods.n_codecs, &n));
    m->methods.ended = calloc(n, sizeof *m->methods.ended);
    return m->methods.ended != NULL ? ERR_OK : ERR_NO_MEMORY;
}

err_t metrics_open(const metrics_shape *shape, metrics **out)
{
    *out = NULL;
    metrics *m = calloc(1, sizeof *m);
    if (m == NULL) return ERR_NO_MEMORY;
    size_t n_experts;
    err_t err = size_mul(shape->n_layers, shape->n_experts, &n_experts);
    if (err == ERR_OK) {
        m->compat = shape->compat;
        m->start_seconds = metrics_process_start_seconds();
        m->n_layers = shape->n_layers;
        m->n_experts = shape->n_experts;
        m->model_name = escape_label(shape->model_name);
        m->experts = calloc(max_size(n_experts, 1), sizeof *m->experts);
        if (m->model_name == NULL || m->experts == NULL) err = ERR_NO_MEMORY;
    }
    if (err == ERR_OK) err = open_methods(m);
    if (err != ERR_OK) {
        metrics_close(m);
        return err;
    }
    *out = m;
    return ERR_OK;
}

void metrics_close(metrics *m)
{
    if (m == NULL) return;
    free(m->model_name);
    free(m->experts);
    free(m->methods.ended);
    free(m);
}

void metrics_pause(metrics *m, bool is_paused)
{
    atomic_store_explicit(&m->is_paused, is_paused, memory_order_relaxed);
}

static bool is_counting(const metrics *m)
{
    return !atomic_load_explicit(&m->is_paused, memory_order_relaxed);
}

static void count(_Atomic uint64_t *counter, uint64_t n)
{
    atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

void metrics_add(metrics *m, metric_counter counter, uint64_t n)
{
    assert((unsigned)counter < METRIC_COUNTER_COUNT);
    if (is_counting(m)) count(&m->counters[counter], n);
}

/* A sum of doubles has no atomic add; contention is rare (one engine, a few HTTP threads). */
static void add_to_sum(_Atomic double *sum, double value)
{
    double before = atomic_load_explicit(sum, memory_order_relaxed);
    while (!atomic_compare_exchange_weak_explicit(sum, &before, before + value,
                                                  memory_order_relaxed, memory_order_relaxed)) {
    }
}

void metrics_observe(metrics *m, metric_histogram which, double value)
{
    if (!is_counting(m)) return;
    const histogram_shape shape = metrics_histogram_shape(which);
    histogram *h = &m->histograms[which];
    if (!(value >= 0)) value = 0; /* a clock that two threads read may seem to go back */
    uint32_t bucket = 0;
    while (bucket < shape.n_edges && value > shape.edges[bucket])
        bucket++;
    add_to_sum(&h->sum, value);
    count(&h->buckets[bucket], 1);
}

void metrics_count_outcome(metrics *m, metric_outcome outcome)
{
    assert((unsigned)outcome < OUTCOME_COUNT);
    if (is_counting(m)) count(&m->outcomes[outcome], 1);
}

void metrics_count_methods(metrics *m, const kv_methods *methods)
{
    uint32_t routing = 0;
    if (!is_counting(m)) return;
    while (kv_routings[routing] != methods->routing)
        routing++;
    const size_t row =
        (size_t)routing * m->methods.n_schedulings + scheduling_index(&methods->policy);
    const size_t column = row * m->methods.n_selections + scorer_place(&methods->selection);
    count(&m->methods.ended[column * m->methods.n_codecs + methods->codec_index], 1);
}

void metrics_count_reject(metrics *m, metric_reject reason)
{
    assert((unsigned)reason < REJECT_COUNT);
    count(&m->rejects[reason], 1);
}

void metrics_count_experts(metrics *m, uint32_t layer, const uint32_t *chosen, uint32_t n_tokens,
                           uint32_t top_k)
{
    assert(layer < m->n_layers);
    if (!is_counting(m)) return;
    _Atomic uint64_t *experts = m->experts + (size_t)layer * m->n_experts;
    for (size_t i = 0; i < (size_t)n_tokens * top_k; i++) {
        assert(chosen[i] < m->n_experts);
        count(&experts[chosen[i]], 1);
    }
}

uint64_t metrics_read(const metrics *m, metric_counter counter)
{
    assert((unsigned)counter < METRIC_COUNTER_COUNT);
    return atomic_load_explicit(&m->counters[counter], memory_order_relaxed);
}
