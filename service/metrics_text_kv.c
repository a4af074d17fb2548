/* service/metrics_text_kv.c - the families of the KV cache: see metrics_page.h. */
#include "service/metrics_page.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

static void write_kv_gauges(page *p, const kv_stats *kv)
{
    const page_value blocks[] = {
        {"used", kv->pages_used}, {"cached", kv->pages_cached}, {"free", kv->pages_free}};
    page_family(p, "kv_blocks", "gauge", "Pages of the KV pool, by state");
    page_labelled(p, "kv_blocks", "state", blocks, sizeof blocks / sizeof *blocks);
    const page_value parts[] = {{"slabs", kv->slab_bytes},      {"tables", kv->table_bytes},
                                {"ring", kv->ring_bytes},       {"scores", kv->observed_bytes},
                                {"staging", kv->staging_bytes}, {"device", kv->view_bytes}};
    page_family(p, "kv_cache_bytes", "gauge", "Bytes that the KV cache holds, by part");
    page_labelled(p, "kv_cache_bytes", "part", parts, sizeof parts / sizeof *parts);
    page_gauge(p, "kv_pool_budget_bytes", (double)kv->pool_budget_bytes, "Budget of the page pool");
    page_gauge(p, "kv_used_bytes", (double)kv->used_bytes,
               "Shares of slabs that the pages of open sequences take");
    page_gauge(p, "kv_slots_live", (double)kv->slots_live, "Entries that lie in pages");
    page_gauge(p, "kv_sequences_open", kv->seqs_open, "Sequences open in the KV cache");
    page_gauge(p, "prefix_cache_objects", kv->prefix_objects, "Cached prefixes");
}

static void write_kv_counters(page *p, const kv_stats *kv)
{
    page_counter(p, "prefix_cache_query_tokens_total", kv->prefix_query_tokens,
                 "Prompt tokens looked up in the prefix cache");
    page_counter(p, "prefix_cache_hit_tokens_total", kv->prefix_hit_tokens,
                 "Prompt tokens taken from the prefix cache");
    page_counter(p, "kv_tokens_appended_total", kv->tokens_appended,
                 "Tokens appended to the cache");
    page_counter(p, "kv_committed_blocks_total", kv->pages_committed, "Pages filled from rings");
    page_counter(p, "kv_encoded_blocks_total", kv->pages_encoded, "Pages encoded by a lossy codec");
    page_counter(p, "kv_encoded_raw_bytes_total", kv->encoded_raw_bytes,
                 "Bytes of the encoded pages before");
    page_counter(p, "kv_encoded_bytes_total", kv->encoded_bytes,
                 "Bytes of the encoded pages as they are");
    page_counter(p, "kv_evicted_blocks_total", kv->pages_given_up,
                 "Pages of cached prefixes given up under pressure");
    page_counter(p, "kv_read_bytes_total", kv->bytes_read,
                 "Bytes of keys, values and key boxes read");
    page_counter(p, "kv_read_blocks_total", kv->blocks_read, "Blocks of positions read");
}

