/* kvcache/read_blocks.h - what the queries of one job see, listed in its order and folded: see reader.h. */
#ifndef KVCACHE_READ_BLOCKS_H
#define KVCACHE_READ_BLOCKS_H

#include "kvcache/cache_state.h"

/* Positions below `first_end`, in [first, end), and from `behind` on. */
typedef struct kv_read_ranges {
    uint32_t first_end;
    uint32_t first, end;
    uint32_t behind;
} kv_read_ranges;

/* One KV head of one layer and up to KV_TILE_QUERIES_MAX queries of one sequence, while it runs. */
typedef struct kv_read_job {
    const kv_cache *cache;
    kv_seq *seq;
    kv_reader_worker *worker;
    attn_state *state; /* the worker's, or its probe */
    attn_query query;
    uint32_t layer, head;
    bool is_decode, is_probe;
    bool is_again;     /* with lse: pages are chosen once more, the first choice being forgotten */
    bool has_low;      /* the sequence has pages of coefficients */
    kv_misses *misses; /* the job's own; written if is_decode */
    const float
        *lse;    /* [n_queries][group]: what has been read is read again for its mass; or NULL */
    float *mass; /* by position; valid with lse */
    const kv_read_ranges *only; /* NULL: all that the queries see */
    float *
        most; /* by position, with lse: the largest share instead of mass, as a logarithm; or NULL */
    uint32_t n_spans, n_blocks; /* listed and not yet folded */
    uint32_t n_landed;          /* pages of those blocks that were read from the file */
} kv_read_job;

/* Reads, in position order, what the job's queries see. The second time, for mass, a decode query reads what
 * was chosen the first time, or, the same, what is chosen again. */
void kv_read_blocks(kv_read_job *j);

/* What a decode query has missed. */
void kv_read_note_misses(const kv_read_job *j, const float *sink_logit);

/* Of one rank's part: the log of what it may have missed, out[group]. */
void kv_read_note_unread(const kv_read_job *j, float *out);

#endif
