/* kvcache/basis.c - see basis.h. */
#include "kvcache/basis.h"

#include "kvcache/away.h"
#include "kvcache/page_changes.h"

/* ---- open ---------------------------------------------------------------------------------------- */

static void place_fits(arena *a, const kv_cache *cache, kv_own_bases *out)
{
    size_t k_dim = 0, v_dim = 0;
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        k_dim = max_size(k_dim, cache->heads[l].k_dim);
        v_dim = max_size(v_dim, cache->heads[l].v_dim);
    }
    const uint32_t n_workers = thread_pool_n_threads(cache->d->pool);
    kv_svd_fit *fits = arena_take(a, n_workers, sizeof *fits);
    for (uint32_t w = 0; w < n_workers; w++) {
        const kv_svd_fit placed = {.k = arena_take(a, k_dim, k_dim * sizeof(double)),
                                   .v = arena_take(a, v_dim, v_dim * sizeof(double))};
        if (fits != NULL) fits[w] = placed;
    }
    out->fits = fits;
}

void kv_own_bases_place(arena *a, const kv_cache *cache, kv_own_bases *out)
{
    if (out->first_class == KV_CLASS_NONE) return;
    for (uint32_t l = 0; l < cache->n_layers; l++)
        out->n_floats = max_size(out->n_floats, kv_svd_n_floats(&cache->heads[l]));
    out->page = arena_take(a, cache->n_lists, sizeof *out->page);
    out->is_new = arena_take(a, cache->n_lists, sizeof *out->is_new);
    place_fits(a, cache, out);
}

/* Adds what one codec's coefficients ask for. */
static void add_low_sizes(const kv_cache *cache, uint32_t codec, kv_low_sizes *sizes)
{
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        const uint32_t page_class = cache->first_class[codec] + cache->layer_class[l];
        const kv_head_shape *head = &cache->layout[page_class].shape;
        sizes->k_rank = (uint32_t)max_size(sizes->k_rank, head->k_rank);
        sizes->v_rank = (uint32_t)max_size(sizes->v_rank, head->v_rank);
        sizes->v_dim = (uint32_t)max_size(sizes->v_dim, head->v_dim);
    }
}

kv_low_sizes kv_low_sizes_of(const kv_cache *cache, size_t n_rows)
{
    kv_low_sizes sizes = {.n_floats = cache->own_bases.n_floats};
    for (uint32_t codec = 0; kv_codecs[codec] != NULL; codec++) {
        if (!kv_codec_is_low_rank(kv_codecs[codec]) || cache->first_class[codec] == KV_CLASS_NONE)
            continue;
        sizes.n_rows = n_rows;
        add_low_sizes(cache, codec, &sizes);
    }
    return sizes;
}

/* ---- reading ------------------------------------------------------------------------------------- */

kv_head_bases kv_page_bases(const kv_cache *cache, const kv_page_place *at, float *floats)
{
    const kv_codec *codec = kv_codec_of(cache, at->page);
    if (codec->has_own_bases) {
        const uint32_t basis = kv_pool_leans_on(cache->pool, at->page);
        return kv_svd_read(&cache->heads[at->layer], kv_pool_data(cache->pool, basis), floats);
    }
    if (codec->bases == NULL) return (kv_head_bases){0};
    const kv_bases *bases = codec->bases(&cache->layer[at->layer]);
    const size_t k = (size_t)at->head * bases->k.rank * cache->layer[at->layer].k_dim;
    const size_t v = (size_t)at->head * bases->v.rank * cache->layer[at->layer].v_dim;
    return (kv_head_bases){.k_down = bases->k.down + k,
                           .k_up = bases->k.up + k,
                           .v_down = bases->v.down + v,
                           .v_up = bases->v.up + v};
}

/* ---- room ---------------------------------------------------------------------------------------- */

void kv_basis_need_blocks(const kv_cache *cache, uint32_t layer, uint64_t n_blocks, uint64_t *need)
{
    uint64_t n = 0;
    for (; n_blocks > 0; n_blocks /= 2)
        n++;
    need[kv_basis_class(cache, layer)] += n * cache->n_kv_heads[layer] * kv_n_own_shards(cache);
}

/* The basis of the last encoded page among blocks [0, end), or KV_PAGE_NONE. */
static uint32_t basis_before(const kv_seq *seq, uint32_t list, uint32_t end)
{
    const kv_cache *cache = seq->cache;
    for (uint32_t b = end; b-- > 0;) {
        const uint32_t page = kv_table_page(&seq->table, list, b);
        if (page != KV_PAGE_NONE && kv_is_coded_page(cache, page))
            return kv_pool_leans_on(cache->pool, page);
    }
    return KV_PAGE_NONE;
}

/* Is a basis that so many entries have seen still good at the end of `end` blocks? */
static bool is_good(const kv_cache *cache, uint32_t basis, uint32_t end)
{
    if (basis == KV_PAGE_NONE) return false;
    const uint64_t n_seen = kv_svd_n_entries(kv_pool_data(cache->pool, basis));
    return (uint64_t)end * cache->page_tokens < 2 * n_seen;
}

