/* service/metrics_text.c - the page of /metrics: Prometheus text format 0.0.4.
 *
 * A scrape reads atomics and what the caller gathered; it waits for nobody. Names: base units, counters
 * end in _total, one prefix. What belongs to the cache, ranks and the process is in files of its own. */
#include "service/metrics_page.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static uint64_t load(const _Atomic uint64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

static void write_counters(page *p)
{
    static const struct {
        const char *name, *help;
    } rows[METRIC_COUNTER_COUNT] = {
#define X(id, metric_name, sentence) [METRIC_##id] = {.name = metric_name, .help = sentence},
        METRIC_COUNTERS(X)
#undef X
    };
    for (size_t i = 0; i < METRIC_COUNTER_COUNT; i++)
        page_counter(p, rows[i].name, p->now->counters[i], rows[i].help);
}

static void write_requests(page *p)
{
    static const char *const outcomes[OUTCOME_COUNT] = {"stop", "length", "abort", "error"};
    static const char *const reasons[REJECT_COUNT] = {"bad_request", "auth",       "not_found",
                                                      "too_large",   "queue_full", "draining"};
    page_value samples[REJECT_COUNT + OUTCOME_COUNT];
    for (size_t i = 0; i < OUTCOME_COUNT; i++)
        samples[i] = (page_value){outcomes[i], p->now->outcomes[i]};
    page_family(p, "requests_total", "counter", "Sequences finished, by outcome");
    page_labelled(p, "requests_total", "outcome", samples, OUTCOME_COUNT);
    for (size_t i = 0; i < REJECT_COUNT; i++)
        samples[i] = (page_value){reasons[i], p->now->rejects[i]};
    page_family(p, "request_rejections_total", "counter", "Requests refused, by reason");
    page_labelled(p, "request_rejections_total", "reason", samples, REJECT_COUNT);
}

/* One routing and scheduling, from counter i on. Combinations that were never asked for are left out: there
 * are thousands of them. */
static void write_compressions(page *p, uint32_t routing, uint32_t scheduling, size_t i)
{
    const metrics *m = p->m;
    char labels[192];
    for (uint32_t s = 0; s < m->methods.n_selections; s++) {
        for (uint32_t c = 0; c < m->methods.n_codecs; c++, i++) {
            const uint64_t n = load(&m->methods.ended[i]);
            if (n == 0) continue;
            snprintf(labels, sizeof labels,
                     "routing=\"%s\",scheduling=\"%s\",compression=\"%s%s%s\"",
                     kv_routings[routing]->name, metrics_scheduling_name(scheduling),
                     s > 0 ? kv_scorers[s - 1]->name : "", s > 0 ? "," : "", kv_codecs[c]->name);
            page_count(p, "requests_by_method_total", labels, n);
        }
    }
}

static void write_methods(page *p)
{
    const metrics *m = p->m;
    const size_t n_each = (size_t)m->methods.n_selections * m->methods.n_codecs;
    size_t i = 0;
    page_family(p, "requests_by_method_total", "counter",
                "Sequences finished, by the methods of their KV entries");
    for (uint32_t r = 0; r < m->methods.n_routings; r++) {
        for (uint32_t s = 0; s < m->methods.n_schedulings; s++, i += n_each)
            write_compressions(p, r, s, i);
    }
}

static void write_histograms(page *p)
{
    const char *family = "";
    for (size_t i = 0; i < METRIC_HISTOGRAM_COUNT; i++) {
        const histogram_shape shape = metrics_histogram_shape((metric_histogram)i);
        if (strcmp(shape.family, family) != 0) {
            page_family(p, shape.family, "histogram", shape.help);
        }
        family = shape.family;
        page_histogram(p, (metric_histogram)i, &shape);
    }
}

