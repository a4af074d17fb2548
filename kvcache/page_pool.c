/* kvcache/page_pool.c - see page_pool.h.
 *
 * Slabs are handed out lowest first, and freed slabs before fresh ones, so that descriptors and
 * mapping are touched only as far as the pool was ever full (n_touched slabs). A class keeps the
 * slabs that have a free page in a doubly linked list; a slab keeps its free pages in a singly
 * linked one. Each tier does so for its own slabs.
 *
 * page_pool_check.c has the checks. */
#include "kvcache/page_pool_state.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define POOL_POISON
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define POOL_POISON
#endif
#ifdef POOL_POISON
#include <sanitizer/asan_interface.h>
#define POISON(data, bytes)   ASAN_POISON_MEMORY_REGION((data), (bytes))
#define UNPOISON(data, bytes) ASAN_UNPOISON_MEMORY_REGION((data), (bytes))
#else
#define POISON(data, bytes)   ((void)(data), (void)(bytes))
#define UNPOISON(data, bytes) ((void)(data), (void)(bytes))
#endif

/* ---- open and close ------------------------------------------------------------------------------ */

/* Run twice, over a measuring and then a real arena. */
static void place_arrays(kv_pool *pool, arena *a)
{
    const size_t n_classes = pool->classes.n, n_slabs = pool->n_slabs;
    const size_t n_pages = n_slabs * pool->pages_per_slab_max;
    pool->classes.page_bytes = arena_take(a, n_classes, sizeof *pool->classes.page_bytes);
    pool->classes.pages_per_slab = arena_take(a, n_classes, sizeof *pool->classes.pages_per_slab);
    for (int t = 0; t < KV_N_TIERS; t++) {
        kv_tier_slabs *tier = &pool->tiers[t];
        tier->partial = arena_take(a, n_classes, sizeof *tier->partial);
        tier->n_free = arena_take(a, n_classes, sizeof *tier->n_free);
    }
    pool->slabs.page_class = arena_take(a, n_slabs, sizeof *pool->slabs.page_class);
    pool->slabs.n_used = arena_take(a, n_slabs, sizeof *pool->slabs.n_used);
    pool->slabs.first_free = arena_take(a, n_slabs, sizeof *pool->slabs.first_free);
    pool->slabs.next = arena_take(a, n_slabs, sizeof *pool->slabs.next);
    pool->slabs.prev = arena_take(a, n_slabs, sizeof *pool->slabs.prev);
    for (int i = 0; i < KV_N_HOLDERS; i++) {
        pool->pages.n_refs[i] = arena_take(a, n_pages, sizeof *pool->pages.n_refs[i]);
        pool->pages.seen[i] = arena_take(a, n_pages, sizeof *pool->pages.seen[i]);
        pool->view.n_refs[i] = pool->pages.n_refs[i];
    }
    pool->pages.next_free = arena_take(a, n_pages, sizeof *pool->pages.next_free);
    pool->pages.leans_on = arena_take(a, n_pages, sizeof *pool->pages.leans_on);
    pool->pages.owner = arena_take(a, n_pages, sizeof *pool->pages.owner);
    pool->pages.n_slots = arena_take(a, n_pages, sizeof *pool->pages.n_slots);
    const size_t row_bytes = pool->page_tokens * sizeof *pool->pages.positions;
    pool->pages.positions = arena_take(a, n_pages, row_bytes);
    if (pool->view.box_bytes > 0) pool->pages.boxes = arena_take(a, n_pages, pool->view.box_bytes);
    if (pool->has_biases) {
        pool->pages.biases = arena_take(a, n_pages, pool->page_tokens * sizeof(float));
        pool->pages.bias_most = arena_take(a, n_pages, sizeof *pool->pages.bias_most);
    }
    if (pool->notes_changes) {
        pool->changes.pages = arena_take(a, n_pages, sizeof *pool->changes.pages);
        pool->changes.state = arena_take(a, n_pages, sizeof *pool->changes.state);
    }
    if (pool->has_importance)
        pool->pages.importance = arena_take(a, n_pages, sizeof *pool->pages.importance);
    if (kv_pool_has_tiers(pool))
        pool->pages.last_use = arena_take(a, n_pages, sizeof *pool->pages.last_use);
    pool->shards = arena_take(a, pool->n_shards, sizeof *pool->shards);
    pool->view.boxes = pool->pages.boxes;
    pool->view.owner = pool->pages.owner;
    pool->view.n_slots = pool->pages.n_slots;
    pool->view.positions = pool->pages.positions;
}

