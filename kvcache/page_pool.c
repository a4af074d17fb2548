/* kvcache/page_pool.c - see page_pool.h.
 *
 * Slabs are handed out lowest first, and freed slabs before fresh ones, so that descriptors and
 * mapping are touched only as far as the pool was ever full (n_touched slabs). A class keeps the
 * slabs that have a free page in a doubly linked list; a slab keeps its free pages in a singly
 * linked one. */
#include "kvcache/page_pool_state.h"

#include "base/check.h"

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
    pool->classes.partial = arena_take(a, n_classes, sizeof *pool->classes.partial);
    pool->classes.n_free = arena_take(a, n_classes, sizeof *pool->classes.n_free);
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
    pool->pages.owner = arena_take(a, n_pages, sizeof *pool->pages.owner);
    pool->pages.n_slots = arena_take(a, n_pages, sizeof *pool->pages.n_slots);
    const size_t row_bytes = pool->page_tokens * sizeof *pool->pages.positions;
    pool->pages.positions = arena_take(a, n_pages, row_bytes);
    if (pool->view.box_bytes > 0) pool->pages.boxes = arena_take(a, n_pages, pool->view.box_bytes);
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
    const uint64_t n_slabs = config->budget_bytes / pool->slab_bytes;
    if (pages_per_slab >= INDEX_NONE || n_slabs == 0) return ERR_OVERFLOW;
    if (n_slabs > (KV_PAGE_NONE - 1) / pages_per_slab) return ERR_OVERFLOW;
    pool->n_slabs = (uint32_t)n_slabs;
    pool->pages_per_slab_max = (uint32_t)pages_per_slab;
    return ERR_OK;
}

static err_t map_budget(kv_pool *pool)
{
    size_t bytes;
    TRY(size_mul(pool->n_slabs, pool->slab_bytes, &bytes));
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) return ERR_NO_MEMORY;
    /* Attention goes from page to page of a large pool: with small ones each is a walk through the page tables, too. That it
     * may be refused changes nothing but speed. */
    (void)madvise(base, bytes, MADV_HUGEPAGE);
    pool->base = base;
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
        pool->classes.partial[c] = SLAB_NONE;
    }
    return map_budget(pool);
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
    pool->n_shards = config->n_shards;
    pool->free_slabs = SLAB_NONE;
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
    if (pool->base != NULL) {
        /* The addresses may be mapped again for something else: no poison stays behind. */
        UNPOISON(pool->base, pool->n_touched * pool->slab_bytes);
        munmap(pool->base, pool->n_slabs * pool->slab_bytes);
    }
    arena_deinit(&pool->memory);
    free(pool);
}

/* ---- slabs --------------------------------------------------------------------------------------- */

static uint8_t *slab_data(const kv_pool *pool, uint32_t slab)
{
    return pool->base + slab * pool->slab_bytes;
}

static void link_partial(kv_pool *pool, uint32_t slab)
{
    uint32_t *head = &pool->classes.partial[pool->slabs.page_class[slab]];
    pool->slabs.prev[slab] = SLAB_NONE;
    pool->slabs.next[slab] = *head;
    if (*head != SLAB_NONE) pool->slabs.prev[*head] = slab;
    *head = slab;
}

static void unlink_partial(kv_pool *pool, uint32_t slab)
{
    const uint32_t next = pool->slabs.next[slab], prev = pool->slabs.prev[slab];
    if (next != SLAB_NONE) pool->slabs.prev[next] = prev;
    if (prev != SLAB_NONE) {
        pool->slabs.next[prev] = next;
    } else {
        pool->classes.partial[pool->slabs.page_class[slab]] = next;
    }
}

/* Gives a free slab to the class and links its pages; SLAB_NONE if there is none. */
static uint32_t take_slab(kv_pool *pool, uint32_t page_class)
{
    uint32_t slab = pool->free_slabs;
    if (slab != SLAB_NONE) {
        pool->free_slabs = pool->slabs.next[slab];
    } else {
        if (pool->n_touched == pool->n_slabs) return SLAB_NONE;
        slab = pool->n_touched++;
    }
    pool->n_in_use++;
    const uint32_t n = pool->classes.pages_per_slab[page_class];
    uint16_t *next_free = pool->pages.next_free + (size_t)slab * pool->pages_per_slab_max;
    for (uint32_t i = 0; i < n; i++)
        next_free[i] = (uint16_t)(i + 1 < n ? i + 1 : INDEX_NONE);
    pool->slabs.page_class[slab] = (uint16_t)page_class;
    pool->slabs.n_used[slab] = 0;
    pool->slabs.first_free[slab] = 0;
    pool->classes.n_free[page_class] += n;
    POISON(slab_data(pool, slab), pool->slab_bytes);
    link_partial(pool, slab);
    return slab;
}

