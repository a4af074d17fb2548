/* kernels/cuda_sizes.c - see cuda_sizes.h. */
#include "kernels/cuda_sizes.h"

#include "base/check.h"
#include "kernels/ops_cuda.h"

#include <stdio.h>

enum { ALIGN_BYTES = 256 };

static err_t take_array(size_t *at, size_t n, size_t each_bytes, size_t *out)
{
    size_t bytes;
    *out = *at;
    TRY(size_mul(n, each_bytes, &bytes));
    TRY(size_add(bytes, ALIGN_BYTES - 1, &bytes));
    return size_add(*at, bytes / ALIGN_BYTES * ALIGN_BYTES, at);
}

err_t cuda_moe_lay_out(size_t n_pairs, size_t dim, size_t ffn, size_t n_experts,
                       size_t at[CUDA_MOE_ARRAYS + 1])
{
    size_t total = 0, hidden, row;
    TRY(size_mul(ffn, sizeof(float), &hidden));
    TRY(size_mul(dim, sizeof(float), &row));
    TRY(take_array(&total, n_experts + 1, sizeof(uint32_t), &at[0]));
    TRY(take_array(&total, n_pairs, sizeof(uint32_t), &at[1]));
    TRY(take_array(&total, n_pairs, sizeof(uint32_t), &at[2]));
    TRY(take_array(&total, n_pairs, 2 * sizeof(uint32_t), &at[3])); /* a tile has a pair at least */
    TRY(take_array(&total, 1, sizeof(uint32_t), &at[4]));
    TRY(take_array(&total, n_pairs, hidden, &at[5]));
    TRY(take_array(&total, n_pairs, row, &at[6]));
    at[CUDA_MOE_ARRAYS] = total;
    return ERR_OK;
}

size_t cuda_moe_scratch_bytes(uint32_t n_tokens, uint32_t dim, uint32_t ffn, uint32_t n_experts,
                              uint32_t top_k)
{
    size_t n_pairs, at[CUDA_MOE_ARRAYS + 1];
    if (size_mul(n_tokens, top_k, &n_pairs) != ERR_OK) return 0;
    return cuda_moe_lay_out(n_pairs, dim, ffn, n_experts, at) == ERR_OK ? at[CUDA_MOE_ARRAYS] : 0;
}

size_t dev_cuda_limit(size_t total_bytes, size_t used_bytes, double share)
{
    const size_t allowed = (size_t)((double)total_bytes * share);
    return allowed > used_bytes ? allowed - used_bytes : 0;
}

err_t dev_cuda_check_room(size_t wanted_bytes, size_t in_use_bytes, size_t allowed_bytes,
                          uint32_t n_parts, err_info *info)
{
    char shared[48] = "";
    if (in_use_bytes <= allowed_bytes && wanted_bytes <= allowed_bytes - in_use_bytes)
        return ERR_OK;
    if (n_parts > 1) snprintf(shared, sizeof shared, ", one of %u parts of this GPU", n_parts);
    return err_set(info, ERR_NO_MEMORY,
                   "cuda: %zu more bytes do not fit: %zu of %zu allowed are in use%s", wanted_bytes,
                   in_use_bytes, allowed_bytes, shared);
}
