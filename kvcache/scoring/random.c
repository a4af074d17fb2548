/* kvcache/scoring/random.c - chance: what every other method has to beat.
 *
 * A number belongs to a position of a head, so an entry that was kept once is kept again. */
#include "kvcache/scoring/scorer.h"

#include "base/random.h"

static void score_chance(const kv_score_args *args, float *out)
{
    const uint64_t stream = (uint64_t)args->layer << 32 | args->head;
    for (uint32_t i = 0; i < args->view->n; i++)
        out[i] = random_uniform(args->seed, stream, args->view->positions[i]);
}

extern const kv_scorer kv_scorer_random;
const kv_scorer kv_scorer_random = {.name = "random", .score = score_chance};
