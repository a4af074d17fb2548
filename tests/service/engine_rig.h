/* tests/service/engine_rig.h - an engine over a tiny golden model, and sessions to put into it. */
#ifndef TESTS_SERVICE_ENGINE_RIG_H
#define TESTS_SERVICE_ENGINE_RIG_H

#include "service/engine.h"
#include "service/follower.h"

#include <pthread.h>
#include <semaphore.h>

/* The same tests run over several ranks where the build says so. */
#ifndef RIG_RANKS
#define RIG_RANKS 1
#endif
enum { RIG_RANKS_MAX = 8 };

typedef struct rig_options {
    uint32_t n_seqs_max;           /* 0: 8 */
    uint32_t n_batched_tokens_max; /* 0: 64 */
    uint32_t n_queued_max;         /* 0: 256 */
    uint32_t n_ranks;              /* 0: RIG_RANKS */
    uint64_t memory_bytes;         /* of the KV pools of all ranks, as far as they go; 0: plenty */
    uint32_t page_tokens;          /* 0: 8 */
    bool no_prefix_caching;
    const char *compression; /* NULL: none */
    uint64_t host_bytes, disk_bytes;
    bool request_methods;
    err_t (*open_dev)(const dev_config *config, dev **out, err_info *info); /* NULL: the CPU */
} rig_options;

/* A rank other than 0. */
typedef struct rig_rank {
    const rig_options *options;
    comm *comm;
    pthread_t thread;
    err_info ended; /* how following ended */
} rig_rank;

typedef struct rig {
    rig_options options;
    dev *d;
    tokenizer *t;
    model *m;
    kv_cache *cache;
    metrics *counted;
    engine *e;
    comm *comm; /* NULL: alone */
    rig_rank others[RIG_RANKS_MAX - 1];
    bool may_fail; /* the group may have ended with an error: rig_close asks for nothing */
} rig;

void rig_open(const rig_options *options, rig *r);
void rig_close(rig *r); /* checks that no page is used and the cache is sane */

/* A session whose progress can be waited for. The defaults of a zeroed wish: a prompt of its own kind of
 * 20 tokens, 12 output tokens, greedy, EOS ignored. */
typedef struct wish {
    uint32_t n_prompt, max_tokens;
    uint32_t prompt_kind; /* equal kinds have equal prompts, as far as both go */
    uint64_t seed;        /* 0: greedy; else temperature 1 */
    uint64_t group;
    uint64_t deadline_ns;
    bool score_only; /* score_prompt and max_tokens 0 */
    bool with_logprobs;
    float repetition_penalty;                       /* 0: off */
    const uint32_t *prompt;                         /* instead of a kind */
    const char *routing, *scheduling, *compression; /* methods of its own, if one is given */
    double budget;                                  /* of scheduling and selections */
} wish;

typedef struct guest {
    session *s;
    sem_t progress;
} guest;

void guest_make(const rig *r, const wish *w, guest *g);
void guest_submit(const rig *r, guest *g); /* must be accepted */
session_finish guest_wait(guest *g);       /* until it is finished */
void guest_wait_tokens(guest *g, uint32_t n_tokens);
void guest_leave(guest *g); /* drops the reference */

/* Runs one wish alone and copies its tokens; returns their number. */
uint32_t rig_run(const rig *r, const wish *w, uint32_t *tokens);

uint64_t rig_pages_used(const rig *r);
void rig_wait_idle(const rig *r);

#endif
