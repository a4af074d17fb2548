/* kvcache/compression/pikv_rule.h - which codec a page is worth, by its importance.
 *
 * The combination of the PiKV paper (arXiv 2508.06526): bits go where attention goes. Of n pages, by falling
 * importance and of equal ones the earlier first,
 *
 *     the first n - floor(n / 2)    hot       int8
 *     the last floor(n / 4)         coldest   int2
 *     those between                 cold      int4
 *
 * The paper chooses by a learned controller and fixed thresholds; a share of the pages gives a budget of
 * bytes instead, whatever the scores' scale. What importance is, and when pages are asked about, is the
 * caller's matter: this is the rule alone.
 *
 * Pages may have been asked about before, among fewer. What they lost then does not come back, so none gets
 * hotter than it is; and since both shares of cold pages grow with n, the counts hold again if they held
 * then: the least important of those that are hotter make up what is missing. */
#ifndef KVCACHE_COMPRESSION_PIKV_RULE_H
#define KVCACHE_COMPRESSION_PIKV_RULE_H

#include <stdint.h>

typedef enum kv_heat { KV_HEAT_HOT, KV_HEAT_COLD, KV_HEAT_COLDEST, KV_HEAT_COUNT } kv_heat;

/* Codecs' names, by heat. */
extern const char *const kv_heat_codecs[KV_HEAT_COUNT];

typedef struct kv_heat_args {
    float *
        importance; /* [n_pages], higher is hotter; what is not a number is hottest, and becomes INFINITY */
    uint32_t n_pages;
    uint32_t *order; /* scratch, [n_pages] */
} kv_heat_args;

/* Of n pages, those with this heat. */
static inline uint32_t kv_heat_share(kv_heat heat, uint32_t n)
{
    if (heat == KV_HEAT_HOT) return n - n / 2;
    return heat == KV_HEAT_COLD ? n / 2 - n / 4 : n / 4;
}

/* heat[n_pages], kv_heat each: what a page has at present, KV_HEAT_HOT at first, and then what it gets.
 * Allocates nothing; n log n. */
void kv_heat_assign(const kv_heat_args *args, uint8_t *heat);

#endif
