/* model/model_config.h - the shape of a model, from config.json (Hugging Face layout).
 *
 * Every number passes one checked reader: present or defaulted, integral, inside its limits, and
 * consistent with the others. A key that changes the computation in a way this build does not
 * implement (a RoPE type, another activation, a way of quantising) is ERR_UNSUPPORTED, named with its
 * value: never ignored. What families differ by is here as data, which the forward pass asks. */
#ifndef MODEL_MODEL_CONFIG_H
#define MODEL_MODEL_CONFIG_H

#include "base/error.h"
#include "kernels/dtype.h"
#include "kernels/moe.h"
#include "model/quantisation.h"
#include "model/rope.h"

#include <stdbool.h>
#include <stdint.h>

enum { MODEL_EOS_MAX = 8, MODEL_LAYERS_MAX = 1024 };

typedef enum model_norm_kind {
    MODEL_NORM_RMS,
    MODEL_NORM_LAYER
} model_norm_kind; /* of all norms but q's and k's */

/* RMS norms of q and k, before they are turned. */
typedef enum model_qk_norm {
    MODEL_QK_NORM_NONE,
    MODEL_QK_NORM_WHOLE, /* of a token's whole projection */
    MODEL_QK_NORM_HEAD   /* of each head */
} model_qk_norm;

/* One bit for each layer. */
typedef struct model_layer_set {
    uint64_t bits[MODEL_LAYERS_MAX / 64];
} model_layer_set;

typedef struct model_config {
    char family[32]; /* model_type: "mixtral" */
    uint32_t n_layers, d_model, n_heads, n_kv_heads;
    uint32_t head_dim; /* of queries and keys */
    uint32_t v_dim;    /* of values */
    uint32_t n_vocab;

    /* Attention. */
    bool has_qkv_bias, has_o_bias;
    model_qk_norm qk_norm;
    float qkv_limit;       /* q, k and v are clipped to it behind their norms; 0: they are not */
    float attention_scale; /* of scores; 0: 1 / sqrt(head_dim) */
    uint32_t window;       /* sliding window, of all layers but: */
    model_layer_set full_layers; /* those that attend to everything; window 0: all do */
    rope_config rope;
    bool is_rope_interleaved; /* pairs of channels are (2c, 2c + 1) */
    /* Latent attention, layer_latent.c; kv_rank 0: there is none. Then head_dim is nope_dim + rope.n_rotated, and
     * n_kv_heads is 1. */
    struct {
        uint32_t q_rank; /* 0: queries come from the residual stream at once */
        uint32_t kv_rank, nope_dim;
    } latent;

    /* Layers: experts and perhaps one that all tokens pass, or a dense FFN alone. */
    uint32_t n_experts, top_k, d_ffn; /* per expert */
    router_kind router;
    bool renormalise_top_k;
    float router_scale, router_jitter;
    uint32_t router_groups, router_top_groups, router_group_best; /* see router_args */
    bool has_choice_bias;
    moe_activation activation; /* of the experts that routers choose */
    float activation_alpha, activation_limit;
    uint32_t d_shared_ffn; /* 0: no shared expert */
    bool is_shared_gated;  /* its output times sigmoid(shared_gate x) */
    uint32_t d_dense_ffn;
    model_layer_set dense_layers;
    uint32_t n_unused_layers; /* that files may have behind the last one */

    /* The residual stream. */
    model_norm_kind norm;
    float norm_eps;
    float embedding_scale;
    float residual_scale; /* of what attention and FFN add */
    float logits_divisor;
    bool has_head_bias;
    bool tied_embeddings; /* the head is the embedding matrix */

    uint32_t
        n_positions; /* max_position_embeddings, or as many as the RoPE scaling makes of them */
    dtype
        stored_type; /* of most weights: torch_dtype / dtype, then confirmed by the tensors; of those that
                          have no scales, if some have */
    quantisation quantisation;   /* how the others are coded */
    int64_t bos;                 /* -1: none */
    uint32_t eos[MODEL_EOS_MAX]; /* from generation_config.json if present, else config.json */
    uint32_t n_eos;
    uint64_t n_params, n_params_active; /* of all tensors; of those that a token passes */
} model_config;

err_t model_config_read(const char *dir, model_config *out, err_info *info) MUST_CHECK;

static inline bool model_layer_set_has(const model_layer_set *set, uint32_t layer)
{
    return (set->bits[layer / 64] >> layer % 64 & 1) != 0;
}

static inline void model_layer_set_add(model_layer_set *set, uint32_t layer)
{
    set->bits[layer / 64] |= UINT64_C(1) << layer % 64;
}

static inline bool model_layer_is_dense(const model_config *c, uint32_t layer)
{
    return model_layer_set_has(&c->dense_layers, layer);
}

/* Channels of a head's keys and values as the cache has them. */
static inline uint32_t model_key_dim(const model_config *c)
{
    return c->latent.kv_rank > 0 ? c->latent.kv_rank + c->rope.n_rotated : c->head_dim;
}

static inline uint32_t model_value_dim(const model_config *c)
{
    return c->latent.kv_rank > 0 ? c->latent.kv_rank : c->v_dim;
}

/* 0: the layer attends to everything. */
static inline uint32_t model_layer_window(const model_config *c, uint32_t layer)
{
    return model_layer_set_has(&c->full_layers, layer) ? 0 : c->window;
}

/* Width of the FFN that every token of the layer passes; 0: there is none. */
static inline uint32_t model_layer_common_ffn(const model_config *c, uint32_t layer)
{
    return model_layer_is_dense(c, layer) ? c->d_dense_ffn : c->d_shared_ffn;
}

#endif
