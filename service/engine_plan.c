/* service/engine_plan.c - who runs in the next step: admission, preemption, and the batch.
 *
 * Progress is certain. When the cache is full the newest running session gives up its pages and goes
 * back to waiting with its tokens kept; the oldest is never chosen while another runs, and alone it
 * fits (engine_submit has asked kv_cache_could_fit). After that nobody is admitted until a session ends,
 * so every preemption is paid for by a session that finished, and a preempted one, being older than all
 * that wait, is the first to come back. Its tokens are computed again, whole or from its cached prefix
 * (whole under settings that change values); since results do not depend on the cut and draws are a
 * function of (seed, choice, position), its output is the same. */
#include "service/engine_internal.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"

#include <string.h>

uint32_t engine_n_known(const engine *e, uint32_t item)
{
    const session *s = e->entries[item].s;
    return session_get_spec(s)->n_prompt + session_n_output(s);
}

const kv_methods *engine_methods_of(const engine *e, const session *s)
{
    const kv_methods *own = session_get_spec(s)->methods;
    return own != NULL ? own : kv_cache_methods(e->parts.cache);
}

/* Where routing leaves pages out, every token behind the prompt is a step of its own. That holds for tokens
 * that are computed again after a preemption, too: in chunks they would read everything. */
static uint32_t step_tokens_max(const engine *e, const entry *en)
{
    const uint32_t most = kv_seq_step_tokens_max(en->seq);
    const uint32_t length = kv_seq_length(en->seq), n_prompt = session_get_spec(en->s)->n_prompt;
    if (engine_methods_of(e, en->s)->reads_all) return most;
    return length < n_prompt ? (uint32_t)min_size(most, (size_t)n_prompt - length) : 1;
}

uint32_t engine_n_replay_left(const engine *e, uint32_t item, kv_replay_chunk *chunk)
{
    const entry *en = &e->entries[item];
    if (en->seq == NULL) return 0;
    return replay_n_left(&e->replay, en->seq, session_get_spec(en->s)->n_prompt, chunk);
}

/* What is pending includes one chunk's replay, which also takes room. */
static uint32_t replay_ahead(const engine *e, const entry *en)
{
    const uint32_t n_prompt = session_get_spec(en->s)->n_prompt;
    if (kv_seq_length(en->seq) >= n_prompt || session_get_spec(en->s)->max_tokens <= 1) return 0;
    return kv_cache_replay_tokens(e->parts.cache, engine_methods_of(e, en->s), n_prompt);
}

void engine_update_item(engine *e, uint32_t item)
{
    const entry *en = &e->entries[item];
    sched_item *it = &e->items[item];
    kv_replay_chunk chunk;
    const uint32_t n_known = engine_n_known(e, item);
    const uint32_t n_replay = engine_n_replay_left(e, item, &chunk);
    it->is_running = en->seq != NULL;
    it->n_pending = n_known;
    it->n_step_max = 0;
    if (n_replay > 0) {
        it->n_pending = n_replay + n_known - session_get_spec(en->s)->n_prompt;
        it->n_step_max = n_replay;
    } else if (en->seq != NULL) {
        it->n_pending = n_known - kv_seq_length(en->seq) + replay_ahead(e, en);
        it->n_step_max = step_tokens_max(e, en);
    }
}

void engine_stop_running(engine *e, uint32_t item, const uint32_t *cached_tokens)
{
    entry *en = &e->entries[item];
    leader_seq_close(e->ranks, en->slot, cached_tokens);
    en->seq = NULL;
    en->has_shared = false;
    engine_update_item(e, item);
}

/* Tokens that running sessions other than `item` still have to append before they decode. */
static uint64_t pending_of_others(const engine *e, uint32_t item)
{
    uint64_t n_tokens = 0;
    for (uint32_t i = 0; i < e->n_items; i++) {
        if (i != item && e->items[i].is_running) n_tokens += e->items[i].n_pending;
    }
    return n_tokens;
}

/* An estimate in tokens: what is not used of pool and tiers by open sequences must hold the prompt, what
 * the others still have to append, and a small reserve for their decoding. A wrong one costs a
 * preemption. */
