/* model/model_internal.h - the model's own structure, shared by model.c, forward.c and the layers. */
#ifndef MODEL_MODEL_INTERNAL_H
#define MODEL_MODEL_INTERNAL_H

#include "base/arena.h"
#include "kernels/dev_comm.h"
#include "model/expert_placement.h"
#include "model/family.h"
#include "model/model.h"
#include "model/weights_device.h"

#include <stdatomic.h>

/* For dev_ops.sample; NULL if the device has none. */
typedef struct model_drawing {
    sample_row *rows;       /* [MODEL_LOGIT_ROWS_MAX] */
    sample_edit *edits;     /* [MODEL_LOGIT_ROWS_MAX][MODEL_ROW_EDITS_MAX] */
    sample_result *results; /* [MODEL_LOGIT_ROWS_MAX] */
} model_drawing;

/* Working memory of a step, in the device's memory: cut from one block. n = n_step_tokens_max. */
typedef struct model_scratch {
    float *x;             /* [n][d_model] the residual stream */
    float *normed;        /* [n][d_model] */
    float *q;             /* [n][n_heads][model_key_dim] */
    float *k, *v;         /* [n][n_kv_heads][model_key_dim], [n][n_kv_heads][v_dim] or NULL */
    float *attended;      /* [n][n_heads][model_value_dim] */
    float *q_low, *heads; /* latent attention: [n][q_rank], [n][n_heads][max(nope_dim, v_dim)] */
    float *cos, *sin;     /* [n][rope.n_rotated / 2] of the step's positions */
    float *router_logits; /* [n][n_experts] */
    uint32_t *chosen;     /* of a step of t tokens: [n_layers][t][top_k] */
    uint32_t *served; /* [n][top_k] those of a layer that this rank computes, else MOE_ELSEWHERE */
    uint32_t *positions;     /* [n]; like `served`, moe_sum and the tables NULL alone */
    expert_tables experts;   /* as expert_placement_tables has them */
    float *gate;             /* [n][top_k] weights of the chosen experts */
    uint32_t *common_chosen; /* [n] zeros: the choice of the one FFN that all tokens pass */
    float *common_gate;      /* [n] its weights, where they have no gate: residual_scale */
    void *moe;               /* dev_ops.moe_scratch_bytes */
    float *moe_sum;          /* [n][d_model] of the ranks' experts; NULL alone */
    float *rows;             /* [MODEL_LOGIT_ROWS_MAX][d_model] gathered for model_logits */
    /* NULL if the device works on the host's memory, which has these: */
    uint32_t *ids; /* [max(n, MODEL_LOGIT_ROWS_MAX)] tokens, or rows for logits */
    float *logits; /* [MODEL_LOGIT_ROWS_MAX][n_vocab] */
    model_drawing drawing;
} model_scratch;

/* What the host reads or writes of that, as large; the same arrays where the device's memory is the host's. */
typedef struct model_mirror {
    float *x;
    float *input_norm; /* [n] lengths of x, where the cache asks for them; of the host alone */
    float *q_nope; /* [n][n_heads][model_key_dim] before they are turned; in `attended` on a CPU */
    float *cos, *sin;
    uint32_t *chosen;
    float *moe_sum;
    model_drawing drawing;
} model_mirror;

struct model {
    dev *d;
    model_config config;
    const model_family *family;
    model_weights weights;       /* on the host */
    model_device_weights device; /* the same, where ops read them */
    kv_shape kv;
    kv_layer_shape *kv_layer; /* [n_layers] */
    float *kv_bases;          /* what kv_layer's bases point into, or NULL */
    float *inv_freq;          /* [rope.n_rotated / 2] */
    kv_rope rope;             /* the same, for the cache */
    uint32_t n_step_tokens_max;
    uint32_t n_last_tokens; /* of the last forward, whose x is still there */
    arena memory;           /* everything in scratch */
    void *scratch_block;    /* of dev_alloc, what `memory` is over if the device has its own */
    model_scratch scratch;
    arena host_memory;
    model_mirror host;
    size_t scratch_bytes; /* of both */
    comm *comm;           /* NULL: alone, or with nobody */
    dev_comm sums;        /* of the experts of all; with a comm alone */
    uint64_t route_mark;  /* of the choices of all routers in this step; the same on every rank */
    uint32_t rank;        /* of comm; 0 alone */
    expert_placement *placement;
    atomic_size_t weight_bytes; /* changes with the placement */
};

err_t model_scratch_alloc(model *m, err_info *info) MUST_CHECK;
void model_scratch_free(model *m);

/* A norm of the residual stream; w_bias of layer norms alone. */
typedef struct model_norm_args {
    const float *x; /* [n_tokens][d_model] */
    const matrix *w, *w_bias;
    uint32_t n_tokens;
    float *out; /* may be x */
} model_norm_args;
void model_norm(model *m, const model_norm_args *args);

/* x[n_tokens][dim] = scale * x + bias, in the device's memory; nothing where that changes nothing. */
void model_adjust(model *m, float *x, uint32_t n_tokens, uint32_t dim, float scale,
                  const matrix *bias);

/* Weights that are read are those of the experts that this rank has now. */
void model_follow_placement(model *m);
/* And where its ops deal them. */
void model_send_placement(model *m);

/* x += o( attention( norm(x) ) ) for the batch's tokens. */
void layer_attention(model *m, kv_cache *cache, uint32_t layer, uint32_t n_tokens);

/* Of latent attention: q and k of the scratch but for their turn, from `normed`; and from `attended` what the output
 * projection takes, [n_tokens][n_heads][v_dim]. */
void layer_latent_qk(model *m, const model_layer *layer, uint32_t n_tokens);
float *layer_latent_values(model *m, const model_layer *layer, uint32_t n_tokens);

/* x += sum of experts( norm(x) ) for the batch's tokens. */
void layer_moe(model *m, uint32_t layer, uint32_t n_tokens);

/* Logits of rows of the last forward to `out`, which is in the device's memory. */
void model_compute_logits(model *m, const uint32_t *rows, uint32_t n_rows, float *out);

/* Behind the last layer: what the routers of all have chosen goes to all who count it. */
void model_tell_choices(model *m, kv_cache *cache, const model_batch *batch);

#endif
