/* tests/service/test_plan_ranks.c - the bytes that a plan says collectives move are those that a comm counts. */
#include "service/plan.h"
#include "tests/golden/golden_run.h"
#include "tests/test_main.h"

#include <pthread.h>

/* Of a step: what the ranks say to its begin, and in debug builds what their routers chose. */
#ifdef PIKV_PARANOID
enum { N_SMALL_GATHERS = 2 };
#else
enum { N_SMALL_GATHERS = 1 };
#endif

enum { RANKS_MAX = 8, TIMEOUT_MS = 60000, N_SHORT = 1, N_LONG = 9 };

/* What one rank receives in steps of N_SHORT and of N_LONG tokens. */
typedef struct rank_run {
    golden_setup setup;
    pthread_t thread;
    comm_stats gather[2], reduce[2];
    model_config shape;
} rank_run;

static comm_stats since(const comm *c, comm_kind kind, const comm_stats *before)
{
    comm_stats now = comm_get_stats(c, kind);
    now.n_calls -= before->n_calls;
    now.bytes -= before->bytes;
    return now;
}

static void *run_rank(void *ctx)
{
    static const uint32_t n_tokens[2] = {N_SHORT, N_LONG};
    rank_run *run = ctx;
    const comm *c = run->setup.comm;
    golden g;
    track t, *tracks[] = {&t};
    golden_open(&run->setup, &g);
    run->shape = *model_get_config(g.m);
    track_open(&g, 2, &t);
    for (int i = 0; i < 2; i++) {
        const comm_stats gather = comm_get_stats(c, COMM_ALL_GATHER);
        const comm_stats reduce = comm_get_stats(c, COMM_ALL_REDUCE);
        golden_step(tracks, &n_tokens[i], 1);
        run->gather[i] = since(c, COMM_ALL_GATHER, &gather);
        run->reduce[i] = since(c, COMM_ALL_REDUCE, &reduce);
    }
    ck_assert_uint_eq(t.n_done, N_SHORT + N_LONG);
    track_close(&t);
    golden_close(&g);
    return NULL;
}

static void run_ranks(uint32_t n, const char *const *settings, rank_run *runs)
{
    comm *comms[RANKS_MAX];
    ck_assert_int_eq(comm_open_local(n, TIMEOUT_MS, comms, NULL), ERR_OK);
    for (uint32_t r = 0; r < n; r++) {
        runs[r] = (rank_run){.setup = {.fixture = "mixtral-gqa-bf16",
                                       .isa = "auto",
                                       .n_threads = 1,
                                       .cache_type = KV_DTYPE_F32,
                                       .small_pages = true,
                                       .settings = settings,
                                       .comm = comms[r]}};
        ck_assert_int_eq(pthread_create(&runs[r].thread, NULL, run_rank, &runs[r]), 0);
    }
    for (uint32_t r = 0; r < n; r++)
        ck_assert_int_eq(pthread_join(runs[r].thread, NULL), 0);
    for (uint32_t r = 0; r < n; r++)
        comm_close(comms[r]);
}

static plan_step planned(const model_config *shape, uint32_t n_ranks, bool is_routed)
{
    plan_result out;
    const kv_methods methods = {.routing = kv_routing_find(is_routed ? "topk" : "full"),
                                .reads_all = !is_routed};
    const plan_input in = {.n_layers = shape->n_layers,
                           .cache.methods = methods,
                           .d_model = shape->d_model,
                           .n_heads = shape->n_heads,
                           .head_dim = shape->head_dim,
                           .n_experts = shape->n_experts,
                           .top_k = shape->top_k,
                           .n_tokens = 16,
                           .n_seqs = 1,
                           .n_ranks = n_ranks,
                           .page_tokens = 4,
                           .bandwidth = 1,
                           .link_bandwidth = 1};
    ck_assert_int_eq(plan_make(&in, &out, NULL), ERR_OK);
    return out.step;
}

/* Small gatherings beside the layers' calls are the same in both steps, and so not in the difference. */
START_TEST(collectives_move_the_bytes_of_the_plan)
{
    static const uint32_t n_ranks[] = {2, 3, 4, 8};
    static const char *const routed[] = {"kv-routing", "topk", "kv-routing-k", "0.5", NULL};
    for (int i = 0; i < 8; i++) {
        rank_run runs[RANKS_MAX];
        const uint32_t n = n_ranks[i / 2], n_floats = 1 + (uint32_t)i % 2; /* beside the output */
        run_ranks(n, i % 2 == 0 ? NULL : routed, runs);
        const plan_step step = planned(&runs[0].shape, n, i % 2 != 0);
        const uint64_t n_layers = runs[0].shape.n_layers;
        ck_assert_uint_eq(step.gather.n_per_step, n_layers);
        ck_assert_uint_eq(step.reduce.n_per_step, n_layers);
        ck_assert_uint_eq(step.gather.bytes_per_token, 4 * (uint64_t)runs[0].shape.n_heads *
                                                           (runs[0].shape.head_dim + n_floats) *
                                                           (n - 1));
        uint64_t reduced = 0;
        for (uint32_t r = 0; r < n; r++) {
            const rank_run *run = &runs[r];
            ck_assert_uint_eq(run->gather[1].bytes - run->gather[0].bytes,
                              n_layers * (N_LONG - N_SHORT) * step.gather.bytes_per_token);
            ck_assert_uint_eq(run->gather[1].n_calls, n_layers + N_SMALL_GATHERS);
            ck_assert_uint_eq(run->reduce[1].n_calls, n_layers);
            reduced += run->reduce[1].bytes;
        }
        /* Slices of the sum are not equal where ranks do not divide them: over all ranks they are. */
        ck_assert_uint_eq(reduced, n_layers * 2 * (n - 1) * sizeof(float) * N_LONG *
                                       (uint64_t)runs[0].shape.d_model);
        ck_assert_uint_ge(step.reduce.bytes_per_token * n * n_layers * N_LONG, reduced);
        ck_assert_uint_le(step.reduce.bytes_per_token * n * n_layers * N_LONG,
                          reduced + n * n_layers * N_LONG * n * sizeof(float));
    }
}
END_TEST

const test_case test_cases[] = {TEST_CASE(collectives_move_the_bytes_of_the_plan), TEST_CASES_END};
