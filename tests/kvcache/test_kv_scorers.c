/* tests/kvcache/test_kv_scorers.c - scorers against their formulas, written down plainly; over several
 * chunks, and with gaps between the positions. */
#include "tests/kvcache/score_problem.h"
#include "tests/test_main.h"

#include "kvcache/scoring/allocator.h"
#include "kvcache/scoring/future_queries.h"
#include "kvcache/scoring/methods.h"

#include <math.h>

/* ---- keys, values, attention --------------------------------------------------------------------- */

enum { N = 203, GROUP = 3, K = 10, V = 6, N_QUERIES = 7 };
static const score_shape SHAPE = {N, GROUP, K, V, N_QUERIES, 12};

static double dot(const float *a, const float *b, uint32_t n)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += (double)a[i] * (double)b[i];
    return sum;
}

/* p of one row over all entries. */
static void plain_shares(const score_problem *p, uint32_t row, double out[N])
{
    double sum = 0;
    for (uint32_t i = 0; i < N; i++) {
        const bool is_seen = p->positions[i] <= p->q_positions[row / GROUP];
        out[i] = is_seen ? exp(dot(p->q + row * K, p->k + i * K, K) * (double)p->args.scale) : 0;
        sum += out[i];
    }
    for (uint32_t i = 0; i < N; i++)
        out[i] /= sum;
}

static void check_close(const char *name, const float *got, const double *want, uint32_t n)
{
    double most = 0;
    for (uint32_t i = 0; i < n; i++)
        most = fmax(most, fabs(want[i]));
    ck_assert_double_gt(most, 0);
    for (uint32_t i = 0; i < n; i++)
        ck_assert_msg(fabs((double)got[i] - want[i]) <= 3e-6 * most, "%s at %u: %.9g, not %.9g",
                      name, i, (double)got[i], want[i]);
}

START_TEST(attention_of_the_window_is_the_formula)
{
    score_problem p;
    float got[N];
    double want[N] = {0}, error[N] = {0}, even[N] = {0};
    score_problem_random(&p, &SHAPE, 3);
    for (uint32_t row = 0; row < N_QUERIES * GROUP; row++) {
        double share[N], output[V] = {0};
        plain_shares(&p, row, share);
        for (uint32_t i = 0; i < N; i++) {
            want[i] += share[i] / (N_QUERIES * GROUP);
            even[i] += share[i] * (N - N_QUERIES + row / GROUP) / (N_QUERIES * GROUP);
            for (uint32_t c = 0; c < V; c++)
                output[c] += share[i] * (double)p.v[i * V + c];
        }
        for (uint32_t i = 0; i < N; i++) {
            double square = 0;
            for (uint32_t c = 0; c < V; c++)
                square += pow((double)p.v[i * V + c] - output[c], 2);
            error[i] += pow(share[i] / (1 - share[i]), 2) * square / GROUP;
        }
    }
    score_problem_run(&p, kv_scorer_find("tova"), NAN, got);
    check_close("tova", got, want, N - N_QUERIES);
    for (uint32_t i = N - N_QUERIES; i < N; i++)
        ck_assert_float_gt(got[i], got[i - 1]);
    score_problem_run(&p, kv_scorer_find("dropkv"), NAN, got);
    check_close("dropkv", got, error, N - N_QUERIES);
    score_problem_run(&p, kv_scorer_find("finch"), NAN, got);
    check_close("finch", got, even, N - N_QUERIES);
    for (uint32_t i = N - N_QUERIES; i < N; i++)
        ck_assert_float_gt(got[i], got[i - 1]);
    score_problem_deinit(&p);
}
END_TEST

