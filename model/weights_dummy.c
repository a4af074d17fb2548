/* model/weights_dummy.c - weights without files, for measuring shapes of models one does not have.
 *
 * Values are 16 bits of a hash of their index, uniform in +-sqrt(3 / cols), so every product has about
 * the variance of its input, as after a usual initialisation: activations neither vanish nor
 * overflow. Norms are ones, biases zeros. One hash serves four values, which takes about a nanosecond for each. The
 * values are the same on every machine and for every number of threads. Where config.json says that weights have
 * scales, codes are bits of the hash and one scale gives the matrix that variance. Pages are small ones, as
 * those of mapped files are: measurements should not flatter. */
#include "model/weights.h"

#include "base/check.h"
#include "model/family.h"
#include "model/weights_scaled.h"

#include <errno.h>
#include <math.h>
#include <string.h>
#include <sys/mman.h>

enum { ALIGN_BYTES = 64, FILL_GRAIN = 1 << 18 };

typedef struct dummy_walk {
    dev *d;
    const model_config *config;
    model_weights *w;
    size_t used_bytes; /* of the block */
    size_t bytes;      /* of weights and scales alone */
    uint64_t n_params;
    bool is_measuring;
} dummy_walk;

typedef struct dummy_fill {
    void *out;
    dtype type;
    uint64_t seed; /* of this tensor */
    float reach;   /* values lie in +-reach */
} dummy_fill;

enum { VALUES_PER_HASH = 4, BITS_PER_VALUE = 16 };

