/* service/metrics_page.h - a page of /metrics while it is written, and the parts that write it.
 *
 * One page shows the counters of one moment: metrics_now is read once, so that two families made of one
 * counter agree (metrics_vllm.c repeats ours under other names). Names are given without the prefix.
 * A part writes HELP and TYPE of all its families, those without samples included: docs/metrics.md is
 * made from a page. */
#ifndef SERVICE_METRICS_PAGE_H
#define SERVICE_METRICS_PAGE_H

#include "service/metrics_internal.h"

#include <stdio.h>

/* Copies of what is counted. */
typedef struct metrics_now {
    uint64_t counters[METRIC_COUNTER_COUNT];
    uint64_t outcomes[OUTCOME_COUNT];
    uint64_t rejects[REJECT_COUNT];
    uint64_t buckets[METRIC_HISTOGRAM_COUNT][HISTOGRAM_EDGES_MAX + 1]; /* not cumulative */
    double sums[METRIC_HISTOGRAM_COUNT];
} metrics_now;

void metrics_now_read(const metrics *m, metrics_now *out);

typedef struct page {
    FILE *out;
    const metrics *m;
    const metrics_now *now;
    const char *prefix; /* of names: "pikv_" */
    const char *labels; /* of every sample, behind model_name: "" or `,name="value"` */
} page;

/* HELP and TYPE of a family. */
void page_family(page *p, const char *name, const char *type, const char *help);
/* One sample. `labels` is NULL or `name="value",...`, already escaped. */
void page_sample(page *p, const char *name, const char *labels, double value);
/* Counters are whole numbers and must not lose their last digits to a double. */
void page_count(page *p, const char *name, const char *labels, uint64_t value);
void page_gauge(page *p, const char *name, double value, const char *help);
void page_counter(page *p, const char *name, uint64_t value, const char *help);

/* Samples of one family that differ in one label. */
typedef struct page_value {
    const char *value;
    uint64_t n;
} page_value;
void page_labelled(page *p, const char *name, const char *label, const page_value *samples,
                   size_t n_samples);

/* The samples of a histogram, shown with the shape's names and edges. All of these edges must be the
 * histogram's own: values are in its buckets and cannot be cut finer. */
void page_histogram(page *p, metric_histogram which, const histogram_shape *shape);

/* The parts. */
void metrics_text_kv(page *p, const metrics_gauges *g);
void metrics_text_ranks(page *p, const metrics_gauges *g);
void metrics_text_process(page *p);
void metrics_text_vllm(const page *p, const metrics_gauges *g);

#endif
