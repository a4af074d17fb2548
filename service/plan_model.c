/* service/plan_model.c - see plan_model.h. */
#include "service/plan_model.h"

#include "base/check.h"
#include "model/family.h"
#include "model/kv_bases.h"
#include "model/weights_device.h"
#include "model/weights_scaled.h"

#include <stdlib.h>

typedef struct weight_sum {
    const model_config *model;
    const model_weights *weights; /* whose fields say what a tensor is */
    size_t all_bytes, expert_bytes;
    size_t device_bytes, device_expert_bytes; /* as all_bytes, expert_bytes */
} weight_sum;

static err_t add_weight(void *ctx, const model_weight *weight)
{
    weight_sum *sum = ctx;
    size_t bytes, there;
    const matrix shape = scaled_expect(sum->model, sum->weights, weight);
    TRY(size_mul(shape.rows, matrix_row_bytes(&shape), &bytes));
    TRY(size_add(bytes, matrix_scale_bytes(&shape), &bytes));
    TRY(model_device_matrix_bytes(&shape, &there));
    TRY(size_add(sum->device_bytes, there, &sum->device_bytes));
    if (model_weights_expert_of(sum->model, sum->weights, weight->into) != SIZE_MAX) {
        TRY(size_add(sum->expert_bytes, bytes, &sum->expert_bytes));
        TRY(size_add(sum->device_expert_bytes, there, &sum->device_expert_bytes));
    }
    return size_add(sum->all_bytes, bytes, &sum->all_bytes);
}

err_t plan_weights_of(const model_config *model, plan_weights *out, err_info *info)
{
    const model_family *family = model_family_find(model->family);
    assert(family != NULL);
    model_weights weights = {0};
    err_t err = model_weights_alloc(model, &weights, info);
    weight_sum sum = {.model = model, .weights = &weights};
    if (err == ERR_OK) err = family->each_weight(model, &weights, add_weight, &sum);
    model_weights_deinit(&weights);
    if (err != ERR_OK) return err_set(info, err, "weights: %s", err_sentence(err));
    const uint64_t row_bytes = (uint64_t)model->d_model * dtype_bytes(model->stored_type);
    const uint64_t table_bytes = model->tied_embeddings ? 0 : row_bytes * model->n_vocab;
    uint32_t n_routed = 0;
    for (uint32_t l = 0; l < model->n_layers; l++)
        n_routed += !model_layer_is_dense(model, l);
    const uint64_t n_experts = (uint64_t)n_routed * model->n_experts;
    const uint64_t replicated_bytes = sum.all_bytes - sum.expert_bytes;
    *out = (plan_weights){.replicated_bytes = replicated_bytes,
                          .step_bytes = replicated_bytes - table_bytes,
                          .row_bytes = row_bytes,
                          .expert_bytes = sum.expert_bytes / n_experts,
                          .device_replicated_bytes = sum.device_bytes - sum.device_expert_bytes,
                          .device_expert_bytes = sum.device_expert_bytes / n_experts,
                          .n_routed_layers = n_routed};
    return ERR_OK;
}

/* Does a family's loader ask for sink logits? */
typedef struct sink_search {
    const matrix *sinks; /* of the first layer */
    bool is_found;
} sink_search;

static err_t find_sinks(void *ctx, const model_weight *weight)
{
    sink_search *search = ctx;
    search->is_found = search->is_found || weight->into == search->sinks;
    return ERR_OK;
}

static err_t read_layers(const model_config *model, const model_family *family,
                         model_weights *weights, plan_kv_shape *out)
{
    sink_search search = {.sinks = &weights->layer[0].sinks};
    TRY(family->each_weight(model, weights, find_sinks, &search));
    out->layers = calloc(model->n_layers, sizeof *out->layers);
    if (search.is_found) out->sinks = calloc(model->n_heads, sizeof *out->sinks);
    if (out->layers == NULL || (search.is_found && out->sinks == NULL)) return ERR_NO_MEMORY;
    for (uint32_t l = 0; l < model->n_layers; l++) {
        family->kv_layer(model, weights, l, &out->layers[l]);
        out->layers[l].out_proj = NULL; /* lies in weights, which end here */
        out->layers[l].sink_logit = out->sinks;
    }
    return ERR_OK;
}

void plan_kv_shape_deinit(plan_kv_shape *shape)
{
    free(shape->layers);
    free(shape->bases);
    free(shape->sinks);
    *shape = (plan_kv_shape){0};
}

err_t plan_kv_shape_init(const model_config *model, const char *dir, plan_kv_shape *out,
                         err_info *info)
{
    const model_family *family = model_family_find(model->family);
    assert(family != NULL);
    model_weights weights = {0};
    *out = (plan_kv_shape){0};
    err_t err = model_weights_alloc(model, &weights, info);
    if (err == ERR_OK) err = read_layers(model, family, &weights, out);
    model_weights_deinit(&weights);
    if (err != ERR_OK) {
        plan_kv_shape_deinit(out);
        return err_set(info, err, "plan: %s", err_sentence(err));
    }
    out->shape = (kv_shape){.n_layers = model->n_layers,
                            .layer = out->layers,
                            .n_experts = model->n_experts,
                            .model_type = model->stored_type};
    return dir != NULL ? model_kv_bases_load(dir, out->layers, model->n_layers, &out->bases, info)
                       : ERR_OK;
}
