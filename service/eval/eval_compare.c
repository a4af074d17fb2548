/* service/eval/eval_compare.c - see eval_compare.h.
 *
 * A row is a text part and one part per context of the tasks. Each part has a cache of its own, sized
 * for its longest sequence: page tables and staging count as resident bytes, and a text of 512 tokens
 * should not pay for the room that tasks of 2048 want. Jobs keep their results only until the next row
 * runs; a row copies what it needs. */
#include "service/eval/eval_compare.h"

#include "base/check.h"

#include <math.h>
#include <stdlib.h>

struct eval_inputs {
    const tokenizer *t;
    eval_plan plan; /* its text is not read after opening */
    eval_windows windows;
    eval_sample *samples; /* [n_contexts][n_tasks][n_samples] */
    eval_job *task_jobs;  /* the same */
    uint32_t *drawn;      /* of all task jobs, one behind the other */
    size_t n_task_jobs;
    size_t n_opened; /* samples, while opening */
};

/* Jobs that run together in one cache. */
typedef struct part {
    eval_job *jobs;
    size_t n_jobs;
    uint32_t n_seq_tokens_max;
    eval_cost *cost; /* added to */
} part;

/* Turns the progress of one part into that of its row. */
typedef struct row_progress {
    const eval_options *outer;
    double begin, share; /* of the present part */
    bool is_stopped;
} row_progress;

/* ---- inputs ---------------------------------------------------------------------------------------- */

static err_t open_windows(eval_inputs *in, const eval_plan *plan, err_info *info)
{
    if (plan->text == NULL) return ERR_OK;
    const eval_text_options options = {.text = plan->text,
                                       .n_bytes = plan->n_text_bytes,
                                       .window = plan->window,
                                       .n_windows_max = plan->n_windows_max};
    return eval_windows_open(in->t, &options, &in->windows, info);
}

static size_t n_jobs_of_context(const eval_inputs *in)
{
    return (size_t)in->plan.n_tasks * in->plan.n_samples;
}

static err_t open_samples(eval_inputs *in, err_info *info)
{
    const eval_plan *plan = &in->plan;
    for (uint32_t c = 0; c < plan->n_contexts; c++) {
        for (uint32_t k = 0; k < plan->n_tasks; k++) {
            for (uint32_t i = 0; i < plan->n_samples; i++) {
                const eval_sample_spec spec = {.task = plan->tasks[k],
                                               .n_context_tokens = plan->contexts[c],
                                               .n_distance_tokens = plan->n_distance_tokens,
                                               .seed = plan->seed,
                                               .index = i};
                TRY(eval_sample_open(in->t, &spec, &in->samples[in->n_opened], info));
                in->n_opened++;
            }
        }
    }
    return ERR_OK;
}

/* As many tokens may be drawn as the answer has: more would be beyond the context. */
static err_t make_task_jobs(eval_inputs *in)
{
    size_t n_drawn = 0;
    for (size_t i = 0; i < in->n_task_jobs; i++)
        n_drawn += in->samples[i].n_answer_ids;
    in->drawn = calloc(n_drawn, sizeof *in->drawn);
    if (in->drawn == NULL) return ERR_NO_MEMORY;
    uint32_t *drawn = in->drawn;
    for (size_t i = 0; i < in->n_task_jobs; i++) {
        const eval_sample *s = &in->samples[i];
        in->task_jobs[i] = (eval_job){.tokens = s->ids,
                                      .n_tokens = s->n_ids,
                                      .n_prompt = s->n_ids,
                                      .n_new = s->n_answer_ids,
                                      .drawn = drawn};
        drawn += s->n_answer_ids;
    }
    return ERR_OK;
}

static err_t open_tasks(eval_inputs *in, err_info *info)
{
    const eval_plan *plan = &in->plan;
    size_t n_jobs;
    if (plan->n_tasks == 0) return ERR_OK;
    TRY(size_mul(n_jobs_of_context(in), plan->n_contexts, &n_jobs));
    in->samples = calloc(n_jobs, sizeof *in->samples);
    in->task_jobs = calloc(n_jobs, sizeof *in->task_jobs);
    if (in->samples == NULL || in->task_jobs == NULL) return ERR_NO_MEMORY;
    in->n_task_jobs = n_jobs;
    TRY(open_samples(in, info));
    return make_task_jobs(in);
}

