/* service/metrics_text.c - the page of /metrics: Prometheus text format 0.0.4.
 *
 * A scrape reads atomics and what the caller gathered; it waits for nobody. A histogram's count is the sum
 * of the buckets that were read, so `_count` and the +Inf bucket are equal whatever is counted meanwhile.
 * Names: base units, counters end in _total, one prefix. */
#include "service/metrics_internal.h"

#include "base/clock.h"
#include "base/config.h"

#include <dirent.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

typedef struct page {
    FILE *out;
    const metrics *m;
} page;

static void write_head(page *p, const char *name, const char *type, const char *help)
{
    fprintf(p->out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

/* HELP and TYPE of a family with the prefix. */
static void write_family(page *p, const char *name, const char *type, const char *help)
{
    fprintf(p->out, "# HELP pikv_%s %s\n# TYPE pikv_%s %s\n", name, help, name, type);
}

/* One sample. `labels` is NULL or `name="value",...`, already escaped. */
static void write_sample(page *p, const char *name, const char *labels, double value)
{
    char text[CFG_F64_TEXT_BYTES];
    fprintf(p->out, "pikv_%s{model_name=\"%s\"%s%s} %s\n", name, p->m->model_name,
            labels == NULL ? "" : ",", labels == NULL ? "" : labels, cfg_format_f64(value, text));
}

/* Counters are whole numbers and must not lose their last digits to a double. */
static void write_count(page *p, const char *name, const char *labels, uint64_t value)
{
    fprintf(p->out, "pikv_%s{model_name=\"%s\"%s%s} %" PRIu64 "\n", name, p->m->model_name,
            labels == NULL ? "" : ",", labels == NULL ? "" : labels, value);
}

static void write_gauge(page *p, const char *name, double value, const char *help)
{
    write_family(p, name, "gauge", help);
    write_sample(p, name, NULL, value);
}

static void write_counter(page *p, const char *name, uint64_t value, const char *help)
{
    write_family(p, name, "counter", help);
    write_count(p, name, NULL, value);
}

/* A family whose samples differ in one label. */
typedef struct labelled {
    const char *value;
    uint64_t n;
} labelled;

static void write_labelled(page *p, const char *name, const char *label, const labelled *samples,
                           size_t n_samples)
{
    for (size_t i = 0; i < n_samples; i++) {
        char labels[96];
        snprintf(labels, sizeof labels, "%s=\"%s\"", label, samples[i].value);
        write_count(p, name, labels, samples[i].n);
    }
}

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
        write_counter(p, rows[i].name, load(&p->m->counters[i]), rows[i].help);
}

static void write_requests(page *p)
{
    static const char *const outcomes[OUTCOME_COUNT] = {"stop", "length", "abort", "error"};
    static const char *const reasons[REJECT_COUNT] = {"bad_request", "auth",       "not_found",
                                                      "too_large",   "queue_full", "draining"};
    labelled samples[REJECT_COUNT + OUTCOME_COUNT];
    for (size_t i = 0; i < OUTCOME_COUNT; i++)
        samples[i] = (labelled){outcomes[i], load(&p->m->outcomes[i])};
    write_family(p, "requests_total", "counter", "Sequences finished, by outcome");
    write_labelled(p, "requests_total", "outcome", samples, OUTCOME_COUNT);
    for (size_t i = 0; i < REJECT_COUNT; i++)
        samples[i] = (labelled){reasons[i], load(&p->m->rejects[i])};
    write_family(p, "request_rejections_total", "counter", "Requests refused, by reason");
    write_labelled(p, "request_rejections_total", "reason", samples, REJECT_COUNT);
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
            write_count(p, "requests_by_method_total", labels, n);
        }
    }
}

static void write_methods(page *p)
{
    const metrics *m = p->m;
    const size_t n_each = (size_t)m->methods.n_selections * m->methods.n_codecs;
    size_t i = 0;
    write_family(p, "requests_by_method_total", "counter",
                 "Sequences finished, by the methods of their KV entries");
    for (uint32_t r = 0; r < m->methods.n_routings; r++) {
        for (uint32_t s = 0; s < m->methods.n_schedulings; s++, i += n_each)
            write_compressions(p, r, s, i);
    }
}

