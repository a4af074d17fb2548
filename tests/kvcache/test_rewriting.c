/* tests/kvcache/test_rewriting.c - rewritings by themselves: against what published programs returned on the
 * golden layer, and against slow references. In the cache: test_kv_rewrite.c. */
#include "tests/kernels/golden_layer.h"
#include "tests/kvcache/score_problem.h"
#include "tests/test_main.h"

#include "base/random.h"
#include "kvcache/rewriting/rewriting.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { T = GOLDEN_TOKENS, D = GOLDEN_DIM, N_HEADS = 2, GUARD = 16 };

static const float GUARD_VALUE = 77.25f;

/* One head, and what becomes of it. */
typedef struct head {
    score_problem p;
    uint8_t fate[512];
    uint32_t n_put[512]; /* times that an entry was written */
} head;

static void put_key(void *ctx, uint32_t i, const float *key)
{
    head *h = ctx;
    memcpy(h->p.k + (size_t)i * h->p.k_dim, key, h->p.k_dim * sizeof *key);
    h->n_put[i]++;
}

static void put_value(void *ctx, uint32_t i, const float *value)
{
    head *h = ctx;
    memcpy(h->p.v + (size_t)i * h->p.v_dim, value, h->p.v_dim * sizeof *value);
    h->n_put[i]++;
}

static void *dirty(size_t n, size_t bytes)
{
    uint8_t *x = malloc((n + GUARD) * bytes);
    ck_assert_ptr_nonnull(x);
    memset(x, 0x7f, n * bytes);
    for (size_t i = 0; i < GUARD; i++)
        memcpy(x + (n + i) * bytes, &GUARD_VALUE, sizeof GUARD_VALUE);
    return x;
}

static void check_guard(const void *x, size_t n)
{
    for (size_t i = 0; i < GUARD; i++)
        ck_assert_mem_eq((const float *)x + n + i, &GUARD_VALUE, sizeof GUARD_VALUE);
}

/* With memory of the size that it asks for, and not a byte more. */
static void rewrite(head *h, const char *name)
{
    const kv_rewriting *rewriting = kv_rewriting_find(name);
    const kv_rewrite_shape shape = {h->p.n, h->p.k_dim, h->p.v_dim};
    const size_t n_indices = rewriting->n_indices != NULL ? rewriting->n_indices(&shape) : 0;
    const size_t n_floats = rewriting->n_floats(&shape);
    const kv_rewrite_work work = {dirty(n_indices, sizeof *work.index),
                                  dirty(n_floats, sizeof *work.rows)};
    memset(h->n_put, 0, sizeof h->n_put);
    rewriting->rewrite(&(kv_rewrite_args){.view = &h->p.view,
                                          .fate = h->fate,
                                          .k_dim = h->p.k_dim,
                                          .v_dim = h->p.v_dim,
                                          .rope = &h->p.rope,
                                          .work = work,
                                          .put_key = put_key,
                                          .put_value = put_value,
                                          .ctx = h});
    check_guard(work.index, n_indices);
    check_guard(work.rows, n_floats);
    free(work.index);
    free(work.rows);
}

/* ---- golden -------------------------------------------------------------------------------------- */

/* What stays at one half, bit t: token t. */
static const uint64_t KNORM[N_HEADS] = {0x9f0cfa2a394a, 0x0c15aee5db31};
static const uint64_t FINCH[N_HEADS] = {0xffff040504b1, 0xffff114a20c0};

static void open_golden(head *h, uint32_t kv_head, const uint64_t kept[N_HEADS])
{
    score_problem_golden(&h->p, kv_head, 1);
    for (uint32_t t = 0; t < T; t++)
        h->fate[t] = kept[kv_head] >> t & 1 ? KV_FATE_STAYS : KV_FATE_GOES;
}

static void check_row(const float got[D], const double want[D])
{
    for (uint32_t c = 0; c < D; c++)
        ck_assert_double_eq_tol((double)got[c], want[c], 1e-6);
}