static bool has_room(const engine *e, uint32_t item)
{
    kv_stats stats;
    kv_stats_read(e->parts.cache, &stats);
    if (stats.pool_budget_bytes == 0) return true;
    const double all_bytes =
        (double)(stats.pool_budget_bytes + stats.host_budget_bytes + stats.disk_budget_bytes);
    const double used_bytes = (double)(stats.used_bytes + stats.away_used_bytes);
    const kv_methods *methods = engine_methods_of(e, e->entries[item].s);
    const uint64_t capacity = kv_cache_capacity_tokens(e->parts.cache, methods);
    const uint64_t reserve = capacity / 64;
    return (double)capacity * (1 - used_bytes / all_bytes) >=
           (double)(e->items[item].n_pending + pending_of_others(e, item) + reserve);
}

static void note_first_schedule(engine *e, entry *en, uint32_t n_cached)
{
    const uint64_t now_ns = clock_mono_ns();
    const session_spec *spec = session_get_spec(en->s);
    const uint64_t waited_ns = now_ns > spec->arrival_ns ? now_ns - spec->arrival_ns : 0;
    session_begin(en->s, now_ns, n_cached);
    metrics_observe(e->parts.metrics, METRIC_QUEUE, (double)waited_ns * 1e-9);
    metrics_add(e->parts.metrics, METRIC_PROMPT_TOKENS, spec->n_prompt);
    metrics_add(e->parts.metrics, METRIC_PROMPT_CACHED_TOKENS, n_cached);
    en->was_scheduled = true;
}

/* Opens the session's sequence and takes what the prefix cache has. False: it must wait, or (when it is
 * alone and cannot even be opened) its finish is set. */
static bool admit(engine *e, uint32_t item)
{
    entry *en = &e->entries[item];
    const session_spec *spec = session_get_spec(en->s);
    /* What it leaves behind when preempted has been encoded meanwhile: not what it would compute. */
    const bool is_lossy_again = en->was_scheduled && !engine_methods_of(e, en->s)->is_exact;
    const kv_seq_options options = {.methods = spec->methods,
                                    .salt = spec->salt_bytes > 0 ? spec->salt : "",
                                    .salt_bytes = spec->salt_bytes,
                                    .n_prompt_tokens = spec->n_prompt,
                                    .no_prefix_read = spec->score_prompt || is_lossy_again};
    const bool is_alone = engine_n_running(e) == 0;
    leader_seq opened;
    if (leader_seq_open(e->ranks, &options, session_history(en->s), engine_n_known(e, item),
                        &opened) != ERR_OK) {
        if (is_alone) en->finish = FINISH_ERROR;
        return false;
    }
    en->seq = opened.seq;
    en->slot = opened.slot;
    engine_update_item(e, item);
    if (!is_alone && !has_room(e, item)) {
        engine_stop_running(e, item, NULL);
        return false;
    }
    if (!en->was_scheduled) note_first_schedule(e, en, opened.n_cached);
    return true;
}

/* Admits the waiting sessions of the plan. True if anything has changed, so that a new plan is due. */
static bool admit_planned(engine *e)
{
    bool is_changed = false;
    for (uint32_t r = 0; r < e->batch.n_rows; r++) {
        const uint32_t item = e->batch.plan[r].item;
        if (e->items[item].is_running) continue;
        is_changed = true;
        if (admit(e, item)) continue;
        e->is_full = true;
        engine_retire_finished(e); /* moves the items: the plan is void */
        break;
    }
    return is_changed;
}

/* Plans, admits whom the plan admits, and plans again with what the prefix cache had for them, until
 * nobody new is in the plan. */
static void plan_rows(engine *e)
{
    do {
        const uint32_t n_running = engine_n_running(e);
        if (n_running == 0) e->is_full = false;
        const sched_limits limits = {.n_seqs_max = e->is_full ? n_running : e->config.n_seqs_max,
                                     .n_tokens_max = e->config.n_batched_tokens_max};
        e->batch.n_rows = (uint32_t)sched_plan(e->items, e->n_items, &limits, e->batch.plan);
    } while (admit_planned(e));
}

static void add_job(step_batch *b, const job *j)
{
    b->jobs[b->n_jobs++] = *j;
}

/* What the logits of position `position` are for, if for anything. */
static void add_job_of(engine *e, uint32_t item, uint32_t position, uint32_t batch_row)
{
    const session *s = e->entries[item].s;
    const session_spec *spec = session_get_spec(s);
    const uint32_t next = position + 1;
    if (next == engine_n_known(e, item)) {
        if (spec->max_tokens > 0) {
            add_job(&e->batch, &(job){.batch_row = batch_row, .item = item});
        } else {
            e->entries[item].finish = FINISH_LENGTH; /* scoring was all that was wanted */
        }
        return;
    }
    if (spec->score_prompt && next < spec->n_prompt && next >= session_n_scored(s)) {
        add_job(&e->batch, &(job){.batch_row = batch_row, .item = item, .score_position = next});
    }
}

