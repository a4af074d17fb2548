/* kvcache/routing/routing.h - which pages a decode query reads.
 *
 * The reader asks once per decode query and KV head. Candidates are the pages behind the recent window
 * that the layer's own window does not exclude and that have a live slot; sinks and the window are
 * read in any case, and prompts read everything without asking. What is known of a candidate before
 * it is read is its number of live slots and, per query head, a bound of their scores, so its share
 * of the attention is at most n exp(bound) over everything's.
 *
 * A method ranks pages; it never weights outputs: the only correct weights are those of the
 * log-sum-exp merge (kernels/attention.h). Whatever it leaves out is accounted for by a certificate:
 * the attention mass that was not read is at most
 *     sum_unread n exp(bound) / (Z_read + sum_unread n exp(bound)),  Z_read = sum_read exp(score).
 *
 * Most methods rank pages, whichever shard they lie on. topk_balanced and pikv rank shards and read all
 * candidates of those that they choose, hierarchical ranks shards first where pages are scattered over
 * them (is_scattered), and eplb reads everything and asks for experts to be packed onto shards. What is
 * known of a shard is what its candidates say: its bound is their largest, its load their live slots.
 *
 * Over ranks (ranks.h) each chooses among its own pages, and what a method says of all of them holds because
 * it holds on every rank: of Z and U, the mass that rank r has read and that it may have left unread,
 *     U_r <= eps (Z_r + U_r) for all r    gives    sum U_r <= eps (sum Z_r + sum U_r),
 * and the merge by log-sum-exp has weights of just these sums. So `certified` needs to ask nobody, though it
 * may read more than one rank would: one that has little of the mass must cover its own share of it. The same
 * goes for the share tau of an estimate. A rank that does not read the ring has Z_r = 0 at first. */
#ifndef KVCACHE_ROUTING_ROUTING_H
#define KVCACHE_ROUTING_ROUTING_H

#include "kernels/choose_pages.h"
#include "kvcache/page_table.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct kv_route_settings {
    double k;   /* in (0, 1]: share of the candidates that is read; above 1: their number */
    double eps; /* in [0, 1]: most of the attention mass may be unread */
    double tau; /* in [0, 1]: estimated share of the attention mass to read */
} kv_route_settings;

/* What a method knows of one shard; see kv_rank_shards. */
typedef struct kv_route_shard {
    float bound;    /* the largest of its candidates in any head */
    float priority; /* written by the method */
    uint64_t n_live;
    uint32_t n_pages; /* 0: there is nothing to read */
    bool is_chosen;
} kv_route_shard;

enum { KV_ROUTE_K = 1, KV_ROUTE_EPS = 2, KV_ROUTE_TAU = 4 }; /* which settings a method obeys */

/* Arrays for a method to work in. */
typedef struct kv_route_work {
    float *priority;        /* [n_pages] */
    uint32_t *order;        /* [n_pages] */
    double *rest;           /* [group][n_pages + 1] */
    double *scale;          /* [group] */
    bool *is_chosen;        /* [n_pages] */
    kv_route_shard *shards; /* [n_shards] */
    uint32_t *shard_order;  /* [n_shards] */
} kv_route_work;

typedef struct kv_route_args {
    const kv_route_settings *settings;
    uint32_t n_pages; /* candidates, in position order; >= 1 */
    uint32_t n_open;  /* pages that could be read: n_pages, and those of runs that were left out */
    uint32_t group;   /* query heads that read together */
    uint32_t n_shards;
    uint32_t
        n_ranks; /* each chooses among its own candidates: a number of pages is dealt to them */
    bool is_scattered; /* a page's entries have their owner in common, not a block of positions */
    const uint16_t *shard;  /* [n_pages]: where each is listed; NULL for runs */
    const float *misses;    /* [n_shards]: candidates that lie in the file; NULL: none */
    const uint16_t *n_live; /* [n_pages]: slots, >= 1 */
    const float *bound;     /* [group][n_pages]: no score of a live slot is above */
    double *log_read;       /* [group]: log of Z_read so far; valid for methods that need it */
    /* Reads the keys of a candidate and adds to log_read; for methods that need that. */
    void (*read)(void *ctx, uint32_t page);
    void *read_ctx;
    kv_route_work work;
} kv_route_args;

typedef struct kv_routing {
    const char *name;
    uint32_t obeys;      /* KV_ROUTE_... */
    bool needs_log_read; /* sinks and recent window are looked at first */
    attn_rule
        rule; /* of kernels/choose_pages.h that does the same where no page is in the file; or none */
    bool packs_experts; /* placement by expert packs them by load even with kv-eplb: false */

    /* True if every query reads every live entry under these settings. Then `select` is never asked, no
     * boxes are kept, and prefixes are shared with all other exact settings. */
    bool (*is_exact)(const kv_route_settings *settings);

    /* The same as `select`, asked before it, over runs of KV_RUN_PAGES pages instead of pages: those of
     * runs that are not chosen are no candidates. NULL: every page is one. */
    uint32_t (*select_runs)(const kv_route_args *args, uint32_t *chosen);

    /* Writes the chosen candidates, rising, and returns how many. Called from any worker; the answer
     * depends on the arguments alone; must not block, allocate or fail. NULL if always exact. */
    uint32_t (*select)(const kv_route_args *args, uint32_t *chosen);
} kv_routing;

#define KV_ROUTING_LIST(X) \
    X(full)                \
    X(topk)                \
    X(adaptive)            \
    X(certified)           \
    X(hierarchical)        \
    X(topk_balanced)       \
    X(pikv)                \
    X(eplb)

extern const kv_routing *const kv_routings[]; /* ends with NULL */
extern const char kv_routing_names[];         /* " full ..." for messages */

const kv_routing *kv_routing_find(const char *name); /* NULL if unknown */

/* The certificate: unread / (read + unread), both in the same unit and not both 0; a little more, for
 * what the rounding of float scores can have added to `read`. */
double kv_route_certificate(double read, double unread);

/* The largest unread / (read + unread) whose certificate is no larger. */
double kv_route_share(double certificate);

/* Who reads until a certificate holds stops so much below: the pages are summed once more, in another order, for
 * the one that is reported. */
#define KV_ROUTE_MARGIN 1e-5

#endif
