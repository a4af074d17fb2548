/* service/eval/eval_run.c - see eval_run.h.
 *
 * A group goes through two phases, so that what each costs can be told apart: all prompts first, several of
 * them in one step as far as it has room, then decode steps of one token for every lane that is not over.
 * Lanes that are over stay open until the group ends: what the cache holds then is the cost of all of them.
 *
 * Each step lists the rows whose logits somebody wants (asks). They are computed in groups of
 * MODEL_LOGIT_ROWS_MAX and read in parallel, one row a thread; what was read is taken in order, so sums do
 * not depend on the threads.
 *
 * The cost of a group is added when it ends. A group that did not fit leaves no trace in it. */
#include "service/eval/eval_run.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "kvcache/kv_lost.h"
#include "model/sampler.h"
#include "service/eval/eval_watch.h"

#include <math.h>
#include <stdlib.h>

/* One sequence of the group. */
typedef struct lane {
    kv_seq *seq; /* NULL: not open */
    eval_job *job;
    uint32_t n_fed;
    double nll;   /* so far */
    bool is_over; /* nothing is left to feed; the sequence stays open */
} lane;

typedef enum ask_kind { ASK_SCORE, ASK_DRAW, ASK_WATCH } ask_kind;

/* Logits that are wanted of the present step. */
typedef struct ask {
    uint32_t lane;
    uint32_t position; /* of the token that they follow */
    uint32_t token;    /* ASK_SCORE: the target */
    uint32_t row;      /* index in the batch */
    ask_kind kind;
    bool is_watched;
} ask;

/* What a thread has read from one row of logits. */
typedef struct finding {
    uint32_t token; /* ASK_DRAW: the likeliest */
    float logprob;  /* ASK_SCORE: of the target */
    bool is_bad;    /* not finite */
} finding;

struct eval_run {
    eval_options options; /* kv and replay are NULL: borrowed during open only */
    replay_text replay;
    const model_config *shape;
    kv_cache *cache;
    uint32_t n_lanes_max;
    lane *lanes;         /* [n_lanes_max] */
    kv_row *rows;        /* [n_lanes_max] */
    uint32_t *row_lane;  /* [n_lanes_max]; index in lanes */
    uint32_t *tokens;    /* [n_step_tokens_max] */
    uint32_t *positions; /* [n_step_tokens_max] */
    ask *asks;           /* [n_step_tokens_max] */
    float *logits;       /* [MODEL_LOGIT_ROWS_MAX][n_vocab] */
    finding findings[MODEL_LOGIT_ROWS_MAX];
    eval_cost cost;
    bool has_warned; /* of a group that did not fit */

    /* valid only in eval_run_watched */
    const eval_job *jobs; /* the first; to number them */
    const eval_watch *watch;
    uint64_t work_total,
        work_before;   /* tokens of all jobs, and of those before the present group */
    double work_shown; /* what on_progress has seen: it never falls */
    bool is_stopped;

    /* the present group, and the step that is being put together */
    uint32_t n_lanes, n_rows, n_step_tokens, n_asks;
    eval_cost group_cost;
};

void eval_cost_add(const eval_cost *from, eval_cost *to)
{
    to->n_decode_tokens += from->n_decode_tokens;
    to->n_decode_steps += from->n_decode_steps;
    to->decode_seconds += from->decode_seconds;
    to->n_prompt_tokens += from->n_prompt_tokens;
    to->prompt_seconds += from->prompt_seconds;
    to->read_bytes += from->read_bytes;
    to->pages_open += from->pages_open;
    to->pages_read += from->pages_read;
    to->n_certificates += from->n_certificates;
    to->certificate_sum += from->certificate_sum;
    to->resident_bytes += from->resident_bytes;
    to->resident_tokens += from->resident_tokens;
}

/* ---- jobs ----------------------------------------------------------------------------------------- */

static bool is_greedy(const eval_job *job)
{
    return job->n_new > 0;
}

/* Tokens that go through the model; the last one known or drawn is never fed. */
static uint64_t n_to_feed(const eval_job *job)
{
    if (is_greedy(job)) return (uint64_t)job->n_prompt + job->n_new - 1;
    return job->n_tokens > job->n_prompt ? job->n_tokens - 1 : job->n_prompt;
}

