/* service/plan_report.c - see plan_report.h: the lines, and how they are printed. */
#include "service/plan_report.h"

#include "base/check.h"

#include <inttypes.h>
#include <stdarg.h>
#include <string.h>

static const struct {
    const char *key, *title;
} groups[] = {
    {"settings", "Settings"},
    {"memory", "Memory of the fullest rank"},
    {"device", "Memory of a rank's GPU"},
    {"step", "A decode step, experts drawn at random"},
    {"collectives", "Collectives, received by a rank"},
    {"speed", "Speed"},
};
enum { N_GROUPS = sizeof groups / sizeof groups[0] };

const char *plan_group_title(const char *group)
{
    size_t g = 0;
    while (strcmp(groups[g].key, group) != 0) {
        g++;
        assert(g < N_GROUPS);
    }
    return groups[g].title;
}

/* ---- filling ------------------------------------------------------------------------------------- */

static void add_line(plan_report *r, const plan_line *line)
{
    assert(r->n_lines < PLAN_LINES_MAX);
    r->lines[r->n_lines++] = *line;
}

#define ADD_WHOLE(report, in_group, in_key, in_unit, value, in_title) \
    add_line((report), &(plan_line){.group = (in_group),              \
                                    .key = (in_key),                  \
                                    .title = (in_title),              \
                                    .unit = (in_unit),                \
                                    .n = (value)})
#define ADD_REAL(report, in_group, in_key, in_unit, value, in_title) \
    add_line((report), &(plan_line){.group = (in_group),             \
                                    .key = (in_key),                 \
                                    .title = (in_title),             \
                                    .unit = (in_unit),               \
                                    .x = (value)})

__attribute__((format(printf, 2, 3))) static void add_note(plan_report *r, const char *format, ...)
{
    assert(r->n_notes < PLAN_NOTES_MAX);
    va_list args;
    va_start(args, format);
    const int n = vsnprintf(r->notes[r->n_notes++], PLAN_NOTE_BYTES, format, args);
    va_end(args);
    assert(n > 0 && n < PLAN_NOTE_BYTES);
}

static void add_settings(const plan_report_source *from, plan_report *r)
{
    const plan_input *in = from->in;
    const char *group = "settings";
    ADD_WHOLE(r, group, "context_tokens", PLAN_COUNT, in->n_tokens,
              "context, tokens of a sequence");
    ADD_WHOLE(r, group, "batch", PLAN_COUNT, in->n_seqs, "sequences decoded together");
    ADD_WHOLE(r, group, "ranks", PLAN_COUNT, in->n_ranks, "ranks");
    ADD_WHOLE(r, group, "kv_shards", PLAN_COUNT, in->cache.n_shards, "shards of the cache");
    ADD_WHOLE(r, group, "redundant_experts", PLAN_COUNT, in->n_redundant,
              "replicas of experts, per layer");
    ADD_REAL(r, group, "bandwidth_bytes_per_second", PLAN_NUMBER, in->bandwidth,
             "memory bandwidth of a rank, bytes/s");
    ADD_REAL(r, group, "link_bandwidth_bytes_per_second", PLAN_NUMBER, in->link_bandwidth,
             "link bandwidth of a rank, bytes/s");
    ADD_REAL(r, group, "link_latency_seconds", PLAN_SECONDS, in->link_latency,
             "latency of a collective");
}

static void add_memory(const plan_report_source *from, plan_report *r)
{
    const plan_memory *m = &from->result->memory;
    const plan_cache *c = &from->in->cache;
    const char *group = "memory";
    ADD_WHOLE(r, group, "weights_replicated_bytes", PLAN_BYTES, m->replicated_bytes,
              "weights on every rank");
    ADD_WHOLE(r, group, "weights_experts_bytes", PLAN_BYTES, m->expert_bytes, "weights of experts");
    ADD_WHOLE(r, group, "weights_experts_bytes_least", PLAN_BYTES, m->expert_bytes_least,
              "  on the emptiest rank");
    ADD_WHOLE(r, group, "experts_per_layer", PLAN_COUNT, m->experts_most, "experts of a layer");
    ADD_WHOLE(r, group, "experts_per_layer_least", PLAN_COUNT, m->experts_least,
              "  on the emptiest rank");
    ADD_WHOLE(r, group, "kv_pages", PLAN_COUNT, c->n_pages, "pages of keys and values");
    ADD_WHOLE(r, group, "kv_page_bytes", PLAN_BYTES, c->page_bytes, "  in whole slabs");
    ADD_WHOLE(r, group, "kv_section_bytes", PLAN_BYTES, c->section_bytes,
              "raw section of a prompt");
    ADD_WHOLE(r, group, "kv_ring_bytes", PLAN_BYTES, c->ring_bytes, "rings");
    ADD_WHOLE(r, group, "kv_table_bytes", PLAN_BYTES, c->table_bytes, "page tables");
    ADD_WHOLE(r, group, "kv_descriptor_bytes", PLAN_BYTES, c->descriptor_bytes, "page descriptors");
    ADD_WHOLE(r, group, "kv_staging_bytes", PLAN_BYTES, c->staging_bytes, "staging");
    ADD_WHOLE(r, group, "kv_bytes", PLAN_BYTES, m->kv_bytes, "keys and values, all parts");
    ADD_WHOLE(r, group, "total_bytes", PLAN_BYTES, m->total_bytes, "total");
    if (c->away_bytes > 0)
        ADD_WHOLE(r, group, "kv_away_bytes", PLAN_BYTES, c->away_bytes,
                  "in lower tiers, not in the total");
}

