/* model/forward.c - one step: tokens in, hidden states and logits out.
 *
 * A recipe: embed, rotary tables of the step's positions, the layers, and, for the rows that the
 * caller asks for, the final norm and the head. Most tokens of a prompt need no logits, so the norm and the
 * head run on the gathered rows alone; both work row by row, so gathering changes no bit. */
#include "model/model_internal.h"

#include "base/check.h"
#include "kvcache/kv_step_work.h"

#include <math.h>

enum { GRAPH_TOKENS_MAX = 64 };

typedef struct rope_step {
    model *m;
    const uint32_t *positions;
} rope_step;

/* In float32 throughout, as transformers does, since cos(angle) at large positions depends on how the
 * angle was rounded. */
static void fill_rope(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    (void)worker;
    const rope_step *const step = ctx;
    const model *const m = step->m;
    const size_t half = m->config.rope.n_rotated / 2;
    const float scale = m->rope.scale;
    for (size_t t = begin; t < end; t++) {
        for (size_t i = 0; i < half; i++) {
            const float angle = (float)step->positions[t] * m->inv_freq[i];
            m->host.cos[t * half + i] = cosf(angle) * scale;
            m->host.sin[t * half + i] = sinf(angle) * scale;
        }
    }
}

void model_norm(model *m, const model_norm_args *args)
{
    const model_config *const c = &m->config;
    const rms_norm_args norm = {.x = args->x,
                                .w = args->w->data,
                                .w_type = args->w->type,
                                .n_tokens = args->n_tokens,
                                .dim = c->d_model,
                                .eps = c->norm_eps,
                                .out = args->out};
    if (c->norm == MODEL_NORM_RMS) {
        m->d->ops->rms_norm(m->d, &norm);
        return;
    }
    assert(args->w_bias->type == args->w->type);
    m->d->ops->layer_norm(m->d, &(layer_norm_args){.norm = norm, .b = args->w_bias->data});
}

void model_adjust(model *m, float *x, uint32_t n_tokens, uint32_t dim, float scale,
                  const matrix *bias)
{
    const bool has_bias = bias != NULL && bias->data != NULL;
    if (scale == 1 && !has_bias) return;
    m->d->ops->adjust(m->d, &(adjust_args){.x = x,
                                           .b = has_bias ? bias->data : NULL,
                                           .b_type = has_bias ? bias->type : DTYPE_F32,
                                           .n_tokens = n_tokens,
                                           .dim = dim,
                                           .scale = scale,
                                           .limit = INFINITY});
}

/* For debug builds: one more collective a step. */
static bool ranks_routed_alike(const model *m)
{
    uint64_t marks[COMM_RANKS_MAX];
    bool are_alike = true;
    if (m->comm == NULL) return true;
    if (comm_all_gather(m->comm, &m->route_mark, marks, sizeof marks[0], NULL) != ERR_OK)
        return true; /* somebody is lost: another matter */
    for (uint32_t r = 0; r < comm_n_ranks(m->comm); r++)
        are_alike = are_alike && marks[r] == m->route_mark;
    return are_alike;
}

static void send_rope(model *m, uint32_t n_tokens)
{
    const size_t bytes = (size_t)n_tokens * (m->config.rope.n_rotated / 2) * sizeof(float);
    dev_upload(m->d, m->scratch.cos, m->host.cos, bytes);
    dev_upload(m->d, m->scratch.sin, m->host.sin, bytes);
}

/* Where ops find so many ids. */
static const uint32_t *send_ids(model *m, const uint32_t *ids, uint32_t n)
{
    if (m->scratch.ids == NULL) return ids;
    dev_upload(m->d, m->scratch.ids, ids, n * sizeof *ids);
    return m->scratch.ids;
}

/* May the layers be queued at once? Then this says which of such steps it is; else 0. What ranks tell each other through
 * the host stops a step in every layer. In prompts it is the GPU that takes its time, and every length would be a step of
 * its own. */
