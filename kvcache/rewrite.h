/* kvcache/rewrite.h - rewritings (rewriting/rewriting.h) at work on the pages of a sequence.
 *
 * When a head's entries have been chosen, those that stay are rewritten while the others are still
 * there, before anything is packed or encoded; evict.h says when that is. Raw pages and the sinks in the ring
 * can be written. Entries of encoded pages are fixed: they were rewritten before they were encoded, and doing
 * it again would cost accuracy once more. So under a lossy codec a rewriting sees to the entries since the last
 * multiple of 2048 positions of a prompt, and to a block at a time behind it; under `none` to all.
 *
 * Boxes of pages follow their keys. Nothing depends on more than the entries, so the bits are the same
 * however the sequence was cut.
 *
 * Over ranks each rewrites what it has: values are blended into those of the same rank, and keys turn past what
 * goes on any.
 *
 * Only with methods that evict, and not with a scorer that is fitted: what it has fitted would be spoilt. */
#ifndef KVCACHE_REWRITE_H
#define KVCACHE_REWRITE_H

#include "kvcache/cache_state.h"

/* May a sequence have these? ERR_UNSUPPORTED names a layer that cannot be rewritten, or what the cache has
 * no memory for. */
err_t kv_rewrite_check(const kv_cache *cache, const kv_methods *methods, err_info *info) MUST_CHECK;

/* Run over a measuring and then a real arena: the scratch of one worker. */
void kv_rewrite_place(arena *a, const kv_cache *cache, kv_rewrite_worker *out);

/* And over ranks what they tell each other. */
void kv_rewrite_place_joint(arena *a, const kv_cache *cache, kv_evict *out);

/* Over ranks: does a rewriting need to know what goes on the others, so that all must rewrite at once? */
bool kv_rewrite_is_joint(const kv_seq *seq);

/* Then, collective: tells the ranks what goes of a layer, of whose heads kept[n_kept] is known. */
void kv_rewrite_meet(const kv_seq *seq, uint32_t layer);

/* What one head keeps of its candidates. */
typedef struct kv_rewrite_head_args {
    kv_seq *seq;
    uint32_t layer, head;
    const kv_head_view *view; /* kept[n_kept] are candidates, rising */
    uint32_t n_kept;
    uint32_t worker;
} kv_rewrite_head_args;

/* Rewrites the entries that stay; pages are the sequence's own (own_pages.h). Returns how many keys and
 * values were written. Any worker, a head at a time. */
uint32_t kv_rewrite_head(const kv_rewrite_head_args *args);

#endif
