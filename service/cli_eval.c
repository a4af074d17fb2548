/* service/cli_eval.c - `pikv eval`: what the model knows under some settings of the KV cache, and what they
 * cost.
 *
 * Everything that can be refused is refused before the first step: settings, files, lengths, and each
 * row's cache is opened once. Then the rows run over the same inputs. A signal, or a row that fails,
 * ends the rows; what is there by then is still printed and written. */
#include "base/check.h"
#include "base/hash.h"
#include "service/cli.h"
#include "service/cli_eval_settings.h"
#include "service/eval/eval_file.h"
#include "service/eval/eval_progress.h"
#include "service/eval/eval_report.h"

#include <stdlib.h>
#include <string.h>

/* Stored logits are a few prompts beside whole texts: their share of a row's progress. */
static const double AGAINST_SHARE = 0.1;

typedef struct evaluation {
    const eval_settings *s;
    cli_parts parts;
    eval_plan plan;
    replay_text replay;
    eval_inputs *in;       /* NULL: only --against */
    eval_report_row *rows; /* [s->n_rows] */
    uint32_t n_rows;       /* begun */
    eval_signals signals;
    eval_progress progress;
} evaluation;

static bool has_inputs(const eval_settings *s)
{
    return s->eval.text != NULL || s->plan.n_tasks > 0;
}

/* ---- before the first step ------------------------------------------------------------------------- */

static err_t open_parts(evaluation *e, err_info *info)
{
    const cli_parts_wanted wanted = {.config = &e->s->parts,
                                     .model_dir = e->s->command.model_dir,
                                     .with_tokenizer = has_inputs(e->s),
                                     .n_step_tokens_max = e->s->eval.n_step_tokens};
    TRY(cli_parts_open(&wanted, &e->parts, info));
    fprintf(stderr, "loaded %s: %.1f MiB of weights in %.2f s, %s\n", wanted.model_dir,
            (double)model_weight_bytes(e->parts.m) / (1 << 20), e->parts.load_seconds,
            e->parts.d->ops->name);
    const uint32_t n_vocab = model_get_config(e->parts.m)->n_vocab;
    if (replay_text_init(&e->replay, e->parts.t, n_vocab) != ERR_OK)
        return err_set(info, ERR_NO_MEMORY, "no memory for the text of replays");
    return ERR_OK;
}

static err_t check_lengths(const evaluation *e, err_info *info)
{
    const uint32_t n_positions = model_get_config(e->parts.m)->n_positions;
    const eval_plan *plan = &e->s->plan;
    if (e->s->eval.text != NULL && plan->window > n_positions) {
        return err_set(info, ERR_BAD_CONFIG, "window: %u is beyond the model's %u positions",
                       plan->window, n_positions);
    }
    for (uint32_t c = 0; c < plan->n_contexts; c++) {
        if (plan->contexts[c] <= n_positions) continue;
        return err_set(info, ERR_BAD_CONFIG, "context: %u is beyond the model's %u positions",
                       plan->contexts[c], n_positions);
    }
    return ERR_OK;
}

static err_t open_inputs(evaluation *e, err_info *info)
{
    e->plan = e->s->plan;
    if (!has_inputs(e->s)) return ERR_OK;
    char *text = NULL;
    if (e->s->eval.text != NULL) {
        TRY(eval_file_read(e->s->eval.text, &text, &e->plan.n_text_bytes, info));
        e->plan.text = text;
    }
    const err_t err = eval_inputs_open(e->parts.t, &e->plan, &e->in, info);
    e->plan.text = NULL;
    free(text);
    return err;
}

static eval_options options_of(evaluation *e, uint32_t row)
{
    const uint32_t n_seq_tokens_max = e->in != NULL ? eval_inputs_n_seq_tokens_max(e->in) : 1;
    return (eval_options){.d = e->parts.d,
                          .m = e->parts.m,
                          .kv = &e->s->rows[row].kv,
                          .n_seqs_max = e->s->eval.n_seqs,
                          .n_step_tokens_max = e->s->eval.n_step_tokens,
                          .n_seq_tokens_max = n_seq_tokens_max,
                          .replay = &e->replay,
                          .on_progress = eval_progress_show,
                          .on_progress_ctx = &e->progress};
}