err_t eval_inputs_open(const tokenizer *t, const eval_plan *plan, eval_inputs **out, err_info *info)
{
    assert(plan->n_tasks <= EVAL_TASKS_MAX);
    assert(plan->n_contexts <= EVAL_CONTEXTS_MAX);
    assert(plan->n_tasks == 0 || (plan->n_contexts > 0 && plan->n_samples > 0));
    *out = NULL;
    eval_inputs *in = calloc(1, sizeof *in);
    if (in == NULL) return err_set(info, ERR_NO_MEMORY, "no memory for the inputs");
    in->t = t;
    in->plan = *plan;
    err_t err = open_windows(in, plan, info);
    if (err == ERR_OK) err = open_tasks(in, info);
    if (err != ERR_OK) {
        eval_inputs_close(in);
        return err_set(info, err, "the inputs: %s", err_sentence(err));
    }
    *out = in;
    return ERR_OK;
}

void eval_inputs_close(eval_inputs *in)
{
    if (in == NULL) return;
    for (size_t i = 0; i < in->n_opened; i++)
        eval_sample_close(&in->samples[i]);
    free(in->samples);
    free(in->task_jobs);
    free(in->drawn);
    eval_windows_close(&in->windows);
    free(in);
}

static uint32_t longest_of(const eval_job *jobs, size_t n_jobs)
{
    uint32_t longest = 0;
    for (size_t i = 0; i < n_jobs; i++) {
        const uint32_t n = jobs[i].n_tokens + jobs[i].n_new;
        if (n > longest) longest = n;
    }
    return longest;
}

uint32_t eval_inputs_n_seq_tokens_max(const eval_inputs *in)
{
    const uint32_t of_tasks = longest_of(in->task_jobs, in->n_task_jobs);
    const uint32_t of_text = in->windows.n_seq_tokens_max;
    return of_tasks > of_text ? of_tasks : of_text;
}

uint32_t eval_inputs_n_windows(const eval_inputs *in)
{
    return in->windows.n_windows;
}

/* ---- one row --------------------------------------------------------------------------------------- */

static bool on_part_progress(void *ctx, double done)
{
    row_progress *p = ctx;
    const eval_options *outer = p->outer;
    if (outer->on_progress == NULL) return false;
    if (outer->on_progress(outer->on_progress_ctx, p->begin + p->share * done))
        p->is_stopped = true;
    return p->is_stopped;
}

static err_t run_part(const part *p, row_progress *progress, err_info *info)
{
    eval_options options = *progress->outer;
    options.n_seq_tokens_max = p->n_seq_tokens_max;
    options.on_progress = on_part_progress;
    options.on_progress_ctx = progress;
    eval_run *r = NULL;
    TRY(eval_run_open(&options, &r, info));
    const err_t err = eval_run_jobs(r, p->jobs, p->n_jobs, info);
    if (err == ERR_OK) eval_cost_add(eval_run_cost(r), p->cost);
    eval_run_close(r);
    return err;
}

/* What an earlier row has left in the jobs must not count as this row's. */
static void clear_jobs(eval_job *jobs, size_t n_jobs)
{
    for (size_t i = 0; i < n_jobs; i++) {
        jobs[i].n_drawn = 0;
        jobs[i].nll = 0;
        jobs[i].n_scored = 0;
        jobs[i].is_done = false;
    }
}

static double work_of(const part *p)
{
    double n_tokens = 0;
    for (size_t i = 0; i < p->n_jobs; i++)
        n_tokens += (double)p->jobs[i].n_tokens + p->jobs[i].n_new;
    return n_tokens;
}

static bool are_done(const part *p)
{
    for (size_t i = 0; i < p->n_jobs; i++) {
        if (!p->jobs[i].is_done) return false;
    }
    return true;
}

static err_t run_parts(const part *parts, size_t n_parts, const eval_options *options,
                       bool *is_cut_short, err_info *info)
{
    row_progress progress = {.outer = options};
    double work = 0;
    for (size_t i = 0; i < n_parts; i++) {
        clear_jobs(parts[i].jobs, parts[i].n_jobs);
        work += work_of(&parts[i]);
    }
    for (size_t i = 0; i < n_parts && !progress.is_stopped; i++) {
        progress.share = work_of(&parts[i]) / work;
        TRY(run_part(&parts[i], &progress, info));
        progress.begin += progress.share;
    }
    *is_cut_short = false;
    for (size_t i = 0; i < n_parts; i++)
        *is_cut_short = *is_cut_short || !are_done(&parts[i]);
    return ERR_OK;
}

