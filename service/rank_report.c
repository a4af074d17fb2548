/* service/rank_report.c - see rank_report.h. */
#include "service/rank_report.h"

void rank_report_take(const kv_cache *cache, const model *m, const comm *c, rank_report *out)
{
    kv_stats kv;
    kv_stats_read(cache, &kv);
    *out = (rank_report){.kv_budget_bytes = kv.pool_budget_bytes,
                         .kv_slab_bytes = kv.slab_bytes,
                         .kv_used_bytes = kv.used_bytes,
                         .kv_ring_bytes = kv.ring_bytes,
                         .kv_slots = kv.slots_live,
                         .weight_bytes = model_weight_bytes(m)};
    if (c == NULL) return;
    for (int kind = 0; kind < COMM_KIND_COUNT; kind++)
        out->comm[kind] = comm_get_stats(c, (comm_kind)kind);
    expert_stats experts;
    model_expert_stats(m, &experts);
    out->expert_choices = experts.rank_choices[comm_rank(c)];
    out->expert_rebalances = experts.n_rebalanced;
    out->expert_moves = experts.n_moved;
    out->expert_imbalance = experts.imbalance;
}
