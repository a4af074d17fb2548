/* service/engine.c - see engine.h: opening, closing, draining, and the loop of the engine's thread.
 *
 *   engine_queue.c   sessions come in
 *   engine_plan.c    who runs next; admission and preemption
 *   engine_step.c    one step: forward, logits, sampling
 *   engine_retire.c  sessions leave: finished, cancelled, too late
 *   engine_report.c  a line in the log now and then */
#include "service/engine_internal.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>

/* A step takes milliseconds to seconds; one that takes this long hangs. */
static const uint64_t STALL_NS = 300ull * 1000 * 1000 * 1000;

static const cfg_field engine_fields[] = {
    CFG_NUM32(engine_config, n_seqs_max, "max-num-seqs", 1, 4096, "32",
              "sequences that run at once"),
    CFG_NUM32(engine_config, n_batched_tokens_max, "max-num-batched-tokens", 1, 65536, "512",
              "tokens of one step"),
    CFG_NUM32(engine_config, n_queued_max, "max-num-queued-reqs", 1, 65536, "256",
              "sequences that may wait beyond the running ones; more are refused with 429"),
    CFG_NUM32(engine_config, n_context_max, "max-model-len", 0, 16777216, "0",
              "positions of one sequence, prompt and output; 0: the model's"),
};

const cfg_table engine_config_table = {.title = "Engine",
                                       .fields = engine_fields,
                                       .n_fields = sizeof engine_fields / sizeof engine_fields[0]};

static void place_arrays(engine *e, arena *a)
{
    const size_t n_open = e->n_open_max, n_seqs = e->config.n_seqs_max;
    const size_t n_tokens = e->config.n_batched_tokens_max;
    e->inbox = arena_take(a, n_open, sizeof *e->inbox);
    e->items = arena_take(a, n_open, sizeof *e->items);
    e->entries = arena_take(a, n_open, sizeof *e->entries);
    e->batch.plan = arena_take(a, n_seqs, sizeof *e->batch.plan);
    e->batch.kv_rows = arena_take(a, n_seqs, sizeof *e->batch.kv_rows);
    e->batch.slots = arena_take(a, n_seqs, sizeof *e->batch.slots);
    e->batch.tokens = arena_take(a, n_tokens, sizeof *e->batch.tokens);
    e->batch.positions = arena_take(a, n_tokens, sizeof *e->batch.positions);
    e->batch.jobs = arena_take(a, n_tokens, sizeof *e->batch.jobs);
    e->results = arena_take(a, MODEL_LOGIT_ROWS_MAX, sizeof *e->results);
    e->logits = arena_take(a, MODEL_LOGIT_ROWS_MAX, e->n_vocab * sizeof *e->logits);
    e->scratch = arena_take(a, thread_pool_n_threads(e->parts.d->pool), e->scratch_bytes);
}

static err_t place_memory(engine *e)
{
    arena measure;
    arena_init_measure(&measure);
    place_arrays(e, &measure);
    TRY(measure.err);
    TRY(arena_init(&e->memory, measure.used_bytes));
    place_arrays(e, &e->memory);
    return e->memory.err;
}

static err_t check_config(engine *e, err_info *info)
{
    const uint32_t n_positions = model_get_config(e->parts.m)->n_positions;
    if (e->config.n_context_max == 0) e->config.n_context_max = n_positions;
    if (e->config.n_context_max > n_positions) {
        return err_set(info, ERR_BAD_CONFIG, "max-model-len: %u is beyond the model's %u positions",
                       e->config.n_context_max, n_positions);
    }
    /* Otherwise the oldest sessions alone would decode and the others would stand still. */
    if (e->config.n_batched_tokens_max < e->config.n_seqs_max) {
        return err_set(info, ERR_BAD_CONFIG,
                       "max-num-batched-tokens: %u is less than max-num-seqs, %u",
                       e->config.n_batched_tokens_max, e->config.n_seqs_max);
    }
    return ERR_OK;
}

/* A group that has failed: all sessions end with an error, those that still come, too. */
static void end_all(engine *e)
{
    atomic_store_explicit(&e->has_failed, true, memory_order_release);
    for (uint32_t i = 0; i < e->n_items; i++)
        e->entries[i].finish = FINISH_ERROR;
    engine_retire_finished(e);
}

static void *engine_main(void *arg)
{
    engine *e = arg;
    while (engine_take_inbox(e)) {
        atomic_store_explicit(&e->beat_ns, clock_mono_ns(), memory_order_relaxed);
        engine_drop_cancelled(e);
        engine_publish_load(e);
        if (e->n_items > 0) engine_run_step(e);
        leader_tick(e->ranks);
        if (leader_status(e->ranks, NULL) != ERR_OK) end_all(e);
        engine_publish_load(e);
        engine_report_if_due(e);
        atomic_store_explicit(&e->beat_ns, 0, memory_order_relaxed);
    }
    return NULL;
}

static err_t init_locks(engine *e)
{
    pthread_condattr_t attributes;
    if (pthread_condattr_init(&attributes) != 0) return ERR_SYSTEM;
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->wake, &attributes);
    pthread_cond_init(&e->drained, &attributes);
    pthread_condattr_destroy(&attributes);
    return ERR_OK;
}

