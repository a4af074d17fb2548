/* kvcache/page_choice.c - see page_choice.h. */
#include "kvcache/page_choice.h"

#include "kvcache/cache_state.h"

#include <math.h>

void kv_choice_place(arena *a, const kv_cache *cache, kv_choice *choice)
{
    const size_t n_max = cache->limits.n_seq_tokens_max / cache->page_tokens + 1;
    size_t group_max = 0;
    *choice = (kv_choice){0};
    if (cache->reads_all) return;
    for (uint32_t l = 0; l < cache->n_layers; l++)
        group_max = max_size(group_max, cache->layer[l].n_heads / cache->layer[l].n_kv_heads);
    choice->block = arena_take(a, n_max, sizeof *choice->block);
    choice->page = arena_take(a, n_max, sizeof *choice->page);
    choice->n_live = arena_take(a, n_max, sizeof *choice->n_live);
    choice->bound = arena_take(a, n_max, group_max * sizeof *choice->bound);
    choice->chosen = arena_take(a, n_max, sizeof *choice->chosen);
    choice->log_read = arena_take(a, group_max, sizeof *choice->log_read);
    choice->work = (kv_route_work){
        .priority = arena_take(a, n_max, sizeof *choice->work.priority),
        .order = arena_take(a, n_max, sizeof *choice->work.order),
        .rest = arena_take(a, n_max + 1, group_max * sizeof *choice->work.rest),
        .scale = arena_take(a, group_max, sizeof *choice->work.scale),
        .is_chosen = arena_take(a, n_max, sizeof *choice->work.is_chosen),
    };
}

void kv_choice_list(kv_choice *choice, const kv_choice_range *range, const attn_query *query)
{
    const kv_cache *cache = range->seq->cache;
    const kv_table *table = &range->seq->table;
    const kv_pages *pages = kv_pool_pages(cache->pool);
    const size_t list = kv_table_entry(table, kv_list(cache, range->layer, range->head, 0), 0);
    uint32_t n = 0;
    for (uint32_t b = range->first; b < range->end; b++) {
        const uint64_t live = table->live[list + b];
        if (live == 0) continue;
        choice->block[n] = b;
        choice->page[n] = table->page[list + b];
        choice->n_live[n++] = (uint8_t)__builtin_popcountll(live);
    }
    choice->n_pages = n;
    assert(query->n_queries == 1);
    assert(query->scale >= 0);
    const key_bounds_args args = {.q = query->q,
                                  .group = query->group,
                                  .k_dim = query->k_dim,
                                  .scale = query->scale,
                                  .type = query->type,
                                  .boxes = pages->boxes,
                                  .box_stride_bytes = pages->box_bytes,
                                  .index = choice->page,
                                  .n_boxes = n,
                                  .out = choice->bound,
                                  .out_stride = n};
    cache->d->ops->key_bounds(&args);
}

void kv_choice_make(kv_choice *choice, const kv_cache *cache, uint32_t group,
                    void (*read)(void *ctx, uint32_t page), void *ctx)
{
    choice->n_chosen = 0;
    if (choice->n_pages == 0) return;
    const kv_route_args args = {.settings = &cache->route,
                                .n_pages = choice->n_pages,
                                .group = group,
                                .n_live = choice->n_live,
                                .bound = choice->bound,
                                .log_read = choice->log_read,
                                .read = read,
                                .read_ctx = ctx,
                                .work = choice->work};
    choice->n_chosen = cache->routing->select(&args, choice->chosen);
    assert(choice->n_chosen <= choice->n_pages);
}

double kv_log_mass(const attn_state *state, size_t row)
{
    return state->sum[row] > 0 ? (double)state->max[row] + log((double)state->sum[row]) : -INFINITY;
}

/* Log of the mass that the unread candidates may have at most in one head; -inf: none is unread. */
static double log_unread(const kv_choice *choice, uint32_t g)
{
    const float *bound = choice->bound + (size_t)g * choice->n_pages;
    double top = -INFINITY, sum = 0;
    for (int pass = 0; pass < 2; pass++) {
        uint32_t next = 0;
        for (uint32_t i = 0; i < choice->n_pages; i++) {
            if (next < choice->n_chosen && choice->chosen[next] == i) {
                next++;
            } else if (pass == 0) {
                top = fmax(top, (double)bound[i]);
            } else {
                sum += choice->n_live[i] * exp((double)bound[i] - top);
            }
        }
    }
    return sum > 0 ? top + log(sum) : -INFINITY;
}

void kv_choice_certify(const kv_choice *choice, const attn_query *query, const attn_state *state,
                       const float *sink_logit, kv_misses *misses)
{
    for (uint32_t g = 0; g < query->group; g++) {
        const double unread = log_unread(choice, g), read = kv_log_mass(state, g);
        const double sink = sink_logit != NULL ? (double)sink_logit[g] : -INFINITY;
        const double top = fmax(unread, fmax(read, sink));
        const double certificate =
            unread == -INFINITY
                ? 0
                : kv_route_certificate(exp(read - top) + exp(sink - top), exp(unread - top));
        kv_misses_add(misses, &(kv_misses){.n = 1, .sum = certificate, .max = certificate});
    }
}
