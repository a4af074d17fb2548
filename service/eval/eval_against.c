/* service/eval/eval_against.c - see eval_against.h.
 *
 * A prompt becomes a job of all its tokens and one more, which makes the last of them fed; what that one
 * scores is not looked at. Rows of logits are compared as they come, each at its own place of two
 * arrays, since a group that did not fit shows them twice. */
#include "service/eval/eval_against.h"

#include "base/check.h"
#include "model/safetensors.h"
#include "service/eval/eval_watch.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PROMPTS_MAX = 1 << 16 };

/* One prompt of the file. Data of the file need not be aligned: it is copied out value by value. */
typedef struct stored {
    const tensor *prompt, *positions, *logits;
    uint32_t n_tokens, n_rows;
    size_t first_row; /* in the arrays of all rows */
} stored;

typedef struct against {
    const char *path;
    const model_config *shape;
    tensor_files *file;
    stored *prompts; /* [n_prompts] */
    uint32_t n_prompts;
    size_t n_rows, n_tokens; /* of all prompts */
    uint32_t n_tokens_max;   /* of the longest */
    uint32_t *tokens;        /* [n_tokens + n_prompts] */
    eval_job *jobs;          /* [n_prompts] */
    double *error;           /* [n_rows]; relative */
    bool *is_same;           /* [n_rows]; the largest at the same token */
} against;

/* ---- the file --------------------------------------------------------------------------------------- */

static int32_t int_at(const tensor *t, size_t i)
{
    int32_t value;
    memcpy(&value, (const uint8_t *)t->data + i * sizeof value, sizeof value);
    return value;
}

static float float_at(const tensor *t, size_t i)
{
    float value;
    memcpy(&value, (const uint8_t *)t->data + i * sizeof value, sizeof value);
    return value;
}

static const tensor *find_stored(const against *a, uint32_t n, const char *part)
{
    char name[64];
    (void)snprintf(name, sizeof name, "p%u.%s", n, part);
    return tensor_find(a->file, name);
}

static err_t bad(const against *a, const tensor *t, const char *what, err_info *info)
{
    return err_set(info, ERR_BAD_MODEL, "%.120s: %.40s: %s", a->path, t->name, what);
}

/* The type, the dimensions, and rows within what the rest of the program counts in 32 bits. */
static err_t check_form(const against *a, const tensor *t, tensor_type type, uint32_t n_dims,
                        err_info *info)
{
    char what[64];
    (void)snprintf(what, sizeof what, "is not %s with %u dimension%s", tensor_type_name(type),
                   n_dims, n_dims == 1 ? "" : "s");
    if (t->type != type || t->n_dims != n_dims) return bad(a, t, what, info);
    if (t->shape[0] == 0) return bad(a, t, "is empty", info);
    if (t->shape[0] > INT32_MAX) return bad(a, t, "is too long", info);
    return ERR_OK;
}

static err_t check_ints(const against *a, const tensor *t, uint32_t n_values, err_info *info)
{
    char what[96];
    for (size_t i = 0; i < t->shape[0]; i++) {
        const int32_t value = int_at(t, i);
        if (value >= 0 && (uint32_t)value < n_values) continue;
        (void)snprintf(what, sizeof what, "%d at %zu is outside [0, %u)", value, i, n_values);
        return bad(a, t, what, info);
    }
    return ERR_OK;
}

/* A row that is not finite or all zero has no relative error. */
static err_t check_logits(const against *a, const tensor *t, uint32_t n_rows, err_info *info)
{
    char what[96];
    const uint32_t n_vocab = a->shape->n_vocab;
    (void)snprintf(what, sizeof what, "its shape is not [%u][%u]", n_rows, n_vocab);
    if (t->shape[0] != n_rows || t->shape[1] != n_vocab) return bad(a, t, what, info);
    for (uint32_t row = 0; row < n_rows; row++) {
        float largest = 0;
        for (uint32_t i = 0; i < n_vocab && isfinite(largest); i++) {
            const float value = fabsf(float_at(t, (size_t)row * n_vocab + i));
            if (!(value <= largest)) largest = value; /* a NaN too */
        }
        if (isfinite(largest) && largest > 0) continue;
        (void)snprintf(what, sizeof what, "row %u is %s", row,
                       isfinite(largest) ? "all zero" : "not finite");
        return bad(a, t, what, info);
    }
    return ERR_OK;
}

static err_t read_prompt(against *a, uint32_t n, stored *out, err_info *info)
{
    out->prompt = find_stored(a, n, "prompt");
    out->positions = find_stored(a, n, "logits_pos");
    out->logits = find_stored(a, n, "logits");
    if (out->positions == NULL || out->logits == NULL)
        return err_set(info, ERR_BAD_MODEL, "%.120s: p%u.%s: missing", a->path, n,
                       out->positions == NULL ? "logits_pos" : "logits");
    TRY(check_form(a, out->prompt, TENSOR_I32, 1, info));
    TRY(check_form(a, out->positions, TENSOR_I32, 1, info));
    TRY(check_form(a, out->logits, TENSOR_F32, 2, info));
    out->n_tokens = (uint32_t)out->prompt->shape[0];
    out->n_rows = (uint32_t)out->positions->shape[0];
    if (out->n_tokens > a->shape->n_positions)
        return bad(a, out->prompt, "is longer than the model's positions", info);
    TRY(check_ints(a, out->prompt, a->shape->n_vocab, info));
    TRY(check_ints(a, out->positions, out->n_tokens, info));
    TRY(check_logits(a, out->logits, out->n_rows, info));
    out->first_row = a->n_rows;
    a->n_rows += out->n_rows;
    a->n_tokens += out->n_tokens;
    if (out->n_tokens > a->n_tokens_max) a->n_tokens_max = out->n_tokens;
    return ERR_OK;
}

