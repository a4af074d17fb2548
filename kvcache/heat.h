/* kvcache/heat.h - under a mixed codec: by which codec a page is encoded.
 *
 * A head's encoded pages are those of several codecs, as many of each as the rule says of their number
 * (compression/pikv_rule.h), wherever they lie: shards and tiers do not show. It is asked whenever pages of
 * the sequence are encoded (encode.h says when: at lengths alone), about all that are encoded then. Raw
 * pages get the codec of their rank, and encoded ones that have lost theirs are encoded again, coarser;
 * never finer. So behind the prompt, too, a new page makes an older one cooler, and the counts hold at
 * every length. Where pages went for other reasons (a window passed them, scheduling has evicted all of
 * their entries) or came from a longer sequence (a prefix), those that stay keep what they have, and counts
 * are the rule's again once there are enough new ones.
 *
 * What a page is worth is found once, from its entries before they are encoded (compression/pikv.h), and
 * kept beside it with what else the pool knows of a page, so nothing is read again to compare old pages
 * with new ones. Of a page that others see, too, a sequence makes its own. */
#ifndef KVCACHE_HEAT_H
#define KVCACHE_HEAT_H

#include "kvcache/encode.h"

/* Run over a measuring and then a real arena, once classes are known. */
void kv_heats_place(arena *a, const kv_cache *cache, kv_heats *out);

/* The size class of a layer's pages of this heat. */
static inline uint32_t kv_heat_class(const kv_cache *cache, uint32_t layer, kv_heat heat)
{
    return cache->heats.first_class[heat] + cache->layer_class[layer];
}

/* Does a sequence with these methods have encoded pages of this class in the layer? */
bool kv_is_coded_class(const kv_cache *cache, const kv_methods *methods, uint32_t layer,
                       uint32_t page_class);

/* The layout of its encoded pages that attention reads with this coding. */
const kv_page_layout *kv_layout_of_coding(const kv_cache *cache, const kv_methods *methods,
                                          uint32_t layer, attn_coding coding);

/* Bytes of the layer's encoded pages, n times the mean; of codecs that do not mix, n pages. */
uint64_t kv_coded_bytes(const kv_cache *cache, const kv_methods *methods, uint32_t layer,
                        uint32_t n);

/* Adds to `need` the encoded pages of n_blocks blocks of a sequence in one layer at the worst moment, when
 * coarser pages lie beside those that they are made from. */
void kv_heat_need_blocks(const kv_cache *cache, const kv_methods *methods, uint32_t layer,
                         uint64_t n_blocks, uint64_t *need);

/* Adds to cache->need the pages that encoding a head may ask for, of which n_raw are raw now or will be
 * written raw first. */
void kv_heat_need(const kv_seq *seq, uint32_t layer, uint32_t head, uint32_t n_raw);

/* Finds what the raw pages of blocks [first, end) are worth, in all heads. */
void kv_heat_measure(kv_seq *seq, const kv_encoded *blocks);

/* What the head's pages are to have, its raw ones of these blocks encoded: in cache->heats until it is
 * asked again. Owner thread. */
void kv_heat_choose(const kv_seq *seq, uint32_t layer, uint32_t head, const kv_encoded *blocks);

#endif
