/* kvcache/scoring/whole_pages.c - see whole_pages.h. */
#include "kvcache/scoring/whole_pages.h"

void kv_pages_average(const kv_page_sums *pages, uint32_t first, uint32_t n, float *score)
{
    for (uint32_t p = 0; p < pages->n; p++) {
        pages->score[p] = 0;
        pages->n_open[p] = pages->n_kept[p] = 0;
    }
    for (uint32_t i = first; i < first + n; i++) {
        pages->score[pages->of_entry[i]] += (double)score[i];
        pages->n_open[pages->of_entry[i]]++;
    }
    for (uint32_t i = first; i < first + n; i++) {
        const uint32_t p = pages->of_entry[i];
        score[i] = (float)(pages->score[p] / pages->n_open[p]);
    }
}

uint32_t kv_pages_keep_whole(const kv_page_sums *pages, uint32_t first, uint32_t *kept,
                             uint32_t n_kept)
{
    uint32_t n_whole = 0;
    for (uint32_t i = 0; i < n_kept; i++)
        pages->n_kept[pages->of_entry[first + kept[i]]]++;
    for (uint32_t i = 0; i < n_kept; i++) {
        const uint32_t p = pages->of_entry[first + kept[i]];
        if (pages->n_kept[p] == pages->n_open[p]) kept[n_whole++] = kept[i];
    }
    return n_whole;
}
