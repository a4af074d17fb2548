/* service/plan_model.h - the bytes of a model's weights, by who holds and who reads them, without the
 * weights.
 *
 * Tensors are those that the family's loader asks a checkpoint for (model_family.each_weight), in the
 * config's stored type, or as its quantization_config has them with its scales: a plan and a load differ only
 * where a checkpoint leaves out of that what others code. */
#ifndef SERVICE_PLAN_MODEL_H
#define SERVICE_PLAN_MODEL_H

#include "kvcache/kv_shape.h"
#include "model/model_config.h"

typedef struct plan_weights {
    uint64_t replicated_bytes; /* all but experts: every rank holds them */
    uint64_t
        step_bytes; /* of those, what every step reads: all but the embedding, unless it is the head, too */
    uint64_t row_bytes;    /* of the embedding, per token */
    uint64_t expert_bytes; /* one expert of one layer */
    /* The same where a device has a copy: rounded up, tensor by tensor. */
    uint64_t device_replicated_bytes, device_expert_bytes;
    uint32_t n_routed_layers; /* with experts */
} plan_weights;

/* ERR_NO_MEMORY; ERR_OVERFLOW. */
err_t plan_weights_of(const model_config *model, plan_weights *out, err_info *info) MUST_CHECK;

/* What the cache is told of the model: kv_cache_open's shape, with bases from `dir` if it has some
 * (NULL: none). Output projections are not there: nothing is computed. */
typedef struct plan_kv_shape {
    kv_shape shape;         /* into layers */
    kv_layer_shape *layers; /* [n_layers] */
    float *bases;
    float *sinks; /* zeros, that layers which have sink logits point to; or NULL */
} plan_kv_shape;

err_t plan_kv_shape_init(const model_config *model, const char *dir, plan_kv_shape *out,
                         err_info *info) MUST_CHECK;
void plan_kv_shape_deinit(plan_kv_shape *shape); /* a zeroed one is fine */

#endif