static uint32_t token_at(const eval_job *job, uint32_t position)
{
    if (!is_greedy(job) || position < job->n_prompt) return job->tokens[position];
    assert(position - job->n_prompt < job->n_drawn);
    return job->drawn[position - job->n_prompt];
}

static bool is_eos(const model_config *shape, uint32_t token)
{
    for (uint32_t i = 0; i < shape->n_eos; i++) {
        if (shape->eos[i] == token) return true;
    }
    return false;
}

/* ---- one step -------------------------------------------------------------------------------------- */

/* What the logits behind `position` are good for; false: nothing. */
static bool make_ask(const eval_run *r, uint32_t lane_index, uint32_t position, ask *out)
{
    const eval_job *job = r->lanes[lane_index].job;
    *out = (ask){.lane = lane_index, .position = position, .kind = ASK_WATCH};
    if (r->watch != NULL)
        out->is_watched = r->watch->wants(r->watch->ctx, (size_t)(job - r->jobs), position);
    if (is_greedy(job)) {
        if (position + 1 >= job->n_prompt) out->kind = ASK_DRAW;
    } else if (position >= job->n_prompt) {
        out->kind = ASK_SCORE;
        out->token = job->tokens[position + 1];
    }
    return out->is_watched || out->kind != ASK_WATCH;
}

static void begin_step(eval_run *r)
{
    r->n_rows = r->n_step_tokens = r->n_asks = 0;
}

/* Tokens that the lane still has to read again, of its present chunk. */
static uint32_t n_replay_left(const eval_run *r, const lane *l, kv_replay_chunk *chunk)
{
    if (l->is_over || l->n_fed != l->job->n_prompt) return 0;
    return replay_n_left(&r->replay, l->seq, l->job->n_prompt, chunk);
}

static void add_replay(eval_run *r, uint32_t lane_index, uint32_t n_tokens,
                       const kv_replay_chunk *chunk)
{
    const lane *l = &r->lanes[lane_index];
    const uint32_t first = kv_seq_length(l->seq);
    assert(n_tokens <= r->options.n_step_tokens_max - r->n_step_tokens);
    r->row_lane[r->n_rows] = lane_index;
    r->rows[r->n_rows++] = (kv_row){
        .seq = l->seq, .first_token = r->n_step_tokens, .n_tokens = n_tokens, .is_replay = true};
    for (uint32_t i = 0; i < n_tokens; i++, r->n_step_tokens++) {
        r->tokens[r->n_step_tokens] =
            replay_token(&r->replay, l->job->tokens, chunk, first - l->job->n_prompt + i);
        r->positions[r->n_step_tokens] = first + i;
    }
}

static void add_row(eval_run *r, uint32_t lane_index, uint32_t n_tokens)
{
    const lane *l = &r->lanes[lane_index];
    assert(n_tokens <= r->options.n_step_tokens_max - r->n_step_tokens);
    r->row_lane[r->n_rows] = lane_index;
    r->rows[r->n_rows++] = (kv_row){.seq = l->seq,
                                    .first_token = r->n_step_tokens,
                                    .n_tokens = n_tokens,
                                    .is_decode = l->n_fed >= l->job->n_prompt};
    for (uint32_t i = 0; i < n_tokens; i++) {
        const uint32_t position = l->n_fed + i, row = r->n_step_tokens++;
        r->tokens[row] = token_at(l->job, position);
        assert(r->tokens[row] < r->shape->n_vocab);
        r->positions[row] = position;
        ask wanted;
        if (!make_ask(r, lane_index, position, &wanted)) continue;
        wanted.row = row;
        r->asks[r->n_asks++] = wanted;
    }
}

/* As the sampler has it: the largest, ties to the lower id; bad with a NaN or without a finite largest. */
static finding find_likeliest(const float *logits, uint32_t n_vocab)
{
    finding f = {0};
    for (uint32_t i = 0; i < n_vocab; i++) {
        f.is_bad |= isnan(logits[i]) != 0;
        if (logits[i] > logits[f.token]) f.token = i;
    }
    f.is_bad |= !isfinite(logits[f.token]);
    return f;
}

typedef struct reading {
    eval_run *r;
    uint32_t first_ask;
} reading;

