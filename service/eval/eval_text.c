/* service/eval/eval_text.c - see eval_text.h. */
#include "service/eval/eval_text.h"

#include "base/check.h"
#include "service/eval/eval_encode.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { PIECE_BYTES = 1 << 18 }; /* 70 MB in SentencePiece */

/* ---- windows -------------------------------------------------------------------------------------- */

/* The text's ids, and how they are cut. */
typedef struct cut_plan {
    const tokenizer *t;
    const uint32_t *ids;
    size_t n_ids;
    size_t n_all; /* windows of the text */
    uint32_t window;
    uint32_t n_front; /* 1 with BOS */
} cut_plan;

/* First token of the k-th of n windows that are spread over all of them. */
static size_t nth_begin(const cut_plan *p, uint32_t k, uint32_t n)
{
    return (size_t)k * p->n_all / n * p->window;
}

/* Bytes that the scored tokens add to a text; never the first one of it, with its dummy space. */
static uint64_t count_scored_bytes(const tokenizer *t, const eval_job *job)
{
    uint64_t n_bytes = 0;
    for (uint32_t i = job->n_prompt + 1; i < job->n_tokens; i++)
        n_bytes += tokenizer_piece(t, job->tokens[i], false).n_bytes;
    return n_bytes;
}

/* Writes one window's tokens to `ids`; returns their number. */
static uint32_t fill_window(const cut_plan *p, size_t begin, uint32_t *ids, eval_job *job)
{
    const uint32_t n = (uint32_t)min_size(p->window, p->n_ids - begin);
    if (p->n_front > 0) ids[0] = (uint32_t)tokenizer_bos(p->t);
    memcpy(ids + p->n_front, p->ids + begin, n * sizeof *ids);
    const uint32_t n_tokens = p->n_front + n;
    *job = (eval_job){.tokens = ids, .n_tokens = n_tokens, .n_prompt = (n_tokens - 1) / 2};
    return n_tokens;
}

static err_t reserve_windows(const cut_plan *p, uint32_t n, eval_windows *out)
{
    size_t n_ids;
    TRY(size_mul(n, (size_t)p->window + p->n_front, &n_ids));
    n_ids = min_size(n_ids, p->n_ids + (size_t)n * p->n_front); /* a window may exceed the text */
    out->ids = calloc(n_ids, sizeof *out->ids);
    out->jobs = calloc(n, sizeof *out->jobs);
    out->scored_bytes = calloc(n, sizeof *out->scored_bytes);
    const bool is_whole = out->ids != NULL && out->jobs != NULL && out->scored_bytes != NULL;
    return is_whole ? ERR_OK : ERR_NO_MEMORY;
}

static err_t make_windows(const cut_plan *p, uint32_t n, eval_windows *out)
{
    TRY(reserve_windows(p, n, out));
    uint32_t *ids = out->ids;
    for (uint32_t w = 0; w < n; w++) {
        eval_job *job = &out->jobs[w];
        ids += fill_window(p, nth_begin(p, w, n), ids, job);
        out->scored_bytes[w] = count_scored_bytes(p->t, job);
        if (job->n_tokens > out->n_seq_tokens_max) out->n_seq_tokens_max = job->n_tokens;
    }
    out->n_windows = n;
    out->n_window_tokens = p->window;
    return ERR_OK;
}

static err_t cut_windows(const cut_plan *p, uint32_t n_windows_max, eval_windows *out,
                         err_info *info)
{
    if (p->n_all == 0)
        return err_set(info, ERR_BAD_REQUEST, "the text has %zu tokens; a window has %d or more",
                       p->n_ids, EVAL_WINDOW_MIN);
    if (p->n_ids > UINT32_MAX / 2)
        return err_set(info, ERR_OVERFLOW, "the text has %zu tokens, too many", p->n_ids);
    const size_t n = n_windows_max > 0 ? min_size(n_windows_max, p->n_all) : p->n_all;
    const err_t err = make_windows(p, (uint32_t)n, out);
    if (err == ERR_OK) return ERR_OK;
    eval_windows_close(out);
    return err_set(info, err, "%zu windows: %s", n, err_sentence(err));
}

err_t eval_windows_open(const tokenizer *t, const eval_text_options *options, eval_windows *out,
                        err_info *info)
{
    const eval_encode_options text = {
        .text = options->text, .n_bytes = options->n_bytes, .piece_bytes = PIECE_BYTES};
    uint32_t *ids;
    size_t n_ids;
    *out = (eval_windows){0};
    assert(options->window >= EVAL_WINDOW_MIN);
    assert(options->window <= UINT32_MAX / 2);
    const err_t encoded = eval_encode(t, &text, &ids, &n_ids);
    if (encoded == ERR_BAD_REQUEST) return err_set(info, encoded, "the text is not valid UTF-8");
    if (encoded != ERR_OK) return err_set(info, encoded, "the text: %s", err_sentence(encoded));
    const size_t n_rest = n_ids % options->window;
    const cut_plan plan = {.t = t,
                           .ids = ids,
                           .n_ids = n_ids,
                           .n_all = n_ids / options->window + (n_rest >= EVAL_WINDOW_MIN ? 1 : 0),
                           .window = options->window,
                           .n_front = tokenizer_adds_bos(t) ? 1 : 0};
    const err_t err = cut_windows(&plan, options->n_windows_max, out, info);
    free(ids);
    return err;
}

void eval_windows_close(eval_windows *w)
{
    free(w->ids);
    free(w->jobs);
    free(w->scored_bytes);
    *w = (eval_windows){0};
}

/* ---- figures --------------------------------------------------------------------------------------- */

eval_text_score eval_text_score_of(const eval_windows *w)
{
    eval_text_score score = {0};
    double nats = 0;
    for (uint32_t i = 0; i < w->n_windows; i++) {
        if (!w->jobs[i].is_done) continue;
        nats += w->jobs[i].nll;
        score.n_tokens += w->jobs[i].n_scored;
        score.n_bytes += w->scored_bytes[i];
        score.n_windows++;
    }
    if (score.n_tokens == 0) return score;
    score.nll = nats / (double)score.n_tokens;
    score.perplexity = exp(score.nll);
    if (score.n_bytes > 0) score.bits_per_byte = nats / log(2.0) / (double)score.n_bytes;
    return score;
}

/* mean = sum d / sum n with d = a - b by window; its variance is that of a ratio of two means,
 *   var = sum (d - mean n)^2 / (m - 1) * m / (sum n)^2                  for m windows */
eval_difference eval_paired_difference(const double *nll_a, const double *nll_b,
                                       const uint32_t *n_scored, size_t n_windows)
{
    static const double normal_97_5 = 1.959963984540054;
    double sum = 0, n_tokens = 0, squares = 0, m = 0;
    for (size_t i = 0; i < n_windows; i++) {
        const double d = nll_a[i] - nll_b[i];
        if (isnan(d)) continue;
        sum += d;
        n_tokens += (double)n_scored[i];
        m++;
    }
    if (n_tokens == 0) return (eval_difference){0};
    eval_difference out = {.mean = sum / n_tokens};
    if (m < 2) return out;
    for (size_t i = 0; i < n_windows; i++) {
        const double residual = nll_a[i] - nll_b[i] - out.mean * (double)n_scored[i];
        if (!isnan(residual)) squares += residual * residual;
    }
    out.half_width = normal_97_5 * sqrt(squares / (m - 1) * m) / n_tokens;
    return out;
}