/* Which row a message is about, if there are several. */
static err_t in_row(const evaluation *e, uint32_t row, err_t err, const err_info *cause,
                    err_info *info)
{
    const char *message = cause->code != ERR_OK ? cause->message : err_sentence(err);
    if (e->s->eval.compare == NULL) return err_set(info, err, "%s", message);
    return err_set(info, err, "compare: config %u: %s", row + 1, message);
}

/* Names of methods, and settings that do not go together, are only found by opening a cache. */
static err_t check_rows(evaluation *e, err_info *info)
{
    for (uint32_t i = 0; i < e->s->n_rows; i++) {
        const eval_options options = options_of(e, i);
        eval_run *r = NULL;
        err_info cause = {0};
        const err_t err = eval_run_open(&options, &r, &cause);
        if (err != ERR_OK) return in_row(e, i, err, &cause, info);
        eval_run_close(r);
    }
    return ERR_OK;
}

static err_t prepare(evaluation *e, err_info *info)
{
    if (e->s->eval.json != NULL) TRY(eval_file_check(e->s->eval.json, info));
    TRY(open_parts(e, info));
    TRY(check_lengths(e, info));
    e->rows = calloc(e->s->n_rows, sizeof *e->rows);
    if (e->rows == NULL) return err_set(info, ERR_NO_MEMORY, "no memory for the rows");
    TRY(open_inputs(e, info));
    return check_rows(e, info);
}

/* ---- rows ------------------------------------------------------------------------------------------ */

/* Part of the whole run that the next work is: `begin` and `share` within the row. */
static void set_progress(evaluation *e, uint32_t row, double begin, double share)
{
    e->progress.row = row;
    e->progress.begin = (row + begin) / e->s->n_rows;
    e->progress.share = share / e->s->n_rows;
}

static err_t run_row(evaluation *e, uint32_t row, err_info *info)
{
    eval_report_row *out = &e->rows[row];
    eval_options options = options_of(e, row);
    err_info cause = {0};
    err_t err = ERR_OK;
    double begin = 0;
    *out = (eval_report_row){.config = e->s->rows[row].name, .kv = &e->s->rows[row].kv};
    if (e->s->eval.against != NULL) { /* first: a bad file is found within minutes */
        set_progress(e, row, 0, e->in != NULL ? AGAINST_SHARE : 1);
        err = eval_against(&options, e->s->eval.against, &out->against, &cause);
        begin = AGAINST_SHARE;
    }
    if (err == ERR_OK && e->signals.is_caught) {
        out->row.is_cut_short = true;
    } else if (err == ERR_OK && e->in != NULL) {
        set_progress(e, row, begin, 1 - begin);
        err = eval_row_run(&options, e->in, row > 0 ? &e->rows[0].row : NULL, &out->row, &cause);
    }
    if (err != ERR_OK) return in_row(e, row, err, &cause, info);
    e->n_rows++;
    return ERR_OK;
}

static err_t run_rows(evaluation *e, err_info *info)
{
    err_t err = ERR_OK;
    eval_signals_hold(&e->signals);
    eval_progress_init(&e->progress, stderr, e->s->n_rows, &e->signals);
    for (uint32_t i = 0; err == ERR_OK && i < e->s->n_rows && !e->signals.is_caught; i++)
        err = run_row(e, i, info);
    eval_progress_clear(&e->progress);
    eval_signals_release(&e->signals);
    return err;
}

/* ---- after them ------------------------------------------------------------------------------------ */

static bool is_cut_short(const evaluation *e)
{
    return e->n_rows < e->s->n_rows || e->rows[e->n_rows - 1].row.is_cut_short;
}

