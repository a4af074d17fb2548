/* model/model_config.h - the shape of a model, from config.json (Hugging Face layout).
 *
 * Every number passes one checked reader: present or defaulted, integral, inside its limits, and
 * consistent with the others. A key that changes the computation in a way this build does not
 * implement (a RoPE scaling, another activation, quantised weights) is ERR_UNSUPPORTED, named with its
 * value: never ignored. */
#ifndef MODEL_MODEL_CONFIG_H
#define MODEL_MODEL_CONFIG_H

#include "base/error.h"
#include "kernels/dtype.h"

#include <stdbool.h>
#include <stdint.h>

enum { MODEL_EOS_MAX = 8 };

typedef struct model_config {
    char family[32]; /* model_type: "mixtral" */
    uint32_t n_layers, d_model, n_heads, n_kv_heads, head_dim;
    uint32_t n_vocab;
    uint32_t n_experts, top_k, d_ffn; /* per expert */
    bool renormalise_top_k;
    uint32_t window;      /* sliding window of every layer; 0: none */
    uint32_t n_positions; /* max_position_embeddings */
    float rope_theta, norm_eps;
    bool tied_embeddings; /* the head is the embedding matrix */
    dtype stored_type;    /* of most weights: torch_dtype / dtype, then confirmed by the tensors */
    int64_t bos;          /* -1: none */
    uint32_t eos[MODEL_EOS_MAX]; /* from generation_config.json if present, else config.json */
    uint32_t n_eos;
    uint64_t n_params, n_params_active; /* computed from the shape */
} model_config;

err_t model_config_read(const char *dir, model_config *out, err_info *info) MUST_CHECK;

#endif
