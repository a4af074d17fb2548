/* kvcache/kv_config.c - the table of the cache's settings.
 *
 * Names of methods are plain text here and are looked up in their registries by kv_cache_open, so
 * that an unknown one is answered with the names that exist. */
#include "kvcache/kv_config.h"

#include "kvcache/compression/codec.h"
#include "kvcache/rewriting/rewriting.h"
#include "kvcache/scoring/allocator.h"
#include "kvcache/scoring/scorer.h"

static const char *const dtype_names[] = {"auto", "f32", "bf16", NULL};

#define NAME(name) " " #name

static const cfg_field fields[] = {
    CFG_PICK(kv_config, dtype, "kv-cache-dtype", dtype_names, "auto",
             "type of cached keys and values: auto (the model's), f32 or bf16"),
    CFG_NUM64(kv_config, memory_bytes, "kv-cache-memory-bytes", 0, 1e18, "0",
              "bytes for pages of keys and values; 0: as needed, at most a quarter of free memory"),
    CFG_NUM64(kv_config, host_bytes, "kv-host-bytes", 0, 1e18, "0",
              "bytes of host memory for pages that leave the pool; 0: none"),
    CFG_TEXT(kv_config, disk_path, "kv-disk-path", NULL, "DIR",
             "folder of a file for pages that leave host memory; needs kv-disk-bytes"),
    CFG_NUM64(kv_config, disk_bytes, "kv-disk-bytes", 0, 1e18, "0",
              "bytes of that file at most; 0: none"),
    CFG_NUM32(kv_config, page_tokens, "kv-page-tokens", 4, KV_PAGE_TOKENS_MAX, "32",
              "positions of a page"),
    CFG_NUM32(kv_config, window_tokens, "kv-window", 0, 65536, "128",
              "newest tokens that stay in the ring"),
    CFG_NUM32(kv_config, sink_tokens, "kv-sink", 0, KV_PAGE_TOKENS_MAX, "4",
              "first tokens that always stay; at most kv-page-tokens"),
    CFG_FLAG(kv_config, prefix_caching, "enable-prefix-caching", "true",
             "share the keys and values of common prefixes"),
    CFG_NUM32(kv_config, n_shards, "kv-shards", 1, KV_SHARDS_MAX, "1", "shards of the cache"),
    CFG_FLAG(kv_config, eplb, "kv-eplb", "true",
             "placement by expert packs experts onto shards by measured load"),
    CFG_FLAG(kv_config, request_methods, "kv-request-methods", "false",
             "requests may choose methods of their own; keeps what any of them needs"),
    CFG_TEXT(kv_config, routing, "kv-routing", "full", "NAME", "which pages a query reads"),
    CFG_REAL(kv_config, routing_k, "kv-routing-k", 0, 4294967295.0, "0.25",
             "topk, hierarchical: share of the pages that a query reads, or above 1 their number; "
             "topk_balanced, pikv: of the shards"),
    CFG_REAL(kv_config, routing_eps, "kv-routing-eps", 0, 1, "0.01",
             "certified: attention mass that a query may miss at most"),
    CFG_REAL(kv_config, routing_tau, "kv-routing-tau", 0, 1, "0.95",
             "adaptive: estimated attention mass that a query reads"),
    CFG_TEXT(
        kv_config, scheduling, "kv-scheduling", "none", "NAME",
        "which entries stay: none, quest, flexgen, adakv, duo_attention, pyramidkv, simlayerkv, or "
        "SCORER[+ALLOCATOR]..., "
        "scorers being" KV_SCORER_LIST(NAME) " and allocators" KV_ALLOCATOR_LIST(NAME)),
    CFG_REAL(kv_config, budget, "kv-budget", 0, 4294967295.0, "1",
             "share of its entries that a sequence keeps, or above 1 their number"),
    CFG_REAL(kv_config, lazy_threshold, "kv-lazy-threshold", 0, 1, "0.9",
             "simlayer: share of attention on sinks and ring above which a layer keeps no more"),
    CFG_TEXT(kv_config, placement, "kv-placement", "block", "NAME",
             "which shard owns an entry: block, expert or hash"),
    CFG_TEXT(kv_config, compression, "kv-compression", "none", "[SELECTION,]CODEC",
             "how pages are encoded:" KV_CODEC_LIST(
                 NAME) "; before it a SELECTION, what stays of a "
                       "prompt by kv-budget: a name of kv-scheduling but none, quest and "
                       "flexgen"),
    CFG_TEXT(kv_config, rewrite, "kv-rewrite", "none", "NAME[,NAME]",
             "how what stays is rewritten when entries go: none, or of" KV_REWRITING_LIST(
                 NAME) ", with commas between them"),
};

const cfg_table kv_config_table = {
    .title = "KV cache",
    .fields = fields,
    .n_fields = sizeof fields / sizeof fields[0],
};
