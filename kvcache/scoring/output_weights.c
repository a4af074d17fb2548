/* kvcache/scoring/output_weights.c - see output_weights.h. */
#include "kvcache/scoring/output_weights.h"

#include "kvcache/scoring/score_math.h"

#include <math.h>
#include <string.h>

size_t kv_output_floats(const kv_score_shape *shape, bool by_gram)
{
    const size_t v = shape->v_dim;
    return (2 * (size_t)KV_SCORE_CHUNK + 1) * v + (by_gram ? v * v : 0);
}

void kv_output_init(kv_output *o, const kv_score_args *args, float *work)
{
    const size_t chunk_floats = (size_t)KV_SCORE_CHUNK * args->v_dim;
    *o = (kv_output){.args = args, .rows = work, .columns = work + chunk_floats};
    o->weights = o->columns + chunk_floats;
    o->gram = o->weights + args->v_dim;
}

/* Row r of the part of W_O that belongs to head g of the group. */
static void read_weights(kv_output *o, uint32_t g, uint32_t r)
{
    const kv_score_args *args = o->args;
    const size_t head = (size_t)args->head * args->group + g;
    for (uint32_t i = 0; i < args->v_dim; i++)
        o->weights[i] = matrix_element(args->out_proj, r, head * args->v_dim + i);
}

uint32_t kv_output_read(kv_output *o, uint32_t first)
{
    const kv_score_args *args = o->args;
    const uint32_t count = kv_chunk_count(args->view->n, first);
    args->view->load(args->view, first, count, NULL, o->rows);
    kv_chunk_turn(o->rows, count, args->v_dim, o->columns);
    return count;
}

void kv_output_add_sums(kv_output *o, uint32_t g, uint32_t count, float sums[KV_SCORE_CHUNK])
{
    const kv_score_args *args = o->args;
    for (uint32_t r = 0; r < args->out_proj->rows; r++) {
        float x[KV_SCORE_CHUNK];
        read_weights(o, g, r);
        kv_chunk_dots(o->weights, o->columns, args->v_dim, x);
        for (uint32_t i = 0; i < count; i++)
            sums[i] += fabsf(x[i]);
    }
}

/* The upper half is enough. */
void kv_output_find_gram(kv_output *o, uint32_t g)
{
    const uint32_t v_dim = o->args->v_dim;
    for (size_t i = 0; i < (size_t)v_dim * v_dim; i++)
        o->gram[i] = 0;
    for (uint32_t r = 0; r < o->args->out_proj->rows; r++) {
        read_weights(o, g, r);
        for (uint32_t i = 0; i < v_dim; i++)
            kv_row_add(o->weights[i], o->weights + i, v_dim - i, o->gram + (size_t)i * v_dim + i);
    }
}

void kv_output_lengths(const kv_output *o, uint32_t count, float lengths[KV_SCORE_CHUNK])
{
    kv_chunk_forms(o->gram, o->columns, o->args->v_dim, lengths);
    for (uint32_t i = 0; i < count; i++)
        lengths[i] = sqrtf(fmaxf(kv_score_finite((double)lengths[i]), 0));
}
