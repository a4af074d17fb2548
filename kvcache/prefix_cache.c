/* kvcache/prefix_cache.c - see prefix_cache.h. */
#include "kvcache/prefix_cache.h"

#include "kvcache/away.h"
#include "kvcache/compression/low_rank.h"
#include "kvcache/scatter.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Objects with the same last whole block that a search looks at, newest first. */
enum { CANDIDATES_MAX = 32 };

/* ---- life cycle ---------------------------------------------------------------------------------- */

void kv_prefix_place(arena *a, kv_prefix *prefix)
{
    prefix->objects = arena_take(a, prefix->n_objects_max, sizeof *prefix->objects);
    prefix->index.keys = arena_take(a, prefix->n_objects_max, sizeof *prefix->index.keys);
}

/* The routing as far as it changes values: its name, the settings that it obeys, and what it is not
 * asked about. */
static void describe_routing(const kv_methods *methods, char text[KV_SETTINGS_BYTES / 2])
{
    const uint32_t obeys = methods->routing->obeys;
    const kv_route_settings *route = &methods->route;
    text[0] = '\0';
    if (methods->reads_all) return;
    const int n = snprintf(text, KV_SETTINGS_BYTES / 2, " routing=%s/%.17g/%.17g/%.17g",
                           methods->routing->name, (obeys & KV_ROUTE_K) != 0 ? route->k : 0,
                           (obeys & KV_ROUTE_EPS) != 0 ? route->eps : 0,
                           (obeys & KV_ROUTE_TAU) != 0 ? route->tau : 0);
    assert(n > 0 && n < KV_SETTINGS_BYTES / 2);
}

/* A number for the bases of all layers; 0 under a codec that has none. */
static uint64_t mark_bases(const kv_cache *cache, const kv_codec *codec)
{
    uint64_t mark = 0;
    for (uint32_t l = 0; l < cache->n_layers && codec->bases != NULL; l++)
        mark = mark * 31 + kv_low_rank_mark(&cache->layer[l], codec->bases(&cache->layer[l]));
    return mark;
}

void kv_prefix_settings(const kv_cache *cache, const kv_methods *methods,
                        char text[KV_SETTINGS_BYTES])
{
    char routing[KV_SETTINGS_BYTES / 2];
    describe_routing(methods, routing);
    int n = snprintf(text, KV_SETTINGS_BYTES, "type=%s page=%u%s", dtype_name(cache->type),
                     cache->page_tokens, routing);
    if (!methods->is_exact) /* lossy values depend on what is left alone */
        n += snprintf(text + n, KV_SETTINGS_BYTES - (size_t)n,
                      " %s %s/%.17g/%.17g %s bases=%" PRIx64 " window=%u sinks=%u rewrite=%s",
                      methods->policy.evicts ? methods->policy.name : "none",
                      methods->selection.evicts ? methods->selection.name : "none",
                      kv_methods_evict(methods) ? kv_methods_budget(methods) : 1,
                      methods->policy.lazy_threshold, methods->codec->name,
                      mark_bases(cache, methods->codec), cache->window_tokens, cache->sink_tokens,
                      methods->rewritings.name);
    assert(n > 0 && n < KV_SETTINGS_BYTES);
}

err_t kv_prefix_init(kv_cache *cache)
{
    kv_prefix *prefix = &cache->prefix;
    TRY(hash_init());
    hash_key_random(&prefix->hash);
    prefix->oldest = prefix->newest = prefix->free_objects = KV_OBJECT_NONE;
    for (uint32_t o = prefix->n_objects_max; o-- > 0;) {
        prefix->objects[o].older = prefix->free_objects;
        prefix->free_objects = o;
    }
    return ERR_OK;
}

