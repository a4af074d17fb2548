/* kvcache/demote.c - see demote.h. */
#include "kvcache/demote.h"

#include "kvcache/encode.h"

#include <string.h>

/* Pages that may come back in one step: what it costs is waited for. */
enum { PROMOTED_MAX = 256, FREE_SHARE = 8 };

err_t kv_demote_check(const kv_cache *cache, const kv_methods *methods, err_info *info)
{
    if (!methods->policy.limits_pool || cache->has_tiers) return ERR_OK;
    return err_set(info, ERR_UNSUPPORTED,
                   "kv-scheduling: flexgen moves pages, and neither kv-host-bytes nor "
                   "kv-disk-bytes is set");
}

/* One holder, and that is whoever asks. */
static bool is_held_once(const kv_cache *cache, uint32_t page)
{
    const kv_pages *pages = kv_pool_pages(cache->pool);
    return pages->n_refs[KV_HELD_BY_SEQ][page] + pages->n_refs[KV_HELD_BY_OBJECT][page] == 1;
}

static bool is_in(const kv_cache *cache, uint32_t page, kv_tier tier)
{
    return page != KV_PAGE_NONE && kv_pool_tier(cache->pool, page) == tier;
}

/* The table sees the twin from now on. */
static void replace(kv_cache *cache, uint32_t *entry, uint32_t twin, kv_holder holder)
{
    const bool is_freed = kv_pool_drop(cache->pool, *entry, holder);
    assert(is_freed);
    *entry = twin;
}

static bool demote(kv_cache *cache, uint32_t *entry, kv_holder holder)
{
    const uint32_t twin = kv_tiers_demote(cache->tiers, *entry, holder);
    if (twin == KV_PAGE_NONE) return false;
    replace(cache, entry, twin, holder);
    return true;
}

/* ---- down ---------------------------------------------------------------------------------------- */

/* True once there is room. */
static bool demote_object(kv_cache *cache, kv_prefix_object *o)
{
    const kv_table *table = &o->table;
    for (uint32_t b = (o->n_tokens - 1) / cache->page_tokens + 1; b-- > 0;) {
        for (uint32_t list = 0; list < table->n_lists; list++) {
            uint32_t *entry = &table->page[kv_table_entry(table, list, b)];
            if (!is_in(cache, *entry, KV_TIER_POOL) || !is_held_once(cache, *entry)) continue;
            (void)demote(cache, entry, KV_HELD_BY_OBJECT);
        }
        if (kv_pool_has_room(cache->pool, cache->need)) return true;
    }
    return false;
}

static bool demote_objects(kv_cache *cache)
{
    const kv_prefix *prefix = &cache->prefix;
    for (uint32_t i = prefix->oldest; i != KV_OBJECT_NONE; i = prefix->objects[i].newer) {
        kv_prefix_object *o = &prefix->objects[i];
        if (o->seq == NULL && demote_object(cache, o)) return true;
    }
    return false;
}

/* Full, so that nothing is written to it any more, and as it will stay: not to be encoded. */
static bool is_finished(const kv_seq *seq, uint32_t page)
{
    const kv_cache *cache = seq->cache;
    return kv_pool_pages(cache->pool)->n_slots[page] == cache->page_tokens &&
           (seq->methods.codec->is_exact || kv_is_coded_page(cache, page));
}

/* Keeps the KV_VICTIMS_MAX oldest, in order; of equal ones the first that came. */
static void add_victim(kv_victim *victims, uint32_t *n, const kv_victim *new)
{
    uint32_t at = *n;
    if (at == KV_VICTIMS_MAX && victims[at - 1].age >= new->age) return;
    while (at > 0 && victims[at - 1].age < new->age)
        at--;
    if (*n < KV_VICTIMS_MAX) (*n)++;
    memmove(victims + at + 1, victims + at, (*n - at - 1) * sizeof *victims);
    victims[at] = *new;
}

static void list_victims(kv_cache *cache, kv_seq *seq, uint32_t *n)
{
    const kv_table *table = &seq->table;
    const uint32_t first = cache->sink_tokens > 0 ? 1 : 0; /* block 0 has the sinks */
    const uint32_t end = seq->methods.codec->is_exact ? seq->n_blocks : seq->n_coded;
    for (uint32_t list = 0; list < table->n_lists; list++) {
        for (uint32_t b = first; b < end; b++) {
            const uint32_t page = table->page[kv_table_entry(table, list, b)];
            if (!is_in(cache, page, KV_TIER_POOL) || !is_held_once(cache, page)) continue;
            if (!is_finished(seq, page)) continue;
            const uint32_t unused = kv_pool_now(cache->pool) - kv_pool_last_use(cache->pool, page);
            const kv_victim victim = {.age = ((uint64_t)unused << 32) | (UINT32_MAX - b),
                                      .seq = seq,
                                      .list = list,
                                      .block = b};
            add_victim(cache->victims, n, &victim);
        }
    }
}

/* False if the tiers are full, or the disk fails. */
static bool demote_victim(kv_cache *cache, const kv_victim *victim)
{
    const kv_table *table = &victim->seq->table;
    uint32_t *entry = &table->page[kv_table_entry(table, victim->list, victim->block)];
    if (!demote(cache, entry, KV_HELD_BY_SEQ)) return false;
    victim->seq->n_pages_demoted++;
    return true;
}

