/* kvcache/scatter.h - layers that are placed entry by entry: by expert, or by hash.
 *
 * Such a layer's entries lie on as many lists per KV head as there are shards. They are appended to the
 * last page of their list, in position order; a full page is sealed, and the next entry of the list
 * opens a new one, at the table's entry of its own block. So the pages of a list hold the first
 * page_tokens entries of the list, the next page_tokens, and so on:
 *
 *   block            0            1            2
 *   shard 0   [ 0 2 5 6 7 8 ]           [ 14 16 ....       <- open: the list's tail
 *   shard 1   [ 1 3 4 9 ..............................     <- open as well
 *
 * What lies on a page is therefore a function of the length and of the owners alone (where a window frees
 * pages, also of the steps). A page belongs to the one sequence that fills it until it is full: a
 * sequence that takes a prefix shares full pages and copies the tails, so that it goes on as if it had
 * filled them itself, and never needs more pages than n_shards - 1 beyond those of its blocks.
 *
 * A thinned sequence (evict.h) keeps its lists: their pages become fewer, each within its list, so that
 * no entry changes its owner, and the last raw page is filled further. Its encoded pages may have fewer
 * slots than others.
 *
 * Layers without a router, one shard, and placement by block know nothing of this: there block b is a
 * page of its own, in the list of shard b mod n_shards. */
#ifndef KVCACHE_SCATTER_H
#define KVCACHE_SCATTER_H

#include "kvcache/encode.h"

/* ---- pages in order ---- */

/* The pages of one KV head that were opened by blocks [block, end), in the order in which they are read:
 * by their first positions. */
typedef struct kv_walk {
    const kv_cache *cache;
    const kv_table *table;
    uint32_t layer, head;
    uint32_t block, end;
    uint32_t n, next; /* pages of the block before `block`, and the next of them */
    kv_page_at at[KV_SHARDS_MAX];
} kv_walk;

void kv_walk_begin(kv_walk *walk, const kv_cache *cache, const kv_table *table, uint32_t layer,
                   uint32_t head, uint32_t n_blocks);
bool kv_walk_next(kv_walk *walk, kv_page_at *out);

/* At the beginning: leaves out blocks below `first` where a page has the positions of its own block. */
static inline void kv_walk_skip(kv_walk *walk, uint32_t first)
{
    if (!walk->cache->scatters[walk->layer] && first > walk->block)
        walk->block = first < walk->end ? first : walk->end;
}

/* The last position of a page with slots. */
static inline uint32_t kv_last_position(const kv_cache *cache, uint32_t page)
{
    const kv_pages *pages = kv_pool_pages(cache->pool);
    return pages->positions[(size_t)page * cache->page_tokens + pages->n_slots[page] - 1];
}

/* Nothing is appended to the page any more; its box is valid. */
static inline bool kv_is_sealed_page(const kv_cache *cache, uint32_t page)
{
    return kv_pool_pages(cache->pool)->n_slots[page] == cache->page_tokens ||
           kv_is_coded_page(cache, page);
}

/* ---- commit ---- */

/* Pages that n_blocks blocks of a layer can need per KV head: when they are written, whatever there is
 * already; and at most ever. */
uint32_t kv_pages_to_open(const kv_cache *cache, uint32_t layer, uint32_t n_blocks);
uint64_t kv_pages_most(const kv_cache *cache, uint32_t layer, uint64_t n_blocks);
/* The same for a head of the longest sequence in any layer. */
size_t kv_head_pages_max(const kv_cache *cache);

/* Gives the page an owner: the shard of its list, or the emptiest one if that has spent its share of the
 * pool. */
uint32_t kv_choose_owner(const kv_cache *cache, uint32_t shard, uint32_t page_class);
/* Notes that n entries of the list of `shard` were written to a page. */
void kv_count_spilled(kv_cache *cache, uint32_t shard, uint32_t page, uint32_t n);

/* Appends the entries of a block, owner[i] of each; room was found before. By the owner thread. */
void kv_scatter_append(kv_seq *seq, uint32_t layer, uint32_t block, const uint32_t *owner,
                       uint32_t n_slots);
/* The layer's window has passed the block before it was written. */
void kv_scatter_skip(kv_seq *seq, uint32_t layer, uint32_t block);
/* Writes what was appended behind the first n_blocks blocks, from ring and staging. From any worker. */
void kv_scatter_write(const kv_seq *seq, uint32_t layer, uint32_t worker);
/* Frees the pages that the layer's window has passed wholly. */
void kv_scatter_drop_passed(kv_seq *seq, uint32_t layer);
/* Others have dropped pages of a thinned sequence: finds where its lists begin and end now. */
void kv_scatter_find_ends(kv_seq *seq, uint32_t layer);

/* ---- cutting and sharing; between steps ---- */

/* The table sees no positions from `position` on, in all scattered layers. Returns the pages freed. */
uint64_t kv_scatter_cut(const kv_cache *cache, kv_table *table, uint32_t position,
                        kv_holder holder);
/* Takes a KV head's pages with positions below `end` (of whole blocks) from another table. */
typedef struct kv_scatter_source {
    const kv_table *table;
    uint32_t layer, head;
    uint32_t end;
    uint32_t
        n_tokens; /* that the sequence will hold: windows may have passed what it does not need */
} kv_scatter_source;
void kv_scatter_take(kv_seq *seq, const kv_scatter_source *source);
/* Makes the tails of a sequence's lists its own and the pool's, with no slots but those it sees. False, and
 * then it sees what it saw, if there is no room for the copies. */
bool kv_scatter_own_tails(kv_seq *seq);
/* Makes room for copies of all tails that are not full: then others may hold them, and it can own new ones. */
bool kv_scatter_find_room_for_tails(kv_seq *seq);

/* Moves the raw pages of scattered layers together. When all around them has been encoded they are few in
 * many slabs, which then lack for encoded pages. */
void kv_scatter_pack(kv_cache *cache);

/* Entries of a KV head whose pages a table sees, at positions [first, end), to the recent part of a
 * sequence's ring, with their shards; or to its sinks. It is lost if they cannot be read. */
typedef struct kv_scatter_range {
    const kv_table *table;
    uint32_t layer, head;
    uint32_t first, end;
} kv_scatter_range;
void kv_scatter_to_ring(kv_seq *seq, const kv_scatter_range *range);
void kv_scatter_to_sinks(kv_seq *seq, const kv_scatter_range *range);

#endif
