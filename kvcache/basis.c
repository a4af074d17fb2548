/* kvcache/basis.c - see basis.h. */
#include "kvcache/basis.h"

#include "kvcache/away.h"

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
    need[kv_basis_class(cache, layer)] += n * cache->n_kv_heads[layer];
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
        for (uint32_t h = 0; h < cache->n_kv_heads[l]; h++) {
            const uint32_t before = basis_before(seq, kv_list(cache, l, h, 0), end);
            cache->need[kv_basis_class(cache, l)] += !is_good(cache, before, end);
        }
    }
}

/* ---- making -------------------------------------------------------------------------------------- */

typedef struct fit_loop {
    kv_seq *seq;
    uint32_t first, end;
} fit_loop;

static void fit_list(const fit_loop *loop, uint32_t layer, uint32_t head, uint32_t worker)
{
    kv_seq *seq = loop->seq;
    const kv_cache *cache = seq->cache;
    const kv_pages *pages = kv_pool_pages(cache->pool);
    const uint32_t list = kv_list(cache, layer, head, 0);
    const uint32_t before = basis_before(seq, list, loop->end);
    kv_svd_fit *fit = &cache->own_bases.fits[worker];
    fit->shape = &cache->heads[layer];
    kv_svd_fit_begin(fit, before != KV_PAGE_NONE ? kv_pool_data(cache->pool, before) : NULL);
    for (uint32_t b = loop->first; b < loop->end; b++) {
        const uint32_t page = kv_table_page(&seq->table, list, b);
        if (page == KV_PAGE_NONE || kv_is_coded_page(cache, page)) continue;
        const uint8_t *data = kv_seq_read_page(seq, page, kv_landing(cache, worker));
        const attn_span span = kv_page_span(kv_layout_of(cache, page), data, pages->n_slots[page]);
        kv_svd_fit_add(fit, &span);
    }
    kv_svd_fit_end(fit, loop->end * cache->page_tokens,
                   kv_pool_data(cache->pool, cache->own_bases.page[list]));
}

/* Job i: head i of all layers' heads. */
static void fit_jobs(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    const fit_loop *loop = ctx;
    const kv_cache *cache = loop->seq->cache;
    size_t i = 0;
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        for (uint32_t h = 0; h < cache->n_kv_heads[l]; h++, i++) {
            if (i < begin || i >= end) continue;
            if (cache->own_bases.is_new[kv_list(cache, l, h, 0)]) fit_list(loop, l, h, worker);
        }
    }
}

static bool any_raw(const kv_seq *seq, uint32_t list, uint32_t first, uint32_t end)
{
    for (uint32_t b = first; b < end; b++) {
        const uint32_t page = kv_table_page(&seq->table, list, b);
        if (page != KV_PAGE_NONE && !kv_is_coded_page(seq->cache, page)) return true;
    }
    return false;
}

void kv_bases_begin(kv_seq *seq, uint32_t first, uint32_t end)
{
    kv_cache *cache = seq->cache;
    fit_loop loop = {.seq = seq, .first = first, .end = end};
    size_t n_heads = 0;
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        for (uint32_t h = 0; h < cache->n_kv_heads[l]; h++, n_heads++) {
            const uint32_t list = kv_list(cache, l, h, 0);
            uint32_t basis = basis_before(seq, list, end);
            const bool is_new = any_raw(seq, list, first, end) && !is_good(cache, basis, end);
            if (is_new)
                basis = kv_pool_alloc_page(cache->pool, kv_basis_class(cache, l), KV_HELD_BY_SEQ);
            assert(!is_new || basis != KV_PAGE_NONE);
            cache->own_bases.page[list] = basis;
            cache->own_bases.is_new[list] = is_new;
        }
    }
    parallel_for(cache->d->pool, n_heads, 1, fit_jobs, &loop);
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