/* R x of a query before RoPE, averaged over the positions to come. */
static void plain_turn(const score_problem *p, const double x[K], double out[K])
{
    enum { FUTURE = 512 };
    for (uint32_t c = 0; c < K; c++)
        out[c] = 0;
    for (uint32_t m = p->args.length; m < p->args.length + FUTURE; m++) {
        for (uint32_t c = 0; c < K / 2; c++) {
            const double angle = m * (double)p->freq[c];
            out[c] += (x[c] * cos(angle) - x[c + K / 2] * sin(angle)) / FUTURE;
            out[c + K / 2] += (x[c] * sin(angle) + x[c + K / 2] * cos(angle)) / FUTURE;
        }
    }
}

/* z of one query head for an entry: the form is computed as (R' k)' S (R' k). */
static void plain_expected(const score_problem *p, uint32_t g, double z[N])
{
    double turn[K][K], mean[K]; /* columns of R; R m */
    double m[K];
    for (uint32_t c = 0; c < K; c++) {
        double unit[K] = {0};
        unit[c] = 1;
        plain_turn(p, unit, turn[c]);
        m[c] = (double)p->mean[g * K + c];
    }
    plain_turn(p, m, mean);
    for (uint32_t i = 4; i < N; i++) {
        double back[K] = {0}, form = 0, linear = 0;
        for (uint32_t c = 0; c < K; c++) {
            linear += mean[c] * (double)p->k[i * K + c];
            for (uint32_t r = 0; r < K; r++)
                back[c] += turn[c][r] * (double)p->k[i * K + r];
        }
        for (uint32_t r = 0; r < K; r++) {
            for (uint32_t c = 0; c < K; c++)
                form += back[r] * (double)p->cov[(g * K + r) * K + c] * back[c];
        }
        z[i] = linear / sqrt(K) + form / (2 * K);
    }
}

START_TEST(expected_attention_is_the_formula)
{
    score_problem p;
    float got[N];
    double want[N] = {0};
    score_problem_random(&p, &SHAPE, 4);
    for (uint32_t g = 0; g < GROUP; g++) {
        double z[N], sum = 0;
        plain_expected(&p, g, z);
        for (uint32_t i = 4; i < N; i++)
            sum += exp(z[i]);
        for (uint32_t i = 4; i < N; i++)
            want[i] += exp(z[i]) / sum / GROUP;
    }
    for (uint32_t i = 4; i < N; i++)
        want[i] = (want[i] + 0.01) * sqrt(dot(p.v + i * V, p.v + i * V, V));
    score_problem_run(&p, kv_scorer_find("expected_attention"), NAN, got);
    check_close("expected_attention", got + 4, want + 4, N - 4);
    for (uint32_t i = 0; i < 4; i++)
        ck_assert_float_gt(got[i], 1);
    score_problem_deinit(&p);
}
END_TEST

/* x of a x = b, by elimination; a is symmetric and well above 0. */
static void solve(double a[V][V], double b[V])
{
    for (uint32_t c = 0; c < V; c++) {
        for (uint32_t r = 0; r < V; r++) {
            const double scale = a[r][c] / a[c][c];
            if (r == c) continue;
            for (uint32_t k = 0; k < V; k++)
                a[r][k] -= scale * a[c][k];
            b[r] -= scale * b[c];
        }
    }
    for (uint32_t c = 0; c < V; c++)
        b[c] /= a[c][c];
}

/* w of one query head for the entries behind the sinks. */
static void plain_weights(const score_problem *p, uint32_t g, double w[N])
{
    double m[K], mean[K], square = 0, most = -1;
    for (uint32_t c = 0; c < K; c++)
        m[c] = (double)p->mean[g * K + c];
    plain_turn(p, m, mean);
    for (uint32_t c = 0; c < K; c++)
        square += mean[c] * mean[c];
    for (uint32_t i = 4; i < N; i++) {
        double sum = 0;
        for (uint32_t c = 0; c < K; c++)
            sum += mean[c] * (double)p->k[i * K + c];
        w[i] = sum / sqrt(square * dot(p->k + i * K, p->k + i * K, K));
        most = fmax(most, w[i]);
    }
    for (uint32_t i = 4; i < N; i++)
        w[i] = exp(5 * (w[i] - most));
}

