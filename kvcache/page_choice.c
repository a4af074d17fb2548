/* kvcache/page_choice.c - see page_choice.h. */
#include "kvcache/page_choice.h"

#include "kvcache/page_bias.h"
#include "kvcache/scatter.h"

#include <math.h>

void kv_choice_place(arena *a, const kv_cache *cache, kv_choice *choice)
{
    const size_t n_max = kv_head_pages_max(cache);
    size_t group_max = 0;
    *choice = (kv_choice){0};
    if (!cache->has_boxes) return;
    for (uint32_t l = 0; l < cache->n_layers; l++)
        group_max = max_size(group_max, cache->layer[l].n_heads / cache->layer[l].n_kv_heads);
    choice->block = arena_take(a, n_max, sizeof *choice->block);
    choice->shard = arena_take(a, n_max, sizeof *choice->shard);
    choice->page = arena_take(a, n_max, sizeof *choice->page);
    choice->n_live = arena_take(a, n_max, sizeof *choice->n_live);
    choice->bound = arena_take(a, n_max, group_max * sizeof *choice->bound);
    choice->chosen = arena_take(a, n_max, sizeof *choice->chosen);
    if (cache->has_file) choice->misses = arena_take(a, cache->n_shards, sizeof *choice->misses);
    choice->log_read = arena_take(a, group_max, sizeof *choice->log_read);
    choice->runs.index = arena_take(a, n_max, sizeof *choice->runs.index);
    choice->runs.n_live = arena_take(a, n_max, sizeof *choice->runs.n_live);
    choice->runs.bound = arena_take(a, n_max, group_max * sizeof *choice->runs.bound);
    choice->runs.chosen = arena_take(a, n_max, sizeof *choice->runs.chosen);
    choice->work = (kv_route_work){
        .priority = arena_take(a, n_max, sizeof *choice->work.priority),
        .order = arena_take(a, n_max, sizeof *choice->work.order),
        .rest = arena_take(a, n_max + 1, group_max * sizeof *choice->work.rest),
        .scale = arena_take(a, group_max, sizeof *choice->work.scale),
        .is_chosen = arena_take(a, n_max, sizeof *choice->work.is_chosen),
        .shards = arena_take(a, cache->n_shards, sizeof *choice->work.shards),
        .shard_order = arena_take(a, cache->n_shards, sizeof *choice->work.shard_order),
    };
}

static void add_page(kv_choice *choice, const kv_page_at *at, uint64_t live)
{
    if (live == 0) return;
    choice->block[choice->n_pages] = at->block;
    choice->shard[choice->n_pages] = (uint16_t)at->shard;
    choice->page[choice->n_pages] = at->page;
    choice->n_live[choice->n_pages++] = (uint16_t)__builtin_popcountll(live);
}

bool kv_choice_has(const kv_choice_range *range, const kv_page_at *at)
{
    const kv_cache *cache = range->seq->cache;
    const uint32_t last = kv_last_position(cache, at->page);
    return kv_is_sealed_page(cache, at->page) && last / cache->page_tokens < range->end &&
           last >= range->first_seen;
}

/* Every page with a live slot. */
static void list_pages(kv_choice *choice, const kv_choice_range *range)
{
    const kv_cache *cache = range->seq->cache;
    const kv_table *table = &range->seq->table;
    kv_walk walk;
    kv_page_at at;
    choice->n_pages = 0;
    if (cache->scatters[range->layer]) {
        kv_walk_begin(&walk, cache, table, range->layer, range->head, range->seq->n_blocks);
        while (kv_walk_next(&walk, &at)) {
            const uint32_t list = kv_list(cache, range->layer, range->head, at.shard);
            if (kv_choice_has(range, &at))
                add_page(choice, &at, table->live[kv_table_entry(table, list, at.block)]);
        }
    }
    for (uint32_t b = range->first; b < range->end && !cache->scatters[range->layer]; b++) {
        at.block = b;
        at.shard = kv_block_shard(cache->n_shards, b);
        const uint32_t list = kv_list(cache, range->layer, range->head, at.shard);
        at.page = table->page[kv_table_entry(table, list, b)];
        add_page(choice, &at, table->live[kv_table_entry(table, list, b)]);
    }
    choice->n_open = choice->n_pages;
}