static void write_histogram(page *p, metric_histogram which, const histogram_shape *shape)
{
    const histogram *h = &p->m->histograms[which];
    char name[96], labels[128], phase[48] = "", edge[CFG_F64_TEXT_BYTES];
    if (shape->phase != NULL) snprintf(phase, sizeof phase, "phase=\"%s\"", shape->phase);
    const char *comma = shape->phase != NULL ? "," : "";
    /* Read first: a value is added to its bucket last, so the sum never lags behind the count. */
    uint64_t buckets[HISTOGRAM_EDGES_MAX + 1];
    for (uint32_t i = 0; i <= shape->n_edges; i++)
        buckets[i] = load(&h->buckets[i]);
    uint64_t n_values = 0;
    snprintf(name, sizeof name, "%s_bucket", shape->family);
    for (uint32_t i = 0; i <= shape->n_edges; i++) {
        const bool is_last = i == shape->n_edges;
        n_values += buckets[i];
        snprintf(labels, sizeof labels, "%s%sle=\"%s\"", phase, comma,
                 is_last ? "+Inf" : cfg_format_f64(shape->edges[i], edge));
        write_count(p, name, labels, n_values);
    }
    const char *own = shape->phase != NULL ? phase : NULL;
    snprintf(name, sizeof name, "%s_sum", shape->family);
    write_sample(p, name, own, atomic_load_explicit(&h->sum, memory_order_relaxed));
    snprintf(name, sizeof name, "%s_count", shape->family);
    write_count(p, name, own, n_values);
}

static void write_histograms(page *p)
{
    const char *family = "";
    for (size_t i = 0; i < METRIC_HISTOGRAM_COUNT; i++) {
        const histogram_shape shape = metrics_histogram_shape((metric_histogram)i);
        if (strcmp(shape.family, family) != 0) {
            write_family(p, shape.family, "histogram", shape.help);
        }
        family = shape.family;
        write_histogram(p, (metric_histogram)i, &shape);
    }
}

static void write_load(page *p, const metrics_gauges *g)
{
    write_gauge(p, "requests_running", g->n_running, "Sequences that own KV pages");
    write_gauge(p, "requests_waiting", g->n_waiting, "Sequences in the queue");
    write_gauge(p, "requests_preempted", g->n_preempted,
                "Sequences preempted and waiting to go on");
    write_gauge(p, "http_requests_active", g->http_active, "HTTP exchanges in progress");
    write_gauge(p, "ready", g->is_ready ? 1 : 0, "1 when the model is loaded and not draining");
    write_gauge(p, "model_load_seconds", g->load_seconds, "From the start of the process to ready");
    const labelled parts[] = {{"weights", g->weight_bytes},
                              {"kv", g->kv.slab_bytes + g->kv.table_bytes + g->kv.ring_bytes +
                                         g->kv.staging_bytes + g->kv.host_bytes},
                              {"scratch", g->scratch_bytes}};
    write_family(p, "memory_bytes", "gauge", "Memory by kind");
    write_labelled(p, "memory_bytes", "kind", parts, sizeof parts / sizeof *parts);
}

static void write_kv_gauges(page *p, const kv_stats *kv)
{
    const labelled blocks[] = {
        {"used", kv->pages_used}, {"cached", kv->pages_cached}, {"free", kv->pages_free}};
    write_family(p, "kv_blocks", "gauge", "Pages of the KV pool, by state");
    write_labelled(p, "kv_blocks", "state", blocks, sizeof blocks / sizeof *blocks);
    const labelled parts[] = {{"slabs", kv->slab_bytes},
                              {"tables", kv->table_bytes},
                              {"ring", kv->ring_bytes},
                              {"scores", kv->observed_bytes},
                              {"staging", kv->staging_bytes}};
    write_family(p, "kv_cache_bytes", "gauge", "Bytes that the KV cache holds, by part");
    write_labelled(p, "kv_cache_bytes", "part", parts, sizeof parts / sizeof *parts);
    write_gauge(p, "kv_pool_budget_bytes", (double)kv->pool_budget_bytes,
                "Budget of the page pool");
    write_gauge(p, "kv_used_bytes", (double)kv->used_bytes,
                "Shares of slabs that the pages of open sequences take");
    write_gauge(p, "kv_slots_live", (double)kv->slots_live, "Entries that lie in pages");
    write_gauge(p, "kv_sequences_open", kv->seqs_open, "Sequences open in the KV cache");
    write_gauge(p, "prefix_cache_objects", kv->prefix_objects, "Cached prefixes");
}

