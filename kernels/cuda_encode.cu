/* kernels/cuda_encode.cu - pages made of entries in device memory, and slots moved there. Contract: encode_pages.h.
 *
 *   encode     a block of threads a page. Integers: a thread a channel of keys finds its grid over all slots, a thread
 *              a (slot, group) that of a value, one after the other as the definition does, so that the same of two
 *              zeros stays; then a thread a byte of codes, which it makes alone. fp8: the block's largest, then a
 *              thread a code. At last a thread a channel makes the box from what was written.
 *   move       a block for MOVE_BYTES of a slot, 16 bytes a thread at a time.
 * Reading is what takes time: a page's rows are read two or three times, from memory the first time.
 * Shared memory: the grids of keys [2][k_dim] and a number a warp. */
#include "kernels/cuda_device.cuh"

enum { ENCODE_THREADS = 128, ENCODE_WARPS = ENCODE_THREADS / WARP, MOVE_BYTES = 16 * 1024 };

typedef struct page_work {
    encode_kind kind;
    encode_task task;
    uint32_t n_slots;
} page_work;

/* Row i of keys, and of values. */
static __device__ __forceinline__ const uint8_t *key_row(const page_work *w, uint32_t i)
{
    const encode_run *a = &w->task.run[0], *b = &w->task.run[1];
    return i < a->n_slots ? a->k + static_cast<size_t>(i) * a->k_stride_bytes
                          : b->k + static_cast<size_t>(i - a->n_slots) * b->k_stride_bytes;
}

static __device__ __forceinline__ const uint8_t *value_row(const page_work *w, uint32_t i)
{
    const encode_run *a = &w->task.run[0], *b = &w->task.run[1];
    return i < a->n_slots ? a->v + static_cast<size_t>(i) * a->v_stride_bytes
                          : b->v + static_cast<size_t>(i - a->n_slots) * b->v_stride_bytes;
}

static __device__ __forceinline__ uint16_t *half_at(uint8_t *page, size_t offset)
{
    return reinterpret_cast<uint16_t *>(page + offset);
}

/* ---- plain --------------------------------------------------------------------------------------- */

/* 16 bytes at a time where rows allow it, else an element. */
static __device__ void copy_row(const uint8_t *from, uint8_t *to, uint32_t bytes, uint32_t first,
                                uint32_t n_threads)
{
    const uintptr_t both = reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to);
    if (((both | bytes) & 15) == 0) {
        for (uint32_t i = 16 * first; i < bytes; i += 16 * n_threads)
            *reinterpret_cast<uint4 *>(to + i) = cuda_load16(from + i);
        return;
    }
    for (uint32_t i = 2 * first; i < bytes; i += 2 * n_threads)
        *half_at(to, i) = *reinterpret_cast<const uint16_t *>(from + i);
}

/* A warp a row. */
static __device__ void copy_rows(const page_work *w)
{
    const attn_layout *to = &w->kind.layout;
    const uint32_t bytes = w->kind.type == DTYPE_F32 ? 4 : 2, lane = threadIdx.x % WARP;
    for (uint32_t i = threadIdx.x / WARP; i < w->n_slots; i += ENCODE_WARPS) {
        uint8_t *k = w->task.page + to->k_offset + static_cast<size_t>(i) * to->k_stride_bytes;
        uint8_t *v = w->task.page + to->v_offset + static_cast<size_t>(i) * to->v_stride_bytes;
        copy_row(key_row(w, i), k, w->kind.k_dim * bytes, lane, WARP);
        if (w->kind.has_values) copy_row(value_row(w, i), v, w->kind.v_dim * bytes, lane, WARP);
    }
}

/* ---- integers ------------------------------------------------------------------------------------ */

typedef struct grid_pair {
    float scale, min;
} grid_pair;

static __device__ __forceinline__ float bf16_below(float x)
{
    const uint32_t up = x < 0 ? 0xffffu : 0;
    return __uint_as_float((__float_as_uint(x) + up) & 0xffff0000u);
}

/* As find_range has it: x joins what came before it. */
static __device__ __forceinline__ void widen_range(float x, float *min, float *max)
{
    const float limit = 1e37f;
    float y = x;
    if (!(y >= -limit)) y = -limit;
    if (y > limit) y = limit;
    if (y < *min) *min = y;
    if (y > *max) *max = y;
}