/* The runs that lie wholly in the range. */
static void list_runs(kv_choice *choice, const kv_choice_range *range)
{
    const uint32_t first = (range->first + KV_RUN_PAGES - 1) / KV_RUN_PAGES;
    const uint32_t end = range->end / KV_RUN_PAGES;
    choice->runs.n = choice->runs.n_chosen = 0;
    if (range->seq->methods.routing->select_runs == NULL) return;
    if (range->seq->cache->scatters[range->layer]) return;
    for (uint32_t run = first; run < end; run++) {
        choice->runs.n_live[choice->runs.n] = 0;
        choice->runs.index[choice->runs.n++] = run;
    }
    for (uint32_t i = 0; i < choice->n_pages; i++) {
        const uint32_t run = choice->block[i] / KV_RUN_PAGES;
        if (run < first || run >= end) continue;
        uint16_t *n_live = &choice->runs.n_live[run - first];
        *n_live = (uint16_t)(*n_live + choice->n_live[i]);
    }
}

/* Forgets the pages of runs that were not chosen. */
static void drop_runs(kv_choice *choice)
{
    uint32_t n = 0, next = 0;
    for (uint32_t i = 0; i < choice->n_pages; i++) {
        const uint32_t run = choice->block[i] / KV_RUN_PAGES;
        const uint32_t first = choice->runs.index[0];
        while (next < choice->runs.n_chosen && choice->runs.index[choice->runs.chosen[next]] < run)
            next++;
        const bool is_chosen =
            next < choice->runs.n_chosen && choice->runs.index[choice->runs.chosen[next]] == run;
        if (run >= first && run < first + choice->runs.n && !is_chosen) continue;
        choice->block[n] = choice->block[i];
        choice->shard[n] = choice->shard[i];
        choice->page[n] = choice->page[i];
        choice->n_live[n++] = choice->n_live[i];
    }
    choice->n_pages = n;
}

static key_bounds_args bounds_of(const attn_query *query, const uint32_t *index, uint32_t n,
                                 float *out)
{
    assert(query->n_queries == 1);
    assert(query->scale >= 0);
    return (key_bounds_args){.q = query->q,
                             .group = query->group,
                             .k_dim = query->k_dim,
                             .scale = query->scale,
                             .type = query->type,
                             .index = index,
                             .n_boxes = n,
                             .out = out,
                             .out_stride = n};
}

/* Boxes know keys alone: of n bounds [group][n], bound i gets `most` more. */
static void add_bias(float *bound, uint32_t n, uint32_t i, uint32_t group, float most)
{
    for (uint32_t g = 0; g < group && most != 0; g++)
        bound[(size_t)g * n + i] += most;
}

/* The largest bias of the pages of a run. */
static float run_bias(const kv_choice_range *range, uint32_t run)
{
    const kv_cache *cache = range->seq->cache;
    const kv_table *table = &range->seq->table;
    float most = -INFINITY;
    for (uint32_t b = run * KV_RUN_PAGES; b < (run + 1) * KV_RUN_PAGES; b++) {
        const uint32_t list = kv_home_list(cache, range->layer, range->head, b);
        const size_t entry = kv_table_entry(table, list, b);
        if (table->live[entry] == 0) continue;
        most = fmaxf(most, kv_pool_bias_most(cache->pool, table->page[entry]));
    }
    return most == -INFINITY ? 0 : most;
}

static void choose_runs(kv_choice *choice, const kv_choice_range *range, uint32_t list,
                        const attn_query *query)
{
    const kv_cache *cache = range->seq->cache;
    const kv_table *table = &range->seq->table;
    key_bounds_args args = bounds_of(query, choice->runs.index, choice->runs.n, choice->runs.bound);
    args.boxes = kv_table_run_box(table, list, 0);
    args.box_stride_bytes = table->run_box_bytes;
    cache->d->ops->key_bounds(&args);
    for (uint32_t i = 0; i < choice->runs.n && range->seq->is_thinned; i++)
        add_bias(choice->runs.bound, choice->runs.n, i, query->group,
                 run_bias(range, choice->runs.index[i]));
    const kv_methods *methods = &range->seq->methods;
    const kv_route_args route = {.settings = &methods->route,
                                 .n_pages = choice->runs.n,
                                 .n_open = choice->n_open,
                                 .group = query->group,
                                 .n_ranks = cache->ranks.n,
                                 .n_live = choice->runs.n_live,
                                 .bound = choice->runs.bound,
                                 .work = choice->work};
    choice->runs.n_chosen = methods->routing->select_runs(&route, choice->runs.chosen);
    assert(choice->runs.n_chosen <= choice->runs.n);
    drop_runs(choice);
}

