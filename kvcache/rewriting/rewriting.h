/* kvcache/rewriting/rewriting.h - what is written into the entries that a head keeps, when others go.
 *
 * Eviction alone leaves kept keys and values as they were. A rewriting changes them once, while all entries
 * of the head are still there and before anything is packed or encoded (kvcache/rewrite.h). Several may be
 * at work; they run in the order of the list below, whatever the order of their names in the setting:
 *
 *   merge     values of entries that go are blended into values of entries that stay
 *   rerotate  keys turn to where they would stand if the entries that went had never been
 *
 * A rewriting sees one KV head of one sequence and decides nothing about who stays. */
#ifndef KVCACHE_REWRITING_REWRITING_H
#define KVCACHE_REWRITING_REWRITING_H

#include "base/error.h"
#include "kvcache/scoring/scorer.h"

typedef enum kv_fate {
    KV_FATE_GOES,
    KV_FATE_STAYS, /* was chosen; may be written */
    KV_FATE_GUARDED, /* stays without being chosen: a sink, which may be written, or a recent entry, which may
                      * not: nothing goes behind it */
    KV_FATE_FIXED /* stays, and cannot be written any more: it is encoded */
} kv_fate;

typedef struct kv_rewrite_shape {
    uint32_t n_max; /* entries */
    uint32_t k_dim, v_dim;
} kv_rewrite_shape;

/* The arrays of a rewriting to work in. */
typedef struct kv_rewrite_work {
    uint32_t *index; /* [n_indices] */
    float *rows;     /* [n_floats] */
} kv_rewrite_work;

typedef struct kv_rewrite_args {
    const kv_score_view *view; /* of all entries, finite; what is put shows at once */
    const uint8_t *fate;       /* [view->n]: kv_fate */
    uint32_t k_dim, v_dim;
    const kv_rope *rope; /* valid under turns_keys */
    /* Valid under turns_keys where the view is a part of the head, the rest being other ranks'; NULL: it is not. */
    const uint8_t *gone; /* by position: not 0 where an entry of some rank goes */
    uint32_t gone_end;   /* positions */
    uint32_t fixed_end;  /* behind entries at positions below, one of some rank is fixed */
    kv_rewrite_work work;
    /* The key [k_dim] or the value [v_dim] of entry i, which may be written; rounded to the cache type. */
    void (*put_key)(void *ctx, uint32_t i, const float *key);
    void (*put_value)(void *ctx, uint32_t i, const float *value);
    void *ctx;
} kv_rewrite_args;

typedef struct kv_rewriting {
    const char *name;
    bool
        turns_keys; /* asks for RoPE; no rewriting sees layers whose values are part of their keys */
    size_t (*n_indices)(const kv_rewrite_shape *shape); /* at open; NULL: none */
    size_t (*n_floats)(const kv_rewrite_shape *shape);

    /* Some entries go and some stay. Called from any worker, a head at a time; pure: the same arguments put
     * the same bits; must not block, allocate or fail. */
    void (*rewrite)(const kv_rewrite_args *args);
} kv_rewriting;

#define KV_REWRITING_LIST(X) X(merge) X(rerotate)

enum {
#define X(name) +1
    KV_N_REWRITINGS = KV_REWRITING_LIST(X),
#undef X
    KV_REWRITING_NAME_BYTES = 32
};

extern const kv_rewriting *const kv_rewritings[]; /* ends with NULL */
extern const char kv_rewriting_names[];           /* " none merge ..." for messages */

/* What --kv-rewrite says. */
typedef struct kv_rewritings_chosen {
    const kv_rewriting *list[KV_N_REWRITINGS + 1]; /* in their order; ends with NULL */
    char name[KV_REWRITING_NAME_BYTES];            /* "none", "merge,rerotate" */
} kv_rewritings_chosen;

const kv_rewriting *kv_rewriting_find(const char *name); /* NULL if unknown; `none` is none */

/* `none`, or names with commas between them; NULL is unknown. ERR_BAD_CONFIG names an unknown one, or one
 * that is there twice. */
err_t kv_rewriting_parse(const char *text, kv_rewritings_chosen *out, err_info *info) MUST_CHECK;

#endif
