/* tests/kernels/test_key_bounds.c - bounds of boxed keys: golden numbers, twins, and the promise. */
#include "tests/kernels/fixture.h"
#include "tests/kernels/golden_layer.h"

#include <math.h>
#include <stdlib.h>

enum { PAGE = 8, N_PAGES = GOLDEN_TOKENS / PAGE, N_HEADS = 4 };

/* Quest's scores of pages of 8 for the last query of every head: no scale, as published. */
START_TEST(bounds_are_the_golden_scores_of_quest)
{
    static const double want[N_HEADS][N_PAGES] = {
        {31.7276, 35.1209, 28.4338, 18.4340, 36.2516, 28.8597},
        {22.1358, 19.2776, 14.5873, 14.0479, 21.7067, 16.0284},
        {20.6262, 25.4405, 20.7808, 27.3753, 23.6657, 28.9770},
        {21.8554, 25.6167, 28.1058, 35.9283, 29.7058, 33.2257},
    };
    static const uint32_t index[N_PAGES] = {0, 1, 2, 3, 4, 5};
    for (uint32_t head = 0; head < N_HEADS; head++) {
        float boxes[N_PAGES][2][GOLDEN_DIM], key[GOLDEN_DIM], q[GOLDEN_DIM], out[N_PAGES];
        for (uint32_t t = 0; t < GOLDEN_TOKENS; t++) {
            golden_key(head / 2, t, key);
            for (uint32_t c = 0; c < GOLDEN_DIM; c++) {
                float *lo = &boxes[t / PAGE][0][c], *hi = &boxes[t / PAGE][1][c];
                *lo = t % PAGE == 0 ? key[c] : fminf(*lo, key[c]);
                *hi = t % PAGE == 0 ? key[c] : fmaxf(*hi, key[c]);
            }
        }
        golden_query(head, GOLDEN_TOKENS - 1, q);
        const key_bounds_args args = {.q = q,
                                      .group = 1,
                                      .k_dim = GOLDEN_DIM,
                                      .scale = 1,
                                      .type = DTYPE_F32,
                                      .boxes = (const uint8_t *)boxes,
                                      .box_stride_bytes = sizeof boxes[0],
                                      .index = index,
                                      .n_boxes = N_PAGES,
                                      .out = out,
                                      .out_stride = N_PAGES};
        for (const dev_ops *const *t = dev_cpu_tables(); *t != NULL; t++) {
            (*t)->key_bounds(&args);
            for (uint32_t p = 0; p < N_PAGES; p++)
                ck_assert_double_eq_tol((double)out[p], want[head][p], 2e-4);
        }
    }
}
END_TEST

/* ---- twins and the promise ------------------------------------------------------------------------- */

/* Random keys in boxes of `n_keys`; a gap lies behind each box. */
typedef struct problem {
    uint32_t n_boxes, n_keys, k_dim, group;
    float scale;
    dtype type;
} problem;

enum { GAP_BYTES = 6 };

static float stored(float x, dtype type)
{
    return type == DTYPE_BF16 ? f32_from_bf16(bf16_from_f32(x)) : x;
}

static void put(uint8_t *box, dtype type, uint32_t i, float x)
{
    const uint16_t half = bf16_from_f32(x);
    if (type == DTYPE_F32) {
        memcpy(box + 4 * (size_t)i, &x, sizeof x);
    } else {
        memcpy(box + 2 * (size_t)i, &half, sizeof half);
    }
}

static void box_keys(const problem *p, const float *keys, uint8_t *box)
{
    for (uint32_t c = 0; c < p->k_dim; c++) {
        float lo = keys[c], hi = keys[c];
        for (uint32_t i = 1; i < p->n_keys; i++) {
            lo = fminf(lo, keys[i * p->k_dim + c]);
            hi = fmaxf(hi, keys[i * p->k_dim + c]);
        }
        put(box, p->type, c, lo);
        put(box, p->type, p->k_dim + c, hi);
    }
}

/* The largest score of box b's keys with head g. */
static double largest_score(const problem *p, const float *q, const float *keys)
{
    double largest = -INFINITY;
    for (uint32_t i = 0; i < p->n_keys; i++) {
        double dot = 0;
        for (uint32_t c = 0; c < p->k_dim; c++)
            dot += (double)q[c] * (double)keys[i * p->k_dim + c];
        largest = fmax(largest, dot * (double)p->scale);
    }
    return largest;
}

static void check(problem p)
{
    test_random r = random_fresh();
    const size_t n_box_keys = (size_t)p.n_keys * p.k_dim, n_out = (size_t)p.group * p.n_boxes;
    const size_t stride = 2 * (size_t)p.k_dim * dtype_bytes(p.type) + GAP_BYTES;
    float *q = random_floats(&r, (size_t)p.group * p.k_dim);
    float *keys = random_floats(&r, p.n_boxes * n_box_keys);
    uint8_t *boxes = test_alloc(p.n_boxes * stride - GAP_BYTES);
    uint32_t *index = test_alloc(p.n_boxes * sizeof *index);
    for (size_t i = 0; i < p.n_boxes * n_box_keys; i++)
        keys[i] = stored(keys[i] * (i % 7 == 0 ? 30 : 1), p.type);
    for (uint32_t b = 0; b < p.n_boxes; b++) {
        box_keys(&p, keys + b * n_box_keys, boxes + b * stride);
        index[b] = p.n_boxes - 1 - b;
    }
    key_bounds_args args = {.q = q,
                            .group = p.group,
                            .k_dim = p.k_dim,
                            .scale = p.scale,
                            .type = p.type,
                            .boxes = boxes,
                            .box_stride_bytes = stride,
                            .index = index,
                            .n_boxes = p.n_boxes,
                            .out_stride = p.n_boxes};
    float *reference = NULL;
    for (const dev_ops *const *t = dev_cpu_tables(); *t != NULL; t++) {
        float *out = args.out = poisoned_floats(n_out);
        (*t)->key_bounds(&args);
        for (size_t i = 0; i < n_out; i++) {
            const float *own = q + i / p.n_boxes * p.k_dim;
            const double most = largest_score(&p, own, keys + index[i % p.n_boxes] * n_box_keys);
            ck_assert_msg((double)out[i] >= most, "%s: %.9g < %.9g, seed %llu", (*t)->name,
                          (double)out[i], most, (unsigned long long)r.seed);
        }
        if (reference == NULL) {
            reference = out;
        } else {
            assert_near(out, reference, n_out, (tolerance){1e-5 * p.k_dim, 1e-5}, r.seed);
            free(out);
        }
    }
    free(reference);
    free(q);
    free(keys);
    free(boxes);
    free(index);
}

START_TEST(no_key_scores_above_the_bound_of_its_box)
{
    static const uint32_t dims[] = {1, 2, 7, 8, 16, 31, 64, 72, 128, 576};
    for (size_t i = 0; i < sizeof dims / sizeof dims[0]; i++) {
        for (int type = DTYPE_F32; type <= DTYPE_BF16; type++) {
            check((problem){9, 32, dims[i], 4, 0.125f, (dtype)type});
            check((problem){3, 1, dims[i], 1, 1, (dtype)type}); /* the bound is the score */
            check((problem){1, 64, dims[i], 3, 0, (dtype)type});
        }
    }
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(bounds_are_the_golden_scores_of_quest),
    TEST_CASE(no_key_scores_above_the_bound_of_its_box),
    TEST_CASES_END,
};
