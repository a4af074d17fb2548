/* kernels/sample_cpu.c - the definition of sample.h.
 *
 * A cut is the rank of the last token that may be drawn. Top-k and top-p both look for a cut: the shortest
 * prefix of the ranking whose weight reaches a target, with weight 1 each or exp(logit - max). That is a
 * weighted quickselect, linear on average, so no vocabulary is ever sorted. The draw then walks the vocabulary in
 * order of ids over everything above the cut: its result depends on the kept set alone, not on how the set
 * was found.
 *
 * Sums are doubles in a fixed order. The random number has 53 bits, so that rare tokens of large
 * vocabularies keep their probability. */
#include "kernels/sample.h"

#include "base/check.h"

#include <math.h>
#include <string.h>

typedef struct candidate {
    float logit;
    float weight; /* exp((logit - max) / temperature), in (0, 1] */
    uint32_t token;
} candidate;

/* The last token that is kept: those with a larger logit, or an equal one and no larger id, are in. */
typedef struct cut {
    float logit;
    uint32_t token;
} cut;

/* The edited logits, and how to draw from them. */
typedef struct choice {
    const sample_row *row;
    const float *logits;
    uint32_t n_vocab;
    float max;
} choice;

/* ---- raw log-probabilities ----------------------------------------------------------------------- */

typedef struct log_sum {
    float max;
    double log; /* of sum exp(logit), minus max */
    bool is_bad;
} log_sum;

static float find_max(const float *logits, uint32_t n_vocab, bool *is_bad)
{
    float max = -INFINITY;
    bool has_nan = false;
    for (uint32_t i = 0; i < n_vocab; i++) {
        has_nan |= isnan(logits[i]) != 0;
        max = logits[i] > max ? logits[i] : max;
    }
    *is_bad = has_nan || !isfinite(max);
    return max;
}

static log_sum sum_logits(const float *logits, uint32_t n_vocab)
{
    log_sum s = {0};
    s.max = find_max(logits, n_vocab, &s.is_bad);
    if (s.is_bad) return s;
    double sum = 0;
    for (uint32_t i = 0; i < n_vocab; i++)
        sum += (double)expf(logits[i] - s.max);
    s.log = log(sum);
    return s;
}

/* One function for the chosen token and for the list: clients compare the two numbers for equality. */
static float logprob_of(const log_sum *s, float logit)
{
    return (float)((double)logit - (double)s->max - s->log);
}

/* The n_top largest, by insertion: almost every token fails the first comparison. */
static void fill_top(const float *logits, uint32_t n_vocab, uint32_t n_top, sample_result *out)
{
    out->n_top = 0;
    for (uint32_t i = 0; i < n_vocab; i++) {
        uint32_t at = out->n_top;
        if (at == n_top) {
            if (n_top == 0 || !(logits[i] > out->top[at - 1].logprob)) continue;
            at--;
        } else {
            out->n_top++;
        }
        for (; at > 0 && logits[i] > out->top[at - 1].logprob; at--)
            out->top[at] = out->top[at - 1];
        out->top[at] = (sample_entry){.token = i, .logprob = logits[i]};
    }
}

static void fill_logprobs(const float *logits, uint32_t n_vocab, uint32_t n_top, const log_sum *sum,
                          sample_result *out)
{
    assert(n_top <= SAMPLE_LOGPROBS_MAX);
    fill_top(logits, n_vocab, n_top, out);
    for (uint32_t i = 0; i < out->n_top; i++)
        out->top[i].logprob = logprob_of(sum, out->top[i].logprob);
}

void sample_score_cpu(const float *logits, uint32_t n_vocab, uint32_t token, int32_t n_logprobs,
                      sample_result *out)
{
    assert(token < n_vocab);
    memset(out, 0, sizeof *out);
    out->token = token;
    const log_sum sum = sum_logits(logits, n_vocab);
    out->is_bad = sum.is_bad;
    if (sum.is_bad || n_logprobs < 0) return;
    fill_logprobs(logits, n_vocab, (uint32_t)n_logprobs, &sum, out);
    out->logprob = logprob_of(&sum, logits[token]);
}

