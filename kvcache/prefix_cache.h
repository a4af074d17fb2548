/* kvcache/prefix_cache.h - prefixes whose keys and values are there already.
 *
 * A cached object is the page table of a sequence and its token ids. While the sequence runs (its
 * prompt has been shared) the object borrows table and ring from it; when it closes, the object takes
 * the table over, the ring having been written to pages. A new sequence takes the longest common
 * prefix: whole blocks by reference, the rest of the last block by copying entries into its ring.
 *
 * Objects are kept in order of use. Under pressure the least recently used one gives up its blocks
 * from its end, one at a time: beginnings are shared most. An object that a new one contains wholly
 * is dropped, so that the turns of a conversation do not pile up.
 *
 * A sequence that evicts lends nothing: what its prompt leaves is an object with references of its own to
 * the blocks that are in pages when it is shared.
 *
 * Everything here may allocate and is called between steps only. */
#ifndef KVCACHE_PREFIX_CACHE_H
#define KVCACHE_PREFIX_CACHE_H

#include "base/arena.h"
#include "kvcache/kv_cache.h"
#include "kvcache/page_table.h"
#include "kvcache/prefix_index.h"

typedef struct kv_prefix_object {
    bool is_used;          /* false: the slot is free */
    uint64_t origin;       /* of its entries: kv_seq.origin */
    kv_seq *seq;           /* the running sequence that it borrows from, or NULL */
    kv_table table;        /* its own; valid only while seq is NULL */
    uint32_t n_tokens;     /* ids known, and held in pages or by seq */
    uint32_t *tokens;      /* [n_tokens]; its own */
    size_t data_bytes;     /* of tokens and keys, one allocation */
    uint32_t older, newer; /* in order of use; `older` links free slots */
} kv_prefix_object;

typedef struct kv_prefix {
    hash_key hash; /* random, of this process */
    uint32_t n_objects_max, n_objects;
    kv_prefix_object *objects; /* [n_objects_max] */
    kv_prefix_index index;     /* its keys[i] belong to objects[i] */
    uint32_t free_objects, oldest, newest;
    size_t bytes; /* allocated by objects and index, tables included */
} kv_prefix;

/* Where a prefix can be taken from: an object, or the sequence that it borrows from. */
typedef struct kv_prefix_source {
    const kv_table *table;
    const kv_seq *seq; /* running: ring and sinks hold what pages do not; else NULL */
    uint32_t n_blocks; /* in pages; the last may be unfinished if seq is NULL */
} kv_prefix_source;

/* ---- life cycle ---- */

void kv_prefix_place(arena *a, kv_prefix *prefix); /* measuring, then real; n_objects_max is set */
err_t kv_prefix_init(kv_cache *cache) MUST_CHECK;
void kv_prefix_deinit(kv_cache *cache);

/* ---- finding ---- */

/* What a cached value depends on besides tokens and model, as text: all exact settings give the same
 * one. Decoded tokens that were computed under a lossy setting are shared under that setting alone. */
enum { KV_SETTINGS_BYTES = 512 };
void kv_prefix_settings(const kv_cache *cache, const kv_methods *methods,
                        char text[KV_SETTINGS_BYTES]);

/* Seed of the keys of a sequence with these methods and this salt. */
hash128 kv_prefix_seed(const kv_cache *cache, const kv_methods *methods, const char *salt,
                       size_t salt_bytes);

/* The object with the longest prefix of tokens[0 .. n_tokens), at most n_tokens - 1 of them, that
 * every layer can serve; *n_taken tokens of it. KV_OBJECT_NONE: no hit. */
uint32_t kv_prefix_find(const kv_cache *cache, hash128 seed, const uint32_t *tokens,
                        uint32_t n_tokens, uint32_t *n_taken);

/* The object was used just now. */
void kv_prefix_touch(kv_prefix *prefix, uint32_t object);

kv_prefix_source kv_prefix_get_source(const kv_cache *cache, uint32_t object);

/* Does every layer find all that a sequence of n_tokens still needs? (Windows free pages.) */
bool kv_prefix_serves(const kv_cache *cache, const kv_prefix_source *source, uint32_t n_tokens);

/* What is looked for: the most of tokens[0 .. n_tokens), and no more than n_max. */
typedef struct kv_prefix_wanted {
    const uint32_t *tokens;
    uint32_t n_tokens, n_max;
} kv_prefix_wanted;

typedef struct kv_prefix_hit {
    uint64_t origin;
    uint32_t object, n_tokens;
} kv_prefix_hit;

enum { KV_PREFIX_HITS_MAX = 16 };
typedef struct kv_prefix_hits {
    kv_prefix_hit at[KV_PREFIX_HITS_MAX];
    uint32_t n;
} kv_prefix_hits;

/* The objects to choose from, each origin once: those with the most whole blocks first. */
void kv_prefix_list(const kv_cache *cache, hash128 seed, const kv_prefix_wanted *wanted,
                    kv_prefix_hits *out);

/* A finished object that has all of these tokens and can serve them, so that nothing new would be cached;
 * it counts as used. Or KV_OBJECT_NONE. */
uint32_t kv_prefix_covering(kv_cache *cache, hash128 seed, const uint32_t *tokens,
                            uint32_t n_tokens);

/* ---- objects ---- */

/* A new one with the sequence's seed and origin, in the index, newest in use, without a table.
 * KV_OBJECT_NONE without memory. */
uint32_t kv_prefix_add(const kv_seq *seq, const uint32_t *tokens, uint32_t n_tokens);

/* Ends one. The pages of its own table are dropped; returns how many became free. */
uint64_t kv_prefix_drop(kv_cache *cache, uint32_t object);

/* Drops finished objects that this one contains and can stand in for. */
void kv_prefix_drop_contained(kv_cache *cache, uint32_t object);

/* ---- what a sequence leaves: prefix_share.c ---- */

/* A running object for seq; replaces the one it has. Without memory there is none. */
void kv_prefix_share(kv_seq *seq, const uint32_t *tokens, uint32_t n_tokens);

/* The sequence now holds fewer tokens. */
void kv_prefix_shorten(kv_seq *seq);

/* The sequence closes: an object takes its table over if possible; its running object ends. tokens
 * NULL: only the ids of the running object are known. */
void kv_prefix_leave(kv_seq *seq, const uint32_t *tokens);

/* The sequence's running object ends, and nothing stays behind. */
void kv_prefix_forget(kv_seq *seq);

/* ---- giving up ---- */

/* One block of the least recently used object whose last block no sequence holds, or else of one that holds
 * anything that no sequence does; false if there is none. */
bool kv_prefix_give_up_block(kv_cache *cache);

/* The least recently used object that is finished, whoever holds its pages; false if there is none. */
bool kv_prefix_give_up_object(kv_cache *cache);

#endif