/* The finaliser of splitmix64 (Steele, Lea, Flood 2014): every input bit moves every output bit. */
static inline uint64_t hash64(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* The hash that value i takes its bits from, shifted down to them. */
static inline uint64_t bits_at(const dummy_fill *fill, size_t i)
{
    return hash64(fill->seed + i / VALUES_PER_HASH) >> (i % VALUES_PER_HASH * BITS_PER_VALUE);
}

static inline float value_of(const dummy_fill *fill, uint64_t bits)
{
    return fill->reach * ((float)(int16_t)(uint16_t)bits + 0.5f) * 0x1p-15f;
}

static inline void store_value(const dummy_fill *fill, size_t i, float x, dtype type)
{
    if (type == DTYPE_F32)
        ((float *)fill->out)[i] = x;
    else if (type == DTYPE_BF16)
        ((uint16_t *)fill->out)[i] = (uint16_t)(f32_bits(x) >> 16);
    else
        ((uint16_t *)fill->out)[i] = f16_from_f32(x);
}

/* `type` is a constant at each call, so that the loop holds no choice. */
static inline void fill_range(const dummy_fill *fill, size_t begin, size_t end, dtype type)
{
    uint64_t bits = 0;
    for (size_t i = begin; i < end; i++) {
        if (i == begin || i % VALUES_PER_HASH == 0) bits = bits_at(fill, i);
        store_value(fill, i, value_of(fill, bits), type);
        bits >>= BITS_PER_VALUE;
    }
}

/* Eight codes to a hash; a NaN of fp8 becomes its neighbour. */
static void fill_codes(const dummy_fill *fill, size_t begin, size_t end)
{
    uint8_t *const out = fill->out;
    for (size_t i = begin; i < end; i++) {
        const uint8_t code = (uint8_t)(hash64(fill->seed + i / 8) >> i % 8 * 8);
        const bool is_nan = fill->type == DTYPE_FP8 && (code & 0x7f) == 0x7f;
        out[i] = is_nan ? code ^ 1 : code;
    }
}

static void fill_part(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    (void)worker;
    const dummy_fill *const fill = ctx;
    switch (fill->type) {
    case DTYPE_F32: fill_range(fill, begin, end, DTYPE_F32); break;
    case DTYPE_BF16: fill_range(fill, begin, end, DTYPE_BF16); break;
    case DTYPE_F16: fill_range(fill, begin, end, DTYPE_F16); break;
    default: fill_codes(fill, begin, end);
    }
}

static void fill_ones(const dummy_fill *fill, size_t n)
{
    static const uint16_t ones[DTYPE_COUNT] = {[DTYPE_BF16] = 0x3f80, [DTYPE_F16] = 0x3c00};
    for (size_t i = 0; i < n; i++) {
        if (fill->type == DTYPE_F32)
            ((float *)fill->out)[i] = 1.0f;
        else
            ((uint16_t *)fill->out)[i] = ones[fill->type];
    }
}

static err_t take(dummy_walk *walk, size_t bytes, void **out)
{
    size_t rounded;
    *out = walk->is_measuring ? NULL : (uint8_t *)walk->w->dummy + walk->used_bytes;
    walk->bytes += bytes;
    TRY(size_add(bytes, ALIGN_BYTES - 1, &rounded));
    return size_add(walk->used_bytes, rounded / ALIGN_BYTES * ALIGN_BYTES, &walk->used_bytes);
}

/* The mean square of all codes. */
static double mean_square(dtype type)
{
    double sum = 0;
    const uint8_t n = type == DTYPE_FP8 ? 0x7f : 8;
    for (uint8_t code = 0; code < n; code++) {
        const double x = (double)(type == DTYPE_FP8 ? f32_from_fp8(code) : f32_from_fp4(code));
        sum += x * x;
    }
    return sum / n;
}

/* One for all: with it the codes have a variance of 1 / cols. */
static void fill_scales(const matrix *w, void *out)
{
    const double scale = 1 / sqrt(w->cols * mean_square(w->type));
    const size_t bytes = matrix_scale_bytes(w);
    float *const factors = out;
    for (size_t i = 0; w->type == DTYPE_FP8 && i < bytes / sizeof *factors; i++)
        factors[i] = (float)scale;
    if (w->type == DTYPE_MXFP4) memset(out, 127 + (int)lround(log2(scale)), bytes);
}

static void fill_weight(const dummy_walk *walk, const model_weight *weight, void *data, void *scale)
{
    matrix *const w = weight->into;
    const size_t n = (size_t)w->rows * w->cols;
    dummy_fill fill = {.out = data,
                       .type = w->type,
                       .seed = hash64(walk->n_params),
                       .reach = sqrtf(3.0f / (float)weight->cols)};
    w->data = data;
    if (weight->is_bias)
        memset(data, 0, matrix_bytes(w));
    else if (weight->is_vector)
        fill_ones(&fill, n);
    else
        parallel_for(walk->d->pool, dtype_has_scales(w->type) ? matrix_bytes(w) : n, FILL_GRAIN,
                     fill_part, &fill);
    if (!dtype_has_scales(w->type)) return;
    w->scale = scale;
    fill_scales(w, scale);
}

static err_t place_weight(void *ctx, const model_weight *weight)
{
    dummy_walk *const walk = ctx;
    const matrix shape = scaled_expect(walk->config, walk->w, weight);
    void *data, *scale;
    size_t bytes;
    TRY(size_mul(shape.rows, matrix_row_bytes(&shape), &bytes));
    TRY(take(walk, bytes, &data));
    TRY(take(walk, matrix_scale_bytes(&shape), &scale));
    if (!walk->is_measuring) {
        *weight->into = shape;
        fill_weight(walk, weight, data, scale);
    }
    walk->n_params += (size_t)weight->rows * weight->cols;
    return ERR_OK;
}

static err_t map_block(model_weights *w, size_t bytes, err_info *info)
{
    void *const block = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (block == MAP_FAILED)
        return err_set(info, ERR_NO_MEMORY, "dummy weights: cannot map %zu bytes: %s", bytes,
                       strerror(errno));
    w->dummy = block;
    w->dummy_bytes = bytes;
    return ERR_OK;
}

err_t model_weights_dummy(dev *d, const model_family *family, const model_config *config,
                          model_weights *out, err_info *info)
{
    *out = (model_weights){.main_type = config->stored_type};
    dummy_walk walk = {.d = d, .config = config, .w = out, .is_measuring = true};
    err_t err = model_weights_alloc(config, out, info);
    if (err != ERR_OK) goto fail;
    err = family->each_weight(config, out, place_weight, &walk);
    if (err != ERR_OK) {
        (void)err_set(info, err, "dummy weights: their size overflows");
        goto fail;
    }
    err = map_block(out, walk.used_bytes, info);
    if (err != ERR_OK) goto fail;
    out->bytes = walk.bytes;
    out->n_params = walk.n_params;
    walk.used_bytes = 0;
    walk.n_params = 0;
    walk.is_measuring = false;
    err = family->each_weight(config, out, place_weight, &walk);
    assert(err == ERR_OK);
    if (config->tied_embeddings) out->head = out->embedding;
    err = model_weights_widen_sinks(config, out, info);
    if (err != ERR_OK) goto fail;
    return ERR_OK;
fail:
    model_weights_deinit(out);
    return err;
}
