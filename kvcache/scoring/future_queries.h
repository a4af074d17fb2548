/* kvcache/scoring/future_queries.h - queries to come, if they are like those so far: their rotation, averaged
 * over the positions ahead (Devoto et al., Expected Attention, 2025).
 *
 * R = mean of the rotations of positions [position, position + n): in every pair of channels a turn by the
 * angle of the middle, shortened. So R m is the mean query of those positions if m is the mean before RoPE. */
#ifndef KVCACHE_SCORING_FUTURE_QUERIES_H
#define KVCACHE_SCORING_FUTURE_QUERIES_H

#include "kvcache/scoring/scorer.h"

/* turn[2][rope->n / 2]: cosines and sines of R, the rotation's scale included. */
void kv_future_turn(const kv_rope *rope, uint32_t position, uint32_t n, float *turn);

/* The vector x[0], x[stride], ... becomes R x. */
void kv_future_rotate(const kv_rope *rope, const float *turn, float *x, uint32_t stride);

#endif
