/* tests/kvcache/rank_group.c - see rank_group.h. */
#include "tests/kvcache/rank_group.h"

#include <check.h>

void run_rank(rank_test *t)
{
    t->options.config.comm = t->comm;
    t->f = fake_open(&t->options);
    t->body(t);
    const kv_stats stats = fake_stats(t->f);
    t->bytes = stats.used_bytes;
    t->evicted = stats.entries_evicted;
    for (int s = 0; s < RANK_SEQS; s++) {
        for (uint32_t list = 0; t->seqs[s].seq != NULL && list < t->f->cache->n_lists; list++)
            t->live += t->seqs[s].seq->table.n_live[list];
    }
    ck_assert(kv_cache_is_sane(t->f->cache));
}

static void *start_rank(void *ctx)
{
    run_rank(ctx);
    return NULL;
}

static void *close_rank(void *ctx)
{
    rank_test *t = ctx;
    for (int s = 0; s < RANK_SEQS; s++) {
        if (t->seqs[s].seq != NULL) fake_seq_close(t->f, &t->seqs[s], false);
    }
    fake_close(t->f);
    comm_close(t->comm);
    return NULL;
}

static void on_all(rank_test *ranks, uint32_t n, void *(*start)(void *))
{
    for (uint32_t r = 0; r < n; r++)
        ck_assert_int_eq(pthread_create(&ranks[r].thread, NULL, start, &ranks[r]), 0);
    for (uint32_t r = 0; r < n; r++)
        ck_assert_int_eq(pthread_join(ranks[r].thread, NULL), 0);
}

void run_group(rank_test *ranks, const rank_run *run)
{
    comm *comms[RANKS_MAX];
    ck_assert_int_eq(comm_open_local(run->n, RANKS_TIMEOUT_MS, comms, NULL), ERR_OK);
    for (uint32_t r = 0; r < run->n; r++) {
        ranks[r] = (rank_test){.options = run->options,
                               .comm = comms[r],
                               .rank = r,
                               .n_ranks = run->n,
                               .ctx = run->ctx,
                               .body = run->body};
        if (run->change != NULL) run->change(&ranks[r]);
    }
    on_all(ranks, run->n, start_rank);
}

void run_ranks(rank_test *ranks, uint32_t n, const fake_options *options,
               void (*body)(rank_test *t))
{
    run_group(ranks, &(rank_run){.n = n, .options = *options, .body = body});
}

void close_ranks(rank_test *ranks, uint32_t n)
{
    on_all(ranks, n, close_rank);
}

fake_options rank_options(const char *placement, uint32_t n_shards, const kv_layer_shape *layers,
                          uint32_t n_layers, kv_config config)
{
    config.placement = (char *)(uintptr_t)placement;
    config.n_shards = n_shards;
    config.eplb = true;
    return (fake_options){.layers = layers, .n_layers = n_layers, .config = config};
}
