/* service/plan_report.h - a plan for people and for tools, from one list of lines.
 *
 * A number is one line, with the key that tools read and the title that people read, so both say the same. */
#ifndef SERVICE_PLAN_REPORT_H
#define SERVICE_PLAN_REPORT_H

#include "service/plan.h"

#include <stdio.h>

enum { PLAN_LINES_MAX = 64, PLAN_CONTRASTS_MAX = 8, PLAN_NOTES_MAX = 12, PLAN_NOTE_BYTES = 200 };

typedef enum plan_unit { PLAN_COUNT, PLAN_BYTES, PLAN_NUMBER, PLAN_SECONDS } plan_unit;

typedef struct plan_line {
    const char *group; /* key of the object that the line is in: "memory" */
    const char *key, *title;
    plan_unit unit;
    uint64_t n; /* counts and bytes */
    double x;   /* the others */
} plan_line;

/* A statement of the paper beside the corrected one. */
typedef struct plan_contrast {
    const char *key, *title;
    const char *paper_formula, *formula;
    double paper, corrected;
    const char *unit;       /* "tokens" */
    const char *difference; /* one sentence */
} plan_contrast;

typedef struct plan_report {
    const char *model_dir;
    const char *family;
    plan_line lines[PLAN_LINES_MAX];
    size_t n_lines;
    plan_contrast contrasts[PLAN_CONTRASTS_MAX];
    size_t n_contrasts;
    char notes[PLAN_NOTES_MAX][PLAN_NOTE_BYTES]; /* what the numbers do not say */
    size_t n_notes;
} plan_report;

typedef struct plan_report_source {
    const char *model_dir;
    const model_config *model;
    const kv_config *kv;
    const plan_input *in;
    const plan_result *result;
} plan_report_source;

void plan_report_fill(const plan_report_source *from, plan_report *out);

/* The stream's error flag tells whether it came out. */
void plan_report_print(const plan_report *report, FILE *out);

/* A heap string, or NULL without memory: {"model", "family", GROUP: {KEY: number}, ..., "paper":
 * [{"key", "paper_formula", "paper", "formula", "corrected", "unit", "difference"}], "notes": [text]}.
 * Bytes are whole numbers, times in seconds. */
char *plan_report_json(const plan_report *report);

/* The title of a group: "Memory of the fullest rank". */
const char *plan_group_title(const char *group);

#endif