hash128 kv_prefix_seed(const kv_cache *cache, const kv_methods *methods, const char *salt,
                       size_t salt_bytes)
{
    const hash_key *key = &cache->prefix.hash;
    char settings[KV_SETTINGS_BYTES];
    kv_prefix_settings(cache, methods, settings);
    const hash128 parts[2] = {hash_bytes(key, settings, strlen(settings)),
                              hash_bytes(key, salt, salt_bytes)};
    return hash_bytes(key, parts, sizeof parts);
}

/* The key after block `block` of tokens. It holds the block's number in its clear, so that keys of
 * different depths never meet: a list of the index goes through one depth only. */
static hash128 next_key(const kv_cache *cache, hash128 key, const uint32_t *tokens, uint32_t block)
{
    struct {
        hash128 before;
        uint32_t tokens[KV_PAGE_TOKENS_MAX];
    } data;
    const size_t bytes = cache->page_tokens * sizeof *tokens;
    data.before = key;
    memcpy(data.tokens, tokens + (size_t)block * cache->page_tokens, bytes);
    key = hash_bytes(&cache->prefix.hash, &data, sizeof data.before + bytes);
    key.hi = (key.hi & ~(uint64_t)UINT32_MAX) | block;
    return key;
}

/* ---- order of use -------------------------------------------------------------------------------- */

static void unlink_object(kv_prefix *prefix, uint32_t object)
{
    const kv_prefix_object *o = &prefix->objects[object];
    if (o->older != KV_OBJECT_NONE) prefix->objects[o->older].newer = o->newer;
    if (o->newer != KV_OBJECT_NONE) prefix->objects[o->newer].older = o->older;
    if (prefix->oldest == object) prefix->oldest = o->newer;
    if (prefix->newest == object) prefix->newest = o->older;
}

static void link_newest(kv_prefix *prefix, uint32_t object)
{
    kv_prefix_object *o = &prefix->objects[object];
    o->older = prefix->newest;
    o->newer = KV_OBJECT_NONE;
    if (prefix->newest != KV_OBJECT_NONE) prefix->objects[prefix->newest].newer = object;
    prefix->newest = object;
    if (prefix->oldest == KV_OBJECT_NONE) prefix->oldest = object;
}

void kv_prefix_touch(kv_prefix *prefix, uint32_t object)
{
    unlink_object(prefix, object);
    link_newest(prefix, object);
}

/* ---- objects ------------------------------------------------------------------------------------- */

uint64_t kv_prefix_drop(kv_cache *cache, uint32_t object)
{
    kv_prefix *prefix = &cache->prefix;
    kv_prefix_object *o = &prefix->objects[object];
    uint64_t n_freed = 0;
    kv_prefix_index_cut(&prefix->index, object, 0);
    prefix->bytes -= o->data_bytes;
    if (o->seq != NULL) {
        o->seq->object = KV_OBJECT_NONE;
    } else {
        n_freed = kv_table_drop(&o->table, cache->pool, 0, o->table.capacity, KV_HELD_BY_OBJECT);
        prefix->bytes -= kv_table_bytes(&o->table);
        kv_table_deinit(&o->table);
    }
    free(prefix->index.keys[object].key); /* the head of the object's one allocation */
    prefix->index.keys[object] = (kv_prefix_keys){0};
    unlink_object(prefix, object);
    *o = (kv_prefix_object){.older = prefix->free_objects};
    prefix->free_objects = object;
    prefix->n_objects--;
    return n_freed;
}

void kv_prefix_deinit(kv_cache *cache)
{
    kv_prefix *prefix = &cache->prefix;
    while (prefix->n_objects > 0)
        (void)kv_prefix_drop(cache, prefix->oldest);
    kv_prefix_index_deinit(&prefix->index);
}

