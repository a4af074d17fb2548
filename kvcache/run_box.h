/* kvcache/run_box.h - boxes over runs of pages: the coarse level, one per KV_RUN_PAGES blocks of a KV head,
 * kept with the list of its first shard. Where entries are placed one by one there are none.
 *
 * A run's box belongs to the table, since which pages follow each other does. It is made from those of
 * its pages when the last of them is there, and holds them for good: a run that is cut has no valid box
 * until it is whole again, and one that a layer's window has begun to pass is not asked any more.
 *
 * 16 pages of 32 are 512 tokens: with 64 the box would hold most of what keys can be, and tell nothing;
 * with fewer there would be little to skip. */
#ifndef KVCACHE_RUN_BOX_H
#define KVCACHE_RUN_BOX_H

#include "kvcache/kv_cache.h"
#include "kvcache/page_table.h"

#include <stdbool.h>

/* The runs of a layer that are whole with blocks [first, end), all heads. Nothing if tables have none. */
void kv_runs_write(kv_seq *seq, uint32_t layer, uint32_t first, uint32_t end);

/* Does the run's box hold the boxes of its pages? For checks. */
bool kv_run_holds(const kv_cache *cache, const kv_table *table, uint32_t layer, uint32_t head,
                  uint32_t run);

#endif
