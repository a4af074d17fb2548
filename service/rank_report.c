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
    for (int kind = 0; c != NULL && kind < COMM_KIND_COUNT; kind++)
        out->comm[kind] = comm_get_stats(c, (comm_kind)kind);
}
