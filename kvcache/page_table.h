/* kvcache/page_table.h - which pages a sequence (or a cached object) sees.
 *
 * One list per (layer, KV head, shard). Entry b of a list is block b of the sequence: the page that
 * holds those positions and the slots of it that this table sees, or KV_PAGE_NONE where the block has
 * no page in this list: it is still in the ring, or the layer's window has passed it.
 *
 *   list   layer 0 head 0:  page 7 ####   page 9 ####   page 4 ##..
 *          layer 0 head 1:  page 2 ####   page 3 ####   page 8 ##..
 *
 * Of a layer that is placed by blocks, block b lies in one list of its head, that of shard b mod
 * n_shards. Of one that is placed entry by entry (scatter.h), an entry of a list is the page that was
 * opened by an entry of that block, and the positions in it may lie far beyond; they rise along the list.
 *
 * The bitmap belongs to the table, not to the page: cutting or evicting touches only one's own view.
 * Runs of KV_RUN_PAGES entries may have a box of their keys (run_box.h).
 *
 * Tables grow at the beginning of a step or when a prefix is taken, never inside a step. */
#ifndef KVCACHE_PAGE_TABLE_H
#define KVCACHE_PAGE_TABLE_H

#include "kvcache/page_slots.h"

/* Of a list whose entries are scattered; the other lists have none of this. */
typedef struct kv_list_marks {
    uint32_t first;  /* entries below have no page */
    uint32_t tail;   /* the last entry with a page, or KV_PAGE_NONE */
    uint32_t passed; /* positions below may be gone: the layer's window has passed them */
} kv_list_marks;

typedef struct kv_table {
    uint32_t n_lists;     /* layers x heads x shards; fixed */
    uint32_t capacity;    /* entries of every list */
    uint32_t *page;       /* [n_lists][capacity]; KV_PAGE_NONE beyond what was set */
    uint64_t *live;       /* [n_lists][capacity]; 0 where the page is KV_PAGE_NONE */
    uint32_t *n_live;     /* [n_lists]: bits set in `live` */
    kv_list_marks *marks; /* [n_lists] */
    uint32_t *
        changed; /* [n_lists]: entries from here on may have changed since somebody set this; KV_PAGE_NONE: none */
    size_t run_box_bytes; /* 0: there are none; set before the table grows */
    uint8_t *run_boxes;   /* [n_lists][capacity / KV_RUN_PAGES][run_box_bytes] */
} kv_table;

enum { KV_RUN_PAGES = 16 };

/* One page that a table sees of a KV head. */
typedef struct kv_page_at {
    uint32_t shard, block; /* its list, and its entry in it */
    uint32_t page;
} kv_page_at;

/* Makes room for n_entries in every list; those there stay. ERR_NO_MEMORY changes nothing. */
err_t kv_table_grow(kv_table *table, uint32_t n_entries) MUST_CHECK;

void kv_table_deinit(kv_table *table); /* drops no references: see kv_table_drop */

size_t kv_table_bytes(const kv_table *table);

/* Drops the references of entries [first, end) of every list; returns the pages freed by that. */
uint64_t kv_table_drop(kv_table *table, kv_pool *pool, uint32_t first, uint32_t end,
                       kv_holder holder);

/* Drops one entry if it has a page. True if the page is free now. */
bool kv_table_drop_entry(kv_table *table, kv_pool *pool, uint32_t list, uint32_t block,
                         kv_holder holder);

/* From now on the table sees these slots of the block's page. */
void kv_table_see(kv_table *table, uint32_t list, uint32_t block, uint64_t live);

/* The first n_slots slots of a page. */
static inline uint64_t kv_slot_mask(uint32_t n_slots)
{
    return n_slots == 0 ? 0 : UINT64_MAX >> (64 - n_slots);
}

static inline size_t kv_table_entry(const kv_table *table, uint32_t list, uint32_t block)
{
    return (size_t)list * table->capacity + block;
}

/* The entry sees another page, with the slots that it saw. */
static inline void kv_table_replace(kv_table *table, uint32_t list, uint32_t block, uint32_t page)
{
    table->page[kv_table_entry(table, list, block)] = page;
    if (block < table->changed[list]) table->changed[list] = block;
}

static inline uint8_t *kv_table_run_box(const kv_table *table, uint32_t list, uint32_t run)
{
    const size_t n_runs = table->capacity / KV_RUN_PAGES;
    return table->run_boxes + (list * n_runs + run) * table->run_box_bytes;
}

/* The page of a block that may lie beyond what the table has room for. */
static inline uint32_t kv_table_page(const kv_table *table, uint32_t list, uint32_t block)
{
    return block < table->capacity ? table->page[kv_table_entry(table, list, block)] : KV_PAGE_NONE;
}

#endif
