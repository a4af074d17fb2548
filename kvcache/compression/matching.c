/* kvcache/compression/matching.c - see matching.h.
 *
 * All is made of passes over entries: a chunk is read, scored against all queries into the tile,
 * and what the pass is for is added up over its rows. Sums go entry by entry in order of position,
 * so keeping everything repeats those of the whole block in the same bits: the residuals are then
 * 0. */
#include "kvcache/compression/matching.h"

#include "base/check.h"

#include <float.h>
#include <math.h>
#include <string.h>

enum { CHUNK = KV_SCORE_CHUNK };

static const float score_limit = 1e30f; /* differences of two are finite, and exp of them is 0 */

const kv_match_options kv_match_defaults = {
    .ridge_bias = 1e-2, .ridge_value = 1e-3, .beta_min = -3, .beta_max = 3, .n_steps = 2};

void kv_match_place(arena *a, const kv_match_shape *shape, kv_match *match)
{
    const size_t m = shape->n_queries_max, k_dim = shape->k_dim, v_dim = shape->v_dim;
    *match = (kv_match){.shape = *shape};
    match->keys = arena_take(a, CHUNK, k_dim * sizeof *match->keys);
    match->values = arena_take(a, CHUNK, v_dim * sizeof *match->values);
    match->columns = arena_take(a, CHUNK, k_dim * sizeof *match->columns);
    match->tile = arena_take(a, CHUNK, m * sizeof *match->tile);
    match->most = arena_take(a, m, sizeof *match->most);
    match->mass = arena_take(a, m, sizeof *match->mass);
    match->target = arena_take(a, m, v_dim * sizeof *match->target);
    match->score = arena_take(a, shape->n_max, sizeof *match->score);
    kv_ridge_place(a, shape->n_queries_max, &match->ridge);
    match->kept_most = arena_take(a, m, sizeof *match->kept_most);
    match->sum = arena_take(a, m, sizeof *match->sum);
    match->residual = arena_take(a, m, sizeof *match->residual);
    match->norm_work = arena_take(a, m, 2 * sizeof *match->norm_work);
    match->rest = arena_take(a, m, v_dim * sizeof *match->rest);
    match->row = arena_take(a, v_dim, sizeof *match->row);
    match->value = arena_take(a, v_dim, sizeof *match->value);
    match->gain = arena_take(a, shape->n_max, sizeof *match->gain);
    match->weights = arena_take(a, shape->t_max, sizeof *match->weights);
    match->state = arena_take(a, shape->n_max, sizeof *match->state);
}

/* ---- a chunk --------------------------------------------------------------------------------- */

static uint32_t entry_at(kv_match_set set, uint32_t i)
{
    return set.index == NULL ? i : set.index[i];
}

/* Loads entries [from, from + count) of the set, as many as one load can reach; returns count. */
static uint32_t load_entries(kv_match *match, kv_match_set set, uint32_t from, bool with_values)
{
    const kv_score_view *view = match->args.view;
    const size_t k_dim = match->shape.k_dim, v_dim = match->shape.v_dim;
    const uint32_t first = entry_at(set, from);
    uint32_t count = 1;
    while (from + count < set.n && entry_at(set, from + count) - first < CHUNK)
        count++;
    const uint32_t n_read = entry_at(set, from + count - 1) - first + 1;
    view->load(view, first, n_read, match->keys, with_values ? match->values : NULL);
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t slot = entry_at(set, from + i) - first;
        if (slot == i) continue;
        memcpy(match->keys + i * k_dim, match->keys + slot * k_dim, k_dim * sizeof(float));
        if (with_values)
            memcpy(match->values + i * v_dim, match->values + slot * v_dim, v_dim * sizeof(float));
    }
    return count;
}

static float bias_of(const kv_match *match, kv_match_set set, uint32_t i)
{
    const float *bias = match->args.view->bias;
    return bias != NULL ? bias[entry_at(set, i)] : 0;
}

static bool is_fixed(const kv_match *match, kv_match_set set, uint32_t i)
{
    const uint8_t *fixed = match->args.is_fixed;
    return fixed != NULL && fixed[entry_at(set, i)] != 0;
}

static float limited_score(float x)
{
    if (!(x > -score_limit)) return -score_limit; /* infinite sums can cancel to NaN */
    return x < score_limit ? x : score_limit;
}