START_TEST(capacity_is_the_formula)
{
    score_problem p;
    float got[N];
    double want[N] = {0};
    score_problem_random(&p, &SHAPE, 14);
    for (uint32_t g = 0; g < GROUP; g++) {
        double w[N], all[V][V] = {{0}};
        plain_weights(&p, g, w);
        for (uint32_t r = 0; r < V; r++) {
            for (uint32_t c = 0; c < V; c++) {
                all[r][c] = r == c;
                for (uint32_t i = 4; i < N; i++)
                    all[r][c] += (w[i] + 1e-6) * (double)p.v[i * V + r] * (double)p.v[i * V + c];
            }
        }
        for (uint32_t i = 4; i < N; i++) {
            double a[V][V], x[V];
            memcpy(a, all, sizeof a);
            for (uint32_t c = 0; c < V; c++)
                x[c] = (double)p.v[i * V + c];
            solve(a, x);
            for (uint32_t c = 0; c < V; c++)
                want[i] += w[i] * (double)p.v[i * V + c] * x[c] / GROUP;
        }
    }
    score_problem_run(&p, kv_scorer_find("cap"), NAN, got);
    check_close("cap", got + 4, want + 4, N - 4);
    for (uint32_t i = 0; i < 4; i++)
        ck_assert_float_gt(got[i], 1);
    score_problem_deinit(&p);
}
END_TEST

START_TEST(keys_are_compared_by_the_formula)
{
    score_problem p;
    float got[N];
    double anchor[K] = {0}, want[N], length = 0;
    score_problem_random(&p, &SHAPE, 5);
    for (uint32_t i = 0; i < N * K; i++)
        anchor[i % K] += (double)p.k[i] / sqrt(dot(p.k + i / K * K, p.k + i / K * K, K)) / N;
    for (uint32_t c = 0; c < K; c++)
        length += anchor[c] * anchor[c];
    for (uint32_t i = 0; i < N; i++) {
        want[i] = 0;
        for (uint32_t c = 0; c < K; c++)
            want[i] -= anchor[c] * (double)p.k[i * K + c];
        want[i] /= sqrt(length * dot(p.k + i * K, p.k + i * K, K));
    }
    score_problem_run(&p, kv_scorer_find("keydiff"), NAN, got);
    check_close("keydiff", got, want, N);
    score_problem_deinit(&p);
}
END_TEST

/* Ranks of one partition by the range of the next, times lag. */
static void plain_lags(const score_problem *p, uint32_t first, uint32_t lag, double *rank)
{
    double mean[64] = {0};
    for (uint32_t side = 0; side < 2; side++) {
        const uint32_t dim = side == 0 ? K : V;
        const float *x = side == 0 ? p->k : p->v;
        double f[64], sum = 0;
        for (uint32_t i = 0; i < lag; i++) {
            double at[K], average = 0, square = 0;
            for (uint32_t c = 0; c < dim; c++) {
                double low = INFINITY, high = -INFINITY;
                for (uint32_t j = first + lag; j < first + 2 * lag; j++) {
                    low = fmin(low, (double)x[j * dim + c]);
                    high = fmax(high, (double)x[j * dim + c]);
                }
                at[c] = ((double)x[(first + i) * dim + c] - low) / (high - low);
                average += at[c] / dim;
            }
            for (uint32_t c = 0; c < dim; c++)
                square += pow(at[c] - average, 2) / (dim - 1);
            f[i] = exp(sqrt(square));
            sum += f[i];
        }
        for (uint32_t i = 0; i < lag; i++)
            mean[i] += f[i] / sum / 2;
    }
    for (uint32_t i = 0; i < lag; i++) {
        rank[i] = 0;
        for (uint32_t j = 0; j < lag; j++)
            rank[i] += mean[j] < mean[i];
    }
}