START_TEST(merged_values_are_the_golden_ones)
{
    static const double sums[N_HEADS] = {0.39132, 9.79303};
    static const double first[D] = {.2106340, .0391665, -.3169940,  .5328399,
                                    .7280587, .6386316, -1.1919373, .0418557};
    for (uint32_t kv_head = 0; kv_head < N_HEADS; kv_head++) {
        head h;
        double sum = 0;
        open_golden(&h, kv_head, KNORM);
        rewrite(&h, "merge");
        for (uint32_t t = 0; t < T; t++) {
            for (uint32_t c = 0; c < D && h.fate[t] == KV_FATE_STAYS; c++)
                sum += (double)h.p.v[t * D + c];
        }
        ck_assert_double_eq_tol(sum, sums[kv_head], 1e-5);
        if (kv_head == 0) check_row(h.p.v + (size_t)__builtin_ctzll(KNORM[0]) * D, first);
        score_problem_deinit(&h.p);
    }
}
END_TEST

/* As published keys move back to their index; here forward by what went behind them, and so much further:
 * the number of all that went. */
static void turn_back(float key[D], double by)
{
    for (uint32_t c = 0; c < D / 2; c++) {
        const double angle = -by * pow(10000, -2.0 * c / D);
        const double x = (double)key[c], y = (double)key[c + D / 2];
        key[c] = (float)(x * cos(angle) - y * sin(angle));
        key[c + D / 2] = (float)(y * cos(angle) + x * sin(angle));
    }
}

/* Returns the sum over what stays; key_5: the sixth key of head 0. */
static double golden_rerotation(const uint64_t kept[N_HEADS], const double key_5[D])
{
    double sum = 0;
    for (uint32_t kv_head = 0; kv_head < N_HEADS; kv_head++) {
        head h;
        open_golden(&h, kv_head, kept);
        rewrite(&h, "rerotate");
        for (uint32_t t = 0, i = 0; t < T; t++) {
            if (h.fate[t] == KV_FATE_GOES) continue;
            float *key = h.p.k + (size_t)t * D;
            turn_back(key, T / 2);
            if (kv_head == 0 && i++ == 5) check_row(key, key_5);
            for (uint32_t c = 0; c < D; c++)
                sum += (double)key[c];
        }
        score_problem_deinit(&h.p);
    }
    return sum;
}

START_TEST(turned_keys_are_the_golden_ones)
{
    static const double finch[D] = {1.0859360,  1.5113263, .3250049,   -2.2683287,
                                    -2.0066936, -.5080917, -1.7928900, 1.3237638};
    static const double knorm[D] = {-1.0585477, .1308275, 1.6840440, 1.3887799,
                                    -.2131545,  .1657200, -.1500621, -.7227392};
    ck_assert_double_eq_tol(golden_rerotation(FINCH, finch), -6.331084, 2e-5);
    (void)golden_rerotation(KNORM, knorm);
}
END_TEST

/* To every later query it is as if the keys that went had never been: scores are those of the compact
 * sequence, whose next query has the number of its keys as position. */
START_TEST(scores_of_later_queries_are_those_of_the_compact_sequence)
{
    for (uint32_t kv_head = 0; kv_head < N_HEADS; kv_head++) {
        head h;
        open_golden(&h, kv_head, KNORM);
        rewrite(&h, "rerotate");
        for (uint32_t later = 0; later < 40; later += 13) {
            float here[D], compact[D], key[D];
            golden_query_at(kv_head * 2, 5, T + later, here);
            golden_query_at(kv_head * 2, 5, T / 2 + later, compact);
            for (uint32_t t = 0, i = 0; t < T; t++) {
                double got = 0, want = 0;
                if (h.fate[t] == KV_FATE_GOES) continue;
                golden_key_at(kv_head, t, i++, key);
                for (uint32_t c = 0; c < D; c++) {
                    got += (double)here[c] * (double)h.p.k[t * D + c];
                    want += (double)compact[c] * (double)key[c];
                }
                ck_assert_double_eq_tol(got, want, 1e-4);
            }
        }
        score_problem_deinit(&h.p);
    }
}
END_TEST

/* ---- random -------------------------------------------------------------------------------------- */