/* Signals are the business of the thread that main chose for them. */
static err_t start_thread(engine *e)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int status = pthread_create(&e->thread, NULL, engine_main, e);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    e->has_thread = status == 0;
    return status == 0 ? ERR_OK : ERR_SYSTEM;
}

static void engine_free(engine *e)
{
    pthread_cond_destroy(&e->drained);
    pthread_cond_destroy(&e->wake);
    pthread_mutex_destroy(&e->lock);
    arena_deinit(&e->memory);
    leader_close(e->ranks);
    free(e);
}

static err_t open_ranks(engine *e, err_info *info)
{
    const rank_parts parts = {.cache = e->parts.cache,
                              .m = e->parts.m,
                              .comm = e->parts.comm,
                              .limits = {.n_seqs_max = e->config.n_seqs_max,
                                         .n_step_tokens_max = e->config.n_batched_tokens_max,
                                         .n_seq_tokens_max = e->config.n_context_max}};
    return leader_open(&parts, &e->ranks, info);
}

err_t engine_open(const engine_config *config, const engine_parts *parts, engine **out,
                  err_info *info)
{
    *out = NULL;
    engine *e = calloc(1, sizeof *e);
    if (e == NULL) return err_set(info, ERR_NO_MEMORY, "no memory for the engine");
    e->config = *config;
    e->parts = *parts;
    e->n_vocab = model_get_config(parts->m)->n_vocab;
    e->n_open_max = config->n_seqs_max + config->n_queued_max;
    e->scratch_bytes = round_up(sampler_scratch_bytes(e->n_vocab), ARENA_ALIGN);
    err_t err = init_locks(e);
    if (err != ERR_OK) {
        free(e);
        return err_set(info, err, "cannot make a condition variable");
    }
    err = check_config(e, info);
    if (err == ERR_OK) err = replay_text_init(&e->replay, parts->t, e->n_vocab);
    if (err == ERR_OK) err = place_memory(e);
    if (err == ERR_OK) err = open_ranks(e, info);
    if (err == ERR_OK) err = start_thread(e);
    if (err != ERR_OK) {
        engine_free(e);
        return err_set(info, err, "the engine cannot start: %s", err_sentence(err));
    }
    *out = e;
    return ERR_OK;
}

static struct timespec deadline_after_ms(uint32_t timeout_ms)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_sec += timeout_ms / 1000;
    t.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
    if (t.tv_nsec >= 1000000000) {
        t.tv_sec++;
        t.tv_nsec -= 1000000000;
    }
    return t;
}

void engine_drain(engine *e, uint32_t timeout_ms)
{
    const struct timespec deadline = deadline_after_ms(timeout_ms);
    pthread_mutex_lock(&e->lock);
    e->is_draining = true;
    int status = 0;
    while (e->n_held > 0 && status != ETIMEDOUT && timeout_ms > 0)
        status = pthread_cond_timedwait(&e->drained, &e->lock, &deadline);
    if (e->n_held > 0) {
        log_info("engine", "drain cancels sessions=%u", e->n_held);
        e->is_cancelling = true;
        pthread_cond_signal(&e->wake);
    }
    while (e->n_held > 0)
        pthread_cond_wait(&e->drained, &e->lock);
    pthread_mutex_unlock(&e->lock);
}

void engine_close(engine *e)
{
    if (e == NULL) return;
    engine_drain(e, 0);
    pthread_mutex_lock(&e->lock);
    e->is_closing = true;
    pthread_cond_signal(&e->wake);
    pthread_mutex_unlock(&e->lock);
    if (e->has_thread) pthread_join(e->thread, NULL);
    engine_free(e);
}

void engine_poke(engine *e)
{
    pthread_mutex_lock(&e->lock);
    e->is_poked = true;
    pthread_cond_signal(&e->wake);
    pthread_mutex_unlock(&e->lock);
}

uint32_t engine_context_max(const engine *e)
{
    return e->config.n_context_max;
}

err_t engine_status(const engine *e, err_info *info)
{
    const uint64_t beat_ns = atomic_load_explicit(&e->beat_ns, memory_order_relaxed);
    const uint64_t now_ns = clock_mono_ns();
    if (atomic_load_explicit(&e->has_failed, memory_order_acquire))
        return leader_status(e->ranks, info);
    if (beat_ns == 0 || now_ns < beat_ns || now_ns - beat_ns < STALL_NS) return ERR_OK;
    return err_set(info, ERR_TIMEOUT, "a step of the engine has taken %llu s",
                   (unsigned long long)((now_ns - beat_ns) / 1000000000));
}

bool engine_is_alive(const engine *e)
{
    return engine_status(e, NULL) == ERR_OK;
}

uint32_t engine_get_reports(const engine *e, rank_report *out, uint32_t n_max)
{
    return leader_get_reports(e->ranks, out, n_max);
}

engine_load engine_get_load(const engine *e)
{
    return (engine_load){.n_running = atomic_load_explicit(&e->n_running, memory_order_relaxed),
                         .n_waiting = atomic_load_explicit(&e->n_waiting, memory_order_relaxed),
                         .n_preempted =
                             atomic_load_explicit(&e->n_preempted, memory_order_relaxed)};
}
