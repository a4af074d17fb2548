/* kvcache/kv_step.c - one step: begin, append, experts, end. See kv_cache.h for the order of calls. */
#include "kvcache/away.h"
#include "kvcache/commit.h"
#include "kvcache/demote.h"
#include "kvcache/device_view.h"
#include "kvcache/evict.h"
#include "kvcache/kv_replay.h"
#include "kvcache/ranks.h"

#include <string.h>

/* Copying fewer bytes than this is not worth a parallel loop. */
enum { SERIAL_BYTES_MAX = 64 * 1024 };

/* Tokens of the chunk that is due, and of no other. */
static void check_replay(const kv_row *row)
{
    assert(row->n_tokens <= kv_seq_replay_tokens_max(row->seq));
    assert(!row->is_decode);
}

static void check_rows(const kv_cache *cache, const kv_row *rows, uint32_t n_rows)
{
    uint32_t n_tokens = 0;
    assert(n_rows >= 1);
    assert(n_rows <= cache->limits.n_seqs_max);
    for (uint32_t r = 0; r < n_rows; r++) {
        const kv_seq *seq = rows[r].seq;
        assert(seq->cache == cache);
        assert(seq->is_open);
        assert(seq->n_step_tokens == 0); /* each sequence at most once */
        assert(rows[r].n_tokens >= 1);
        assert(rows[r].n_tokens == 1 || !rows[r].is_decode);
        assert(rows[r].first_token == n_tokens);
        assert(rows[r].n_tokens <= cache->limits.n_step_tokens_max - n_tokens);
        assert(rows[r].n_tokens <= cache->limits.n_seq_tokens_max - seq->length);
        assert(rows[r].is_replay || !seq->is_replaying);
        if (rows[r].is_replay) check_replay(&rows[r]);
        if (!rows[r].is_replay) assert(rows[r].n_tokens <= kv_seq_step_tokens_max(seq));
        n_tokens += rows[r].n_tokens;
    }
}

/* A sequence that evicts encodes nothing before the next step begins. */
static kv_goal goal_after(const kv_row *row)
{
    kv_goal goal = kv_goal_at(row->seq, row->seq->length + row->n_tokens);
    if (kv_methods_evict(&row->seq->methods)) goal.n_coded = row->seq->n_coded;
    if (row->is_replay) goal.window_length = row->seq->n_prompt_tokens;
    return goal;
}

static err_t find_room(kv_cache *cache, const kv_row *rows, uint32_t n_rows)
{
    for (uint32_t r = 0; r < n_rows && cache->ranks.n > 1; r++) {
        if (!rows[r].is_replay) TRY(kv_seq_choose(rows[r].seq));
    }
    for (uint32_t r = 0; r < n_rows; r++)
        TRY(rows[r].is_replay ? kv_replay_take(rows[r].seq) : kv_seq_settle(rows[r].seq));
    memset(cache->need, 0, cache->n_classes * sizeof *cache->need);
    for (uint32_t r = 0; r < n_rows; r++) {
        const kv_goal goal = goal_after(&rows[r]);
        TRY(kv_seq_grow(rows[r].seq, goal.length));
        kv_add_need(rows[r].seq, &goal);
    }
    TRY(kv_view_grow(cache, rows, n_rows));
    kv_pool_tick(cache->pool);
    if (!kv_make_room(cache)) return ERR_KV_FULL;
    kv_promote_rows(cache, rows, n_rows);
    kv_demote_surplus(cache, rows, n_rows);
    return ERR_OK;
}

err_t kv_step_begin(kv_cache *cache, const kv_row *rows, uint32_t n_rows)
{
    assert(!cache->step.is_open);
    check_rows(cache, rows, n_rows);
    const err_t err = kv_ranks_agree(cache, find_room(cache, rows, n_rows), NULL);
    if (err != ERR_OK) {
        kv_publish(cache); /* prefixes may have been given up */
        return err;
    }
    kv_step *step = &cache->step;
    step->is_open = true;
    step->n_rows = n_rows;
    step->n_tokens = 0;
    step->n_appended = 0;
    memset(step->has_experts, 0, cache->n_layers * sizeof *step->has_experts);
    memcpy(step->rows, rows, n_rows * sizeof *rows);
    bool has_decode = false;
    for (uint32_t r = 0; r < n_rows; r++) {
        kv_seq *seq = rows[r].seq;
        const kv_goal goal = goal_after(&rows[r]);
        has_decode = has_decode || rows[r].is_decode;
        kv_reserve(seq, &goal);
        seq->first_token = rows[r].first_token;
        seq->n_step_tokens = rows[r].n_tokens;
        seq->is_replaying = rows[r].is_replay;
        seq->step_misses = (kv_misses){0};
        step->n_tokens += rows[r].n_tokens;
    }
    if (has_decode) kv_reader_begin_step(&cache->reader);
    kv_view_begin_step(cache);
    kv_hint_layer(cache, 0);
    kv_publish(cache);
    return ERR_OK;
}

