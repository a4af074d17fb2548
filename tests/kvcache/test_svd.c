/* tests/kvcache/test_svd.c - the axes of a matrix, the bases made of them, and which pages lean on which. */
#include "tests/kernels/golden_layer.h"
#include "tests/kvcache/fake_model.h"
#include "tests/test_main.h"

#include "base/random.h"
#include "kvcache/basis.h"
#include "kvcache/compression/principal_axes.h"

#include <math.h>
#include <stdlib.h>

/* ---- axes ---------------------------------------------------------------------------------------- */

enum { N_MAX = 130 };

static double dot(const double *x, const double *y, uint32_t n)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += x[i] * y[i];
    return sum;
}

/* A sum of n_rows outer products of random rows, and a copy. */
static void fill(double *a, double *copy, uint32_t n, uint32_t n_rows)
{
    memset(a, 0, (size_t)n * n * sizeof *a);
    for (uint32_t t = 0; t < n_rows; t++) {
        for (uint32_t r = 0; r < n; r++) {
            for (uint32_t c = 0; c < n; c++)
                a[r * n + c] += ((double)random_uniform(n, t, r) - 0.4) *
                                ((double)random_uniform(n, t, c) - 0.4);
        }
    }
    memcpy(copy, a, (size_t)n * n * sizeof *a);
}

/* a' v = lambda v with lambda = |v|, at right angles and by falling length; the trace is that of a. */
static void check_axes(uint32_t n, uint32_t n_rows)
{
    static double a[N_MAX * N_MAX], copy[N_MAX * N_MAX];
    double trace = 0, sum = 0, before = INFINITY;
    fill(a, copy, n, n_rows);
    principal_axes(a, n);
    for (uint32_t r = 0; r < n; r++) {
        const double *v = a + (size_t)r * n, length = sqrt(dot(v, v, n));
        trace += copy[(size_t)r * n + r];
        sum += length;
    }
    for (uint32_t r = 0; r < n; r++) {
        const double *v = a + (size_t)r * n, length = sqrt(dot(v, v, n));
        ck_assert_double_le(length, before * (1 + 1e-12));
        before = length;
        for (uint32_t q = 0; q < r; q++)
            ck_assert_double_le(fabs(dot(v, a + (size_t)q * n, n)), 1e-9 * trace * trace);
        for (uint32_t c = 0; c < n; c++)
            ck_assert_double_eq_tol(dot(copy + (size_t)c * n, v, n), length * v[c],
                                    1e-9 * trace * trace);
    }
    ck_assert_double_eq_tol(sum, trace, 1e-9 * trace);
}

START_TEST(rows_become_the_eigenvectors)
{
    static const uint32_t sizes[] = {1, 2, 3, 8, 17, 64, 128, 130};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        check_axes(sizes[i], 2 * sizes[i]);
        check_axes(sizes[i], 1 + sizes[i] / 3); /* of low rank */
    }
    double zeros[9] = {0};
    principal_axes(zeros, 3);
    for (int i = 0; i < 9; i++)
        ck_assert_double_eq(zeros[i], 0);
}
END_TEST

/* ---- bases --------------------------------------------------------------------------------------- */

/* Rows of one head, a basis of them, and what is left of them in it. */
typedef struct problem {
    kv_head_shape shape;
    uint32_t n;
    float k[GOLDEN_TOKENS][GOLDEN_DIM], v[GOLDEN_TOKENS][GOLDEN_DIM];
    double k_sum[GOLDEN_DIM * GOLDEN_DIM], v_sum[GOLDEN_DIM * GOLDEN_DIM];
    kv_svd_fit fit;
    _Alignas(64) uint8_t basis[1024];
    float floats[GOLDEN_DIM * GOLDEN_DIM];
    kv_head_bases bases;
} problem;

static void load_golden(problem *p, uint32_t head)
{
    *p = (problem){.shape = {GOLDEN_DIM, GOLDEN_DIM, false, DTYPE_F32, 0, 0}, .n = GOLDEN_TOKENS};
    p->fit = (kv_svd_fit){.shape = &p->shape, .k = p->k_sum, .v = p->v_sum};
    for (uint32_t t = 0; t < p->n; t++) {
        golden_key(head, t, p->k[t]);
        golden_value(head, t, p->v[t]);
    }
    size_t bytes;
    ck_assert_int_eq(kv_svd_basis_bytes(&p->shape, &bytes), ERR_OK);
    ck_assert_uint_le(bytes, sizeof p->basis);
}

