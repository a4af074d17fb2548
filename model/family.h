/* model/family.h - what differs between families of models: one table each, found by model_type.
 *
 * The loader and the forward pass ask the table and never the name. Adding a family is one file
 * family_NAME.c, one line in MODEL_FAMILY_LIST and one fixture in tests/golden. */
#ifndef MODEL_FAMILY_H
#define MODEL_FAMILY_H

#include "base/error.h"
#include "kvcache/kv_cache.h"
#include "model/checked_json.h"
#include "model/model_config.h"
#include "model/weights.h"

#define MODEL_FAMILY_LIST(X) \
    X(mixtral)               \
    X(olmoe)                 \
    X(qwen2_moe)             \
    X(qwen3_moe)             \
    X(granitemoe)            \
    X(granitemoeshared)      \
    X(phimoe)                \
    X(deepseek_v2)           \
    X(deepseek_v3)           \
    X(gpt_oss)

typedef struct model_family {
    const char *name; /* config.json's model_type */

    /* Keys of config.json whose names differ; read once, in model_config_read. */
    const char *key_n_experts;
    const char *key_n_experts_too; /* what transformers 5 writes for it; NULL: the same */
    const char *key_top_k;
    const char *key_top_k_too;   /* another name of it, where the first is not there; NULL: none */
    const char *key_d_ffn;       /* width of one expert */
    const char *key_renormalise; /* boolean; NULL: `renormalise` below is fixed */
    bool renormalise;

    /* What only this family has: called when all that the others have, too, is in `out`, but for RoPE and what follows
     * it. `keys` ends with NULL: those of config.json that it reads and that other families refuse. Both may be NULL. */
    err_t (*read_config)(const model_json_object *from, model_config *out);
    const char *const *keys;

    /* Visits every tensor that a checkpoint must hold, in one fixed order: with its name, shape, and
     * the field of `w` that it fills. Called a few times while a model is opened, never after. Stops
     * at the first error of `visit` and returns it. `w->layer` and their FFNs are allocated. */
    err_t (*each_weight)(const model_config *c, model_weights *w, model_weight_visit *visit,
                         void *ctx);

    /* The cache's view of one layer. Called once per layer at open; cannot fail. */
    void (*kv_layer)(const model_config *c, const model_weights *w, uint32_t layer,
                     kv_layer_shape *out);
} model_family;

/* NULL if there is no such family. */
const model_family *model_family_find(const char *name);

extern const model_family *const model_families[]; /* ends with NULL */

#endif
