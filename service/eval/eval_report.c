/* service/eval/eval_report.c - see eval_report.h: the part for people.
 *
 * A measurement is one line of the table `measures`: its title, whether anybody asked for it, and how a
 * row's value is written. Lists and tables are both made from it, so a new measurement is one function
 * and one line. */
#include "service/eval/eval_report.h"

#include <inttypes.h>
#include <math.h>

enum { VALUE_BYTES = 48, TITLE_CELLS = 16 };

/* ---- values ---------------------------------------------------------------------------------------- */

typedef struct value {
    char text[VALUE_BYTES];
} value;

static value number(double x, int n_decimals, bool is_known)
{
    value v = {"-"};
    if (is_known && isfinite(x)) snprintf(v.text, sizeof v.text, "%.*f", n_decimals, x);
    return v;
}

static value resident_of(const eval_report *report, const eval_report_row *r)
{
    (void)report;
    const eval_cost cost = eval_row_cost(&r->row);
    return number(eval_cost_resident_bytes_per_token(&cost), 1, cost.resident_tokens > 0);
}

static value read_of(const eval_report *report, const eval_report_row *r)
{
    (void)report;
    const eval_cost cost = eval_row_cost(&r->row);
    return number(eval_cost_read_bytes_per_step(&cost), 0, cost.n_decode_tokens > 0);
}

static value pages_of(const eval_report *report, const eval_report_row *r)
{
    (void)report;
    const eval_cost cost = eval_row_cost(&r->row);
    return number(eval_cost_share_of_pages_read(&cost), 4, cost.pages_open > 0);
}

static value certificate_of(const eval_report *report, const eval_report_row *r)
{
    (void)report;
    const eval_cost cost = eval_row_cost(&r->row);
    return number(eval_cost_certificate_mean(&cost), 4, cost.n_certificates > 0);
}

static value speed_of(const eval_report *report, const eval_report_row *r)
{
    (void)report;
    const eval_cost cost = eval_row_cost(&r->row);
    return number(eval_cost_tokens_per_second(&cost), 1, cost.decode_seconds > 0);
}

static value nll_of(const eval_report *report, const eval_report_row *r)
{
    (void)report;
    return number(r->row.text.nll, 5, r->row.text.n_tokens > 0);
}

static value perplexity_of(const eval_report *report, const eval_report_row *r)
{
    (void)report;
    return number(r->row.text.perplexity, 3, r->row.text.n_tokens > 0);
}

static value bits_of(const eval_report *report, const eval_report_row *r)
{
    (void)report;
    return number(r->row.text.bits_per_byte, 4, r->row.text.n_tokens > 0);
}

static value difference_of(const eval_report *report, const eval_report_row *r)
{
    (void)report;
    const eval_difference *d = &r->row.difference;
    value v = {"-"};
    if (r->row.has_difference) {
        snprintf(v.text, sizeof v.text, "%+.5f +- %.5f", d->mean, d->half_width);
    }
    return v;
}

static value accuracy_of(const eval_report *report, const eval_report_row *r)
{
    return number(eval_row_accuracy(&r->row, report->plan), 4, true);
}

static value error_max_of(const eval_report *report, const eval_report_row *r)
{
    (void)report;
    value v = {"-"};
    if (r->against.n_rows > 0)
        snprintf(v.text, sizeof v.text, "%.2e", r->against.relative_error_max);
    return v;
}

static value error_mean_of(const eval_report *report, const eval_report_row *r)
{
    (void)report;
    value v = {"-"};
    if (r->against.n_rows > 0)
        snprintf(v.text, sizeof v.text, "%.2e", r->against.relative_error_mean);
    return v;
}

static value top1_of(const eval_report *report, const eval_report_row *r)
{
    (void)report;
    return number(r->against.top1_agreement, 4, r->against.n_rows > 0);
}

/* What a measurement comes from (any of these makes it shown), and where it is left out: a list has
 * nothing to compare with, and a table is wide enough without what follows from the nll. */
enum { ON_TEXT = 1, ON_TASKS = 2, ON_LOGITS = 4, NOT_IN_LISTS = 8, NOT_IN_TABLES = 16 };

