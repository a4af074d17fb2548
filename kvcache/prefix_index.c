/* kvcache/prefix_index.c - see prefix_index.h. */
#include "kvcache/prefix_index.h"

#include "base/check.h"

#include <stdlib.h>
#include <string.h>

enum { SLOTS_MIN = 64 };

/* The slot of the key, or the free one where it belongs. Half of the slots are free. */
static uint32_t find_slot(const kv_prefix_index *index, hash128 key)
{
    const uint32_t mask = index->capacity - 1;
    uint32_t slot = (uint32_t)key.lo & mask;
    while (index->head[slot] != KV_OBJECT_NONE && !hash128_equal(index->key[slot], key))
        slot = (slot + 1) & mask;
    return slot;
}

err_t kv_prefix_index_reserve(kv_prefix_index *index, uint32_t n)
{
    const uint64_t needed = 2 * ((uint64_t)index->n_used + n);
    if (needed <= index->capacity) return ERR_OK;
    uint64_t capacity = SLOTS_MIN;
    while (capacity < needed)
        capacity *= 2;
    if (capacity > UINT32_MAX / 2) return ERR_NO_MEMORY;
    kv_prefix_index grown = *index;
    grown.capacity = (uint32_t)capacity;
    grown.key = calloc(capacity, sizeof *grown.key);
    grown.head = malloc(capacity * sizeof *grown.head);
    if (grown.key == NULL || grown.head == NULL) {
        free(grown.key);
        free(grown.head);
        return ERR_NO_MEMORY;
    }
    memset(grown.head, 0xff, capacity * sizeof *grown.head); /* KV_OBJECT_NONE */
    for (uint32_t i = 0; i < index->capacity; i++) {
        if (index->head[i] == KV_OBJECT_NONE) continue;
        const uint32_t slot = find_slot(&grown, index->key[i]);
        grown.key[slot] = index->key[i];
        grown.head[slot] = index->head[i];
    }
    kv_prefix_index_deinit(index);
    *index = grown;
    return ERR_OK;
}

void kv_prefix_index_deinit(kv_prefix_index *index)
{
    free(index->key);
    free(index->head);
    index->key = NULL;
    index->head = NULL;
    index->capacity = 0;
}

size_t kv_prefix_index_bytes(const kv_prefix_index *index)
{
    return index->capacity * (sizeof *index->key + sizeof *index->head);
}

uint32_t kv_prefix_index_find(const kv_prefix_index *index, hash128 key)
{
    return index->capacity == 0 ? KV_OBJECT_NONE : index->head[find_slot(index, key)];
}

void kv_prefix_index_add(kv_prefix_index *index, uint32_t object)
{
    kv_prefix_keys *keys = &index->keys[object];
    for (uint32_t b = 0; b < keys->n_keys; b++) {
        const uint32_t slot = find_slot(index, keys->key[b]);
        const uint32_t head = index->head[slot];
        keys->prev[b] = KV_OBJECT_NONE;
        keys->next[b] = head;
        if (head != KV_OBJECT_NONE) {
            index->keys[head].prev[b] = object;
        } else {
            index->key[slot] = keys->key[b];
            index->n_used++;
        }
        index->head[slot] = object;
    }
}

/* Frees a slot and moves later ones of its run up, so that no probe ends too early. */
static void free_slot(kv_prefix_index *index, uint32_t slot)
{
    const uint32_t mask = index->capacity - 1;
    uint32_t hole = slot;
    index->n_used--;
    for (uint32_t i = (slot + 1) & mask; index->head[i] != KV_OBJECT_NONE; i = (i + 1) & mask) {
        const uint32_t home = (uint32_t)index->key[i].lo & mask;
        if (((i - home) & mask) < ((i - hole) & mask)) continue; /* the hole is before its home */
        index->key[hole] = index->key[i];
        index->head[hole] = index->head[i];
        hole = i;
    }
    index->head[hole] = KV_OBJECT_NONE;
}

void kv_prefix_index_cut(kv_prefix_index *index, uint32_t object, uint32_t n_keys)
{
    kv_prefix_keys *keys = &index->keys[object];
    while (keys->n_keys > n_keys) {
        const uint32_t b = --keys->n_keys;
        const uint32_t next = keys->next[b], prev = keys->prev[b];
        if (next != KV_OBJECT_NONE) index->keys[next].prev[b] = prev;
        if (prev != KV_OBJECT_NONE) {
            index->keys[prev].next[b] = next;
            continue;
        }
        const uint32_t slot = find_slot(index, keys->key[b]);
        assert(index->head[slot] == object);
        if (next != KV_OBJECT_NONE) {
            index->head[slot] = next;
        } else {
            free_slot(index, slot);
        }
    }
}

bool kv_prefix_index_is_sane(const kv_prefix_index *index, uint32_t n_objects)
{
    uint64_t n_keys = 0, n_listed = 0, n_used = 0;
    for (uint32_t o = 0; o < n_objects; o++)
        n_keys += index->keys[o].n_keys;
    for (uint32_t slot = 0; slot < index->capacity; slot++) {
        const uint32_t head = index->head[slot];
        if (head == KV_OBJECT_NONE) continue;
        n_used++;
        if (find_slot(index, index->key[slot]) != slot) return false;
        const uint32_t b = (uint32_t)index->key[slot].hi; /* the block's number */
        uint32_t prev = KV_OBJECT_NONE;
        for (uint32_t o = head; o != KV_OBJECT_NONE; o = index->keys[o].next[b]) {
            if (b >= index->keys[o].n_keys || index->keys[o].prev[b] != prev) return false;
            if (!hash128_equal(index->keys[o].key[b], index->key[slot])) return false;
            if (n_listed++ > n_keys) return false;
            prev = o;
        }
    }
    return n_listed == n_keys && n_used == index->n_used;
}
