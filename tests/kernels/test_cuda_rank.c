/* tests/kernels/test_cuda_rank.c - parts merged and choices dealt on CUDA, against the definition. */
#include "tests/kernels/cuda_fixture.h"

#include "kernels/moe.h"

#include <math.h>
#include <stdlib.h>

#define N_OF(array) (sizeof(array) / sizeof(array)[0])

/* Parts of `shape`, some without a key, whose o nobody may read; all have some padding behind them. */
static float *make_parts(gpu *g, const merge_parts_args *shape, size_t *n_floats)
{
    const size_t n_rows = (size_t)shape->n_tokens * shape->n_heads;
    *n_floats = shape->n_parts * shape->part_stride;
    float *parts = poisoned_floats(*n_floats);
    for (uint32_t r = 0; r < shape->n_parts; r++) {
        float *o = parts + r * shape->part_stride, *lse = o + n_rows * shape->v_dim;
        for (size_t i = 0; i < n_rows; i++) {
            const bool is_empty = random_below(&g->random, 3) == 0;
            lse[i] = is_empty ? -INFINITY : 4 * random_signed(&g->random);
            for (uint32_t c = 0; c < shape->v_dim && !is_empty; c++)
                o[i * shape->v_dim + c] = random_signed(&g->random);
        }
    }
    return parts;
}

static void check_merge(merge_parts_args host)
{
    gpu g = gpu_open(0);
    const size_t n_rows = (size_t)host.n_tokens * host.n_heads, n_out = n_rows * host.v_dim;
    size_t n_floats;
    host.part_stride = n_rows * (host.v_dim + 1) + 5;
    float *parts = make_parts(&g, &host, &n_floats);
    host.parts = parts;
    host.out = poisoned_floats(n_out);
    merge_parts_args there = host;
    there.parts = gpu_put(&g, parts, n_floats * sizeof *parts);
    there.out = gpu_poisoned(&g, n_out);
    g.ops->merge_parts(g.d, &there);
    float *got = gpu_get_floats(&g, there.out, n_out);
    merge_parts_cpu(&host);
    for (size_t i = 0; i < n_out; i++)
        ck_assert(!isnan(host.out[i]));
    assert_near(got, host.out, n_out, (tolerance){1e-6, 1e-6}, g.random.seed);
    free(got);
    free(host.out);
    free(parts);
    gpu_close(&g);
}

START_TEST(parts_are_merged_as_the_definition_does)
{
    static const merge_parts_args shapes[] = {
        {.n_parts = 2, .n_tokens = 1, .n_heads = 4, .v_dim = 64},
        {.n_parts = 4, .n_tokens = 3, .n_heads = 5, .v_dim = 33},
        {.n_parts = 3, .n_tokens = 7, .n_heads = 1, .v_dim = 1},
        {.n_parts = 67, .n_tokens = 2, .n_heads = 3, .v_dim = 129},
        {.n_parts = 8, .n_tokens = 2, .n_heads = 2, .v_dim = 512},
    };
    for (size_t i = 0; i < N_OF(shapes); i++)
        check_merge(shapes[i]);
}
END_TEST

/* So that a sequence of one rank's pages loses nothing by being over ranks. */
START_TEST(the_only_part_with_keys_keeps_its_bits)
{
    enum { N_PARTS = 3, DIM = 40 };
    gpu g = gpu_open(0);
    float parts[N_PARTS][DIM + 1];
    for (uint32_t r = 0; r < N_PARTS; r++) {
        for (uint32_t c = 0; c < DIM; c++)
            parts[r][c] = r == 1 ? random_signed(&g.random) : NAN;
        parts[r][DIM] = r == 1 ? 3.7f : -INFINITY;
    }
    const merge_parts_args args = {.parts = gpu_put(&g, parts, sizeof parts),
                                   .part_stride = DIM + 1,
                                   .n_parts = N_PARTS,
                                   .n_tokens = 1,
                                   .n_heads = 1,
                                   .v_dim = DIM,
                                   .out = gpu_poisoned(&g, DIM)};
    g.ops->merge_parts(g.d, &args);
    float *got = gpu_get_floats(&g, args.out, DIM);
    assert_same_bits(got, parts[1], DIM, g.random.seed);
    free(got);
    gpu_close(&g);
}
END_TEST

/* Every expert has one to three of as many ranks. */
START_TEST(choices_are_dealt_as_the_definition_does)
{
    enum { N_EXPERTS = 11, N_RANKS = 3, TOP_K = 3, N_TOKENS = 97 };
    gpu g = gpu_open(0);
    uint32_t first[N_EXPERTS + 1] = {0}, chosen[N_TOKENS * TOP_K], positions[N_TOKENS],
                               served[N_TOKENS * TOP_K], got[N_TOKENS * TOP_K];
    uint16_t rank[N_EXPERTS * N_RANKS];
    for (uint32_t e = 0; e < N_EXPERTS; e++) {
        const uint32_t n = 1 + random_below(&g.random, N_RANKS);
        first[e + 1] = first[e] + n;
        for (uint32_t i = 0; i < n; i++)
            rank[first[e] + i] = (uint16_t)(n == N_RANKS ? i : (e + i) % N_RANKS);
    }
    for (uint32_t i = 0; i < N_TOKENS * TOP_K; i++)
        chosen[i] = random_below(&g.random, N_EXPERTS);
    for (uint32_t t = 0; t < N_TOKENS; t++)
        positions[t] = random_below(&g.random, 1000);
    deal_choices_args host = {.chosen = chosen,
                              .positions = positions,
                              .n_tokens = N_TOKENS,
                              .top_k = TOP_K,
                              .experts = {first, rank},
                              .served = served};
    deal_choices_args there = host;
    there.chosen = gpu_put(&g, chosen, sizeof chosen);
    there.positions = gpu_put(&g, positions, sizeof positions);
    there.experts.first = gpu_put(&g, first, sizeof first);
    there.experts.rank = gpu_put(&g, rank, sizeof rank);
    for (uint32_t r = 0; r < N_RANKS; r++) {
        uint32_t n_own = 0;
        host.rank = there.rank = r;
        there.served = (uint32_t *)(void *)gpu_poisoned(&g, N_TOKENS * TOP_K);
        g.cpu->ops->deal_choices(g.cpu, &host);
        g.ops->deal_choices(g.d, &there);
        gpu_get(&g, got, there.served, sizeof got);
        ck_assert_mem_eq(got, served, sizeof got);
        for (uint32_t i = 0; i < N_TOKENS * TOP_K; i++)
            n_own += served[i] != MOE_ELSEWHERE;
        ck_assert_uint_gt(n_own, 0);
    }
    gpu_close(&g);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(parts_are_merged_as_the_definition_does),
    TEST_CASE(the_only_part_with_keys_keeps_its_bits),
    TEST_CASE(choices_are_dealt_as_the_definition_does),
    TEST_CASES_END,
};
