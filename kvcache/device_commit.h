/* kvcache/device_commit.h - at the end of a step, what a device makes of entries that it has.
 *
 * The device has the step's keys and values in its staging, and older ones in rings and raw pages. So it makes the
 * pages that the step commits by itself, moves what stays raw to its rings, and encodes raw pages where they lie;
 * none of it goes up. The host does the same with its own copy, but for one thing: encoding, which would take it
 * longer than a step. Encoded pages, and their boxes, come down as the device made them, in the bytes that the host
 * would have made (kernels/encode_pages.h); they are a fraction of what they were made of, which came down with the
 * step. (If both encoded, nothing would have to come down: but the host's processor would work for every prompt as
 * long as before, and that, not the bus, is what a prompt waits for.)
 *
 * A page that is the device's own work is noted as one it has (page_changes.h), and goes up only if it changes
 * afterwards. What the device cannot make (codecs that ask for queries, or for bases), and what it does not have
 * (entries of rows that the host attends to, pages that changed since the step began), the host makes, and it goes
 * up as device_view.h says.
 *
 * Threads: the cache's owner. */
#ifndef KVCACHE_DEVICE_COMMIT_H
#define KVCACHE_DEVICE_COMMIT_H

#include "kernels/encode_pages.h"
#include "kvcache/cache_state.h"

enum { KV_MADE_MAX = 256 }; /* pages at a time */

/* A part of struct kv_view. */
typedef struct kv_view_work {
    encode_kind *kinds; /* [n_classes]; zeros: not for the device */
    encode_task *tasks; /* [KV_MADE_MAX], of the host: on their way */
    uint32_t *made;     /* [KV_MADE_MAX]: the page of each */
    uint8_t *copies;    /* [KV_MADE_MAX][copy_bytes], of the host: on their way */
    size_t *copy_at;    /* [KV_MADE_MAX]: where each begins in there; valid of encoded pages */
    move_task *moves;   /* [n_moves_max], of the host: on their way */
    bool *is_committed; /* [n_seqs_max]: row r of the latest commit was by the device, too */
    size_t copy_bytes;  /* of the largest page and its box */
    size_t n_copied;    /* bytes of copies so far */
    uint32_t n, n_moves, n_moves_max;
    struct {
        encode_kind *kinds;
        encode_task *tasks;
        uint8_t *copies;
        move_task *moves;
    } device;
} kv_view_work;

/* Of all encoded pages that the cache may have: kv_view_copy_bytes. */
size_t kv_view_copy_bytes_max(const kv_cache *cache);

/* Run over measuring and then real arenas: of the host, of the device. copy_bytes and n_moves_max are there. */
void kv_view_place_work(const kv_cache *cache, arena *a, kv_view_work *out);
void kv_view_place_work_there(const kv_cache *cache, arena *a, kv_view_work *out);
void kv_view_send_kinds(kv_cache *cache);

/* The rows' pages have their slots: makes them, and moves what stays in rings. Rings and raw pages of the host are
 * not written yet. */
void kv_view_commit(kv_cache *cache, const kv_row *rows, uint32_t n_rows);
/* They are: the rings' slots have not changed for the device. */
void kv_view_end_commit(kv_cache *cache, const kv_row *rows, uint32_t n_rows);

/* Encodes the first n of cache->sealings, as far as the device can. */
void kv_view_seal(kv_cache *cache, uint32_t n);

/* Did one of these make an encoded page, so that the host has it? */
bool kv_view_made(const kv_cache *cache, uint32_t page);

#endif
