/* kvcache/scoring/whole_pages.h - entries that stay or go page by page; for scorers that say by_page.
 *
 * page[n] says where each of the n candidates of a head lies, in position order: those of a page are
 * neighbours. */
#ifndef KVCACHE_SCORING_WHOLE_PAGES_H
#define KVCACHE_SCORING_WHOLE_PAGES_H

#include <stdint.h>

/* score[n]: all entries of a page get their mean. */
void kv_pages_average(const uint32_t *page, uint32_t n, float *score);

/* Of kept[n_kept], rising indices below n, forgets those of pages that are not kept whole; returns how many
 * are left. */
uint32_t kv_pages_keep_whole(const uint32_t *page, uint32_t n, uint32_t *kept, uint32_t n_kept);

#endif
