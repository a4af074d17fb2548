/* tests/golden/golden_nccl_test.c - the whole model over ranks with a GPU each, over stand-ins for GPU and NCCL: what
 * their devices exchange by themselves is what passes through the host else, to the last bit, as both stand-ins add in
 * rank order. And which ranks may exchange like this. */
#include "tests/golden/rank_run.h"
#include "tests/test_main.h"

#include <stdatomic.h>
#include <string.h>

enum { N_RANKS = 2 /* as many as the stand-in has GPUs */ };

static const dev_comm_options by_host = {.way = DEV_COMM_HOST};
static const dev_comm_options by_nccl = {
    .way = DEV_COMM_NCCL, .timeout_ms = 60000, .nccl_library = NCCL_STUB_PATH};

static err_t open_gpu(const dev_config *config, uint32_t gpu, dev **out, err_info *info)
{
    dev_config cuda = *config;
    cuda.kind = DEV_CUDA;
    cuda.gpu = gpu;
    cuda.gpu_memory_share = 0.9f;
    cuda.gpu_graphs = true;
    return dev_open(&cuda, out, info);
}

static err_t open_next(const dev_config *config, dev **out, err_info *info)
{
    static atomic_uint n_opened;
    return open_gpu(config, atomic_fetch_add(&n_opened, 1), out, info);
}

static void check_settings(int fixture, const char *const *settings, const experts_config *experts)
{
    rank_run host[N_RANKS], nccl[N_RANKS];
    golden_setup setup = setup_of(fixture, settings);
    setup.open_dev = open_next;
    setup.experts = experts;
    setup.devices = &by_host;
    run_ranks(&setup, true, N_RANKS, host);
    setup.devices = &by_nccl;
    run_ranks(&setup, true, N_RANKS, nccl);
    for (int r = 0; r < N_RANKS; r++)
        check_same_bits(&host[0].out, &nccl[r].out);
    ck_assert_uint_eq(host[0].experts.n_moved, nccl[0].experts.n_moved);
    ck_assert(experts == NULL || nccl[0].experts.n_moved > 0);
    forget(host, N_RANKS);
    forget(nccl, N_RANKS);
}

START_TEST(what_devices_exchange_is_what_passes_through_the_host)
{
    static const char *const chosen[] = {"kv-routing", "topk", "kv-routing-k", "5", NULL};
    const experts_config moving = {
        .strategy = EXPERTS_EPLB, .step_interval = 7, .imbalance_min = 1};
    check_settings(0, NULL, &moving);
    check_settings(2, chosen, NULL);
}
END_TEST

typedef struct joining {
    comm *group;
    uint32_t gpu;
    const dev_comm_options *options;
    bool is_queued;
    comm_stats sums;
    err_t err;
    err_info info;
    pthread_t thread;
} joining;

static void *join(void *ctx)
{
    joining *j = ctx;
    float x[3] = {1, 2, (float)j->gpu}, host[3];
    dev *d;
    void *there;
    ck_assert_int_eq(open_gpu(&(dev_config){.isa = "auto", .n_threads = 1}, j->gpu, &d, NULL),
                     ERR_OK);
    j->err = dev_comm_join(d, j->group, j->options, &j->info);
    if (j->err == ERR_OK) {
        const dev_comm c = dev_comm_make(d, j->group, host);
        ck_assert_int_eq(dev_alloc(d, sizeof x, &there, NULL), ERR_OK);
        dev_upload(d, there, x, sizeof x);
        ck_assert_int_eq(dev_comm_sum(&c, there, 3), ERR_OK);
        dev_download(d, x, there, sizeof x);
        ck_assert_float_eq(x[0], 2);
        ck_assert_float_eq(x[1], 4);
        dev_free(d, there);
        j->is_queued = dev_comm_is_queued(&c);
        j->sums = comm_get_stats(j->group, COMM_ALL_REDUCE);
    }
    comm_close(j->group);
    dev_close(d);
    return NULL;
}