static const struct {
    const char *title, *unit; /* the unit stands in lists only */
    unsigned on;              /* the bits above */
    value (*of)(const eval_report *report, const eval_report_row *r);
} measures[] = {
    {"KV B/token", "bytes a token holds in the cache, by its allocator, metadata included",
     ON_TEXT | ON_TASKS, resident_of},
    {"read B/step", "bytes that attention reads for one sequence in one decode step",
     ON_TEXT | ON_TASKS, read_of},
    {"pages read", "share of the pages behind the recent window that decode queries read",
     ON_TEXT | ON_TASKS, pages_of},
    {"certificate", "mean bound of the share of attention that was not read", ON_TEXT | ON_TASKS,
     certificate_of},
    {"nll", "nats per token", ON_TEXT, nll_of},
    {"difference", "to the first row, with its 95 % interval", ON_TEXT | NOT_IN_LISTS,
     difference_of},
    {"perplexity", "", ON_TEXT | NOT_IN_TABLES, perplexity_of},
    {"bits per byte", "", ON_TEXT | NOT_IN_TABLES, bits_of},
    {"accuracy", "mean over tasks and contexts", ON_TASKS, accuracy_of},
    {"error max", "of max |ours - stored| / max |stored| over rows of logits", ON_LOGITS,
     error_max_of},
    {"error mean", "of the same", ON_LOGITS, error_mean_of},
    {"top-1", "share of rows whose largest logit is the same token's", ON_LOGITS, top1_of},
    {"tokens/s", "in decode, all sequences together", ON_TEXT | ON_TASKS, speed_of},
};
enum { N_MEASURES = sizeof measures / sizeof measures[0] };

static bool is_table(const eval_report *report)
{
    return report->n_rows_planned > 1;
}

static bool is_shown(const eval_report *report, size_t m)
{
    const unsigned on = measures[m].on;
    if ((on & (is_table(report) ? NOT_IN_TABLES : NOT_IN_LISTS)) != 0) return false;
    return ((on & ON_TEXT) != 0 && report->text_path != NULL) ||
           ((on & ON_TASKS) != 0 && report->plan->n_tasks > 0) ||
           ((on & ON_LOGITS) != 0 && report->against_path != NULL);
}

/* ---- the protocol ---------------------------------------------------------------------------------- */

static void print_text_protocol(const eval_report *report, FILE *out)
{
    fprintf(out,
            "text      %s: %" PRIu32 " windows of at most %" PRIu32
            " tokens. %s the first half of a window\n"
            "          as a prompt, then one token a step; what these steps predict is scored: the "
            "second half\n",
            report->text_path, report->n_windows, report->plan->window,
            report->adds_bos ? "BOS and" : "Without BOS,");
    const eval_row *first = report->n_rows > 0 ? &report->rows[0].row : NULL;
    if (first == NULL || first->text.n_tokens == 0) return;
    fprintf(out,
            "          %" PRIu64 " tokens of %" PRIu32 " windows are scored, for %" PRIu64
            " bytes of text\n",
            first->text.n_tokens, first->text.n_windows, first->text.n_bytes);
}

static void print_tasks_protocol(const eval_report *report, FILE *out)
{
    const eval_plan *plan = report->plan;
    fprintf(out, "tasks     ");
    for (uint32_t i = 0; i < plan->n_tasks; i++)
        fprintf(out, "%s%s", i > 0 ? ", " : "", eval_task_name(plan->tasks[i]));
    fprintf(out, "; context ");
    for (uint32_t i = 0; i < plan->n_contexts; i++)
        fprintf(out, "%s%" PRIu32, i > 0 ? ", " : "", plan->contexts[i]);
    fprintf(out,
            " tokens; %" PRIu32 " samples each, seed %" PRIu64 "\n"
            "          greedy answers, exact match",
            plan->n_samples, plan->seed);
    if (plan->n_distance_tokens > 0) {
        fprintf(out, "; the asked fact %" PRIu32 " tokens before the question's end",
                plan->n_distance_tokens);
    }
    fputc('\n', out);
}

static void print_protocol(const eval_report *report, FILE *out)
{
    fprintf(out, "model     %s, kernels %s, %" PRIu32 " threads\n", report->model_dir,
            report->kernels, report->n_threads);
    if (report->text_path != NULL) print_text_protocol(report, out);
    if (report->plan->n_tasks > 0) print_tasks_protocol(report, out);
    if (report->against_path != NULL) {
        fprintf(out, "logits    %s", report->against_path);
        if (report->n_rows > 0 && report->rows[0].against.n_rows > 0) {
            fprintf(out, ": %" PRIu64 " rows of %" PRIu32 " prompts",
                    report->rows[0].against.n_rows, report->rows[0].against.n_prompts);
        }
        fputc('\n', out);
    }
    fprintf(out,
            "batch     %" PRIu32 " sequences at once, %" PRIu32
            " tokens a step at most; no prefix cache\n\n",
            report->n_seqs, report->n_step_tokens);
}

