/* model/weights.h - the weight matrices of a model, by role.
 *
 * Three sources fill the same structure: views into mapped files, in their stored type; a copy of the few
 * tensors that a file holds at an odd address or that ops want in another order; and, for dummy models, one anonymous
 * block of fixed pseudo-random values. Which tensors there are is the family's matter
 * (model/family.h); their number is checked here, at load, and trusted afterwards.
 *
 * Ownership: model_weights_deinit frees and unmaps everything. */
#ifndef MODEL_WEIGHTS_H
#define MODEL_WEIGHTS_H

#include "base/error.h"
#include "kernels/dev.h"
#include "model/model_config.h"
#include "model/model_weight.h"
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
    matrix sinks;                               /* [1][n_heads], see kv_layer_shape.sink_logit */
    matrix moe_norm, moe_norm_bias;             /* [1][d_model] */
    matrix router;                              /* [n_experts][d_model] */
    matrix router_bias;                         /* [1][n_experts], of the logits */
    matrix choice_bias;                         /* [1][n_experts], of choices alone */
    matrix q_a,
        q_a_norm; /* latent attention: [q_rank][d_model], [1][q_rank]; q has q_rank columns then */
    matrix kv_a, kv_a_norm; /* [kv_rank + n_rotated][d_model], [1][kv_rank] */
    matrix kv_b; /* [n_heads * (nope_dim + v_dim)][kv_rank], as model_latent_arrange leaves it */
    moe_expert *expert; /* [n_experts]; without data in a dense layer */
    moe_expert *
        common; /* [1] the shared expert, or the FFN of a dense layer: model_layer_common_ffn wide */
    matrix shared_gate; /* [1][d_model] */
} model_layer;

/* What somebody who starts or inspects the model should know of its files. */
typedef struct weights_notes {
    size_t copied_bytes;               /* of tensors that kernels cannot read in place */
    size_t n_expanded, expanded_bytes; /* tensors in codes that become f32 */
    size_t n_unused, unused_bytes;     /* tensors of model_config.n_unused_layers */
    size_t n_unknown;                  /* tensors that nobody asked for */
    const char *first_unknown;         /* borrowed from the files */
} weights_notes;

typedef struct model_weights {
    matrix embedding;  /* [n_vocab][d_model] */
    matrix head;       /* [n_vocab][d_model]; the embedding itself when tied */
    matrix head_bias;  /* [1][n_vocab], or no data */
    matrix final_norm; /* [1][d_model] */
    matrix final_norm_bias;
    model_layer *layer;  /* [n_layers] */
    moe_expert *experts; /* [n_layers][n_experts], what layer[].expert points into */
    moe_expert *commons; /* [n_layers], what layer[].common points to */
    float *sinks;        /* [n_layers][n_heads], all layers' as floats, or NULL */
    bool *is_read;       /* [n_layers][n_experts]: experts that this rank has; all at first */
    bool *is_held;       /* the same: experts whose copies, if they have some, are there */
    size_t bytes;        /* of all tensors, each counted once */
    uint64_t n_params;
    dtype main_type;     /* of most bytes of weights without scales */
    tensor_files *files; /* mapped; NULL for dummy weights */
    void *copies;        /* anonymous map of copies_bytes, or NULL: weights_copies.h */
    size_t copies_bytes; /* what they take when all are there */
    weights_notes notes;
    void *dummy; /* anonymous map of dummy_bytes, or NULL */
    size_t dummy_bytes;
} model_weights;

/* Maps DIR's files and finds every tensor. ERR_BAD_MODEL names the first one that is missing or has
 * another shape or type. Reads no values; what must be copied is not there yet. */
err_t model_weights_find(const char *dir, const struct model_family *family,
                         const model_config *config, model_weights *out, err_info *info) MUST_CHECK;

/* Makes the copies of what is read, and says in the log what there is to say. ERR_NO_MEMORY. */
err_t model_weights_copy(const struct model_family *family, const model_config *config,
                         model_weights *w, err_info *info) MUST_CHECK;

/* Then, after is_read has changed: copies of experts that are read, and of no others, are there; !holds: of none. */
void model_weights_hold(const struct model_family *family, const model_config *config,
                        model_weights *w, bool holds);

/* Finds and copies. */
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

/* For the loaders alone: arrays of layers and experts, zeroed; all experts are read. Behind their walks: `sinks`. */
err_t model_weights_alloc(const model_config *config, model_weights *w, err_info *info) MUST_CHECK;
err_t model_weights_widen_sinks(const model_config *config, model_weights *w,
                                err_info *info) MUST_CHECK;

#endif
