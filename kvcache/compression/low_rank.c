/* kvcache/compression/low_rank.c - see low_rank.h. */
#include "kvcache/compression/low_rank.h"

#include "base/check.h"
#include "base/hash.h"
#include "kvcache/compression/quant.h"

err_t kv_low_rank_layout(const kv_head_shape *shape, uint32_t page_tokens, kv_page_layout *out)
{
    *out = (kv_page_layout){.shape = *shape, .coding = ATTN_PLAIN};
    if (shape->v_in_k) return ERR_UNSUPPORTED; /* a latent is of low rank already */
    if (shape->k_rank == 0 || shape->v_rank == 0) return ERR_UNSUPPORTED;
    if (shape->k_dim > ATTN_CODED_DIM_MAX || shape->v_dim > ATTN_CODED_DIM_MAX)
        return ERR_UNSUPPORTED;
    if (shape->k_rank > shape->k_dim || shape->v_rank > shape->v_dim) return ERR_UNSUPPORTED;
    const kv_head_shape narrow = {
        .k_dim = shape->k_rank, .v_dim = shape->v_rank, .type = shape->type};
    TRY(kv_strip_init(shape, page_tokens, &out->strip));
    TRY(kv_strip_init(&narrow, page_tokens, &out->coefficients));
    out->page_bytes = out->coefficients.strip_bytes;
    return kv_page_finish(out);
}

static uint64_t mark_basis(const kv_basis *basis, uint32_t n_kv_heads, uint32_t dim)
{
    static const hash_key key = {{0}}; /* public: it only tells bases apart */
    const size_t bytes = (size_t)n_kv_heads * basis->rank * dim * sizeof(float);
    return hash_bytes(&key, basis->down, bytes).lo * 31 + hash_bytes(&key, basis->up, bytes).lo;
}

uint64_t kv_low_rank_mark(const kv_layer_shape *layer, const kv_bases *bases)
{
    return mark_basis(&bases->k, layer->n_kv_heads, layer->k_dim) * 31 +
           mark_basis(&bases->v, layer->n_kv_heads, layer->v_dim);
}

void kv_low_rank_down(const float *m, uint32_t rank, uint32_t dim, const float *x, float *out)
{
    enum { N_SUMS = 8 }; /* beside each other, so that the compiler may use vectors */
    for (uint32_t r = 0; r < rank; r++, m += dim) {
        float sums[N_SUMS] = {0}, sum = 0;
        uint32_t c = 0;
        for (; c + N_SUMS <= dim; c += N_SUMS) {
            for (uint32_t i = 0; i < N_SUMS; i++)
                sums[i] += m[c + i] * x[c + i];
        }
        for (; c < dim; c++)
            sum += m[c] * x[c];
        for (uint32_t i = 0; i < N_SUMS; i++)
            sum += sums[i];
        out[r] = sum;
    }
}

void kv_low_rank_add_up(const float *m, uint32_t rank, uint32_t dim, const float *y, float *out)
{
    for (uint32_t r = 0; r < rank; r++, m += dim) {
        for (uint32_t c = 0; c < dim; c++)
            out[c] += y[r] * m[c];
    }
}

void kv_low_rank_seal(const kv_seal_args *args, kv_low_rank_encode *encode)
{
    float x[ATTN_CODED_DIM_MAX], c[ATTN_CODED_DIM_MAX];
    const kv_head_bases *b = &args->bases;
    const kv_head_shape *shape = &args->layout->shape;
    const kv_strip *to = &args->layout->coefficients;
    const kv_low_rank_side keys = {b->k_down, b->k_up, shape->k_rank, shape->k_dim, true};
    const kv_low_rank_side values = {b->v_down, b->v_up, shape->v_rank, shape->v_dim, false};
    uint8_t *k = args->page, *v = args->page + to->v_offset_bytes;
    memset(args->page, 0, args->layout->page_bytes);
    for (uint32_t s = 0; s < args->n_spans; s++) {
        const attn_span *span = &args->spans[s];
        const char *k_row = span->k, *v_row = span->v;
        for (uint32_t i = 0; i < span->n_slots; i++) {
            kv_row_get(k_row, shape->type, 0, shape->k_dim, x);
            encode(&keys, x, c);
            kv_row_put(c, shape->type, 0, shape->k_rank, k);
            kv_row_get(v_row, shape->type, 0, shape->v_dim, x);
            encode(&values, x, c);
            kv_row_put(c, shape->type, 0, shape->v_rank, v);
            k_row += span->k_stride_bytes;
            v_row += span->v_stride_bytes;
            k += to->k_stride_bytes;
            v += to->v_stride_bytes;
        }
    }
}

static void load_row(const void *from, const float *up, uint32_t rank, uint32_t dim, dtype type,
                     void *row)
{
    float y[ATTN_CODED_DIM_MAX], x[ATTN_CODED_DIM_MAX];
    kv_row_get(from, type, 0, rank, y);
    memset(x, 0, dim * sizeof *x);
    kv_low_rank_add_up(up, rank, dim, y, x);
    kv_row_put(x, type, 0, dim, row);
}

attn_span kv_low_rank_load(const kv_load_args *args)
{
    const kv_strip *from = &args->layout->coefficients, *to = &args->layout->strip;
    const kv_head_shape *shape = &args->layout->shape;
    for (uint32_t i = 0; i < args->n_slots; i++) {
        load_row(args->page + (size_t)i * from->k_stride_bytes, args->bases.k_up, shape->k_rank,
                 shape->k_dim, shape->type, args->scratch + (size_t)i * to->k_stride_bytes);
        load_row(args->page + from->v_offset_bytes + (size_t)i * from->v_stride_bytes,
                 args->bases.v_up, shape->v_rank, shape->v_dim, shape->type,
                 args->scratch + to->v_offset_bytes + (size_t)i * to->v_stride_bytes);
    }
    return kv_strip_span(to, args->scratch, 0, args->n_slots);
}