static uint64_t graph_key(const model *m, const kv_cache *cache, uint32_t n_tokens)
{
    const bool is_queued = m->comm == NULL || dev_comm_is_queued(&m->sums);
    const bool is_stopped = !is_queued || kv_cache_wants_q_nope(cache) ||
                            kv_cache_wants_input_norm(cache) || n_tokens > GRAPH_TOKENS_MAX;
    const uint64_t work = is_stopped ? 0 : kv_step_work(cache);
    return work == 0 ? 0 : work * GRAPH_TOKENS_MAX + n_tokens - 1;
}

static void run_layers(model *m, kv_cache *cache, const model_batch *batch)
{
    const uint64_t key = graph_key(m, cache, batch->n_tokens);
    if (key != 0) dev_begin_graph(m->d, key);
    for (uint32_t l = 0; l < m->config.n_layers; l++) {
        layer_attention(m, cache, l, batch->n_tokens);
        layer_moe(m, l, batch->n_tokens);
    }
    if (key != 0) dev_end_graph(m->d);
}

void model_forward(model *m, kv_cache *cache, const model_batch *batch)
{
    const uint32_t n_tokens = batch->n_tokens;
    assert(n_tokens > 0);
    assert(n_tokens <= m->n_step_tokens_max);
    m->d->ops->embed(m->d, &(embed_args){.table = m->device.embedding,
                                         .id = send_ids(m, batch->tokens, n_tokens),
                                         .n_tokens = n_tokens,
                                         .out = m->scratch.x});
    model_adjust(m, m->scratch.x, n_tokens, m->config.d_model, m->config.embedding_scale, NULL);
    rope_step rope = {m, batch->positions};
    parallel_for(m->d->pool, n_tokens, 16, fill_rope, &rope);
    send_rope(m, n_tokens);
    if (m->comm != NULL)
        dev_upload(m->d, m->scratch.positions, batch->positions,
                   n_tokens * sizeof *batch->positions);
    run_layers(m, cache, batch);
    model_tell_choices(m, cache, batch);
    m->n_last_tokens = n_tokens;
    err_info failure = {0};
    if (m->comm != NULL && model_status(m, &failure) != ERR_OK) {
        comm_abort(m->comm, failure.message);
        return;
    }
    /* After a failure hidden states are anything, and differ. */
    paranoid_assert(ranks_routed_alike(m) || comm_status(m->comm, NULL) != ERR_OK);
    if (!expert_placement_end_step(m->placement)) return;
    model_follow_placement(m);
    model_send_placement(m);
}

void model_compute_logits(model *m, const uint32_t *rows, uint32_t n_rows, float *out)
{
    const model_config *const c = &m->config;
    const model_scratch *const s = &m->scratch;
    assert(n_rows > 0);
    assert(n_rows <= MODEL_LOGIT_ROWS_MAX);
    for (uint32_t i = 0; i < n_rows; i++)
        assert(rows[i] < m->n_last_tokens);
    m->d->ops->embed(m->d, &(embed_args){.table = {.data = s->x,
                                                   .type = DTYPE_F32,
                                                   .rows = m->n_last_tokens,
                                                   .cols = c->d_model},
                                         .id = send_ids(m, rows, n_rows),
                                         .n_tokens = n_rows,
                                         .out = s->rows});
    model_norm(m, &(model_norm_args){.x = s->rows,
                                     .w = &m->device.final_norm,
                                     .w_bias = &m->device.final_norm_bias,
                                     .n_tokens = n_rows,
                                     .out = s->rows});
    model_adjust(m, s->rows, n_rows, c->d_model, 1 / c->logits_divisor, NULL);
    m->d->ops->matmul(m->d, &(matmul_args){.x = s->rows,
                                           .x_stride = c->d_model,
                                           .n_tokens = n_rows,
                                           .n_parts = 1,
                                           .part = {{m->device.head, out, c->n_vocab}}});
    model_adjust(m, out, n_rows, c->n_vocab, 1, &m->device.head_bias);
}
