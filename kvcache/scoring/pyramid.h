/* kvcache/scoring/pyramid.h - the layers' shares of `pyramid`, for its golden numbers.
 *
 * With b = n_keep, w = n_window, beta = 20: the last layer keeps b / beta and the first 2 b - b / beta,
 * cut to n - w, in which case the last gets what the first loses; a straight line lies between. If the
 * last layer had less than the window, every layer keeps b: of 4096 entries and a window of 64 that
 * happens below 31 %. */
#ifndef KVCACHE_SCORING_PYRAMID_H
#define KVCACHE_SCORING_PYRAMID_H

#include <stdint.h>

typedef struct kv_pyramid {
    uint32_t n, n_window, n_layers;
    double n_keep; /* on average over the layers */
} kv_pyramid;

/* Before it is rounded. */
double kv_pyramid_share(const kv_pyramid *p, uint32_t layer);

#endif
