/* service/batch_scheduler.h - which tokens run in the next step. Pure: no clock, no memory, no I/O.
 *
 * Decode first: every running session that is past its prompt gets its one token. What is left of
 * the token budget goes to prompts in order of arrival, in chunks; then waiting sessions are
 * admitted while places and budget last. A sibling (same group, same prompt) waits until the first of
 * them has finished its prompt, so that it can share it. Preemption picks the newest running session. */
#ifndef SERVICE_BATCH_SCHEDULER_H
#define SERVICE_BATCH_SCHEDULER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct sched_item {
    uint64_t arrival; /* order of arrival; unique */
    uint64_t group;
    uint32_t n_pending;  /* tokens not yet in the cache: 1 while decoding, more during the prompt */
    uint32_t n_step_max; /* of them, at most so many in one step; 0: any number */
    bool is_running;     /* owns KV */
    bool shares_prompt; /* has siblings, and none of them has finished their prompt yet: running, it
                              * leads them; waiting, it waits while a sibling leads */
} sched_item;

typedef struct sched_limits {
    uint32_t n_seqs_max;
    uint32_t n_tokens_max;
} sched_limits;

typedef struct sched_row {
    uint32_t item;     /* index into items */
    uint32_t n_tokens; /* 1 .. n_pending */
} sched_row;

/* items in order of arrival. Writes at most n_seqs_max rows (running first, then newly admitted); returns their number. */
size_t sched_plan(const sched_item *items, size_t n_items, const sched_limits *limits,
                  sched_row *rows);

/* The index of the session to preempt: the newest running one; SIZE_MAX if there is none. */
size_t sched_victim(const sched_item *items, size_t n_items);

#endif
