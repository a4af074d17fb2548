/* kvcache/scoring/score_math.c - see score_math.h.
 *
 * LANES entries at a time fit the registers of the smallest machine beside what they are multiplied
 * with. */
#include "kvcache/scoring/score_math.h"

#include <float.h>
#include <math.h>

enum { LANES = 16 };
_Static_assert(KV_SCORE_CHUNK % LANES == 0, "a chunk is a whole number of lanes");

/* Differences of two are finite, and exp of them 0 or 1. */
static const float LOGIT_MOST = 1e30f;

/* ---- chunks ---------------------------------------------------------------------------------------- */

void kv_chunk_turn(const float *rows, uint32_t count, uint32_t dim, float *columns)
{
    for (uint32_t c = 0; c < dim; c++) {
        float *column = columns + (size_t)c * KV_SCORE_CHUNK;
        for (uint32_t i = 0; i < count; i++)
            column[i] = rows[(size_t)i * dim + c];
        for (uint32_t i = count; i < KV_SCORE_CHUNK; i++)
            column[i] = 0;
    }
}

void kv_chunk_dots(const float *x, const float *columns, uint32_t dim, float out[KV_SCORE_CHUNK])
{
    for (uint32_t first = 0; first < KV_SCORE_CHUNK; first += LANES) {
        float sum[LANES] = {0};
        for (uint32_t c = 0; c < dim; c++) {
            const float *column = columns + (size_t)c * KV_SCORE_CHUNK + first;
            for (uint32_t i = 0; i < LANES; i++)
                sum[i] += x[c] * column[i];
        }
        for (uint32_t i = 0; i < LANES; i++)
            out[first + i] = sum[i];
    }
}

/* Sums in memory: gcc 12 keeps those of differences in registers one by one. */
void kv_chunk_distances(const float *x, const float *columns, uint32_t dim,
                        float out[KV_SCORE_CHUNK])
{
    float sum[KV_SCORE_CHUNK] = {0};
    for (uint32_t c = 0; c < dim; c++) {
        const float *column = columns + (size_t)c * KV_SCORE_CHUNK;
        for (uint32_t i = 0; i < KV_SCORE_CHUNK; i++)
            sum[i] += (x[c] - column[i]) * (x[c] - column[i]);
    }
    for (uint32_t i = 0; i < KV_SCORE_CHUNK; i++)
        out[i] = sum[i];
}

void kv_chunk_forms(const float *m, const float *columns, uint32_t dim, float out[KV_SCORE_CHUNK])
{
    for (uint32_t first = 0; first < KV_SCORE_CHUNK; first += LANES) {
        float sum[LANES] = {0};
        for (uint32_t r = 0; r < dim; r++) {
            const float *row = m + (size_t)r * dim;
            const float *here = columns + (size_t)r * KV_SCORE_CHUNK + first;
            float rest[LANES] = {0};
            for (uint32_t c = r + 1; c < dim; c++) {
                const float *column = columns + (size_t)c * KV_SCORE_CHUNK + first;
                for (uint32_t i = 0; i < LANES; i++)
                    rest[i] += row[c] * column[i];
            }
            for (uint32_t i = 0; i < LANES; i++)
                sum[i] += here[i] * (row[r] * here[i] + 2 * rest[i]);
        }
        for (uint32_t i = 0; i < LANES; i++)
            out[first + i] = sum[i];
    }
}

void kv_row_add(float scale, const float *x, uint32_t dim, float *out)
{
    for (uint32_t c = 0; c < dim; c++)
        out[c] += scale * x[c];
}

double kv_row_square(const float *x, uint32_t dim)
{
    double sum = 0;
    for (uint32_t c = 0; c < dim; c++)
        sum += (double)x[c] * (double)x[c];
    return sum;
}

/* ---- the scale ------------------------------------------------------------------------------------- */

float kv_score_finite(double x)
{
    return (float)fmin(fmax(x, -(double)FLT_MAX), (double)FLT_MAX);
}

float kv_score_logit(float x)
{
    return fminf(fmaxf(x, -LOGIT_MOST), LOGIT_MOST);
}

float kv_score_max(const float *x, uint32_t n)
{
    float most = n == 0 ? 0 : x[0];
    for (uint32_t i = 1; i < n; i++)
        most = x[i] > most ? x[i] : most;
    return most;
}

void kv_score_softmax(float *x, uint32_t n)
{
    const float most = kv_score_max(x, n);
    double sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        x[i] = expf(x[i] - most);
        sum += (double)x[i];
    }
    for (uint32_t i = 0; i < n; i++)
        x[i] = (float)((double)x[i] / sum);
}

float kv_score_above(float most)
{
    return fminf(fmaxf(most + 1, nextafterf(most, INFINITY)), FLT_MAX);
}

void kv_score_recent(float *out, uint32_t first, uint32_t n, float most)
{
    float score = kv_score_above(most);
    for (uint32_t i = first; i < n; i++) {
        out[i] = score;
        score = nextafterf(score, FLT_MAX);
    }
}

uint32_t kv_score_n_before(const kv_score_view *view, uint32_t position)
{
    uint32_t low = 0, high = view->n;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (view->positions[middle] < position)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}
