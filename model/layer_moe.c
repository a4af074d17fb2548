/* model/layer_moe.c - router and experts, and the FFN that all tokens pass. The cache learns each token's first expert: that is what
 * placement by expert goes by, and why it is told after attention and not before.
 *
 * What the routers chose is needed for the next step only, so the device goes on with its own choices, over ranks with
 * those that it deals to itself, and the host has all of them in one piece behind the last layer. */
#include "model/model_internal.h"

/* Where a step's choices of a layer lie, in either memory. */
static size_t choices_at(const model *m, uint32_t l, uint32_t n_tokens)
{
    return (size_t)l * n_tokens * m->config.top_k;
}

static void route(model *m, uint32_t l, uint32_t n_tokens)
{
    const model_layer *const layer = &m->device.layer[l];
    const model_config *const c = &m->config;
    const model_scratch *const s = &m->scratch;
    m->d->ops->matmul(m->d,
                      &(matmul_args){.x = s->normed,
                                     .x_stride = c->d_model,
                                     .n_tokens = n_tokens,
                                     .n_parts = 1,
                                     .part = {{layer->router, s->router_logits, c->n_experts}}});
    model_adjust(m, s->router_logits, n_tokens, c->n_experts, 1, &layer->router_bias);
    m->d->ops->router(m->d, &(router_args){.kind = c->router,
                                           .logits = s->router_logits,
                                           .n_tokens = n_tokens,
                                           .n_experts = c->n_experts,
                                           .top_k = c->top_k,
                                           .renormalise = c->renormalise_top_k,
                                           .scale = c->router_scale * c->residual_scale,
                                           .jitter = c->router_jitter,
                                           .choice_bias = layer->choice_bias.data,
                                           .choice_bias_type = layer->choice_bias.type,
                                           .n_groups = c->router_groups,
                                           .top_groups = c->router_top_groups,
                                           .n_group_best = c->router_group_best,
                                           .expert = s->chosen + choices_at(m, l, n_tokens),
                                           .weight = s->gate});
}

/* Ranks that chose differently would own entries twice or not at all; see ranks_routed_alike. */
static void mark_routes(model *m, const uint32_t *chosen, size_t n_choices)
{
    static const uint64_t prime = 0x100000001b3; /* of FNV-1a */
    for (size_t i = 0; m->comm != NULL && i < n_choices; i++)
        m->route_mark = (m->route_mark ^ chosen[i]) * prime;
}

/* Tells all who count choices. */
static void tell_choices(model *m, kv_cache *cache, uint32_t l, const model_batch *batch)
{
    const uint32_t n_tokens = batch->n_tokens, top_k = m->config.top_k;
    const uint32_t *const chosen = m->host.chosen + choices_at(m, l, n_tokens);
    mark_routes(m, chosen, (size_t)n_tokens * top_k);
    kv_note_experts(cache, l, chosen, top_k);
    if (batch->on_experts != NULL)
        batch->on_experts(batch->on_experts_ctx, l, chosen, n_tokens, top_k);
    expert_placement_count(
        m->placement, l,
        &(expert_choices){
            .chosen = chosen, .positions = batch->positions, .n_tokens = n_tokens, .top_k = top_k});
}

void model_tell_choices(model *m, kv_cache *cache, const model_batch *batch)
{
    dev_download(m->d, m->host.chosen, m->scratch.chosen,
                 choices_at(m, m->config.n_layers, batch->n_tokens) * sizeof *m->host.chosen);
    for (uint32_t l = 0; l < m->config.n_layers; l++) {
        if (!model_layer_is_dense(&m->config, l)) tell_choices(m, cache, l, batch);
    }
}

