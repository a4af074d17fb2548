/* service/metrics_internal.h - the tables behind metrics.h, shared by metrics.c (counting) and those that
 * write the page (metrics_page.h). */
#ifndef SERVICE_METRICS_INTERNAL_H
#define SERVICE_METRICS_INTERNAL_H

#include "service/metrics.h"

#include <stdatomic.h>

enum { HISTOGRAM_EDGES_MAX = 32 };

typedef struct histogram_shape {
    const char *family; /* without the prefix; neighbours may share one */
    const char *help;
    const char *phase;   /* label of a shared family; NULL: none */
    const double *edges; /* [n_edges], rising; the last bucket, +Inf, is not listed */
    uint32_t n_edges;
} histogram_shape;

histogram_shape metrics_histogram_shape(metric_histogram which);

typedef struct histogram {
    _Atomic uint64_t buckets[HISTOGRAM_EDGES_MAX + 1]; /* not cumulative; the text adds them up */
    _Atomic double sum;
} histogram;

struct metrics {
    char *model_name; /* as a label's value: escaped */
    /* Of the process, since the epoch. Read once, since it comes from two clocks: another digit would be
     * another start to whoever counts restarts. */
    double start_seconds;
    metrics_compat compat;
    uint32_t n_layers, n_experts;
    _Atomic bool is_paused;
    _Atomic uint64_t counters[METRIC_COUNTER_COUNT];
    _Atomic uint64_t outcomes[OUTCOME_COUNT];
    _Atomic uint64_t rejects[REJECT_COUNT];
    histogram histograms[METRIC_HISTOGRAM_COUNT];
    _Atomic uint64_t *experts; /* [n_layers][n_experts]; tokens routed */
    struct {
        uint32_t n_routings, n_codecs; /* entries of the registries */
        uint32_t n_schedulings;        /* see metrics_scheduling_name */
        uint32_t n_selections;         /* none, or a scorer */
        _Atomic uint64_t
            *ended; /* [n_routings][n_schedulings][n_selections][n_codecs]: sequences */
    } methods;
};

/* Of this process, since the epoch; 0 if that cannot be read. */
double metrics_process_start_seconds(void);

/* What counters call a policy: none, quest, or its scorer; NULL behind the last one. */
const char *metrics_scheduling_name(uint32_t index);

#endif
