/* kvcache/compression/kept.c - see kept.h. Plain loops: a page is encoded once and read often. */
#include "kvcache/compression/kept.h"

#include "base/check.h"
#include "kvcache/compression/quant.h"

#include <math.h>

static uint32_t n_kept(uint32_t dim, double dropped)
{
    return dim - (uint32_t)((double)dim * dropped);
}

err_t kv_kept_layout(const kv_kept_shares *shares, const kv_head_shape *shape, uint32_t page_tokens,
                     kv_page_layout *out)
{
    *out = (kv_page_layout){.shape = *shape, .coding = ATTN_KEPT};
    if (shape->v_in_k)
        return ERR_UNSUPPORTED; /* a channel left out of a key would be one of its value */
    if (shape->k_dim > ATTN_CODED_DIM_MAX || shape->v_dim > ATTN_CODED_DIM_MAX)
        return ERR_UNSUPPORTED;
    TRY(kv_strip_init(shape, page_tokens, &out->strip));
    const uint32_t element_bytes = dtype_bytes(shape->type);
    out->k_row_bytes = n_kept(shape->k_dim, shares->k_dropped) * element_bytes;
    out->v_row_bytes = n_kept(shape->v_dim, shares->v_dropped) * element_bytes;
    out->k_grid_bytes = (shape->k_dim + 7) / 8;
    out->v_grid_bytes = (shape->v_dim + 7) / 8;
    size_t k_grid_offset;
    TRY(kv_page_add_part(out, out->k_grid_bytes, &k_grid_offset));
    TRY(kv_page_add_part(out, (size_t)page_tokens * out->k_row_bytes, &out->k_offset));
    TRY(kv_page_add_part(out, out->v_grid_bytes, &out->v_grid_offset));
    TRY(kv_page_add_part(out, (size_t)page_tokens * out->v_row_bytes, &out->v_offset));
    assert(k_grid_offset == 0);
    return kv_page_finish(out);
}

/* ---- sealing ------------------------------------------------------------------------------------- */

static const char *side_row(const attn_span *span, bool is_keys, uint32_t slot)
{
    return is_keys ? (const char *)span->k + (size_t)slot * span->k_stride_bytes
                   : (const char *)span->v + (size_t)slot * span->v_stride_bytes;
}

void kv_kept_energy(const kv_seal_args *args, bool is_keys, double *out)
{
    float x[ATTN_CODED_DIM_MAX];
    const kv_head_shape *shape = &args->layout->shape;
    const uint32_t dim = is_keys ? shape->k_dim : shape->v_dim;
    memset(out, 0, dim * sizeof *out);
    for (uint32_t s = 0; s < args->n_spans; s++) {
        for (uint32_t i = 0; i < args->spans[s].n_slots; i++) {
            kv_row_get(side_row(&args->spans[s], is_keys, i), shape->type, 0, dim, x);
            for (uint32_t c = 0; c < dim; c++)
                out[c] += (double)x[c] * (double)x[c];
        }
    }
}

/* Does c stay, if n do? Its place follows from the scores alone, however they are ordered. */
static bool is_among_best(const double *score, uint32_t dim, uint32_t c, uint32_t n)
{
    const double own = isnan(score[c]) ? INFINITY : score[c];
    uint32_t n_before = 0;
    for (uint32_t i = 0; i < dim; i++) {
        const double other = isnan(score[i]) ? INFINITY : score[i];
        n_before += other > own || (other == own && i < c);
    }
    return n_before < n;
}

/* One side: its bitmap, and its rows. */
static void seal_side(const kv_seal_args *args, bool is_keys, const double *score, uint8_t *grid,
                      uint8_t *rows)
{
    float x[ATTN_CODED_DIM_MAX];
    const kv_page_layout *layout = args->layout;
    const uint32_t dim = is_keys ? layout->shape.k_dim : layout->shape.v_dim;
    const uint32_t row_bytes = is_keys ? layout->k_row_bytes : layout->v_row_bytes;
    const uint32_t n = row_bytes / dtype_bytes(layout->shape.type);
    for (uint32_t c = 0; c < dim; c++)
        code_put(grid, 1, c, is_among_best(score, dim, c, n));
    for (uint32_t s = 0; s < args->n_spans; s++) {
        for (uint32_t i = 0; i < args->spans[s].n_slots; i++, rows += row_bytes) {
            uint32_t n_put = 0;
            kv_row_get(side_row(&args->spans[s], is_keys, i), layout->shape.type, 0, dim, x);
            for (uint32_t c = 0; c < dim; c++) {
                if (attn_is_kept(grid, c)) x[n_put++] = x[c];
            }
            assert(n_put == n);
            kv_row_put(x, layout->shape.type, 0, n, rows);
        }
    }
}

void kv_kept_seal(const kv_seal_args *args, const double *k_score, const double *v_score)
{
    const kv_page_layout *layout = args->layout;
    memset(args->page, 0, layout->page_bytes);
    seal_side(args, true, k_score, args->page, args->page + layout->k_offset);
    seal_side(args, false, v_score, args->page + layout->v_grid_offset,
              args->page + layout->v_offset);
}

/* ---- loading ------------------------------------------------------------------------------------- */

static void load_row(const uint8_t *from, const uint8_t *grid, uint32_t dim, dtype type, void *row)
{
    uint32_t n = 0;
    for (uint32_t c = 0; c < dim; c++) {
        float x = 0;
        if (attn_is_kept(grid, c)) kv_row_get(from, type, n++, 1, &x);
        kv_row_put(&x, type, c, 1, row);
    }
}

attn_span kv_kept_load(const kv_load_args *args)
{
    const kv_page_layout *layout = args->layout;
    const kv_strip *strip = &layout->strip;
    const kv_head_shape *shape = &layout->shape;
    for (uint32_t i = 0; i < args->n_slots; i++) {
        load_row(args->page + layout->k_offset + (size_t)i * layout->k_row_bytes, args->page,
                 shape->k_dim, shape->type, args->scratch + (size_t)i * strip->k_stride_bytes);
        load_row(args->page + layout->v_offset + (size_t)i * layout->v_row_bytes,
                 args->page + layout->v_grid_offset, shape->v_dim, shape->type,
                 args->scratch + strip->v_offset_bytes + (size_t)i * strip->v_stride_bytes);
    }
    return kv_strip_span(strip, args->scratch, 0, args->n_slots);
}