static void write_kv_counters(page *p, const kv_stats *kv)
{
    write_counter(p, "prefix_cache_query_tokens_total", kv->prefix_query_tokens,
                  "Prompt tokens looked up in the prefix cache");
    write_counter(p, "prefix_cache_hit_tokens_total", kv->prefix_hit_tokens,
                  "Prompt tokens taken from the prefix cache");
    write_counter(p, "kv_tokens_appended_total", kv->tokens_appended,
                  "Tokens appended to the cache");
    write_counter(p, "kv_committed_blocks_total", kv->pages_committed, "Pages filled from rings");
    write_counter(p, "kv_encoded_blocks_total", kv->pages_encoded,
                  "Pages encoded by a lossy codec");
    write_counter(p, "kv_encoded_raw_bytes_total", kv->encoded_raw_bytes,
                  "Bytes of the encoded pages before");
    write_counter(p, "kv_encoded_bytes_total", kv->encoded_bytes,
                  "Bytes of the encoded pages as they are");
    write_counter(p, "kv_evicted_blocks_total", kv->pages_given_up,
                  "Pages of cached prefixes given up under pressure");
    write_counter(p, "kv_read_bytes_total", kv->bytes_read,
                  "Bytes of keys, values and key boxes read");
    write_counter(p, "kv_read_blocks_total", kv->blocks_read, "Blocks of positions read");
}

/* One family with a sample per shard; the value is `offset` bytes into its statistics. */
static void write_shards(page *p, const kv_stats *kv, const char *name, const char *help,
                         size_t offset)
{
    char labels[32];
    const size_t n = strlen(name), total = strlen("_total");
    const bool is_counter = n > total && strcmp(name + n - total, "_total") == 0;
    write_family(p, name, is_counter ? "counter" : "gauge", help);
    for (uint32_t s = 0; s < kv->n_shards; s++) {
        uint64_t value;
        memcpy(&value, (const char *)&kv->shards[s] + offset, sizeof value);
        snprintf(labels, sizeof labels, "shard=\"%u\"", s);
        write_count(p, name, labels, value);
    }
}

/* Where entries lie, and how often they could not lie where placement wants them. */
static void write_kv_shards(page *p, const kv_stats *kv)
{
    write_shards(p, kv, "kv_shard_blocks", "Pages that a shard owns",
                 offsetof(kv_shard_stats, pages));
    write_shards(p, kv, "kv_shard_slots_live", "Entries in these pages",
                 offsetof(kv_shard_stats, slots));
    write_shards(p, kv, "kv_shard_bytes", "Bytes of these pages", offsetof(kv_shard_stats, bytes));
    write_shards(p, kv, "kv_shard_spilled_entries_total",
                 "Entries of a full shard that went to another one",
                 offsetof(kv_shard_stats, spilled));
    write_counter(p, "kv_expert_packings_total", kv->experts_packed,
                  "Layers whose experts were packed onto shards anew");
}

/* What scheduling takes away from running sequences. */
static void write_kv_scheduling(page *p, const kv_stats *kv)
{
    write_counter(p, "kv_entries_evicted_total", kv->entries_evicted,
                  "Entries that scheduling took from sequences");
    write_counter(p, "kv_entries_rewritten_total", kv->entries_rewritten,
                  "Keys and values of kept entries that were rewritten then");
    write_counter(p, "kv_pages_evicted_total", kv->pages_evicted,
                  "Pages that sequences gave back for it");
    write_counter(p, "kv_pages_compacted_total", kv->pages_compacted,
                  "Pages written anew from what was left of others");
    write_family(p, "kv_score_seconds_total", "counter", "Time spent choosing what stays");
    write_sample(p, "kv_score_seconds_total", NULL, kv->score_seconds);
}

