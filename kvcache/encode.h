/* kvcache/encode.h - which blocks of a sequence are encoded, and when.
 *
 * Under a lossy codec a result must not depend on how a prompt was cut into chunks, nor on who else is
 * in the batch. So what is encoded follows from the number of tokens held alone:
 *
 *   in the prompt      raw since the last multiple of SECTION (2048) positions, encoded before
 *   behind the prompt  encoded as soon as the block leaves the ring
 *
 * and no step may cross a length at which this changes: kv_seq_step_tokens_max. Behind the prompt that is
 * every page_tokens positions, so that tokens which are computed again in chunks (a preempted request)
 * find what they found one by one. The ring is never encoded, nor are the sinks: block 0, whose page is
 * where a cached prefix keeps them, stays raw if there are any.
 *
 * Where entries are placed one by one (scatter.h), a page is encoded once it is full and all its positions
 * lie in blocks that are encoded elsewhere.
 *
 * A page says by its size class which of the two it is, and tables mix them freely. A raw page is
 * encoded into a new one; the old one is dropped, and lives on if somebody else shares it. Room for
 * the new ones is found when the step begins, beside the raw ones: the pool must hold both of a section.
 *
 * A codec with bases of the sequence's own, or one that mixes others, encodes what is in raw pages: a step's
 * new ones, too, are written raw first; and a mixed one's encoded pages are encoded again when others have
 * become more important (heat.h). Of a sequence that evicts entries new pages are raw until the next
 * step begins: first it is chosen what stays, at the same lengths and for the same reason, and what is
 * left is encoded then (evict.h), in block 0, too: it is no longer the place of the sinks. */
#ifndef KVCACHE_ENCODE_H
#define KVCACHE_ENCODE_H

#include "kvcache/blocks.h"

enum { KV_SECTION_TOKENS = 2048, KV_SEALING_MAX = 256 };

/* One page on its way. */
typedef struct kv_sealing {
    uint32_t layer, head;
    uint32_t from, to;
    kv_seq *seq;
} kv_sealing;

/* A page and whose entries it has. */
typedef struct kv_page_place {
    uint32_t layer, head;
    uint32_t page;
} kv_page_place;

/* The size class of a layer's encoded pages, of the hottest if the codec is mixed; of all its pages under
 * `none`. */
static inline uint32_t kv_coded_class(const kv_cache *cache, const kv_methods *methods,
                                      uint32_t layer)
{
    return cache->first_class[methods->codec_index] + cache->layer_class[layer];
}

static inline const kv_page_layout *kv_coded_layout(const kv_cache *cache,
                                                    const kv_methods *methods, uint32_t layer)
{
    return &cache->layout[kv_coded_class(cache, methods, layer)];
}

static inline const kv_page_layout *kv_layout_of(const kv_cache *cache, uint32_t page)
{
    return &cache->layout[kv_pool_class(cache->pool, page)];
}

static inline bool kv_is_coded_page(const kv_cache *cache, uint32_t page)
{
    return kv_pool_class(cache->pool, page) >= cache->n_raw_classes;
}

static inline const kv_codec *kv_codec_of(const kv_cache *cache, uint32_t page)
{
    return cache->class_codec[kv_pool_class(cache->pool, page)];
}

/* [v_dim] of the channels of a head's values, or NULL: not known. */
static inline const float *kv_value_weight(const kv_cache *cache, uint32_t layer, uint32_t head)
{
    if (cache->v_weight == NULL || cache->layer[layer].out_proj == NULL) return NULL;
    return cache->v_weight + (size_t)kv_list(cache, layer, head, 0) * cache->v_dim_max;
}

/* Slots of the page, from the first, that hold sinks: the sequence reads those from its ring. */
static inline uint32_t kv_page_sinks(const kv_cache *cache, uint32_t page)
{
    const uint32_t first = kv_pool_pages(cache->pool)->positions[(size_t)page * cache->page_tokens];
    return first < cache->sink_tokens ? kv_pool_slots_below(cache->pool, page, cache->sink_tokens)
                                      : 0;
}

/* Writes entries of a sequence into a page by its codec: spans[n_spans] in the cache type, in the page's
 * order. */
void kv_page_write(const kv_seq *seq, const kv_page_place *at, const attn_span *spans,
                   uint32_t n_spans, uint32_t worker);

/* Writes the box of a page, from what attention reads; nothing if no routing asks for boxes. The pool knows
 * the page's slots and positions. */
void kv_page_box_write(const kv_cache *cache, const kv_page_place *at, uint32_t worker);

/* Both. */
void kv_page_seal(const kv_seq *seq, const kv_page_place *at, const attn_span *spans,
                  uint32_t n_spans, uint32_t worker);

/* The first n_slots entries of a sealed page in the cache type; decoded to `scratch` (of
 * cache->decoded_bytes) if they must be. */
attn_span kv_page_load(const kv_cache *cache, const kv_page_place *at, uint32_t n_slots,
                       uint8_t *scratch);

/* The same from `data`, where the bytes of a page that is not in the pool have been read to. */
attn_span kv_page_decode(const kv_cache *cache, const kv_page_place *at, const uint8_t *data,
                         uint32_t n_slots, uint8_t *scratch);

/* What a sequence is to have in pages. */
typedef struct kv_goal {
    uint32_t length;        /* tokens that it holds then */
    uint32_t window_length; /* by which windows pass: length, or in a replay the prompt's */
    uint32_t n_blocks;      /* in pages */
    uint32_t n_coded; /* blocks below are encoded, but for the one with the sinks; 0 under `none` */
} kv_goal;

kv_goal kv_goal_at(const kv_seq *seq, uint32_t length);

/* Adds to `need` the pages of n_blocks blocks of one sequence in one layer, at the worst moment: under a
 * lossy codec everything encoded, and the raw pages of a section beside it, or of everything if the prompt
 * is read again (kv_replay_need has the rest). */
void kv_need_blocks(const kv_cache *cache, const kv_methods *methods, uint32_t layer,
                    uint64_t n_blocks, uint64_t *need);

/* Does the block get an encoded page? */
bool kv_goal_encodes(const kv_cache *cache, const kv_goal *goal, uint32_t block);

/* Adds to cache->need the pages into which raw ones will be encoded. */
void kv_encode_need(const kv_seq *seq, const kv_goal *goal);

/* Encodes the raw pages of blocks [n_coded, end), and others again if the codec is mixed; room was found
 * before. */
void kv_encode(kv_seq *seq, uint32_t end);

/* While that happens: blocks [first, end). Is the page at an entry of a list one of theirs, and raw? */
typedef struct kv_encoded {
    uint32_t first, end;
} kv_encoded;
bool kv_encodes(const kv_seq *seq, uint32_t layer, const kv_page_at *at, const kv_encoded *blocks);

/* A page was encoded. */
void kv_encode_count(kv_cache *cache, uint32_t layer, uint32_t page);

/* Blocks before the first raw one, of a table that was taken over, its open pages left out. */
uint32_t kv_encode_taken(const kv_seq *seq);

#endif
