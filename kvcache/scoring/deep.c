/* kvcache/scoring/deep.c - the first two layers keep everything, the others share what is left (FastV, Chen
 * et al. 2024, begins behind the second layer).
 *
 * Of two layers or one the last is a later one. If the first ones leave the others less than their
 * window, every layer keeps the average, as under `pyramid`: of many entries that happens at budgets up to
 * 2 / n_layers. */
#include "kvcache/scoring/allocator.h"

enum { FIRST_LAYERS = 2 };

static uint32_t layer_share(const kv_layer_share_args *args)
{
    const uint32_t n_keep = args->n_keep < args->n ? args->n_keep : args->n;
    const uint32_t n_first = FIRST_LAYERS < args->n_layers ? FIRST_LAYERS : args->n_layers - 1;
    const uint32_t n_later = args->n_layers - n_first;
    const uint64_t all = (uint64_t)args->n_layers * n_keep, first = (uint64_t)n_first * args->n;
    if (all < first + (uint64_t)n_later * args->n_window) return n_keep;
    if (args->layer < n_first) return args->n;
    const uint64_t rest = all - first;
    return (uint32_t)(rest / n_later + (args->layer - n_first < rest % n_later));
}

extern const kv_allocator kv_allocator_deep;
const kv_allocator kv_allocator_deep = {.name = "deep", .layer_share = layer_share};
