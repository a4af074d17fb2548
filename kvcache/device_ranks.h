/* kvcache/device_ranks.h - attention over ranks where the view is.
 *
 * As ranks.h has it, but on the device: each rank attends to its own pages, the home rank of a sequence to ring and
 * staging as well; the parts are gathered (kernels/dev_comm.h) and merged in rank order there (kernels/rank_ops.h). What
 * choosing rows have missed is brought together once, when a step ends. A rank that has lost the others gets zeros.
 *
 * Nothing here is done for a cache that is alone. Threads: the cache's owner. */
#ifndef KVCACHE_DEVICE_RANKS_H
#define KVCACHE_DEVICE_RANKS_H

#include "kvcache/device_view.h"

/* Run over a measuring and then a real arena, of the host's memory and of the device's. */
void kv_view_place_ranks(const kv_cache *cache, arena *a, kv_view *view);
void kv_view_place_ranks_there(const kv_cache *cache, arena *a, kv_view *view);

/* Once both are there. */
void kv_view_open_ranks(kv_cache *cache);

/* What attention writes is this rank's part. */
void kv_view_aim_part(const kv_cache *cache, uint32_t layer, attend_pages_args *args);

/* Behind it: the parts of all become args->out. */
void kv_view_merge_parts(const kv_cache *cache, const kv_attend_args *args);

/* When a step has ended: what this rank's n query heads have read and left of a layer becomes what all have. False: the
 * comm has failed. */
bool kv_view_merge_masses(const kv_cache *cache, attn_mass *masses, double *unread,
                          size_t n) MUST_CHECK;

/* How many of a sequence's pages this rank reads, if it may read k. */
double kv_view_own_k(const kv_cache *cache, double k);

#endif