/* Entries of all fates; sinks and recent ones are guarded. */
static void open_random(head *h, uint32_t n, uint32_t k_dim, uint64_t seed)
{
    const score_shape shape = {.n = n, .group = 1, .k_dim = k_dim, .v_dim = 5, .d_model = 1};
    score_problem_random(&h->p, &shape, seed);
    const uint32_t n_guarded = (uint32_t)(seed % 4), share = 20 + (uint32_t)(seed % 7) * 10;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t x = random_at(seed, 40, i).word[0] % 100;
        h->fate[i] = x < share ? KV_FATE_GOES : KV_FATE_STAYS;
        if (x > 95 && seed % 2 == 1) h->fate[i] = KV_FATE_FIXED;
        if (i < n_guarded || i + n_guarded >= n) h->fate[i] = KV_FATE_GUARDED;
    }
}

static double dot(const float *a, const float *b, uint32_t n)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += (double)a[i] * (double)b[i];
    return sum;
}

static double cosine(const head *h, uint32_t i, uint32_t j)
{
    const uint32_t n = h->p.k_dim;
    const float *a = h->p.k + (size_t)i * n, *b = h->p.k + (size_t)j * n;
    return dot(a, b, n) / fmax(sqrt(dot(a, a, n)), 1e-6) / fmax(sqrt(dot(b, b, n)), 1e-6);
}

/* The entry that i's value goes to. */
static uint32_t target_of(const head *h, uint32_t i)
{
    uint32_t best = h->p.n;
    for (uint32_t j = 0; j < h->p.n; j++) {
        if (h->fate[j] == KV_FATE_GOES) continue;
        if (best == h->p.n || cosine(h, i, j) > cosine(h, i, best)) best = j;
    }
    return best;
}

static void merge_slowly(const head *h, uint32_t j, float *out)
{
    const uint32_t n = h->p.v_dim;
    const float *v = h->p.v + (size_t)j * n;
    double sum[8] = {0}, weight = 1;
    for (uint32_t i = 0; i < h->p.n; i++) {
        if (h->fate[i] != KV_FATE_GOES || target_of(h, i) != j) continue;
        const float *other = h->p.v + (size_t)i * n;
        const double a = sqrt(dot(other, other, n)), b = sqrt(dot(v, v, n));
        const double w = fmax(cosine(h, i, j), 0) * a / (a + b + 1e-6);
        for (uint32_t c = 0; c < n; c++)
            sum[c] += w * (double)other[c];
        weight += w;
    }
    for (uint32_t c = 0; c < n; c++)
        out[c] = (float)(((double)v[c] + sum[c]) / weight);
}

START_TEST(any_head_is_merged_as_a_slow_reference_does)
{
    static const uint32_t sizes[] = {2, 3, 63, 64, 65, 130, 200};
    uint32_t n_merged = 0;
    for (uint64_t seed = 0; seed < 21; seed++) {
        head h;
        float want[200][5], before[200][5];
        const uint32_t n = sizes[seed % 7];
        open_random(&h, n, 3 + (uint32_t)(seed % 3) * 7, seed);
        for (uint32_t i = 0; i < n; i++) {
            memcpy(before[i], h.p.v + (size_t)i * 5, sizeof before[i]);
            merge_slowly(&h, i, want[i]);
        }
        rewrite(&h, "merge");
        for (uint32_t i = 0; i < n; i++) {
            const float *got = h.p.v + (size_t)i * 5;
            ck_assert_uint_le(h.n_put[i], h.fate[i] == KV_FATE_STAYS);
            n_merged += h.n_put[i];
            if (h.n_put[i] == 0) ck_assert_mem_eq(got, before[i], sizeof before[i]);
            for (uint32_t c = 0; c < 5 && h.fate[i] == KV_FATE_STAYS; c++)
                ck_assert_double_eq_tol((double)got[c], (double)want[i][c], 1e-6);
        }
        score_problem_deinit(&h.p);
    }
    ck_assert_uint_gt(n_merged, 100);
}
END_TEST