/* The slab's last page was freed: it has no class any more, and its memory goes back. */
static void return_slab(kv_pool *pool, uint32_t slab)
{
    const uint32_t page_class = pool->slabs.page_class[slab];
    unlink_partial(pool, slab);
    pool->classes.n_free[page_class] -= pool->classes.pages_per_slab[page_class];
    pool->slabs.next[slab] = pool->free_slabs;
    pool->free_slabs = slab;
    pool->n_in_use--;
    madvise(slab_data(pool, slab), pool->slab_bytes, MADV_DONTNEED); /* only a hint may fail */
}

/* ---- pages --------------------------------------------------------------------------------------- */

uint64_t kv_pool_page_bytes(const kv_pool *pool, uint32_t page_class)
{
    return pool->slab_bytes / pool->classes.pages_per_slab[page_class];
}

static uint32_t slab_of(const kv_pool *pool, uint32_t page)
{
    assert(page / pool->pages_per_slab_max < pool->n_touched);
    return page / pool->pages_per_slab_max;
}

uint32_t kv_pool_class(const kv_pool *pool, uint32_t page)
{
    return pool->slabs.page_class[slab_of(pool, page)];
}

/* Counts a held page in (or, with is_out, out again) under who holds it now. */
static void count_held(kv_pool *pool, uint32_t page, bool is_out)
{
    const bool is_used = pool->pages.n_refs[KV_HELD_BY_SEQ][page] > 0;
    const uint64_t bytes = is_used ? kv_pool_page_bytes(pool, kv_pool_class(pool, page)) : 0;
    if (is_out) {
        pool->n_held[is_used ? 0 : 1]--;
        pool->used_bytes -= bytes;
    } else {
        pool->n_held[is_used ? 0 : 1]++;
        pool->used_bytes += bytes;
    }
}

uint8_t *kv_pool_data(const kv_pool *pool, uint32_t page)
{
    const uint32_t slab = slab_of(pool, page), index = page % pool->pages_per_slab_max;
    return slab_data(pool, slab) + index * pool->classes.page_bytes[pool->slabs.page_class[slab]];
}

uint8_t *kv_pool_box(const kv_pool *pool, uint32_t page)
{
    return pool->pages.boxes != NULL ? pool->pages.boxes + page * pool->view.box_bytes : NULL;
}

/* A page of a slab that has one. */
static uint32_t take_page(kv_pool *pool, uint32_t slab, kv_holder holder)
{
    const uint32_t page_class = pool->slabs.page_class[slab];
    const uint32_t index = pool->slabs.first_free[slab];
    const uint32_t page = slab * pool->pages_per_slab_max + index;
    pool->slabs.first_free[slab] = pool->pages.next_free[page];
    pool->slabs.n_used[slab]++;
    pool->classes.n_free[page_class]--;
    if (pool->slabs.first_free[slab] == INDEX_NONE) unlink_partial(pool, slab);
    assert(!kv_pool_is_held(pool, page));
    pool->pages.n_refs[holder][page] = 1;
    pool->pages.n_slots[page] = 0;
    pool->pages.owner[page] = KV_OWNER_NONE;
    count_held(pool, page, false);
    UNPOISON(kv_pool_data(pool, page), pool->classes.page_bytes[page_class]);
    return page;
}

uint32_t kv_pool_alloc_page(kv_pool *pool, uint32_t page_class, kv_holder holder)
{
    assert(page_class < pool->classes.n);
    uint32_t slab = pool->classes.partial[page_class];
    if (slab == SLAB_NONE) slab = take_slab(pool, page_class);
    return slab == SLAB_NONE ? KV_PAGE_NONE : take_page(pool, slab, holder);
}