static err_t read_file(against *a, err_info *info)
{
    TRY(tensor_file_open(a->path, &a->file, info));
    while (a->n_prompts < PROMPTS_MAX && find_stored(a, a->n_prompts, "prompt") != NULL)
        a->n_prompts++;
    if (a->n_prompts == 0)
        return err_set(info, ERR_BAD_MODEL, "%.120s: p0.prompt: missing", a->path);
    a->prompts = calloc(a->n_prompts, sizeof *a->prompts);
    if (a->prompts == NULL) return err_set(info, ERR_NO_MEMORY, "no memory for the prompts");
    for (uint32_t n = 0; n < a->n_prompts; n++)
        TRY(read_prompt(a, n, &a->prompts[n], info));
    return ERR_OK;
}

static err_t make_jobs(against *a, err_info *info)
{
    a->tokens = calloc(a->n_tokens + a->n_prompts, sizeof *a->tokens);
    a->jobs = calloc(a->n_prompts, sizeof *a->jobs);
    a->error = calloc(a->n_rows, sizeof *a->error);
    a->is_same = calloc(a->n_rows, sizeof *a->is_same);
    if (a->tokens == NULL || a->jobs == NULL || a->error == NULL || a->is_same == NULL)
        return err_set(info, ERR_NO_MEMORY, "no memory for %zu rows of logits", a->n_rows);
    uint32_t *tokens = a->tokens;
    for (uint32_t n = 0; n < a->n_prompts; n++) {
        const stored *s = &a->prompts[n];
        for (uint32_t i = 0; i < s->n_tokens; i++)
            tokens[i] = (uint32_t)int_at(s->prompt, i);
        a->jobs[n] = (eval_job){.tokens = tokens,
                                .n_tokens = s->n_tokens + 1,
                                .n_prompt = s->n_tokens > 1 ? s->n_tokens / 2 : 1};
        tokens += s->n_tokens + 1;
    }
    return ERR_OK;
}

/* ---- comparing -------------------------------------------------------------------------------------- */

static bool wants(void *ctx, size_t job, uint32_t position)
{
    const stored *s = &((const against *)ctx)->prompts[job];
    for (uint32_t row = 0; row < s->n_rows; row++) {
        if ((uint32_t)int_at(s->positions, row) == position) return true;
    }
    return false;
}

static void compare_row(against *a, const stored *s, uint32_t row, const float *logits)
{
    const uint32_t n_vocab = a->shape->n_vocab;
    const size_t first = (size_t)row * n_vocab;
    double difference = 0, largest = 0;
    uint32_t ours = 0, theirs = 0;
    for (uint32_t i = 0; i < n_vocab; i++) {
        const float value = float_at(s->logits, first + i);
        difference = fmax(difference, fabs((double)logits[i] - (double)value));
        largest = fmax(largest, fabs((double)value));
        if (logits[i] > logits[ours]) ours = i;
        if (value > float_at(s->logits, first + theirs)) theirs = i;
    }
    a->error[s->first_row + row] = difference / largest;
    a->is_same[s->first_row + row] = ours == theirs;
}

static void take(void *ctx, size_t job, uint32_t position, const float *logits)
{
    against *a = ctx;
    const stored *s = &a->prompts[job];
    for (uint32_t row = 0; row < s->n_rows; row++) { /* a position may be stored twice */
        if ((uint32_t)int_at(s->positions, row) == position) compare_row(a, s, row, logits);
    }
}

static void sum_up(const against *a, eval_against_result *out)
{
    double sum = 0;
    uint64_t n_same = 0;
    for (uint32_t n = 0; n < a->n_prompts; n++) {
        const stored *s = &a->prompts[n];
        if (!a->jobs[n].is_done) continue;
        out->n_prompts++;
        out->n_rows += s->n_rows;
        for (size_t row = s->first_row; row < s->first_row + s->n_rows; row++) {
            out->relative_error_max = fmax(out->relative_error_max, a->error[row]);
            sum += a->error[row];
            n_same += a->is_same[row];
        }
    }
    if (out->n_rows == 0) return;
    out->relative_error_mean = sum / (double)out->n_rows;
    out->top1_agreement = (double)n_same / (double)out->n_rows;
}

static err_t run(against *a, const eval_options *options, err_info *info)
{
    const eval_watch watch = {.wants = wants, .take = take, .ctx = a};
    eval_options own = *options;
    eval_run *r;
    own.n_seq_tokens_max = a->n_tokens_max + 1;
    TRY(eval_run_open(&own, &r, info));
    const err_t err = eval_run_watched(r, a->jobs, a->n_prompts, &watch, info);
    eval_run_close(r);
    return err;
}

err_t eval_against(const eval_options *options, const char *path, eval_against_result *out,
                   err_info *info)
{
    against a = {.path = path, .shape = model_get_config(options->m)};
    *out = (eval_against_result){0};
    err_t err = read_file(&a, info);
    if (err == ERR_OK) err = make_jobs(&a, info);
    if (err == ERR_OK) err = run(&a, options, info);
    if (err == ERR_OK) err = tensor_files_unchanged(a.file, info);
    if (err == ERR_OK) sum_up(&a, out);
    free(a.is_same);
    free(a.error);
    free(a.jobs);
    free(a.tokens);
    free(a.prompts);
    tensor_files_close(a.file);
    return err;
}
