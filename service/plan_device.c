/* service/plan_device.c - see plan_device.h. */
#include "service/plan_device.h"

#include "base/check.h"
#include "kernels/cuda_sizes.h"
#include "model/model_gpu.h"
#include "model/weights_device.h"

/* Where experts may move, every rank has all of them at hand. */
static err_t count_weights(const plan_device_input *in, plan_device *out)
{
    const uint32_t n_experts = in->model->n_experts;
    const uint32_t n_here =
        in->n_redundant > 0 ? n_experts : (n_experts + in->n_ranks - 1) / in->n_ranks;
    size_t experts, arrays, all = in->weights->device_replicated_bytes;
    TRY(size_mul(in->weights->device_expert_bytes, in->weights->n_routed_layers, &experts));
    TRY(size_mul(experts, n_here, &experts));
    TRY(model_device_experts_bytes(in->model, &arrays));
    TRY(size_add(all, experts, &all));
    TRY(size_add(all, arrays, &all));
    out->weight_bytes = all;
    return ERR_OK;
}

static err_t count_cache(const plan_device_input *in, plan_device *out)
{
    const plan_cache *c = in->cache;
    if (c->n_page_ids > UINT32_MAX) return ERR_OVERFLOW;
    const kv_device_plan_input input = {.config = in->kv,
                                        .methods = &c->methods,
                                        .shape = in->shape,
                                        .limits = {.n_seqs_max = in->n_seqs,
                                                   .n_step_tokens_max = in->n_step_tokens,
                                                   .n_seq_tokens_max = in->n_tokens},
                                        .type = c->type,
                                        .n_shards = c->n_shards,
                                        .n_ranks = in->n_ranks,
                                        .n_classes = c->n_classes,
                                        .n_pages = (uint32_t)c->n_page_ids,
                                        .pool_bytes = c->page_bytes + c->section_bytes,
                                        .box_bytes = c->box_bytes,
                                        .copy_bytes = c->copy_bytes,
                                        .has_scattered = c->is_scattered,
                                        .has_biases = c->has_biases};
    return kv_device_plan_of(&input, &out->kv);
}

/* As the server allocates: weights, a step's scratch, the view, and a list when a sequence grows. The first that does not
 * fit is what is said. */
static void find_refusal(plan_device *out)
{
    const uint64_t parts[] = {out->weight_bytes, out->scratch_bytes,
                              out->kv.total_bytes - out->kv.list_bytes, out->kv.list_bytes};
    uint64_t in_use = 0;
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        if (dev_cuda_check_room(parts[i], in_use, out->allowed_bytes, 1, &out->refusal) != ERR_OK)
            return;
        in_use += parts[i];
    }
}

static err_t count(const plan_device_input *in, plan_device *out)
{
    model_gpu_bytes step;
    size_t total;
    const expert_tables experts = {.n_layers = in->model->n_layers,
                                   .n_experts = in->model->n_experts,
                                   .n_slots = in->model->n_experts + in->n_redundant};
    TRY(count_weights(in, out));
    TRY(model_gpu_scratch(in->model, in->n_step_tokens, in->n_ranks > 1 ? &experts : NULL, &step));
    out->scratch_bytes = step.scratch;
    out->host_mirror_bytes = step.mirror;
    TRY(count_cache(in, out));
    TRY(size_add(out->weight_bytes, out->scratch_bytes, &total));
    TRY(size_add(total, out->kv.total_bytes, &total));
    out->total_bytes = total;
    return ERR_OK;
}

err_t plan_device_of(const plan_device_input *in, plan_device *out, err_info *info)
{
    *out = (plan_device){.is_there = true};
    const err_t err = count(in, out);
    if (err != ERR_OK) return err_set(info, err, "plan of the device: %s", err_sentence(err));
    if (in->memory_bytes == 0) return ERR_OK;
    out->allowed_bytes = dev_cuda_limit(in->memory_bytes, 0, in->memory_share);
    find_refusal(out);
    return ERR_OK;
}
