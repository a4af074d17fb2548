/* service/engine_step.c - one step: forward, logits in bounded groups of rows, sampling, publishing.
 *
 * Once kv_step_begin (in engine_plan_step) has reserved its pages nothing is allocated until the step
 * is counted. Sessions that end in a step are closed after it; their last token is published together
 * with the finish. */
#include "service/engine_internal.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "kvcache/kv_lost.h"

static void count_experts(void *ctx, uint32_t layer, const uint32_t *chosen, uint32_t n_tokens,
                          uint32_t top_k)
{
    metrics_count_experts(ctx, layer, chosen, n_tokens, top_k);
}

static void forward(engine *e)
{
    const model_batch batch = {.tokens = e->batch.tokens,
                               .positions = e->batch.positions,
                               .n_tokens = e->batch.n_tokens,
                               .on_experts = count_experts,
                               .on_experts_ctx = e->parts.metrics};
    leader_forward(e->ranks, &batch);
}

typedef struct group {
    engine *e;
    const job *jobs;
    const model_draw *draws;
} group;

/* What a job wants of its row. */
static model_draw draw_of(const engine *e, const job *j)
{
    const session *s = e->entries[j->item].s;
    if (j->score_position > 0) return (model_draw){.params = NULL};
    model_draw draw = {.params = &session_get_spec(s)->sampling,
                       .state = session_sampling(s),
                       .in = {.n_vocab = e->n_vocab, .position = session_n_output(s)}};
    draw.in.banned = session_banned(s, &draw.in.n_banned);
    return draw;
}

/* On the host. */
static void draw_row(engine *e, const model_draw *draw, size_t row, uint32_t worker)
{
    sampler_input in = draw->in;
    in.logits = e->logits + row * e->n_vocab;
    in.scratch = e->scratch + worker * e->scratch_bytes;
    sampler_run(draw->params, draw->state, &in, &e->results[row]);
}

static void sample_rows(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    const group *g = ctx;
    engine *e = g->e;
    for (size_t row = begin; row < end; row++) {
        const job *j = &g->jobs[row];
        if (g->draws[row].is_drawn) continue;
        if (j->score_position == 0) {
            draw_row(e, &g->draws[row], row, worker);
            continue;
        }
        const session_spec *spec = session_get_spec(e->entries[j->item].s);
        sampler_score(e->logits + row * e->n_vocab, e->n_vocab, spec->prompt[j->score_position],
                      spec->sampling.n_logprobs, &e->results[row]);
    }
}

static void count_token(const engine *e, const session *s, uint64_t now_ns)
{
    metrics *m = e->parts.metrics;
    const session_times before = session_get_times(s);
    metrics_add(m, METRIC_GENERATION_TOKENS, 1);
    if (session_n_output(s) > 0) {
        metrics_observe(m, METRIC_ITL, (double)(now_ns - before.last_token_ns) * 1e-9);
        return;
    }
    const bool is_arrival_known = before.arrival_ns <= now_ns;
    metrics_observe(m, METRIC_TTFT,
                    is_arrival_known ? (double)(now_ns - before.arrival_ns) * 1e-9 : 0);
    metrics_observe(m, METRIC_PREFILL, (double)(now_ns - before.scheduled_ns) * 1e-9);
}

/* Serial, in the order of the batch: a session's scores come before its token. */
static void apply_result(engine *e, const job *j, const sampler_result *result, uint64_t now_ns)
{
    entry *en = &e->entries[j->item];
    if (en->finish == FINISH_ERROR || kv_seq_is_lost(en->seq)) return;
    if (result->is_bad) {
        en->finish = FINISH_ERROR;
    } else if (j->score_position > 0) {
        session_push_score(en->s, j->score_position, result);
    } else {
        count_token(e, en->s, now_ns);
        en->finish = session_push(en->s, result, now_ns);
    }
}

