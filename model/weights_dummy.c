/* model/weights_dummy.c - weights without files, for measuring shapes of models one does not have.
 *
 * Values are 16 bits of a hash of their index, uniform in +-sqrt(3 / cols), so every product has about
 * the variance of its input, as after a usual initialisation: activations neither vanish nor
 * overflow. Norms are ones, biases zeros. One hash serves four values, which takes about a nanosecond for each. The
 * values are the same on every machine and for every number of threads. Pages are small ones, as
 * those of mapped files are: measurements should not flatter. */
#include "model/weights.h"

#include "base/check.h"
#include "model/family.h"

#include <errno.h>
#include <math.h>
#include <string.h>
#include <sys/mman.h>

enum { ALIGN_BYTES = 64, FILL_GRAIN = 1 << 18 };

typedef struct dummy_walk {
    dev *d;
    model_weights *w;
    dtype type;
    size_t used_bytes;
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

static void fill_part(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    (void)worker;
    const dummy_fill *const fill = ctx;
    switch (fill->type) {
    case DTYPE_F32: fill_range(fill, begin, end, DTYPE_F32); break;
    case DTYPE_BF16: fill_range(fill, begin, end, DTYPE_BF16); break;
    default: fill_range(fill, begin, end, DTYPE_F16); break;
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

static err_t place_weight(void *ctx, const model_weight *weight)
{
    dummy_walk *const walk = ctx;
    const size_t n = (size_t)weight->rows * weight->cols;
    size_t bytes;
    TRY(size_mul(n, dtype_bytes(walk->type), &bytes));
    TRY(size_add(bytes, ALIGN_BYTES - 1, &bytes));
    bytes = bytes / ALIGN_BYTES * ALIGN_BYTES;
    const size_t begin = walk->used_bytes;
    TRY(size_add(begin, bytes, &walk->used_bytes));
    if (!walk->is_measuring) {
        dummy_fill fill = {.out = (uint8_t *)walk->w->dummy + begin,
                           .type = walk->type,
                           .seed = hash64(walk->n_params),
                           .reach = sqrtf(3.0f / (float)weight->cols)};
        *weight->into = (matrix){
            .data = fill.out, .type = walk->type, .rows = weight->rows, .cols = weight->cols};
        if (weight->is_bias)
            memset(fill.out, 0, n * dtype_bytes(walk->type));
        else if (weight->is_vector)
            fill_ones(&fill, n);
        else
            parallel_for(walk->d->pool, n, FILL_GRAIN, fill_part, &fill);
    }
    walk->n_params += n;
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
    dummy_walk walk = {.d = d, .w = out, .type = config->stored_type, .is_measuring = true};
    err_t err = model_weights_alloc(config, out, info);
    if (err != ERR_OK) goto fail;
    err = family->each_weight(config, out, place_weight, &walk);
    if (err != ERR_OK) {
        (void)err_set(info, err, "dummy weights: their size overflows");
        goto fail;
    }
    err = map_block(out, walk.used_bytes, info);
    if (err != ERR_OK) goto fail;
    out->bytes = (size_t)walk.n_params * dtype_bytes(walk.type);
    out->n_params = walk.n_params;
    walk.used_bytes = 0;
    walk.n_params = 0;
    walk.is_measuring = false;
    err = family->each_weight(config, out, place_weight, &walk);
    assert(err == ERR_OK);
    if (config->tied_embeddings) out->head = out->embedding;
    return ERR_OK;
fail:
    model_weights_deinit(out);
    return err;
}
