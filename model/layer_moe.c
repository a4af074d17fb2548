/* model/layer_moe.c - router and experts. The cache learns each token's first expert: that is what
 * placement by expert goes by, and why it is told after attention and not before. */
#include "model/model_internal.h"

static void route(model *m, const model_layer *layer, uint32_t n_tokens)
{
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
                                           .expert = s->chosen,
                                           .weight = s->gate});
}

/* Ranks that chose differently would own entries twice or not at all; see ranks_routed_alike. */
static void mark_routes(model *m, size_t n_choices)
{
    static const uint64_t prime = 0x100000001b3; /* of FNV-1a */
    for (size_t i = 0; m->comm != NULL && i < n_choices; i++)
        m->route_mark = (m->route_mark ^ m->host.chosen[i]) * prime;
}

/* Adds what the experts give; over ranks, what all ranks' experts give together. */
static void add_experts(model *m, const model_layer *layer, uint32_t n_tokens)
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
                                     .chosen = s->served,
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
    route(m, layer, n_tokens);
    const model_mirror *const h = &m->host;
    const size_t choice_bytes = (size_t)n_tokens * c->top_k * sizeof *s->chosen;
    dev_download(m->d, h->chosen, s->chosen, choice_bytes);
    mark_routes(m, (size_t)n_tokens * c->top_k);
    kv_note_experts(cache, l, h->chosen, c->top_k);
    if (batch->on_experts != NULL)
        batch->on_experts(batch->on_experts_ctx, l, h->chosen, n_tokens, c->top_k);
    expert_placement_deal(m->placement, l,
                          &(expert_choices){.chosen = h->chosen,
                                            .positions = batch->positions,
                                            .n_tokens = n_tokens,
                                            .top_k = c->top_k},
                          m->rank, h->served);
    dev_upload(m->d, s->served, h->served, choice_bytes);
    add_experts(m, layer, n_tokens);
}
