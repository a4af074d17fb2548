/* kvcache/compression/value_weight.c - see value_weight.h. */
#include "kvcache/compression/value_weight.h"

#include "base/check.h"

static float element(const matrix *w, size_t i)
{
    float x;
    uint16_t half;
    if (w->type == DTYPE_F32) {
        memcpy(&x, (const char *)w->data + 4 * i, sizeof x);
        return x;
    }
    memcpy(&half, (const char *)w->data + 2 * i, sizeof half);
    return w->type == DTYPE_BF16 ? f32_from_bf16(half) : f32_from_f16(half);
}

void kv_value_weight_fill(const kv_layer_shape *layer, uint32_t head, float *out)
{
    const matrix *w = layer->out_proj;
    const size_t group = layer->n_heads / layer->n_kv_heads, v_dim = layer->v_dim;
    assert(w->cols == layer->n_heads * layer->v_dim);
    memset(out, 0, v_dim * sizeof *out);
    for (size_t row = 0; row < w->rows; row++) {
        for (size_t i = 0; i < group * v_dim; i++) {
            const float x = element(w, row * w->cols + head * group * v_dim + i);
            out[i % v_dim] += x * x;
        }
    }
}