/* Keys, list links and ids of an object, in one allocation. */
static err_t alloc_data(kv_prefix_object *o, kv_prefix_keys *keys, uint32_t n_tokens,
                        uint32_t n_keys)
{
    size_t key_bytes, token_bytes;
    TRY(size_mul(n_keys, sizeof *keys->key + sizeof *keys->next + sizeof *keys->prev, &key_bytes));
    TRY(size_mul(n_tokens, sizeof *o->tokens, &token_bytes));
    TRY(size_add(key_bytes, token_bytes, &o->data_bytes));
    hash128 *key = malloc(o->data_bytes);
    if (key == NULL) return ERR_NO_MEMORY;
    keys->n_keys = n_keys;
    keys->key = key;
    keys->next = (uint32_t *)(key + n_keys);
    keys->prev = keys->next + n_keys;
    o->tokens = keys->prev + n_keys;
    o->n_tokens = n_tokens;
    return ERR_OK;
}

/* Makes sure that a slot is free: at most one object per open sequence cannot be dropped. */
static void free_a_slot(kv_cache *cache)
{
    const kv_prefix *prefix = &cache->prefix;
    if (prefix->free_objects != KV_OBJECT_NONE) return;
    uint32_t o = prefix->oldest;
    while (prefix->objects[o].seq != NULL)
        o = prefix->objects[o].newer;
    cache->stats.pages_given_up += kv_prefix_drop(cache, o);
}

uint32_t kv_prefix_add(const kv_seq *seq, const uint32_t *tokens, uint32_t n_tokens)
{
    kv_cache *cache = seq->cache;
    hash128 key = seq->seed;
    kv_prefix *prefix = &cache->prefix;
    const uint32_t n_keys = n_tokens / cache->page_tokens;
    const size_t index_bytes = kv_prefix_index_bytes(&prefix->index);
    if (kv_prefix_index_reserve(&prefix->index, n_keys) != ERR_OK) return KV_OBJECT_NONE;
    prefix->bytes += kv_prefix_index_bytes(&prefix->index) - index_bytes;
    free_a_slot(cache);
    const uint32_t object = prefix->free_objects;
    kv_prefix_object *o = &prefix->objects[object];
    kv_prefix_keys *keys = &prefix->index.keys[object];
    if (alloc_data(o, keys, n_tokens, n_keys) != ERR_OK) return KV_OBJECT_NONE;
    prefix->free_objects = o->older;
    prefix->n_objects++;
    prefix->bytes += o->data_bytes;
    o->is_used = true;
    o->origin = seq->origin;
    o->seq = NULL;
    o->table = (kv_table){.n_lists = cache->n_lists};
    memcpy(o->tokens, tokens, n_tokens * sizeof *tokens);
    for (uint32_t b = 0; b < n_keys; b++)
        keys->key[b] = key = next_key(cache, key, tokens, b);
    kv_prefix_index_add(&prefix->index, object);
    link_newest(prefix, object);
    return object;
}

/* ---- finding ------------------------------------------------------------------------------------- */

kv_prefix_source kv_prefix_get_source(const kv_cache *cache, uint32_t object)
{
    const kv_prefix_object *o = &cache->prefix.objects[object];
    if (o->seq != NULL)
        return (kv_prefix_source){
            .table = &o->seq->table, .seq = o->seq, .n_blocks = o->seq->n_blocks};
    return (kv_prefix_source){.table = &o->table,
                              .n_blocks = (o->n_tokens - 1) / cache->page_tokens + 1};
}

/* Does the table have all positions from `oldest` on that are in pages? Heads are alike. */
static bool has_scattered(const kv_cache *cache, const kv_prefix_source *source, uint32_t layer,
                          uint32_t oldest)
{
    for (uint32_t s = 0; s < cache->n_shards && source->n_blocks > 0; s++) {
        if (source->table->marks[kv_list(cache, layer, 0, s)].passed > oldest) return false;
    }
    return true;
}