/* A slab holds at least one page of every class. */
static size_t slab_bytes_for(const kv_pool_config *config)
{
    size_t largest = 0;
    for (uint32_t c = 0; c < config->n_classes; c++)
        largest = max_size(largest, config->page_bytes[c]);
    return round_up(largest, KV_SLAB_BYTES);
}

uint64_t kv_pool_least_bytes(const kv_pool_config *config, const uint64_t *need)
{
    const uint64_t slab_bytes = slab_bytes_for(config);
    uint64_t n_slabs = 0;
    for (uint32_t c = 0; c < config->n_classes; c++) {
        const uint64_t pages_per_slab = slab_bytes / config->page_bytes[c];
        n_slabs += (need[c] + pages_per_slab - 1) / pages_per_slab;
    }
    return n_slabs * slab_bytes;
}

/* Slab size and numbers of slabs and pages follow from the classes. */
static err_t plan_slabs(kv_pool *pool, const kv_pool_config *config)
{
    size_t smallest = SIZE_MAX;
    for (uint32_t c = 0; c < config->n_classes; c++) {
        assert(config->page_bytes[c] > 0);
        assert(config->page_bytes[c] < SIZE_MAX / 2);
        smallest = min_size(smallest, config->page_bytes[c]);
    }
    pool->slab_bytes = slab_bytes_for(config);
    const size_t pages_per_slab = pool->slab_bytes / smallest;
    if (pages_per_slab >= KV_INDEX_NONE) return ERR_OVERFLOW;
    pool->pages_per_slab_max = (uint32_t)pages_per_slab;
    const uint64_t bytes[KV_N_TIERS] = {config->budget_bytes, config->host_bytes,
                                        config->file_bytes};
    const uint64_t n_slabs_max = (KV_PAGE_NONE - 1) / pages_per_slab;
    for (int t = 0; t < KV_N_TIERS; t++) {
        const uint64_t n = bytes[t] / pool->slab_bytes;
        if (n > n_slabs_max - pool->n_slabs) return ERR_OVERFLOW;
        pool->tiers[t].first = pool->n_slabs;
        pool->tiers[t].n = (uint32_t)n;
        pool->n_slabs += (uint32_t)n;
    }
    return pool->tiers[KV_TIER_POOL].n > 0 ? ERR_OK : ERR_OVERFLOW;
}

static err_t map_tier(const kv_pool *pool, kv_tier_slabs *tier)
{
    size_t bytes;
    if (tier->n == 0) return ERR_OK;
    TRY(size_mul(tier->n, pool->slab_bytes, &bytes));
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) return ERR_NO_MEMORY;
    /* Attention goes from page to page of a large pool: with small ones each is a walk through the page
     * tables, too. That it may be refused changes nothing but speed. */
    (void)madvise(base, bytes, MADV_HUGEPAGE);
    tier->base = base;
    return ERR_OK;
}

static err_t open_memory(kv_pool *pool, const kv_pool_config *config)
{
    TRY(plan_slabs(pool, config));
    arena measure;
    arena_init_measure(&measure);
    place_arrays(pool, &measure);
    TRY(measure.err);
    TRY(arena_init(&pool->memory, measure.used_bytes));
    place_arrays(pool, &pool->memory);
    TRY(pool->memory.err);
    for (uint32_t c = 0; c < config->n_classes; c++) {
        pool->classes.page_bytes[c] = config->page_bytes[c];
        pool->classes.pages_per_slab[c] = (uint32_t)(pool->slab_bytes / config->page_bytes[c]);
        for (int t = 0; t < KV_N_TIERS; t++)
            pool->tiers[t].partial[c] = KV_SLAB_NONE;
    }
    TRY(map_tier(pool, &pool->tiers[KV_TIER_POOL]));
    return map_tier(pool, &pool->tiers[KV_TIER_HOST]);
}

