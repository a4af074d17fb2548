/* kvcache/compression/value_weight.h - what the output projection makes of a channel of values.
 *
 * The output of a layer is the sum over query heads g of W_g o_g, W_g being columns [g v_dim, (g + 1)
 * v_dim) of its output projection, so an error e in channel c of a value that the heads G read shows as
 *     e^2 w_c,   w_c = sum over g in G and rows i of W_g[i][c]^2. */
#ifndef KVCACHE_COMPRESSION_VALUE_WEIGHT_H
#define KVCACHE_COMPRESSION_VALUE_WEIGHT_H

#include "kvcache/kv_shape.h"

/* w of KV head `head`: [v_dim]. Reads all of the head's columns; at open. */
void kv_value_weight_fill(const kv_layer_shape *layer, uint32_t head, float *out);

#endif
