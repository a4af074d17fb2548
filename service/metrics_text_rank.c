/* service/metrics_text_rank.c - the families of ranks: see metrics_page.h. */
#include "service/metrics_page.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

/* A number of each rank, at an offset of its report. */
typedef struct rank_family {
    const char *name, *type, *help;
    size_t offset;
} rank_family;

static void write_rank_family(page *p, const metrics_gauges *g, const rank_family *family)
{
    char labels[32];
    page_family(p, family->name, family->type, family->help);
    for (uint32_t r = 0; r < g->n_ranks; r++) {
        uint64_t value;
        memcpy(&value, (const char *)&g->ranks[r] + family->offset, sizeof value);
        snprintf(labels, sizeof labels, "rank=\"%u\"", r);
        page_count(p, family->name, labels, value);
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
        page_family(p, families[f].name, "counter", families[f].help);
        for (uint32_t i = 0; i < g->n_ranks * COMM_KIND_COUNT; i++) {
            const comm_stats *stats = &g->ranks[i / COMM_KIND_COUNT].comm[i % COMM_KIND_COUNT];
            snprintf(labels, sizeof labels, "rank=\"%u\",collective=\"%s\"", i / COMM_KIND_COUNT,
                     comm_kind_name((comm_kind)(i % COMM_KIND_COUNT)));
            if (f == 2) {
                page_sample(p, families[f].name, labels, stats->seconds);
            } else {
                page_count(p, families[f].name, labels, f == 0 ? stats->n_calls : stats->bytes);
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
    page_family(p, "rank_kv_imbalance_ratio", "gauge",
                "KV bytes in use on the fullest rank over the mean");
    if (total > 0)
        page_sample(p, "rank_kv_imbalance_ratio", NULL, (double)most * g->n_ranks / (double)total);
}

static void write_rank_experts(page *p, const metrics_gauges *g)
{
    static const rank_family choices = {"rank_expert_choices_total", "counter",
                                        "Choices of an expert by a token that a rank computed",
                                        offsetof(rank_report, expert_choices)};
    if (g->n_ranks < 2) return;
    write_rank_family(p, g, &choices);
    page_gauge(p, "rank_expert_imbalance_ratio", g->ranks[0].expert_imbalance,
               "Choices that the busiest rank of a layer computed over the mean, latest window");
    page_counter(p, "expert_rebalances_total", g->ranks[0].expert_rebalances,
                 "Windows after which experts moved between ranks");
    page_counter(p, "expert_moves_total", g->ranks[0].expert_moves, "Experts that came to a rank");
}

void metrics_text_ranks(page *p, const metrics_gauges *g)
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
