/* kvcache/device_view.h - what a device with memory of its own sees of the cache.
 *
 * The host has the cache: it decides, encodes, evicts and shares, whatever the device is. A device that attends by
 * itself (dev_ops.attend_pages) has a copy of the bytes that attention reads, here called the view:
 *
 *   pool     every page at its offset in the pool's mapping
 *   rings    of each sequence, a slot being one token: keys and values of all layers and heads
 *   staging  the same for the tokens of a step
 *   lists    of each sequence: for every block and head where its page lies and which slots it sees
 *
 * What has changed since goes up when a step begins. Inside the step the device appends and attends, and nothing
 * passes between the two; at its end the step's keys and values come down in one piece, and the host commits
 * them as always. So a method needs no code for the device unless attention reads its pages in another way.
 *
 * Rows that the view cannot serve are attended on the host, from q, k and v that come down layer by layer: under
 * routings that choose (but for `topk`: device_choice.h), scorers and codecs that want to see queries or shares of attention, low-rank codecs, and
 * eviction in layers with a window. Which it is follows from a sequence's methods alone, so neighbours change no
 * bit. With tiers below the pool and where entries are placed one by one all rows are the host's. Over ranks each has a
 * view of what it has: see device_ranks.h.
 *
 * Threads: the cache's owner. */
#ifndef KVCACHE_DEVICE_VIEW_H
#define KVCACHE_DEVICE_VIEW_H

#include "kernels/choose_pages.h"
#include "kernels/dev_comm.h"
#include "kvcache/cache_state.h"

/* Of a layer's entries below some block: what attention reads of them. */
typedef struct kv_view_sum {
    uint64_t bytes;
    uint64_t n_pages;
} kv_view_sum;

/* The list of one open sequence. */
typedef struct kv_view_seq {
    uint64_t id;       /* kv_seq.id of whom the rest is true */
    attn_page *pages;  /* [capacity][n_lists], of the device */
    kv_view_sum *sums; /* [n_layers][capacity + 1] */
    uint32_t capacity;
    uint32_t n_told; /* blocks that the device knows, but for what the table has noted as changed */
} kv_view_seq;

typedef struct kv_view {
    /* Of the host, for rows that it attends to: a layer of a step. */
    float *q, *k, *v, *out;
    bool *is_hosts; /* [n_seqs_max]: row r of the step is */
    uint32_t n_hosts;

    bool attends;          /* what follows is there */
    size_t slot_bytes;     /* of rings and staging */
    size_t *layer_offset;  /* [n_layers]: in a slot */
    uint32_t n_lists;      /* heads of all layers */
    uint32_t *first_list;  /* [n_layers] */
    uint32_t n_packed_max; /* slots */
    uint8_t *packed;       /* [n_packed_max][slot_bytes], of the host: on their way */
    attn_page *entries;    /* [KV_TOLD_BLOCKS][n_lists], of the host: on their way */
    kv_view_seq *seqs;     /* [n_seqs_max]: as cache->seqs */
    attn_row *rows;   /* [n_seqs_max], and so on, of the host: what device.rows ... are made from */
    attn_task *tasks; /* [n_tasks_max] */
    attn_merge_task *merges; /* [n_seqs_max] */
    uint32_t n_tasks_max, n_tasks, n_merges, n_queries_max, n_partials_max, n_partials;
    size_t device_bytes; /* of all, lists included */
    void *block;         /* of the device; what follows lies in it */
    struct {
        uint8_t *pool, *rings, *staging;
        float *biases; /* [n_pages][page_tokens], or NULL */
        attn_layout *layouts;
        float *sink_logits; /* [n_layers][n_heads_max], or NULL */
        attn_row *rows;
        attn_task *tasks;
        attn_merge_task *merges;
        float *partials;
    } device;
    struct {                  /* device_choice.h; nothing without boxes */
        attn_choice *choices; /* [n_seqs_max], of the host; n valid in a step */
        uint8_t *found;       /* [n_layers][layer_bytes], of the host */
        uint32_t n, n_heads_max;
        /* of the device */
        uint8_t *boxes;   /* [n_pages][box_bytes] */
        float *bias_most; /* [n_pages], or NULL */
        attn_choice *tasks;
        float *bounds;
        uint32_t *chosen; /* [n_seqs_max][n_kv_heads_max][1 + blocks of a sequence] */
        uint8_t *found_there;
    } choice;
    struct { /* device_ranks.h; nothing alone */
        dev_comm comm;
        float *parts;  /* [n][part_bytes], of the device: see kv_ranks.parts */
        float *masses; /* [n_seqs_max][2][n_heads_max], of the host; NULL without boxes */
    } ranks;
    uint64_t bytes_read, blocks_read, pages_open, pages_read; /* as in kv_reader_worker */
    uint32_t n_heads_max;
    arena memory; /* of the host */
} kv_view;

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
