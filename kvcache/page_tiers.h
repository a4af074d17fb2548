/* kvcache/page_tiers.h - pages outside the pool: lower tiers with budgets of their own, in the same ids.
 *
 * Host memory is mapped like the pool; of a file only the offsets are dealt out here (tier/tiers.h reads
 * and writes it). A page that is demoted or comes back is copied to a twin in the other tier; everything
 * that is known of it goes with it, and stays in memory.
 *
 * Threads: as page_pool.h; any worker may note a use. */
#ifndef KVCACHE_PAGE_TIERS_H
#define KVCACHE_PAGE_TIERS_H

#include "kvcache/page_pool.h"

typedef enum kv_tier { KV_TIER_POOL, KV_TIER_HOST, KV_TIER_FILE, KV_N_TIERS } kv_tier;

typedef struct kv_tier_counts {
    uint64_t budget_bytes; /* whole slabs */
    uint64_t slab_bytes;   /* slabs in use */
    uint64_t n_pages;
    uint64_t used_bytes; /* of pages that a sequence holds, in shares of slabs */
} kv_tier_counts;

/* A page of the same class, slots, owner, positions, box and biases in a tier, with one reference; its data
 * is the caller's to copy. KV_PAGE_NONE if the tier has no room. */
uint32_t kv_pool_alloc_twin(kv_pool *pool, uint32_t page, kv_tier tier, kv_holder holder);

kv_tier kv_pool_tier(const kv_pool *pool, uint32_t page);
uint64_t kv_pool_file_offset(const kv_pool *pool, uint32_t page); /* of a page of the file */

/* Last use, for what is demoted first: a time that the owner lets tick, by page. Kept only if there are
 * lower tiers. */
void kv_pool_tick(kv_pool *pool);
uint32_t kv_pool_now(const kv_pool *pool);
void kv_pool_use(const kv_pool *pool, uint32_t page);
uint32_t kv_pool_last_use(const kv_pool *pool, uint32_t page);

/* ---- queries ---- */

bool kv_pool_has_tiers(const kv_pool *pool);
uint32_t kv_pool_n_pages(const kv_pool *pool);                  /* ids are below this */
uint32_t kv_pool_first_page(const kv_pool *pool, kv_tier tier); /* no id of the tier is below */
size_t kv_pool_page_bytes_max(const kv_pool *pool);
uint64_t kv_pool_slab_bytes(const kv_pool *pool);

/* Could need[c] pages of every class c lie in an empty pool and its lower tiers together, if any page may
 * leave? */
bool kv_pool_could_spill(const kv_pool *pool, const uint64_t *need, bool with_file);
bool kv_pool_is_full_below(const kv_pool *pool, bool with_file); /* no slab is left in the tiers */

kv_tier_counts kv_pool_count_tier(const kv_pool *pool, kv_tier tier);

#endif
