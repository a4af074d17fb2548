/* kernels/ops_cuda.c - the table of ops_cuda.h. */
#include "kernels/dev_cuda_impl.h"

const cuda_ops cuda_ops_table = {
    .embed = embed_cuda,
    .rms_norm = rms_norm_cuda,
    .add_norm = add_norm_cuda,
    .layer_norm = layer_norm_cuda,
    .adjust = adjust_cuda,
    .rope = rope_cuda,
    .add = add_cuda,
    .matmul = matmul_cuda,
    .matmul_heads = matmul_heads_cuda,
    .router = router_cuda,
    .moe = moe_cuda,
    .deal_choices = deal_choices_cuda,
    .attend_pages = attend_pages_cuda,
    .choose_pages = choose_pages_cuda,
    .put_rows = put_rows_cuda,
    .encode_pages = encode_pages_cuda,
    .move_slots = move_slots_cuda,
    .merge_parts = merge_parts_cuda,
    .sample = sample_cuda,
};
