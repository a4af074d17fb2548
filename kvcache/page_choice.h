/* kvcache/page_choice.h - which pages one decode query reads of one KV head, and what it may miss.
 *
 * Candidates are the blocks that have left the recent window. What counts is the length of the
 * sequence, not where a block lies: after a cut, or with a prefix from the cache, newer blocks may be
 * in pages as well, and a result must not show it. Where entries are placed one by one, candidates are
 * the full pages of such blocks alone: those that are still being filled have no box, and are read. */
#ifndef KVCACHE_PAGE_CHOICE_H
#define KVCACHE_PAGE_CHOICE_H

#include "base/arena.h"
#include "kvcache/kv_cache.h"
#include "kvcache/page_table.h"
#include "kvcache/routing/routing.h"

#include <stdbool.h>

/* Of one worker. n_max: pages that a head of the longest sequence can have; group_max: query heads of a KV head. */
typedef struct kv_choice {
    uint32_t *block;  /* [n_max]: candidates, in the order of kv_walk; n_pages valid */
    uint16_t *shard;  /* [n_max]: in whose list */
    uint32_t *page;   /* [n_max] */
    uint16_t *n_live; /* [n_max] */
    float *bound;     /* [group_max][n_max], used as [group][n_pages] */
    uint32_t *chosen; /* [n_max]: indices of candidates, rising; n_chosen valid */
    float *misses;    /* [n_shards]: candidates in the file; NULL if no page can be there */
    double *log_read; /* [group_max]: log of what the probe has read; see kv_route_args */
    kv_route_work work;
    uint32_t n_pages, n_chosen;
    uint32_t n_open; /* candidates, and the pages of runs that are left out */
    /* Whole runs of pages, if routing asks for them; the pages of left-out ones are no candidates. */
    struct {
        uint32_t *index;  /* [n_max]: in the list; n valid */
        uint16_t *n_live; /* [n_max] */
        float *bound;     /* [group_max][n_max], used as [group][n] */
        uint32_t *chosen; /* [n_max]; n_chosen valid */
        uint32_t n, n_chosen;
    } runs;
} kv_choice;

/* Certificates, of which there is one per query head. */
typedef struct kv_misses {
    uint64_t n;
    double sum, max;
} kv_misses;

/* Run over a measuring and then a real arena. */
void kv_choice_place(arena *a, const kv_cache *cache, kv_choice *choice);

/* Blocks [first, end) of a KV head; of a scattered layer, pages with a position from first_seen on and
 * none from block `end` on. */
typedef struct kv_choice_range {
    const kv_seq *seq;
    uint32_t layer, head;
    uint32_t first, end;
    uint32_t first_seen;
} kv_choice_range;

/* Is the page of a scattered layer a candidate? All others are read. */
bool kv_choice_has(const kv_choice_range *range, const kv_page_at *at);

/* Lists the candidates and bounds their scores; asks routing about runs. */
void kv_choice_list(kv_choice *choice, const kv_choice_range *range, const attn_query *query);

/* Asks routing. `read` and `ctx` as in kv_route_args. */
void kv_choice_make(kv_choice *choice, const kv_choice_range *range, uint32_t group,
                    void (*read)(void *ctx, uint32_t page), void *ctx);

/* Logs of what a head has read, may have left unread and has in its sink logit; -inf: nothing. */
typedef struct kv_certified {
    double read, unread, sink;
} kv_certified;
double kv_certificate(const kv_certified *head);

/* Adds the certificate of every head, from what the query has read in the end. */
void kv_choice_certify(const kv_choice *choice, const attn_query *query, const attn_state *state,
                       const float *sink_logit, kv_misses *misses);

/* Log of the mass that unread pages and runs may have at most in head g; -inf: none is unread. */
double kv_choice_log_unread(const kv_choice *choice, uint32_t g);

/* Log of the mass that a row of a state has read; -inf: none. */
double kv_log_mass(const attn_state *state, size_t row);

static inline void kv_misses_add(kv_misses *to, const kv_misses *from)
{
    to->n += from->n;
    to->sum += from->sum;
    if (from->max > to->max) to->max = from->max;
}

#endif
