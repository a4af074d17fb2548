/* kvcache/page_pool.h - head-pages cut from slabs of one byte budget.
 *
 * The budget is one reserved mapping, cut into slabs. A slab belongs to one size class (codec x head
 * shape) while it holds a page of that class, and returns to all when its last page is freed; its
 * memory then goes back to the system. So a class that shrinks really frees bytes for the others.
 *
 *   budget  | slab 0: class A | slab 1: free | slab 2: class B | ...
 *   slab 0  | page | page | free page | page |
 *
 * A page is known by its id, slab * pages_per_slab_max + index. What is known of a page is one array
 * per field, indexed by id. Free pages and free slabs are linked through such arrays as well: nothing
 * here allocates after open. Under AddressSanitizer free pages are poisoned.
 *
 * Pages may also lie in lower tiers: page_tiers.h. New ones are always the pool's.
 *
 * References are counted by kind of holder, since a page held by cached objects alone can be had
 * back. A page is freed when its last reference is dropped. A page may lean on another, which is then
 * held by all who hold it: such pages are no business of tables.
 *
 * Threads: one owner. Concurrent reads, and writes to the data of different pages, are fine while
 * nobody allocates or drops. */
#ifndef KVCACHE_PAGE_POOL_H
#define KVCACHE_PAGE_POOL_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct kv_pool kv_pool;

#define KV_PAGE_NONE  UINT32_MAX
#define KV_OWNER_NONE UINT16_MAX

enum { KV_SLAB_BYTES = 64 * 1024 };

typedef enum kv_holder { KV_HELD_BY_SEQ, KV_HELD_BY_OBJECT, KV_N_HOLDERS } kv_holder;

typedef struct kv_pool_config {
    uint64_t budget_bytes;
    uint64_t host_bytes, file_bytes; /* of the lower tiers; 0: there is none */
    uint32_t page_tokens;            /* slots of a page */
    uint32_t n_classes;              /* at most KV_CLASSES_MAX */
    const size_t *page_bytes; /* [n_classes]; a slab is 64 KiB, or the largest page rounded up */
    size_t box_bytes;         /* of a page's key box, beside the page; 0: there are none */
    bool has_biases;          /* slots may get biases: page_bias.h */
    bool has_importance;      /* pages may get an importance: heat.h */
    bool notes_changes;       /* page_changes.h */
    uint32_t n_shards;        /* that pages may have as owners, >= 1 */
} kv_pool_config;

enum { KV_CLASSES_MAX = 4096 };

/* What the cache knows of every page, as arrays by page id; borrowed until kv_pool_close. */
typedef struct kv_pages {
    const uint32_t *n_refs[KV_N_HOLDERS]; /* [n_pages] each */
    const uint16_t *owner;                /* [n_pages]: shard; KV_OWNER_NONE without slots */
    const uint8_t *n_slots;               /* [n_pages]: slots written */
    const uint32_t *positions;            /* [n_pages][page_tokens]; valid below n_slots */
    const uint8_t *boxes; /* [n_pages][box_bytes], or NULL; valid once the page is sealed */
    size_t box_bytes;
} kv_pages;

/* Of the pool itself, except where all tiers are named. */
typedef struct kv_pool_counts {
    uint64_t budget_bytes;             /* whole slabs */
    uint64_t slab_bytes;               /* slabs in use */
    uint64_t descriptor_bytes;         /* boxes and biases included; all tiers */
    uint64_t pages_used, pages_cached; /* held by a sequence; by objects alone */
    uint64_t pages_free; /* in slabs in use, and what free slabs hold of the largest page */
    uint64_t slots_live; /* all tiers */
    uint64_t used_bytes; /* of pages_used, each with its share of its slab */
} kv_pool_counts;

/* What one shard owns, whoever holds it and wherever it lies. */
typedef struct kv_pool_shard {
    uint64_t n_pages, n_slots;
    uint64_t bytes; /* of the pool: each page with its share of its slab */
} kv_pool_shard;

/* ---- life cycle ---- */

/* ERR_NO_MEMORY, or ERR_OVERFLOW if pages outnumber ids. */
err_t kv_pool_open(const kv_pool_config *config, kv_pool **out) MUST_CHECK;
void kv_pool_close(kv_pool *pool); /* NULL is fine; pages may still be held */

/* ---- pages ---- */

/* A page with one reference and no slots, or KV_PAGE_NONE if the budget is spent. */
uint32_t kv_pool_alloc_page(kv_pool *pool, uint32_t page_class, kv_holder holder);
void kv_pool_hold(kv_pool *pool, uint32_t page, kv_holder holder);
/* True if that was the last reference and the page is free now. */
bool kv_pool_drop(kv_pool *pool, uint32_t page, kv_holder holder);
/* Moves a page that a sequence holds into the fullest slab of its class that has room, if that is no emptier
 * than its own; returns the page's id from then on, which all of its holders must be told. */
uint32_t kv_pool_move_page(kv_pool *pool, uint32_t page);
/* One reference passes from one kind of holder to the other. */
void kv_pool_pass(kv_pool *pool, uint32_t page, kv_holder from, kv_holder to);

/* From now on, until it is freed, who holds `page` also holds `on`, once more; pages lean on one page, and
 * only on such as lean on none. */
void kv_pool_lean(kv_pool *pool, uint32_t page, uint32_t on);
uint32_t kv_pool_leans_on(const kv_pool *pool, uint32_t page); /* or KV_PAGE_NONE */

/* Valid while the page is held; there is none in the file: page_tiers.h. */
uint8_t *kv_pool_data(const kv_pool *pool, uint32_t page);
uint32_t kv_pool_class(const kv_pool *pool, uint32_t page);
size_t kv_pool_page_bytes(const kv_pool *pool, uint32_t page);
uint8_t *kv_pool_box(const kv_pool *pool, uint32_t page); /* NULL if there are none */
float *kv_pool_importance(const kv_pool *pool,
                          uint32_t page); /* NULL if there is none; see heat.h */

/* ---- queries ---- */

/* Bytes of the smallest budget that could hold need[c] pages of every class c. */
uint64_t kv_pool_least_bytes(const kv_pool_config *config, const uint64_t *need);

/* Could need[c] more pages of every class c be allocated now? In an empty pool? */
bool kv_pool_has_room(const kv_pool *pool, const uint64_t *need);
bool kv_pool_could_hold(const kv_pool *pool, const uint64_t *need);

/* A page's part of its slab. */
uint64_t kv_pool_part_bytes(const kv_pool *pool, uint32_t page_class);
/* The same, and of the slab's descriptors. */
uint64_t kv_pool_share_bytes(const kv_pool *pool, uint32_t page_class);

const kv_pages *kv_pool_pages(const kv_pool *pool);
kv_pool_counts kv_pool_count(const kv_pool *pool);
const kv_pool_shard *kv_pool_shards(const kv_pool *pool); /* [n_shards] */

/* Checking: begin, tell every reference that is known, end. The end also walks slabs and free lists,
 * and is false if anything disagrees. No allocation. */
void kv_pool_check_begin(const kv_pool *pool);
void kv_pool_check_ref(const kv_pool *pool, uint32_t page, kv_holder holder);
/* What a page holds is dear to check, so pages take turns, an eighth of them in a step; asked after a page's
 * reference was told, true for the first one of the walk. */
bool kv_pool_check_has_turn(const kv_pool *pool, uint32_t page);
bool kv_pool_check_end(const kv_pool *pool);

#endif