void kv_choice_list(kv_choice *choice, const kv_choice_range *range, const attn_query *query)
{
    const kv_cache *cache = range->seq->cache;
    const kv_pages *pages = kv_pool_pages(cache->pool);
    const uint32_t list = kv_list(cache, range->layer, range->head, 0);
    list_pages(choice, range);
    list_runs(choice, range);
    if (choice->runs.n > 0) choose_runs(choice, range, list, query);
    key_bounds_args args = bounds_of(query, choice->page, choice->n_pages, choice->bound);
    args.boxes = pages->boxes;
    args.box_stride_bytes = pages->box_bytes;
    cache->d->ops->key_bounds(&args);
    for (uint32_t i = 0; i < choice->n_pages && range->seq->is_thinned; i++)
        add_bias(choice->bound, choice->n_pages, i, query->group,
                 kv_pool_bias_most(cache->pool, choice->page[i]));
}

/* Of the candidates those that would be waited for. */
static void count_misses(kv_choice *choice, const kv_cache *cache)
{
    for (uint32_t s = 0; s < cache->n_shards && choice->misses != NULL; s++)
        choice->misses[s] = 0;
    for (uint32_t i = 0; i < choice->n_pages && choice->misses != NULL; i++)
        choice->misses[choice->shard[i]] +=
            kv_pool_tier(cache->pool, choice->page[i]) == KV_TIER_FILE ? 1.0f : 0.0f;
}

void kv_choice_make(kv_choice *choice, const kv_choice_range *range, uint32_t group,
                    void (*read)(void *ctx, uint32_t page), void *ctx)
{
    const kv_methods *methods = &range->seq->methods;
    choice->n_chosen = 0;
    if (choice->n_pages == 0) return;
    count_misses(choice, range->seq->cache);
    const kv_route_args args = {.settings = &methods->route,
                                .n_pages = choice->n_pages,
                                .n_open = choice->n_open,
                                .group = group,
                                .n_shards = range->seq->cache->n_shards,
                                .n_ranks = range->seq->cache->ranks.n,
                                .is_scattered = range->seq->cache->scatters[range->layer],
                                .shard = choice->shard,
                                .misses = choice->misses,
                                .n_live = choice->n_live,
                                .bound = choice->bound,
                                .log_read = choice->log_read,
                                .read = read,
                                .read_ctx = ctx,
                                .work = choice->work};
    choice->n_chosen = methods->routing->select(&args, choice->chosen);
    assert(choice->n_chosen <= choice->n_pages);
}

double kv_log_mass(const attn_state *state, size_t row)
{
    return state->sum[row] > 0 ? (double)state->max[row] + log((double)state->sum[row]) : -INFINITY;
}

/* A sum of exponentials, as (its largest exponent, the sum over that). */
typedef struct mass {
    double top, sum;
} mass;

static void add_mass(mass *m, uint32_t n, float bound)
{
    if ((double)bound > m->top) {
        m->sum *= exp(m->top - (double)bound);
        m->top = (double)bound;
    }
    m->sum += n * exp((double)bound - m->top);
}

double kv_choice_log_unread(const kv_choice *choice, uint32_t g)
{
    mass m = {.top = -INFINITY};
    const float *bound = choice->bound + (size_t)g * choice->n_pages;
    for (uint32_t i = 0, next = 0; i < choice->n_pages; i++) {
        if (next < choice->n_chosen && choice->chosen[next] == i) {
            next++;
        } else {
            add_mass(&m, choice->n_live[i], bound[i]);
        }
    }
    bound = choice->runs.bound + (size_t)g * choice->runs.n;
    for (uint32_t i = 0, next = 0; i < choice->runs.n; i++) {
        if (next < choice->runs.n_chosen && choice->runs.chosen[next] == i) {
            next++;
        } else {
            add_mass(&m, choice->runs.n_live[i], bound[i]);
        }
    }
    return m.sum > 0 ? m.top + log(m.sum) : -INFINITY;
}

double kv_certificate(const kv_certified *head)
{
    const double top = fmax(head->unread, fmax(head->read, head->sink));
    if (head->unread == -INFINITY) return 0;
    return kv_route_certificate(exp(head->read - top) + exp(head->sink - top),
                                exp(head->unread - top));
}

void kv_choice_certify(const kv_choice *choice, const attn_query *query, const attn_state *state,
                       const float *sink_logit, kv_misses *misses)
{
    for (uint32_t g = 0; g < query->group; g++) {
        const kv_certified head = {.read = kv_log_mass(state, g),
                                   .unread = kv_choice_log_unread(choice, g),
                                   .sink = sink_logit != NULL ? (double)sink_logit[g] : -INFINITY};
        const double certificate = kv_certificate(&head);
        kv_misses_add(misses, &(kv_misses){.n = 1, .sum = certificate, .max = certificate});
    }
}
