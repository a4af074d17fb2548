/* kvcache/scoring/whole_pages.c - see whole_pages.h. */
#include "kvcache/scoring/whole_pages.h"

#include <stdbool.h>

void kv_pages_average(const uint32_t *page, uint32_t n, float *score)
{
    for (uint32_t i = 0, next; i < n; i = next) {
        double sum = 0;
        for (next = i; next < n && page[next] == page[i]; next++)
            sum += (double)score[next];
        const float mean = (float)(sum / (next - i));
        for (uint32_t j = i; j < next; j++)
            score[j] = mean;
    }
}

uint32_t kv_pages_keep_whole(const uint32_t *page, uint32_t n, uint32_t *kept, uint32_t n_kept)
{
    uint32_t n_whole = 0;
    for (uint32_t i = 0, next; i < n_kept; i = next) {
        const uint32_t own = page[kept[i]];
        for (next = i; next < n_kept && page[kept[next]] == own; next++)
            ;
        const bool is_cut = (kept[i] > 0 && page[kept[i] - 1] == own) ||
                            (kept[next - 1] + 1 < n && page[kept[next - 1] + 1] == own);
        for (uint32_t j = i; j < next && !is_cut; j++)
            kept[n_whole++] = kept[j];
    }
    return n_whole;
}
