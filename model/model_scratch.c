/* model/model_scratch.c - the working memory of a step, and what the host sees of it. */
#include "model/model_internal.h"

#include "base/check.h"
#include "kernels/ops_cuda.h"
#include "model/model_gpu.h"

#include <stdlib.h>

/* What decides about sizes. */
typedef struct scratch_shape {
    const model_config *config;
    size_t n_tokens, moe_bytes;
    bool is_apart; /* the device has memory of its own */
    bool draws;
    const expert_tables *experts; /* NULL: one rank has all */
} scratch_shape;

static void place_drawing(arena *a, const scratch_shape *shape, model_drawing *s)
{
    if (!shape->draws) return;
    s->rows = arena_take(a, MODEL_LOGIT_ROWS_MAX, sizeof *s->rows);
    s->edits = arena_take(a, MODEL_LOGIT_ROWS_MAX, MODEL_ROW_EDITS_MAX * sizeof *s->edits);
    s->results = arena_take(a, MODEL_LOGIT_ROWS_MAX, sizeof *s->results);
}

/* A latent's values are in its keys; what else is made of them and of queries needs room. */
static void place_values(arena *a, const model_config *c, size_t n, model_scratch *s)
{
    const size_t head = max_size(c->latent.nope_dim, c->v_dim);
    const bool is_latent = c->latent.kv_rank > 0, has_low = c->latent.q_rank > 0;
    s->v = is_latent ? NULL : arena_take(a, n, (size_t)c->n_kv_heads * c->v_dim * sizeof(float));
    s->q_low = has_low ? arena_take(a, n, c->latent.q_rank * sizeof(float)) : NULL;
    s->heads = is_latent ? arena_take(a, n, c->n_heads * head * sizeof(float)) : NULL;
}

/* What several ranks need. */
static void place_dealing(arena *a, const scratch_shape *shape, model_scratch *s)
{
    const model_config *const c = shape->config;
    const size_t n = shape->n_tokens;
    const expert_tables *tables = shape->experts;
    if (tables == NULL) return;
    s->served = arena_take(a, n, c->top_k * sizeof *s->served);
    s->positions = arena_take(a, n, sizeof *s->positions);
    s->moe_sum = arena_take(a, n, c->d_model * sizeof *s->moe_sum);
    s->experts = *tables;
    s->experts.first_layer =
        (expert_ranks){.first = arena_take(a, tables->n_layers,
                                           (tables->n_experts + (size_t)1) * sizeof(uint32_t)),
                       .rank = arena_take(a, tables->n_layers, tables->n_slots * sizeof(uint16_t))};
}

static void place_scratch(arena *a, const scratch_shape *shape, model_scratch *s)
{
    const model_config *const c = shape->config;
    const size_t n = shape->n_tokens, q_dim = (size_t)c->n_heads * model_key_dim(c),
                 o_dim = (size_t)c->n_heads * model_value_dim(c), n_pairs = c->rope.n_rotated / 2;
    s->x = arena_take(a, n, c->d_model * sizeof(float));
    s->normed = arena_take(a, n, c->d_model * sizeof(float));
    s->q = arena_take(a, n, q_dim * sizeof(float));
    s->k = arena_take(a, n, (size_t)c->n_kv_heads * model_key_dim(c) * sizeof(float));
    place_values(a, c, n, s);
    s->attended = arena_take(a, n, max_size(q_dim, o_dim) * sizeof(float)); /* q_nope, too */
    s->cos = arena_take(a, n, n_pairs * sizeof(float));
    s->sin = arena_take(a, n, n_pairs * sizeof(float));
    s->router_logits = arena_take(a, n, c->n_experts * sizeof(float));
    s->chosen = arena_take(a, n, (size_t)c->n_layers * c->top_k * sizeof(uint32_t));
    place_dealing(a, shape, s);
    s->gate = arena_take(a, n, c->top_k * sizeof(float));
    s->common_chosen = arena_take(a, n, sizeof(uint32_t));
    s->common_gate = arena_take(a, n, sizeof(float));
    s->moe = arena_take(a, shape->moe_bytes, 1);
    s->rows = arena_take(a, MODEL_LOGIT_ROWS_MAX, c->d_model * sizeof(float));
    if (!shape->is_apart) return;
    s->ids = arena_take(a, max_size(n, MODEL_LOGIT_ROWS_MAX), sizeof(uint32_t));
    s->logits = arena_take(a, MODEL_LOGIT_ROWS_MAX, c->n_vocab * sizeof(float));
    place_drawing(a, shape, &s->drawing);
}

/* Of a device whose memory is the host's there is nothing to mirror. */
static void place_mirror(arena *a, const scratch_shape *shape, const model_scratch *s,
                         model_mirror *h)
{
    const model_config *const c = shape->config;
    const size_t n = shape->n_tokens, q_dim = (size_t)c->n_heads * model_key_dim(c);
    h->input_norm = arena_take(a, n, sizeof(float));
    *h = (model_mirror){.input_norm = h->input_norm,
                        .x = s->x,
                        .q_nope = s->attended,
                        .cos = s->cos,
                        .sin = s->sin,
                        .chosen = s->chosen,
                        .moe_sum = s->moe_sum};
    if (!shape->is_apart) return;
    h->x = arena_take(a, n, c->d_model * sizeof(float));
    h->q_nope = arena_take(a, n, q_dim * sizeof(float));
    h->cos = arena_take(a, n, c->rope.n_rotated / 2 * sizeof(float));
    h->sin = arena_take(a, n, c->rope.n_rotated / 2 * sizeof(float));
    h->chosen = arena_take(a, n, (size_t)c->n_layers * c->top_k * sizeof(uint32_t));
    h->moe_sum = shape->experts != NULL ? arena_take(a, n, c->d_model * sizeof(float)) : NULL;
    place_drawing(a, shape, &h->drawing);
}