/* ---- inside the step ----------------------------------------------------------------------------- */

typedef struct append_loop {
    const kv_cache *cache;
    const kv_append_args *args;
} append_loop;

static void append_tokens(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    const append_loop *loop = ctx;
    const kv_cache *cache = loop->cache;
    const uint32_t l = loop->args->layer;
    const kv_layer_shape *shape = &cache->layer[l];
    const kv_strip *strip = &cache->staging.strips.strip[l];
    const dev_ops *ops = cache->d->ops;
    (void)worker;
    for (size_t t = begin; t < end; t++) {
        for (uint32_t h = 0; h < shape->n_kv_heads; h++) {
            uint8_t *base = kv_strips_at(&cache->staging.strips, cache->staging.bytes, l, h);
            const size_t row = t * shape->n_kv_heads + h;
            ops->store(loop->args->k + row * shape->k_dim, shape->k_dim, cache->type,
                       base + t * strip->k_stride_bytes);
            if (strip->v_copy_bytes == 0) continue;
            ops->store(loop->args->v + row * shape->v_dim, shape->v_dim, cache->type,
                       base + strip->v_offset_bytes + t * strip->v_stride_bytes);
        }
    }
}

/* To the host's staging, from its memory. */
static void stage(kv_cache *cache, const kv_append_args *args)
{
    const append_loop loop = {.cache = cache, .args = args};
    const kv_strip *strip = &cache->staging.strips.strip[args->layer];
    const size_t token_bytes =
        cache->n_kv_heads[args->layer] * ((size_t)strip->k_stride_bytes + strip->v_copy_bytes);
    const size_t grain = SERIAL_BYTES_MAX / token_bytes + 1;
    parallel_for(cache->d->pool, cache->step.n_tokens, grain, append_tokens, (void *)&loop);
}

void kv_append(kv_cache *cache, const kv_append_args *args)
{
    kv_step *step = &cache->step;
    assert(step->is_open);
    assert(args->layer == step->n_appended); /* layers rise, each comes once */
    assert(args->layer < cache->n_layers);
    step->n_appended++;
    if (cache->view == NULL) {
        stage(cache, args);
        return;
    }
    kv_view_append(cache, args);
    const kv_append_args host = {args->layer, cache->view->k, cache->view->v};
    if (cache->view->n_hosts > 0) stage(cache, &host);
}

void kv_note_experts(kv_cache *cache, uint32_t layer, const uint32_t *top1, size_t stride)
{
    assert(cache->step.is_open);
    assert(layer < cache->n_layers);
    assert(cache->layer[layer].has_router);
    uint16_t *expert = cache->staging.expert + (size_t)layer * cache->limits.n_step_tokens_max;
    for (uint32_t t = 0; t < cache->step.n_tokens; t++) {
        assert(top1[t * stride] < cache->n_experts);
        expert[t] = (uint16_t)top1[t * stride];
    }
    cache->step.has_experts[layer] = true;
}

/* ---- after the step ------------------------------------------------------------------------------ */

void kv_step_end(kv_cache *cache)
{
    kv_step *step = &cache->step;
    assert(step->is_open);
    assert(step->n_appended == cache->n_layers);
    for (uint32_t l = 0; l < cache->n_layers; l++)
        assert(step->has_experts[l] || !cache->layer[l].has_router);
    kv_view_end_step(cache);
    for (uint32_t r = 0; r < step->n_rows; r++) {
        kv_misses_add(&step->rows[r].seq->misses, &step->rows[r].seq->step_misses);
        if (!step->rows[r].is_replay) kv_observe_commit(step->rows[r].seq);
    }
    kv_commit(cache, step->rows, step->n_rows);
    cache->stats.tokens_appended += step->n_tokens;
    step->is_open = false;
    kv_publish(cache);
}

void kv_step_abort(kv_cache *cache)
{
    assert(cache->step.is_open);
    for (uint32_t r = 0; r < cache->step.n_rows; r++) {
        kv_seq *seq = cache->step.rows[r].seq;
        kv_table_drop(&seq->table, cache->pool, seq->n_blocks, seq->n_reserved, KV_HELD_BY_SEQ);
        seq->n_reserved = seq->n_blocks;
        seq->n_step_tokens = 0;
        seq->is_replaying = seq->is_replaying && seq->length > seq->n_prompt_tokens;
    }
    cache->step.is_open = false;
    kv_publish(cache);
}
