/* service/rank_report.h - what a rank says of itself, about once a second. */
#ifndef SERVICE_RANK_REPORT_H
#define SERVICE_RANK_REPORT_H

#include "kernels/comm.h"
#include "kvcache/kv_cache.h"
#include "model/model.h"

/* Fixed layout: goes over the wire as it is. */
typedef struct rank_report {
    uint64_t kv_budget_bytes, kv_slab_bytes, kv_used_bytes, kv_ring_bytes; /* as in kv_stats */
    uint64_t kv_slots;     /* entries in its pages */
    uint64_t weight_bytes; /* that it reads */
    /* With a comm alone: */
    comm_stats comm[COMM_KIND_COUNT];
    uint64_t expert_choices; /* of tokens, that this rank computed; see expert_stats */
    uint64_t expert_rebalances, expert_moves; /* of all ranks, the same on each */
    double expert_imbalance;
} rank_report;

/* Over ranks for the model's owner; comm NULL: alone, any thread. */
void rank_report_take(const kv_cache *cache, const model *m, const comm *c, rank_report *out);

#endif
