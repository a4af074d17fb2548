/* model/layer_moe.c - router and experts. The cache learns each token's first expert: that is what
 * placement by expert goes by, and why it is told after attention and not before.
 *
 * Alone, what the routers chose is needed for the next step only, so the device goes on with its own choices and the
 * host has all of them in one piece behind the last layer. Over ranks each layer waits for it: the host deals
 * choices to ranks. */
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
    m->d->ops->router(m->d, &(router_args){.logits = s->router_logits,
                                           .n_tokens = n_tokens,
                                           .n_experts = c->n_experts,
                                           .top_k = c->top_k,
                                           .renormalise = c->renormalise_top_k,
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

/* Tells all who count choices, and deals them to ranks. */
static void tell_choices(model *m, kv_cache *cache, uint32_t l, const model_batch *batch)
{
    const uint32_t n_tokens = batch->n_tokens, top_k = m->config.top_k;
    const uint32_t *const chosen = m->host.chosen + choices_at(m, l, n_tokens);
    mark_routes(m, chosen, (size_t)n_tokens * top_k);
    kv_note_experts(cache, l, chosen, top_k);
    if (batch->on_experts != NULL)
        batch->on_experts(batch->on_experts_ctx, l, chosen, n_tokens, top_k);
    expert_placement_deal(
        m->placement, l,
        &(expert_choices){
            .chosen = chosen, .positions = batch->positions, .n_tokens = n_tokens, .top_k = top_k},
        m->rank, m->host.served);
}

void model_tell_choices(model *m, kv_cache *cache, const model_batch *batch)
{
    if (m->comm != NULL) return; /* layer by layer it was told already */
    dev_download(m->d, m->host.chosen, m->scratch.chosen,
                 choices_at(m, m->config.n_layers, batch->n_tokens) * sizeof *m->host.chosen);
    for (uint32_t l = 0; l < m->config.n_layers; l++)
        tell_choices(m, cache, l, batch);
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
                                     .expert = layer->expert,
                                     .chosen = served,
                                     .weight = s->gate,
                                     .out = out,
                                     .scratch = s->moe});
    if (m->comm == NULL) return;
    float *const sum = m->host.moe_sum;
    dev_download(m->d, sum, out, n * sizeof *out);
    if (comm_all_reduce(m->comm, sum, sum, n, DTYPE_F32, NULL) != ERR_OK) return; /* it keeps why */
    dev_upload(m->d, out, sum, n * sizeof *out);
    m->d->ops->add(m->d, &(add_args){.x = s->x, .y = out, .n = n});
}

void layer_moe(model *m, kv_cache *cache, uint32_t l, const model_batch *batch)
{
    const model_config *const c = &m->config;
    const model_layer *const layer = &m->device.layer[l];
    const model_scratch *const s = &m->scratch;
    const uint32_t n_tokens = batch->n_tokens;

    m->d->ops->rms_norm(m->d, &(rms_norm_args){.x = s->x,
                                               .w = layer->moe_norm.data,
                                               .w_type = layer->moe_norm.type,
                                               .n_tokens = n_tokens,
                                               .dim = c->d_model,
                                               .eps = c->norm_eps,
                                               .out = s->normed});
    route(m, l, n_tokens);
    const size_t at = choices_at(m, l, n_tokens),
                 bytes = (size_t)n_tokens * c->top_k * sizeof *s->chosen;
    if (m->comm == NULL) {
        add_experts(m, layer, n_tokens, s->chosen + at);
        return;
    }
    dev_download(m->d, m->host.chosen + at, s->chosen + at, bytes);
    tell_choices(m, cache, l, batch);
    dev_upload(m->d, s->served, m->host.served, bytes);
    add_experts(m, layer, n_tokens, s->served);
}
