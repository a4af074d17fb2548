/* tests/kernels/attention_step.h - attention of made-up steps, by the definition and by CUDA's twin.
 *
 * A sequence is plain keys and values of all its tokens, queries for them, and pages of its whole blocks, plain
 * (then they are copies of the tokens) or coded (then they are anything). A step takes rows of sequences at
 * some length, so much of it from pages and the rest from a ring, and is cut into tasks. Everything that no query
 * may see is NaN: dead slots, unused ring slots, partial results, outputs. */
#ifndef TESTS_KERNELS_ATTENTION_STEP_H
#define TESTS_KERNELS_ATTENTION_STEP_H

#include "tests/kernels/cuda_fixture.h"

enum { STEP_BASES = 2, STEP_SEQUENCES_MAX = 8, STEP_ROWS_MAX = 8, STEP_CHOSEN_MAX = 63 };

typedef struct step_shape {
    dtype type;
    attn_coding coding; /* of most pages; others are plain */
    uint32_t n_kv_heads, group, k_dim, v_dim, v_group;
    uint32_t block_tokens, n_ring_blocks, n_sinks, window;
    bool is_shared; /* values are the first channels of keys (MLA) */
    bool has_sink_logit, has_bias, has_positions, has_dead;
    uint32_t pad; /* elements behind a row of plain pages and behind a token: alignment */
} step_shape;

typedef struct step_sequence {
    uint32_t n_tokens;
    uint8_t *tokens;  /* [n_tokens][slot_bytes] */
    float *q;         /* [n_tokens][heads][k_dim] */
    attn_page *pages; /* [blocks][n_lists], in the host's memory */
} step_sequence;

/* The tokens [length, length + n_tokens) of a sequence; n_blocks blocks lie in pages. */
typedef struct step_row {
    const step_sequence *sequence;
    uint32_t length, n_blocks, n_tokens;
    uint32_t *chosen; /* see attn_row; NULL: all entries are read */
    bool has_pages_only;
} step_row;

/* How rows become tasks: one each; one per token; one per token and split, and merges; all of that by chance. */
typedef enum step_cut { CUT_ROWS, CUT_TOKENS, CUT_SPLITS, CUT_RANDOM } step_cut;

typedef struct step_twin {
    uint8_t *host;
    const uint8_t *there;
    size_t bytes;
} step_twin;

typedef struct step {
    gpu g;
    step_shape shape;
    attend_pages_args args; /* of both; pointers are the host's */
    attn_layout layouts[2]; /* plain, coded */
    size_t page_bytes[2];
    float *sink_logit;
    uint8_t *bases[STEP_BASES]; /* of pages of low rank */
    step_sequence sequences[STEP_SEQUENCES_MAX];
    uint32_t n_sequences;
    step_twin twins[GPU_BUFFERS_MAX];
    uint32_t n_twins;
} step;

void step_open(step *s, const step_shape *shape);
void step_close(step *s);

/* Its pages are those of as many blocks as it has whole ones. */
const step_sequence *step_add_sequence(step *s, uint32_t n_tokens);

/* A row at `length`, with as few of the blocks in pages as the ring allows, or more by chance. */
step_row step_make_row(step *s, const step_sequence *sequence, uint32_t length, uint32_t n_tokens);

/* Of a row of one token: each entry is chosen with a chance of 1 in `one_in`. */
void step_choose(step *s, step_row *row, uint32_t one_in);

/* [tokens of all rows][heads][v_dim] of the device; free() it. `want`, or NULL: the definition's, and then what rows that
 * choose have read is compared as well, and every lse. */
float *step_run(step *s, const step_row *rows, uint32_t n_rows, step_cut cut, float **want);

/* The arguments of a step without tasks, in both places; nothing of outputs. */
void step_place(step *s, const step_row *rows, uint32_t n_rows, attend_pages_args *host,
                attend_pages_args *device);

/* step_run with tasks given by the caller. Partial results have n_partials places. */
typedef struct step_tasks {
    attn_task tasks[1024];
    attn_merge_task merges[1024];
    uint32_t n_tasks, n_merges, n_partials, n_queries_max;
} step_tasks;
float *step_run_tasks(step *s, const step_row *rows, uint32_t n_rows, const step_tasks *tasks,
                      float **want);

static inline uint32_t step_heads(const step *s)
{
    return s->shape.n_kv_heads * s->shape.group;
}

#endif
