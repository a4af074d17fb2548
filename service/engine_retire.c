/* service/engine_retire.c - how sessions leave the engine: finished, cancelled or too late.
 *
 * Pages return before the finish is published: who sees that a session is over may rely on its memory
 * being free. What it computed stays behind as a cached prefix. */
#include "service/engine_internal.h"

#include "base/check.h"
#include "base/clock.h"

static const metric_outcome OUTCOME_OF[FINISH_COUNT] = {[FINISH_STOP] = OUTCOME_STOP,
                                                        [FINISH_LENGTH] = OUTCOME_LENGTH,
                                                        [FINISH_ABORT] = OUTCOME_ABORT,
                                                        [FINISH_ERROR] = OUTCOME_ERROR};

uint32_t engine_n_running(const engine *e)
{
    uint32_t n_running = 0;
    for (uint32_t i = 0; i < e->n_items; i++)
        n_running += e->items[i].is_running;
    return n_running;
}

void engine_publish_load(engine *e)
{
    uint32_t n_running = 0, n_preempted = 0;
    for (uint32_t i = 0; i < e->n_items; i++) {
        if (e->items[i].is_running) {
            n_running++;
        } else if (e->entries[i].was_scheduled) {
            n_preempted++;
        }
    }
    pthread_mutex_lock(&e->lock);
    const uint32_t n_waiting = e->n_inbox + e->n_items - n_running - n_preempted;
    atomic_store_explicit(&e->n_waiting, n_waiting, memory_order_relaxed);
    pthread_mutex_unlock(&e->lock);
    atomic_store_explicit(&e->n_running, n_running, memory_order_relaxed);
    atomic_store_explicit(&e->n_preempted, n_preempted, memory_order_relaxed);
}

static double seconds_between(uint64_t from_ns, uint64_t to_ns)
{
    return to_ns > from_ns ? (double)(to_ns - from_ns) * 1e-9 : 0;
}

static void count_decode(metrics *m, const session_times *times, uint32_t n_output)
{
    const double seconds = seconds_between(times->first_token_ns, times->last_token_ns);
    metrics_observe(m, METRIC_DECODE, seconds);
    metrics_observe(m, METRIC_INFERENCE,
                    seconds_between(times->scheduled_ns, times->last_token_ns));
    if (n_output > 1) metrics_observe(m, METRIC_TPOT, seconds / (n_output - 1));
}

static void count_end(const engine *e, const session *s, session_finish finish, uint64_t now_ns)
{
    metrics *m = e->parts.metrics;
    const session_times times = session_get_times(s);
    metrics_count_outcome(m, OUTCOME_OF[finish]);
    metrics_count_methods(m, engine_methods_of(e, s));
    metrics_observe(m, METRIC_E2E, seconds_between(times.arrival_ns, now_ns));
    metrics_observe(m, METRIC_PROMPT_LENGTH, session_get_spec(s)->n_prompt);
    metrics_observe(m, METRIC_OUTPUT_LENGTH, session_n_output(s));
    metrics_observe(m, METRIC_MAX_TOKENS, session_get_spec(s)->max_tokens);
    if (times.scheduled_ns != 0) {
        metrics_observe(m, METRIC_PREFILL_COMPUTED,
                        session_get_spec(s)->n_prompt - session_cached_tokens(s));
    }
    if (times.first_token_ns != 0) count_decode(m, &times, session_n_output(s));
}

static void count_as_closed(engine *e)
{
    pthread_mutex_lock(&e->lock);
    assert(e->n_open > 0);
    e->n_open--;
    pthread_mutex_unlock(&e->lock);
}

static void count_as_released(engine *e)
{
    pthread_mutex_lock(&e->lock);
    assert(e->n_held > 0);
    e->n_held--;
    if (e->n_held == 0) pthread_cond_broadcast(&e->drained);
    pthread_mutex_unlock(&e->lock);
}

static void note_kv_usage(const engine *e, const entry *en)
{
    kv_usage usage;
    leader_seq_usage(e->ranks, en->slot, &usage);
    session_set_kv_usage(en->s, &usage);
}

static void retire(engine *e, entry *en)
{
    session *s = en->s;
    const uint64_t now_ns = clock_mono_ns();
    if (en->seq != NULL) {
        if (session_get_spec(s)->reports_kv) note_kv_usage(e, en);
        /* Values that gave bad logits must not be found by others. */
        leader_seq_close(e->ranks, en->slot,
                         en->finish == FINISH_ERROR ? NULL : session_history(s));
        en->seq = NULL;
        e->is_full = false;
    }
    count_end(e, s, en->finish, now_ns);
    count_as_closed(e);
    session_end(s, en->finish, now_ns);
    session_release(s);
    count_as_released(e);
}

void engine_retire_finished(engine *e)
{
    uint32_t n_kept = 0;
    for (uint32_t i = 0; i < e->n_items; i++) {
        if (e->entries[i].finish != FINISH_NONE) {
            retire(e, &e->entries[i]);
            continue;
        }
        e->entries[n_kept] = e->entries[i];
        e->items[n_kept] = e->items[i];
        n_kept++;
    }
    e->n_items = n_kept;
}

static bool is_over(const engine *e, const session *s, uint64_t now_ns)
{
    const uint64_t deadline_ns = session_get_spec(s)->deadline_ns;
    return e->cancels_all || session_is_cancelled(s) || (deadline_ns != 0 && now_ns >= deadline_ns);
}

void engine_drop_cancelled(engine *e)
{
    const uint64_t now_ns = clock_mono_ns();
    for (uint32_t i = 0; i < e->n_items; i++) {
        if (is_over(e, e->entries[i].s, now_ns)) e->entries[i].finish = FINISH_ABORT;
    }
    engine_retire_finished(e);
}