static size_t list_parts(eval_inputs *in, eval_row *row, part parts[1 + EVAL_CONTEXTS_MAX])
{
    size_t n_parts = 0;
    if (in->windows.n_windows > 0) {
        parts[n_parts++] = (part){.jobs = in->windows.jobs,
                                  .n_jobs = in->windows.n_windows,
                                  .n_seq_tokens_max = in->windows.n_seq_tokens_max,
                                  .cost = &row->text_cost};
    }
    const size_t n_jobs = n_jobs_of_context(in);
    for (uint32_t c = 0; in->n_task_jobs > 0 && c < in->plan.n_contexts; c++) {
        eval_job *jobs = in->task_jobs + c * n_jobs;
        parts[n_parts++] = (part){.jobs = jobs,
                                  .n_jobs = n_jobs,
                                  .n_seq_tokens_max = longest_of(jobs, n_jobs),
                                  .cost = &row->task_cost};
    }
    return n_parts;
}

static err_t note_text(const eval_inputs *in, eval_row *row)
{
    const eval_windows *w = &in->windows;
    if (w->n_windows == 0) return ERR_OK;
    row->text = eval_text_score_of(w);
    row->window_nll = calloc(w->n_windows, sizeof *row->window_nll);
    if (row->window_nll == NULL) return ERR_NO_MEMORY;
    for (uint32_t i = 0; i < w->n_windows; i++)
        row->window_nll[i] = w->jobs[i].is_done ? w->jobs[i].nll : NAN;
    return ERR_OK;
}

/* Over the windows that both rows have finished. */
static err_t note_difference(const eval_inputs *in, const eval_row *first, eval_row *row)
{
    const eval_windows *w = &in->windows;
    if (first == NULL || first->window_nll == NULL || row->window_nll == NULL) return ERR_OK;
    uint32_t *n_scored = calloc(w->n_windows, sizeof *n_scored);
    if (n_scored == NULL) return ERR_NO_MEMORY;
    for (uint32_t i = 0; i < w->n_windows; i++) {
        n_scored[i] = w->jobs[i].n_scored;
        if (!isnan(first->window_nll[i]) && !isnan(row->window_nll[i])) row->has_difference = true;
    }
    if (row->has_difference) {
        row->difference =
            eval_paired_difference(row->window_nll, first->window_nll, n_scored, w->n_windows);
    }
    free(n_scored);
    return ERR_OK;
}

static void note_accuracy(const eval_inputs *in, eval_row *row)
{
    const eval_plan *plan = &in->plan;
    for (size_t i = 0; i < in->n_task_jobs; i++) {
        const eval_job *job = &in->task_jobs[i];
        if (!job->is_done) continue;
        const size_t cell = i / plan->n_samples;
        eval_accuracy *a = &row->accuracy[cell % plan->n_tasks][cell / plan->n_tasks];
        a->n_done++;
        a->n_distance_tokens += in->samples[i].n_distance_tokens;
        if (eval_sample_is_answered(in->t, &in->samples[i], job->drawn, job->n_drawn)) a->n_right++;
    }
}

err_t eval_row_run(const eval_options *options, eval_inputs *in, const eval_row *first,
                   eval_row *out, err_info *info)
{
    part parts[1 + EVAL_CONTEXTS_MAX];
    *out = (eval_row){0};
    const size_t n_parts = list_parts(in, out, parts);
    assert(n_parts > 0);
    err_t err = run_parts(parts, n_parts, options, &out->is_cut_short, info);
    if (err == ERR_OK) err = note_text(in, out);
    if (err == ERR_OK) err = note_difference(in, first, out);
    if (err == ERR_OK) {
        note_accuracy(in, out);
        return ERR_OK;
    }
    eval_row_close(out);
    return err_set(info, err, "%s", err_sentence(err));
}

void eval_row_close(eval_row *row)
{
    free(row->window_nll);
    *row = (eval_row){0};
}

double eval_row_accuracy(const eval_row *row, const eval_plan *plan)
{
    double sum = 0;
    uint32_t n_cells = 0;
    for (uint32_t k = 0; k < plan->n_tasks; k++) {
        for (uint32_t c = 0; c < plan->n_contexts; c++) {
            const eval_accuracy *a = &row->accuracy[k][c];
            if (a->n_done == 0) continue;
            sum += (double)a->n_right / a->n_done;
            n_cells++;
        }
    }
    return n_cells > 0 ? sum / n_cells : NAN;
}

eval_cost eval_row_cost(const eval_row *row)
{
    eval_cost sum = row->text_cost;
    eval_cost_add(&row->task_cost, &sum);
    return sum;
}