/* ---- cuts ---------------------------------------------------------------------------------------- */

/* Does a stand before b in the ranking? */
static bool is_before(const candidate *a, const candidate *b)
{
    return a->logit > b->logit || (a->logit == b->logit && a->token < b->token);
}

static void swap_candidates(candidate *a, candidate *b)
{
    const candidate kept = *a;
    *a = *b;
    *b = kept;
}

/* The median of first, middle and last, moved to the front: sorted input does not become quadratic. */
static void choose_pivot(candidate *c, size_t n)
{
    candidate *a = c, *b = c + n / 2, *z = c + n - 1;
    if (is_before(b, a)) swap_candidates(a, b);
    if (is_before(z, b)) swap_candidates(b, z);
    if (is_before(b, a)) swap_candidates(a, b);
    swap_candidates(c, b);
}

/* Moves what ranks before the pivot c[0] to the front, the pivot behind it. Returns its place. */
static size_t partition(candidate *c, size_t n)
{
    choose_pivot(c, n);
    size_t place = 0;
    for (size_t i = 1; i < n; i++) {
        if (is_before(&c[i], &c[0])) swap_candidates(&c[i], &c[++place]);
    }
    swap_candidates(&c[0], &c[place]);
    return place;
}

static double sum_weights(const candidate *c, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)c[i].weight;
    return sum;
}

/* Length of the shortest prefix of the ranking with a weight of at least `target`; the prefix is
 * then at the front of c. By count when `by_count`. All n if the target is never reached. */
static size_t select_prefix(candidate *c, size_t n, double target, bool by_count)
{
    size_t first = 0;
    double before = 0; /* weight of c[0 .. first), which is in the prefix */
    while (first < n) {
        const size_t place = first + partition(c + first, n - first);
        const size_t n_upper = place - first;
        const double upper = by_count ? (double)n_upper : sum_weights(c + first, n_upper);
        if (before + upper >= target && n_upper > 0) {
            n = place; /* the prefix ends among the upper ones */
            continue;
        }
        before += upper + (by_count ? 1.0 : (double)c[place].weight);
        first = place + 1;
        if (before >= target) return first;
    }
    return n;
}

/* Fills c with the tokens that pass min-p; returns their number. */
static size_t gather(const choice *of, candidate *c)
{
    size_t n = 0;
    for (uint32_t i = 0; i < of->n_vocab; i++) {
        if (!(of->logits[i] > -INFINITY)) continue;
        const float weight = expf((of->logits[i] - of->max) / of->row->temperature);
        if (weight < of->row->min_p) continue;
        c[n++] = (candidate){.logit = of->logits[i], .weight = weight, .token = i};
    }
    return n;
}

/* The last in rank of c[0 .. n), n > 0. */
static cut last_of(const candidate *c, size_t n)
{
    const candidate *last = c;
    for (size_t i = 1; i < n; i++) {
        if (is_before(last, &c[i])) last = &c[i];
    }
    return (cut){.logit = last->logit, .token = last->token};
}

static cut find_cut(const choice *of, candidate *c)
{
    size_t n = gather(of, c);
    assert(n > 0); /* the largest has weight 1 */
    if (of->row->top_k > 0 && of->row->top_k < n)
        n = select_prefix(c, n, (double)of->row->top_k, true);
    if (of->row->top_p < 1.0f)
        n = select_prefix(c, n, (double)of->row->top_p * sum_weights(c, n), false);
    return last_of(c, n);
}

/* ---- the draw ------------------------------------------------------------------------------------ */

static float weight_at(const choice *of, const cut *end, uint32_t token)
{
    const float logit = of->logits[token];
    if (logit < end->logit || (logit == end->logit && token > end->token)) return 0.0f;
    return expf((logit - of->max) / of->row->temperature);
}

