/* kvcache/compact.c - see compact.h.
 *
 * One layer at a time: plan (owner), find room (owner), move rows (a head is a job), bookkeeping (owner),
 * boxes (a head is a job). */
#include "kvcache/compact.h"

#include "kvcache/away.h"
#include "kvcache/demote.h"
#include "kvcache/evict.h"
#include "kvcache/observed.h"
#include "kvcache/page_bias.h"
#include "kvcache/run_box.h"
#include "kvcache/scatter.h"

#include <math.h>
#include <string.h>

typedef struct compact_loop {
    kv_seq *seq;
    uint32_t layer;
} compact_loop;

/* A list of the layer that is looked at. */
typedef struct list_at {
    const kv_seq *seq;
    uint32_t layer, shard;
    uint32_t list;
} list_at;

static uint32_t live_of(const kv_seq *seq, uint32_t list, uint32_t entry)
{
    return (uint32_t)__builtin_popcountll(
        seq->table.live[kv_table_entry(&seq->table, list, entry)]);
}

/* Slots that the page of an entry may have. Where entries are placed one by one, sinks are read apart. */
static uint32_t slots_max(const list_at *at, uint32_t entry)
{
    const kv_cache *cache = at->seq->cache;
    return cache->page_tokens -
           (entry == 0 && !cache->scatters[at->layer] ? cache->sink_tokens : 0);
}

bool kv_page_is_own(const kv_cache *cache, uint32_t page)
{
    const kv_pages *pages = kv_pool_pages(cache->pool);
    return kv_pool_tier(cache->pool, page) != KV_TIER_FILE &&
           pages->n_refs[KV_HELD_BY_SEQ][page] == 1 && pages->n_refs[KV_HELD_BY_OBJECT][page] == 0;
}

/* ---- plans --------------------------------------------------------------------------------------- */

static bool is_coded_entry(const kv_seq *seq, uint32_t list, uint32_t entry)
{
    return kv_is_coded_page(seq->cache, kv_table_page(&seq->table, list, entry));
}

static bool has_page(const kv_seq *seq, uint32_t list, uint32_t entry)
{
    return kv_table_page(&seq->table, list, entry) != KV_PAGE_NONE;
}

static bool has_hole(const kv_seq *seq, uint32_t list, uint32_t entry)
{
    const uint32_t page = kv_table_page(&seq->table, list, entry);
    const uint32_t n_slots = kv_pool_pages(seq->cache->pool)->n_slots[page];
    return live_of(seq, list, entry) < n_slots - (entry == 0 ? kv_page_sinks(seq->cache, page) : 0);
}

/* Is the page of the entry as full as it can be? */
static bool is_full(const list_at *at, uint32_t entry)
{
    return live_of(at->seq, at->list, entry) == slots_max(at, entry);
}

static void add_target(kv_compact_plan *plan, uint32_t entry, uint32_t n_slots, uint32_t page_class)
{
    plan->targets[plan->n_targets++] =
        (kv_compact_target){entry, KV_PAGE_NONE, n_slots, page_class};
    plan->runs[plan->n_runs - 1].n_targets++;
}

/* The raw pages behind the last encoded one, from the first that is not full. */
static void plan_raw(const list_at *at, kv_compact_plan *plan)
{
    const kv_seq *seq = at->seq;
    const uint32_t list = at->list;
    uint32_t first = seq->n_blocks, n_pages = 0, n_live = 0;
    bool any_hole = false;
    while (first > 0 && (!has_page(seq, list, first - 1) || !is_coded_entry(seq, list, first - 1)))
        first--;
    while (first < seq->n_blocks && (!has_page(seq, list, first) || is_full(at, first)))
        first++;
    for (uint32_t b = first; b < seq->n_blocks; b++) {
        if (!has_page(seq, list, b)) continue;
        n_pages++;
        n_live += live_of(seq, list, b);
        any_hole = any_hole || has_hole(seq, list, b);
    }
    if (n_pages == 0) return;
    const uint32_t first_max = slots_max(at, first), page_tokens = seq->cache->page_tokens;
    const uint32_t n_rest = n_live > first_max ? n_live - first_max : 0;
    const uint32_t n_needed = 1 + (n_rest + page_tokens - 1) / page_tokens;
    const bool is_encoded_next = !seq->methods.codec->is_exact && any_hole;
    if (n_needed == n_pages && !is_encoded_next) return;
    plan->runs[plan->n_runs++] = (kv_compact_run){
        .shard = at->shard, .first = first, .end = seq->n_blocks, .target = plan->n_targets};
    for (uint32_t b = first; n_live > 0; b++) {
        if (!has_page(seq, list, b)) continue;
        const uint32_t n = (uint32_t)min_size(slots_max(at, b), n_live);
        add_target(plan, b, n, seq->cache->layer_class[at->layer]);
        n_live -= n;
    }
}

