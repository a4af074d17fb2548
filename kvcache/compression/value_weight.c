/* kvcache/compression/value_weight.c - see value_weight.h. */
#include "kvcache/compression/value_weight.h"

#include "base/check.h"

void kv_value_weight_fill(const kv_layer_shape *layer, uint32_t head, float *out)
{
    const matrix *w = layer->out_proj;
    const size_t group = layer->n_heads / layer->n_kv_heads, v_dim = layer->v_dim;
    assert(w->cols == layer->n_heads * layer->v_dim);
    memset(out, 0, v_dim * sizeof *out);
    for (size_t row = 0; row < w->rows; row++) {
        for (size_t i = 0; i < group * v_dim; i++) {
            const float x = matrix_element(w, row, head * group * v_dim + i);
            out[i % v_dim] += x * x;
        }
    }
}