static __device__ __forceinline__ grid_pair stored_grid(float min, float max, uint32_t bits)
{
    grid_pair out;
    out.min = bf16_below(min);
    const float step = __fdiv_rn(__fadd_rn(max, -out.min), static_cast<float>((1u << bits) - 1));
    out.scale = -bf16_below(-(step > 0 ? step : 1));
    return out;
}

static __device__ __forceinline__ uint32_t code_of(grid_pair grid, float x, uint32_t bits)
{
    const float last = static_cast<float>((1u << bits) - 1);
    const float at = __fdiv_rn(__fadd_rn(x, -grid.min), grid.scale);
    if (!(at > 0)) return 0;
    return static_cast<uint32_t>(rintf(at < last ? at : last));
}

/* Both are bf16: no bit is lost. */
static __device__ __forceinline__ void store_grid(grid_pair grid, uint16_t *to, uint32_t n_pairs,
                                                  uint32_t pair)
{
    to[pair] = cuda_bf16_from_f32(grid.scale);
    to[n_pairs + pair] = cuda_bf16_from_f32(grid.min);
}

static __device__ __forceinline__ grid_pair load_grid(const uint16_t *from, uint32_t n_pairs,
                                                      uint32_t pair)
{
    return {cuda_f32_from_bf16(from[pair]), cuda_f32_from_bf16(from[n_pairs + pair])};
}

static __device__ __forceinline__ uint32_t bits_of(attn_coding coding)
{
    return coding == ATTN_INT4 ? 4 : coding == ATTN_INT2 ? 2 : 8;
}

/* The channel whose code is at a place: attn_code_place the other way. */
static __device__ __forceinline__ uint32_t channel_at(uint32_t bits, uint32_t dim, uint32_t place)
{
    const uint32_t n = 8 * ATTN_LOT_BYTES / bits, at = place % n, n_in_word = n / ATTN_LOT_WORDS;
    if (place >= dim - dim % n) return place;
    return place - at + at % n_in_word * ATTN_LOT_WORDS + at / n_in_word;
}

static __device__ void fit_keys(const page_work *w, grid_pair *grids)
{
    const uint32_t k_dim = w->kind.k_dim, bits = bits_of(w->kind.layout.coding);
    uint16_t *to = half_at(w->task.page, w->kind.layout.k_grid_offset);
    for (uint32_t c = threadIdx.x; c < k_dim; c += ENCODE_THREADS) {
        float min = INFINITY, max = -INFINITY;
        for (uint32_t i = 0; i < w->n_slots; i++)
            widen_range(cuda_load(key_row(w, i), w->kind.type, c), &min, &max);
        grids[c] = stored_grid(min, max, bits);
        store_grid(grids[c], to, k_dim, c);
    }
}

static __device__ __forceinline__ uint16_t *value_grid(const page_work *w, uint32_t slot)
{
    const attn_layout *layout = &w->kind.layout;
    return half_at(w->task.page,
                   layout->v_grid_offset + static_cast<size_t>(slot) * layout->v_grid_stride_bytes);
}

static __device__ void fit_values(const page_work *w)
{
    const uint32_t v_dim = w->kind.v_dim, group = w->kind.layout.v_group;
    const uint32_t n_groups = div_up(v_dim, group), bits = bits_of(w->kind.layout.coding);
    for (uint32_t i = threadIdx.x; i < w->n_slots * n_groups; i += ENCODE_THREADS) {
        const uint32_t slot = i / n_groups, g = i % n_groups, first = g * group;
        const uint32_t end = v_dim - first < group ? v_dim : first + group;
        const uint8_t *row = value_row(w, slot);
        float min = INFINITY, max = -INFINITY;
        for (uint32_t c = first; c < end; c++)
            widen_range(cuda_load(row, w->kind.type, c), &min, &max);
        store_grid(stored_grid(min, max, bits), value_grid(w, slot), n_groups, g);
    }
}

