/* kvcache/tier/tiers.h - where pages go that the pool has no room for, and how they are read there.
 *
 * Host memory first, then a file. A page moves whole and unchanged: its bytes are copied to a twin
 * (page_pool.h), whose id takes the place of the old one in the one table that holds it. On the way back it
 * is the same the other way round, so what attention reads has the same bits wherever a page lies.
 * (FlexGen, arXiv 2303.06865, places entries on tiers by fixed shares of the batch; here pages move one by
 * one, and only when the pool is short.)
 *
 * Host pages are read in place: to a processor they are memory as the pool is. (A device will copy
 * them.) Pages of the file are read into a landing buffer and confirmed by a checksum. A page that
 * cannot be read, or comes back different, is bad from then on: NULL instead of its bytes, for
 * everybody, until nobody holds it any more.
 *
 * When writing fails, the page stays where it is, and the pool makes room in another way. After some
 * failures of either kind the file gets no more pages; those that are there can still be read.
 *
 * Threads: any worker may read and hint; the owner does the rest, between steps. */
#ifndef KVCACHE_TIER_TIERS_H
#define KVCACHE_TIER_TIERS_H

#include "kvcache/page_tiers.h"
#include "kvcache/tier/tier_file.h"

typedef struct kv_tiers kv_tiers;

/* The pool's file tier is to have file_bytes of budget; NULL as `dir`: there is none. Borrows the pool.
 * Errors as kv_tier_file_open. */
err_t kv_tiers_open(kv_pool *pool, const char *dir, kv_tiers **out, err_info *info) MUST_CHECK;
void kv_tiers_close(kv_tiers *tiers); /* NULL is fine */

/* ---- moving ---- */

/* The twin of a page of the pool in a lower tier, or KV_PAGE_NONE: no room, or a failure. One reference of
 * `holder`; the caller puts its id in place of the old one and drops that. */
uint32_t kv_tiers_demote(kv_tiers *tiers, uint32_t page, kv_holder holder);

/* The twin of a page of a lower tier in the pool. KV_PAGE_NONE: no room, or it cannot be read. */
uint32_t kv_tiers_promote(kv_tiers *tiers, uint32_t page, kv_holder holder);

/* ---- reading ---- */

/* The bytes of a page of any tier: in place, or in `landing` (of the page's bytes). NULL if it is bad. */
const uint8_t *kv_tiers_read(kv_tiers *tiers, uint32_t page, uint8_t *landing);

/* The same for checks: counts nothing and marks nothing. */
const uint8_t *kv_tiers_peek(const kv_tiers *tiers, uint32_t page, uint8_t *landing);

bool kv_tiers_is_bad(const kv_tiers *tiers, uint32_t page);

/* Starts reading pages of the file that are wanted soon. Neighbours in the file are gathered in `range`,
 * zeroed at first, and asked for at once: a system call for each would cost more than it saves. */
typedef struct kv_tier_range {
    uint64_t offset, bytes;
} kv_tier_range;
void kv_tiers_hint(const kv_tiers *tiers, uint32_t page, kv_tier_range *range);
void kv_tiers_hint_end(const kv_tiers *tiers, const kv_tier_range *range);

/* ---- queries ---- */

typedef struct kv_tiers_counts { /* since start */
    uint64_t pages_demoted, pages_promoted;
    uint64_t read_bytes; /* from the file */
    uint64_t read_failures, write_failures;
    bool is_off; /* the file gets no more pages */
} kv_tiers_counts;
kv_tiers_counts kv_tiers_count(const kv_tiers *tiers);

/* What workers have found wrong goes to the log, at most a line in ten seconds, and if it is too much the
 * file gets no more pages. */
void kv_tiers_report(kv_tiers *tiers);

#endif