/* Where entries stand to later queries: their positions, and how far they have moved. */
START_TEST(keys_close_up_to_the_next_fixed_one_and_keep_their_order)
{
    uint32_t n_moved = 0, n_held = 0;
    for (uint64_t seed = 0; seed < 20; seed++) {
        head h;
        float before[100 * 10];
        open_random(&h, 100, 10, seed);
        h.p.rope.n = seed % 2 == 0 ? 10 : 6; /* of some models only the first channels turn */
        const uint32_t half = h.p.rope.n / 2;
        memcpy(before, h.p.k, sizeof before);
        rewrite(&h, "rerotate");
        for (uint32_t i = 0; i < 100; i++) {
            uint32_t delta = 0;
            for (uint32_t j = i + 1; j < 100 && h.fate[j] != KV_FATE_FIXED; j++)
                delta += h.fate[j] == KV_FATE_GOES;
            if (h.fate[i] == KV_FATE_GOES || h.fate[i] == KV_FATE_FIXED) delta = 0;
            ck_assert_uint_eq(h.n_put[i], delta > 0);
            n_moved += delta > 0;
            n_held += h.fate[i] == KV_FATE_FIXED;
            for (uint32_t c = 0; c < 10; c++) {
                const bool is_low = c < half, turns = c < h.p.rope.n;
                const uint32_t other = is_low ? c + half : c - half;
                const double x = (double)before[i * 10 + c];
                const double angle =
                    turns ? (double)delta * (double)h.p.freq[is_low ? c : other] : 0;
                const double y = turns ? (double)before[i * 10 + other] : 0;
                ck_assert_double_eq_tol((double)h.p.k[i * 10 + c],
                                        x * cos(angle) + (is_low ? -y : y) * sin(angle), 1e-6);
            }
        }
        score_problem_deinit(&h.p);
    }
    ck_assert_uint_gt(n_moved, 500);
    ck_assert_uint_gt(n_held, 10);
}
END_TEST

/* ---- ends of the scale ---------------------------------------------------------------------------- */

static void open_small(head *h, uint32_t n)
{
    score_problem_init(&h->p, &(score_shape){.n = n, .group = 1, .k_dim = 2, .v_dim = 2});
    memset(h->fate, KV_FATE_STAYS, sizeof h->fate);
}

static void set_entry(head *h, uint32_t i, const float k[2], const float v[2])
{
    memcpy(h->p.k + 2 * (size_t)i, k, 2 * sizeof *k);
    memcpy(h->p.v + 2 * (size_t)i, v, 2 * sizeof *v);
}

START_TEST(of_equal_keys_the_oldest_takes_the_value)
{
    head h;
    open_small(&h, 4);
    for (uint32_t i = 0; i < 4; i++)
        set_entry(&h, i, (float[2]){1, 2}, (float[2]){(float)i, 1});
    h.fate[2] = KV_FATE_GOES;
    rewrite(&h, "merge");
    ck_assert_uint_eq(h.n_put[0], 1);
    ck_assert_uint_eq(h.n_put[1] + h.n_put[3], 0);
    score_problem_deinit(&h.p);
}
END_TEST

/* As if it had been evicted. */
START_TEST(what_resembles_nothing_or_what_takes_nothing_is_lost)
{
    static const uint8_t fates[] = {KV_FATE_GUARDED, KV_FATE_FIXED, KV_FATE_STAYS};
    for (uint32_t k = 0; k < 3; k++) {
        head h;
        open_small(&h, 4);
        set_entry(&h, 0, (float[2]){1, 0.1f}, (float[2]){1, 1}); /* more like 1 than 3 is */
        set_entry(&h, 1, (float[2]){1, 0}, (float[2]){5, 5});
        set_entry(&h, 2, (float[2]){0, 0}, (float[2]){5, 5}); /* like nothing */
        set_entry(&h, 3, (float[2]){1, 1}, (float[2]){2, 3});
        h.fate[0] = fates[k];
        h.fate[1] = h.fate[2] = KV_FATE_GOES;
        rewrite(&h, "merge");
        ck_assert_uint_eq(h.n_put[0], fates[k] == KV_FATE_STAYS);
        ck_assert_uint_eq(h.n_put[3], 0);
        score_problem_deinit(&h.p);
    }
}
END_TEST