/* False: the device has failed. */
static bool run_jobs(engine *e)
{
    uint32_t rows[MODEL_LOGIT_ROWS_MAX];
    model_draw draws[MODEL_LOGIT_ROWS_MAX];
    for (uint32_t first = 0; first < e->batch.n_jobs; first += MODEL_LOGIT_ROWS_MAX) {
        const job *jobs = &e->batch.jobs[first];
        const uint32_t n_left = e->batch.n_jobs - first;
        const uint32_t n_rows = n_left < MODEL_LOGIT_ROWS_MAX ? n_left : MODEL_LOGIT_ROWS_MAX;
        for (uint32_t i = 0; i < n_rows; i++) {
            rows[i] = jobs[i].batch_row;
            draws[i] = draw_of(e, &jobs[i]);
        }
        model_sample(e->parts.m, rows, n_rows, draws, e->logits, e->results);
        if (model_status(e->parts.m, NULL) != ERR_OK) return false;
        group g = {.e = e, .jobs = jobs, .draws = draws};
        parallel_for(e->parts.d->pool, n_rows, 1, sample_rows, &g);
        const uint64_t now_ns = clock_mono_ns();
        for (uint32_t i = 0; i < n_rows; i++)
            apply_result(e, &jobs[i], &e->results[i], now_ns);
    }
    return true;
}

/* Chunks of prompts that have been read again to their end are taken away. */
static void end_replays(engine *e)
{
    for (uint32_t r = 0; r < e->batch.n_rows; r++) {
        kv_replay_chunk chunk;
        const uint32_t item = e->batch.plan[r].item;
        const entry *en = &e->entries[item];
        if (!e->batch.kv_rows[r].is_replay || !kv_seq_wants_replay(en->seq, &chunk)) continue;
        if (engine_n_replay_left(e, item, &chunk) > 0) continue;
        if (leader_seq_end_replay(e->ranks, en->slot) == 0)
            log_debug("engine", "computed again cause=replay tokens=%u", engine_n_known(e, item));
    }
}

/* Sessions that go on show what this step gave them. */
static void publish_rows(engine *e)
{
    for (uint32_t r = 0; r < e->batch.n_rows; r++) {
        const uint32_t item = e->batch.plan[r].item;
        const entry *en = &e->entries[item];
        engine_update_item(e, item);
        if (en->finish == FINISH_NONE) session_publish(en->s);
    }
}

/* Sessions whose pages the cache could not read back: what this step gave them has been ignored, and
 * their tokens are computed again, as after a preemption. */
static void stop_lost(engine *e)
{
    for (uint32_t r = 0; r < e->batch.n_rows; r++) {
        const uint32_t item = e->batch.plan[r].item;
        entry *en = &e->entries[item];
        if (!kv_seq_is_lost(en->seq)) continue;
        log_debug("engine", "computed again cause=disk tokens=%u", engine_n_known(e, item));
        en->finish = FINISH_NONE; /* it may have been set when the step was planned */
        engine_stop_running(e, item, NULL);
    }
}

static void end_leadership(engine *e, uint64_t sched_group)
{
    for (uint32_t i = 0; i < e->n_items; i++) {
        if (e->items[i].group == sched_group) e->items[i].shares_prompt = false;
    }
}

/* Prompts that this step completed are there for others now, siblings first of all. */
static void share_prompts(engine *e)
{
    for (uint32_t r = 0; r < e->batch.n_rows; r++) {
        const uint32_t item = e->batch.plan[r].item;
        entry *en = &e->entries[item];
        const session_spec *spec = session_get_spec(en->s);
        if (en->seq == NULL || en->has_shared || en->finish == FINISH_ERROR) continue;
        if (kv_seq_length(en->seq) < spec->n_prompt) continue;
        kv_replay_chunk chunk; /* what is read again changes the prompt's pages, for a while */
        if (spec->max_tokens > 1 && kv_seq_wants_replay(en->seq, &chunk)) continue;
        leader_seq_share(e->ranks, en->slot, spec->prompt, spec->n_prompt);
        en->has_shared = true;
        end_leadership(e, e->items[item].group);
    }
}

void engine_run_step(engine *e)
{
    if (!engine_plan_step(e)) return;
    const uint64_t start_ns = clock_mono_ns();
    metrics *m = e->parts.metrics;
    forward(e);
    if (leader_status(e->ranks, NULL) != ERR_OK) return; /* what the step gave is worthless */
    if (!run_jobs(e)) return;
    end_replays(e);
    publish_rows(e);
    metrics_observe(m, METRIC_BATCH_TOKENS, e->batch.n_tokens);
    metrics_observe(m, e->batch.has_prompt ? METRIC_STEP_PREFILL : METRIC_STEP_DECODE,
                    clock_seconds_since(start_ns));
    metrics_add(m, METRIC_STEPS, 1); /* the end of the step: from here on memory may be allocated */
    stop_lost(e);
    share_prompts(e);
    engine_retire_finished(e);
}