/* Fills the tile with the scores of entries [from, from + count) of the set; returns count. */
static uint32_t read_scores(kv_match *match, kv_match_set set, uint32_t from, bool with_values)
{
    const uint32_t count = load_entries(match, set, from, with_values);
    const uint32_t k_dim = match->shape.k_dim, m = match->args.n_queries;
    for (uint32_t c = 0; c < k_dim; c++) {
        for (uint32_t i = 0; i < CHUNK; i++)
            match->columns[(size_t)c * CHUNK + i] =
                i < count ? match->keys[(size_t)i * k_dim + c] : 0;
    }
    float bias[CHUNK] = {0};
    for (uint32_t i = 0; i < count; i++)
        bias[i] = bias_of(match, set, from + i);
    for (uint32_t r = 0; r < m; r++) {
        const float *q = match->args.q + (size_t)r * k_dim;
        float x[CHUNK] = {0};
        for (uint32_t c = 0; c < k_dim; c++) {
            const float *column = match->columns + (size_t)c * CHUNK;
            for (uint32_t i = 0; i < CHUNK; i++)
                x[i] += q[c] * column[i];
        }
        for (uint32_t i = 0; i < count; i++)
            match->tile[(size_t)i * m + r] =
                (double)limited_score(x[i] * match->args.scale + bias[i]);
    }
    return count;
}

/* Raises most[m] to the scores of the tile. */
static void raise_most(const kv_match *match, uint32_t count, double *most)
{
    const uint32_t m = match->args.n_queries;
    for (uint32_t i = 0; i < count; i++) {
        for (uint32_t r = 0; r < m; r++)
            most[r] = fmax(most[r], match->tile[(size_t)i * m + r]);
    }
}

/* The tile's scores become exp(score - most). */
static void exponentiate(kv_match *match, uint32_t count, const double *most)
{
    const uint32_t m = match->args.n_queries;
    for (uint32_t i = 0; i < count; i++) {
        double *row = match->tile + (size_t)i * m;
        for (uint32_t r = 0; r < m; r++)
            row[r] = (double)expf((float)(row[r] - most[r]));
    }
}

/* sum[r] += tile[i][r] * weights[i]. */
static void add_weighted(const kv_match *match, uint32_t count, const float *weights, double *sum)
{
    const uint32_t m = match->args.n_queries;
    for (uint32_t i = 0; i < count; i++) {
        const double w = (double)weights[i];
        for (uint32_t r = 0; r < m; r++)
            sum[r] += match->tile[(size_t)i * m + r] * w;
    }
}

static void add_rows(const kv_match *match, uint32_t count, double *sum)
{
    const uint32_t m = match->args.n_queries;
    for (uint32_t i = 0; i < count; i++) {
        for (uint32_t r = 0; r < m; r++)
            sum[r] += match->tile[(size_t)i * m + r];
    }
}

/* Adds the rows of the tile as columns, without those of fixed entries. */
static void add_columns(kv_match *match, kv_match_set kept, uint32_t from, uint32_t count)
{
    for (uint32_t i = 0, next; i < count; i = next + 1) {
        for (next = i; next < count && !is_fixed(match, kept, from + next); next++)
            ;
        if (next > i)
            kv_ridge_add(&match->ridge, match->tile + (size_t)i * match->args.n_queries, next - i);
    }
}

/* out[r] += tile[i][r] * values[i]. */
static void add_values(const kv_match *match, uint32_t count, double *out)
{
    const uint32_t m = match->args.n_queries, v_dim = match->shape.v_dim;
    for (uint32_t r = 0; r < m; r++) {
        double *o = out + (size_t)r * v_dim;
        for (uint32_t i = 0; i < count; i++) {
            const double e = match->tile[(size_t)i * m + r];
            const float *v = match->values + (size_t)i * v_dim;
            for (uint32_t d = 0; d < v_dim; d++)
                o[d] += e * (double)v[d];
        }
    }
}

/* tile[i] . x. */
static double times_row(const kv_match *match, uint32_t i, const double *x)
{
    const uint32_t m = match->args.n_queries;
    double sum = 0;
    for (uint32_t r = 0; r < m; r++)
        sum += match->tile[(size_t)i * m + r] * x[r];
    return sum;
}

static void fill(double *x, size_t n, double value)
{
    for (size_t i = 0; i < n; i++)
        x[i] = value;
}

/* ---- the block ------------------------------------------------------------------------------- */