/* Adds what the experts give; over ranks, what all ranks' experts give together. */
static void add_experts(model *m, const model_layer *layer, uint32_t n_tokens,
                        const uint32_t *served)
{
    const model_config *const c = &m->config;
    const model_scratch *const s = &m->scratch;
    const size_t n = (size_t)n_tokens * c->d_model;
    float *const out = m->comm != NULL ? s->moe_sum : s->x;
    if (m->comm != NULL) dev_zero(m->d, out, n * sizeof *out);
    m->d->ops->moe(m->d, &(moe_args){.x = s->normed,
                                     .n_tokens = n_tokens,
                                     .dim = c->d_model,
                                     .ffn = c->d_ffn,
                                     .n_experts = c->n_experts,
                                     .top_k = c->top_k,
                                     .activation = c->activation,
                                     .alpha = c->activation_alpha,
                                     .limit = c->activation_limit,
                                     .expert = layer->expert,
                                     .chosen = served,
                                     .weight = s->gate,
                                     .out = out,
                                     .scratch = s->moe});
    if (m->comm == NULL) return;
    if (dev_comm_sum(&m->sums, out, n) != ERR_OK) return; /* the comm keeps why */
    m->d->ops->add(m->d, &(add_args){.x = s->x, .y = out, .n = n});
}

/* Router and experts; over ranks each computes those that it has. */
static void run_experts(model *m, uint32_t l, uint32_t n_tokens)
{
    const model_scratch *const s = &m->scratch;
    const uint32_t *served = s->chosen + choices_at(m, l, n_tokens);
    route(m, l, n_tokens);
    if (m->comm != NULL) {
        m->d->ops->deal_choices(m->d,
                                &(deal_choices_args){.chosen = served,
                                                     .positions = s->positions,
                                                     .n_tokens = n_tokens,
                                                     .top_k = m->config.top_k,
                                                     .experts = expert_tables_layer(&s->experts, l),
                                                     .rank = m->rank,
                                                     .served = s->served});
        served = s->served;
    }
    add_experts(m, &m->device.layer[l], n_tokens, served);
}

/* The FFN that all tokens pass: an expert that all choose. Every rank computes all of it. */
static void run_common(model *m, uint32_t l, uint32_t n_tokens)
{
    const model_config *const c = &m->config;
    const model_layer *const layer = &m->device.layer[l];
    const model_scratch *const s = &m->scratch;
    float *const weight = layer->shared_gate.data != NULL ? s->gate : s->common_gate;
    if (layer->shared_gate.data != NULL) {
        m->d->ops->matmul(m->d,
                          &(matmul_args){.x = s->normed,
                                         .x_stride = c->d_model,
                                         .n_tokens = n_tokens,
                                         .n_parts = 1,
                                         .part = {{layer->shared_gate, s->router_logits, 1}}});
        m->d->ops->router(m->d, &(router_args){.kind = ROUTER_SIGMOID,
                                               .logits = s->router_logits,
                                               .n_tokens = n_tokens,
                                               .n_experts = 1,
                                               .top_k = 1,
                                               .scale = c->residual_scale,
                                               .expert = s->common_chosen,
                                               .weight = weight}); /* the experts' are used up */
    }
    m->d->ops->moe(m->d, &(moe_args){.x = s->normed,
                                     .n_tokens = n_tokens,
                                     .dim = c->d_model,
                                     .ffn = model_layer_common_ffn(c, l),
                                     .n_experts = 1,
                                     .top_k = 1,
                                     .expert = layer->common,
                                     .chosen = s->common_chosen,
                                     .weight = weight,
                                     .out = s->x,
                                     .scratch = s->moe});
}

void layer_moe(model *m, uint32_t l, uint32_t n_tokens)
{
    const model_config *const c = &m->config;
    const model_layer *const layer = &m->device.layer[l];
    model_norm(m, &(model_norm_args){.x = m->scratch.x,
                                     .w = &layer->moe_norm,
                                     .w_bias = &layer->moe_norm_bias,
                                     .n_tokens = n_tokens,
                                     .out = m->scratch.normed});
    if (!model_layer_is_dense(c, l)) run_experts(m, l, n_tokens);
    if (model_layer_common_ffn(c, l) > 0) run_common(m, l, n_tokens);
}
