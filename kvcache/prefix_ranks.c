/* kvcache/prefix_ranks.c - see prefix_ranks.h. */
#include "kvcache/prefix_ranks.h"

#include "kvcache/ranks.h"

#include <string.h>

/* ---- which prefix -------------------------------------------------------------------------------- */

/* What a rank could take. */
typedef struct offer {
    uint64_t origin; /* 0: no more */
    uint32_t n_tokens, unused;
} offer;

typedef struct offers {
    offer at[KV_PREFIX_HITS_MAX];
} offers;

static const offer NO_OFFER;

static const offer *find_offer(const offers *from, uint64_t origin)
{
    for (uint32_t i = 0; i < KV_PREFIX_HITS_MAX; i++) {
        if (from->at[i].origin == origin) return &from->at[i];
    }
    return &NO_OFFER;
}

/* The most tokens that all ranks have of one origin; of equal ones the first that rank 0 names. *is_final: all
 * have just as many, and can serve them. */
static offer choose_offer(const offers *all, uint32_t n_ranks, bool *is_final)
{
    offer best = NO_OFFER;
    *is_final = true;
    for (uint32_t i = 0; i < KV_PREFIX_HITS_MAX && all[0].at[i].origin != 0; i++) {
        offer common = all[0].at[i];
        uint32_t most = common.n_tokens;
        for (uint32_t r = 1; r < n_ranks; r++) {
            const uint32_t n = find_offer(&all[r], common.origin)->n_tokens;
            common.n_tokens = (uint32_t)min_size(common.n_tokens, n);
            most = (uint32_t)max_size(most, n);
        }
        if (common.n_tokens <= best.n_tokens) continue;
        best = common;
        *is_final = most == common.n_tokens;
    }
    return best;
}

static uint32_t object_of(const kv_prefix_hits *hits, uint64_t origin)
{
    uint32_t i = 0;
    while (hits->at[i].origin != origin)
        i++;
    return hits->at[i].object;
}

/* Rounds of offers, each of no more tokens than the last came to: a layer's window may have freed what
 * fewer tokens need, and every rank must say so. */
uint32_t kv_prefix_find_common(kv_seq *seq, const uint32_t *tokens, uint32_t n_tokens,
                               uint32_t *n_taken)
{
    const kv_cache *cache = seq->cache;
    offers own, all[KV_SHARDS_MAX];
    offer common = {.n_tokens = n_tokens > 0 ? n_tokens - 1 : 0};
    bool is_final = false;
    const bool has_room = kv_seq_grow(seq, common.n_tokens) == ERR_OK;
    kv_prefix_hits hits = {.n = 0};
    *n_taken = 0;
    while (!is_final) {
        const kv_prefix_wanted wanted = {tokens, n_tokens, common.n_tokens};
        if (has_room) kv_prefix_list(cache, seq->seed, &wanted, &hits);
        memset(&own, 0, sizeof own);
        for (uint32_t i = 0; i < hits.n; i++)
            own.at[i] = (offer){.origin = hits.at[i].origin, .n_tokens = hits.at[i].n_tokens};
        if (!kv_ranks_gather(cache, &own, all, sizeof own)) return KV_OBJECT_NONE;
        common = choose_offer(all, cache->ranks.n, &is_final);
    }
    if (common.n_tokens == 0) return KV_OBJECT_NONE;
    *n_taken = common.n_tokens;
    return object_of(&hits, common.origin);
}

bool kv_prefix_agree_new(const kv_cache *cache, bool may_leave, uint32_t covering)
{
    enum { MAY_NOT, IS_NEW, COVERED }; /* COVERED + origin */
    uint64_t all[KV_SHARDS_MAX], own = may_leave ? IS_NEW : MAY_NOT;
    bool may_all = true, is_same = true;
    if (covering != KV_OBJECT_NONE) own = COVERED + cache->prefix.objects[covering].origin;
    if (!kv_ranks_gather(cache, &own, all, sizeof own)) return false;
    for (uint32_t r = 0; r < cache->ranks.n; r++) {
        may_all = may_all && all[r] != MAY_NOT;
        is_same = is_same && all[r] == all[0];
    }
    return may_all && !(is_same && own >= COVERED);
}

