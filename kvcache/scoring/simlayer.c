/* kvcache/scoring/simlayer.c - lazy layers keep first and newest entries alone, the others everything (Zhang et
 * al., SimLayerKV, arXiv 2410.13846).
 *
 * How lazy a layer is: the share of the newest query's attention, a mean over all query heads, that falls on
 * the entries which it keeps in any case - sinks and ring - but for the query's own. A layer above the
 * threshold keeps these and no more. Under --kv-sink 4 and --kv-window 1024 that is the paper's rule, whose
 * thresholds are 0.9 for Llama 3, 0.85 for Qwen, 0.8 for Mistral and 0.65 for Llama 2, and whose ratio follows.
 *
 * Here there is a budget, too, which no threshold exceeds: the other layers are filled in the order of
 * laziness, the least lazy first, until it is spent; the one where it ends keeps its best entries, and those
 * behind it sinks and ring. So a threshold of 1 leaves it to the budget, and a budget close to 1 leaves it to
 * the threshold; if it is enough for everything, everything stays. The paper decides once, at the end of the prompt; here every selection does, and a layer that
 * has lost its older entries has little else to look at, and stays lazy. */
#include "kvcache/scoring/allocator.h"
#include "kvcache/scoring/score_math.h"
#include "kvcache/scoring/window_attention.h"

static double find_laziness(const kv_score_args *args, uint32_t first, uint32_t end)
{
    double mass = 0;
    kv_window w;
    kv_window_init(&w, args);
    for (uint32_t at = 0; at < w.n_open; at += KV_SCORE_CHUNK) {
        const uint32_t count = kv_window_read(&w, at);
        for (uint32_t row = 0; row < w.n_rows; row++) {
            float p[KV_SCORE_CHUNK];
            kv_window_shares(&w, row, at, p);
            for (uint32_t i = 0; i < count && at + i < w.n_open; i++) {
                const bool stays = at + i < first || at + i >= end;
                if (stays) mass += (double)p[i];
            }
        }
    }
    return w.n_rows == 0 ? 0 : mass / w.n_rows;
}

/* Layers that are filled before this one. */
static uint32_t count_before(const kv_layer_share_args *args)
{
    const double own = args->lazy[args->layer];
    uint32_t n = 0;
    for (uint32_t l = 0; l < args->n_layers; l++) {
        if (args->lazy[l] > args->lazy_threshold) continue;
        n += args->lazy[l] < own || (l < args->layer && !(args->lazy[l] > own));
    }
    return n;
}

static uint32_t layer_share(const kv_layer_share_args *args)
{
    const uint64_t n_always = (uint64_t)args->n_window + args->n_sinks;
    if (args->n_keep >= args->n) return args->n;
    if (args->n_keep <= n_always) return args->n_keep;
    const uint32_t least = (uint32_t)n_always, room = args->n - least;
    if (args->lazy[args->layer] > args->lazy_threshold) return least;
    const uint64_t all = (uint64_t)args->n_layers * (args->n_keep - least);
    const uint64_t taken = (uint64_t)count_before(args) * room;
    const uint64_t left = all > taken ? all - taken : 0;
    return least + (left < room ? (uint32_t)left : room);
}

extern const kv_allocator kv_allocator_simlayer;
const kv_allocator kv_allocator_simlayer = {.name = "simlayer",
                                            .layer_share = layer_share,
                                            .laziness = find_laziness,
                                            .laziness_floats = kv_window_floats};