static uint32_t class_at(const kv_seq *seq, uint32_t list, uint32_t entry)
{
    return kv_pool_class(seq->cache->pool, kv_table_page(&seq->table, list, entry));
}

/* Of the classes of two encoded pages that of the finer one, so that neither loses more than a rounding.
 * Where codecs are mixed it has more bytes; else there is but one. */
static uint32_t finer_class(const kv_cache *cache, uint32_t one, uint32_t other)
{
    return cache->layout[other].page_bytes > cache->layout[one].page_bytes ? other : one;
}

/* Encoded neighbours, as many as one page holds. */
static void plan_coded(const list_at *at, kv_compact_plan *plan)
{
    const kv_seq *seq = at->seq;
    const uint32_t list = at->list;
    for (uint32_t b = 0; b < seq->n_blocks;) {
        if (!has_page(seq, list, b) || !is_coded_entry(seq, list, b)) {
            b++;
            continue;
        }
        uint32_t n_live = live_of(seq, list, b), end = b + 1, n_pages = 1;
        uint32_t page_class = class_at(seq, list, b);
        for (; end < seq->n_blocks; end++) {
            if (!has_page(seq, list, end)) continue;
            const uint32_t n = live_of(seq, list, end);
            if (!is_coded_entry(seq, list, end) || n_live + n > slots_max(at, b)) break;
            n_live += n;
            n_pages++;
            page_class = finer_class(seq->cache, page_class, class_at(seq, list, end));
        }
        if (n_pages > 1) {
            plan->runs[plan->n_runs++] = (kv_compact_run){.shard = at->shard,
                                                          .first = b,
                                                          .end = end,
                                                          .target = plan->n_targets,
                                                          .is_coded = true};
            add_target(plan, b, n_live, page_class);
        }
        b = end;
    }
}

/* Targets of the plan's last runs: a page of one's own is written over, of another one a new one is made. */
static void find_targets(const list_at *at, kv_compact_plan *plan, uint32_t first)
{
    kv_cache *cache = at->seq->cache;
    for (uint32_t t = first; t < plan->n_targets; t++) {
        kv_compact_target *target = &plan->targets[t];
        const uint32_t page = kv_table_page(&at->seq->table, at->list, target->entry);
        if (kv_page_is_own(cache, page) && kv_pool_class(cache->pool, page) == target->page_class) {
            target->to = page;
        } else {
            cache->need[target->page_class]++;
        }
    }
}

/* Returns the number of runs of all heads; adds to cache->need the new pages that they ask for. */
static uint32_t plan_layer(const kv_seq *seq, uint32_t layer)
{
    kv_cache *cache = seq->cache;
    uint32_t n_runs = 0;
    memset(cache->need, 0, cache->n_classes * sizeof *cache->need);
    for (uint32_t h = 0; h < cache->n_kv_heads[layer]; h++) {
        kv_compact_plan *plan = &cache->evict.plans[h];
        plan->n_runs = plan->n_targets = 0;
        for (uint32_t s = 0; s < cache->n_shards; s++) {
            const list_at at = {seq, layer, s, kv_list(cache, layer, h, s)};
            const uint32_t first = plan->n_targets;
            plan_coded(&at, plan);
            plan_raw(&at, plan);
            find_targets(&at, plan, first);
        }
        n_runs += plan->n_runs;
    }
    return n_runs;
}

static void alloc_targets(const kv_seq *seq, uint32_t layer)
{
    const kv_cache *cache = seq->cache;
    for (uint32_t h = 0; h < cache->n_kv_heads[layer]; h++) {
        const kv_compact_plan *plan = &cache->evict.plans[h];
        for (uint32_t r = 0; r < plan->n_runs; r++) {
            const kv_compact_run *run = &plan->runs[r];
            const uint32_t list = kv_list(cache, layer, h, run->shard);
            for (uint32_t t = run->target; t < run->target + run->n_targets; t++) {
                kv_compact_target *target = &plan->targets[t];
                if (target->to != KV_PAGE_NONE) continue;
                const uint32_t page = kv_table_page(&seq->table, list, target->entry);
                const uint32_t on = kv_pool_leans_on(cache->pool, page);
                target->to = kv_pool_alloc_page(cache->pool, target->page_class, KV_HELD_BY_SEQ);
                assert(target->to != KV_PAGE_NONE);
                if (on != KV_PAGE_NONE) kv_pool_lean(cache->pool, target->to, on);
            }
        }
    }
}

