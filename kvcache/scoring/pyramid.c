/* kvcache/scoring/pyramid.c - lower layers keep more (Cai et al., PyramidKV, 2024), with the budgets of
 * NVIDIA's kvpress.
 *
 * Layers l and n_layers - 1 - l together keep twice the average, so the sum is exact if one of the two
 * is rounded and the other gets the rest. */
#include "kvcache/scoring/pyramid.h"

#include "kvcache/scoring/allocator.h"

#include <math.h>

static const double BETA = 20;

double kv_pyramid_share(const kv_pyramid *p, uint32_t layer)
{
    const double most = (double)p->n - p->n_window;
    double low = p->n_keep / BETA, high = 2 * p->n_keep - low;
    if (high > most) {
        high = most;
        low = 2 * p->n_keep - high;
    }
    if (p->n_layers < 2 || !(high >= low && low >= p->n_window)) return p->n_keep;
    return high - layer * (high - low) / (p->n_layers - 1);
}

static uint32_t layer_share(const kv_layer_share_args *args)
{
    const uint32_t n_keep = args->n_keep < args->n ? args->n_keep : args->n;
    const uint32_t mirror = args->n_layers - 1 - args->layer;
    const kv_pyramid p = {
        .n = args->n, .n_window = args->n_window, .n_layers = args->n_layers, .n_keep = n_keep};
    if (args->layer == mirror) return n_keep;
    if (args->layer < mirror) return (uint32_t)nearbyint(kv_pyramid_share(&p, args->layer));
    return 2 * n_keep - (uint32_t)nearbyint(kv_pyramid_share(&p, mirror));
}

extern const kv_allocator kv_allocator_pyramid;
const kv_allocator kv_allocator_pyramid = {.name = "pyramid", .layer_share = layer_share};
