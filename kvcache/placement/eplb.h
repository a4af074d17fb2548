/* kvcache/placement/eplb.h - the expert-parallel load balancer: which expert lies where.
 *
 * The algorithm that DeepSeek published with DeepSeek-V3 (arXiv 2412.19437; github.com/deepseek-ai/EPLB):
 * experts with much load get replicas, and replicas are packed onto bins (GPUs, shards) of equal numbers
 * and about equal load. In its hierarchical form groups of experts are packed onto nodes first, and
 * replicas stay on their group's node. The result is balanced, not perfect: packing is greedy.
 *
 * Loads are any non-negative statistic, in float as in the original, so that ties fall alike. Of equal
 * loads the lower index comes first. Pure; allocates nothing. */
#ifndef KVCACHE_PLACEMENT_EPLB_H
#define KVCACHE_PLACEMENT_EPLB_H

#include <stdint.h>

enum { KV_EPLB_SLOTS_MAX = 4096 };

/* Packs n items into n_bins bins of ceil(n / n_bins) at most, or each item i into bin i if there are as
 * many bins or more: heaviest first, into the lightest bin with room, of equal ones the lowest.
 *   bin[n]    out: of each item
 *   rank[n]   out: how many came to its bin before it
 *   order[n]  work
 *   load[n_bins], count[n_bins]   work */
typedef struct kv_eplb_pack_args {
    const float *weight; /* [n] */
    uint32_t n, n_bins;
    uint32_t *bin, *rank, *order;
    float *load;
    uint32_t *count;
} kv_eplb_pack_args;
void kv_eplb_pack(const kv_eplb_pack_args *args);

/* All of it. n_bins divides n_slots, n_nodes divides n_bins, n_groups divides n_experts; if n_nodes does
 * not divide n_groups, all nodes are one and all groups are (asserted, with n_experts <= n_slots <=
 * KV_EPLB_SLOTS_MAX).
 *   slot_expert[n_slots]  out: the expert in each slot; bin b has slots [b, b + 1) * n_slots / n_bins
 *   n_replicas[n_experts] out: slots of each expert, >= 1 */
typedef struct kv_eplb_args {
    const float *load; /* [n_experts] */
    uint32_t n_experts, n_slots, n_groups, n_nodes, n_bins;
    uint32_t *slot_expert;
    uint32_t *n_replicas;
} kv_eplb_args;
void kv_eplb_place(const kv_eplb_args *args);

/* Ours: one node, any numbers. A bin has floor(n_slots / n_bins) slots or one more, and no expert twice,
 * since a replica beside another takes no load off anybody. Replicas are given out and packed as above,
 * none to an expert that all bins have, and into bins that do not have it; where only such are full, the
 * lightest of them passes its lightest fitting replica on. Then, as long as that makes the heavier of the two
 * lighter, the heaviest bin exchanges a replica for one of another bin or for nothing: with few replicas to a
 * bin greedy packing alone is far from even. Asserted: n_bins and n_slots <= KV_EPLB_SLOTS_MAX, n_experts
 * <= n_slots <= n_experts * n_bins.
 *   slot_expert[n_slots], slot_bin[n_slots]  out: replicas, each with its bin
 *   n_replicas[n_experts]                    out */
typedef struct kv_eplb_spread_args {
    const float *load; /* [n_experts] */
    uint32_t n_experts, n_slots, n_bins;
    uint32_t *slot_expert;
    uint32_t *slot_bin;
    uint32_t *n_replicas;
} kv_eplb_spread_args;
void kv_eplb_spread(const kv_eplb_spread_args *args);

#endif
