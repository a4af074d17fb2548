/* model/kv_bases.h - the bases of low-rank page codecs, from a file beside the model.
 *
 * DIR/kv_bases.safetensors is made by tools/calibrate_kv.py and need not be there. For a codec NAME (lora,
 * lora_plus) and every layer l it has
 *
 *     NAME.l.k_down, NAME.l.k_up   F32 [n_kv_heads][rank][k_dim]
 *     NAME.l.v_down, NAME.l.v_up   F32 [n_kv_heads][rank][v_dim]
 *
 * with ranks that may differ between layers and between keys and values; what they mean is in
 * kvcache/compression/low_rank.h and lora_plus.c. A codec of which it has nothing has no bases; one of
 * which it has a part is ERR_BAD_MODEL, as are other shapes or types, ranks outside [1, dim], and
 * numbers that are not finite. */
#ifndef MODEL_KV_BASES_H
#define MODEL_KV_BASES_H

#include "base/error.h"
#include "kvcache/kv_shape.h"

/* Fills lora and lora_plus of layers[n_layers], which point into *values, a block that the caller frees
 * after the last cache; NULL if there is no file. */
err_t model_kv_bases_load(const char *dir, kv_layer_shape *layers, uint32_t n_layers,
                          float **values, err_info *info) MUST_CHECK;

#endif