static void read_logits(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    const reading *in = ctx;
    const uint32_t n_vocab = in->r->shape->n_vocab;
    (void)worker;
    for (size_t i = begin; i < end; i++) {
        const float *logits = in->r->logits + i * n_vocab;
        const ask *wanted = &in->r->asks[in->first_ask + i];
        if (wanted->kind != ASK_SCORE) {
            in->r->findings[i] = find_likeliest(logits, n_vocab);
            continue;
        }
        sampler_result score;
        sampler_score(logits, n_vocab, wanted->token, 0, &score);
        in->r->findings[i] = (finding){.logprob = score.logprob, .is_bad = score.is_bad};
    }
}

static void draw(eval_run *r, lane *l, uint32_t token)
{
    eval_job *job = l->job;
    assert(job->n_drawn < job->n_new);
    job->drawn[job->n_drawn++] = token;
    if (job->n_drawn == job->n_new || is_eos(r->shape, token)) l->is_over = true;
}

static err_t take_finding(eval_run *r, const ask *wanted, const finding *found, const float *logits,
                          err_info *info)
{
    lane *l = &r->lanes[wanted->lane];
    const size_t job = (size_t)(l->job - r->jobs);
    if (found->is_bad)
        return err_set(info, ERR_BAD_MODEL, "the logits are not finite: job %zu, position %u", job,
                       wanted->position);
    if (wanted->kind == ASK_SCORE) l->nll -= (double)found->logprob;
    if (wanted->kind == ASK_DRAW) draw(r, l, found->token);
    if (wanted->is_watched) r->watch->take(r->watch->ctx, job, wanted->position, logits);
    return ERR_OK;
}

static err_t answer_asks(eval_run *r, err_info *info)
{
    uint32_t rows[MODEL_LOGIT_ROWS_MAX];
    for (uint32_t first = 0; first < r->n_asks; first += MODEL_LOGIT_ROWS_MAX) {
        const uint32_t n = (uint32_t)min_size(r->n_asks - first, MODEL_LOGIT_ROWS_MAX);
        for (uint32_t i = 0; i < n; i++)
            rows[i] = r->asks[first + i].row;
        model_logits(r->options.m, rows, n, r->logits);
        TRY(model_status(r->options.m, info));
        reading in = {.r = r, .first_ask = first};
        parallel_for(r->options.d->pool, n, 1, read_logits, &in);
        for (uint32_t i = 0; i < n; i++)
            TRY(take_finding(r, &r->asks[first + i], &r->findings[i],
                             r->logits + (size_t)i * r->shape->n_vocab, info));
    }
    return ERR_OK;
}

static err_t lost(err_info *info)
{
    return err_set(info, ERR_IO, "kv-disk-path: pages could not be read back");
}

/* If the chunk has been read again to its end. */
static err_t end_replay(const eval_run *r, const lane *l, err_info *info)
{
    kv_replay_chunk chunk;
    if (n_replay_left(r, l, &chunk) > 0) return ERR_OK;
    return kv_seq_end_replay(l->seq) > 0 ? ERR_OK : lost(info);
}

static err_t run_step(eval_run *r, err_info *info)
{
    const model_batch batch = {
        .tokens = r->tokens, .positions = r->positions, .n_tokens = r->n_step_tokens};
    const err_t err = kv_step_begin(r->cache, r->rows, r->n_rows);
    if (err == ERR_KV_FULL) return err; /* the caller may know a way */
    if (err != ERR_OK) return err_set(info, err, "a step: %s", err_sentence(err));
    model_forward(r->options.m, r->cache, &batch);
    kv_step_end(r->cache);
    TRY(model_status(r->options.m, info));
    for (uint32_t i = 0; i < r->n_rows; i++) {
        lane *l = &r->lanes[r->row_lane[i]];
        if (kv_seq_is_lost(l->seq)) return lost(info);
        if (r->rows[i].is_replay) {
            TRY(end_replay(r, l, info));
            continue;
        }
        l->n_fed += r->rows[i].n_tokens;
        if (l->n_fed == n_to_feed(l->job)) l->is_over = true;
    }
    return answer_asks(r, info);
}

/* ---- phases ----------------------------------------------------------------------------------------- */

