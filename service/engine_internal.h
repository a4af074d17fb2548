/* service/engine_internal.h - the struct behind engine.h.
 *
 * Two halves: what other threads reach (under `lock`, or atomic), and what only the engine's thread
 * touches. The sessions in the engine are two arrays in order of arrival: `items`, which the
 * scheduler reads, and `entries`, the rest. All arrays are placed once, at open, for the most sessions
 * and tokens that the configuration allows. */
#ifndef SERVICE_ENGINE_INTERNAL_H
#define SERVICE_ENGINE_INTERNAL_H

#include "base/arena.h"
#include "service/batch_scheduler.h"
#include "service/engine.h"
#include "service/leader.h"
#include "service/replay_text.h"
#include "service/session_write.h"

#include <pthread.h>
#include <stdatomic.h>

enum { ENGINE_LOOKS_MAX = 4 };

typedef struct entry {
    session *s;            /* one reference */
    kv_seq *seq;           /* while running, else NULL */
    uint32_t slot;         /* of it, to the leader */
    bool was_scheduled;    /* has run before: when waiting, it was preempted */
    bool has_shared;       /* kv_seq_share_prompt was called for the present seq */
    session_finish finish; /* set within a step, acted upon after it */
} entry;

typedef struct inbox_item {
    session *s;
    uint64_t arrival, group;
    bool shares_prompt;
} inbox_item;

/* One row of logits and what it is for. */
typedef struct job {
    uint32_t batch_row; /* index of the token in the batch */
    uint32_t item;
    uint32_t score_position; /* of the prompt's token to be scored; 0: draw a token instead */
} job;

typedef struct step_batch {
    sched_row *plan; /* [n_seqs_max] */
    kv_row *kv_rows; /* [n_seqs_max] */
    uint32_t *slots; /* [n_seqs_max]: of their sequences */
    uint32_t n_rows;
    uint32_t *tokens;    /* [n_batched_tokens_max] */
    uint32_t *positions; /* [n_batched_tokens_max] */
    uint32_t n_tokens;
    job *jobs; /* [n_batched_tokens_max] */
    uint32_t n_jobs;
    bool has_prompt; /* tokens of a prompt, or of a recomputation, are among them */
} step_batch;

/* Counters at the last line of the log. */
typedef struct engine_report {
    uint64_t at_ns;
    uint64_t n_prompt, n_output, n_queried, n_hit;
} engine_report;

struct engine {
    engine_config config; /* n_context_max resolved */
    engine_parts parts;
    leader *ranks;
    uint32_t n_vocab;
    replay_text replay;  /* what prompts that are read again are fed */
    uint32_t n_open_max; /* sessions in the engine: n_seqs_max + n_queued_max */
    arena memory;
    pthread_t thread;
    bool has_thread;

    /* ---- shared, under lock */
    pthread_mutex_t lock;
    pthread_cond_t wake;    /* the engine sleeps here */
    pthread_cond_t drained; /* engine_drain sleeps here until n_held is 0 */
    inbox_item *inbox;      /* [n_open_max] */
    uint32_t n_inbox;
    uint32_t n_open; /* submitted and not finished: what the queue's limit counts */
    uint32_t n_held; /* submitted and not released */
    uint64_t next_arrival;
    kv_look *looks[ENGINE_LOOKS_MAX]; /* [n_looks], a reference each */
    uint32_t n_looks;
    bool is_poked, is_draining, is_cancelling, is_closing;

    /* ---- shared, atomic */
    _Atomic uint32_t n_running, n_waiting, n_preempted;
    _Atomic uint64_t beat_ns; /* start of the present step; 0 while idle */
    atomic_bool has_failed;   /* the group of ranks is lost: see leader_status */

    /* ---- the engine's thread alone */
    sched_item *items; /* [n_open_max] */
    entry *entries;    /* [n_open_max] */
    uint32_t n_items;
    bool cancels_all; /* a drain has run out of time */
    /* The pool has turned somebody away. Nobody is admitted until a session ends and its pages
     * return (or none runs), so that preemptions cannot go round in circles. */
    bool is_full;
    step_batch batch;
    engine_report reported;
    float *logits;           /* [MODEL_LOGIT_ROWS_MAX][n_vocab] */
    sampler_result *results; /* [MODEL_LOGIT_ROWS_MAX] */
    uint8_t *scratch;        /* [n_threads][scratch_bytes] */
    size_t scratch_bytes;
};

/* engine_queue.c */
bool engine_take_inbox(engine *e); /* sleeps while idle; false: closed and empty */

/* engine_report.c */
void engine_report_start(engine *e); /* leaving the idle state: a long pause is no interval */
void engine_report_if_due(engine *e);

/* engine_retire.c */
void engine_drop_cancelled(engine *e);
void engine_retire_finished(engine *e); /* entries whose finish is set */
void engine_publish_load(engine *e);
uint32_t engine_n_running(const engine *e);

/* engine_plan.c: chooses the rows of a step and begins it in the cache. False: nothing to run. */
bool engine_plan_step(engine *e);

/* Gives up the pages of a running session; its tokens stay. cached_tokens as in kv_seq_close. */
void engine_stop_running(engine *e, uint32_t item, const uint32_t *cached_tokens);

/* engine_step.c */
void engine_run_step(engine *e);

/* Tells the scheduler what the session's sequence holds, if it has one. */
void engine_update_item(engine *e, uint32_t item);

/* Tokens of its prompt that the session has to read again in its present chunk; 0: none, now. */
uint32_t engine_n_replay_left(const engine *e, uint32_t item, kv_replay_chunk *chunk);

/* The session's own, or those of the cache. */
const kv_methods *engine_methods_of(const engine *e, const session *s);

/* Tokens that must be in the cache: prompt and output so far. */
uint32_t engine_n_known(const engine *e, uint32_t item);

#endif
