/* kernels/ops_simd.h - the fast ops and their table: `OPS_TABLE`, called `OPS_NAME`. */
#include "kernels/attention_simd.c"
#include "kernels/elementwise_simd.c"
#include "kernels/key_bounds_simd.c"
#include "kernels/matmul_simd.c"
#include "kernels/moe_simd.c"

const dev_ops OPS_TABLE = {.name = OPS_NAME,
                           .embed = embed_simd,
                           .rms_norm = rms_norm_simd,
                           .layer_norm = layer_norm_simd,
                           .adjust = adjust_simd,
                           .rope = rope_simd,
                           .matmul = matmul_simd,
                           .matmul_heads = matmul_heads_simd,
                           .router = router_simd,
                           .moe = moe_simd,
                           .moe_scratch_bytes = moe_scratch_bytes,
                           .add = add_cpu,
                           .deal_choices = deal_choices_cpu,
                           .attend = attend_simd,
                           .attend_mass = attend_mass_simd,
                           .attend_max = attend_max_simd,
                           .key_bounds = key_bounds_simd,
                           .store = store_simd};
