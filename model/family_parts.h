/* model/family_parts.h - what several families have in common: the walk over their tensors and the cache's view.
 *
 * Which of the optional tensors there are (biases, norms of q and k, a shared expert, dense layers) the config says;
 * what they are called is data. A family with another attention or other experts brings its own walk of these parts. */
#ifndef MODEL_FAMILY_PARTS_H
#define MODEL_FAMILY_PARTS_H

#include "model/family.h"

typedef struct family_walk {
    model_weight_visit *visit;
    void *ctx;
} family_walk;

/* Below "model.layers.N.", without ".weight". What a family never has may be NULL. */
typedef struct family_names {
    const char *router;           /* "block_sparse_moe.gate" */
    const char *choice_bias;      /* a whole name, where has_choice_bias */
    const char *experts;          /* before ".N." and the names of an expert's three */
    const char *shared, *dense;   /* before "." and these */
    const char *gate, *up, *down; /* "gate_proj" ... */
    const char *shared_gate;
    /* Norm and attention of another kind; NULL: family_visit_attention. */
    err_t (*visit_attention)(const model_config *c, model_layer *layer, uint32_t l,
                             const family_walk *to);
    /* Experts that are not stored one by one; NULL: they are. */
    err_t (*visit_experts)(const model_config *c, model_layer *layer, uint32_t l,
                           const family_walk *to);
    err_t (*visit_shared)(const model_config *c, model_layer *layer, uint32_t l,
                          const family_walk *to);
} family_names;

/* A whole tensor of the file. shape[0] 0: a vector of shape[1]; one whose name ends in "bias" is a bias. */
__attribute__((format(printf, 4, 5))) err_t family_visit(const family_walk *to, matrix *into,
                                                         const uint32_t shape[2],
                                                         const char *format, ...) MUST_CHECK;

/* The same of one that lies in another order in memory: model_weight.arrange. */
__attribute__((format(printf, 5, 6))) err_t
family_visit_arranged(const family_walk *to, matrix *into, const uint32_t shape[2],
                      model_arrange *arrange, const char *format, ...) MUST_CHECK;

/* input_layernorm and self_attn.* of one layer, with its biases and norms. */
err_t family_visit_attention(const model_config *c, model_layer *layer, uint32_t l,
                             const family_walk *to) MUST_CHECK;

/* post_attention_layernorm, and the dense FFN or router, experts and shared expert. */
err_t family_visit_ffn(const family_names *names, const model_config *c, model_layer *layer,
                       uint32_t l, const family_walk *to) MUST_CHECK;

/* All of it: embedding, layers, final norm and head. */
err_t family_each_weight(const family_names *names, const model_config *c, model_weights *w,
                         const family_walk *to) MUST_CHECK;

void family_kv_layer(const model_config *c, const model_weights *w, uint32_t layer,
                     kv_layer_shape *out);

#endif