/* A job that an end of sequence has cut short counts in full: there is nothing left to wait for. */
static void show_progress(eval_run *r)
{
    if (r->options.on_progress == NULL) return;
    uint64_t work = r->work_before;
    for (uint32_t i = 0; i < r->n_lanes; i++)
        work += r->lanes[i].is_over ? n_to_feed(r->lanes[i].job) : r->lanes[i].n_fed;
    const double done = (double)work / (double)r->work_total;
    if (done > r->work_shown) r->work_shown = done; /* it falls when a group runs again */
    r->is_stopped = r->options.on_progress(r->options.on_progress_ctx, r->work_shown);
}

/* The next step's share of the prompts, and of their replays: as much of each as there is room, in order. */
static void plan_prompts(eval_run *r)
{
    begin_step(r);
    for (uint32_t i = 0; i < r->n_lanes; i++) {
        kv_replay_chunk chunk;
        const uint32_t n_left = r->lanes[i].job->n_prompt - r->lanes[i].n_fed;
        const uint32_t n_room = r->options.n_step_tokens_max - r->n_step_tokens;
        const uint32_t n_again = n_replay_left(r, &r->lanes[i], &chunk);
        if (n_again > 0 && n_room > 0)
            add_replay(r, i, (uint32_t)min_size(n_again, n_room), &chunk);
        if (n_again > 0) continue;
        const uint32_t n_most = (uint32_t)min_size(n_left, kv_seq_step_tokens_max(r->lanes[i].seq));
        const uint32_t n = (uint32_t)min_size(n_most, n_room);
        if (n > 0) add_row(r, i, n);
    }
}

static void plan_decode(eval_run *r)
{
    begin_step(r);
    for (uint32_t i = 0; i < r->n_lanes; i++) {
        if (!r->lanes[i].is_over) add_row(r, i, 1);
    }
}

static err_t run_prompts(eval_run *r, err_info *info)
{
    for (plan_prompts(r); r->n_rows > 0 && !r->is_stopped; plan_prompts(r)) {
        const uint64_t start_ns = clock_mono_ns();
        TRY(run_step(r, info));
        r->group_cost.prompt_seconds += clock_seconds_since(start_ns);
        for (uint32_t i = 0; i < r->n_rows; i++)
            r->group_cost.n_prompt_tokens += r->rows[i].is_replay ? 0 : r->rows[i].n_tokens;
        show_progress(r);
    }
    return ERR_OK;
}

static err_t run_decode(eval_run *r, err_info *info)
{
    kv_stats before, after;
    kv_stats_read(r->cache, &before);
    for (plan_decode(r); r->n_rows > 0 && !r->is_stopped; plan_decode(r)) {
        const uint64_t start_ns = clock_mono_ns();
        TRY(run_step(r, info));
        r->group_cost.decode_seconds += clock_seconds_since(start_ns);
        r->group_cost.n_decode_tokens += r->n_step_tokens;
        r->group_cost.n_decode_steps++;
        show_progress(r);
    }
    kv_stats_read(r->cache, &after);
    r->group_cost.read_bytes = after.bytes_read - before.bytes_read;
    r->group_cost.pages_open = after.pages_open - before.pages_open;
    r->group_cost.pages_read = after.pages_read - before.pages_read;
    r->group_cost.n_certificates = after.certificates - before.certificates;
    r->group_cost.certificate_sum = after.certificate_sum - before.certificate_sum;
    return ERR_OK;
}

/* ---- groups ----------------------------------------------------------------------------------------- */

static err_t open_lanes(eval_run *r, eval_job *jobs, uint32_t n, err_info *info)
{
    kv_seq_options own = {.salt = "", .no_prefix_read = true, .no_prefix_write = true};
    for (r->n_lanes = 0; r->n_lanes < n; r->n_lanes++) {
        lane *l = &r->lanes[r->n_lanes];
        *l = (lane){.job = &jobs[r->n_lanes]};
        l->job->n_drawn = 0; /* of a group that did not fit */
        own.n_prompt_tokens = l->job->n_prompt;
        const err_t err = kv_seq_open(r->cache, &own, &l->seq);
        if (err != ERR_OK) return err_set(info, err, "a sequence: %s", err_sentence(err));
    }
    return ERR_OK;
}

