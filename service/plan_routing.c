/* service/plan_routing.c - see plan_routing.h. */
#include "service/plan_routing.h"

#include "kvcache/placement/placement.h"

#include <stdlib.h>

/* Arrays for a routing that is asked about pages of which none looks better than another. */
typedef struct plan_choice {
    uint32_t *chosen;
    uint16_t *shard, *n_live;
    float *bound;
    kv_route_work work;
} plan_choice;

static void choice_deinit(plan_choice *c)
{
    free(c->chosen);
    free(c->shard);
    free(c->n_live);
    free(c->bound);
    free(c->work.priority);
    free(c->work.order);
    free(c->work.rest);
    free(c->work.scale);
    free(c->work.is_chosen);
    free(c->work.shards);
    free(c->work.shard_order);
}

static err_t choice_init(const plan_routing *r, uint32_t n, plan_choice *c)
{
    const uint32_t n_shards = r->n_shards;
    *c = (plan_choice){
        .chosen = calloc(n, sizeof *c->chosen),
        .shard = calloc(n, sizeof *c->shard),
        .n_live = calloc(n, sizeof *c->n_live),
        .bound = calloc(n, sizeof *c->bound),
        .work = {.priority = calloc(n, sizeof *c->work.priority),
                 .order = calloc(n, sizeof *c->work.order),
                 .rest = calloc((size_t)n + 1, sizeof *c->work.rest),
                 .scale = calloc(1, sizeof *c->work.scale),
                 .is_chosen = calloc(n, sizeof *c->work.is_chosen),
                 .shards = calloc(n_shards, sizeof *c->work.shards),
                 .shard_order = calloc(n_shards, sizeof *c->work.shard_order)},
    };
    const bool is_whole = c->chosen != NULL && c->shard != NULL && c->n_live != NULL &&
                          c->bound != NULL && c->work.priority != NULL && c->work.order != NULL &&
                          c->work.rest != NULL && c->work.scale != NULL &&
                          c->work.is_chosen != NULL && c->work.shards != NULL &&
                          c->work.shard_order != NULL;
    for (uint32_t i = 0; is_whole && i < n; i++) {
        c->shard[i] = (uint16_t)kv_block_shard(n_shards, i);
        c->n_live[i] = (uint16_t)r->page_tokens;
    }
    return is_whole ? ERR_OK : ERR_NO_MEMORY;
}

err_t plan_routing_ask(const plan_routing *r, uint32_t n, plan_reads *out)
{
    const kv_methods *m = r->methods;
    *out = (plan_reads){.n_boxes = m->reads_all ? 0 : n, .n_chosen = n};
    if (m->reads_all || plan_routing_is_open(m) || n == 0) return ERR_OK;
    plan_choice c;
    double log_read = 0;
    err_t err = choice_init(r, n, &c);
    kv_route_args args = {.settings = &m->route,
                          .n_pages = n,
                          .n_open = n,
                          .group = 1,
                          .n_ranks = 1, /* all pages are asked about at once */
                          .n_shards = r->n_shards,
                          .is_scattered = r->is_scattered,
                          .shard = c.shard,
                          .n_live = c.n_live,
                          .bound = c.bound,
                          .log_read = &log_read,
                          .work = c.work};
    const uint32_t n_runs = n / KV_RUN_PAGES;
    if (err == ERR_OK && m->routing->select_runs != NULL && !r->is_scattered && n_runs > 0) {
        kv_route_args runs = args;
        runs.n_pages = n_runs;
        runs.shard = NULL;
        const uint64_t n_left_out = n_runs - m->routing->select_runs(&runs, c.chosen);
        args.n_pages = n - (uint32_t)n_left_out * KV_RUN_PAGES;
        out->n_boxes = n_runs + args.n_pages;
    }
    if (err == ERR_OK) out->n_chosen = m->routing->select(&args, c.chosen);
    choice_deinit(&c);
    return err;
}
