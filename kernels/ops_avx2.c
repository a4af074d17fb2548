/* kernels/ops_avx2.c - the fast ops for AVX2, FMA and F16C; compiled with its flags. */
#define SIMD_AVX2
#define OPS_TABLE dev_ops_avx2
#define OPS_NAME  "avx2"
#include "kernels/ops_simd.h"