START_TEST(a_copy_of_what_stays_changes_nothing)
{
    head h;
    open_small(&h, 2);
    for (uint32_t i = 0; i < 2; i++)
        set_entry(&h, i, (float[2]){0.3f, 2}, (float[2]){0.7f, -1});
    h.fate[1] = KV_FATE_GOES;
    rewrite(&h, "merge");
    ck_assert_float_eq_tol(h.p.v[0], 0.7f, 1e-7f);
    ck_assert_float_eq_tol(h.p.v[1], -1, 1e-7f);
    score_problem_deinit(&h.p);
}
END_TEST

START_TEST(large_and_small_numbers_stay_finite)
{
    static const float scales[] = {1e-38f, 1e-20f, 1e15f, 3e37f};
    for (uint32_t s = 0; s < 4; s++) {
        head h;
        open_random(&h, 100, 10, 9);
        for (uint32_t i = 0; i < 100 * 10; i++)
            h.p.k[i] *= scales[s];
        for (uint32_t i = 0; i < 100 * 5; i++)
            h.p.v[i] *= scales[s];
        rewrite(&h, "merge");
        rewrite(&h, "rerotate");
        for (uint32_t i = 0; i < 100 * 10; i++)
            ck_assert_float_finite(h.p.k[i]);
        for (uint32_t i = 0; i < 100 * 5; i++)
            ck_assert_float_finite(h.p.v[i]);
        score_problem_deinit(&h.p);
    }
}
END_TEST

/* ---- names --------------------------------------------------------------------------------------- */

START_TEST(names_are_read_in_any_order_and_run_in_one)
{
    kv_rewritings_chosen chosen;
    err_info info = {0};
    ck_assert_int_eq(kv_rewriting_parse("none", &chosen, &info), ERR_OK);
    ck_assert_ptr_null(chosen.list[0]);
    ck_assert_str_eq(chosen.name, "none");
    ck_assert_int_eq(kv_rewriting_parse("rerotate,merge", &chosen, &info), ERR_OK);
    ck_assert_str_eq(chosen.list[0]->name, "merge");
    ck_assert_str_eq(chosen.list[1]->name, "rerotate");
    ck_assert_ptr_null(chosen.list[2]);
    ck_assert_str_eq(chosen.name, "merge,rerotate");
    ck_assert_int_eq(kv_rewriting_parse("rerotate", &chosen, &info), ERR_OK);
    ck_assert_str_eq(chosen.name, "rerotate");
    ck_assert_ptr_null(chosen.list[1]);
}
END_TEST

START_TEST(what_names_no_rewriting_is_said)
{
    static const char *const cases[][2] = {
        {"mend", "kv-rewrite: 'mend' is unknown; known are: none merge rerotate"},
        {"", "kv-rewrite: '' is unknown"},
        {NULL, "kv-rewrite: '' is unknown"},
        {"merge,", "kv-rewrite: '' is unknown"},
        {",merge", "kv-rewrite: '' is unknown"},
        {"none,merge", "kv-rewrite: 'none' is unknown"},
        {"merg", "kv-rewrite: 'merg' is unknown"},
        {"merges", "kv-rewrite: 'merges' is unknown"},
        {"merge,rerotate,merge", "kv-rewrite: 'merge,rerotate,merge' has merge twice"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        kv_rewritings_chosen chosen;
        err_info info = {0};
        ck_assert_int_eq(kv_rewriting_parse(cases[i][0], &chosen, &info), ERR_BAD_CONFIG);
        ck_assert_msg(strncmp(info.message, cases[i][1], strlen(cases[i][1])) == 0, "%s",
                      info.message);
    }
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(merged_values_are_the_golden_ones),
    TEST_CASE(turned_keys_are_the_golden_ones),
    TEST_CASE(scores_of_later_queries_are_those_of_the_compact_sequence),
    TEST_CASE(any_head_is_merged_as_a_slow_reference_does),
    TEST_CASE(keys_close_up_to_the_next_fixed_one_and_keep_their_order),
    TEST_CASE(of_equal_keys_the_oldest_takes_the_value),
    TEST_CASE(what_resembles_nothing_or_what_takes_nothing_is_lost),
    TEST_CASE(a_copy_of_what_stays_changes_nothing),
    TEST_CASE(large_and_small_numbers_stay_finite),
    TEST_CASE(names_are_read_in_any_order_and_run_in_one),
    TEST_CASE(what_names_no_rewriting_is_said),
    TEST_CASES_END,
};
