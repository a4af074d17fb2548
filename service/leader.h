/* service/leader.h - rank 0 of a group: what the engine asks of cache and model happens on every rank.
 *
 * Every call here that changes a cache is first told to the others (rank_wire.h) and then done; they follow
 * in service/follower.h. Sampling, scheduling and HTTP are rank 0's alone: what it decides reaches the others
 * as such calls, in their order. Queries of a sequence or of the cache are rank 0's own. With one rank all of
 * it is the plain call.
 *
 * After a failure of the group every call fails or returns what is worthless, none waits, and leader_status
 * says why: to be asked after every step. A group that has failed is left; there is no way back.
 *
 * Threads: one owner, the engine's; leader_get_reports any. Nothing is allocated but at open. */
#ifndef SERVICE_LEADER_H
#define SERVICE_LEADER_H

#include "kernels/comm.h"
#include "kvcache/kv_cache.h"
#include "model/model.h"
#include "service/kv_look.h"
#include "service/rank_report.h"

typedef struct leader leader;

/* Borrowed; the same of cache and model on every rank. */
typedef struct rank_parts {
    kv_cache *cache;
    model *m;
    comm *comm;       /* theirs; NULL: alone */
    kv_limits limits; /* the cache's, as page_tokens */
    uint32_t page_tokens;
} rank_parts;

err_t leader_open(const rank_parts *parts, leader **out, err_info *info) MUST_CHECK;
void leader_close(leader *l); /* sequences are closed; the others are let go. NULL is fine */

typedef struct leader_seq {
    kv_seq *seq;
    uint32_t slot;     /* what the other calls take */
    uint32_t n_cached; /* tokens that the prefix cache had, see kv_seq_take_prefix */
} leader_seq;

/* kv_seq_open and kv_seq_take_prefix of tokens[n_tokens], all that is known of the sequence. */
err_t leader_seq_open(leader *l, const kv_seq_options *options, const uint32_t *tokens,
                      uint32_t n_tokens, leader_seq *out) MUST_CHECK;
void leader_seq_share(leader *l, uint32_t slot, const uint32_t *prompt, uint32_t n_prompt);
void leader_seq_close(leader *l, uint32_t slot, const uint32_t *tokens); /* NULL: nothing stays */
uint32_t leader_seq_end_replay(leader *l, uint32_t slot);
void leader_seq_usage(leader *l, uint32_t slot, kv_usage *out); /* sums over all ranks */

typedef struct leader_step {
    const kv_row *rows;    /* [n_rows] */
    const uint32_t *slots; /* [n_rows]: of the rows' sequences */
    uint32_t n_rows;
    const uint32_t *tokens; /* [n_tokens]: of the batch */
    uint32_t n_tokens;
} leader_step;

/* As kv_step_begin, on all ranks or on none. */
err_t leader_step_begin(leader *l, const leader_step *step) MUST_CHECK;

/* model_forward and kv_step_end. */
void leader_forward(leader *l, const model_batch *batch);

/* kv_look_take: what all ranks have together. */
void leader_look(leader *l, kv_look *look);

/* The group's life sign, and the ranks' reports: to be called at least every LEADER_TICK_MS, working or idle.
 * Does nothing if the last one is younger. */
enum { LEADER_TICK_MS = 1000 };
void leader_tick(leader *l);

bool leader_is_alone(const leader *l);

/* The failure of the group, if there is one; never waits. */
err_t leader_status(const leader *l, err_info *info) MUST_CHECK;

/* Copies those of the last tick, of the first n_max ranks; returns how many. */
uint32_t leader_get_reports(leader *l, rank_report *out, uint32_t n_max);

#endif