/* most, and the sum of exp(score - most) in residual. */
static void find_most(kv_match *match, kv_match_set all)
{
    const uint32_t m = match->args.n_queries;
    fill(match->most, m, -(double)score_limit);
    fill(match->residual, m, 0);
    for (uint32_t i = 0; i < all.n; i += CHUNK) {
        const uint32_t count = read_scores(match, all, i, false);
        memcpy(match->kept_most, match->most, m * sizeof *match->most);
        raise_most(match, count, match->most);
        for (uint32_t r = 0; r < m; r++)
            match->residual[r] *= exp(match->kept_most[r] - match->most[r]);
        exponentiate(match, count, match->most);
        add_rows(match, count, match->residual);
    }
}

static void set_score(kv_match *match, uint32_t i, float *score)
{
    const uint32_t m = match->args.n_queries;
    double sum = 0;
    for (uint32_t r = 0; r < m; r++) {
        const double p = match->tile[(size_t)i * m + r] / match->residual[r];
        sum += p * p;
    }
    *score = (float)sum;
}

void kv_match_begin(kv_match *match, const kv_match_args *args)
{
    const kv_match_set all = {.n = args->view->n};
    const uint32_t m = args->n_queries, v_dim = match->shape.v_dim;
    assert(all.n >= 1);
    assert(all.n <= match->shape.n_max);
    assert(m >= 1);
    assert(m <= match->shape.n_queries_max);
    match->args = *args;
    match->ridge.n = m;
    find_most(match, all);
    fill(match->mass, m, 0);
    fill(match->target, (size_t)m * v_dim, 0);
    for (uint32_t i = 0; i < all.n; i += CHUNK) {
        const uint32_t count = read_scores(match, all, i, true);
        exponentiate(match, count, match->most);
        for (uint32_t c = 0; c < count; c++)
            set_score(match, c, &match->score[i + c]);
        add_rows(match, count, match->mass);
        add_values(match, count, match->target);
    }
    for (size_t i = 0; i < (size_t)m * v_dim; i++)
        match->target[i] /= match->mass[i / v_dim];
}

/* ---- weights and values ---------------------------------------------------------------------- */

static double ridge_of(const kv_ridge *ridge, double share)
{
    const double lambda = share * kv_ridge_trace(ridge);
    return lambda > 0 ? lambda : 1; /* nothing but zeros: any lambda leaves things as they are */
}

static float limited_weight(double w, const kv_match_options *options)
{
    return (float)fmin(fmax(w, exp(options->beta_min)), exp(options->beta_max));
}

/* One step of projected gradient from sum = E_S w; sum is that of the new weights. */
static void step_weights(kv_match *match, kv_match_set kept, const kv_match_options *options,
                         double lambda, double step, float *weights)
{
    const uint32_t m = match->args.n_queries;
    for (uint32_t r = 0; r < m; r++)
        match->residual[r] = match->sum[r] - match->mass[r];
    fill(match->sum, m, 0);
    for (uint32_t i = 0, count; i < kept.n; i += count) {
        count = read_scores(match, kept, i, false);
        exponentiate(match, count, match->most);
        for (uint32_t c = 0; c < count; c++) {
            if (is_fixed(match, kept, i + c)) continue;
            const double w = (double)weights[i + c];
            const double slope = times_row(match, c, match->residual) + lambda * (w - 1);
            weights[i + c] = limited_weight(w - step * slope, options);
        }
        add_weighted(match, count, weights + i, match->sum);
    }
}

/* Writes w, and E_S w into sum. */
static void fit_weights(kv_match *match, kv_match_set kept, const kv_match_options *options,
                        float *weights)
{
    const uint32_t m = match->args.n_queries;
    fill(match->sum, m, 0);
    kv_ridge_clear(&match->ridge);
    for (uint32_t i = 0, count; i < kept.n; i += count) {
        count = read_scores(match, kept, i, false);
        exponentiate(match, count, match->most);
        add_rows(match, count, match->sum);
        add_columns(match, kept, i, count);
    }
    for (uint32_t r = 0; r < m; r++)
        match->residual[r] = match->mass[r] - match->sum[r];
    const double lambda = ridge_of(&match->ridge, options->ridge_bias);
    kv_ridge_factor(&match->ridge, lambda);
    kv_ridge_solve(&match->ridge, match->residual, 1);
    fill(match->sum, m, 0);
    for (uint32_t i = 0, count; i < kept.n; i += count) {
        count = read_scores(match, kept, i, false);
        exponentiate(match, count, match->most);
        for (uint32_t c = 0; c < count; c++)
            weights[i + c] =
                is_fixed(match, kept, i + c)
                    ? 1
                    : limited_weight(1 + times_row(match, c, match->residual), options);
        add_weighted(match, count, weights + i, match->sum);
    }
    const double step = 1 / (kv_ridge_norm(&match->ridge, match->norm_work) + lambda);
    for (uint32_t i = 0; i < options->n_steps; i++)
        step_weights(match, kept, options, lambda, step, weights);
}