bool kv_prefix_serves(const kv_cache *cache, const kv_prefix_source *source, uint32_t n_tokens)
{
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        const uint32_t window = cache->layer[l].window;
        if (window == 0) continue; /* nothing is ever freed */
        const uint32_t oldest = n_tokens >= window ? n_tokens - window + 1 : 0;
        if (oldest >= n_tokens) continue; /* a window of one sees itself only */
        uint32_t end = (n_tokens - 1) / cache->page_tokens + 1;
        if (end > source->n_blocks) end = source->n_blocks;
        if (cache->scatters[l] && !has_scattered(cache, source, l, oldest)) return false;
        if (cache->scatters[l]) continue;
        for (uint32_t b = oldest / cache->page_tokens; b < end; b++) {
            if (!kv_is_own_block(cache, b)) continue; /* other ranks look after theirs */
            /* All heads of a layer keep and free together. */
            if (kv_table_page(source->table, kv_home_list(cache, l, 0, b), b) == KV_PAGE_NONE)
                return false;
        }
    }
    return true;
}

/* It serves, and no page of it is known to be unreadable. */
static bool can_take(const kv_cache *cache, const kv_prefix_source *source, uint32_t n_tokens)
{
    return kv_prefix_serves(cache, source, n_tokens) && kv_source_is_sound(cache, source, n_tokens);
}

static uint32_t common_tokens(const uint32_t *a, const uint32_t *b, uint32_t n_max)
{
    uint32_t n = 0;
    while (n < n_max && a[n] == b[n])
        n++;
    return n;
}

/* The newest object that has the most whole blocks of tokens[0 .. n_tokens), by hash alone, and the
 * index of the last of them. */
static uint32_t deepest_object(const kv_cache *cache, hash128 key, const uint32_t *tokens,
                               uint32_t n_tokens, uint32_t *last_block)
{
    uint32_t deepest = KV_OBJECT_NONE;
    const uint32_t n_blocks = n_tokens / cache->page_tokens;
    for (uint32_t b = 0; b < n_blocks; b++) {
        key = next_key(cache, key, tokens, b);
        const uint32_t object = kv_prefix_index_find(&cache->prefix.index, key);
        if (object == KV_OBJECT_NONE) break;
        deepest = object;
        *last_block = b;
    }
    return deepest;
}

uint32_t kv_prefix_find(const kv_cache *cache, hash128 seed, const uint32_t *tokens,
                        uint32_t n_tokens, uint32_t *n_taken)
{
    uint32_t best = KV_OBJECT_NONE, last_block = 0, n_looked = 0;
    *n_taken = 0;
    if (n_tokens == 0) return best;
    uint32_t object = deepest_object(cache, seed, tokens, n_tokens, &last_block);
    for (; object != KV_OBJECT_NONE && n_looked < CANDIDATES_MAX; n_looked++) {
        const kv_prefix_object *o = &cache->prefix.objects[object];
        const uint32_t n_max = (uint32_t)min_size(o->n_tokens, (size_t)n_tokens - 1);
        const uint32_t n = n_max > *n_taken ? common_tokens(o->tokens, tokens, n_max) : 0;
        const kv_prefix_source source = kv_prefix_get_source(cache, object);
        if (n > *n_taken && can_take(cache, &source, n)) {
            *n_taken = n;
            best = object;
        }
        object = cache->prefix.index.keys[object].next[last_block];
    }
    return best;
}

/* Adds an object to a list of hits, unless one of the same origin has more. */
static void add_hit(const kv_cache *cache, uint32_t object, uint32_t n_tokens, kv_prefix_hits *hits)
{
    const uint64_t origin = cache->prefix.objects[object].origin;
    uint32_t i = 0;
    while (i < hits->n && hits->at[i].origin != origin)
        i++;
    if (i == KV_PREFIX_HITS_MAX || (i < hits->n && hits->at[i].n_tokens >= n_tokens)) return;
    hits->at[i] = (kv_prefix_hit){origin, object, n_tokens};
    if (i == hits->n) hits->n++;
}

/* Adds the objects that have this block of the wanted tokens, but not the next: those were listed before.
 * key[last_block + 1]: of the wanted tokens' blocks. */
