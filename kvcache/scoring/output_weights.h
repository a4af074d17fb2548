/* kvcache/scoring/output_weights.h - what values become in the residual stream: their lengths behind the output
 * projection, chunk by chunk; for scorers that ask for KV_SCORE_OUT_PROJ.
 *
 * W_O are the columns of the projection that belong to one query head. |W_O v|_2 = sqrt(v' M v) with
 * M = W_O' W_O, which costs v_dim instead of d_model products a channel and entry, once M is there. */
#ifndef KVCACHE_SCORING_OUTPUT_WEIGHTS_H
#define KVCACHE_SCORING_OUTPUT_WEIGHTS_H

#include "kvcache/scoring/scorer.h"

typedef struct kv_output {
    const kv_score_args *args;
    float *rows,
        *columns;   /* [KV_SCORE_CHUNK][v_dim] and turned over: the chunk that was read last */
    float *weights; /* [v_dim]: a row of W_O */
    float *gram;    /* [v_dim][v_dim]: M; there if it was asked for */
} kv_output;

size_t kv_output_floats(const kv_score_shape *shape, bool by_gram);

/* Over `work`, whose floats are those above. */
void kv_output_init(kv_output *o, const kv_score_args *args, float *work);

/* Reads the values from `first` on into the chunk; returns how many. */
uint32_t kv_output_read(kv_output *o, uint32_t first);

/* sums[i] += |W_O v|_1 of head g of the group, of the chunk's `count` entries. */
void kv_output_add_sums(kv_output *o, uint32_t g, uint32_t count, float sums[KV_SCORE_CHUNK]);

/* gram = M of head g; then lengths[i] = |W_O v|_2 of the chunk's entries. */
void kv_output_find_gram(kv_output *o, uint32_t g);
void kv_output_lengths(const kv_output *o, uint32_t count, float lengths[KV_SCORE_CHUNK]);

#endif