static attn_span rows_of(const problem *p, uint32_t first, uint32_t n)
{
    return (attn_span){.k = p->k[first],
                       .v = p->v[first],
                       .k_stride_bytes = sizeof p->k[0],
                       .v_stride_bytes = sizeof p->v[0],
                       .n_slots = n};
}

/* A basis of rows [first, first + n), after `before`. */
static void fit(problem *p, const uint8_t *before, uint32_t first, uint32_t n)
{
    const attn_span span = rows_of(p, first, n);
    kv_svd_fit_begin(&p->fit, before);
    kv_svd_fit_add(&p->fit, &span);
    kv_svd_fit_end(&p->fit, first + n, p->basis);
    ck_assert_uint_eq(kv_svd_n_entries(p->basis), first + n);
    p->bases = kv_svd_read(&p->shape, p->basis, p->floats);
}

/* |X - X^| / |X| */
static double loss(float (*rows)[GOLDEN_DIM], uint32_t n, const float *up)
{
    double lost = 0, all = 0;
    for (uint32_t t = 0; t < n; t++) {
        double back[GOLDEN_DIM] = {0};
        for (uint32_t r = 0; r < GOLDEN_DIM / 2; r++) {
            double c = 0;
            for (uint32_t i = 0; i < GOLDEN_DIM; i++)
                c += (double)up[r * GOLDEN_DIM + i] * (double)rows[t][i];
            for (uint32_t i = 0; i < GOLDEN_DIM; i++)
                back[i] += c * (double)up[r * GOLDEN_DIM + i];
        }
        for (uint32_t i = 0; i < GOLDEN_DIM; i++) {
            lost += ((double)rows[t][i] - back[i]) * ((double)rows[t][i] - back[i]);
            all += (double)rows[t][i] * (double)rows[t][i];
        }
    }
    return sqrt(lost / all);
}

/* The figures were computed by torch.linalg.svd in float64 (keys after RoPE, 4 of 8 directions). */
START_TEST(half_of_the_directions_lose_what_eckart_and_young_say)
{
    static const double want[2] = {0.556, 0.544};
    for (uint32_t head = 0; head < 2; head++) {
        problem p;
        load_golden(&p, head);
        fit(&p, NULL, 0, p.n);
        ck_assert_double_eq_tol(loss(p.k, p.n, p.bases.k_up), want[head], 5e-4);
        double all = 0, lost = 0;
        for (uint32_t r = 0; r < GOLDEN_DIM; r++) {
            const double *axis = p.fit.k + r * GOLDEN_DIM;
            const double energy = sqrt(dot(axis, axis, GOLDEN_DIM));
            all += energy;
            lost += r < GOLDEN_DIM / 2 ? 0 : energy;
        }
        ck_assert_double_eq_tol(loss(p.k, p.n, p.bases.k_up), sqrt(lost / all), 1e-6);
    }
}
END_TEST

/* Of rows that lie in four directions nothing is lost, also where a basis counts for the rows it has seen. */
START_TEST(a_basis_remembers_what_the_one_before_it_has_seen)
{
    problem p;
    uint8_t before[sizeof p.basis];
    load_golden(&p, 0);
    for (uint32_t t = 0; t < p.n; t++) {
        for (uint32_t c = 0; c < GOLDEN_DIM; c++) /* first half: channels 0, 1; the other: 2, 3 */
            p.k[t][c] = p.v[t][c] = c / 2 == 2 * t / p.n ? random_uniform(1, t, c) + 0.1f : 0;
    }
    fit(&p, NULL, 0, p.n / 2);
    memcpy(before, p.basis, sizeof before);
    ck_assert_double_eq_tol(loss(p.k, p.n / 2, p.bases.k_up), 0, 1e-6);
    ck_assert_double_gt(loss(p.k, p.n, p.bases.k_up), 0.5);
    fit(&p, before, p.n / 2, p.n / 2);
    ck_assert_double_eq_tol(loss(p.k, p.n, p.bases.k_up), 0, 1e-6);
    ck_assert_double_eq_tol(loss(p.v, p.n, p.bases.v_up), 0, 1e-6);
}
END_TEST

