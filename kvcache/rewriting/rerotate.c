/* kvcache/rewriting/rerotate.c - keys turn to compact positions (Corallo and Papotti, FINCH, TACL 2024;
 * StreamingLLM as published counts positions within the cache as well, Xiao et al., 2024).
 *
 * As published the i-th kept key moves back to position i, and the next token's position is the number of
 * kept ones. RoPE is relative: here queries keep the positions that they have in the text, and a kept key moves
 * forward instead, past what has gone behind it:
 *
 *   kept  0 . . 3 . 5 | next query 6         published:  0 1 2 | 3        here:  3 4 5 | 6
 *
 *   k' = k cos(delta f) + rot(k) sin(delta f),  delta = entries that go behind k
 *
 * All distances are the same, in every head, whatever the others keep. Masks and page tables keep the positions
 * of the text. A key that has moved before has those turns in it, so what goes now is enough; every move
 * rounds it to the cache type once more.
 *
 * A fixed key cannot move, and none may pass another. So an entry that goes moves the keys between it and
 * the next fixed one before it, and those before that stay as far away as they were.
 *
 * Over ranks what goes on any of them is counted, so that distances are those of one. Keys before the newest fixed
 * one of any rank do not move. */
#include "kvcache/rewriting/rewriting.h"

#include <math.h>

/* Of one delta: neighbours often have the same. */
typedef struct turn {
    uint32_t delta;
    float *cos, *sin; /* [rope->n / 2] */
} turn;

static size_t rerotate_floats(const kv_rewrite_shape *shape)
{
    return 2 * (size_t)shape->k_dim;
}

static void find_turn(const kv_rope *rope, uint32_t delta, turn *out)
{
    if (out->delta == delta) return;
    out->delta = delta;
    for (uint32_t c = 0; c < rope->n / 2; c++) {
        out->cos[c] = (float)cos((double)delta * (double)rope->freq[c]);
        out->sin[c] = (float)sin((double)delta * (double)rope->freq[c]);
    }
}

static void turn_key(const kv_rope *rope, const turn *by, float *key)
{
    for (uint32_t c = 0; c < rope->n / 2; c++) {
        float *low = key + rope->first + (rope->is_interleaved ? 2 * c : c);
        float *high = low + (rope->is_interleaved ? 1 : rope->n / 2);
        const double x = (double)*low, y = (double)*high;
        *low = (float)(x * (double)by->cos[c] - y * (double)by->sin[c]);
        *high = (float)(y * (double)by->cos[c] + x * (double)by->sin[c]);
    }
}

/* The walk goes from the newest entry to the oldest. */
typedef struct walk {
    uint32_t delta; /* entries that go behind the present one, as far as they move it */
    uint32_t end;   /* over ranks: positions from here on have been counted */
} walk;

static void step_to(const kv_rewrite_args *args, uint32_t i, walk *w)
{
    const uint32_t position = args->view->positions[i];
    for (; args->gone != NULL && w->end > position + 1; w->end--)
        w->delta += args->gone[w->end - 1] != 0;
    if (args->gone == NULL && args->fate[i] == KV_FATE_GOES) w->delta++;
    if (args->fate[i] == KV_FATE_FIXED) w->delta = 0;
}

static void rerotate(const kv_rewrite_args *args)
{
    const uint32_t half = args->rope->n / 2;
    float *key = args->work.rows;
    turn by = {.cos = key + args->k_dim, .sin = key + args->k_dim + half};
    walk w = {.end = args->gone_end};
    for (uint32_t i = args->view->n; i-- > 0;) {
        if (args->gone != NULL && args->view->positions[i] < args->fixed_end) return;
        step_to(args, i, &w);
        if (args->fate[i] == KV_FATE_GOES || w.delta == 0) continue;
        find_turn(args->rope, w.delta, &by);
        args->view->load(args->view, i, 1, key, NULL);
        turn_key(args->rope, &by, key);
        args->put_key(args->ctx, i, key);
    }
}

extern const kv_rewriting kv_rewriting_rerotate;
const kv_rewriting kv_rewriting_rerotate = {
    .name = "rerotate", .turns_keys = true, .n_floats = rerotate_floats, .rewrite = rerotate};