void kv_basis_need(const kv_seq *seq, uint32_t end)
{
    const kv_cache *cache = seq->cache;
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        for (uint32_t i = 0; i < cache->n_kv_heads[l] * cache->n_shards; i++) {
            if (!kv_is_own_shard(cache, i % cache->n_shards)) continue;
            const uint32_t before = basis_before(seq, kv_list(cache, l, 0, 0) + i, end);
            cache->need[kv_basis_class(cache, l)] += !is_good(cache, before, end);
        }
    }
}

/* ---- making -------------------------------------------------------------------------------------- */

/* One list of pages, some of which are encoded now. */
typedef struct list_at {
    uint32_t layer, shard, list;
} list_at;

/* The list with this number. */
static list_at find_list(const kv_cache *cache, uint32_t list)
{
    uint32_t layer = cache->n_layers - 1;
    while (cache->first_list[layer] > list)
        layer--;
    return (list_at){layer, (list - cache->first_list[layer]) % cache->n_shards, list};
}

/* The raw page of a block that is encoded now, or KV_PAGE_NONE. */
static uint32_t raw_page(const kv_seq *seq, const list_at *at, uint32_t block,
                         const kv_encoded *blocks)
{
    const kv_page_at page = {at->shard, block, kv_table_page(&seq->table, at->list, block)};
    return kv_encodes(seq, at->layer, &page, blocks) ? page.page : KV_PAGE_NONE;
}

typedef struct fit_loop {
    kv_seq *seq;
    const kv_encoded *blocks;
} fit_loop;

static void fit_list(const fit_loop *loop, const list_at *at, uint32_t worker)
{
    kv_seq *seq = loop->seq;
    const kv_cache *cache = seq->cache;
    const kv_pages *pages = kv_pool_pages(cache->pool);
    const uint32_t end = loop->blocks->end, before = basis_before(seq, at->list, end);
    kv_svd_fit *fit = &cache->own_bases.fits[worker];
    fit->shape = &cache->heads[at->layer];
    kv_svd_fit_begin(fit, before != KV_PAGE_NONE ? kv_pool_data(cache->pool, before) : NULL);
    for (uint32_t b = 0; b < end; b++) {
        const uint32_t page = raw_page(seq, at, b, loop->blocks);
        if (page == KV_PAGE_NONE) continue;
        const uint8_t *data = kv_seq_read_page(seq, page, kv_landing(cache, worker));
        const attn_span span = kv_page_span(kv_layout_of(cache, page), data, pages->n_slots[page]);
        kv_svd_fit_add(fit, &span);
    }
    kv_svd_fit_end(fit, end * cache->page_tokens,
                   kv_pool_data(cache->pool, cache->own_bases.page[at->list]));
}

/* Job i: list i. */
static void fit_jobs(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    const fit_loop *loop = ctx;
    const kv_cache *cache = loop->seq->cache;
    for (size_t i = begin; i < end; i++) {
        const list_at at = find_list(cache, (uint32_t)i);
        if (cache->own_bases.is_new[i]) fit_list(loop, &at, worker);
    }
}

static bool any_raw(const kv_seq *seq, const list_at *at, const kv_encoded *blocks)
{
    for (uint32_t b = 0; b < blocks->end; b++) {
        if (raw_page(seq, at, b, blocks) != KV_PAGE_NONE) return true;
    }
    return false;
}

void kv_bases_begin(kv_seq *seq, const kv_encoded *blocks)
{
    kv_cache *cache = seq->cache;
    fit_loop loop = {.seq = seq, .blocks = blocks};
    for (uint32_t list = 0; list < cache->n_lists; list++) {
        const list_at at = find_list(cache, list);
        uint32_t basis = basis_before(seq, list, blocks->end);
        const bool is_new = any_raw(seq, &at, blocks) && !is_good(cache, basis, blocks->end);
        if (is_new)
            basis =
                kv_pool_alloc_page(cache->pool, kv_basis_class(cache, at.layer), KV_HELD_BY_SEQ);
        assert(!is_new || basis != KV_PAGE_NONE);
        cache->own_bases.page[list] = basis;
        cache->own_bases.is_new[list] = is_new;
    }
    parallel_for(cache->d->pool, cache->n_lists, 1, fit_jobs, &loop);
    for (uint32_t list = 0; list < cache->n_lists; list++) {
        if (cache->own_bases.is_new[list])
            kv_pool_note_change(cache->pool, cache->own_bases.page[list]);
    }
}

void kv_bases_end(kv_seq *seq)
{
    const kv_cache *cache = seq->cache;
    for (uint32_t list = 0; list < cache->n_lists; list++) {
        if (!cache->own_bases.is_new[list]) continue;
        const bool is_freed =
            kv_pool_drop(cache->pool, cache->own_bases.page[list], KV_HELD_BY_SEQ);
        assert(!is_freed); /* there was a raw page, which leans on it now */
    }
}