START_TEST(lagkv_ranks_by_the_formula)
{
    enum { LAG = 64, END = 4 + (N - 4) / LAG * LAG - LAG };
    score_problem p;
    float got[N], work[(KV_SCORE_CHUNK + 2) * (K + V) + 2 * LAG];
    score_problem_random(&p, &SHAPE, 9);
    p.args.work = work;
    kv_lagkv_score(&p.args, LAG, got);
    for (uint32_t first = 4; first < END; first += LAG) {
        double want[LAG];
        plain_lags(&p, first, LAG, want);
        for (uint32_t i = 0; i < LAG; i++)
            ck_assert_double_eq((double)got[first + i] * LAG, want[i]);
    }
    ck_assert_float_eq(got[END], 1);
    for (uint32_t i = END + 1; i < N; i++)
        ck_assert_float_gt(got[i], got[i - 1]);
    score_problem_deinit(&p);
}
END_TEST

/* The best half by attention go first, so it is the others that show (s + eps) u. */
static void check_critical(const char *name, double power)
{
    enum { D_MODEL = 12, HEADS = 2 * GROUP };
    score_problem p;
    float got[N], base[N];
    score_problem_random(&p, &SHAPE, 6);
    p.args.n_keep = 0;
    p.args.head = 1;
    score_problem_run(&p, kv_scorer_find("snapkv"), NAN, base);
    double want[N];
    for (uint32_t i = 0; i < N; i++) {
        want[i] = 0;
        for (uint32_t g = 0; g < GROUP; g++) {
            double sum = 0;
            for (uint32_t r = 0; r < D_MODEL; r++) {
                const float *w = p.out_proj + (r * HEADS + GROUP + g) * V;
                sum += pow(fabs(dot(w, p.v + i * V, V)), power);
            }
            want[i] += pow(sum, 1 / power) / GROUP * ((double)base[i] + 1e-4);
        }
    }
    score_problem_run(&p, kv_scorer_find(name), NAN, got);
    check_close(name, got, want, N);
    score_problem_deinit(&p);
}

START_TEST(criticalkv_weights_by_the_norm_of_its_name)
{
    check_critical("criticalkv", 1);
    check_critical("criticalkv_l2", 2);
}
END_TEST

/* |W_O v|_2 of an entry in head g of the second KV head. */
static double plain_output(const score_problem *p, uint32_t g, uint32_t i)
{
    double sum = 0;
    for (uint32_t r = 0; r < p->d_model; r++)
        sum += pow(dot(p->out_proj + (r * 2 * GROUP + GROUP + g) * V, p->v + i * V, V), 2);
    return sqrt(sum);
}

/* With a replay and behind it, and without one. */
START_TEST(kvzip_plus_weighs_by_what_is_added_to_what)
{
    for (uint32_t has_replay = 0; has_replay < 2; has_replay++) {
        score_problem p;
        float got[N];
        double want[N] = {0};
        score_problem_random(&p, &SHAPE, 15);
        p.args.head = 1;
        for (uint32_t i = 0; i < GROUP * N; i++)
            p.replay[i] *= 0.1f; /* so that sometimes it is the latest queries that count */
        for (uint32_t row = 0; row < N_QUERIES * GROUP; row++) {
            double share[N];
            plain_shares(&p, row, share);
            for (uint32_t i = 0; i < N; i++)
                want[i] = fmax(want[i], share[i] * plain_output(&p, row % GROUP, i) /
                                            (double)p.input_norm[row / GROUP]);
        }
        uint32_t n_raised = 0;
        for (uint32_t i = 0; i < GROUP * N && has_replay == 1; i++) {
            const double replayed = (double)p.replay[i] * plain_output(&p, i / N, i % N);
            n_raised += replayed > want[i % N];
            want[i % N] = fmax(want[i % N], replayed);
        }
        if (has_replay == 0) p.args.replay = NULL;
        if (has_replay == 1) ck_assert(n_raised > 20 && n_raised < GROUP * N - 20);
        score_problem_run(&p, kv_scorer_find("kvzip_plus"), NAN, got);
        check_close("kvzip_plus", got + 4, want + 4, N - 4);
        for (uint32_t i = 0; i < 4; i++)
            ck_assert_float_gt(got[i], 1);
        score_problem_deinit(&p);
    }
}
END_TEST

