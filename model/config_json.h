/* model/config_json.h - readers of config.json's members, for model_config_json.c, rope_json.c and the families.
 *
 * What is absent or null leaves the default that `out` holds, where it may be absent. What is of another kind, or
 * something that is not computed, is one line that names key and value. */
#ifndef MODEL_CONFIG_JSON_H
#define MODEL_CONFIG_JSON_H

#include "model/checked_json.h"
#include "model/model_config.h"

/* ERR_UNSUPPORTED: "config.json: KEY: VALUE is not supported". */
err_t config_refuse(const model_json_object *from, const char *key,
                    const struct cJSON *value) MUST_CHECK;

err_t config_read_bool(const model_json_object *from, const char *key, bool *out) MUST_CHECK;
err_t config_read_u32(const model_json_object *from, const char *key, const uint32_t limits[2],
                      uint32_t *out) MUST_CHECK;
err_t config_read_real(const model_json_object *from, const char *key, const double limits[2],
                       float *out) MUST_CHECK;

/* One of two words; *is_second: the second. */
err_t config_read_choice(const model_json_object *from, const char *key, const char *const words[2],
                         bool *is_second) MUST_CHECK;

/* A list of layers by number. */
err_t config_read_layers(const model_json_object *from, const char *key, uint32_t n_layers,
                         model_layer_set *out) MUST_CHECK;

/* layer_types: "full_attention" or "sliding_attention" for each layer; sets full_layers. */
err_t config_read_layer_types(const model_json_object *from, model_config *out) MUST_CHECK;

/* decoder_sparse_step and mlp_only_layers (Qwen): which layers are dense, and intermediate_size, their width. */
err_t config_read_sparse_steps(const model_json_object *from, model_config *out) MUST_CHECK;

/* Behind head_dim, rope.n_rotated and n_positions, which a scaling may raise. */
err_t config_read_rope(const model_json_object *from, model_config *out) MUST_CHECK;

enum { CONFIG_D_FFN_MAX = 1 << 20 };

#endif
