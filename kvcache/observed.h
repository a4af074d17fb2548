/* kvcache/observed.h - reading what observe.h keeps; for scorers and codecs. */
#ifndef KVCACHE_OBSERVED_H
#define KVCACHE_OBSERVED_H

#include "kvcache/cache_state.h"

uint32_t kv_observed_n_queries(const kv_seq *seq);

/* The last n of them, of a head's group. */
typedef struct kv_observed_window {
    uint32_t layer, head;
    uint32_t n;
} kv_observed_window;

/* Writes the queries, out[n][group][k_dim], their positions[n] and the norms[n] of inputs there. */
typedef struct kv_observed_rows {
    float *q, *input_norm;
    uint32_t *positions;
} kv_observed_rows;
void kv_observed_queries(const kv_seq *seq, const kv_observed_window *window,
                         const kv_observed_rows *out);

/* Those from `position` < length on, as many as lie together: queries of all heads, `stride` floats apart. */
typedef struct kv_observed_run {
    const float *q;
    size_t stride;
    uint32_t n;
} kv_observed_run;
kv_observed_run kv_observed_query_run(const kv_seq *seq, uint32_t layer, uint32_t position);

/* Writes out[k_dim]: the squares of a head, summed over as many queries as there are; false if there are
 * none. */
bool kv_observed_q_norm(const kv_seq *seq, uint32_t layer, uint32_t head, float *out);

/* Writes mean [group][k_dim] and covariance [group][k_dim][k_dim]; zeros of none. */
void kv_observed_stats(const kv_seq *seq, uint32_t layer, uint32_t head, float *mean, float *cov);

/* By position. */
const float *kv_observed_mass(const kv_seq *seq, uint32_t layer, uint32_t head);
float *kv_observed_local(const kv_seq *seq, uint32_t layer, uint32_t head);

kv_uses kv_observed_uses(const kv_seq *seq, uint32_t list, uint32_t entry);
void kv_observed_set_uses(const kv_seq *seq, uint32_t list, uint32_t entry, kv_uses uses);

/* Of a page that is made from others. */
void kv_uses_join(kv_uses *to, kv_uses from);

#endif
