/* service/engine_queue.c - how sessions come into the engine.
 *
 * The inbox is an array under a lock; the engine empties it between steps. What can never fit is
 * refused here, before it is queued, so that nothing in the engine waits for ever. */
#include "service/engine_internal.h"

#include "base/check.h"
#include "base/clock.h"

#include <errno.h>
#include <string.h>
#include <time.h>

/* A setting of the server has the name of its flag, one of the request that of its key. */
static err_t check_replay(const engine *e, const session_spec *spec, err_info *info)
{
    err_info cause = {0};
    if (spec->max_tokens <= 1) return ERR_OK; /* nothing is decoded, and nothing chosen */
    const err_t err = kv_cache_check_prompt(e->parts.cache, spec->methods, spec->n_prompt, &cause);
    if (err == ERR_OK) return ERR_OK;
    assert(strncmp(cause.message, "kv-", 3) == 0);
    return err_set(info, err, "kv%c%s", spec->methods != NULL ? '.' : '-', cause.message + 3);
}

static err_t check_length(const engine *e, const session_spec *spec, err_info *info)
{
    const uint64_t n_tokens = (uint64_t)spec->n_prompt + spec->max_tokens;
    if (n_tokens > e->config.n_context_max) {
        return err_set(info, ERR_BAD_REQUEST,
                       "prompt of %u tokens and max_tokens of %u exceed the context of %u tokens",
                       spec->n_prompt, spec->max_tokens, e->config.n_context_max);
    }
    TRY(check_replay(e, spec, info));
    if (!kv_cache_could_fit(e->parts.cache, spec->methods, (uint32_t)n_tokens)) {
        return err_set(
            info, ERR_BAD_REQUEST,
            "prompt of %u tokens and max_tokens of %u exceed the KV cache of %llu tokens",
            spec->n_prompt, spec->max_tokens,
            (unsigned long long)kv_cache_capacity_tokens(e->parts.cache, spec->methods));
    }
    return ERR_OK;
}

static err_t check_session(const engine *e, const session *s, err_info *info)
{
    const session_spec *spec = session_get_spec(s);
    TRY(check_length(e, spec, info));
    for (uint32_t i = 0; i < spec->n_prompt; i++) {
        if (spec->prompt[i] < e->n_vocab) continue;
        return err_set(info, ERR_BAD_REQUEST, "prompt token %u is outside the vocabulary of %u",
                       spec->prompt[i], e->n_vocab);
    }
    return ERR_OK;
}

/* Neighbours of one group with prompts of one length are siblings. A wrong guess would cost a wait, not
 * a result: pages are shared only where the tokens are equal. */
static bool are_siblings(const session *a, const session *b)
{
    const session_spec *x = session_get_spec(a), *y = session_get_spec(b);
    return x->group == y->group && x->n_prompt == y->n_prompt && !x->score_prompt &&
           !y->score_prompt;
}

/* Under lock. */
static void put_inbox(engine *e, session *const *sessions, size_t n_sessions)
{
    for (size_t i = 0; i < n_sessions; i++) {
        const bool follows = i > 0 && are_siblings(sessions[i - 1], sessions[i]);
        const bool leads = i + 1 < n_sessions && are_siblings(sessions[i], sessions[i + 1]);
        inbox_item *item = &e->inbox[e->n_inbox];
        *item = (inbox_item){.s = session_retain(sessions[i]),
                             .arrival = e->next_arrival++,
                             .shares_prompt = follows || leads};
        item->group = follows ? item[-1].group : item->arrival;
        e->n_inbox++;
    }
    e->n_open += (uint32_t)n_sessions;
    e->n_held += (uint32_t)n_sessions;
    atomic_fetch_add_explicit(&e->n_waiting, (uint32_t)n_sessions, memory_order_relaxed);
}

