/* model/weights.h - the weight matrices of a model, by role.
 *
 * Three sources fill the same structure: views into mapped files, in their stored type; an aligned
 * copy of the few tensors that a file holds at an odd address; and, for dummy models, one anonymous
 * block of fixed pseudo-random values. Which tensors there are is the family's matter
 * (model/family.h); their number is checked here, at load, and trusted afterwards.
 *
 * Ownership: model_weights_deinit frees and unmaps everything. */
#ifndef MODEL_WEIGHTS_H
#define MODEL_WEIGHTS_H

#include "base/error.h"
#include "kernels/dev.h"
#include "model/model_config.h"
#include "model/safetensors.h"

struct model_family;

typedef struct model_layer {
    matrix attention_norm; /* [1][d_model] */
    matrix q;              /* [n_heads * head_dim][d_model] */
    matrix k, v;           /* [n_kv_heads * head_dim][d_model] */
    matrix o;              /* [d_model][n_heads * head_dim] */
    matrix moe_norm;       /* [1][d_model] */
    matrix router;         /* [n_experts][d_model] */
    moe_expert *expert;    /* [n_experts] */
} model_layer;

typedef struct model_weights {
    matrix embedding;    /* [n_vocab][d_model] */
    matrix head;         /* [n_vocab][d_model]; the embedding itself when tied */
    matrix final_norm;   /* [1][d_model] */
    model_layer *layer;  /* [n_layers] */
    moe_expert *experts; /* [n_layers][n_experts], what layer[].expert points into */
    bool *is_read;       /* [n_layers][n_experts]: experts that this rank has; all at first */
    size_t bytes;        /* of all tensors, each counted once */
    uint64_t n_params;
    dtype main_type;     /* of most bytes */
    tensor_files *files; /* mapped; NULL for dummy weights */
    void *copies;        /* aligned copies, or NULL */
    void *dummy;         /* anonymous map of dummy_bytes, or NULL */
    size_t dummy_bytes;
} model_weights;

/* One tensor that a checkpoint must hold. */
typedef struct model_weight {
    char name[128];
    uint32_t rows, cols;
    bool is_vector; /* the file's shape is [cols] */
    matrix *into;
} model_weight;
typedef err_t model_weight_visit(void *ctx, const model_weight *weight);

/* Maps DIR's files and finds every tensor. ERR_BAD_MODEL names the first one that is missing or has
 * another shape or type; tensors that no one asked for are one warning in the log. */
err_t model_weights_load(const char *dir, const struct model_family *family,
                         const model_config *config, model_weights *out, err_info *info) MUST_CHECK;

/* Fixed pseudo-random values of the config's shape and stored type, filled in parallel. */
err_t model_weights_dummy(dev *d, const struct model_family *family, const model_config *config,
                          model_weights *out, err_info *info) MUST_CHECK;

/* Refuses NaN and Inf: reads every value once, but of experts that are not read. ERR_BAD_MODEL names tensor and
 * place. */
err_t model_weights_check_values(dev *d, const struct model_family *family,
                                 const model_config *config, model_weights *w,
                                 err_info *info) MUST_CHECK;

/* Reads one byte of every page of what is read, in parallel. */
void model_weights_touch(dev *d, const struct model_family *family, const model_config *config,
                         model_weights *w);

void model_weights_deinit(model_weights *w); /* a zeroed one is fine */

/* Bytes of all that is read. */
size_t model_weights_read_bytes(const model_config *config, const model_weights *w);

/* Index in `experts` of the one that the matrix is part of; SIZE_MAX: of none. */
size_t model_weights_expert_of(const model_config *config, const model_weights *w,
                               const matrix *into);

static inline size_t matrix_bytes(const matrix *m)
{
    return (size_t)m->rows * m->cols * dtype_bytes(m->type);
}

/* For the loaders alone: arrays of layers and experts, zeroed; all experts are read. */
err_t model_weights_alloc(const model_config *config, model_weights *w, err_info *info) MUST_CHECK;

#endif