err_t kv_pool_open(const kv_pool_config *config, kv_pool **out)
{
    *out = NULL;
    assert(config->n_classes >= 1);
    assert(config->n_classes <= KV_CLASSES_MAX);
    assert(config->n_shards >= 1);
    assert(config->n_shards < KV_OWNER_NONE);
    kv_pool *pool = calloc(1, sizeof *pool);
    if (pool == NULL) return ERR_NO_MEMORY;
    pool->page_tokens = config->page_tokens;
    pool->classes.n = config->n_classes;
    pool->view.box_bytes = config->box_bytes;
    pool->has_biases = config->has_biases;
    pool->has_importance = config->has_importance;
    pool->notes_changes = config->notes_changes;
    pool->n_shards = config->n_shards;
    for (int t = 0; t < KV_N_TIERS; t++)
        pool->tiers[t].free = KV_SLAB_NONE;
    const err_t err = open_memory(pool, config);
    if (err != ERR_OK) {
        kv_pool_close(pool);
        return err;
    }
    *out = pool;
    return ERR_OK;
}

void kv_pool_close(kv_pool *pool)
{
    if (pool == NULL) return;
    for (int t = 0; t < KV_N_TIERS; t++) {
        const kv_tier_slabs *tier = &pool->tiers[t];
        if (tier->base == NULL) continue;
        /* The addresses may be mapped again for something else: no poison stays behind. */
        UNPOISON(tier->base, tier->n_touched * pool->slab_bytes);
        munmap(tier->base, tier->n * pool->slab_bytes);
    }
    arena_deinit(&pool->memory);
    free(pool);
}

/* ---- slabs --------------------------------------------------------------------------------------- */

static kv_tier_slabs *tier_of(kv_pool *pool, uint32_t slab)
{
    return &pool->tiers[kv_tier_of_slab(pool, slab)];
}

/* NULL where nothing is mapped. */
static uint8_t *slab_data(const kv_pool *pool, uint32_t slab)
{
    const kv_tier_slabs *tier = &pool->tiers[kv_tier_of_slab(pool, slab)];
    return tier->base != NULL ? tier->base + (slab - tier->first) * pool->slab_bytes : NULL;
}

static void link_partial(kv_pool *pool, uint32_t slab)
{
    uint32_t *head = &tier_of(pool, slab)->partial[pool->slabs.page_class[slab]];
    pool->slabs.prev[slab] = KV_SLAB_NONE;
    pool->slabs.next[slab] = *head;
    if (*head != KV_SLAB_NONE) pool->slabs.prev[*head] = slab;
    *head = slab;
}

static void unlink_partial(kv_pool *pool, uint32_t slab)
{
    const uint32_t next = pool->slabs.next[slab], prev = pool->slabs.prev[slab];
    if (next != KV_SLAB_NONE) pool->slabs.prev[next] = prev;
    if (prev != KV_SLAB_NONE) {
        pool->slabs.next[prev] = next;
    } else {
        tier_of(pool, slab)->partial[pool->slabs.page_class[slab]] = next;
    }
}

/* Gives a free slab of the tier to the class and links its pages; KV_SLAB_NONE if there is none. */
static uint32_t take_slab(kv_pool *pool, kv_tier_slabs *tier, uint32_t page_class)
{
    uint32_t slab = tier->free;
    if (slab != KV_SLAB_NONE) {
        tier->free = pool->slabs.next[slab];
    } else {
        if (tier->n_touched == tier->n) return KV_SLAB_NONE;
        slab = tier->first + tier->n_touched++;
    }
    tier->n_in_use++;
    const uint32_t n = pool->classes.pages_per_slab[page_class];
    uint16_t *next_free = pool->pages.next_free + (size_t)slab * pool->pages_per_slab_max;
    for (uint32_t i = 0; i < n; i++)
        next_free[i] = (uint16_t)(i + 1 < n ? i + 1 : KV_INDEX_NONE);
    pool->slabs.page_class[slab] = (uint16_t)page_class;
    pool->slabs.n_used[slab] = 0;
    pool->slabs.first_free[slab] = 0;
    tier->n_free[page_class] += n;
    if (tier->base != NULL) POISON(slab_data(pool, slab), pool->slab_bytes);
    link_partial(pool, slab);
    return slab;
}

/* The slab's last page was freed: it has no class any more, and its memory goes back. */
static void return_slab(kv_pool *pool, uint32_t slab)
{
    const uint32_t page_class = pool->slabs.page_class[slab];
    kv_tier_slabs *tier = tier_of(pool, slab);
    unlink_partial(pool, slab);
    tier->n_free[page_class] -= pool->classes.pages_per_slab[page_class];
    pool->slabs.next[slab] = tier->free;
    tier->free = slab;
    tier->n_in_use--;
    if (tier->base == NULL) return; /* a file's bytes stay, to be written over */
    madvise(slab_data(pool, slab), pool->slab_bytes, MADV_DONTNEED); /* only a hint may fail */
}