/* ---- what a ring needs --------------------------------------------------------------------------- */

/* Entries of one layer at positions [first, first + n), as they are sent: a tag of each, and for every head
 * n keys, then n values. */
typedef struct ring_message {
    const kv_ring_filling *filling;
    uint32_t layer, first, n;
    bool is_sinks;
    size_t bytes;
} ring_message;

/* The tag of an entry that the rank does not have; others say which shard's it is. */
static const uint16_t NOT_HERE = KV_EXPERT_NONE;

static size_t tag_bytes(uint32_t n)
{
    return round_up(n * sizeof(uint16_t), sizeof(float));
}

static size_t entry_bytes(const kv_cache *cache, uint32_t layer)
{
    const kv_head_shape *head = &cache->heads[layer];
    const size_t n_channels = (size_t)head->k_dim + (head->v_in_k ? 0 : head->v_dim);
    return cache->n_kv_heads[layer] * n_channels * dtype_bytes(head->type);
}

size_t kv_ranks_ring_bytes(const kv_cache *cache)
{
    const size_t n = cache->page_tokens;
    size_t most = 0;
    for (uint32_t l = 0; l < cache->n_layers; l++)
        most = max_size(most, tag_bytes((uint32_t)n) + n * entry_bytes(cache, l));
    return most;
}

static uint8_t *part_of(const ring_message *m, uint32_t rank)
{
    return (uint8_t *)m->filling->seq->cache->ranks.parts + rank * m->bytes;
}

/* Entry i of a head, in the part of a rank. */
static attn_span entry_in(const ring_message *m, uint32_t rank, uint32_t head, uint32_t i)
{
    const kv_strip *strip = &m->filling->seq->cache->rings.strips.strip[m->layer];
    const uint8_t *rows =
        part_of(m, rank) + tag_bytes(m->n) +
        (size_t)head * m->n * ((size_t)strip->k_stride_bytes + strip->v_copy_bytes);
    const uint8_t *values = rows + (size_t)m->n * strip->k_stride_bytes;
    const uint8_t *k = rows + (size_t)i * strip->k_stride_bytes;
    return (attn_span){.k = k,
                       .v = strip->v_copy_bytes > 0 ? values + (size_t)i * strip->v_copy_bytes : k,
                       .k_stride_bytes = strip->k_stride_bytes,
                       .v_stride_bytes = strip->v_stride_bytes,
                       .n_slots = 1,
                       .live = 1};
}

static attn_span entry_of_ring(const ring_message *m, uint32_t head, uint32_t position)
{
    const kv_seq *seq = m->filling->seq;
    const kv_rings *rings = &seq->cache->rings;
    const kv_ring_place at = {m->layer, head, position};
    if (!m->is_sinks) return kv_ring_span(rings, seq->ring, &at, 1);
    const attn_span sinks = kv_ring_sink_span(rings, seq->ring, m->layer, head, position + 1);
    return kv_span_cut(&sinks, position, 1);
}

/* The shard in whose list this rank has the position of a layer that is placed entry by entry. */
static uint16_t find_shard(const kv_cache *cache, const kv_table *table, uint32_t layer,
                           uint32_t position)
{
    for (uint32_t s = cache->ranks.rank; s < cache->n_shards; s += cache->ranks.n) {
        const uint32_t page = kv_table_page(table, kv_list(cache, layer, 0, s), 0);
        if (page == KV_PAGE_NONE) continue;
        const uint32_t *positions =
            kv_pool_pages(cache->pool)->positions + (size_t)page * cache->page_tokens;
        const uint32_t slot = kv_pool_slots_below(cache->pool, page, position);
        if (slot < kv_pool_pages(cache->pool)->n_slots[page] && positions[slot] == position)
            return (uint16_t)(KV_EXPERT_OF_SHARD + s);
    }
    return NOT_HERE;
}