/* The next tokens of the session's replay. */
static void write_replay(engine *e, const sched_row *row, const kv_replay_chunk *chunk)
{
    const entry *en = &e->entries[row->item];
    const session_spec *spec = session_get_spec(en->s);
    const uint32_t first = kv_seq_length(en->seq) - spec->n_prompt;
    uint32_t *tokens = e->batch.tokens + e->batch.n_tokens;
    for (uint32_t t = 0; t < row->n_tokens; t++)
        tokens[t] = replay_token(&e->replay, spec->prompt, chunk, first + t);
}

static void add_row(engine *e, const sched_row *row, kv_row *kv)
{
    step_batch *b = &e->batch;
    const entry *en = &e->entries[row->item];
    kv_replay_chunk chunk;
    const uint32_t start = kv_seq_length(en->seq);
    const bool is_replay = engine_n_replay_left(e, row->item, &chunk) > 0;
    const bool is_behind = row->n_tokens == 1 && start >= session_get_spec(en->s)->n_prompt;
    const bool is_decode = is_behind && !is_replay;
    *kv = (kv_row){.seq = en->seq,
                   .first_token = b->n_tokens,
                   .n_tokens = row->n_tokens,
                   .is_decode = is_decode,
                   .is_replay = is_replay};
    assert(b->n_tokens + row->n_tokens <= e->config.n_batched_tokens_max);
    if (is_replay) {
        write_replay(e, row, &chunk);
    } else {
        assert(start + row->n_tokens <= engine_n_known(e, row->item));
        memcpy(b->tokens + b->n_tokens, session_history(en->s) + start,
               row->n_tokens * sizeof *b->tokens);
    }
    for (uint32_t t = 0; t < row->n_tokens; t++)
        b->positions[b->n_tokens + t] = start + t;
    if (!is_decode) b->has_prompt = true;
    b->n_tokens += row->n_tokens;
}

static void build_batch(engine *e)
{
    step_batch *b = &e->batch;
    b->n_tokens = 0;
    b->n_jobs = 0;
    b->has_prompt = false;
    for (uint32_t r = 0; r < b->n_rows; r++) {
        add_row(e, &b->plan[r], &b->kv_rows[r]);
        b->slots[r] = e->entries[b->plan[r].item].slot;
    }
}

static void build_jobs(engine *e)
{
    const step_batch *b = &e->batch;
    for (uint32_t r = 0; r < b->n_rows; r++) {
        if (b->kv_rows[r].is_replay) continue; /* nobody asks what follows there */
        const uint32_t first = b->kv_rows[r].first_token;
        for (uint32_t t = 0; t < b->kv_rows[r].n_tokens; t++)
            add_job_of(e, b->plan[r].item, b->positions[first + t], first + t);
    }
}

/* The cache has no room for the step: the newest running session waits. The last one is never
 * preempted: nothing would come back for it, so it ends with an error. */
static void make_room(engine *e, err_t err)
{
    const size_t victim = sched_victim(e->items, e->n_items);
    assert(victim != SIZE_MAX);
    entry *en = &e->entries[victim];
    e->is_full = true;
    if (engine_n_running(e) == 1) {
        log_error("engine", "step refused for a session alone err=%s tokens=%u", err_name(err),
                  engine_n_known(e, (uint32_t)victim));
        en->finish = FINISH_ERROR;
        engine_retire_finished(e);
        return;
    }
    log_debug("engine", "preempted tokens=%u", engine_n_known(e, (uint32_t)victim));
    metrics_add(e->parts.metrics, METRIC_PREEMPTIONS, 1);
    engine_stop_running(e, (uint32_t)victim, session_history(en->s));
}

bool engine_plan_step(engine *e)
{
    while (e->n_items > 0) {
        plan_rows(e);
        if (e->batch.n_rows == 0) return false;
        build_batch(e);
        const leader_step step = {.rows = e->batch.kv_rows,
                                  .slots = e->batch.slots,
                                  .n_rows = e->batch.n_rows,
                                  .tokens = e->batch.tokens,
                                  .n_tokens = e->batch.n_tokens};
        const err_t err = leader_step_begin(e->ranks, &step);
        if (err == ERR_OK) {
            build_jobs(e);
            return true;
        }
        if (leader_status(e->ranks, NULL) != ERR_OK) return false;
        make_room(e, err);
    }
    return false;
}