static bool demote_seqs(kv_cache *cache)
{
    for (;;) {
        uint32_t n = 0, n_moved = 0;
        for (uint32_t s = 0; s < cache->limits.n_seqs_max; s++) {
            kv_seq *seq = &cache->seqs[s];
            if (seq->is_open && !kv_methods_evict(&seq->methods)) list_victims(cache, seq, &n);
        }
        for (uint32_t i = 0; i < n; i++) {
            if (!demote_victim(cache, &cache->victims[i])) continue;
            n_moved++;
            if (kv_pool_has_room(cache->pool, cache->need)) return true;
        }
        if (n_moved == 0) return false;
    }
}

bool kv_may_demote(const kv_cache *cache)
{
    return cache->tiers != NULL &&
           !kv_pool_is_full_below(cache->pool, !kv_tiers_count(cache->tiers).is_off);
}

bool kv_demote_until_room(kv_cache *cache)
{
    if (kv_pool_has_room(cache->pool, cache->need)) return true;
    if (cache->tiers == NULL) return false;
    return demote_objects(cache) || demote_seqs(cache);
}

/* Pages that a sequence has in the pool beyond its budget, a share of all its pages. */
static uint64_t surplus_of(const kv_seq *seq)
{
    const kv_cache *cache = seq->cache;
    const kv_table *table = &seq->table;
    uint64_t n_all = 0, n_in_pool = 0;
    for (uint32_t list = 0; list < table->n_lists; list++) {
        for (uint32_t b = 0; b < seq->n_blocks; b++) {
            const uint32_t page = table->page[kv_table_entry(table, list, b)];
            n_all += page != KV_PAGE_NONE;
            n_in_pool += is_in(cache, page, KV_TIER_POOL);
        }
    }
    const uint64_t n_keep = kv_policy_n_keep(&seq->methods.policy, seq->length);
    const uint64_t n_most = seq->length > 0 ? n_all * n_keep / seq->length : 0;
    return n_in_pool > n_most ? n_in_pool - n_most : 0;
}

void kv_demote_surplus(kv_cache *cache, const kv_row *rows, uint32_t n_rows)
{
    if (cache->tiers == NULL) return;
    for (uint32_t r = 0; r < n_rows; r++) {
        kv_seq *seq = rows[r].seq;
        uint64_t surplus = seq->methods.policy.limits_pool ? surplus_of(seq) : 0;
        while (surplus > 0) {
            uint32_t n = 0;
            const uint64_t before = surplus;
            list_victims(cache, seq, &n);
            for (uint32_t i = 0; i < n && surplus > 0; i++)
                surplus -= demote_victim(cache, &cache->victims[i]);
            if (surplus == before) break;
        }
    }
}

/* ---- up ------------------------------------------------------------------------------------------ */

static bool has_room_for(kv_cache *cache, uint32_t page)
{
    const kv_pool_counts counts = kv_pool_count(cache->pool);
    const uint32_t page_class = kv_pool_class(cache->pool, page);
    const uint64_t n_pages = counts.pages_used + counts.pages_cached + counts.pages_free;
    if (counts.pages_free < n_pages / FREE_SHARE) return false;
    cache->need[page_class]++;
    const bool has_room = kv_pool_has_room(cache->pool, cache->need);
    cache->need[page_class]--;
    return has_room;
}

/* Of blocks [0, n_blocks), at most n_max pages; returns how many came. */
static uint32_t promote(kv_cache *cache, const kv_table *table, uint32_t n_blocks, kv_holder holder,
                        uint32_t n_max)
{
    uint32_t n = 0;
    for (uint32_t list = 0; list < table->n_lists; list++) {
        for (uint32_t b = 0; b < n_blocks && n < n_max; b++) {
            uint32_t *entry = &table->page[kv_table_entry(table, list, b)];
            if (*entry == KV_PAGE_NONE || is_in(cache, *entry, KV_TIER_POOL)) continue;
            if (!is_held_once(cache, *entry)) continue;
            if (!has_room_for(cache, *entry)) return n;
            const uint32_t twin = kv_tiers_promote(cache->tiers, *entry, holder);
            if (twin == KV_PAGE_NONE)
                continue; /* it cannot be read; whoever reads it will say so */
            replace(cache, entry, twin, holder);
            n++;
        }
    }
    return n;
}

/* Does anybody hold a page outside the pool? */
static bool is_any_away(const kv_cache *cache)
{
    return cache->tiers != NULL && kv_pool_count_tier(cache->pool, KV_TIER_HOST).n_pages +
                                           kv_pool_count_tier(cache->pool, KV_TIER_FILE).n_pages >
                                       0;
}

void kv_promote_rows(kv_cache *cache, const kv_row *rows, uint32_t n_rows)
{
    uint32_t n_left = PROMOTED_MAX;
    if (!is_any_away(cache)) return;
    for (uint32_t r = 0; r < n_rows; r++) {
        const kv_seq *seq = rows[r].seq;
        if (seq->methods.policy.limits_pool) continue;
        n_left -= promote(cache, &seq->table, seq->n_blocks, KV_HELD_BY_SEQ, n_left);
    }
}

void kv_promote_object(kv_cache *cache, uint32_t object, uint32_t n_blocks)
{
    const kv_prefix_object *o = &cache->prefix.objects[object];
    if (!is_any_away(cache) || o->seq != NULL) return;
    memset(cache->need, 0, cache->n_classes * sizeof *cache->need);
    if (n_blocks > o->table.capacity) n_blocks = o->table.capacity;
    (void)promote(cache, &o->table, n_blocks, KV_HELD_BY_OBJECT, UINT32_MAX);
}