/* Bytes of codes of all rows of keys. */
static __device__ void encode_keys(const page_work *w, const grid_pair *grids)
{
    const attn_layout *layout = &w->kind.layout;
    const uint32_t bits = bits_of(layout->coding), dim = w->kind.k_dim,
                   n_bytes = (dim * bits + 7) / 8;
    for (uint32_t i = threadIdx.x; i < w->n_slots * n_bytes; i += ENCODE_THREADS) {
        const uint32_t slot = i / n_bytes, at = i % n_bytes;
        const uint8_t *row = key_row(w, slot);
        uint32_t byte = 0;
        for (uint32_t e = 0; e < 8 / bits && at * 8 / bits + e < dim; e++) {
            const uint32_t c = channel_at(bits, dim, at * 8 / bits + e);
            byte |= code_of(grids[c], cuda_load(row, w->kind.type, c), bits) << e * bits;
        }
        w->task.page[layout->k_offset + static_cast<size_t>(slot) * layout->k_stride_bytes + at] =
            static_cast<uint8_t>(byte);
    }
}

static __device__ void encode_values(const page_work *w)
{
    const attn_layout *layout = &w->kind.layout;
    const uint32_t bits = bits_of(layout->coding), dim = w->kind.v_dim,
                   n_bytes = (dim * bits + 7) / 8, n_groups = div_up(dim, layout->v_group);
    for (uint32_t i = threadIdx.x; i < w->n_slots * n_bytes; i += ENCODE_THREADS) {
        const uint32_t slot = i / n_bytes, at = i % n_bytes;
        const uint8_t *row = value_row(w, slot);
        const uint16_t *grid = value_grid(w, slot);
        uint32_t byte = 0;
        for (uint32_t e = 0; e < 8 / bits && at * 8 / bits + e < dim; e++) {
            const uint32_t c = channel_at(bits, dim, at * 8 / bits + e);
            const grid_pair pair = load_grid(grid, n_groups, c / layout->v_group);
            byte |= code_of(pair, cuda_load(row, w->kind.type, c), bits) << e * bits;
        }
        w->task.page[layout->v_offset + static_cast<size_t>(slot) * layout->v_stride_bytes + at] =
            static_cast<uint8_t>(byte);
    }
}

/* ---- fp8 ----------------------------------------------------------------------------------------- */

/* As fp8_from_f32, of what is no NaN. */
static __device__ __forceinline__ uint8_t fp8_of(float x)
{
    const uint32_t bits = __float_as_uint(x), sign = bits >> 24 & 0x80u,
                   magnitude = bits & 0x7fffffffu;
    if (magnitude >= 0x43e00000u) return static_cast<uint8_t>(sign | 0x7eu);
    if (magnitude < 0x3c800000u) {
        const float units = rintf(__uint_as_float(magnitude) * 0x1p9f);
        return static_cast<uint8_t>(sign | static_cast<uint32_t>(units));
    }
    const uint32_t rounded = magnitude - (120u << 23) + 0x7ffffu + (magnitude >> 20 & 1u);
    return static_cast<uint8_t>(sign | rounded >> 20);
}

/* One scale for all; `max` is shared, a number a warp. */
static __device__ float fit_scale(const page_work *w, bool is_keys, float *max)
{
    const uint32_t dim = is_keys ? w->kind.k_dim : w->kind.v_dim;
    float most = 0;
    for (uint32_t i = threadIdx.x; i < w->n_slots * dim; i += ENCODE_THREADS) {
        const uint8_t *row = is_keys ? key_row(w, i / dim) : value_row(w, i / dim);
        const float x = fabsf(cuda_load(row, w->kind.type, i % dim));
        if (x > most && x <= 1e37f) most = x;
    }
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        most = fmaxf(most, __shfl_xor_sync(WARP_ALL, most, distance));
    if (threadIdx.x % WARP == 0) max[threadIdx.x / WARP] = most;
    __syncthreads();
    for (int i = 0; i < ENCODE_WARPS; i++)
        most = fmaxf(most, max[i]);
    __syncthreads(); /* the other side writes there, too */
    const float scale = __fdiv_rn(most, 448.0f);
    return scale > 0 ? scale : 1;
}

