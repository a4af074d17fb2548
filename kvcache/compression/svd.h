/* kvcache/compression/svd.h - bases of a sequence's own, for the codec `svd`.
 *
 * The r leading directions of the entries themselves (Eckart and Young 1936: no basis of r directions loses
 * less of them, sum_{i>r} sigma_i^2), keys after RoPE as they are cached, not centred. They are the leading
 * eigenvectors of X^T X, so entries are added one by one and none is kept. What comes after a basis was
 * made is projected on it; a later one counts what its predecessor saw as sigma_i^2 along direction i.
 *
 * A basis in memory:  | header | k rows [k_rank][k_dim] | v rows [v_rank][v_dim] | k sigma^2 | v sigma^2 |
 * rows in the cache type, since the coefficients are no finer, sigma^2 in f32. */
#ifndef KVCACHE_COMPRESSION_SVD_H
#define KVCACHE_COMPRESSION_SVD_H

#include "kvcache/compression/codec.h"

/* Half of the channels. */
static inline uint32_t kv_svd_rank(uint32_t dim)
{
    return (dim + 1) / 2;
}

/* Bytes of a basis. ERR_OVERFLOW. */
err_t kv_svd_basis_bytes(const kv_head_shape *shape, size_t *bytes) MUST_CHECK;

/* While one is made. */
typedef struct kv_svd_fit {
    const kv_head_shape *shape;
    double *k, *v; /* [dim][dim] each: X^T X so far */
} kv_svd_fit;

/* `before`: the basis that came before, or NULL. */
void kv_svd_fit_begin(kv_svd_fit *fit, const uint8_t *before);
/* All slots of the span, in the cache type. */
void kv_svd_fit_add(kv_svd_fit *fit, const attn_span *span);
/* Writes the basis; n_entries is for kv_svd_n_entries. */
void kv_svd_fit_end(kv_svd_fit *fit, uint32_t n_entries, uint8_t *basis);

/* Where a basis has its rows. */
typedef struct kv_svd_rows {
    size_t k_offset, v_offset;
} kv_svd_rows;
kv_svd_rows kv_svd_find_rows(const kv_head_shape *shape);

/* The number of entries that the maker of the basis has told. */
uint32_t kv_svd_n_entries(const uint8_t *basis);

/* Numbers that kv_svd_read writes. */
static inline size_t kv_svd_n_floats(const kv_head_shape *shape)
{
    return (size_t)kv_svd_rank(shape->k_dim) * shape->k_dim +
           (size_t)kv_svd_rank(shape->v_dim) * shape->v_dim;
}

/* The basis as codecs and readers use it; points into floats [kv_svd_n_floats]. */
kv_head_bases kv_svd_read(const kv_head_shape *shape, const uint8_t *basis, float *floats);

#endif