/* What routing leaves out of decode steps, and the bound of the attention mass that is missed by it. */
static void write_kv_routing(page *p, const kv_stats *kv)
{
    const labelled pages[] = {{"open", kv->pages_open}, {"read", kv->pages_read}};
    write_family(p, "kv_decode_pages_total", "counter",
                 "Pages behind the window that decode queries could read, and did");
    write_labelled(p, "kv_decode_pages_total", "state", pages, sizeof pages / sizeof *pages);
    write_counter(p, "kv_decode_heads_total", kv->certificates, "Heads of decode queries");
    write_family(p, "kv_unread_mass_bound_total", "counter",
                 "Bounds of the share of attention unread, summed over heads of decode queries");
    write_sample(p, "kv_unread_mass_bound_total", NULL, kv->certificate_sum);
    write_gauge(p, "kv_unread_mass_bound_max", kv->certificate_max,
                "Largest of these bounds since start");
    write_family(p, "kv_step_unread_mass_bound", "gauge",
                 "These bounds in the last step with decode queries");
    write_sample(p, "kv_step_unread_mass_bound", "stat=\"mean\"", kv->step_certificate_mean);
    write_sample(p, "kv_step_unread_mass_bound", "stat=\"max\"", kv->step_certificate_max);
}

/* What has left the pool for host memory and the disk. */
static void write_kv_tiers(page *p, const kv_stats *kv)
{
    const labelled budgets[] = {{"host", kv->host_budget_bytes}, {"disk", kv->disk_budget_bytes}};
    write_family(p, "kv_tier_budget_bytes", "gauge",
                 "Budgets of the tiers below the pool; 0 when a failing disk is left alone");
    write_labelled(p, "kv_tier_budget_bytes", "tier", budgets, sizeof budgets / sizeof *budgets);
    const labelled bytes[] = {{"host", kv->host_bytes}, {"disk", kv->disk_bytes}};
    write_family(p, "kv_tier_bytes", "gauge", "Bytes in use, by tier");
    write_labelled(p, "kv_tier_bytes", "tier", bytes, sizeof bytes / sizeof *bytes);
    const labelled blocks[] = {{"host", kv->host_pages}, {"disk", kv->disk_pages}};
    write_family(p, "kv_tier_blocks", "gauge", "Pages that have left the pool, by tier");
    write_labelled(p, "kv_tier_blocks", "tier", blocks, sizeof blocks / sizeof *blocks);
    write_counter(p, "kv_demoted_blocks_total", kv->pages_demoted, "Pages that left the pool");
    write_counter(p, "kv_promoted_blocks_total", kv->pages_promoted, "Pages that came back");
    write_counter(p, "kv_disk_read_bytes_total", kv->disk_read_bytes,
                  "Bytes of pages read from the disk");
    const labelled failures[] = {{"read", kv->disk_read_failures},
                                 {"write", kv->disk_write_failures}};
    write_family(p, "kv_disk_failures_total", "counter", "Pages that the disk failed");
    write_labelled(p, "kv_disk_failures_total", "op", failures, sizeof failures / sizeof *failures);
    write_counter(p, "kv_lost_sequences_total", kv->seqs_lost,
                  "Sequences computed again because the disk failed");
}

/* The busiest expert's tokens over the mean, of each layer on its own: a mean over layers first would
 * hide that different experts are busy in different layers. Layers without traffic have no value. */
static void write_experts(page *p)
{
    const metrics *m = p->m;
    char labels[64];
    if (m->n_experts == 0) return;
    write_family(p, "moe_expert_tokens_total", "counter", "Tokens routed to an expert");
    for (uint32_t l = 0; l < m->n_layers; l++) {
        for (uint32_t e = 0; e < m->n_experts; e++) {
            snprintf(labels, sizeof labels, "layer=\"%u\",expert=\"%u\"", l, e);
            write_count(p, "moe_expert_tokens_total", labels,
                        load(&m->experts[(size_t)l * m->n_experts + e]));
        }
    }
    write_family(p, "moe_layer_load_imbalance_ratio", "gauge",
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
        write_sample(p, "moe_layer_load_imbalance_ratio", labels,
                     (double)most * m->n_experts / (double)total);
    }
}

/* ---- ranks ---------------------------------------------------------------------------------------- */

/* A number of each rank, at an offset of its report. */
typedef struct rank_family {
    const char *name, *type, *help;
    size_t offset;
} rank_family;