/* The page's slots and bytes are nobody's any more. */
static void disown(kv_pool *pool, uint32_t page)
{
    if (pool->pages.owner[page] == KV_OWNER_NONE) return;
    kv_pool_shard *shard = &pool->shards[pool->pages.owner[page]];
    shard->n_pages--;
    shard->n_slots -= pool->pages.n_slots[page];
    shard->bytes -= kv_pool_page_bytes(pool, kv_pool_class(pool, page));
    pool->n_slots_live -= pool->pages.n_slots[page];
}

static void free_page(kv_pool *pool, uint32_t page)
{
    const uint32_t slab = slab_of(pool, page);
    const uint32_t page_class = pool->slabs.page_class[slab];
    POISON(kv_pool_data(pool, page), pool->classes.page_bytes[page_class]);
    disown(pool, page);
    const bool was_full = pool->slabs.first_free[slab] == INDEX_NONE;
    pool->pages.next_free[page] = pool->slabs.first_free[slab];
    pool->slabs.first_free[slab] = (uint16_t)(page % pool->pages_per_slab_max);
    pool->slabs.n_used[slab]--;
    pool->classes.n_free[page_class]++;
    if (was_full) link_partial(pool, slab);
    if (pool->slabs.n_used[slab] == 0) return_slab(pool, slab);
}

void kv_pool_hold(kv_pool *pool, uint32_t page, kv_holder holder)
{
    assert(kv_pool_is_held(pool, page));
    count_held(pool, page, true);
    pool->pages.n_refs[holder][page]++;
    count_held(pool, page, false);
}

bool kv_pool_drop(kv_pool *pool, uint32_t page, kv_holder holder)
{
    assert(slab_of(pool, page) < pool->n_slabs);
    assert(pool->pages.n_refs[holder][page] > 0);
    count_held(pool, page, true);
    pool->pages.n_refs[holder][page]--;
    if (kv_pool_is_held(pool, page)) {
        count_held(pool, page, false);
        return false;
    }
    free_page(pool, page);
    return true;
}

void kv_pool_pass(kv_pool *pool, uint32_t page, kv_holder from, kv_holder to)
{
    kv_pool_hold(pool, page, to);
    const bool is_freed = kv_pool_drop(pool, page, from);
    assert(!is_freed);
}

/* ---- slots --------------------------------------------------------------------------------------- */

static uint32_t *positions_of(const kv_pool *pool, uint32_t page)
{
    return pool->pages.positions + (size_t)page * pool->page_tokens;
}

static void count_slots(kv_pool *pool, uint32_t page, uint32_t n_slots)
{
    const uint32_t n_before = pool->pages.n_slots[page];
    pool->n_slots_live += n_slots - (uint64_t)n_before;
    pool->shards[pool->pages.owner[page]].n_slots += n_slots - (uint64_t)n_before;
    pool->pages.n_slots[page] = (uint8_t)n_slots;
}

void kv_pool_own(kv_pool *pool, uint32_t page, uint32_t owner)
{
    assert(kv_pool_is_held(pool, page));
    assert(pool->pages.owner[page] == KV_OWNER_NONE);
    assert(owner < pool->n_shards);
    pool->pages.owner[page] = (uint16_t)owner;
    pool->shards[owner].n_pages++;
    pool->shards[owner].bytes += kv_pool_page_bytes(pool, kv_pool_class(pool, page));
}

void kv_pool_fill(kv_pool *pool, uint32_t page, uint32_t first_position, uint32_t n_slots,
                  uint32_t owner)
{
    assert(n_slots <= pool->page_tokens);
    kv_pool_own(pool, page, owner);
    uint32_t *positions = positions_of(pool, page);
    for (uint32_t i = 0; i < n_slots; i++)
        positions[i] = first_position + i;
    count_slots(pool, page, n_slots);
}

void kv_pool_rewrite(kv_pool *pool, uint32_t page, const uint32_t *positions, uint32_t n_slots,
                     uint32_t owner)
{
    assert(n_slots <= pool->page_tokens);
    if (pool->pages.owner[page] == KV_OWNER_NONE) kv_pool_own(pool, page, owner);
    memcpy(positions_of(pool, page), positions, n_slots * sizeof *positions);
    count_slots(pool, page, n_slots);
}

