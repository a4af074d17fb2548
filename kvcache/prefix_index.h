/* kvcache/prefix_index.h - from the hash of a prefix to the cached objects that begin with it.
 *
 * Every whole block of an object has a key: key[b] = H(key[b - 1], ids of block b), where key[-1] is
 * a seed of salt and settings; the low half of key.hi is b itself. So a key stands for all ids up to
 * the end of its block, and for the tenant. H is keyed at random per process: nobody outside can aim for a
 * collision; and a hit is confirmed by comparing ids in any case.
 *
 * Slots are an open-addressed table with linear probing. Objects with the same key hang in a doubly
 * linked list from its slot, newest first, so that adding and removing takes the same time however
 * many share a prompt:
 *
 *   slot   key | head --> object 7 <--> object 2        next, prev: arrays of the object, by block */
#ifndef KVCACHE_PREFIX_INDEX_H
#define KVCACHE_PREFIX_INDEX_H

#include "base/hash.h"

#define KV_OBJECT_NONE UINT32_MAX

/* One object's part of the index. */
typedef struct kv_prefix_keys {
    uint32_t n_keys;       /* whole blocks that can be found; shrinks from the end */
    hash128 *key;          /* [n_keys] */
    uint32_t *next, *prev; /* [n_keys]: objects with the same key, or KV_OBJECT_NONE */
} kv_prefix_keys;

typedef struct kv_prefix_index {
    uint32_t capacity; /* slots: 0 or a power of two, at least twice n_used */
    uint32_t n_used;
    hash128 *key;         /* [capacity]; valid where head is not KV_OBJECT_NONE */
    uint32_t *head;       /* [capacity]: newest object with the key */
    kv_prefix_keys *keys; /* [n_objects_max], borrowed from the prefix cache */
} kv_prefix_index;

/* Room for n more keys. ERR_NO_MEMORY changes nothing. */
err_t kv_prefix_index_reserve(kv_prefix_index *index, uint32_t n) MUST_CHECK;
void kv_prefix_index_deinit(kv_prefix_index *index);
size_t kv_prefix_index_bytes(const kv_prefix_index *index);

/* Lists the object under all its keys; room has been reserved. */
void kv_prefix_index_add(kv_prefix_index *index, uint32_t object);
/* Takes keys [n_keys, ...) of the object out and leaves it n_keys. */
void kv_prefix_index_cut(kv_prefix_index *index, uint32_t object, uint32_t n_keys);

/* The newest object with the key, or KV_OBJECT_NONE. */
uint32_t kv_prefix_index_find(const kv_prefix_index *index, hash128 key);

/* Every key leads to its object, and the lists hold nothing else. */
bool kv_prefix_index_is_sane(const kv_prefix_index *index, uint32_t n_objects);

#endif
