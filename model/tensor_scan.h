/* model/tensor_scan.h - NaN and Inf in a file's tensors, whatever they are there for. */
#ifndef MODEL_TENSOR_SCAN_H
#define MODEL_TENSOR_SCAN_H

#include "base/threads.h"
#include "model/safetensors.h"

typedef struct tensor_faults {
    uint64_t n_nan, n_inf;
    uint64_t
        first; /* index of the first of either, in row-major order; UINT64_MAX: there is none */
} tensor_faults;

/* Reads every value once, in parallel. Types without NaN and Inf have none: nothing is read. */
void tensor_scan(thread_pool *pool, const tensor *t, tensor_faults *out);

#endif
