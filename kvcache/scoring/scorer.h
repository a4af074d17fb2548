/* kvcache/scoring/scorer.h - how much each entry of a head is worth keeping.
 *
 * A scorer sees one KV head of one layer of one sequence, all live entries in position order - sinks,
 * pages and recent ring - and writes one number for each: higher is kept. It decides nothing: how many
 * entries a head keeps is the allocator's (allocator.h), and the cache keeps sinks and ring whatever
 * they score. The cache asks between steps, when the prompt ends, at multiples of 2048 of its positions,
 * and later whenever a block leaves the ring (encode.h), so that scores never depend on how a prompt
 * was cut or on who else is in the batch. A prompt that is read again first (KV_SCORE_REPLAY) it asks about
 * at its end alone.
 *
 * What a scorer says it needs is kept for it while the sequence runs, and counted in its bytes. */
#ifndef KVCACHE_SCORING_SCORER_H
#define KVCACHE_SCORING_SCORER_H

#include "kernels/matmul.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    KV_SCORE_CHUNK = 64, /* entries that are loaded at once, at most */
    KV_REPLAY_SINKS = 4  /* first positions, which every part of a replay has to compare with */
};

/* Entries [0, n) of one head. */
typedef struct kv_score_view {
    uint32_t n;
    const uint32_t *positions; /* [n], rising */
    const float *bias;         /* [n], which attention adds to scores of entries, or NULL */
    /* Rows of entries [first, first + count), count <= KV_SCORE_CHUNK: k [count][k_dim] after RoPE and
     * v [count][v_dim]; each may be NULL. */
    void (*load)(const struct kv_score_view *view, uint32_t first, uint32_t count, float *k,
                 float *v);
    const void *ctx;
} kv_score_view;

/* The latest queries of the head's group, oldest first. */
typedef struct kv_score_queries {
    uint32_t n;     /* the window that the scorer asked for, or fewer if the sequence is shorter */
    const float *q; /* [n][group][k_dim], after RoPE */
    const uint32_t *positions; /* [n], rising; the last one is the newest entry's */
    const float
        *input_norm; /* [n], under KV_SCORE_INPUT_NORM: of the layer's input at the position */
} kv_score_queries;

/* Over all queries so far but those of the first 4 positions, before RoPE. */
typedef struct kv_query_stats {
    uint32_t n;
    const float *mean; /* [group][k_dim] */
    const float *cov;  /* [group][k_dim][k_dim], divided by n */
} kv_query_stats;

/* Pairs among n channels turn by position * freq[c]; other channels do not turn. Pair c is (c, c + n / 2) of them,
 * or, interleaved, (2c, 2c + 1). scale: of rotated vectors (YaRN), usually 1. */
typedef struct kv_rope {
    const float *freq; /* [n / 2] */
    uint32_t n;
    float scale;
    uint32_t first; /* of the channels; 0 but for a latent, where they are the last */
    bool is_interleaved;
} kv_rope;

typedef struct kv_score_args {
    const kv_score_view *view;
    uint32_t layer, head; /* of n_layers, n_kv_heads */
    uint32_t n_layers, n_kv_heads;
    uint32_t group, k_dim, v_dim;
    float scale;     /* of attention scores */
    uint32_t length; /* positions so far, evicted ones too: the next query is at this position */
    uint32_t n_keep; /* of the view, that the head may keep if all heads keep the same */
    uint64_t seed;   /* for `random`; of the cache, the same for all sequences */
    kv_score_queries queries; /* valid under KV_SCORE_QUERIES */
    kv_query_stats stats;     /* valid under KV_SCORE_STATS */
    const kv_rope *rope;      /* or NULL: keys are not turned */
    const float *
        mass; /* [n], under KV_SCORE_MASS: sum over the queries so far of the mean over the group of
                        * the attention that the entry got */
    const float
        *local; /* [n], under KV_SCORE_LOCAL: what the entry got from the queries around it, whether
                         * they could see it or not; see local_mass.h */
    uint32_t n_prompt; /* positions of the prompt */
    const float
        *replay; /* [n], under KV_SCORE_REPLAY: the largest share of attention that the entry got
                 * when the prompt was read again, 0 behind it; NULL: it was not (kv_replay.h).
                 * Under KV_SCORE_INPUT_NORM [group][n]: of shares by the norm of the layer's input */
    const uint32_t *last_use; /* [n], under KV_SCORE_USES: step in which its page was last read */
    const uint32_t *n_uses;   /* [n], under KV_SCORE_USES */
    uint32_t now;             /* this step, in the same count */
    const matrix *out_proj;   /* [d_model][n_heads * v_dim], under KV_SCORE_OUT_PROJ */
    const float *lse;         /* see kv_scorer.lse; NULL: the view is all there is */
    float *work;              /* [work_floats], aligned for doubles */
} kv_score_args;