/* The tile becomes X of these entries, times sum[r]. */
static uint32_t read_shares(kv_match *match, kv_match_set kept, uint32_t from, const float *weights)
{
    const uint32_t m = match->args.n_queries, count = read_scores(match, kept, from, true);
    exponentiate(match, count, match->kept_most);
    for (uint32_t i = 0; i < count; i++) {
        for (uint32_t r = 0; r < m; r++)
            match->tile[(size_t)i * m + r] *= (double)weights[from + i];
    }
    return count;
}

/* kept_most, sum, the Gram matrix of X, and what eviction gets wrong in rest. */
static void compare_outputs(kv_match *match, kv_match_set kept, const float *weights)
{
    const uint32_t m = match->args.n_queries, v_dim = match->shape.v_dim;
    /* not `most`: that may be the score of an entry that goes, far above all that stay */
    fill(match->kept_most, m, -(double)score_limit);
    for (uint32_t i = 0, count; i < kept.n; i += count) {
        count = read_scores(match, kept, i, false);
        raise_most(match, count, match->kept_most);
    }
    fill(match->sum, m, 0);
    fill(match->rest, (size_t)m * v_dim, 0);
    kv_ridge_clear(&match->ridge);
    for (uint32_t i = 0, count; i < kept.n; i += count) {
        count = read_shares(match, kept, i, weights);
        add_rows(match, count, match->sum);
        add_values(match, count, match->rest);
        add_columns(match, kept, i, count);
    }
    for (size_t i = 0; i < (size_t)m * v_dim; i++)
        match->rest[i] = match->target[i] - match->rest[i] / match->sum[i / v_dim];
    for (uint32_t r = 0; r < m; r++)
        match->residual[r] = 1 / match->sum[r];
    kv_ridge_scale_rows(&match->ridge, match->residual);
}

/* Writes the value of entry i of the tile: its old one and X_i . rest. */
static void write_value(const kv_match *match, uint32_t i, float *out)
{
    const uint32_t m = match->args.n_queries, v_dim = match->shape.v_dim;
    const float *v = match->values + (size_t)i * v_dim;
    fill(match->row, v_dim, 0);
    for (uint32_t r = 0; r < m; r++) {
        const double x = match->tile[(size_t)i * m + r];
        for (uint32_t d = 0; d < v_dim; d++)
            match->row[d] += x * match->rest[(size_t)r * v_dim + d];
    }
    for (uint32_t d = 0; d < v_dim; d++)
        out[d] = (float)fmin(fmax((double)v[d] + match->row[d], -(double)FLT_MAX), (double)FLT_MAX);
}

static void fit_values(kv_match *match, kv_match_set kept, const kv_match_options *options,
                       const kv_match_out *out)
{
    const float *weights = out->beta;
    const uint32_t m = match->args.n_queries, v_dim = match->shape.v_dim;
    compare_outputs(match, kept, weights);
    kv_ridge_factor(&match->ridge, ridge_of(&match->ridge, options->ridge_value));
    kv_ridge_solve(&match->ridge, match->rest, v_dim);
    for (size_t i = 0; i < (size_t)m * v_dim; i++)
        match->rest[i] /= match->sum[i / v_dim];
    for (uint32_t i = 0, count; i < kept.n; i += count) {
        count = read_shares(match, kept, i, weights);
        for (uint32_t c = 0; c < count; c++) {
            if (is_fixed(match, kept, i + c)) continue;
            write_value(match, c, match->value);
            out->put(out->ctx, i + c, match->value);
        }
    }
}

void kv_match_fit(kv_match *match, kv_match_set kept, const kv_match_options *options,
                  const kv_match_out *out)
{
    assert(kept.n >= 1);
    assert(kept.n <= match->shape.t_max);
    assert(options->ridge_bias >= 1e-9);
    assert(options->ridge_value >= 1e-9);
    fit_weights(match, kept, options, out->beta);
    fit_values(match, kept, options, out);
    for (uint32_t i = 0; i < kept.n; i++)
        out->beta[i] = logf(out->beta[i]) + bias_of(match, kept, i);
}

/* ---- which entries --------------------------------------------------------------------------- */

/* Is entry a worth less than b? */
static bool is_after(const float *score, uint32_t a, uint32_t b)
{
    return score[a] < score[b] || (score[a] == score[b] && a > b);
}

