/* kvcache/scoring/allocator.h - how many entries each layer and head keeps.
 *
 * `budget` is what the settings allow one head on average over layers and heads. An allocator may deal
 * it differently to layers, to the heads of a layer, or both; a NULL function deals evenly. A policy has
 * at most one of each kind: "expected_attention+pyramid+adakv". */
#ifndef KVCACHE_SCORING_ALLOCATOR_H
#define KVCACHE_SCORING_ALLOCATOR_H

#include "kvcache/scoring/scorer.h"

typedef struct kv_layer_share_args {
    uint32_t layer, n_layers;
    uint32_t n;         /* entries that one head has seen, protected ones (sinks, ring) included */
    uint32_t n_window;  /* newest ones that are always kept */
    uint32_t n_sinks;   /* first ones that are */
    uint32_t n_keep;    /* of n, over all layers on average */
    const double *lazy; /* [n_layers]: see laziness; NULL without it */
    double lazy_threshold; /* valid with lazy: a layer above it keeps what is always kept */
} kv_layer_share_args;

/* One layer. Candidates are the entries that are not protected. */
typedef struct kv_split_args {
    uint32_t layer, n_layers, n_heads;
    uint32_t length;           /* positions so far */
    const uint32_t *n;         /* [n_heads]: candidates */
    const float *const *score; /* [n_heads]: score[h][n[h]], in position order */
    uint32_t n_keep;           /* candidates that a head keeps on average */
    const float *retrieval;    /* [n_heads] or NULL: see duo_attention */
    float *work;               /* [kv_allocator.work_floats] */
} kv_split_args;

typedef struct kv_allocator {
    const char *name;

    /* Entries that one head of this layer keeps; summed over the layers at most n_layers * n_keep. */
    uint32_t (*layer_share)(const kv_layer_share_args *args);

    /* How much of what the newest query of one head's group looks at lies outside entries [first, end), the
     * candidates; its own entry left out. In [0, 1], a mean over the group; the cache averages the KV heads of
     * each layer before the first share is asked. NULL: shares do not go by it. Queries are valid, one of
     * them; otherwise as kv_scorer.score. */
    double (*laziness)(const kv_score_args *args, uint32_t first, uint32_t end);
    size_t (*laziness_floats)(const kv_score_shape *shape); /* that it works in */

    /* Writes n_keep[h] <= n[h], together at most n_heads * args->n_keep; exactly that if there are as many
     * candidates. Pure; must not block, allocate or fail. */
    void (*split)(const kv_split_args *args, uint32_t *n_keep);
    size_t (*work_floats)(uint32_t n_heads, uint32_t n_max); /* NULL: none */
} kv_allocator;

#define KV_ALLOCATOR_LIST(X) \
    X(uniform)               \
    X(adakv)                 \
    X(pyramid)               \
    X(deep)                  \
    X(simlayer)              \
    X(duo_attention)

extern const kv_allocator *const kv_allocators[]; /* ends with NULL */
extern const char kv_allocator_names[];

const kv_allocator *kv_allocator_find(const char *name); /* NULL if unknown */

/* Candidates that the heads of a split keep together: n_heads * n_keep, or all if there are fewer. */
uint64_t kv_split_total(const kv_split_args *args);

/* Writes to index[n_keep] the indices of the n_keep <= n largest of score[n], rising; of equal ones the
 * earlier are in. O(n); no score is NaN. */
void kv_keep_best(const float *score, uint32_t n, uint32_t n_keep, uint32_t *index);

#endif