static void list_depth(const kv_cache *cache, const kv_prefix_wanted *wanted, const hash128 *key,
                       uint32_t block, uint32_t last_block, kv_prefix_hits *hits)
{
    const kv_prefix_index *index = &cache->prefix.index;
    uint32_t n_looked = 0, object = kv_prefix_index_find(index, key[block]);
    for (; object != KV_OBJECT_NONE && n_looked < CANDIDATES_MAX; n_looked++) {
        const kv_prefix_object *o = &cache->prefix.objects[object];
        const kv_prefix_keys *keys = &index->keys[object];
        const bool is_deeper = block < last_block && keys->n_keys > block + 1 &&
                               hash128_equal(keys->key[block + 1], key[block + 1]);
        const uint32_t n_max = (uint32_t)min_size(o->n_tokens, wanted->n_max);
        const uint32_t n = is_deeper ? 0 : common_tokens(o->tokens, wanted->tokens, n_max);
        const kv_prefix_source source = kv_prefix_get_source(cache, object);
        if (n > 0 && can_take(cache, &source, n)) add_hit(cache, object, n, hits);
        object = keys->next[block];
    }
}

void kv_prefix_list(const kv_cache *cache, hash128 seed, const kv_prefix_wanted *wanted,
                    kv_prefix_hits *out)
{
    uint32_t last_block = 0;
    out->n = 0;
    const uint32_t deepest =
        deepest_object(cache, seed, wanted->tokens, wanted->n_tokens, &last_block);
    if (deepest == KV_OBJECT_NONE) return;
    const hash128 *key = cache->prefix.index.keys[deepest].key;
    for (uint32_t b = last_block + 1; b-- > 0 && out->n < KV_PREFIX_HITS_MAX;)
        list_depth(cache, wanted, key, b, last_block, out);
}

uint32_t kv_prefix_covering(kv_cache *cache, hash128 seed, const uint32_t *tokens,
                            uint32_t n_tokens)
{
    uint32_t last_block = 0, n_looked = 0;
    uint32_t object = deepest_object(cache, seed, tokens, n_tokens, &last_block);
    for (; object != KV_OBJECT_NONE && n_looked < CANDIDATES_MAX; n_looked++) {
        const kv_prefix_object *o = &cache->prefix.objects[object];
        const kv_prefix_source source = kv_prefix_get_source(cache, object);
        if (o->seq == NULL && o->n_tokens >= n_tokens &&
            common_tokens(o->tokens, tokens, n_tokens) == n_tokens &&
            can_take(cache, &source, n_tokens)) {
            kv_prefix_touch(&cache->prefix, object);
            return object;
        }
        object = cache->prefix.index.keys[object].next[last_block];
    }
    return KV_OBJECT_NONE;
}

void kv_prefix_drop_contained(kv_cache *cache, uint32_t object)
{
    const kv_prefix_keys *keys = &cache->prefix.index.keys[object];
    const kv_prefix_source source = kv_prefix_get_source(cache, object);
    const kv_prefix_object *whole = &cache->prefix.objects[object];
    for (uint32_t b = 0; b < keys->n_keys; b++) {
        uint32_t next, n_looked = 0;
        for (uint32_t other = keys->next[b]; other != KV_OBJECT_NONE; other = next) {
            const kv_prefix_object *o = &cache->prefix.objects[other];
            next = cache->prefix.index.keys[other].next[b];
            if (n_looked++ == CANDIDATES_MAX) break;
            if (o->seq != NULL || cache->prefix.index.keys[other].n_keys != b + 1) continue;
            if (o->n_tokens > whole->n_tokens) continue;
            if (common_tokens(o->tokens, whole->tokens, o->n_tokens) < o->n_tokens) continue;
            if (can_take(cache, &source, o->n_tokens)) (void)kv_prefix_drop(cache, other);
        }
    }
}