static void close_lanes(eval_run *r)
{
    for (uint32_t i = 0; i < r->n_lanes; i++)
        kv_seq_close(r->lanes[i].seq, NULL);
    r->n_lanes = 0;
}

static void end_group(eval_run *r)
{
    kv_stats stats;
    kv_stats_read(r->cache, &stats);
    r->group_cost.resident_bytes = stats.slab_bytes + stats.table_bytes + stats.ring_bytes +
                                   stats.observed_bytes + stats.staging_bytes + stats.host_bytes +
                                   stats.disk_bytes;
    for (uint32_t i = 0; i < r->n_lanes; i++) {
        lane *l = &r->lanes[i];
        r->group_cost.resident_tokens += kv_seq_length(l->seq);
        r->work_before += n_to_feed(l->job);
        if (!l->is_over) continue;
        l->job->is_done = true;
        if (is_greedy(l->job)) continue;
        l->job->nll = l->nll;
        l->job->n_scored = l->n_fed - l->job->n_prompt;
    }
    eval_cost_add(&r->group_cost, &r->cost);
}

static err_t run_group(eval_run *r, eval_job *jobs, uint32_t n, err_info *info)
{
    r->group_cost = (eval_cost){0};
    err_t err = open_lanes(r, jobs, n, info);
    if (err == ERR_OK) err = run_prompts(r, info);
    if (err == ERR_OK) err = run_decode(r, info);
    if (err == ERR_OK) end_group(r);
    close_lanes(r);
    return err;
}

static void warn_once(eval_run *r, uint32_t n_seqs)
{
    if (r->has_warned) return;
    r->has_warned = true;
    log_warn("eval", "group-halved reason=pool-full seqs=%u", n_seqs);
}

/* ---- life cycle -------------------------------------------------------------------------------------- */

/* Positions of a sequence: where its prompt may be read again, what that takes, as far as the model has them. */
static err_t find_positions(const eval_options *options, uint32_t *out, err_info *info)
{
    const uint32_t n = options->n_seq_tokens_max;
    const uint32_t n_model = model_get_config(options->m)->n_positions;
    kv_methods methods;
    *out = n;
    TRY(kv_methods_resolve(options->kv, &methods, info));
    if (!kv_methods_replay(&methods)) return ERR_OK;
    const size_t wanted = n + min_size(n, KV_REPLAY_CHUNK) + KV_REPLAY_LEAD;
    *out = (uint32_t)max_size(n, min_size(wanted, n_model));
    return ERR_OK;
}

static err_t open_cache(eval_run *r, const eval_options *options, err_info *info)
{
    kv_config config = *options->kv;
    uint32_t n_positions;
    TRY(find_positions(options, &n_positions, info));
    config.prefix_caching = false;
    const kv_limits limits = {.n_seqs_max = r->n_lanes_max,
                              .n_step_tokens_max = options->n_step_tokens_max,
                              .n_seq_tokens_max = n_positions};
    return kv_cache_open(options->d, &config, model_get_kv_shape(options->m), &limits, &r->cache,
                         info);
}

static err_t reserve(eval_run *r, err_info *info)
{
    const uint32_t n_step = r->options.n_step_tokens_max;
    r->lanes = calloc(r->n_lanes_max, sizeof *r->lanes);
    r->rows = calloc(r->n_lanes_max, sizeof *r->rows);
    r->row_lane = calloc(r->n_lanes_max, sizeof *r->row_lane);
    r->tokens = calloc(n_step, sizeof *r->tokens);
    r->positions = calloc(n_step, sizeof *r->positions);
    r->asks = calloc(n_step, sizeof *r->asks);
    r->logits = calloc(MODEL_LOGIT_ROWS_MAX, r->shape->n_vocab * sizeof *r->logits);
    if (r->lanes != NULL && r->rows != NULL && r->row_lane != NULL && r->tokens != NULL &&
        r->positions != NULL && r->asks != NULL && r->logits != NULL)
        return ERR_OK;
    return err_set(info, ERR_NO_MEMORY, "no memory for %u sequences and %u tokens a step",
                   r->n_lanes_max, n_step);
}