/* One family with a sample per shard; the value is `offset` bytes into its statistics. */
static void write_shards(page *p, const kv_stats *kv, const char *name, const char *help,
                         size_t offset)
{
    char labels[32];
    const size_t n = strlen(name), total = strlen("_total");
    const bool is_counter = n > total && strcmp(name + n - total, "_total") == 0;
    page_family(p, name, is_counter ? "counter" : "gauge", help);
    for (uint32_t s = 0; s < kv->n_shards; s++) {
        uint64_t value;
        memcpy(&value, (const char *)&kv->shards[s] + offset, sizeof value);
        snprintf(labels, sizeof labels, "shard=\"%u\"", s);
        page_count(p, name, labels, value);
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
    page_counter(p, "kv_expert_packings_total", kv->experts_packed,
                 "Layers whose experts were packed onto shards anew");
}

/* What scheduling takes away from running sequences. */
static void write_kv_scheduling(page *p, const kv_stats *kv)
{
    page_counter(p, "kv_entries_evicted_total", kv->entries_evicted,
                 "Entries that scheduling took from sequences");
    page_counter(p, "kv_entries_rewritten_total", kv->entries_rewritten,
                 "Keys and values of kept entries that were rewritten then");
    page_counter(p, "kv_pages_evicted_total", kv->pages_evicted,
                 "Pages that sequences gave back for it");
    page_counter(p, "kv_pages_compacted_total", kv->pages_compacted,
                 "Pages written anew from what was left of others");
    page_family(p, "kv_score_seconds_total", "counter", "Time spent choosing what stays");
    page_sample(p, "kv_score_seconds_total", NULL, kv->score_seconds);
}

/* What routing leaves out of decode steps, and the bound of the attention mass that is missed by it. */
static void write_kv_routing(page *p, const kv_stats *kv)
{
    const page_value pages[] = {{"open", kv->pages_open}, {"read", kv->pages_read}};
    page_family(p, "kv_decode_pages_total", "counter",
                "Pages behind the window that decode queries could read, and did");
    page_labelled(p, "kv_decode_pages_total", "state", pages, sizeof pages / sizeof *pages);
    page_counter(p, "kv_decode_heads_total", kv->certificates, "Heads of decode queries");
    page_family(p, "kv_unread_mass_bound_total", "counter",
                "Bounds of the share of attention unread, summed over heads of decode queries");
    page_sample(p, "kv_unread_mass_bound_total", NULL, kv->certificate_sum);
    page_gauge(p, "kv_unread_mass_bound_max", kv->certificate_max,
               "Largest of these bounds since start");
    page_family(p, "kv_step_unread_mass_bound", "gauge",
                "These bounds in the last step with decode queries");
    page_sample(p, "kv_step_unread_mass_bound", "stat=\"mean\"", kv->step_certificate_mean);
    page_sample(p, "kv_step_unread_mass_bound", "stat=\"max\"", kv->step_certificate_max);
}

/* What has left the pool for host memory and the disk. */
static void write_kv_tiers(page *p, const kv_stats *kv)
{
    const page_value budgets[] = {{"host", kv->host_budget_bytes}, {"disk", kv->disk_budget_bytes}};
    page_family(p, "kv_tier_budget_bytes", "gauge",
                "Budgets of the tiers below the pool; 0 when a failing disk is left alone");
    page_labelled(p, "kv_tier_budget_bytes", "tier", budgets, sizeof budgets / sizeof *budgets);
    const page_value bytes[] = {{"host", kv->host_bytes}, {"disk", kv->disk_bytes}};
    page_family(p, "kv_tier_bytes", "gauge", "Bytes in use, by tier");
    page_labelled(p, "kv_tier_bytes", "tier", bytes, sizeof bytes / sizeof *bytes);
    const page_value blocks[] = {{"host", kv->host_pages}, {"disk", kv->disk_pages}};
    page_family(p, "kv_tier_blocks", "gauge", "Pages that have left the pool, by tier");
    page_labelled(p, "kv_tier_blocks", "tier", blocks, sizeof blocks / sizeof *blocks);
    page_counter(p, "kv_demoted_blocks_total", kv->pages_demoted, "Pages that left the pool");
    page_counter(p, "kv_promoted_blocks_total", kv->pages_promoted, "Pages that came back");
    page_counter(p, "kv_disk_read_bytes_total", kv->disk_read_bytes,
                 "Bytes of pages read from the disk");
    const page_value failures[] = {{"read", kv->disk_read_failures},
                                   {"write", kv->disk_write_failures}};
    page_family(p, "kv_disk_failures_total", "counter", "Pages that the disk failed");
    page_labelled(p, "kv_disk_failures_total", "op", failures, sizeof failures / sizeof *failures);
    page_counter(p, "kv_lost_sequences_total", kv->seqs_lost,
                 "Sequences computed again because the disk failed");
}

void metrics_text_kv(page *p, const metrics_gauges *g)
{
    const kv_stats *kv = &g->kv;
    page_gauge(p, "kv_capacity_tokens", (double)g->capacity_tokens,
               "Tokens that pool and tiers could hold under the methods of the server");
    write_kv_gauges(p, kv);
    write_kv_counters(p, kv);
    write_kv_scheduling(p, kv);
    write_kv_routing(p, kv);
    write_kv_shards(p, kv);
    write_kv_tiers(p, kv);
}