/* ---- giving up ----------------------------------------------------------------------------------- */

static bool is_held_by_seq(const kv_cache *cache, uint32_t page)
{
    return kv_pool_pages(cache->pool)->n_refs[KV_HELD_BY_SEQ][page] > 0;
}

/* Does a sequence hold a page of the object's block? */
static bool is_block_held(const kv_cache *cache, const kv_prefix_object *o, uint32_t block)
{
    for (uint32_t list = 0; list < o->table.n_lists; list++) {
        const uint32_t page = kv_table_page(&o->table, list, block);
        if (page != KV_PAGE_NONE && is_held_by_seq(cache, page)) return true;
    }
    return false;
}

/* Does the object hold a page that no sequence does? */
static bool has_own_page(const kv_cache *cache, const kv_prefix_object *o)
{
    const uint32_t *n_refs = kv_pool_pages(cache->pool)->n_refs[KV_HELD_BY_SEQ];
    for (size_t i = 0; i < (size_t)o->table.n_lists * o->table.capacity; i++) {
        if (o->table.page[i] != KV_PAGE_NONE && n_refs[o->table.page[i]] == 0) return true;
    }
    return false;
}

static void give_up_last(kv_cache *cache, uint32_t object)
{
    const kv_prefix *prefix = &cache->prefix;
    kv_prefix_object *o = &cache->prefix.objects[object];
    const uint32_t last = (o->n_tokens - 1) / cache->page_tokens;
    if (last == 0) {
        cache->stats.pages_given_up += kv_prefix_drop(cache, object);
        return;
    }
    o->n_tokens = last * cache->page_tokens;
    cache->stats.pages_given_up +=
        kv_scatter_cut(cache, &o->table, o->n_tokens, KV_HELD_BY_OBJECT) +
        kv_table_drop(&o->table, cache->pool, last, last + 1, KV_HELD_BY_OBJECT);
    if (prefix->index.keys[object].n_keys > last)
        kv_prefix_index_cut(&cache->prefix.index, object, last);
}

bool kv_prefix_give_up_block(kv_cache *cache)
{
    const kv_prefix *prefix = &cache->prefix;
    for (uint32_t i = prefix->oldest; i != KV_OBJECT_NONE; i = prefix->objects[i].newer) {
        const kv_prefix_object *o = &prefix->objects[i];
        if (o->seq != NULL || is_block_held(cache, o, (o->n_tokens - 1) / cache->page_tokens))
            continue;
        give_up_last(cache, i);
        return true;
    }
    /* What a sequence has evicted, or has a copy of (scatter.h), lies before what it holds still: the way
     * there is over blocks that gain nothing. */
    for (uint32_t i = prefix->oldest; i != KV_OBJECT_NONE; i = prefix->objects[i].newer) {
        const kv_prefix_object *o = &prefix->objects[i];
        if (o->seq != NULL || !has_own_page(cache, o)) continue;
        give_up_last(cache, i);
        return true;
    }
    return false;
}

bool kv_prefix_give_up_object(kv_cache *cache)
{
    const kv_prefix *prefix = &cache->prefix;
    uint32_t i = prefix->oldest;
    while (i != KV_OBJECT_NONE && prefix->objects[i].seq != NULL)
        i = prefix->objects[i].newer;
    if (i == KV_OBJECT_NONE) return false;
    cache->stats.pages_given_up += kv_prefix_drop(cache, i);
    return true;
}

void kv_cache_drop_prefixes(kv_cache *cache)
{
    assert(!cache->step.is_open);
    uint32_t next;
    for (uint32_t i = cache->prefix.oldest; i != KV_OBJECT_NONE; i = next) {
        const kv_prefix_object *o = &cache->prefix.objects[i];
        next = o->newer;
        if (o->seq == NULL && !is_block_held(cache, o, 0)) (void)kv_prefix_drop(cache, i);
    }
    kv_publish(cache);
}
