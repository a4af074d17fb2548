/* service/eval/eval_text.h - a text as windows of tokens, and its negative log-likelihood.
 *
 * Protocol. The text is tokenised as a whole, without BOS, and cut into windows of `window` tokens t[0 ..
 * W); the last one may be shorter (at least EVAL_WINDOW_MIN, else it is dropped). A window's input is BOS
 * (where the tokenizer adds one; without, the first token is context only) and all of its tokens but the
 * last. The first half of the input is the prompt; the second half is fed one token a step, and what these
 * steps predict is scored: t[W/2 .. W) with BOS. A cache method shows its loss only there.
 *
 *   nll            nats per scored token
 *   perplexity     exp(nll)
 *   bits per byte  sum of nats / ln 2 / bytes that the scored tokens stand for
 */
#ifndef SERVICE_EVAL_EVAL_TEXT_H
#define SERVICE_EVAL_EVAL_TEXT_H

#include "model/tokenizer.h"
#include "service/eval/eval_run.h"

enum { EVAL_WINDOW_MIN = 8 };

typedef struct eval_windows {
    uint32_t *ids;          /* all windows' inputs and targets, one behind the other; owned */
    eval_job *jobs;         /* [n_windows], ready for eval_run_jobs; owned */
    uint64_t *scored_bytes; /* [n_windows]; bytes that the scored tokens add to a text; owned */
    uint32_t n_windows;
    uint32_t n_window_tokens;  /* W */
    uint32_t n_seq_tokens_max; /* tokens of the longest job */
} eval_windows;

typedef struct eval_text_options {
    const char *text;
    size_t n_bytes;         /* valid UTF-8, else ERR_BAD_REQUEST */
    uint32_t window;        /* W, >= EVAL_WINDOW_MIN */
    uint32_t n_windows_max; /* 0: all; else evenly spread over the text */
} eval_text_options;

/* ERR_BAD_REQUEST if the text is not UTF-8 or has less than one window's worth of tokens (EVAL_WINDOW_MIN).
 * Long texts are tokenised in pieces that end at a line end, so that SentencePiece's memory stays
 * bounded (260 bytes a byte); the ids are those of the whole text (eval_encode.h). */
err_t eval_windows_open(const tokenizer *t, const eval_text_options *options, eval_windows *out,
                        err_info *info) MUST_CHECK;
void eval_windows_close(eval_windows *w); /* also zeroed */

typedef struct eval_text_score {
    double nll, perplexity, bits_per_byte;
    uint64_t n_tokens, n_bytes; /* scored */
    uint32_t n_windows;         /* finished */
} eval_text_score;

/* Over the jobs that are done. n_tokens 0: nothing was. */
eval_text_score eval_text_score_of(const eval_windows *w);

/* The mean difference of nats per token, a less b, between two runs over the same windows, and the half
 * width of its 95 % interval from the windows' paired differences (ratio estimator, normal quantile; 0
 * with fewer than two windows). `nll_a` and `nll_b` are sums of nats by window, `n_scored` tokens by
 * window. A window that is NaN in either is left out. */
typedef struct eval_difference {
    double mean, half_width;
} eval_difference;
eval_difference eval_paired_difference(const double *nll_a, const double *nll_b,
                                       const uint32_t *n_scored, size_t n_windows);

#endif