/* All keys are equal, so that attention ties where it does not end. */
START_TEST(criticalkv_chooses_exactly_half_by_attention)
{
    enum { N_KEEP = 60, N_FIRST = N_KEEP / 2 };
    score_problem p;
    float got[N], least = INFINITY, most = 0;
    uint32_t index[N_FIRST], next = 0;
    score_problem_random(&p, &SHAPE, 10);
    for (uint32_t i = 0; i < N * K; i++)
        p.k[i] = 1;
    p.args.n_keep = N_KEEP;
    score_problem_run(&p, kv_scorer_find("criticalkv"), NAN, got);
    kv_keep_best(got, N, N_FIRST, index);
    for (uint32_t i = 0; i < N; i++) {
        const bool is_first = next < N_FIRST && index[next] == i;
        next += is_first;
        if (is_first) least = fminf(least, got[i]);
        if (!is_first) most = fmaxf(most, got[i]);
    }
    ck_assert_float_ge(least, most + 1);
    for (uint32_t i = 0; i < N_FIRST - N_QUERIES; i++)
        ck_assert_uint_eq(index[i], i + 2); /* the first two have fewer neighbours */
    score_problem_deinit(&p);
}
END_TEST

START_TEST(a_projection_of_any_type_weighs_the_same)
{
    static const char *const names[] = {"criticalkv", "criticalkv_l2"};
    for (size_t k = 0; k < 2; k++) {
        score_problem p;
        float wide[N], narrow[N];
        uint16_t halves[12 * 2 * GROUP * V];
        score_problem_random(&p, &SHAPE, 7);
        for (uint32_t i = 0; i < 12 * 2 * GROUP * V; i++) {
            halves[i] = bf16_from_f32(p.out_proj[i]);
            p.out_proj[i] = f32_from_bf16(halves[i]);
        }
        score_problem_run(&p, kv_scorer_find(names[k]), NAN, wide);
        p.projection.data = halves;
        p.projection.type = DTYPE_BF16;
        score_problem_run(&p, kv_scorer_find(names[k]), NAN, narrow);
        ck_assert_mem_eq(wide, narrow, sizeof wide);
        for (uint32_t i = 0; i < 12 * 2 * GROUP * V; i++) {
            halves[i] = f16_from_f32(p.out_proj[i]);
            p.out_proj[i] = f32_from_f16(halves[i]);
        }
        p.projection.type = DTYPE_F16;
        score_problem_run(&p, kv_scorer_find(names[k]), NAN, narrow);
        p.projection.data = p.out_proj;
        p.projection.type = DTYPE_F32;
        score_problem_run(&p, kv_scorer_find(names[k]), NAN, wide);
        ck_assert_mem_eq(wide, narrow, sizeof wide);
        score_problem_deinit(&p);
    }
}
END_TEST

/* ---- uses ---------------------------------------------------------------------------------------------- */

START_TEST(uses_are_weighed_by_the_formulas)
{
    static const uint32_t last_use[] = {1000, 744, 0, 999}, n_uses[] = {0, 10, 40, 1};
    static const double lru[] = {0, -256, -1000, -1}, paper[] = {0, -246, -960, 0};
    const double plus[] = {0.5, 0.25 + 0.125, exp2(-1000.0 / 256) / 2 + 0.5,
                           exp2(-1.0 / 256) / 2 + 0.0125};
    score_problem p;
    float got[4];
    score_problem_init(&p, &(score_shape){4, 1, 2, 2, 1, 1});
    memcpy(p.last_use, last_use, sizeof last_use);
    memcpy(p.n_uses, n_uses, sizeof n_uses);
    score_problem_run(&p, kv_scorer_find("lru"), NAN, got);
    check_close("lru", got, lru, 4);
    score_problem_run(&p, kv_scorer_find("lru_plus"), NAN, got);
    check_close("lru_plus", got, plus, 4);
    score_problem_run(&p, kv_scorer_find("paper_lru_plus"), NAN, got);
    check_close("paper_lru_plus", got, paper, 4);
    score_problem_deinit(&p);
}
END_TEST