/* ---- the numbers ----------------------------------------------------------------------------------- */

static void print_list(const eval_report *report, FILE *out)
{
    for (size_t m = 0; m < N_MEASURES; m++) {
        if (!is_shown(report, m)) continue;
        const char *unit = measures[m].unit;
        fprintf(out, "%-*s%12s%s%s\n", TITLE_CELLS, measures[m].title,
                measures[m].of(report, &report->rows[0]).text, unit[0] != '\0' ? "  " : "", unit);
    }
}

static int column_cells(size_t m)
{
    return measures[m].of == difference_of ? 22 : 13;
}

static const char *mark_of(const eval_report_row *r)
{
    return r->row.is_cut_short ? "*" : " ";
}

static void print_table(const eval_report *report, FILE *out)
{
    fprintf(out, "row ");
    for (size_t m = 0; m < N_MEASURES; m++) {
        if (is_shown(report, m)) fprintf(out, "%*s", column_cells(m), measures[m].title);
    }
    fprintf(out, "  settings\n");
    for (uint32_t i = 0; i < report->n_rows; i++) {
        const eval_report_row *r = &report->rows[i];
        fprintf(out, "%3" PRIu32 "%s", i + 1, mark_of(r));
        for (size_t m = 0; m < N_MEASURES; m++) {
            if (is_shown(report, m))
                fprintf(out, "%*s", column_cells(m), measures[m].of(report, r).text);
        }
        fprintf(out, "  %s\n", r->config);
    }
    fputc('\n', out);
    for (size_t m = 0; m < N_MEASURES; m++) {
        if (is_shown(report, m)) fprintf(out, "%-12s %s\n", measures[m].title, measures[m].unit);
    }
}

static value cell_of(const eval_accuracy *a)
{
    return number((double)a->n_right / (a->n_done > 0 ? a->n_done : 1), 4, a->n_done > 0);
}

/* Tasks down, contexts across; with several rows one block for each. */
static void print_accuracy(const eval_report *report, FILE *out)
{
    const eval_plan *plan = report->plan;
    fprintf(out, "\n%-*s", TITLE_CELLS, "accuracy");
    for (uint32_t c = 0; c < plan->n_contexts; c++)
        fprintf(out, "%10" PRIu32, plan->contexts[c]);
    fputc('\n', out);
    for (uint32_t i = 0; i < report->n_rows; i++) {
        const eval_report_row *r = &report->rows[i];
        for (uint32_t k = 0; k < plan->n_tasks; k++) {
            int n = 0;
            if (is_table(report)) n = fprintf(out, "%3" PRIu32 "%s ", i + 1, mark_of(r));
            fprintf(out, "%-*s", TITLE_CELLS - n, eval_task_name(plan->tasks[k]));
            for (uint32_t c = 0; c < plan->n_contexts; c++)
                fprintf(out, "%10s", cell_of(&r->row.accuracy[k][c]).text);
            fputc('\n', out);
        }
    }
}

static void print_cut(const eval_report *report, FILE *out)
{
    uint64_t n_samples = 0;
    const eval_report_row *last = report->n_rows > 0 ? &report->rows[report->n_rows - 1] : NULL;
    fprintf(out, "\nCut short: %" PRIu32 " of %" PRIu32 " rows are shown", report->n_rows,
            report->n_rows_planned);
    if (last != NULL && report->text_path != NULL) {
        fprintf(out, "; the last one has finished %" PRIu32 " of %" PRIu32 " windows",
                last->row.text.n_windows, report->n_windows);
    }
    for (uint32_t k = 0; last != NULL && k < report->plan->n_tasks; k++) {
        for (uint32_t c = 0; c < report->plan->n_contexts; c++)
            n_samples += last->row.accuracy[k][c].n_done;
    }
    if (last != NULL && report->plan->n_tasks > 0) {
        fprintf(out, "%s %" PRIu64 " samples",
                report->text_path != NULL ? " and" : "; the last one has finished", n_samples);
    }
    fprintf(out, ".\n");
}

void eval_report_print(const eval_report *report, FILE *out)
{
    print_protocol(report, out);
    if (is_table(report)) {
        print_table(report, out);
    } else if (report->n_rows > 0) {
        print_list(report, out);
    }
    if (report->plan->n_tasks > 0 && report->n_rows > 0) print_accuracy(report, out);
    if (report->is_cut_short) print_cut(report, out);
}
