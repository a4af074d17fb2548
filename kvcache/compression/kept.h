/* kvcache/compression/kept.h - what the codecs that leave channels out share: which to keep, and pages.
 *
 * A page keeps the n channels of the highest score and a bitmap of them (ATTN_KEPT); what it leaves out
 * is 0 for whoever reads it. For keys that is a change of the dot product and no mask: a key all of whose
 * channels are gone would still have the score 0. A page chooses for itself, at its one sealing. */
#ifndef KVCACHE_COMPRESSION_KEPT_H
#define KVCACHE_COMPRESSION_KEPT_H

#include "kvcache/compression/codec.h"

/* How many channels of each side stay; the rest of k_dim - trunc(k_dim * share). */
typedef struct kv_kept_shares {
    double k_dropped, v_dropped; /* in [0, 1) */
} kv_kept_shares;

err_t kv_kept_layout(const kv_kept_shares *shares, const kv_head_shape *shape, uint32_t page_tokens,
                     kv_page_layout *out) MUST_CHECK;

/* Energy of the channels of one side over the entries of a block: out[c] = sum_t x_tc^2. */
void kv_kept_energy(const kv_seal_args *args, bool is_keys, double *out);

/* Writes a page whose channels are those of the highest scores; of equal ones the lower channel stays. A
 * score that is not a number counts as the highest. */
void kv_kept_seal(const kv_seal_args *args, const double *k_score, const double *v_score);

attn_span kv_kept_load(const kv_load_args *args);

#endif