static void write_rank_family(page *p, const metrics_gauges *g, const rank_family *family)
{
    char labels[32];
    write_family(p, family->name, family->type, family->help);
    for (uint32_t r = 0; r < g->n_ranks; r++) {
        uint64_t value;
        memcpy(&value, (const char *)&g->ranks[r] + family->offset, sizeof value);
        snprintf(labels, sizeof labels, "rank=\"%u\"", r);
        write_count(p, family->name, labels, value);
    }
}

static void write_comm(page *p, const metrics_gauges *g)
{
    static const struct {
        const char *name, *help;
    } families[] = {{"comm_calls_total", "Collectives that a rank took part in"},
                    {"comm_bytes_total", "Bytes that a rank received from others in collectives"},
                    {"comm_seconds_total", "Time in collectives, waits for slower ranks included"}};
    char labels[64];
    for (int f = 0; f < 3; f++) {
        write_family(p, families[f].name, "counter", families[f].help);
        for (uint32_t i = 0; i < g->n_ranks * COMM_KIND_COUNT; i++) {
            const comm_stats *stats = &g->ranks[i / COMM_KIND_COUNT].comm[i % COMM_KIND_COUNT];
            snprintf(labels, sizeof labels, "rank=\"%u\",collective=\"%s\"", i / COMM_KIND_COUNT,
                     comm_kind_name((comm_kind)(i % COMM_KIND_COUNT)));
            if (f == 2) {
                write_sample(p, families[f].name, labels, stats->seconds);
            } else {
                write_count(p, families[f].name, labels, f == 0 ? stats->n_calls : stats->bytes);
            }
        }
    }
}

/* The fullest rank over the mean. */
static void write_rank_imbalance(page *p, const metrics_gauges *g)
{
    uint64_t most = 0, total = 0;
    for (uint32_t r = 0; r < g->n_ranks; r++) {
        most = g->ranks[r].kv_used_bytes > most ? g->ranks[r].kv_used_bytes : most;
        total += g->ranks[r].kv_used_bytes;
    }
    write_family(p, "rank_kv_imbalance_ratio", "gauge",
                 "KV bytes in use on the fullest rank over the mean");
    if (total > 0)
        write_sample(p, "rank_kv_imbalance_ratio", NULL, (double)most * g->n_ranks / (double)total);
}

static void write_rank_experts(page *p, const metrics_gauges *g)
{
    static const rank_family choices = {"rank_expert_choices_total", "counter",
                                        "Choices of an expert by a token that a rank computed",
                                        offsetof(rank_report, expert_choices)};
    if (g->n_ranks < 2) return;
    write_rank_family(p, g, &choices);
    write_gauge(p, "rank_expert_imbalance_ratio", g->ranks[0].expert_imbalance,
                "Choices that the busiest rank of a layer computed over the mean, latest window");
    write_counter(p, "expert_rebalances_total", g->ranks[0].expert_rebalances,
                  "Windows after which experts moved between ranks");
    write_counter(p, "expert_moves_total", g->ranks[0].expert_moves, "Experts that came to a rank");
}

static void write_ranks(page *p, const metrics_gauges *g)
{
#define AT(member) offsetof(rank_report, member)
    static const rank_family families[] = {
        {"rank_kv_budget_bytes", "gauge", "Budget of a rank's KV pool", AT(kv_budget_bytes)},
        {"rank_kv_used_bytes", "gauge", "KV pages of running sequences", AT(kv_used_bytes)},
        {"rank_kv_slab_bytes", "gauge", "KV slabs in use, cached pages included",
         AT(kv_slab_bytes)},
        {"rank_kv_ring_bytes", "gauge", "Recent tokens, which every rank keeps", AT(kv_ring_bytes)},
        {"rank_kv_slots", "gauge", "Entries in a rank's KV pages", AT(kv_slots)},
        {"rank_weight_bytes", "gauge", "Weights that a rank reads", AT(weight_bytes)},
    };
#undef AT
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        write_rank_family(p, g, &families[i]);
    write_rank_imbalance(p, g);
    write_rank_experts(p, g);
    write_comm(p, g);
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
    write_family(p, "build_info", "gauge", "Version and device; always 1");
    write_count(p, "build_info", labels, 1);
    snprintf(labels, sizeof labels,
             "cache_dtype=\"%s\",block_size=\"%u\",num_blocks=\"%" PRIu64 "\",max_model_len=\"%u\"",
             or_empty(g->kv_type), g->page_tokens, g->kv.pages_total, g->context_max);
    write_family(p, "cache_config_info", "gauge", "Settings of the KV cache; always 1");
    write_count(p, "cache_config_info", labels, 1);
}

