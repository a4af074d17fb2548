/* kvcache/scoring/whole_pages.h - entries that stay or go page by page; for scorers that say by_page.
 *
 * A page's candidates need not be neighbours: where entries are placed one by one it holds scattered ones. */
#ifndef KVCACHE_SCORING_WHOLE_PAGES_H
#define KVCACHE_SCORING_WHOLE_PAGES_H

#include <stdint.h>

/* Pages with candidates, for scorers that keep or evict whole ones: in the order of their first entries. */
typedef struct kv_page_sums {
    uint32_t *of_entry; /* [n_max]: which page an entry is in; NULL unless a scorer may need it */
    double *score;      /* [n_max]; valid below n: summed over the page's candidates */
    uint32_t *n_open;   /* [n_max]: candidates in it */
    uint32_t *n_kept;   /* [n_max]: of them */
    uint32_t n;
} kv_page_sums;

/* Candidates [first, first + n) of score[] get the mean of their page's candidates. */
void kv_pages_average(const kv_page_sums *pages, uint32_t first, uint32_t n, float *score);

/* Of kept[n_kept], rising indices behind `first`, forgets those of pages that are not kept whole; returns how
 * many are left. After kv_pages_average over the same candidates, once. */
uint32_t kv_pages_keep_whole(const kv_page_sums *pages, uint32_t first, uint32_t *kept,
                             uint32_t n_kept);

#endif