/* ---- rows ---------------------------------------------------------------------------------------- */

/* Where the next row of a run goes. */
typedef struct cursor {
    const kv_compact_target *target;
    uint32_t slot;
} cursor;

static void step_cursor(cursor *at)
{
    if (++at->slot < at->target->n_slots) return;
    at->target++;
    at->slot = 0;
}

static void move_row(const kv_strip *strip, uint8_t *to, uint32_t slot, const attn_span *row)
{
    if (to + (size_t)slot * strip->k_stride_bytes == (const uint8_t *)row->k) return;
    kv_strip_write(strip, to, slot, row);
}

/* Rows of encoded pages are gathered beside them; raw ones go to their new places one by one. */
static void move_run(const compact_loop *loop, uint32_t head, const kv_compact_run *run,
                     uint32_t worker)
{
    kv_seq *seq = loop->seq;
    const kv_cache *cache = seq->cache;
    const kv_compact_plan *plan = &cache->evict.plans[head];
    const uint32_t list = kv_list(cache, loop->layer, head, run->shard);
    const kv_strip *strip = &cache->layout[cache->layer_class[loop->layer]].strip;
    uint8_t *gathered = cache->evict.workers[worker].gathered;
    cursor at = {.target = plan->targets + run->target};
    const kv_compact_target *first = at.target;
    for (uint32_t b = run->first; b < run->end; b++) {
        if (!has_page(seq, list, b)) continue;
        const size_t entry = kv_table_entry(&seq->table, list, b);
        const kv_page_place place = {loop->layer, head, seq->table.page[entry]};
        const attn_span from =
            kv_seq_load_page(seq, &place, kv_pool_pages(cache->pool)->n_slots[place.page], worker);
        for (uint64_t live = seq->table.live[entry]; live != 0; live &= live - 1) {
            const attn_span row = kv_span_cut(&from, (uint32_t)__builtin_ctzll(live), 1);
            uint8_t *to = run->is_coded ? gathered : kv_pool_data(cache->pool, at.target->to);
            move_row(strip, to, at.slot, &row);
            step_cursor(&at);
        }
    }
    if (!run->is_coded) return;
    const attn_span all = kv_strip_span(strip, gathered, 0, first->n_slots);
    kv_page_write(seq, &(kv_page_place){loop->layer, head, first->to}, &all, 1, worker);
}

static void move_jobs(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    const compact_loop *loop = ctx;
    const kv_cache *cache = loop->seq->cache;
    for (size_t h = begin; h < end; h++) {
        const kv_compact_plan *plan = &cache->evict.plans[h];
        for (uint32_t r = 0; r < plan->n_runs; r++)
            move_run(loop, (uint32_t)h, &plan->runs[r], worker);
    }
}

/* ---- bookkeeping --------------------------------------------------------------------------------- */

/* Goes once more through the rows of a run, for what is known of them. */
typedef struct replay {
    uint32_t entry;
    uint64_t live; /* of it, not taken yet */
} replay;

/* What a page is to hold. */
typedef struct page_rows {
    uint32_t positions[KV_PAGE_TOKENS_MAX];
    float biases[KV_PAGE_TOKENS_MAX]; /* valid if has_biases */
    bool has_biases;
    kv_uses uses;     /* of the pages that the rows come from */
    float importance; /* the same, the largest; heat.h */
} page_rows;

/* The next n rows. */
static void take_rows(const kv_seq *seq, uint32_t list, replay *r, uint32_t n, page_rows *out)
{
    const kv_cache *cache = seq->cache;
    const kv_table *table = &seq->table;
    const uint32_t *positions = kv_pool_pages(cache->pool)->positions;
    out->has_biases = false;
    out->uses = (kv_uses){0};
    out->importance = -INFINITY;
    for (uint32_t i = 0; i < n; i++) {
        while (r->live == 0)
            r->live = table->live[kv_table_entry(table, list, ++r->entry)];
        const uint32_t page = table->page[kv_table_entry(table, list, r->entry)];
        const uint32_t slot = (uint32_t)__builtin_ctzll(r->live);
        const float *biases = kv_pool_biases(cache->pool, page);
        const float *importance = kv_pool_importance(cache->pool, page);
        out->positions[i] = positions[(size_t)page * cache->page_tokens + slot];
        out->biases[i] = biases != NULL ? biases[slot] : 0;
        out->has_biases |= biases != NULL;
        if (importance != NULL) out->importance = fmaxf(out->importance, *importance);
        kv_uses_join(&out->uses, kv_observed_uses(seq, list, r->entry));
        r->live &= r->live - 1;
    }
}