/* ---- pages --------------------------------------------------------------------------------------- */

uint64_t kv_pool_part_bytes(const kv_pool *pool, uint32_t page_class)
{
    return pool->slab_bytes / pool->classes.pages_per_slab[page_class];
}

uint32_t kv_slab_of(const kv_pool *pool, uint32_t page)
{
    const uint32_t slab = page / pool->pages_per_slab_max;
    const kv_tier_slabs *tier = &pool->tiers[kv_tier_of_slab(pool, slab)];
    assert(slab - tier->first < tier->n_touched);
    return slab;
}

uint32_t kv_pool_class(const kv_pool *pool, uint32_t page)
{
    return pool->slabs.page_class[kv_slab_of(pool, page)];
}

/* Counts a held page in (or, with is_out, out again) under who holds it now. */
static void count_held(kv_pool *pool, uint32_t page, bool is_out)
{
    kv_tier_slabs *tier = tier_of(pool, kv_slab_of(pool, page));
    const bool is_used = pool->pages.n_refs[KV_HELD_BY_SEQ][page] > 0;
    const uint64_t bytes = is_used ? kv_page_part_bytes(pool, page) : 0;
    if (is_out) {
        tier->n_held[is_used ? 0 : 1]--;
        tier->used_bytes -= bytes;
    } else {
        tier->n_held[is_used ? 0 : 1]++;
        tier->used_bytes += bytes;
    }
}

uint8_t *kv_pool_data(const kv_pool *pool, uint32_t page)
{
    const uint32_t slab = kv_slab_of(pool, page), index = page % pool->pages_per_slab_max;
    uint8_t *data = slab_data(pool, slab);
    assert(data != NULL); /* pages of the file are read: see tier/tiers.h */
    return data + index * pool->classes.page_bytes[pool->slabs.page_class[slab]];
}

uint8_t *kv_pool_box(const kv_pool *pool, uint32_t page)
{
    return pool->pages.boxes != NULL ? pool->pages.boxes + page * pool->view.box_bytes : NULL;
}

float *kv_pool_importance(const kv_pool *pool, uint32_t page)
{
    return pool->pages.importance != NULL ? pool->pages.importance + page : NULL;
}

/* A page of a slab that has one. */
static uint32_t take_page(kv_pool *pool, uint32_t slab, kv_holder holder)
{
    const uint32_t page_class = pool->slabs.page_class[slab];
    kv_tier_slabs *tier = tier_of(pool, slab);
    const uint32_t index = pool->slabs.first_free[slab];
    const uint32_t page = slab * pool->pages_per_slab_max + index;
    pool->slabs.first_free[slab] = pool->pages.next_free[page];
    pool->slabs.n_used[slab]++;
    tier->n_free[page_class]--;
    if (pool->slabs.first_free[slab] == KV_INDEX_NONE) unlink_partial(pool, slab);
    assert(!kv_page_is_held(pool, page));
    pool->pages.n_refs[holder][page] = 1;
    pool->pages.leans_on[page] = KV_PAGE_NONE;
    pool->pages.n_slots[page] = 0;
    kv_pool_set_biases(pool, page, NULL);
    pool->pages.owner[page] = KV_OWNER_NONE;
    count_held(pool, page, false);
    kv_pool_use(pool, page);
    if (tier->base != NULL)
        UNPOISON(kv_pool_data(pool, page), pool->classes.page_bytes[page_class]);
    return page;
}

uint32_t kv_pool_alloc_in(kv_pool *pool, kv_tier where, uint32_t page_class, kv_holder holder)
{
    assert(page_class < pool->classes.n);
    kv_tier_slabs *tier = &pool->tiers[where];
    uint32_t slab = tier->partial[page_class];
    if (slab == KV_SLAB_NONE) slab = take_slab(pool, tier, page_class);
    return slab == KV_SLAB_NONE ? KV_PAGE_NONE : take_page(pool, slab, holder);
}

uint32_t kv_pool_alloc_page(kv_pool *pool, uint32_t page_class, kv_holder holder)
{
    return kv_pool_alloc_in(pool, KV_TIER_POOL, page_class, holder);
}