static void add_device(const plan_report_source *from, plan_report *r)
{
    const plan_device *d = &from->in->device;
    const char *group = "device";
    if (!d->is_there) return;
    ADD_WHOLE(r, group, "weight_bytes", PLAN_BYTES, d->weight_bytes, "weights");
    ADD_WHOLE(r, group, "scratch_bytes", PLAN_BYTES, d->scratch_bytes, "scratch of a step");
    ADD_WHOLE(r, group, "kv_pool_bytes", PLAN_BYTES, d->kv.pool_bytes, "copy of the pages");
    ADD_WHOLE(r, group, "kv_ring_bytes", PLAN_BYTES, d->kv.ring_bytes, "rings");
    ADD_WHOLE(r, group, "kv_staging_bytes", PLAN_BYTES, d->kv.staging_bytes, "staging");
    ADD_WHOLE(r, group, "kv_list_bytes", PLAN_BYTES, d->kv.list_bytes, "lists of pages");
    ADD_WHOLE(r, group, "kv_box_bytes", PLAN_BYTES, d->kv.box_bytes, "boxes of pages");
    ADD_WHOLE(r, group, "kv_work_bytes", PLAN_BYTES, d->kv.work_bytes,
              "working memory of attention");
    ADD_WHOLE(r, group, "total_bytes", PLAN_BYTES, d->total_bytes, "total");
    if (d->allowed_bytes > 0)
        ADD_WHOLE(r, group, "allowed_bytes", PLAN_BYTES, d->allowed_bytes,
                  "allowed by gpu-memory-utilization");
    ADD_WHOLE(r, group, "host_kv_bytes", PLAN_BYTES, from->result->memory.kv_bytes,
              "beside it on the host: keys and values");
    ADD_WHOLE(r, group, "host_scratch_bytes", PLAN_BYTES, d->host_mirror_bytes,
              "  and what mirrors the scratch");
}

static void add_device_notes(const plan_report_source *from, plan_report *r)
{
    const plan_device *d = &from->in->device;
    if (!d->is_there) return;
    if (d->refusal.code != ERR_OK) add_note(r, "It does not fit. %s", d->refusal.message);
    if (!d->kv.attends) {
        add_note(r, "device: over ranks, with lower tiers and where entries are placed one by one "
                    "attention and its cache stay on the host.");
    } else if (d->kv.hosts_attend) {
        add_note(r, "device: under these methods attention is the host's, layer by layer.");
    }
}

static void add_step(const plan_report_source *from, plan_report *r)
{
    const plan_step *s = &from->result->step;
    const plan_input *in = from->in;
    const double n_seqs = in->n_seqs;
    const char *group = "step";
    ADD_REAL(r, group, "experts_read", PLAN_NUMBER, s->experts_read,
             "experts read of a layer, all ranks");
    ADD_REAL(r, group, "experts_read_most", PLAN_NUMBER, s->experts_read_most,
             "  on the rank that reads most");
    ADD_REAL(r, group, "weight_bytes", PLAN_NUMBER, s->weight_bytes,
             "weight bytes of a rank, read equally");
    ADD_REAL(r, group, "weight_bytes_most", PLAN_NUMBER, s->weight_bytes_most,
             "  of the rank that reads most");
    ADD_REAL(r, group, "weight_bytes_per_token", PLAN_NUMBER, s->weight_bytes / n_seqs,
             "  per token, read equally");
    ADD_REAL(r, group, "kv_bytes", PLAN_NUMBER, s->kv_bytes, "KV bytes of a rank, read equally");
    ADD_REAL(r, group, "kv_bytes_most", PLAN_NUMBER, s->kv_bytes_most,
             "  of the rank that reads most");
    ADD_WHOLE(r, group, "kv_bytes_per_token", PLAN_BYTES,
              in->cache.read_page_bytes + in->cache.read_recent_bytes, "  per token, all ranks");
    ADD_REAL(r, group, "kv_share_read", PLAN_NUMBER, in->cache.share_read,
             "share of the pages read");
}

