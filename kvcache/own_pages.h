/* kvcache/own_pages.h - pages that are written again belong to one sequence.
 *
 * Raw pages that others share are replaced by copies before their entries are fitted (distill.h) or rewritten
 * (rewrite.h). Encoded pages are never written again, so they may stay shared. */
#ifndef KVCACHE_OWN_PAGES_H
#define KVCACHE_OWN_PAGES_H

#include "kvcache/cache_state.h"

/* Raw pages of the layer that others share, or that lie in the file, are replaced by copies of the
 * sequence's own. ERR_KV_FULL changes nothing. */
err_t kv_own_pages(kv_seq *seq, uint32_t layer) MUST_CHECK;

#endif
