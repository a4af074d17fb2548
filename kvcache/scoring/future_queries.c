/* kvcache/scoring/future_queries.c - see future_queries.h. */
#include "kvcache/scoring/future_queries.h"

#include <math.h>

/* The mean of exp(i angle) over n positions in a row is exp(i angle) of their middle, times
 * sin(n freq / 2) / (n sin(freq / 2)). */
void kv_future_turn(const kv_rope *rope, uint32_t position, uint32_t n, float *turn)
{
    const uint32_t n_pairs = rope->n / 2;
    for (uint32_t c = 0; c < n_pairs; c++) {
        const double half = (double)rope->freq[c] / 2;
        const double whole = n * sin(half);
        const double length = fabs(whole) < 1e-300 ? 1 : sin(n * half) / whole;
        const double angle = (position + (n - 1) / 2.0) * (double)rope->freq[c];
        turn[c] = (float)(length * cos(angle) * (double)rope->scale);
        turn[n_pairs + c] = (float)(length * sin(angle) * (double)rope->scale);
    }
}

void kv_future_rotate(const kv_rope *rope, const float *turn, float *x, uint32_t stride)
{
    const uint32_t n_pairs = rope->n / 2;
    for (uint32_t c = 0; c < n_pairs; c++) {
        float *low = x + (size_t)(rope->first + (rope->is_interleaved ? 2 * c : c)) * stride;
        float *high = low + (size_t)(rope->is_interleaved ? 1 : n_pairs) * stride;
        const float a = *low, b = *high;
        *low = turn[c] * a - turn[n_pairs + c] * b;
        *high = turn[n_pairs + c] * a + turn[c] * b;
    }
}