/* The entry sees the target's page, full from its first slot. */
static void set_target(kv_seq *seq, uint32_t list, const kv_compact_target *target,
                       const page_rows *rows)
{
    const kv_cache *cache = seq->cache;
    const size_t entry = kv_table_entry(&seq->table, list, target->entry);
    const uint32_t from = seq->table.page[entry];
    const uint32_t owner = kv_pool_pages(cache->pool)->owner[from];
    kv_pool_rewrite(cache->pool, target->to, rows->positions, target->n_slots, owner);
    if (rows->has_biases) kv_pool_set_biases(cache->pool, target->to, rows->biases);
    if (kv_pool_importance(cache->pool, target->to) != NULL)
        *kv_pool_importance(cache->pool, target->to) = rows->importance;
    if (target->to != from) (void)kv_pool_drop(cache->pool, from, KV_HELD_BY_SEQ);
    seq->table.page[entry] = target->to;
    kv_table_see(&seq->table, list, target->entry, kv_slot_mask(target->n_slots));
    kv_observed_set_uses(seq, list, target->entry, rows->uses);
}

/* Targets come before what they are made from, or at it, so a source is read before it is changed. */
static void close_run(kv_seq *seq, uint32_t list, const kv_compact_plan *plan,
                      const kv_compact_run *run)
{
    kv_cache *cache = seq->cache;
    replay r = {.entry = run->first,
                .live = seq->table.live[kv_table_entry(&seq->table, list, run->first)]};
    const kv_compact_target *target = plan->targets + run->target;
    const kv_compact_target *end = target + run->n_targets;
    for (; target < end; target++) {
        page_rows rows;
        take_rows(seq, list, &r, target->n_slots, &rows);
        const bool is_partly_read = r.live != 0 && r.entry == target->entry;
        assert(!is_partly_read);
        set_target(seq, list, target, &rows);
        cache->stats.pages_compacted++;
    }
    target = plan->targets + run->target;
    for (uint32_t b = run->first; b < run->end; b++) {
        if (target < end && target->entry == b) {
            target++;
        } else {
            kv_count_evicted(
                seq, kv_table_drop_entry(&seq->table, cache->pool, list, b, KV_HELD_BY_SEQ));
        }
    }
}

static void box_jobs(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    const compact_loop *loop = ctx;
    const kv_cache *cache = loop->seq->cache;
    for (size_t h = begin; h < end; h++) {
        const kv_compact_plan *plan = &cache->evict.plans[h];
        for (uint32_t t = 0; t < plan->n_targets; t++)
            kv_page_box_write(
                cache, &(kv_page_place){loop->layer, (uint32_t)h, plan->targets[t].to}, worker);
    }
}

static err_t compact_layer(kv_seq *seq, uint32_t layer)
{
    kv_cache *cache = seq->cache;
    uint32_t n_runs;
    compact_loop loop = {.seq = seq, .layer = layer};
    /* Every object that is given up may leave pages to this sequence alone: planned again. */
    while ((n_runs = plan_layer(seq, layer)) > 0 && !kv_demote_until_room(cache)) {
        if (!kv_prefix_give_up_block(cache) && !kv_prefix_give_up_object(cache)) return ERR_KV_FULL;
    }
    if (n_runs == 0) return ERR_OK;
    const uint32_t n_heads = cache->n_kv_heads[layer];
    alloc_targets(seq, layer);
    parallel_for(cache->d->pool, n_heads, 1, move_jobs, &loop);
    for (uint32_t h = 0; h < n_heads; h++) {
        const kv_compact_plan *plan = &cache->evict.plans[h];
        for (uint32_t r = 0; r < plan->n_runs; r++)
            close_run(seq, kv_list(cache, layer, h, plan->runs[r].shard), plan, &plan->runs[r]);
    }
    kv_scatter_find_ends(seq, layer);
    parallel_for(cache->d->pool, cache->has_boxes ? n_heads : 0, 1, box_jobs, &loop);
    return ERR_OK;
}

err_t kv_compact(kv_seq *seq)
{
    for (uint32_t l = 0; l < seq->cache->n_layers; l++)
        TRY(compact_layer(seq, l));
    return ERR_OK;
}
