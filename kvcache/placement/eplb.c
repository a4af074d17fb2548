/* kvcache/placement/eplb.c - see eplb.h. */
#include "kvcache/placement/eplb.h"

#include "base/check.h"

#include <stdbool.h>
#include <stddef.h>

/* ---- packing ------------------------------------------------------------------------------------- */

/* order = items by falling weight; equal ones by index. Few hundred items: an insertion sort. */
static void sort_items(const kv_eplb_pack_args *args)
{
    for (uint32_t i = 0; i < args->n; i++) {
        uint32_t at = i;
        for (; at > 0 && args->weight[args->order[at - 1]] < args->weight[i]; at--)
            args->order[at] = args->order[at - 1];
        args->order[at] = i;
    }
}

static uint32_t lightest_bin(const kv_eplb_pack_args *args, uint32_t n_each)
{
    uint32_t best = args->n_bins;
    for (uint32_t b = 0; b < args->n_bins; b++) {
        if (args->count[b] == n_each) continue;
        if (best == args->n_bins || args->load[b] < args->load[best]) best = b;
    }
    assert(best < args->n_bins);
    return best;
}

void kv_eplb_pack(const kv_eplb_pack_args *args)
{
    const uint32_t n_each = (args->n + args->n_bins - 1) / args->n_bins;
    if (n_each <= 1) { /* in order of index, not of weight, as in the original */
        for (uint32_t i = 0; i < args->n; i++) {
            args->bin[i] = i;
            args->rank[i] = 0;
        }
        return;
    }
    for (uint32_t b = 0; b < args->n_bins; b++) {
        args->load[b] = 0;
        args->count[b] = 0;
    }
    sort_items(args);
    for (uint32_t i = 0; i < args->n; i++) {
        const uint32_t item = args->order[i], b = lightest_bin(args, n_each);
        args->bin[item] = b;
        args->rank[item] = args->count[b]++;
        args->load[b] += args->weight[item];
    }
}

/* ---- placing ------------------------------------------------------------------------------------- */

typedef struct packing {
    uint32_t bin[KV_EPLB_SLOTS_MAX], rank[KV_EPLB_SLOTS_MAX], order[KV_EPLB_SLOTS_MAX];
    uint32_t count[KV_EPLB_SLOTS_MAX];
    float load[KV_EPLB_SLOTS_MAX];
} packing;

static void pack(const float *weight, uint32_t n, uint32_t n_bins, packing *out)
{
    kv_eplb_pack(&(kv_eplb_pack_args){weight, n, n_bins, out->bin, out->rank, out->order, out->load,
                                      out->count});
}

/* expert_at[i] = the expert at place i when groups are packed onto nodes: a node's places follow each
 * other. */
static void order_experts(const kv_eplb_args *args, uint32_t n_groups, uint32_t n_nodes,
                          uint32_t *expert_at)
{
    float weight[KV_EPLB_SLOTS_MAX];
    packing groups;
    const uint32_t group_size = args->n_experts / n_groups, n_each = n_groups / n_nodes;
    for (uint32_t g = 0; g < n_groups; g++) {
        weight[g] = 0;
        for (uint32_t i = 0; i < group_size; i++)
            weight[g] += args->load[g * group_size + i];
    }
    pack(weight, n_groups, n_nodes, &groups);
    for (uint32_t g = 0; g < n_groups; g++) {
        const uint32_t first = (groups.bin[g] * n_each + groups.rank[g]) * group_size;
        for (uint32_t i = 0; i < group_size; i++)
            expert_at[first + i] = g * group_size + i;
    }
}

/* Slots of one node in order of replication: first each expert once, then always the one whose replicas
 * carry most. */
static void replicate(const kv_eplb_args *args, const uint32_t *experts, uint32_t n_experts,
                      uint32_t n_slots, uint32_t *slot)
{
    for (uint32_t i = 0; i < n_experts; i++) {
        slot[i] = experts[i];
        args->n_replicas[experts[i]] = 1;
    }
    for (uint32_t i = n_experts; i < n_slots; i++) {
        uint32_t best = 0;
        for (uint32_t j = 1; j < n_experts; j++) {
            if (args->load[experts[j]] / (float)args->n_replicas[experts[j]] >
                args->load[experts[best]] / (float)args->n_replicas[experts[best]])
                best = j;
        }
        slot[i] = experts[best];
        args->n_replicas[experts[best]]++;
    }
}

void kv_eplb_place(const kv_eplb_args *args)
{
    assert(args->n_slots <= KV_EPLB_SLOTS_MAX);
    assert(args->n_experts <= args->n_slots);
    assert(args->n_slots % args->n_bins == 0);
    assert(args->n_bins % args->n_nodes == 0);
    assert(args->n_experts % args->n_groups == 0);
    const bool has_nodes = args->n_groups % args->n_nodes == 0;
    const uint32_t n_nodes = has_nodes ? args->n_nodes : 1;
    const uint32_t n_experts = args->n_experts / n_nodes, n_slots = args->n_slots / n_nodes;
    const uint32_t n_bins = args->n_bins / n_nodes, n_each = args->n_slots / args->n_bins;
    uint32_t expert_at[KV_EPLB_SLOTS_MAX], slot[KV_EPLB_SLOTS_MAX];
    float weight[KV_EPLB_SLOTS_MAX];
    packing replicas;
    order_experts(args, has_nodes ? args->n_groups : 1, n_nodes, expert_at);
    for (uint32_t node = 0; node < n_nodes; node++) {
        replicate(args, expert_at + (size_t)node * n_experts, n_experts, n_slots, slot);
        for (uint32_t i = 0; i < n_slots; i++)
            weight[i] = args->load[slot[i]] / (float)args->n_replicas[slot[i]];
        pack(weight, n_slots, n_bins, &replicas);
        for (uint32_t i = 0; i < n_slots; i++)
            args->slot_expert[node * n_slots + replicas.bin[i] * n_each + replicas.rank[i]] =
                slot[i];
    }
}