static err_t no_memory(const model *m, err_t err, size_t bytes, err_info *info)
{
    return err_set(info, err, "model: no memory for %u tokens in a step (%zu bytes)",
                   m->n_step_tokens_max, bytes);
}

static err_t alloc_mirror(model *m, const scratch_shape *shape, err_info *info)
{
    arena measure;
    arena_init_measure(&measure);
    place_mirror(&measure, shape, &m->scratch, &m->host);
    err_t err = measure.err;
    if (err == ERR_OK) err = arena_init(&m->host_memory, measure.used_bytes);
    if (err != ERR_OK) return no_memory(m, err, measure.used_bytes, info);
    place_mirror(&m->host_memory, shape, &m->scratch, &m->host);
    assert(m->host_memory.err == ERR_OK);
    m->scratch_bytes += measure.used_bytes;
    return ERR_OK;
}

/* Of the op that runs the experts, for whichever FFN is the largest; 0 when it overflows. */
static size_t moe_bytes_of(const model_config *c, uint32_t n_tokens,
                           size_t (*scratch_bytes)(uint32_t n_tokens, uint32_t dim, uint32_t ffn,
                                                   uint32_t n_experts, uint32_t top_k))
{
    size_t most = 0;
    const struct {
        uint32_t ffn, n_experts, top_k;
    } runs[] = {
        {c->d_ffn, c->n_experts, c->top_k}, {c->d_shared_ffn, 1, 1}, {c->d_dense_ffn, 1, 1}};
    for (size_t i = 0; i < sizeof runs / sizeof runs[0]; i++) {
        if (runs[i].ffn == 0) continue;
        const size_t bytes =
            scratch_bytes(n_tokens, c->d_model, runs[i].ffn, runs[i].n_experts, runs[i].top_k);
        if (bytes == 0) return 0;
        most = max_size(most, bytes);
    }
    return most;
}

/* What no step changes. */
static err_t fill_constants(model *m, err_info *info)
{
    const size_t n = m->n_step_tokens_max;
    float *const gate = malloc(n * sizeof *gate);
    if (gate == NULL) return no_memory(m, ERR_NO_MEMORY, n * sizeof *gate, info);
    for (size_t i = 0; i < n; i++)
        gate[i] = m->config.residual_scale;
    dev_zero(m->d, m->scratch.common_chosen, n * sizeof *m->scratch.common_chosen);
    dev_upload(m->d, m->scratch.common_gate, gate, n * sizeof *gate);
    free(gate);
    return ERR_OK;
}

err_t model_scratch_alloc(model *m, err_info *info)
{
    const expert_tables experts =
        m->comm != NULL ? expert_placement_tables(m->placement) : (expert_tables){0};
    const scratch_shape shape = {
        .config = &m->config,
        .n_tokens = m->n_step_tokens_max,
        .moe_bytes = moe_bytes_of(&m->config, m->n_step_tokens_max, m->d->ops->moe_scratch_bytes),
        .is_apart = m->d->memory != NULL,
        .draws = m->d->ops->sample != NULL,
        .experts = m->comm != NULL ? &experts : NULL};
    if (shape.moe_bytes == 0)
        return err_set(info, ERR_OVERFLOW, "model: the size of a step's memory overflows");
    arena pieces;
    arena_init_measure(&pieces);
    place_scratch(&pieces, &shape, &m->scratch);
    const size_t bytes = pieces.used_bytes;
    err_t err = pieces.err;
    if (err == ERR_OK && m->d->memory == NULL) err = arena_init(&m->memory, bytes);
    if (err == ERR_OK && m->d->memory != NULL) {
        TRY(dev_alloc(m->d, bytes, &m->scratch_block, info));
        arena_init_over(&m->memory, m->scratch_block, bytes);
    }
    if (err != ERR_OK) return no_memory(m, err, bytes, info);
    place_scratch(&m->memory, &shape, &m->scratch);
    assert(m->memory.err == ERR_OK);
    m->scratch_bytes = bytes;
    TRY(fill_constants(m, info));
    TRY(alloc_mirror(m, &shape, info));
    if (m->comm == NULL) return ERR_OK;
    m->sums = dev_comm_make(m->d, m->comm, m->host.moe_sum);
    model_send_placement(m);
    return ERR_OK;
}

err_t model_gpu_scratch(const model_config *config, uint32_t n_step_tokens,
                        const expert_tables *experts, model_gpu_bytes *out)
{
    arena there, here;
    model_scratch scratch = {0};
    model_mirror mirror;
    const scratch_shape shape = {.config = config,
                                 .n_tokens = n_step_tokens,
                                 .moe_bytes =
                                     moe_bytes_of(config, n_step_tokens, cuda_moe_scratch_bytes),
                                 .is_apart = true,
                                 .draws = true,
                                 .experts = experts};
    if (shape.moe_bytes == 0) return ERR_OVERFLOW;
    arena_init_measure(&there);
    arena_init_measure(&here);
    place_scratch(&there, &shape, &scratch);
    place_mirror(&here, &shape, &scratch, &mirror);
    TRY(there.err);
    *out = (model_gpu_bytes){.scratch = there.used_bytes, .mirror = here.used_bytes};
    return here.err;
}

void model_scratch_free(model *m)
{
    arena_deinit(&m->memory);
    arena_deinit(&m->host_memory);
    dev_free(m->d, m->scratch_block);
}