enum {
    KV_SCORE_QUERIES = 1,
    KV_SCORE_STATS = 2,
    KV_SCORE_MASS = 4,
    KV_SCORE_USES = 8,
    KV_SCORE_OUT_PROJ = 16,
    KV_SCORE_REPLAY = 32,
    KV_SCORE_INPUT_NORM = 128,
    KV_SCORE_LOCAL = 64 /* of sequences that know all their queries: they take no cached prefix */
};

typedef struct kv_score_shape {
    uint32_t n_max; /* entries */
    uint32_t group, k_dim, v_dim, n_queries;
} kv_score_shape;

/* Whose scores decide what a layer keeps. */
typedef enum kv_score_from {
    KV_FROM_OWN_LAYER,
    KV_FROM_SECOND_LAYER, /* the second layer's, or the only one's */
    KV_FROM_ALL_LAYERS    /* summed over the layers that still have the entry */
} kv_score_from;

typedef struct kv_scorer {
    const char *name;
    uint32_t needs;     /* KV_SCORE_... */
    uint32_t n_queries; /* window under KV_SCORE_QUERIES */
    bool over_heads; /* the cache averages scores over the KV heads of the layer: one set for all */
    bool by_page;    /* entries of a page stay or go together: their mean counts */
    bool is_fitted;  /* under KV_SCORE_QUERIES: what is kept stands for all; distill.h */
    kv_score_from from; /* other layers' go by position: scores are at least 0, and over_heads */

    /* Floats that score needs to work in; NULL: none. */
    size_t (*work_floats)(const kv_score_shape *shape);

    /* Over ranks (kvcache/ranks.h) each scores the entries that it has, sinks and ring among them. What normalises
     * a softmax can be that of all: this writes the logs of its sums of exponentials over the view, -inf of none,
     * max(n_queries, 1) * group at most; score has those of all ranks in args->lse. NULL: it goes by its own. */
    void (*lse)(const kv_score_args *args, float *out);

    /* Writes out[n]: finite, higher is kept; equal scores are kept in the order of their positions, oldest
     * first. Called from any worker, several heads at a time; pure: the same arguments give the same
     * bits; must not block, allocate or fail. */
    void (*score)(const kv_score_args *args, float *out);
} kv_scorer;

/* clang-format off */
#define KV_SCORER_LIST(X) \
    X(snapkv) X(distill) X(tova) X(expected_attention) X(knorm) X(keydiff) X(lagkv) X(cur) \
    X(non_causal) X(cap) X(criticalkv) X(criticalkv_l2) X(dropkv) X(finch) X(chunkkv) X(fastv) \
    X(observed_attention) X(h2o) X(kvzip) X(kvzip_plus) X(streaming_llm) X(lru) X(lru_plus) X(random) X(paper_lru_plus) X(paper_duo_attention)
/* clang-format on */

extern const kv_scorer *const kv_scorers[];        /* ends with NULL */
extern const char kv_scorer_names[];               /* " snapkv ..." for messages */
const kv_scorer *kv_scorer_find(const char *name); /* NULL if unknown */

#endif
