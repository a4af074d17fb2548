/* tests/kernels/golden_layer.h - a small attention layer whose numbers were computed elsewhere.
 *
 * Made from splitmix64 streams: 48 tokens or more, width 32, 4 query and 2 KV heads of 8 channels, RoPE with
 * base 10000. Published methods were run on it in float64; tests compare with what they returned. */
#ifndef TESTS_KERNELS_GOLDEN_LAYER_H
#define TESTS_KERNELS_GOLDEN_LAYER_H

#include <stdint.h>

enum { GOLDEN_TOKENS = 48, GOLDEN_WIDTH = 32, GOLDEN_DIM = 8, GOLDEN_HEADS = 4 };

/* The vectors of token t; queries and keys are rotated. */
void golden_query(uint32_t head, uint32_t t, float out[GOLDEN_DIM]);
void golden_key(uint32_t kv_head, uint32_t t, float out[GOLDEN_DIM]);
void golden_value(uint32_t kv_head, uint32_t t, float out[GOLDEN_DIM]);
/* Those of hidden state t as if it stood at another position. */
void golden_query_at(uint32_t head, uint32_t t, uint32_t position, float out[GOLDEN_DIM]);
void golden_key_at(uint32_t kv_head, uint32_t t, uint32_t position, float out[GOLDEN_DIM]);
void golden_query_before_rope(uint32_t head, uint32_t t, float out[GOLDEN_DIM]);

/* Number i of the stream `seed`, uniform in [-scale, scale). */
double golden_uniform(uint64_t seed, uint64_t i, double scale);

/* [GOLDEN_WIDTH][GOLDEN_HEADS * GOLDEN_DIM], applied to the outputs of the heads side by side. */
void golden_out_proj(float *out);

#endif