static void join_both(joining *both, uint32_t second_gpu, const dev_comm_options *options)
{
    comm *comms[N_RANKS];
    ck_assert_int_eq(comm_open_local(N_RANKS, 60000, comms, NULL), ERR_OK);
    for (uint32_t r = 0; r < N_RANKS; r++) {
        both[r] = (joining){.group = comms[r], .gpu = r * second_gpu, .options = options};
        ck_assert_int_eq(pthread_create(&both[r].thread, NULL, join, &both[r]), 0);
    }
    for (uint32_t r = 0; r < N_RANKS; r++) {
        ck_assert_int_eq(pthread_join(both[r].thread, NULL), 0);
        if (both[r].err == ERR_OK) ck_assert_uint_eq(both[r].sums.n_calls, 1);
    }
}

START_TEST(devices_come_together_that_are_gpus_of_their_own)
{
    joining both[N_RANKS];
    dev_comm_options any = by_nccl;
    any.way = DEV_COMM_AUTO;
    join_both(both, 1, &any);
    ck_assert(both[0].is_queued && both[1].is_queued);
    join_both(both, 1, &by_host);
    ck_assert(!both[0].is_queued && !both[1].is_queued);
    join_both(both, 0, &any); /* one GPU */
    ck_assert(!both[0].is_queued && !both[1].is_queued);
    any.nccl_library = "libnccl-of-nowhere.so.2";
    join_both(both, 1, &any);
    ck_assert(!both[0].is_queued && !both[1].is_queued);
}
END_TEST

START_TEST(ranks_that_must_and_cannot_are_refused_alike)
{
    joining both[N_RANKS];
    dev_comm_options missing = by_nccl;
    missing.nccl_library = "libnccl-of-nowhere.so.2";
    join_both(both, 0, &by_nccl);
    for (int r = 0; r < N_RANKS; r++) {
        ck_assert_int_eq(both[r].err, ERR_UNSUPPORTED);
        ck_assert_str_eq(both[r].info.message, "nccl: ranks 0 and 1 have the same GPU");
    }
    join_both(both, 1, &missing);
    for (int r = 0; r < N_RANKS; r++) {
        ck_assert_int_eq(both[r].err, ERR_UNSUPPORTED);
        ck_assert_ptr_nonnull(strstr(both[r].info.message, "rank 0 has no NCCL"));
    }
}
END_TEST

/* What is left of a GPU's memory is divided by those who take it: 3 ranks on 2 GPUs. */
START_TEST(ranks_divide_the_memory_of_a_gpu)
{
    static const size_t parts[] = {2, 1, 2};
    size_t whole = 0;
    for (uint32_t r = 0; r < 3; r++) {
        dev *d;
        err_info info = {0};
        void *data;
        const dev_config config = {.isa = "auto",
                                   .n_threads = 1,
                                   .kind = DEV_CUDA,
                                   .gpu = r,
                                   .n_gpu_users = 3,
                                   .gpu_memory_share = 0.5f};
        ck_assert_int_eq(dev_open(&config, &d, NULL), ERR_OK);
        if (r == 0) whole = dev_room(d) * parts[r];
        ck_assert_uint_eq(dev_room(d) * parts[r], whole);
        ck_assert_int_eq(dev_alloc(d, dev_room(d) + 1, &data, &info), ERR_NO_MEMORY);
        ck_assert((strstr(info.message, "one of 2 parts") != NULL) == (parts[r] == 2));
        ck_assert((strstr(info.message, "parts") != NULL) == (parts[r] == 2));
        dev_close(d);
    }
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE_SECONDS(what_devices_exchange_is_what_passes_through_the_host, 600),
    TEST_CASE(devices_come_together_that_are_gpus_of_their_own),
    TEST_CASE(ranks_that_must_and_cannot_are_refused_alike),
    TEST_CASE(ranks_divide_the_memory_of_a_gpu),
    TEST_CASES_END,
};
