/* service/engine.h - the only thread that touches model and cache.
 *
 * Loop: take new sessions from the bounded queue, drop the cancelled, let batch_scheduler choose the
 * tokens of the next step (decode first, then prompt chunks), reserve KV, forward, logits in bounded
 * groups of rows, sample, publish. When the pool is full the newest session is preempted: its pages go
 * (or stay as a cached prefix), its tokens are kept, and it is recomputed later with the same output.
 * Idle, it sleeps.
 *
 * A prompt that its methods want to see again (kvcache/kv_replay.h) is fed a second time once its first token
 * is drawn, in steps like those of a prompt, before the second is.
 *
 * Over several ranks the engine is rank 0's, and the others do what it does to model and cache (leader.h).
 *
 * A session that can never fit (prompt + max_tokens beyond context or pool) is refused by
 * engine_submit, before it is queued. Nothing is allocated between the first and last token of a step.
 *
 * Threads: every function but open and close may be called by any thread. */
#ifndef SERVICE_ENGINE_H
#define SERVICE_ENGINE_H

#include "base/config.h"
#include "kvcache/kv_cache.h"
#include "model/model.h"
#include "service/kv_look.h"
#include "service/metrics.h"
#include "service/rank_report.h"
#include "service/session.h"

typedef struct engine engine;

typedef struct engine_config {
    uint32_t n_seqs_max;           /* --max-num-seqs: sessions running at once */
    uint32_t n_batched_tokens_max; /* --max-num-batched-tokens: tokens of one step */
    uint32_t n_queued_max;         /* --max-num-queued-reqs: sessions taken in beyond n_seqs_max */
    uint32_t n_context_max;        /* --max-model-len; 0: the model's */
} engine_config;
extern const cfg_table engine_config_table;

/* Borrows all parts; they outlive the engine. Starts the thread. */
typedef struct engine_parts {
    dev *d;
    model *m;
    kv_cache *cache;
    const tokenizer *t;
    metrics *metrics;
    comm *comm; /* of model and cache, this rank being 0; the engine's from now on. NULL: alone */
} engine_parts;
err_t engine_open(const engine_config *config, const engine_parts *parts, engine **out,
                  err_info *info) MUST_CHECK;

/* All sessions of a request together: all are queued or none. ERR_QUEUE_FULL (429), ERR_CLOSED when
 * draining (503), ERR_BAD_REQUEST with the two numbers when a session can never fit. The engine takes
 * its own reference. */
err_t engine_submit(engine *e, session *const *sessions, size_t n_sessions,
                    err_info *info) MUST_CHECK;

/* Takes the look before its next step, idle or not. ERR_QUEUE_FULL while several others wait; ERR_CLOSED. The
 * engine takes its own reference. */
err_t engine_look(engine *e, kv_look *look) MUST_CHECK;

void engine_poke(engine *e); /* something was cancelled: look at once, even if idle */

uint32_t engine_context_max(const engine *e);
bool engine_is_alive(const engine *e); /* engine_status is ERR_OK */

/* ERR_TIMEOUT: a step hangs (5 minutes). Over ranks also what has ended the group; then every session has
 * ended with an error and none is taken any more. Any thread. */
err_t engine_status(const engine *e, err_info *info) MUST_CHECK;

/* Of ranks 0 .. n_max - 1, about a second old; returns how many. Any thread. */
uint32_t engine_get_reports(const engine *e, rank_report *out, uint32_t n_max);

/* Refuses new sessions, waits until the present ones are finished or `timeout_ms` has passed, then
 * cancels the rest; returns when all are finished. */
void engine_drain(engine *e, uint32_t timeout_ms);
void engine_close(engine *e); /* drains with 0 ms; joins the thread. NULL is fine */

typedef struct engine_load { /* a recent, consistent-enough view */
    uint32_t n_running, n_waiting, n_preempted;
} engine_load;
engine_load engine_get_load(const engine *e);

#endif