/* The page's slots and bytes are nobody's any more. */
static void disown(kv_pool *pool, uint32_t page)
{
    if (pool->pages.owner[page] == KV_OWNER_NONE) return;
    kv_pool_shard *shard = &pool->shards[pool->pages.owner[page]];
    shard->n_pages--;
    shard->n_slots -= pool->pages.n_slots[page];
    shard->bytes -= kv_page_owned_bytes(pool, page);
    pool->n_slots_live -= pool->pages.n_slots[page];
}

static void free_page(kv_pool *pool, uint32_t page)
{
    const uint32_t slab = kv_slab_of(pool, page);
    const uint32_t page_class = pool->slabs.page_class[slab];
    kv_tier_slabs *tier = tier_of(pool, slab);
    if (tier->base != NULL) POISON(kv_pool_data(pool, page), pool->classes.page_bytes[page_class]);
    disown(pool, page);
    const bool was_full = pool->slabs.first_free[slab] == KV_INDEX_NONE;
    pool->pages.next_free[page] = pool->slabs.first_free[slab];
    pool->slabs.first_free[slab] = (uint16_t)(page % pool->pages_per_slab_max);
    pool->slabs.n_used[slab]--;
    tier->n_free[page_class]++;
    if (was_full) link_partial(pool, slab);
    if (pool->slabs.n_used[slab] == 0) return_slab(pool, slab);
}

static void add_refs(kv_pool *pool, uint32_t page, kv_holder holder, uint32_t n)
{
    assert(kv_page_is_held(pool, page));
    count_held(pool, page, true);
    pool->pages.n_refs[holder][page] += n;
    count_held(pool, page, false);
}

static bool drop_ref(kv_pool *pool, uint32_t page, kv_holder holder)
{
    assert(pool->pages.n_refs[holder][page] > 0);
    count_held(pool, page, true);
    pool->pages.n_refs[holder][page]--;
    if (kv_page_is_held(pool, page)) {
        count_held(pool, page, false);
        return false;
    }
    free_page(pool, page);
    return true;
}

void kv_pool_hold(kv_pool *pool, uint32_t page, kv_holder holder)
{
    const uint32_t on = pool->pages.leans_on[page];
    add_refs(pool, page, holder, 1);
    if (on != KV_PAGE_NONE) add_refs(pool, on, holder, 1);
}

bool kv_pool_drop(kv_pool *pool, uint32_t page, kv_holder holder)
{
    const uint32_t on = pool->pages.leans_on[page];
    if (on != KV_PAGE_NONE) (void)drop_ref(pool, on, holder);
    return drop_ref(pool, page, holder);
}

void kv_pool_lean(kv_pool *pool, uint32_t page, uint32_t on)
{
    assert(kv_page_is_held(pool, page));
    assert(pool->pages.leans_on[page] == KV_PAGE_NONE);
    assert(pool->pages.leans_on[on] == KV_PAGE_NONE);
    pool->pages.leans_on[page] = on;
    for (int i = 0; i < KV_N_HOLDERS; i++)
        add_refs(pool, on, (kv_holder)i, pool->pages.n_refs[i][page]);
}

uint32_t kv_pool_leans_on(const kv_pool *pool, uint32_t page)
{
    assert(kv_page_is_held(pool, page));
    return pool->pages.leans_on[page];
}

void kv_pool_pass(kv_pool *pool, uint32_t page, kv_holder from, kv_holder to)
{
    kv_pool_hold(pool, page, to);
    const bool is_freed = kv_pool_drop(pool, page, from);
    assert(!is_freed);
}

