/* model/quantisation.h - how a checkpoint's weights are coded: config.json's quantization_config.
 *
 *   fp8     E4M3 codes X.weight and scales X.weight_scale_inv, one for weight_block_size rows and columns
 *           (DeepSeek-V3, Qwen3-FP8), or one for the tensor (X.weight_scale)
 *   mxfp4   experts alone: X_blocks [..][rows][cols / 32][16] and X_scales [..][rows][cols / 32] (gpt-oss)
 *
 * Only weights are coded here: activations stay f32, which is more exact than the fp8 activations that
 * `activation_scheme` speaks of, so that key and its scales change nothing. Which tensors are coded, the
 * checkpoint's own types say; modules_to_not_convert repeats that. */
#ifndef MODEL_QUANTISATION_H
#define MODEL_QUANTISATION_H

#include "model/checked_json.h"

#include <stdint.h>

typedef enum quantisation_method {
    QUANTISATION_NONE,
    QUANTISATION_FP8,
    QUANTISATION_MXFP4
} quantisation_method;

typedef struct quantisation {
    quantisation_method method;
    uint32_t block_rows, block_cols; /* of a scale of fp8; 0: the whole tensor */
} quantisation;

/* ERR_UNSUPPORTED names key and value of what this build does not read. No quantization_config: NONE. */
err_t quantisation_read(const model_json_object *from, quantisation *out) MUST_CHECK;

#endif
