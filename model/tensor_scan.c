/* model/tensor_scan.c - see tensor_scan.h. */
#include "model/tensor_scan.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

enum { SCAN_GRAIN = 1 << 16 };

/* A value's bits: exponents that are all ones are Inf with a mantissa of zeros, else NaN. */
typedef struct value_format {
    uint64_t exponent, mantissa;
    bool has_inf; /* else only ones in all of both are NaN */
} value_format;

static const value_format formats[TENSOR_TYPE_COUNT] = {
    [TENSOR_F8_E4M3] = {0x78, 0x07, false},
    [TENSOR_F8_E5M2] = {0x7c, 0x03, true},
    [TENSOR_F16] = {0x7c00, 0x03ff, true},
    [TENSOR_BF16] = {0x7f80, 0x007f, true},
    [TENSOR_F32] = {0x7f800000, 0x007fffff, true},
    [TENSOR_F64] = {0x7ff0000000000000, 0x000fffffffffffff, true},
};

typedef struct scan {
    const uint8_t *data;
    uint32_t value_bytes;
    value_format format;
    atomic_uint_fast64_t n_nan, n_inf, first;
} scan;

/* The format is little-endian, and so are the machines that this runs on. */
static uint64_t bits_at(const scan *s, size_t i)
{
    uint64_t bits = 0;
    memcpy(&bits, s->data + i * s->value_bytes, s->value_bytes);
    return bits;
}

static void note_first(scan *s, uint64_t i)
{
    uint_fast64_t known = atomic_load(&s->first);
    while (i < known && !atomic_compare_exchange_weak(&s->first, &known, i)) {
    }
}

static void scan_values(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    (void)worker;
    scan *const s = ctx;
    const value_format f = s->format;
    uint64_t n_nan = 0, n_inf = 0;
    for (size_t i = begin; i < end; i++) {
        const uint64_t bits = bits_at(s, i);
        if ((bits & f.exponent) != f.exponent) continue;
        const uint64_t rest = bits & f.mantissa;
        if (!f.has_inf && rest != f.mantissa) continue;
        if (n_nan + n_inf == 0) note_first(s, i);
        if (f.has_inf && rest == 0)
            n_inf++;
        else
            n_nan++;
    }
    atomic_fetch_add(&s->n_nan, n_nan);
    atomic_fetch_add(&s->n_inf, n_inf);
}

void tensor_scan(thread_pool *pool, const tensor *t, tensor_faults *out)
{
    scan s = {.data = t->data,
              .value_bytes = tensor_type_bytes(t->type),
              .format = formats[t->type],
              .first = UINT64_MAX};
    if (s.format.exponent != 0)
        parallel_for(pool, t->data_bytes / s.value_bytes, SCAN_GRAIN, scan_values, &s);
    *out = (tensor_faults){.n_nan = s.n_nan, .n_inf = s.n_inf, .first = s.first};
}