static uint16_t tag_of(const ring_message *m, uint32_t position)
{
    const kv_ring_filling *f = m->filling;
    const kv_cache *cache = f->seq->cache;
    const uint32_t block = position / cache->page_tokens;
    if (!cache->scatters[m->layer]) {
        const uint32_t list = kv_home_list(cache, m->layer, 0, block);
        return kv_table_page(f->table, list, block) == KV_PAGE_NONE ? NOT_HERE : KV_EXPERT_OF_SHARD;
    }
    return m->is_sinks ? find_shard(cache, f->table, m->layer, position)
                       : *kv_ring_expert(&cache->rings, f->seq->ring, m->layer, position);
}

/* Own entries to the own part; what is not here is zeros. */
static void pack(const ring_message *m)
{
    const kv_cache *cache = m->filling->seq->cache;
    const kv_strip *strip = &cache->rings.strips.strip[m->layer];
    uint8_t *own = part_of(m, cache->ranks.rank);
    memset(own, 0, m->bytes);
    for (uint32_t i = 0; i < m->n; i++) {
        const uint16_t tag = tag_of(m, m->first + i);
        memcpy(own + i * sizeof tag, &tag, sizeof tag);
        for (uint32_t h = 0; h < cache->n_kv_heads[m->layer] && tag != NOT_HERE; h++) {
            const attn_span from = entry_of_ring(m, h, m->first + i);
            const attn_span to = entry_in(m, cache->ranks.rank, h, i);
            memcpy((uint8_t *)(uintptr_t)to.k, from.k, strip->k_stride_bytes);
            if (strip->v_copy_bytes > 0)
                memcpy((uint8_t *)(uintptr_t)to.v, from.v, strip->v_copy_bytes);
        }
    }
}

/* The rank that has entry i, and its tag there; NOT_HERE: none has it, since a window has passed it. */
static uint32_t find_holder(const ring_message *m, uint32_t i, uint16_t *tag)
{
    uint32_t r = 0;
    *tag = NOT_HERE;
    for (; r < m->filling->seq->cache->ranks.n; r++) {
        memcpy(tag, part_of(m, r) + i * sizeof *tag, sizeof *tag);
        if (*tag != NOT_HERE) break;
    }
    return r;
}

static void unpack(const ring_message *m)
{
    kv_seq *seq = m->filling->seq;
    const kv_cache *cache = seq->cache;
    uint16_t tag;
    for (uint32_t i = 0; i < m->n; i++) {
        const uint32_t rank = find_holder(m, i, &tag);
        if (tag == NOT_HERE || rank == cache->ranks.rank) continue;
        for (uint32_t h = 0; h < cache->n_kv_heads[m->layer]; h++) {
            const kv_ring_place at = {m->layer, h, m->first + i};
            const attn_span from = entry_in(m, rank, h, i);
            (m->is_sinks ? kv_ring_write_sinks : kv_ring_write)(&cache->rings, seq->ring, &at,
                                                                &from);
        }
        if (cache->scatters[m->layer] && !m->is_sinks)
            *kv_ring_expert(&cache->rings, seq->ring, m->layer, m->first + i) = tag;
    }
}

/* Entries [first, end) of one layer, as many at a time as a part holds. */
static bool fill_layer(const kv_ring_filling *filling, uint32_t layer, uint32_t first, uint32_t end,
                       bool is_sinks)
{
    const kv_cache *cache = filling->seq->cache;
    const size_t n_max =
        (cache->ranks.part_bytes - sizeof(float)) / (entry_bytes(cache, layer) + sizeof(uint16_t));
    for (size_t p = first; p < end; p += n_max) {
        ring_message m = {.filling = filling,
                          .layer = layer,
                          .first = (uint32_t)p,
                          .n = (uint32_t)min_size(n_max, end - p),
                          .is_sinks = is_sinks};
        m.bytes = tag_bytes(m.n) + m.n * entry_bytes(cache, layer);
        pack(&m);
        if (comm_all_gather(cache->ranks.comm, part_of(&m, cache->ranks.rank), cache->ranks.parts,
                            m.bytes, NULL) != ERR_OK)
            return false;
        unpack(&m);
    }
    return true;
}

bool kv_ranks_fill_ring(const kv_ring_filling *filling)
{
    const kv_cache *cache = filling->seq->cache;
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        if (!fill_layer(filling, l, 0, filling->n_sinks, true)) return false;
        if (!fill_layer(filling, l, filling->first, filling->end, false)) return false;
    }
    return true;
}
