/* kvcache/kv_lost.h - sequences that a failing disk has taken pages from.
 *
 * Over ranks one that cannot read it has lost it for all, which they know at the end of the step.
 *
 * Threads: the owner, between steps. */
#ifndef KVCACHE_KV_LOST_H
#define KVCACHE_KV_LOST_H

#include "kvcache/kv_cache.h"

/* A page of it could not be read back from the file tier: what its last step returned is worthless, and so
 * is all that it holds. To be asked after every step; close it and compute its tokens again, in another
 * sequence. Closing leaves nothing behind, and what cannot be read is not handed out again. */
bool kv_seq_is_lost(const kv_seq *seq);

#endif