static void add_collectives(const plan_report_source *from, plan_report *r)
{
    const plan_step *s = &from->result->step;
    const uint64_t n_layers = from->in->n_layers;
    const char *group = "collectives";
    ADD_WHOLE(r, group, "all_gather_per_step", PLAN_COUNT, s->gather.n_per_step,
              "all_gather of attention, calls per step");
    ADD_WHOLE(r, group, "all_gather_bytes_per_token_and_layer", PLAN_BYTES,
              s->gather.bytes_per_token, "  per token and layer");
    ADD_WHOLE(r, group, "all_reduce_per_step", PLAN_COUNT, s->reduce.n_per_step,
              "all_reduce of experts, calls per step");
    ADD_WHOLE(r, group, "all_reduce_bytes_per_token_and_layer", PLAN_BYTES,
              s->reduce.bytes_per_token, "  per token and layer");
    ADD_WHOLE(r, group, "bytes_per_token", PLAN_BYTES,
              n_layers * (s->gather.bytes_per_token + s->reduce.bytes_per_token),
              "both, per token");
    ADD_REAL(r, group, "seconds_per_step", PLAN_SECONDS,
             s->gather.seconds_per_step + s->reduce.seconds_per_step, "both, time of a step");
}

static void add_speed(const plan_report_source *from, plan_report *r)
{
    const plan_step *s = &from->result->step;
    const char *group = "speed";
    ADD_REAL(r, group, "bound_tokens_per_second", PLAN_NUMBER, s->bound_tokens_per_second,
             "roofline bound, tokens/s");
    ADD_REAL(r, group, "predicted_tokens_per_second", PLAN_NUMBER, s->predicted_tokens_per_second,
             "prediction with collectives, tokens/s");
    ADD_REAL(r, group, "one_rank_bound_tokens_per_second", PLAN_NUMBER,
             s->one_rank_tokens_per_second, "bound of one rank with everything");
}

static void add_contrasts(const plan_report_source *from, plan_report *r)
{
    const plan_input *in = from->in;
    const plan_cache *c = &in->cache;
    const double element = dtype_bytes(c->type);
    const plan_paper_input input = {.n_tokens = in->n_tokens,
                                    .n_ranks = in->n_ranks,
                                    .n_experts = in->n_experts,
                                    .top_k = in->top_k,
                                    .pages_kept = PLAN_PAPER_PAGES,
                                    .page_tokens = in->page_tokens,
                                    .channels = (double)c->layer_token_bytes / (2 * element),
                                    .compression = c->compression,
                                    .token_bytes = (double)c->layer_token_bytes / c->compression,
                                    .overhead_bytes =
                                        c->page_overhead_bytes * from->model->n_kv_heads};
    plan_paper p;
    plan_paper_of(&input, &p);
    const plan_contrast all[] = {
        {"kv_of_a_sequence", "keys and values of a sequence", "> 24 GB (7B, 16 experts, 128K)",
         "2 layers kv_heads head_dim bytes L", 24e9, (double)c->token_bytes * in->n_tokens, "bytes",
         "The paper names neither heads nor layers nor type, which decide; experts do not enter."},
        {"compared_with", "what a layer keeps without sharding", "E L", "L", p.paper_tokens_before,
         p.tokens_before, "tokens",
         "Experts are feed-forward parts: all of them share one attention and its cache."},
        {"tokens_of_a_rank", "what a rank keeps of a layer", "L / G + L / E", "L / G",
         p.paper_tokens, p.tokens, "tokens",
         "An entry has one owner; kept with each of its k experts it would be k L / G."},
        {"layer_bytes", "memory of a layer on a rank", "(2 d / rho) (L / (G S) + K S)",
         "b L / G + K S b + m L / (G S)", p.paper_elements * element, p.bytes, "bytes",
         "L / S is a number of pages, and the paper adds it as if it were tokens."},
        {"best_page", "page size of least memory", "sqrt(L / (K G))", "sqrt(m L / (G K b))",
         p.paper_page_tokens, p.page_tokens, "tokens",
         "A page costs the m bytes that are known of it: next to nothing, so choose its size by "
         "speed."},
        {"least_layer_bytes", "least memory of a layer on a rank", "(4 d / rho) sqrt(K L / G)",
         "b L / G + 2 sqrt(m L K b / G)", p.paper_elements_least * element, p.bytes_least, "bytes",
         "Every entry that stays takes its b bytes, whatever the size of pages."},
        {"share_read", "share of the cache that a query reads", "k / E", "what kv-routing reads",
         p.paper_share_read, c->share_read, "share",
         "Reading the shards of k of E experts leaves entries out: an approximation, to be "
         "measured."},
    };
    r->n_contrasts = sizeof all / sizeof all[0];
    static_assert(sizeof all / sizeof all[0] <= PLAN_CONTRASTS_MAX, "room for all");
    memcpy(r->contrasts, all, sizeof all);
}