uint32_t kv_pool_move_page(kv_pool *pool, uint32_t page)
{
    const uint32_t own = slab_of(pool, page), page_class = pool->slabs.page_class[own];
    uint32_t best = SLAB_NONE, n_most = pool->slabs.n_used[own];
    assert(pool->pages.n_refs[KV_HELD_BY_SEQ][page] > 0);
    for (uint32_t s = pool->classes.partial[page_class]; s != SLAB_NONE; s = pool->slabs.next[s]) {
        if (s == own || pool->slabs.n_used[s] < n_most) continue;
        best = s;
        n_most = pool->slabs.n_used[s];
    }
    if (best == SLAB_NONE) return page;
    const uint32_t to = take_page(pool, best, KV_HELD_BY_SEQ);
    kv_pool_rewrite(pool, to, positions_of(pool, page), pool->pages.n_slots[page],
                    pool->pages.owner[page]);
    memcpy(kv_pool_data(pool, to), kv_pool_data(pool, page), pool->classes.page_bytes[page_class]);
    if (pool->pages.boxes != NULL)
        memcpy(kv_pool_box(pool, to), kv_pool_box(pool, page), pool->view.box_bytes);
    for (int i = 0; i < KV_N_HOLDERS; i++) {
        pool->pages.n_refs[i][to] = pool->pages.n_refs[i][page];
        pool->pages.n_refs[i][page] = i == KV_HELD_BY_SEQ ? 1 : 0;
    }
    (void)kv_pool_drop(pool, page, KV_HELD_BY_SEQ);
    return to;
}

uint32_t kv_pool_append(kv_pool *pool, uint32_t page, uint32_t position)
{
    const uint32_t slot = pool->pages.n_slots[page];
    uint32_t *positions = positions_of(pool, page);
    assert(pool->pages.owner[page] != KV_OWNER_NONE);
    assert(slot < pool->page_tokens);
    assert(slot == 0 || positions[slot - 1] < position);
    positions[slot] = position;
    count_slots(pool, page, slot + 1);
    return slot;
}

void kv_pool_shrink(kv_pool *pool, uint32_t page, uint32_t n_slots)
{
    assert(pool->pages.owner[page] != KV_OWNER_NONE);
    assert(n_slots <= pool->pages.n_slots[page]);
    count_slots(pool, page, n_slots);
}

uint32_t kv_pool_slots_below(const kv_pool *pool, uint32_t page, uint32_t position)
{
    const uint32_t *positions = positions_of(pool, page);
    uint32_t n = pool->pages.n_slots[page];
    while (n > 0 && positions[n - 1] >= position)
        n--;
    return n;
}

/* ---- queries ------------------------------------------------------------------------------------- */

bool kv_pool_has_room(const kv_pool *pool, const uint64_t *need)
{
    uint64_t n_slabs = 0;
    for (uint32_t c = 0; c < pool->classes.n; c++) {
        if (need[c] <= pool->classes.n_free[c]) continue;
        const uint64_t missing = need[c] - pool->classes.n_free[c];
        n_slabs += (missing - 1) / pool->classes.pages_per_slab[c] + 1;
    }
    return n_slabs <= pool->n_slabs - pool->n_in_use;
}

bool kv_pool_could_hold(const kv_pool *pool, const uint64_t *need)
{
    uint64_t n_slabs = 0;
    for (uint32_t c = 0; c < pool->classes.n; c++) {
        if (need[c] > 0) n_slabs += (need[c] - 1) / pool->classes.pages_per_slab[c] + 1;
    }
    return n_slabs <= pool->n_slabs;
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

kv_pool_counts kv_pool_count(const kv_pool *pool)
{
    uint32_t pages_per_slab_min = UINT32_MAX;
    uint64_t n_free = 0;
    for (uint32_t c = 0; c < pool->classes.n; c++) {
        if (pool->classes.pages_per_slab[c] < pages_per_slab_min)
            pages_per_slab_min = pool->classes.pages_per_slab[c];
        n_free += pool->classes.n_free[c];
    }
    const uint64_t n_free_slabs = pool->n_slabs - pool->n_in_use;
    return (kv_pool_counts){
        .budget_bytes = (uint64_t)pool->n_slabs * pool->slab_bytes,
        .slab_bytes = (uint64_t)pool->n_in_use * pool->slab_bytes,
        .descriptor_bytes = pool->memory.used_bytes / pool->n_slabs * pool->n_touched,
        .pages_used = pool->n_held[0],
        .pages_cached = pool->n_held[1],
        .pages_free = n_free + n_free_slabs * pages_per_slab_min,
        .slots_live = pool->n_slots_live,
        .used_bytes = pool->used_bytes,
    };
}
