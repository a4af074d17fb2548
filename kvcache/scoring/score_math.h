/* kvcache/scoring/score_math.h - sums over chunks of entries, and ends of the scale; for scorers.
 *
 * Chunks are turned over, one row a channel, so that one instruction works on several entries and
 * every sum still adds its terms channel by channel: the bits are the same on every machine that rounds
 * as IEEE 754 says. */
#ifndef KVCACHE_SCORING_SCORE_MATH_H
#define KVCACHE_SCORING_SCORE_MATH_H

#include "kvcache/scoring/scorer.h"

/* ---- chunks ---------------------------------------------------------------------------------------- */

/* Entries of the chunk that begins at `first`. */
static inline uint32_t kv_chunk_count(uint32_t n, uint32_t first)
{
    return n - first < KV_SCORE_CHUNK ? n - first : KV_SCORE_CHUNK;
}

/* columns[dim][KV_SCORE_CHUNK] = rows[count][dim] turned over; entries that are missing are 0. */
void kv_chunk_turn(const float *rows, uint32_t count, uint32_t dim, float *columns);

/* Of every entry i of a chunk: sum_c x[c] columns[c][i]. */
void kv_chunk_dots(const float *x, const float *columns, uint32_t dim, float out[KV_SCORE_CHUNK]);

/* sum_c (x[c] - columns[c][i])^2. */
void kv_chunk_distances(const float *x, const float *columns, uint32_t dim,
                        float out[KV_SCORE_CHUNK]);

/* sum_rc columns[r][i] m[r][c] columns[c][i]; m[dim][dim] is symmetric, its lower half is not read. */
void kv_chunk_forms(const float *m, const float *columns, uint32_t dim, float out[KV_SCORE_CHUNK]);

/* out[c] += scale x[c] */
void kv_row_add(float scale, const float *x, uint32_t dim, float *out);

/* sum_c x[c]^2. */
double kv_row_square(const float *x, uint32_t dim);

/* ---- the scale ------------------------------------------------------------------------------------- */

/* The nearest finite float; the lowest for NaN. */
float kv_score_finite(double x);

/* A score of attention, kept where differences of two are finite. NaN is the lowest. */
float kv_score_logit(float x);

/* Largest of x[n]; 0 if there is none. */
float kv_score_max(const float *x, uint32_t n);

/* x[n] becomes exp(x) / sum exp(x). */
void kv_score_softmax(float *x, uint32_t n);

/* A score above `most`: 1 more if floats are that fine. */
float kv_score_above(float most);

/* Entries [first, n) get scores above `most`, rising: the newest is worth most. */
void kv_score_recent(float *out, uint32_t first, uint32_t n, float most);

/* Number of entries before this position. */
uint32_t kv_score_n_before(const kv_score_view *view, uint32_t position);

#endif
