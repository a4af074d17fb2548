/* kvcache/routing/ranking.c - see ranking.h. */
#include "kvcache/routing/ranking.h"

#include <math.h>

/* ---- order: a heap sort, since it needs no memory and any comparison ends it ----------------------- */

/* Does candidate a come after b? */
static bool is_after(const float *priority, uint32_t a, uint32_t b)
{
    return priority[a] < priority[b] || (priority[a] == priority[b] && a > b);
}

/* Moves heap[at] down until no child comes after it; the last candidate of all is at the top. */
static void sift(const float *priority, uint32_t *heap, uint32_t n, uint32_t at)
{
    const uint32_t moved = heap[at];
    for (uint32_t child = 2 * at + 1; child < n; child = 2 * at + 1) {
        if (child + 1 < n && is_after(priority, heap[child + 1], heap[child])) child++;
        if (!is_after(priority, heap[child], moved)) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = moved;
}

void kv_rank_order(const kv_route_args *args)
{
    uint32_t *order = args->work.order;
    const float *priority = args->work.priority;
    for (uint32_t i = 0; i < args->n_pages; i++)
        order[i] = i;
    for (uint32_t i = args->n_pages / 2; i-- > 0;)
        sift(priority, order, args->n_pages, i);
    for (uint32_t n = args->n_pages; n-- > 1;) {
        const uint32_t last = order[0];
        order[0] = order[n];
        order[n] = last;
        sift(priority, order, n, 0);
    }
}

uint32_t kv_rank_budget(const kv_route_args *args, uint32_t n_open)
{
    const double k = args->settings->k;
    const double number = args->n_ranks > 1 ? ceil(floor(k) / args->n_ranks) : k;
    const double n = k <= 1 ? ceil(k * n_open) : number;
    return n < n_open ? (uint32_t)n : n_open;
}

void kv_rank_by_bound(const kv_route_args *args)
{
    float *priority = args->work.priority;
    for (uint32_t i = 0; i < args->n_pages; i++) {
        priority[i] = args->bound[i];
        for (uint32_t g = 1; g < args->group; g++)
            priority[i] = fmaxf(priority[i], args->bound[(size_t)g * args->n_pages + i]);
    }
    kv_rank_order(args);
}

/* ---- mass ------------------------------------------------------------------------------------------ */

static float log_mass(const kv_route_args *args, uint32_t g, uint32_t page)
{
    return logf(args->n_live[page]) + args->bound[(size_t)g * args->n_pages + page];
}

static void sum_rest(const kv_route_args *args, uint32_t g)
{
    const uint32_t n = args->n_pages;
    double *rest = args->work.rest + (size_t)g * (n + 1);
    double sum = rest[n] = 0;
    for (uint32_t r = n; r-- > 0;) {
        sum += exp((double)log_mass(args, g, args->work.order[r]) - args->work.scale[g]);
        rest[r] = sum;
    }
}

void kv_rank_by_mass(const kv_route_args *args)
{
    float *priority = args->work.priority;
    for (uint32_t i = 0; i < args->n_pages; i++)
        priority[i] = -INFINITY;
    for (uint32_t g = 0; g < args->group; g++) {
        args->work.scale[g] = args->log_read[g];
        for (uint32_t i = 0; i < args->n_pages; i++)
            args->work.scale[g] = fmax(args->work.scale[g], (double)log_mass(args, g, i));
        const bool has_read = args->log_read[g] > -INFINITY;
        const float read = (float)(has_read ? args->log_read[g] : args->work.scale[g]);
        for (uint32_t i = 0; i < args->n_pages; i++)
            priority[i] = fmaxf(priority[i], log_mass(args, g, i) - read);
    }
    kv_rank_order(args);
    for (uint32_t g = 0; g < args->group; g++)
        sum_rest(args, g);
}

bool kv_rank_is_enough(const kv_route_args *args, uint32_t rank, double share)
{
    for (uint32_t g = 0; g < args->group; g++) {
        const double read = exp(args->log_read[g] - args->work.scale[g]);
        const double rest = args->work.rest[(size_t)g * (args->n_pages + 1) + rank];
        if (!(kv_route_certificate(read, rest) <= share)) return false;
    }
    return true;
}

uint32_t kv_rank_choose(const kv_route_args *args, uint32_t n, uint32_t *chosen)
{
    uint32_t n_written = 0;
    for (uint32_t i = 0; i < args->n_pages; i++)
        args->work.is_chosen[i] = false;
    for (uint32_t r = 0; r < n; r++)
        args->work.is_chosen[args->work.order[r]] = true;
    for (uint32_t i = 0; i < args->n_pages; i++) {
        if (args->work.is_chosen[i]) chosen[n_written++] = i;
    }
    return n_written;
}

/* ---- shards ---------------------------------------------------------------------------------------- */

uint32_t kv_rank_shards(const kv_route_args *args)
{
    kv_route_shard *shards = args->work.shards;
    uint32_t n = 0;
    for (uint32_t s = 0; s < args->n_shards; s++)
        shards[s] = (kv_route_shard){.bound = -INFINITY};
    for (uint32_t i = 0; i < args->n_pages; i++) {
        kv_route_shard *shard = &shards[args->shard[i]];
        n += shard->n_pages++ == 0 ? 1 : 0;
        shard->n_live += args->n_live[i];
        for (uint32_t g = 0; g < args->group; g++)
            shard->bound = fmaxf(shard->bound, args->bound[(size_t)g * args->n_pages + i]);
    }
    return n;
}

static bool is_shard_after(const kv_route_shard *a, const kv_route_shard *b)
{
    if ((a->n_pages == 0) != (b->n_pages == 0)) return a->n_pages == 0;
    return a->priority < b->priority;
}

void kv_rank_shard_order(const kv_route_args *args)
{
    uint32_t *order = args->work.shard_order;
    const kv_route_shard *shards = args->work.shards;
    for (uint32_t s = 0; s < args->n_shards; s++) {
        uint32_t at = s;
        for (; at > 0 && is_shard_after(&shards[order[at - 1]], &shards[s]); at--)
            order[at] = order[at - 1];
        order[at] = s;
    }
}

uint32_t kv_rank_choose_shards(const kv_route_args *args, uint32_t n, uint32_t *chosen)
{
    uint32_t n_written = 0;
    for (uint32_t r = 0; r < n; r++)
        args->work.shards[args->work.shard_order[r]].is_chosen = true;
    for (uint32_t i = 0; i < args->n_pages; i++) {
        if (args->work.shards[args->shard[i]].is_chosen) chosen[n_written++] = i;
    }
    return n_written;
}