static void add_notes(const plan_report_source *from, plan_report *r)
{
    const plan_input *in = from->in;
    const plan_cache *c = &in->cache;
    const uint64_t budget = from->kv->memory_bytes;
    add_note(r, "Activations, the program and, on a GPU, its libraries are not counted.");
    add_note(r, "Bound: each byte once, all ranks alike, collectives free. The prediction adds the "
                "fullest rank and "
                "collectives one after the other; it is computed, not measured.");
    if (in->n_tokens > from->model->n_positions)
        add_note(r, "context: %u is beyond the model's max_position_embeddings, %u: sizes only.",
                 in->n_tokens, from->model->n_positions);
    if (budget > 0 && budget < c->page_bytes)
        add_note(r,
                 "kv-cache-memory-bytes: %" PRIu64
                 " of a rank is less than its pages need, %" PRIu64 ".",
                 budget, c->page_bytes);
    if (in->n_redundant > 0)
        add_note(r, "Replicas are counted in memory; equal routing leaves them nothing to balance, "
                    "so the step is "
                    "the one without.");
    if (c->away_bytes > from->kv->host_bytes + from->kv->disk_bytes)
        add_note(r, "kv-host-bytes, kv-disk-bytes: the lower tiers are smaller than what flexgen "
                    "moves there.");
    if (c->is_thinned)
        add_note(
            r, "Entries are evicted: pages are those of the budget's mean over layers and heads.");
    if (c->keeps_more)
        add_note(r, "What scorer or codec keeps of queries beside the entries is not counted.");
    if (c->is_scattered)
        add_note(r, "Entries are placed one by one: shards are taken to get the same number, which "
                    "routers do not "
                    "promise.");
    if (c->reads_by_data)
        add_note(r,
                 "kv-routing: %s stops by what it finds; all pages are counted as read, the most "
                 "it can be.",
                 c->methods.routing->name);
}

void plan_report_fill(const plan_report_source *from, plan_report *out)
{
    *out = (plan_report){.model_dir = from->model_dir, .family = from->model->family};
    add_settings(from, out);
    add_memory(from, out);
    add_device(from, out);
    add_step(from, out);
    add_collectives(from, out);
    add_speed(from, out);
    add_contrasts(from, out);
    add_notes(from, out);
    add_device_notes(from, out);
}

/* ---- printing ------------------------------------------------------------------------------------ */

static void print_line(const plan_line *line, FILE *out)
{
    fprintf(out, "  %-40s ", line->title);
    switch (line->unit) {
    case PLAN_COUNT: fprintf(out, "%16" PRIu64 "\n", line->n); break;
    case PLAN_BYTES:
        fprintf(out, "%16" PRIu64 " bytes  %11.3f MiB\n", line->n, (double)line->n / 1048576);
        break;
    case PLAN_NUMBER: fprintf(out, line->x >= 1e6 ? "%16.6g\n" : "%16.3f\n", line->x); break;
    case PLAN_SECONDS: fprintf(out, "%16.3f us\n", line->x * 1e6); break;
    }
}

void plan_report_print(const plan_report *report, FILE *out)
{
    const char *group = "";
    fprintf(out, "plan of %s (%s)\n", report->model_dir, report->family);
    for (size_t i = 0; i < report->n_lines; i++) {
        const plan_line *line = &report->lines[i];
        if (strcmp(line->group, group) != 0) fprintf(out, "\n%s\n", plan_group_title(line->group));
        group = line->group;
        print_line(line, out);
    }
    fprintf(out, "\nThe PiKV paper's formulas, K = %d, and the corrected ones\n", PLAN_PAPER_PAGES);
    for (size_t i = 0; i < report->n_contrasts; i++) {
        const plan_contrast *c = &report->contrasts[i];
        fprintf(out, "  %s, %s\n", c->title, c->unit);
        fprintf(out, "    %-12s %-36s %16.6g\n", "paper", c->paper_formula, c->paper);
        fprintf(out, "    %-12s %-36s %16.6g\n", "corrected", c->formula, c->corrected);
        fprintf(out, "    %s\n", c->difference);
    }
    fputs("\nNotes\n", out);
    for (size_t i = 0; i < report->n_notes; i++)
        fprintf(out, "  %s\n", report->notes[i]);
}
