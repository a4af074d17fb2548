/* kvcache/step_state.h - what a cache has of the step that is open. */
#ifndef KVCACHE_STEP_STATE_H
#define KVCACHE_STEP_STATE_H

#include "kvcache/head_strip.h"
#include "kvcache/kv_cache.h"

/* Entries of the step's tokens, until its end. */
typedef struct kv_staging {
    kv_strips strips; /* n_step_tokens_max slots each: token t of the batch at slot t */
    uint8_t *bytes;
    uint16_t *expert; /* [n_layers][n_step_tokens_max] */
    size_t total_bytes;
} kv_staging;

typedef struct kv_step {
    bool is_open;
    kv_row *rows; /* [n_seqs_max]; n_rows valid */
    uint32_t n_rows;
    uint32_t n_tokens;
    uint32_t n_appended; /* layers whose keys and values have come */
    bool *has_experts;   /* [n_layers]: kv_note_experts was called */
} kv_step;

#endif