START_TEST(chance_belongs_to_a_position_of_a_head)
{
    score_problem p;
    float all[N], rest[N], other[N];
    score_problem_random(&p, &SHAPE, 8);
    score_problem_run(&p, kv_scorer_find("random"), NAN, all);
    p.args.head = 1;
    score_problem_run(&p, kv_scorer_find("random"), NAN, other);
    p.args.head = 0;
    p.view.positions += 50;
    p.view.n -= 50;
    p.n -= 50;
    score_problem_run(&p, kv_scorer_find("random"), NAN, rest);
    ck_assert_mem_eq(rest, all + 50, (N - 50) * sizeof *rest);
    uint32_t n_equal = 0;
    double sum = 0;
    for (uint32_t i = 0; i < N; i++) {
        n_equal += all[i] == other[i];
        sum += (double)all[i] / N;
    }
    ck_assert_uint_le(n_equal, 2);
    ck_assert_double_eq_tol(sum, 0.5, 0.1);
    score_problem_deinit(&p);
}
END_TEST

/* The last channels of a latent turn, in pairs beside each other: as half-split pairs in another order. */
START_TEST(turned_channels_may_be_the_last_and_interleaved)
{
    enum { TURNED = 6, FIRST = 3, DIM = FIRST + TURNED };
    static const float freq[TURNED / 2] = {1, 0.4f, 0.07f};
    const kv_rope halves = {.freq = freq, .n = TURNED, .scale = 1.5f};
    kv_rope pairs = halves;
    pairs.first = FIRST;
    pairs.is_interleaved = true;
    float turn[TURNED], x[2 * DIM], y[TURNED];
    kv_future_turn(&halves, 17, 4, turn);
    for (uint32_t i = 0; i < 2 * DIM; i++)
        x[i] = 1 + (float)i;
    for (uint32_t c = 0; c < TURNED; c++)
        y[c % 2 * (TURNED / 2) + c / 2] = x[2 * (FIRST + c)];
    kv_future_rotate(&pairs, turn, x, 2);
    kv_future_rotate(&halves, turn, y, 1);
    for (uint32_t i = 0; i < 2 * DIM; i++) {
        const uint32_t c = i / 2 - FIRST;
        const bool is_turned = i % 2 == 0 && i >= 2 * FIRST;
        const float want = is_turned ? y[c % 2 * (TURNED / 2) + c / 2] : 1 + (float)i;
        ck_assert_float_eq(x[i], want);
    }
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(attention_of_the_window_is_the_formula),
    TEST_CASE(expected_attention_is_the_formula),
    TEST_CASE(capacity_is_the_formula),
    TEST_CASE(turned_channels_may_be_the_last_and_interleaved),
    TEST_CASE(keys_are_compared_by_the_formula),
    TEST_CASE(lagkv_ranks_by_the_formula),
    TEST_CASE(criticalkv_weights_by_the_norm_of_its_name),
    TEST_CASE(kvzip_plus_weighs_by_what_is_added_to_what),
    TEST_CASE(criticalkv_chooses_exactly_half_by_attention),
    TEST_CASE(a_projection_of_any_type_weighs_the_same),
    TEST_CASE(uses_are_weighed_by_the_formulas),
    TEST_CASE(chance_belongs_to_a_position_of_a_head),
    TEST_CASES_END,
};
