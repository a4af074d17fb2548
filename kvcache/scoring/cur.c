/* kvcache/scoring/cur.c - long keys with long values, compared with their neighbours (Sengupta et al.,
 * CurDKV, 2025; leverage scores approximated by lengths).
 *
 * |k|^2 and |v|^2, each divided by its sum over the window of 16 entries; their product, divided by
 * the sum of all; over ranks, of all that the rank has. The first 4 positions score 1. Windows begin at multiples of 16 entries. */
#include "kvcache/scoring/methods.h"
#include "kvcache/scoring/score_math.h"

enum { WINDOW = 16 };
_Static_assert(KV_SCORE_CHUNK % WINDOW == 0, "windows lie within chunks");

static size_t cur_floats(const kv_score_shape *shape)
{
    return (size_t)KV_SCORE_CHUNK * (shape->k_dim > shape->v_dim ? shape->k_dim : shape->v_dim);
}

/* Squared lengths, divided by their sum over the window. */
static void relative_squares(const float *rows, uint32_t count, uint32_t dim, double *out)
{
    for (uint32_t i = 0; i < count; i++)
        out[i] = kv_row_square(rows + (size_t)i * dim, dim);
    for (uint32_t begin = 0; begin < count; begin += WINDOW) {
        const uint32_t end = count - begin < WINDOW ? count : begin + WINDOW;
        double sum = 0;
        for (uint32_t i = begin; i < end; i++)
            sum += out[i];
        for (uint32_t i = begin; i < end; i++)
            out[i] = sum > 0 ? out[i] / sum : 0;
    }
}

static void score_products(const kv_score_args *args, float *out)
{
    const uint32_t n = args->view->n;
    double total = 0;
    for (uint32_t first = 0; first < n; first += KV_SCORE_CHUNK) {
        const uint32_t count = kv_chunk_count(n, first);
        double keys[KV_SCORE_CHUNK], values[KV_SCORE_CHUNK];
        args->view->load(args->view, first, count, args->work, NULL);
        relative_squares(args->work, count, args->k_dim, keys);
        args->view->load(args->view, first, count, NULL, args->work);
        relative_squares(args->work, count, args->v_dim, values);
        for (uint32_t i = 0; i < count; i++) {
            out[first + i] = (float)(keys[i] * values[i]);
            total += keys[i] * values[i];
        }
    }
    for (uint32_t i = 0; i < n; i++)
        out[i] = total > 0 ? (float)((double)out[i] / total) : 0;
    for (uint32_t i = kv_score_n_before(args->view, KV_SCORE_SINKS); i-- > 0;)
        out[i] = 1;
}

extern const kv_scorer kv_scorer_cur;
const kv_scorer kv_scorer_cur = {.name = "cur", .work_floats = cur_floats, .score = score_products};
