/* service/metrics_page.c - lines of the text format. See metrics_page.h.
 *
 * A histogram's count is the sum of the buckets that were read, so `_count` and the +Inf bucket are equal
 * whatever is counted meanwhile. */
#include "service/metrics_page.h"

#include "base/check.h"
#include "base/config.h"

#include <inttypes.h>
#include <string.h>

static void copy_counts(uint64_t *to, const _Atomic uint64_t *from, size_t n)
{
    for (size_t i = 0; i < n; i++)
        to[i] = atomic_load_explicit(&from[i], memory_order_relaxed);
}

void metrics_now_read(const metrics *m, metrics_now *out)
{
    copy_counts(out->counters, m->counters, METRIC_COUNTER_COUNT);
    copy_counts(out->outcomes, m->outcomes, OUTCOME_COUNT);
    copy_counts(out->rejects, m->rejects, REJECT_COUNT);
    for (size_t i = 0; i < METRIC_HISTOGRAM_COUNT; i++) {
        /* Buckets first: a value is added to its bucket last, so the sum never lags behind the count. */
        copy_counts(out->buckets[i], m->histograms[i].buckets, HISTOGRAM_EDGES_MAX + 1);
        out->sums[i] = atomic_load_explicit(&m->histograms[i].sum, memory_order_relaxed);
    }
}

void page_family(page *p, const char *name, const char *type, const char *help)
{
    fprintf(p->out, "# HELP %s%s %s\n# TYPE %s%s %s\n", p->prefix, name, help, p->prefix, name,
            type);
}

static void write_series(page *p, const char *name, const char *labels)
{
    fprintf(p->out, "%s%s{model_name=\"%s\"%s%s%s} ", p->prefix, name, p->m->model_name, p->labels,
            labels == NULL ? "" : ",", labels == NULL ? "" : labels);
}

void page_sample(page *p, const char *name, const char *labels, double value)
{
    char text[CFG_F64_TEXT_BYTES];
    write_series(p, name, labels);
    fprintf(p->out, "%s\n", cfg_format_f64(value, text));
}

void page_count(page *p, const char *name, const char *labels, uint64_t value)
{
    write_series(p, name, labels);
    fprintf(p->out, "%" PRIu64 "\n", value);
}

void page_gauge(page *p, const char *name, double value, const char *help)
{
    page_family(p, name, "gauge", help);
    page_sample(p, name, NULL, value);
}

void page_counter(page *p, const char *name, uint64_t value, const char *help)
{
    page_family(p, name, "counter", help);
    page_count(p, name, NULL, value);
}

void page_labelled(page *p, const char *name, const char *label, const page_value *samples,
                   size_t n_samples)
{
    for (size_t i = 0; i < n_samples; i++) {
        char labels[96];
        snprintf(labels, sizeof labels, "%s=\"%s\"", label, samples[i].value);
        page_count(p, name, labels, samples[i].n);
    }
}

static uint64_t sum_of(const uint64_t *buckets, uint32_t from, uint32_t to)
{
    uint64_t n = 0;
    for (uint32_t i = from; i < to; i++)
        n += buckets[i];
    return n;
}

void page_histogram(page *p, metric_histogram which, const histogram_shape *shape)
{
    const histogram_shape own = metrics_histogram_shape(which);
    const uint64_t *buckets = p->now->buckets[which];
    char name[96], labels[128], phase[48] = "", edge[CFG_F64_TEXT_BYTES];
    if (shape->phase != NULL) snprintf(phase, sizeof phase, "phase=\"%s\"", shape->phase);
    const char *comma = shape->phase != NULL ? "," : "";
    uint64_t n_values = 0;
    uint32_t next = 0; /* bucket of ours that is not in n_values yet */
    snprintf(name, sizeof name, "%s_bucket", shape->family);
    for (uint32_t i = 0; i < shape->n_edges; i++) {
        uint32_t end = next;
        while (end < own.n_edges && own.edges[end] < shape->edges[i])
            end++;
        assert(end < own.n_edges);
        assert(!(own.edges[end] > shape->edges[i]));
        n_values += sum_of(buckets, next, end + 1);
        next = end + 1;
        snprintf(labels, sizeof labels, "%s%sle=\"%s\"", phase, comma,
                 cfg_format_f64(shape->edges[i], edge));
        page_count(p, name, labels, n_values);
    }
    n_values += sum_of(buckets, next, own.n_edges + 1);
    snprintf(labels, sizeof labels, "%s%sle=\"+Inf\"", phase, comma);
    page_count(p, name, labels, n_values);
    const char *own_labels = shape->phase != NULL ? phase : NULL;
    snprintf(name, sizeof name, "%s_sum", shape->family);
    page_sample(p, name, own_labels, p->now->sums[which]);
    snprintf(name, sizeof name, "%s_count", shape->family);
    page_count(p, name, own_labels, n_values);
}
