/* kvcache/device_view.h - what a device with memory of its own sees of the cache.
 *
 * The host has the cache: it decides, evicts and shares, whatever the device is. A device that attends by
 * itself (dev_ops.attend_pages) has a copy of the bytes that attention reads, here called the view:
 *
 *   pool     every page at its offset in the pool's mapping
 *   rings    of each sequence, a slot being one token: keys and values of all layers and heads
 *   staging  the same for the tokens of a step
 *   lists    of each sequence: for every block and head where its page lies and which slots it sees
 *
 * What has changed since goes up when a step begins. Inside the step the device appends and attends, and nothing
 * passes between the two; at its end the step's keys and values come down in one piece, and the host commits them
 * as always, but for what the device can make of them itself (device_commit.h).
 *
 * Rows that the view cannot serve are attended on the host, from q, k and v that come down layer by layer: under
 * routings that no rule of kernels/choose_pages.h is (`hierarchical`), scorers and codecs that look at queries or
 * shares of attention, and eviction in layers with a window. It follows from a sequence's methods alone, so neighbours
 * change no bit. With tiers below the pool and where entries are placed one by one all rows are the host's. Over ranks
 * each has a view of what it has (device_ranks.h), and only `topk` chooses there.
 *
 * Threads: the cache's owner. */
#ifndef KVCACHE_DEVICE_VIEW_H
#define KVCACHE_DEVICE_VIEW_H

#include "kvcache/device_view_state.h"

enum { KV_TOLD_BLOCKS = 64 };

/* Nothing if the device's memory is the host's. ERR_NO_MEMORY says how much the view needs. */
err_t kv_view_open(kv_cache *cache, err_info *info) MUST_CHECK;
void kv_view_close(kv_cache *cache);

/* Makes room for the lists of a step's rows; before it begins. ERR_NO_MEMORY. */
err_t kv_view_grow(kv_cache *cache, const kv_row *rows, uint32_t n_rows) MUST_CHECK;

/* The step's rows are set: sends what has changed, and what there is to do. */
void kv_view_begin_step(kv_cache *cache);

/* args: of the device. Afterwards the host has k and v, too, if it attends to a row. */
void kv_view_append(kv_cache *cache, const kv_append_args *args);

/* args: of the device, `host` of the host with the same in it, if it attends to a row. */
void kv_view_begin_attend(kv_cache *cache, const kv_attend_args *args, kv_attend_args *host);
/* What the host has computed joins what the device has. */
void kv_view_end_attend(kv_cache *cache, const kv_attend_args *args);

/* Keys and values of the step come down to the host's staging. */
void kv_view_end_step(kv_cache *cache);

/* Does the host attend to row r of the step? */
static inline bool kv_is_hosts_row(const kv_cache *cache, uint32_t r)
{
    return cache->view == NULL || cache->view->is_hosts[r];
}

/* Is row r a decode row that chooses on the device? */
static inline bool kv_is_choosing_row(const kv_cache *cache, uint32_t r)
{
    const kv_row *row = &cache->step.rows[r];
    return !kv_is_hosts_row(cache, r) && row->is_decode && !row->seq->methods.reads_all;
}

/* Has the device all entries of a sequence that are in its ring, and in the step's staging? */
bool kv_view_has_entries(const kv_cache *cache, const kv_seq *seq);

/* ---- device_tell.c: what goes up ---- */

void kv_view_tell_pages(kv_cache *cache);
void kv_view_tell_ring(kv_cache *cache, uint32_t seq);
void kv_view_tell_lists(kv_cache *cache, uint32_t seq);

/* Between a slot of all heads and the strips of a ring or of staging. */
typedef struct kv_slot_copy {
    const kv_cache *cache;
    const kv_strips *strips;
    uint8_t *bytes;  /* of the strips */
    uint32_t first;  /* slot in the strips of the first packed one */
    uint8_t *packed; /* [n][slot_bytes] */
} kv_slot_copy;
void kv_slots_pack(const kv_slot_copy *copy, uint32_t n);
void kv_slots_unpack(const kv_slot_copy *copy, uint32_t n);

#endif
