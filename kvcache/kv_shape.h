/* kvcache/kv_shape.h - what the cache must know of a model, and of the work to come. */
#ifndef KVCACHE_KV_SHAPE_H
#define KVCACHE_KV_SHAPE_H

#include "kernels/dtype.h"
#include "kernels/matmul.h"
#include "kvcache/scoring/scorer.h"

#include <stdbool.h>
#include <stdint.h>

/* A basis of the keys or of the values of a layer, for the low-rank codecs: an entry x is kept as the
 * coefficients down x and read as up^T (down x). See compression/low_rank.h. */
typedef struct kv_basis {
    uint32_t rank;     /* 0: there is none */
    const float *down; /* [n_kv_heads][rank][dim]; finite */
    const float *up;   /* [n_kv_heads][rank][dim]; finite */
} kv_basis;

typedef struct kv_bases {
    kv_basis k, v; /* both or none */
} kv_bases;

/* What the cache must know of one layer of the model. */
typedef struct kv_layer_shape {
    uint32_t n_heads; /* query heads; a multiple of n_kv_heads */
    uint32_t n_kv_heads;
    uint32_t k_dim, v_dim; /* channels of a key and of a value; they may differ */
    bool v_in_k;     /* V is the first v_dim channels of K (MLA latent): nothing else is stored */
    bool has_router; /* an expert id per token arrives through kv_note_experts */
    uint32_t window; /* the layer's own sliding window; 0: full attention */
    float scale;     /* of the scores, usually 1 / sqrt(k_dim) */
    const float *sink_logit;  /* [n_heads] or NULL; borrowed for the cache's life (gpt-oss) */
    const matrix *out_proj;   /* [d_model][n_heads * v_dim] or NULL; borrowed (scorers, prune) */
    const kv_rope *rope;      /* how keys are turned, or NULL: not at all; borrowed (scorers) */
    kv_bases lora, lora_plus; /* of the codecs of these names; borrowed for the cache's life */
} kv_layer_shape;

typedef struct kv_shape {
    uint32_t n_layers;
    const kv_layer_shape *layer; /* [n_layers]; copied by kv_cache_open */
    uint32_t n_experts;          /* 0 without routers */
    dtype model_type;            /* what `auto` resolves by */
} kv_shape;

typedef struct kv_limits {
    uint32_t n_seqs_max;        /* sequences open at once */
    uint32_t n_step_tokens_max; /* tokens of one step: the size of staging */
    uint32_t n_seq_tokens_max;  /* positions of one sequence */
} kv_limits;

#endif
