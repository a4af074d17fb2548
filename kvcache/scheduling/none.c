/* kvcache/scheduling/none.c - everything stays. */
#include "kvcache/scheduling/scheduling.h"

static void keep_all(const kv_budget_args *args, uint32_t *n_keep)
{
    for (uint32_t h = 0; h < args->n_kv_heads; h++)
        n_keep[h] = args->n_live[h];
}

extern const kv_scheduling kv_scheduling_none;
const kv_scheduling kv_scheduling_none = {
    .name = "none",
    .is_exact = true,
    .budget = keep_all,
};