static err_t write_json(const eval_report *report, const char *path, err_info *info)
{
    char *text = eval_report_json(report);
    if (text == NULL) return err_set(info, ERR_NO_MEMORY, "%s: out of memory", path);
    const err_t err = eval_file_write(path, text, strlen(text), info);
    free(text);
    return err;
}

static err_t report(const evaluation *e, err_info *info)
{
    const eval_report r = {.model_dir = e->s->command.model_dir,
                           .kernels = e->parts.d->ops->name,
                           .n_threads = thread_pool_n_threads(e->parts.d->pool),
                           .text_path = e->s->eval.text,
                           .against_path = e->s->eval.against,
                           .plan = &e->plan,
                           .adds_bos = e->parts.t != NULL && tokenizer_adds_bos(e->parts.t),
                           .n_windows = e->in != NULL ? eval_inputs_n_windows(e->in) : 0,
                           .n_seqs = e->s->eval.n_seqs,
                           .n_step_tokens = e->s->eval.n_step_tokens,
                           .rows = e->rows,
                           .n_rows = e->n_rows,
                           .n_rows_planned = e->s->n_rows,
                           .is_cut_short = is_cut_short(e)};
    eval_report_print(&r, stdout);
    err_t err = ERR_OK;
    /* Two reports: if one cannot be written, the other one still is. */
    if (fflush(stdout) != 0 || ferror(stdout))
        err = err_set(info, ERR_IO, "the report could not be written to standard output");
    if (e->s->eval.json != NULL) {
        const err_t written = write_json(&r, e->s->eval.json, info);
        if (err == ERR_OK) err = written;
    }
    return err;
}

static void close_evaluation(evaluation *e)
{
    for (uint32_t i = 0; i < e->n_rows; i++)
        eval_row_close(&e->rows[i].row);
    free(e->rows);
    eval_inputs_close(e->in);
    cli_parts_close(&e->parts);
}

static err_t evaluate(const eval_settings *s, bool *is_interrupted, err_info *info)
{
    evaluation e = {.s = s};
    err_t err = prepare(&e, info);
    if (err == ERR_OK) {
        err = run_rows(&e, info);
        if (err == ERR_OK || e.n_rows > 0) {
            const err_t reported = report(&e, info);
            if (err == ERR_OK) err = reported;
        }
        *is_interrupted = e.signals.is_caught;
    }
    close_evaluation(&e);
    return err;
}

static void print_help(const eval_settings *s)
{
    cli_print_help(&s->command, stdout);
    printf("\nTasks\n");
    for (size_t i = 0; eval_tasks[i] != NULL; i++)
        printf("  %-12s%s\n", eval_task_name(eval_tasks[i]), eval_task_help(eval_tasks[i]));
    printf(
        "\nSeveral tasks or contexts are separated by commas; samples are the same for a seed.\n"
        "--compare \"default;kv-cache-dtype=f32,kv-page-tokens=16\" runs every setting over the\n"
        "same inputs. The prefix cache stays off. Ctrl-C ends after the present step and prints\n"
        "what is finished.\n");
}

int cli_eval(int argc, char **argv, char *const *environment)
{
    eval_settings s;
    err_info info = {0};
    bool is_interrupted = false;
    err_t err = eval_settings_init(&s, argc, argv, environment, &info);
    int status = err == ERR_OK ? CLI_EXIT_OK : CLI_EXIT_USAGE;
    if (err == ERR_OK) err = hash_init();
    if (err == ERR_OK && s.parts.help) {
        print_help(&s);
    } else if (err == ERR_OK) {
        err = evaluate(&s, &is_interrupted, &info);
        /* Some settings can only be judged once the model is known. */
        if (err != ERR_OK) status = err == ERR_BAD_CONFIG ? CLI_EXIT_USAGE : CLI_EXIT_FAILED;
        if (err == ERR_OK && is_interrupted) status = CLI_EXIT_INTERRUPTED;
    }
    if (err != ERR_OK) {
        fprintf(stderr, "pikv eval: %s\n", info.code != ERR_OK ? info.message : err_sentence(err));
    }
    eval_settings_deinit(&s);
    return status;
}
