/* kernels/ops_avx512.c - the fast ops for AVX-512 F, BW, VL and DQ; compiled with its flags. */
#define SIMD_AVX512
#define OPS_TABLE dev_ops_avx512
#define OPS_NAME  "avx512"
#include "kernels/ops_simd.h"
