/* kernels/sample.h - from logits to tokens, where the logits are.
 *
 * Of each row, in this order: raw log-probabilities (that of the token drawn, and the largest ones); the edits;
 * then, of the edited logits, temperature, top-k, min-p, top-p and one draw by inverse transform in the order of
 * ids. Tokens are ranked by logit, ties to the lower id, and with weight = exp((logit - max) / temperature):
 *   top-k   the first k in rank
 *   min-p   those with weight >= min_p
 *   top-p   the shortest prefix of what is left whose weight is at least top_p of all its weight
 *   draw    the first id at which the sum of weights up to it is above uniform * the sum of all
 * A temperature below SAMPLE_GREEDY_BELOW, or top_k 1, takes the first in rank.
 *
 * Order of sums: the definition (sample_cpu.c) adds doubles in the order of ids; a GPU adds weights in units of
 * 2^-45 as integers, which is exact in any order. Both are functions of the row alone: no neighbour, no batch and
 * no grid changes a bit. Between the two a token may differ where `uniform` or a cut falls within rounding
 * of a border. */
#ifndef KERNELS_SAMPLE_H
#define KERNELS_SAMPLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { SAMPLE_LOGPROBS_MAX = 20, SAMPLE_VOCAB_MAX = 1 << 18 };

#define SAMPLE_GREEDY_BELOW 1e-5f /* temperatures below this divide into infinities */

/* In the order in which they are applied. */
typedef enum sample_edit_kind {
    SAMPLE_ADD,     /* x += by */
    SAMPLE_BAN,     /* x = -infinity */
    SAMPLE_PENALIZE /* x = (x > 0 ? x / by : x * by) - minus */
} sample_edit_kind;

typedef struct sample_edit {
    uint32_t token; /* < n_vocab */
    uint32_t kind;
    float by, minus;
    float was; /* the op's own */
} sample_edit;

typedef struct sample_row {
    double uniform; /* [0, 1) */
    float temperature, top_p, min_p;
    uint32_t top_k;      /* 0: off */
    int32_t n_logprobs;  /* largest ones wanted; -1: none at all, 0: the drawn token's alone */
    uint32_t logits_row; /* no other row's */
    /* Of sample_args.edits: by kind, rising; of one kind, but for bans, no token twice. */
    uint32_t first_edit, n_edits;
} sample_row;

typedef struct sample_entry {
    uint32_t token;
    float logprob;
} sample_entry;

typedef struct sample_result {
    uint32_t token;
    float logprob; /* of `token`, raw; valid with n_logprobs >= 0 */
    uint32_t n_top;
    sample_entry top[SAMPLE_LOGPROBS_MAX]; /* [n_top], falling; ties to the lower id */
    bool is_bad; /* there is a NaN, or no finite largest value: the rest is zeros */
} sample_result;

typedef struct sample_args {
    float *logits; /* [..][n_vocab]; rows that are sampled are overwritten */
    uint32_t n_vocab, n_rows;
    const sample_row *rows; /* [n_rows] */
    sample_edit *edits;     /* NULL if no row has any */
    sample_result *results; /* out [n_rows] */
} sample_args;

#ifdef __cplusplus
extern "C" {
#endif

/* ---- the definition: serial, pure, on the host's memory ------------------------------------------ */

size_t sample_scratch_bytes(uint32_t n_vocab);

/* The op. */
void sample_cpu(const sample_args *args, void *scratch);

/* One row of it, where edits are what `edit` does to the logits. Neither edits nor logits_row are read. */
typedef void sample_edit_fn(const void *ctx, float *logits, uint32_t n_vocab);
typedef struct sample_one {
    const sample_row *row;
    float *logits; /* [n_vocab]; overwritten by the edited ones */
    uint32_t n_vocab;
    sample_edit_fn *edit;
    const void *ctx;
    void *scratch; /* sample_scratch_bytes(n_vocab) */
} sample_one;
void sample_one_cpu(const sample_one *one, sample_result *out);

/* Raw log-probability of a given token, and the largest ones. */
void sample_score_cpu(const float *logits, uint32_t n_vocab, uint32_t token, int32_t n_logprobs,
                      sample_result *out);

#ifdef __cplusplus
}
#endif

#endif
