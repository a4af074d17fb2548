/* service/eval/eval_report.h - what `pikv eval` has measured, for people and for tools.
 *
 * People get the protocol and then the numbers; one row as a list, several as a table. Tools get a JSON
 * array with one object a row (eval_report_json). What was not measured is `-` here and null there,
 * never a zero. */
#ifndef SERVICE_EVAL_EVAL_REPORT_H
#define SERVICE_EVAL_EVAL_REPORT_H

#include "service/eval/eval_against.h"
#include "service/eval/eval_compare.h"

#include <stdio.h>

typedef struct eval_report_row {
    const char *config; /* as the user wrote it, or "default" */
    const kv_config *kv;
    eval_row row;
    eval_against_result against; /* n_rows 0: none */
} eval_report_row;

typedef struct eval_report {
    const char *model_dir;
    const char *kernels; /* the name of the ops */
    uint32_t n_threads;
    const char *text_path, *against_path; /* NULL: not asked for */
    const eval_plan *plan;
    bool adds_bos;
    uint32_t n_windows; /* of the text; a row says how many are finished */
    uint32_t n_seqs, n_step_tokens;
    const eval_report_row *rows; /* [n_rows]; the last one may be cut short */
    uint32_t n_rows, n_rows_planned;
    bool is_cut_short;
} eval_report;

/* The stream's error flag tells whether it came out. */
void eval_report_print(const eval_report *report, FILE *out);

/* A heap string, or NULL without memory. Keys: model, config, settings {name: value}, nll, perplexity,
 * bits_per_byte, nll_difference, nll_difference_ci95 (to the first row, which has null), n_tokens,
 * n_bytes and n_windows (scored and finished), window, accuracy (mean over tasks and contexts),
 * accuracy_by_task {task: {context: share}}, n_samples (finished), distance, distance_mean, seed,
 * resident_bytes_per_token, read_bytes_per_step, pages_read_share and certificate_mean (of decode
 * queries), tokens_per_s, relative_error_max, relative_error_mean, top1_agreement, is_cut_short. */
char *eval_report_json(const eval_report *report);

#endif