START_TEST(what_is_not_a_number_spoils_no_basis)
{
    problem p;
    load_golden(&p, 0);
    p.k[3][2] = NAN;
    p.v[7][1] = INFINITY;
    fit(&p, NULL, 0, p.n);
    for (uint32_t i = 0; i < GOLDEN_DIM * GOLDEN_DIM; i++)
        ck_assert(isfinite(p.floats[i]));
}
END_TEST

/* ---- in a cache ---------------------------------------------------------------------------------- */

static fake *open_svd(void)
{
    return fake_open(&(fake_options){.layers = fake_coded_layers,
                                     .n_layers = 1,
                                     .model_type = DTYPE_BF16,
                                     .config = fake_coded("svd")});
}

/* What the encoded pages of list 0 lean on, in order, without repeats. */
static uint32_t list_bases(const fake *f, const fake_seq *s, uint32_t *out)
{
    uint32_t n = 0;
    for (uint32_t b = 0; b < s->seq->n_blocks; b++) {
        const uint32_t on = kv_pool_leans_on(f->cache->pool, kv_table_page(&s->seq->table, 0, b));
        if (on != KV_PAGE_NONE && (n == 0 || out[n - 1] != on)) out[n++] = on;
    }
    return n;
}

START_TEST(there_is_a_basis_for_every_doubling)
{
    fake *f = open_svd();
    const uint32_t page_tokens = f->cache->page_tokens;
    fake_seq s = fake_seq_open(f, (fake_ids){.seed = 3, .n_prompt = 100});
    uint32_t bases[32];
    fake_run(f, &s, 100, 33);
    ck_assert_uint_eq(list_bases(f, &s, bases), 1);
    const uint32_t first = kv_svd_n_entries(kv_pool_data(f->cache->pool, bases[0]));
    ck_assert_uint_eq(first, s.seq->n_coded * page_tokens);
    fake_run(f, &s, 230, 1);
    ck_assert_uint_eq(list_bases(f, &s, bases), 2);
    ck_assert_uint_eq(kv_svd_n_entries(kv_pool_data(f->cache->pool, bases[1])), 2 * first);
    kv_usage usage;
    kv_seq_usage(s.seq, &usage);
    ck_assert_uint_lt(usage.resident_bytes, usage.uncompressed_bytes);
    fake_seq_close(f, &s, false);
    ck_assert_uint_eq(fake_stats(f).slab_bytes, 0);
    fake_close(f);
}
END_TEST

START_TEST(who_takes_a_prefix_goes_on_with_its_bases)
{
    fake *f = open_svd();
    uint32_t own[32], taken[32];
    fake_seq s = fake_seq_open(f, (fake_ids){.seed = 3, .n_prompt = 100});
    fake_run(f, &s, 210, 33);
    const uint32_t n = list_bases(f, &s, own);
    ck_assert_uint_eq(n, 2);
    fake_seq_close(f, &s, true);
    fake_seq other = fake_seq_open(f, (fake_ids){.seed = 3, .n_prompt = 100});
    ck_assert_uint_gt(kv_seq_take_prefix(other.seq, other.tokens, 205), 180);
    ck_assert_uint_eq(list_bases(f, &other, taken), n);
    ck_assert_mem_eq(own, taken, n * sizeof *own);
    fake_run(f, &other, 230, 1);
    ck_assert_uint_eq(list_bases(f, &other, taken), n);
    fake_seq_close(f, &other, false);
    kv_cache_drop_prefixes(f->cache);
    ck_assert_uint_eq(fake_stats(f).slab_bytes, 0);
    fake_close(f);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(rows_become_the_eigenvectors),
    TEST_CASE(half_of_the_directions_lose_what_eckart_and_young_say),
    TEST_CASE(a_basis_remembers_what_the_one_before_it_has_seen),
    TEST_CASE(what_is_not_a_number_spoils_no_basis),
    TEST_CASE(there_is_a_basis_for_every_doubling),
    TEST_CASE(who_takes_a_prefix_goes_on_with_its_bases),
    TEST_CASES_END,
};