err_t eval_run_open(const eval_options *options, eval_run **out, err_info *info)
{
    *out = NULL;
    assert(options->n_seqs_max >= 1);
    assert(options->n_step_tokens_max >= 1);
    assert(options->n_seq_tokens_max >= 1);
    const model_config *shape = model_get_config(options->m);
    if (options->n_seq_tokens_max - 1 > shape->n_positions) /* the last token is never fed */
        return err_set(info, ERR_BAD_CONFIG,
                       "a sequence of %u tokens is longer than the model's %u positions",
                       options->n_seq_tokens_max - 1, shape->n_positions);
    eval_run *r = calloc(1, sizeof *r);
    if (r == NULL) return err_set(info, ERR_NO_MEMORY, "no memory for an evaluation");
    r->options = *options;
    r->options.kv = NULL;
    r->options.replay = NULL;
    if (options->replay != NULL) r->replay = *options->replay;
    r->shape = shape;
    r->n_lanes_max = (uint32_t)min_size(options->n_seqs_max, options->n_step_tokens_max);
    err_t err = reserve(r, info);
    if (err == ERR_OK) err = open_cache(r, options, info);
    if (err != ERR_OK) {
        eval_run_close(r);
        return err;
    }
    *out = r;
    return ERR_OK;
}

void eval_run_close(eval_run *r)
{
    if (r == NULL) return;
    kv_cache_close(r->cache);
    free(r->lanes);
    free(r->rows);
    free(r->row_lane);
    free(r->tokens);
    free(r->positions);
    free(r->asks);
    free(r->logits);
    free(r);
}

/* ---- running ------------------------------------------------------------------------------------------ */

static err_t begin_jobs(eval_run *r, eval_job *jobs, size_t n_jobs, err_info *info)
{
    r->work_total = r->work_before = 0;
    r->work_shown = 0;
    r->is_stopped = false;
    for (size_t i = 0; i < n_jobs; i++) {
        eval_job *job = &jobs[i];
        assert(job->n_prompt >= 1);
        assert(job->n_tokens >= job->n_prompt);
        assert(!is_greedy(job) || job->n_tokens == job->n_prompt);
        const uint64_t n_tokens = (uint64_t)job->n_tokens + job->n_new;
        if (n_tokens > r->options.n_seq_tokens_max)
            return err_set(info, ERR_BAD_ARGUMENT, "job %zu: %llu tokens are more than %u", i,
                           (unsigned long long)n_tokens, r->options.n_seq_tokens_max);
        if (n_to_feed(job) > job->n_prompt)
            TRY(kv_cache_check_prompt(r->cache, NULL, job->n_prompt, info));
        job->n_drawn = job->n_scored = 0;
        job->nll = 0;
        job->is_done = false;
        r->work_total += n_to_feed(job);
    }
    return ERR_OK;
}

static err_t pool_too_small(const eval_run *r, const eval_job *job, err_info *info)
{
    kv_stats stats;
    kv_stats_read(r->cache, &stats);
    return err_set(info, ERR_KV_FULL,
                   "kv-cache-memory-bytes: %llu cannot hold one sequence of %llu tokens",
                   (unsigned long long)stats.pool_budget_bytes, (unsigned long long)n_to_feed(job));
}

err_t eval_run_watched(eval_run *r, eval_job *jobs, size_t n_jobs, const eval_watch *watch,
                       err_info *info)
{
    uint32_t n_group = r->n_lanes_max;
    TRY(begin_jobs(r, jobs, n_jobs, info));
    r->jobs = jobs;
    r->watch = watch;
    for (size_t first = 0; first < n_jobs && !r->is_stopped;) {
        const uint32_t n = (uint32_t)min_size(n_group, n_jobs - first);
        const err_t err = run_group(r, &jobs[first], n, info);
        if (err == ERR_KV_FULL && n == 1) return pool_too_small(r, &jobs[first], info);
        if (err == ERR_KV_FULL) {
            n_group = n / 2;
            warn_once(r, n_group);
            continue;
        }
        TRY(err);
        first += n;
    }
    return ERR_OK;
}

err_t eval_run_jobs(eval_run *r, eval_job *jobs, size_t n_jobs, err_info *info)
{
    return eval_run_watched(r, jobs, n_jobs, NULL, info);
}

const eval_cost *eval_run_cost(const eval_run *r)
{
    return &r->cost;
}
