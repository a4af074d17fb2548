/* model/weights_scaled.h - weights with scales: where a checkpoint has them, and what they would take. For the loaders.
 *
 * A coded tensor is a view of the file like any other, and so are its scales where they lie as the kernels read
 * them; else (scales of fp8 in bf16, or at odd addresses) they become f32 in the loader's block of copies: at most
 * 1/4096 of the codes. */
#ifndef MODEL_WEIGHTS_SCALED_H
#define MODEL_WEIGHTS_SCALED_H

#include "model/weights.h"

typedef struct scaled_source {
    const tensor_files *files;
    const model_config *config;
    const model_weights *weights; /* that are loaded */
    err_info *info;
} scaled_source;

/* The codes of a weight that the file keeps under another name (mxfp4's blocks), or NULL. */
const tensor *scaled_find_blocks(const scaled_source *from, const model_weight *weight);

/* Fills the matrix of a weight whose tensor is `codes`: F8_E4M3, or the blocks. Its scale is where the file has it,
 * whatever its type. ERR_BAD_MODEL, ERR_UNSUPPORTED. */
err_t scaled_view(const scaled_source *from, const tensor *codes, const model_weight *weight,
                  matrix *out) MUST_CHECK;

/* Bytes that the scales of a viewed matrix take in the block of copies; 0: they stay where they are. */
size_t scaled_copy_bytes(const scaled_source *from, const model_weight *weight);
void scaled_copy(const scaled_source *from, const model_weight *weight, float *to);

/* Names of the file's tensors that belong to a weight, beside its own: the i-th into `out`, while there is one. */
enum { WEIGHT_NAME_BYTES = 160 };
bool scaled_name(const model_config *config, const model_weight *weight, uint32_t i,
                 char out[WEIGHT_NAME_BYTES]);

/* The type that a weight has according to config.json, and the shape of a matrix of it, without data. */
matrix scaled_expect(const model_config *config, const model_weights *w,
                     const model_weight *weight);

/* Refuses scales that are not finite, or so large that a value could be infinite. */
err_t scaled_check(dev *d, const model_weight *weight, err_info *info) MUST_CHECK;

#endif