static uint32_t draw(const choice *of, const cut *end)
{
    double total = 0;
    for (uint32_t i = 0; i < of->n_vocab; i++)
        total += (double)weight_at(of, end, i);
    const double target = of->row->uniform * total;
    double sum = 0;
    uint32_t last = 0;
    for (uint32_t i = 0; i < of->n_vocab; i++) {
        const float weight = weight_at(of, end, i);
        if (weight == 0.0f) continue;
        last = i;
        sum += (double)weight;
        if (sum > target) break; /* always met: the sum ends at total > target */
    }
    return last;
}

static uint32_t find_largest(const float *logits, uint32_t n_vocab)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < n_vocab; i++) {
        if (logits[i] > logits[best]) best = i;
    }
    return best;
}

static uint32_t choose(const choice *of, candidate *c)
{
    if (of->row->temperature < SAMPLE_GREEDY_BELOW || of->row->top_k == 1)
        return find_largest(of->logits, of->n_vocab);
    const bool keeps_all = of->row->top_p >= 1.0f && of->row->min_p <= 0.0f &&
                           (of->row->top_k == 0 || of->row->top_k >= of->n_vocab);
    const cut none = {.logit = -INFINITY, .token = UINT32_MAX};
    const cut end = keeps_all ? none : find_cut(of, c);
    return draw(of, &end);
}

/* Scratch: the candidates, then a copy of the raw logits. */
size_t sample_scratch_bytes(uint32_t n_vocab)
{
    return (size_t)n_vocab * (sizeof(candidate) + sizeof(float));
}

void sample_one_cpu(const sample_one *one, sample_result *out)
{
    const sample_row *const row = one->row;
    candidate *const c = one->scratch;
    float *const raw = (float *)(void *)(c + one->n_vocab);
    memset(out, 0, sizeof *out);
    log_sum sum = {0};
    if (row->n_logprobs >= 0) {
        sum = sum_logits(one->logits, one->n_vocab);
        memcpy(raw, one->logits, one->n_vocab * sizeof *raw);
    }
    out->is_bad = sum.is_bad;
    if (out->is_bad) return;
    one->edit(one->ctx, one->logits, one->n_vocab);
    const choice of = {.row = row,
                       .logits = one->logits,
                       .n_vocab = one->n_vocab,
                       .max = find_max(one->logits, one->n_vocab, &out->is_bad)};
    if (out->is_bad) return;
    out->token = choose(&of, c);
    if (row->n_logprobs < 0) return;
    fill_logprobs(raw, one->n_vocab, (uint32_t)row->n_logprobs, &sum, out);
    out->logprob = logprob_of(&sum, raw[out->token]);
}

/* ---- the op -------------------------------------------------------------------------------------- */

typedef struct edit_list {
    const sample_edit *edit; /* [n] */
    uint32_t n;
} edit_list;

static void apply_list(const void *ctx, float *logits, uint32_t n_vocab)
{
    const edit_list *const list = ctx;
    for (uint32_t i = 0; i < list->n; i++) {
        const sample_edit *const e = &list->edit[i];
        assert(e->token < n_vocab);
        float *const x = &logits[e->token];
        if (e->kind == SAMPLE_ADD) *x += e->by;
        if (e->kind == SAMPLE_BAN) *x = -INFINITY;
        if (e->kind == SAMPLE_PENALIZE) *x = (*x > 0 ? *x / e->by : *x * e->by) - e->minus;
    }
}

void sample_cpu(const sample_args *args, void *scratch)
{
    for (uint32_t r = 0; r < args->n_rows; r++) {
        const sample_row *const row = &args->rows[r];
        const edit_list list = {.edit = row->n_edits > 0 ? args->edits + row->first_edit : NULL,
                                .n = row->n_edits};
        const sample_one one = {.row = row,
                                .logits = args->logits + (size_t)row->logits_row * args->n_vocab,
                                .n_vocab = args->n_vocab,
                                .edit = apply_list,
                                .ctx = &list,
                                .scratch = scratch};
        sample_one_cpu(&one, &args->results[r]);
    }
}