static err_t put_if_room(engine *e, session *const *sessions, size_t n_sessions, err_info *info)
{
    if (e->is_draining) return err_set(info, ERR_CLOSED, "the server is shutting down");
    if (n_sessions > e->n_open_max - e->n_open) {
        return err_set(info, ERR_QUEUE_FULL, "the queue is full: %u sequences run or wait",
                       e->n_open);
    }
    put_inbox(e, sessions, n_sessions);
    pthread_cond_signal(&e->wake);
    return ERR_OK;
}

err_t engine_submit(engine *e, session *const *sessions, size_t n_sessions, err_info *info)
{
    if (n_sessions > e->n_open_max) {
        return err_set(info, ERR_BAD_REQUEST, "%zu sequences exceed the %u that can run or wait",
                       n_sessions, e->n_open_max);
    }
    for (size_t i = 0; i < n_sessions; i++)
        TRY(check_session(e, sessions[i], info));
    pthread_mutex_lock(&e->lock);
    const err_t err = put_if_room(e, sessions, n_sessions, info);
    pthread_mutex_unlock(&e->lock);
    return err;
}

/* Moves the inbox behind the sessions that are there; order of arrival is kept. */
static void move_inbox(engine *e)
{
    assert(e->n_items + e->n_inbox <= e->n_open_max);
    for (uint32_t i = 0; i < e->n_inbox; i++) {
        const inbox_item *in = &e->inbox[i];
        e->entries[e->n_items] = (entry){.s = in->s};
        e->items[e->n_items] = (sched_item){.arrival = in->arrival,
                                            .group = in->group,
                                            .n_pending = session_get_spec(in->s)->n_prompt,
                                            .shares_prompt = in->shares_prompt};
        e->n_items++;
    }
    e->n_inbox = 0;
}

err_t engine_look(engine *e, kv_look *look)
{
    err_t err = ERR_OK;
    pthread_mutex_lock(&e->lock);
    if (e->is_closing) err = ERR_CLOSED;
    if (err == ERR_OK && e->n_looks == ENGINE_LOOKS_MAX) err = ERR_QUEUE_FULL;
    if (err == ERR_OK) {
        e->looks[e->n_looks++] = kv_look_retain(look);
        pthread_cond_signal(&e->wake);
    }
    pthread_mutex_unlock(&e->lock);
    return err;
}

/* Outside the lock: a look costs a walk over tables. */
static void take_looks(const engine *e, kv_look *const *looks, uint32_t n_looks)
{
    for (uint32_t i = 0; i < n_looks; i++) {
        leader_look(e->ranks, looks[i]);
        kv_look_release(looks[i]);
    }
}

static bool has_work(const engine *e)
{
    return e->n_inbox > 0 || e->n_looks > 0 || e->n_items > 0 || e->is_poked || e->is_closing;
}

/* Until something may have come. Over ranks no longer than a life sign of the group can wait: then true. */
static bool sleep_once(engine *e)
{
    struct timespec end;
    if (leader_is_alone(e->ranks)) {
        pthread_cond_wait(&e->wake, &e->lock);
        return false;
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += LEADER_TICK_MS / 1000;
    return pthread_cond_timedwait(&e->wake, &e->lock, &end) == ETIMEDOUT;
}

bool engine_take_inbox(engine *e)
{
    const bool was_idle = e->n_items == 0;
    kv_look *looks[ENGINE_LOOKS_MAX];
    pthread_mutex_lock(&e->lock);
    bool is_due = false;
    while (!has_work(e) && !is_due)
        is_due = sleep_once(e);
    e->is_poked = false;
    e->cancels_all = e->is_cancelling;
    move_inbox(e);
    const uint32_t n_looks = e->n_looks;
    memcpy(looks, e->looks, n_looks * sizeof *looks);
    e->n_looks = 0;
    const bool goes_on = !e->is_closing || e->n_items > 0;
    pthread_mutex_unlock(&e->lock);
    take_looks(e, looks, n_looks);
    if (was_idle) engine_report_start(e);
    return goes_on;
}
