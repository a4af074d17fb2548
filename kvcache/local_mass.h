/* kvcache/local_mass.h - what entries get from the queries around them, earlier ones and later ones alike; for
 * scorers (KV_SCORE_LOCAL).
 *
 * Positions are cut into aligned parts of KV_LOCAL_TOKENS. Every query of a part looks at all entries of its part,
 * those behind it too, with scores that are not scaled:
 *     local[t] = mean over the group of  sum over the part's queries i of  softmax_t(q_i . k_t)
 * (Chari and Van Durme, Compactor, arXiv 2507.08143, whose parts are of 256, too.)
 *
 * A part is summed when its last token has come, inside that step, while its queries are at hand: those of the
 * step, and before them what observe.h keeps. The newest part, of which there is only a beginning, is summed
 * whenever it is asked for. Entries that have gone, or that the layer's window will not show to the next query,
 * take no part. Over ranks every rank sums what it has, with sinks and ring, and the softmax is over what all
 * have: both calls are collective. Sums of a part are written whole, so an aborted step leaves none that a later one does not
 * write again, and neither cuts nor neighbours change a bit: queries are added in their order. */
#ifndef KVCACHE_LOCAL_MASS_H
#define KVCACHE_LOCAL_MASS_H

#include "kvcache/kv_cache.h"

enum { KV_LOCAL_TOKENS = 256 };

/* Sums the parts that this step completes. Behind attention, which must have appended the keys. */
void kv_local_note(kv_cache *cache, const kv_attend_args *args);

/* Between steps: sums what there is of the newest part, in all heads of a layer. */
void kv_local_finish(kv_seq *seq, uint32_t layer);

#endif
