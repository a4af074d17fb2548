/* tests/kernels/golden_layer.c - see golden_layer.h. */
#include "tests/kernels/golden_layer.h"

#include <math.h>

double golden_uniform(uint64_t seed, uint64_t i, double scale)
{
    uint64_t z = seed + (i + 1) * UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
    z ^= z >> 31;
    return ((double)(z >> 11) * 0x1p-53 * 2 - 1) * scale;
}

/* One matrix: its stream and the size of its elements. */
typedef struct weights {
    uint64_t seed;
    double scale;
} weights;

/* Row t of the head's part of x W^T. */
static void project(weights w, uint32_t head, uint32_t t, double out[GOLDEN_DIM])
{
    for (uint32_t r = 0; r < GOLDEN_DIM; r++) {
        const uint64_t row = head * GOLDEN_DIM + r;
        out[r] = 0;
        for (uint32_t c = 0; c < GOLDEN_WIDTH; c++)
            out[r] += golden_uniform(w.seed, row * GOLDEN_WIDTH + c, w.scale) *
                      golden_uniform(1, t * GOLDEN_WIDTH + c, 1);
    }
}

static void rotate(double x[GOLDEN_DIM], uint32_t position)
{
    for (uint32_t c = 0; c < GOLDEN_DIM / 2; c++) {
        const double angle = position * pow(10000, -2.0 * c / GOLDEN_DIM);
        const double a = x[c], b = x[c + GOLDEN_DIM / 2];
        x[c] = a * cos(angle) - b * sin(angle);
        x[c + GOLDEN_DIM / 2] = b * cos(angle) + a * sin(angle);
    }
}

static void store(const double x[GOLDEN_DIM], float out[GOLDEN_DIM])
{
    for (uint32_t i = 0; i < GOLDEN_DIM; i++)
        out[i] = (float)x[i];
}

void golden_query_at(uint32_t head, uint32_t t, uint32_t position, float out[GOLDEN_DIM])
{
    double x[GOLDEN_DIM];
    project((weights){2, 0.75}, head, t, x);
    rotate(x, position);
    store(x, out);
}

void golden_query(uint32_t head, uint32_t t, float out[GOLDEN_DIM])
{
    golden_query_at(head, t, t, out);
}

void golden_key_at(uint32_t kv_head, uint32_t t, uint32_t position, float out[GOLDEN_DIM])
{
    double x[GOLDEN_DIM];
    project((weights){3, 0.75}, kv_head, t, x);
    rotate(x, position);
    store(x, out);
}

void golden_key(uint32_t kv_head, uint32_t t, float out[GOLDEN_DIM])
{
    golden_key_at(kv_head, t, t, out);
}

void golden_value(uint32_t kv_head, uint32_t t, float out[GOLDEN_DIM])
{
    double x[GOLDEN_DIM];
    project((weights){4, 0.5}, kv_head, t, x);
    store(x, out);
}

void golden_query_before_rope(uint32_t head, uint32_t t, float out[GOLDEN_DIM])
{
    double x[GOLDEN_DIM];
    project((weights){2, 0.75}, head, t, x);
    store(x, out);
}

void golden_out_proj(float *out)
{
    for (uint32_t i = 0; i < GOLDEN_WIDTH * GOLDEN_HEADS * GOLDEN_DIM; i++)
        out[i] = (float)golden_uniform(5, i, 0.5);
}