static __device__ void encode_fp8(const page_work *w, bool is_keys, float *max)
{
    const attn_layout *layout = &w->kind.layout;
    const uint32_t dim = is_keys ? w->kind.k_dim : w->kind.v_dim;
    const uint64_t grid_offset = is_keys ? layout->k_grid_offset : layout->v_grid_offset;
    const uint64_t offset = is_keys ? layout->k_offset : layout->v_offset;
    const uint32_t stride = is_keys ? layout->k_stride_bytes : layout->v_stride_bytes;
    const float scale = fit_scale(w, is_keys, max);
    if (threadIdx.x == 0) *reinterpret_cast<float *>(w->task.page + grid_offset) = scale;
    for (uint32_t i = threadIdx.x; i < w->n_slots * dim; i += ENCODE_THREADS) {
        const uint8_t *row = is_keys ? key_row(w, i / dim) : value_row(w, i / dim);
        const float x = cuda_load(row, w->kind.type, i % dim);
        w->task.page[offset + static_cast<size_t>(i / dim) * stride + i % dim] =
            isnan(x) ? uint8_t{0} : fp8_of(__fdiv_rn(x, scale));
    }
}

/* ---- boxes --------------------------------------------------------------------------------------- */

/* Channel c of slot i as attention reads it, rounded to the type: its bits, of bf16 the upper half. */
static __device__ uint32_t read_key(const page_work *w, const grid_pair *grids, uint32_t i,
                                    uint32_t c)
{
    const attn_layout *layout = &w->kind.layout;
    const uint8_t *codes =
        w->task.page + layout->k_offset + static_cast<size_t>(i) * layout->k_stride_bytes;
    float x;
    if (layout->coding == ATTN_PLAIN)
        return __float_as_uint(cuda_load(key_row(w, i), w->kind.type, c));
    if (layout->coding == ATTN_FP8) {
        const float scale = *reinterpret_cast<const float *>(w->task.page + layout->k_grid_offset);
        x = __fmul_rn(cuda_f32_from_fp8(codes[c]), scale);
    } else {
        const uint32_t bits = bits_of(layout->coding);
        const uint32_t n = 8 * ATTN_LOT_BYTES / bits, at = c % n;
        const bool is_in_lot = c < w->kind.k_dim - w->kind.k_dim % n;
        const uint32_t place =
            is_in_lot ? c - at + at % ATTN_LOT_WORDS * (n / ATTN_LOT_WORDS) + at / ATTN_LOT_WORDS
                      : c;
        const uint32_t code = codes[place * bits / 8] >> place * bits % 8 & ((1u << bits) - 1);
        x = __fadd_rn(__fmul_rn(static_cast<float>(code), grids[c].scale), grids[c].min);
    }
    if (w->kind.type == DTYPE_F32) return __float_as_uint(x);
    return static_cast<uint32_t>(cuda_bf16_from_f32(x)) << 16;
}

/* One step of the type; a finite number stays finite. `unit`: of the last bit. */
static __device__ __forceinline__ uint32_t next_number(uint32_t bits, uint32_t unit, bool is_up)
{
    if ((bits & 0x7fffffffu) == 0) return is_up ? unit : 0x80000000u | unit;
    const bool is_larger = (__uint_as_float(bits) > 0) == is_up;
    const uint32_t next = is_larger ? bits + unit : bits - unit;
    return (next & 0x7f800000u) == 0x7f800000u ? bits : next;
}

static __device__ __forceinline__ void put_bits(const page_work *w, uint8_t *to, uint32_t i,
                                                uint32_t bits)
{
    if (w->kind.type == DTYPE_F32) {
        reinterpret_cast<uint32_t *>(to)[i] = bits;
    } else {
        reinterpret_cast<uint16_t *>(to)[i] = static_cast<uint16_t>(bits >> 16);
    }
}