/* ---- process_*, as every Prometheus client exports them ------------------------------------------- */

static void write_process_value(page *p, const char *name, const char *type, double value,
                                const char *help)
{
    char text[CFG_F64_TEXT_BYTES];
    write_head(p, name, type, help);
    fprintf(p->out, "%s %s\n", name, cfg_format_f64(value, text));
}

/* Seconds since the epoch at which the process began, from its age: clock ticks since boot in
 * /proc/self/stat, field 22. 0 if it cannot be read. */
static double process_start_seconds(void)
{
    char text[1024];
    FILE *file = fopen("/proc/self/stat", "r");
    if (file == NULL) return 0;
    const size_t n_bytes = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[n_bytes] = '\0';
    const char *at = strrchr(text, ')'); /* the name may hold spaces; field 3 follows it */
    for (int field = 2; at != NULL && field < 22; field++)
        at = strchr(at + 1, ' ');
    struct timespec now, since_boot;
    if (at == NULL || clock_gettime(CLOCK_REALTIME, &now) != 0) return 0;
    if (clock_gettime(CLOCK_BOOTTIME, &since_boot) != 0) return 0;
    const double started = strtod(at, NULL) / (double)sysconf(_SC_CLK_TCK);
    return (double)now.tv_sec - ((double)since_boot.tv_sec - started);
}

static double open_descriptors(void)
{
    DIR *dir = opendir("/proc/self/fd");
    if (dir == NULL) return 0;
    double n = -3; /* `.`, `..` and the directory's own descriptor */
    while (readdir(dir) != NULL)
        n++;
    closedir(dir);
    return n;
}

static void write_process(page *p)
{
    struct rusage usage;
    struct rlimit limit = {0};
    double virtual_pages = 0, resident_pages = 0;
    getrusage(RUSAGE_SELF, &usage);
    getrlimit(RLIMIT_NOFILE, &limit);
    FILE *file = fopen("/proc/self/statm", "r");
    if (file != NULL) {
        if (fscanf(file, "%lf %lf", &virtual_pages, &resident_pages) != 2) resident_pages = 0;
        fclose(file);
    }
    const double page_bytes = (double)sysconf(_SC_PAGESIZE);
    const double cpu_seconds = (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
                               (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
    write_process_value(p, "process_cpu_seconds_total", "counter", cpu_seconds,
                        "Processor time of user and system");
    write_process_value(p, "process_resident_memory_bytes", "gauge", resident_pages * page_bytes,
                        "Resident memory, mapped weights included");
    write_process_value(p, "process_virtual_memory_bytes", "gauge", virtual_pages * page_bytes,
                        "Virtual memory");
    write_process_value(p, "process_start_time_seconds", "gauge", process_start_seconds(),
                        "Start of the process, since the epoch");
    write_process_value(p, "process_open_fds", "gauge", open_descriptors(), "Open descriptors");
    write_process_value(p, "process_max_fds", "gauge", (double)limit.rlim_cur,
                        "Limit of open descriptors");
}

err_t metrics_write(const metrics *m, const metrics_gauges *gauges, char **text, size_t *n_bytes)
{
    *text = NULL;
    page p = {.out = open_memstream(text, n_bytes), .m = m};
    if (p.out == NULL) return ERR_NO_MEMORY;
    write_requests(&p);
    write_methods(&p);
    write_counters(&p);
    write_load(&p, gauges);
    write_kv_gauges(&p, &gauges->kv);
    write_kv_counters(&p, &gauges->kv);
    write_kv_scheduling(&p, &gauges->kv);
    write_kv_routing(&p, &gauges->kv);
    write_kv_shards(&p, &gauges->kv);
    write_kv_tiers(&p, &gauges->kv);
    write_histograms(&p);
    write_experts(&p);
    write_ranks(&p, gauges);
    write_info(&p, gauges);
    write_process(&p);
    const int is_broken = ferror(p.out);
    if (fclose(p.out) == 0 && !is_broken) return ERR_OK;
    free(*text);
    *text = NULL;
    return ERR_NO_MEMORY;
}
