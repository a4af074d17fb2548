/* kernels/ops_avx2_wide.c - the fast ops for 16 lanes of AVX2 register pairs; compiled with its flags. */
#define SIMD_AVX2_WIDE
#define OPS_TABLE dev_ops_avx2_wide
#define OPS_NAME  "avx2_wide"
#include "kernels/ops_simd.h"