static __device__ void write_box(const page_work *w, const grid_pair *grids)
{
    const uint32_t k_dim = w->kind.k_dim, unit = w->kind.type == DTYPE_F32 ? 1 : 0x10000u;
    for (uint32_t c = threadIdx.x; c < k_dim; c += ENCODE_THREADS) {
        uint32_t low = 0, high = 0;
        for (uint32_t i = w->task.n_left_out; i < w->n_slots; i++) {
            const uint32_t bits = read_key(w, grids, i, c);
            const bool is_first = i == w->task.n_left_out;
            if (is_first || __uint_as_float(bits) < __uint_as_float(low)) low = bits;
            if (is_first || __uint_as_float(bits) > __uint_as_float(high)) high = bits;
        }
        if (w->kind.layout.coding != ATTN_PLAIN && w->task.n_left_out < w->n_slots) {
            low = next_number(low, unit, false);
            high = next_number(high, unit, true);
        }
        put_bits(w, w->task.box, c, low);
        put_bits(w, w->task.box, k_dim + c, high);
        if (w->task.copy == NULL) continue;
        put_bits(w, w->task.copy + w->kind.page_bytes, c, low);
        put_bits(w, w->task.copy + w->kind.page_bytes, k_dim + c, high);
    }
}

/* ---- pages --------------------------------------------------------------------------------------- */

static __global__ void encode_kernel(encode_pages_args args)
{
    CUDA_SHARED(grid_pair, grids); /* [k_dim], then float [ENCODE_WARPS] */
    page_work w;
    w.task = args.tasks[blockIdx.x];
    w.kind = args.kinds[w.task.kind];
    w.n_slots = w.task.run[0].n_slots + w.task.run[1].n_slots;
    float *max = reinterpret_cast<float *>(grids); /* fp8 has no grids */
    const attn_coding coding = w.kind.layout.coding;
    if (coding == ATTN_PLAIN) {
        copy_rows(&w);
    } else {
        for (uint32_t i = 16 * threadIdx.x; i < w.kind.page_bytes; i += 16 * ENCODE_THREADS)
            *reinterpret_cast<uint4 *>(w.task.page + i) = uint4{0, 0, 0, 0};
        __syncthreads();
    }
    if (coding == ATTN_FP8) {
        encode_fp8(&w, true, max);
        if (w.kind.has_values) encode_fp8(&w, false, max);
    } else if (coding != ATTN_PLAIN) {
        fit_keys(&w, grids);
        if (w.kind.has_values) fit_values(&w);
        __syncthreads();
        encode_keys(&w, grids);
        if (w.kind.has_values) encode_values(&w);
    }
    if (w.task.copy == NULL && w.task.box == NULL) return;
    __syncthreads();
    if (w.task.box != NULL) write_box(&w, grids);
    if (w.task.copy == NULL) return;
    for (uint32_t i = 16 * threadIdx.x; i < w.kind.page_bytes; i += 16 * ENCODE_THREADS)
        *reinterpret_cast<uint4 *>(w.task.copy + i) =
            *reinterpret_cast<const uint4 *>(w.task.page + i);
}

void encode_pages_cuda(dev_cuda *d, const encode_pages_args *args)
{
    const cuda_shape shape = {dim3(args->n_tasks), ENCODE_THREADS,
                              ATTN_CODED_DIM_MAX * sizeof(grid_pair)};
    if (args->n_tasks > 0) cuda_launch(d, shape, encode_kernel, *args);
}

/* ---- slots --------------------------------------------------------------------------------------- */

static __global__ void move_kernel(move_slots_args args, uint32_t n_parts)
{
    const move_task task = args.tasks[blockIdx.x / n_parts];
    const size_t first = static_cast<size_t>(blockIdx.x % n_parts) * MOVE_BYTES;
    const size_t end = args.bytes - first < MOVE_BYTES ? args.bytes : first + MOVE_BYTES;
    for (size_t i = first + 16 * threadIdx.x; i < end; i += 16 * ENCODE_THREADS)
        *reinterpret_cast<uint4 *>(task.to + i) = cuda_load16(task.from + i);
}

void move_slots_cuda(dev_cuda *d, const move_slots_args *args)
{
    const uint32_t n_parts = static_cast<uint32_t>((args->bytes + MOVE_BYTES - 1) / MOVE_BYTES);
    const uint32_t n = args->n_tasks * n_parts;
    assert(args->bytes % ENCODE_ALIGN == 0);
    const cuda_shape shape = {dim3(n), ENCODE_THREADS, 0};
    if (n > 0) cuda_launch(d, shape, move_kernel, *args, n_parts);
}
