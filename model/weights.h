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

/* What a family does not have is zero: no data. */
typedef struct model_layer {
    matrix attention_norm, attention_norm_bias; /* [1][d_model] */
    matrix q;                                   /* [n_heads * head_dim][d_model] */
    matrix k;                                   /* [n_kv_heads * head_dim][d_model] */
    matrix v;                                   /* [n_kv_heads * v_dim][d_model] */
    matrix o;                                   /* [d_model][n_heads * v_dim] */
    matrix q_bias, k_bias, v_bias, o_bias;      /* [1][rows of q, k, v, o] */
    matrix q_norm, k_norm;                      /* [1][head_dim], or [1][rows of q, k] */
    matrix moe_norm, moe_norm_bias;             /* [1][d_model] */
    matrix router;                              /* [n_experts][d_model] */
    matrix router_bias;                         /* [1][n_experts], of the logits */
    moe_expert *expert;                         /* [n_experts]; without data in a dense layer */
    moe_expert *
        common; /* [1] the shared expert, or the FFN of a dense layer: model_layer_common_ffn wide */
    matrix shared_gate; /* [1][d_model] */
} model_layer;

typedef struct model_weights {
    matrix embedding;  /* [n_vocab][d_model] */
    matrix head;       /* [n_vocab][d_model]; the embedding itself when tied */
    matrix head_bias;  /* [1][n_vocab], or no data */
    matrix final_norm; /* [1][d_model] */
    matrix final_norm_bias;
    model_layer *layer;  /* [n_layers] */
    moe_expert *experts; /* [n_layers][n_experts], what layer[].expert points into */
    moe_expert *commons; /* [n_layers], what layer[].common points to */
    bool *is_read;       /* [n_layers][n_experts]: experts that this rank has; all at first */
    size_t bytes;        /* of all tensors, each counted once */
    uint64_t n_params;
    dtype main_type;     /* of most bytes of weights without scales */
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
    bool is_bias;   /* dummy ones are zeros, as other vectors are ones */
    /* It is a part of the file's tensor: rows first_row .. of item `item` of [n_items][n_rows][cols], or of
     * [n_rows][cols] if n_items is 0. n_rows 0: all of it. Each tensor's first part, item 0 and row 0, is visited. */
    struct {
        uint32_t n_items, item, n_rows, first_row;
        uint32_t
            row_step; /* every so many rows of it; 0 is 1. Of tensors with mxfp4's blocks alone */
    } part;
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

/* Of its values or codes. */
static inline size_t matrix_bytes(const matrix *m)
{
    return m->rows * matrix_row_bytes(m);
}

static inline size_t matrix_scale_bytes(const matrix *m)
{
    const size_t n = matrix_scale_cols(m);
    if (m->type == DTYPE_MXFP4) return m->rows * n;
    return m->type == DTYPE_FP8 ? (m->rows + m->block_rows - 1) / m->block_rows * n * sizeof(float)
                                : 0;
}

/* For the loaders alone: arrays of layers and experts, zeroed; all experts are read. */
err_t model_weights_alloc(const model_config *config, model_weights *w, err_info *info) MUST_CHECK;

#endif
