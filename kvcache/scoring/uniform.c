/* kvcache/scoring/uniform.c - every head keeps as many entries as the others.
 *
 * What a head with too few candidates leaves goes to the others, in equal parts. */
#include "kvcache/scoring/allocator.h"

static void split_evenly(const kv_split_args *args, uint32_t *n_keep)
{
    for (uint32_t h = 0; h < args->n_heads; h++)
        n_keep[h] = 0;
    for (uint64_t n_left = kv_split_total(args); n_left > 0;) {
        uint32_t n_open = 0;
        for (uint32_t h = 0; h < args->n_heads; h++)
            n_open += n_keep[h] < args->n[h];
        const uint64_t each = n_left < n_open ? 1 : n_left / n_open;
        for (uint32_t h = 0; h < args->n_heads && n_left > 0; h++) {
            const uint32_t room = args->n[h] - n_keep[h];
            const uint32_t more = each < room ? (uint32_t)each : room;
            n_keep[h] += more;
            n_left -= more;
        }
    }
}

extern const kv_allocator kv_allocator_uniform;
const kv_allocator kv_allocator_uniform = {.name = "uniform", .split = split_evenly};