/* Moves heap[at] down until no child is worth less; the one worth least of all is at the top. */
static void sift(const float *score, uint32_t *heap, uint32_t n, uint32_t at)
{
    const uint32_t moved = heap[at];
    for (uint32_t child = 2 * at + 1; child < n; child = 2 * at + 1) {
        if (child + 1 < n && is_after(score, heap[child + 1], heap[child])) child++;
        if (!is_after(score, heap[child], moved)) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = moved;
}

void kv_match_choose(kv_match *match, uint32_t n_keep, uint32_t *kept)
{
    const float *score = match->score;
    const uint32_t n = match->args.view->n;
    assert(n_keep >= 1);
    assert(n_keep <= n);
    for (uint32_t i = 0; i < n_keep; i++)
        kept[i] = i;
    for (uint32_t i = n_keep / 2; i-- > 0;)
        sift(score, kept, n_keep, i);
    for (uint32_t i = n_keep; i < n; i++) {
        if (!is_after(score, kept[0], i)) continue;
        kept[0] = i;
        sift(score, kept, n_keep, 0);
    }
    const uint32_t last = kept[0]; /* all before it are in: the order needs no sorting */
    uint32_t n_kept = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (!is_after(score, i, last)) kept[n_kept++] = i;
    }
    assert(n_kept == n_keep);
}

enum { OPEN, KEPT, DROPPED }; /* kv_match.state */
enum { DROP_ROUNDS = 3 };

static const float drop_beta = -7;

/* gain[n]: how well each column of E goes with the mass that is missing. */
static void find_gains(kv_match *match)
{
    const kv_match_set all = {.n = match->args.view->n};
    for (uint32_t r = 0; r < match->args.n_queries; r++)
        match->residual[r] = match->mass[r] - match->sum[r];
    for (uint32_t i = 0; i < all.n; i += CHUNK) {
        const uint32_t count = read_scores(match, all, i, false);
        exponentiate(match, count, match->most);
        for (uint32_t c = 0; c < count; c++)
            match->gain[i + c] = (float)times_row(match, c, match->residual);
    }
}

/* Keeps the open entry with the largest gain; there is one. */
static void keep_best(kv_match *match)
{
    uint32_t best = UINT32_MAX;
    for (uint32_t i = 0; i < match->args.view->n; i++) {
        if (match->state[i] != OPEN) continue;
        if (best == UINT32_MAX || match->gain[i] > match->gain[best]) best = i;
    }
    assert(best != UINT32_MAX);
    match->state[best] = KEPT;
}

/* Fits the kept entries, and lists them. */
static void refit(kv_match *match, const kv_match_options *options, uint32_t n_kept, uint32_t *kept)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < match->args.view->n; i++) {
        if (match->state[i] == KEPT) kept[n++] = i;
    }
    assert(n == n_kept);
    fill(match->sum, match->args.n_queries, 0);
    if (n > 0) fit_weights(match, (kv_match_set){kept, n}, options, match->weights);
}

/* Drops kept entries that weigh nothing, at most n_max; returns how many. */
static uint32_t drop_weightless(kv_match *match, uint32_t n_kept, uint32_t n_max,
                                const uint32_t *kept)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < n_kept && n < n_max; i++) {
        if (logf(match->weights[i]) >= drop_beta) continue;
        match->state[kept[i]] = DROPPED;
        n++;
    }
    return n;
}

void kv_match_choose_omp(kv_match *match, uint32_t n_keep, const kv_match_options *options,
                         uint32_t *kept)
{
    uint32_t n_kept = 0, n_open = match->args.view->n;
    assert(n_keep >= 1);
    assert(n_keep <= n_open);
    assert(n_keep <= match->shape.t_max);
    memset(match->state, OPEN, n_open);
    fill(match->sum, match->args.n_queries, 0);
    for (uint32_t round = 0;; round++) {
        while (n_kept < n_keep) {
            const uint32_t n_new = n_kept < 300 ? 1 : n_kept < 1500 ? 4 : 8;
            find_gains(match);
            for (uint32_t i = 0; i < n_new && n_kept < n_keep; i++, n_kept++, n_open--)
                keep_best(match);
            refit(match, options, n_kept, kept);
        }
        if (round == DROP_ROUNDS) return;
        const uint32_t n_dropped = drop_weightless(match, n_kept, n_open, kept);
        if (n_dropped == 0) return;
        n_kept -= n_dropped;
        refit(match, options, n_kept, kept);
    }
}
