/* kvcache/device_view_state.h - what a view (device_view.h) is made of. */
#ifndef KVCACHE_DEVICE_VIEW_STATE_H
#define KVCACHE_DEVICE_VIEW_STATE_H

#include "kernels/choose_pages.h"
#include "kernels/dev_comm.h"
#include "kvcache/device_commit.h"
#include "kvcache/device_measure.h"

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
    kv_view_pool pool;
    size_t device_bytes; /* of all, lists included */
    void *block;         /* of the device; what follows lies in it */
    struct {
        uint8_t *pool, *rings, *staging;
        float *biases;  /* [n_pages][page_tokens], or NULL */
        uint8_t *bases; /* device_low.h */
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
        uint32_t n;
        /* of the device */
        uint8_t *boxes;   /* [n_pages][box_bytes] */
        float *bias_most; /* [n_pages], or NULL */
        attn_choice *tasks;
        float *bounds;
        uint64_t *order; /* NULL: nobody chooses by mass; rest likewise */
        double *rest;
        uint32_t *chosen; /* [n_seqs_max][n_kv_heads_max][1 + blocks of a sequence] */
        uint8_t *found_there;
    } choice;
    kv_view_work work;
    struct { /* device_ranks.h; nothing alone */
        dev_comm comm;
        float *parts;  /* of all ranks, of the device: see kv_ranks.parts */
        float *masses; /* [n_seqs_max][2][n_heads_max], of the host; NULL without boxes */
    } ranks;
    uint64_t bytes_read, blocks_read, pages_open, pages_read; /* as in kv_reader_worker */
    uint32_t n_heads_max;
    arena memory; /* of the host */
} kv_view;

#endif