uint32_t kv_pool_move_page(kv_pool *pool, uint32_t page)
{
    const uint32_t own = kv_slab_of(pool, page), page_class = pool->slabs.page_class[own];
    uint32_t best = KV_SLAB_NONE, n_most = pool->slabs.n_used[own];
    assert(kv_pool_tier(pool, page) == KV_TIER_POOL);
    assert(pool->pages.leans_on[page] == KV_PAGE_NONE);
    assert(pool->pages.n_refs[KV_HELD_BY_SEQ][page] > 0);
    for (uint32_t s = pool->tiers[KV_TIER_POOL].partial[page_class]; s != KV_SLAB_NONE;
         s = pool->slabs.next[s]) {
        if (s == own || pool->slabs.n_used[s] < n_most) continue;
        best = s;
        n_most = pool->slabs.n_used[s];
    }
    if (best == KV_SLAB_NONE) return page;
    const uint32_t to = take_page(pool, best, KV_HELD_BY_SEQ);
    kv_pool_rewrite(pool, to, kv_page_positions(pool, page), pool->pages.n_slots[page],
                    pool->pages.owner[page]);
    memcpy(kv_pool_data(pool, to), kv_pool_data(pool, page), pool->classes.page_bytes[page_class]);
    if (pool->pages.boxes != NULL)
        memcpy(kv_pool_box(pool, to), kv_pool_box(pool, page), pool->view.box_bytes);
    kv_pool_set_biases(pool, to, kv_pool_biases(pool, page));
    for (int i = 0; i < KV_N_HOLDERS; i++) {
        pool->pages.n_refs[i][to] = pool->pages.n_refs[i][page];
        pool->pages.n_refs[i][page] = i == KV_HELD_BY_SEQ ? 1 : 0;
    }
    (void)kv_pool_drop(pool, page, KV_HELD_BY_SEQ);
    return to;
}

/* ---- queries ------------------------------------------------------------------------------------- */

size_t kv_pool_page_bytes(const kv_pool *pool, uint32_t page)
{
    return pool->classes.page_bytes[kv_pool_class(pool, page)];
}

bool kv_pool_has_room(const kv_pool *pool, const uint64_t *need)
{
    const kv_tier_slabs *tier = &pool->tiers[KV_TIER_POOL];
    uint64_t n_slabs = 0;
    for (uint32_t c = 0; c < pool->classes.n; c++) {
        if (need[c] <= tier->n_free[c]) continue;
        const uint64_t missing = need[c] - tier->n_free[c];
        n_slabs += (missing - 1) / pool->classes.pages_per_slab[c] + 1;
    }
    return n_slabs <= tier->n - tier->n_in_use;
}

uint64_t kv_slabs_of(const kv_pool *pool, const uint64_t *need, uint32_t *n_classes)
{
    uint64_t n_slabs = 0;
    *n_classes = 0;
    for (uint32_t c = 0; c < pool->classes.n; c++) {
        if (need[c] == 0) continue;
        n_slabs += (need[c] - 1) / pool->classes.pages_per_slab[c] + 1;
        ++*n_classes;
    }
    return n_slabs;
}

bool kv_pool_could_hold(const kv_pool *pool, const uint64_t *need)
{
    uint32_t n_classes;
    return kv_slabs_of(pool, need, &n_classes) <= pool->tiers[KV_TIER_POOL].n;
}

uint64_t kv_pool_share_bytes(const kv_pool *pool, uint32_t page_class)
{
    const uint64_t descriptor_bytes = pool->memory.used_bytes / pool->n_slabs;
    return (pool->slab_bytes + descriptor_bytes) / pool->classes.pages_per_slab[page_class];
}

const kv_pages *kv_pool_pages(const kv_pool *pool)
{
    return &pool->view;
}

const kv_pool_shard *kv_pool_shards(const kv_pool *pool)
{
    return pool->shards;
}

static uint64_t count_free(const kv_pool *pool, const kv_tier_slabs *tier)
{
    uint32_t pages_per_slab_min = UINT32_MAX;
    uint64_t n_free = 0;
    for (uint32_t c = 0; c < pool->classes.n; c++) {
        if (pool->classes.pages_per_slab[c] < pages_per_slab_min)
            pages_per_slab_min = pool->classes.pages_per_slab[c];
        n_free += tier->n_free[c];
    }
    return n_free + (uint64_t)(tier->n - tier->n_in_use) * pages_per_slab_min;
}

kv_pool_counts kv_pool_count(const kv_pool *pool)
{
    const kv_tier_slabs *tier = &pool->tiers[KV_TIER_POOL];
    uint64_t n_touched = 0;
    for (int t = 0; t < KV_N_TIERS; t++)
        n_touched += pool->tiers[t].n_touched;
    return (kv_pool_counts){
        .budget_bytes = (uint64_t)tier->n * pool->slab_bytes,
        .slab_bytes = (uint64_t)tier->n_in_use * pool->slab_bytes,
        .descriptor_bytes = pool->memory.used_bytes / pool->n_slabs * n_touched,
        .pages_used = tier->n_held[0],
        .pages_cached = tier->n_held[1],
        .pages_free = count_free(pool, tier),
        .slots_live = pool->n_slots_live,
        .used_bytes = tier->used_bytes,
    };
}
