/* model/model_gpu.h - what a step of a model takes of a GPU, before there is one: for plans. */
#ifndef MODEL_MODEL_GPU_H
#define MODEL_MODEL_GPU_H

#include "model/expert_placement.h"
#include "model/model_config.h"

#include <stdbool.h>

typedef struct model_gpu_bytes {
    size_t scratch; /* of the GPU */
    size_t mirror;  /* of the host beside it */
} model_gpu_bytes;

/* Of steps of so many tokens, as model_open takes them. `experts`: how many tables there are, and how large, over ranks;
 * NULL: of one rank. ERR_OVERFLOW. */
err_t model_gpu_scratch(const model_config *config, uint32_t n_step_tokens,
                        const expert_tables *experts, model_gpu_bytes *out) MUST_CHECK;

#endif