static void write_load(page *p, const metrics_gauges *g)
{
    page_gauge(p, "requests_running", g->n_running, "Sequences that own KV pages");
    page_gauge(p, "requests_waiting", g->n_waiting, "Sequences in the queue");
    page_gauge(p, "requests_preempted", g->n_preempted, "Sequences preempted and waiting to go on");
    page_gauge(p, "http_requests_active", g->http_active, "HTTP exchanges in progress");
    page_gauge(p, "ready", g->is_ready ? 1 : 0, "1 when the model is loaded and not draining");
    page_gauge(p, "model_load_seconds", g->load_seconds, "From the start of the process to ready");
    const page_value parts[] = {{"weights", g->weight_bytes},
                                {"kv", g->kv.slab_bytes + g->kv.table_bytes + g->kv.ring_bytes +
                                           g->kv.staging_bytes + g->kv.host_bytes},
                                {"scratch", g->scratch_bytes}};
    page_family(p, "memory_bytes", "gauge", "Memory by kind");
    page_labelled(p, "memory_bytes", "kind", parts, sizeof parts / sizeof *parts);
}

/* The busiest expert's tokens over the mean, of each layer on its own: a mean over layers first would
 * hide that different experts are busy in different layers. Layers without traffic have no value. */
static void write_experts(page *p)
{
    const metrics *m = p->m;
    char labels[64];
    if (m->n_experts == 0) return;
    page_family(p, "moe_expert_tokens_total", "counter", "Tokens routed to an expert");
    for (uint32_t l = 0; l < m->n_layers; l++) {
        for (uint32_t e = 0; e < m->n_experts; e++) {
            snprintf(labels, sizeof labels, "layer=\"%u\",expert=\"%u\"", l, e);
            page_count(p, "moe_expert_tokens_total", labels,
                       load(&m->experts[(size_t)l * m->n_experts + e]));
        }
    }
    page_family(p, "moe_layer_load_imbalance_ratio", "gauge",
                "Tokens of the busiest expert over the mean, since start");
    for (uint32_t l = 0; l < m->n_layers; l++) {
        uint64_t most = 0, total = 0;
        for (uint32_t e = 0; e < m->n_experts; e++) {
            const uint64_t n = load(&m->experts[(size_t)l * m->n_experts + e]);
            most = n > most ? n : most;
            total += n;
        }
        if (total == 0) continue;
        snprintf(labels, sizeof labels, "layer=\"%u\"", l);
        page_sample(p, "moe_layer_load_imbalance_ratio", labels,
                    (double)most * m->n_experts / (double)total);
    }
}

static const char *or_empty(const char *text)
{
    return text == NULL ? "" : text;
}

static void write_info(page *p, const metrics_gauges *g)
{
    char labels[256];
    snprintf(labels, sizeof labels, "version=\"%s\",device=\"%s\"", PIKV_VERSION,
             or_empty(g->dev_name));
    page_family(p, "build_info", "gauge", "Version and device; always 1");
    page_count(p, "build_info", labels, 1);
    snprintf(labels, sizeof labels,
             "cache_dtype=\"%s\",block_size=\"%u\",num_blocks=\"%" PRIu64 "\",max_model_len=\"%u\"",
             or_empty(g->kv_type), g->page_tokens, g->kv.pages_total, g->context_max);
    page_family(p, "cache_config_info", "gauge", "Settings of the KV cache; always 1");
    page_count(p, "cache_config_info", labels, 1);
}

err_t metrics_write(const metrics *m, const metrics_gauges *gauges, char **text, size_t *n_bytes)
{
    *text = NULL;
    metrics_now now;
    page p = {
        .out = open_memstream(text, n_bytes), .m = m, .now = &now, .prefix = "pikv_", .labels = ""};
    if (p.out == NULL) return ERR_NO_MEMORY;
    metrics_now_read(m, &now);
    write_requests(&p);
    write_methods(&p);
    write_counters(&p);
    write_load(&p, gauges);
    metrics_text_kv(&p, gauges);
    write_histograms(&p);
    write_experts(&p);
    metrics_text_ranks(&p, gauges);
    write_info(&p, gauges);
    metrics_text_process(&p);
    if (m->compat == METRICS_COMPAT_VLLM) metrics_text_vllm(&p, gauges);
    const int is_broken = ferror(p.out);
    if (fclose(p.out) == 0 && !is_broken) return ERR_OK;
    free(*text);
    *text = NULL;
    return ERR_NO_MEMORY;
}
