/* kernels/dots_simd.c - the one dot product of all fast ops, in two shapes.
 *
 * dot(w, x): lane c of one vector adds w[c + i LANES] * x[c + i LANES] for i = 0, 1, 2..., by fused
 * multiply-add; a last part is filled up with zeros; vf_sum adds the lanes. Every shape below
 * computes exactly this for each (row, token), only several at once, so the shape never shows in
 * the bits:
 *
 *   direct  few tokens: rows are converted on the fly, and several rows hide the latency of the adds.
 *           This shape is bound by memory: for every line of a row that is used, a line of what comes
 *           later is asked for, in the order of memory. Left to the hardware, which sees several short
 *           rows at once, half of the bandwidth is reached
 *   packed  many tokens: K_BLOCK columns of ROW_BLOCK rows and of TOKEN_BLOCK tokens are copied (the
 *           rows converted) into panels that stay in L2, and TILE_ROWS x TILE_TOKENS accumulators
 *           run over them; between blocks of columns they wait in memory as whole vectors
 *
 * The tokens are copied too because the rows of x are often a power of two apart, and then share so
 * few sets of the cache that they evict each other. ROW_BLOCK is a multiple of the tiles of all
 * instruction sets. Stack: 330 KiB with 8 lanes, 430 KiB with 16. */
#ifndef KERNELS_DOTS_SIMD_H
#define KERNELS_DOTS_SIMD_H

#include "base/check.h"
#include "kernels/matmul.h"
#include "kernels/simd.h"
#include "kernels/simd_codes.h"
#include "kernels/simd_fp4.h"

enum {
    ROW_BLOCK = 48,
    TOKEN_BLOCK = 64,
    K_BLOCK = 512,
    TILE_TOKENS = 4,
    DIRECT_TOKENS_MAX = 4,
    DIRECT_ROWS_MAX = 60,
    DIRECT_TILE = 4,        /* rows of the tallest direct tile */
    AHEAD_BYTES = 12 << 10, /* of weights: the best of 1 to 32 KiB on Zen 4 */
    LINE_BYTES = 64
};
static_assert(ROW_BLOCK % TILE_ROWS == 0, "whole tiles");
static_assert(TOKEN_BLOCK % TILE_TOKENS == 0, "whole tiles");
static_assert(K_BLOCK % LANES == 0, "whole vectors");

typedef struct dots {
    const void *const *w;  /* [n_rows] first element of each row, stored as `type` */
    const float *const *x; /* [n_x] */
    float *out;            /* dot(w[r], x[t]) at out[r * dots_stride(n_x) + t] */
    const char *ahead;     /* direct: as many bytes as the rows have, to ask for meanwhile */
    uint32_t n_rows;       /* direct: any number; packed: up to ROW_BLOCK */
    uint32_t n_x;          /* up to TOKEN_BLOCK */
    uint32_t cols;
    dtype type;
    const void *const *scale; /* of types with scales: [n_rows] the first one of each row */
    uint32_t block_cols;      /* of a scale */
} dots;

enum { DOTS_OUT_FLOATS = ROW_BLOCK * TOKEN_BLOCK }; /* enough for DIRECT_ROWS_MAX rows, too */
static_assert((int)DIRECT_ROWS_MAX * (int)DIRECT_TOKENS_MAX <= (int)DOTS_OUT_FLOATS, "out");

static inline uint32_t dots_stride(uint32_t n_x)
{
    return n_x <= DIRECT_TOKENS_MAX ? n_x : TOKEN_BLOCK;
}

/* ---- weights with scales ----
 *
 * A code becomes the f32 that the definition rounds to, in one product: the factor that its bits lack goes
 * into the scale first, exactly as long as a scale of fp8 is below 256 (SCALE_BELOW; the loader looks). So
 * the bits of a product are those of the same weights in f32. */

/* Columns for whose whole number every scale stands; of fp8 a line. */
static ALWAYS_INLINE uint32_t group_cols(const dtype type)
{
    return type == DTYPE_FP8 ? SCALE_BLOCK : MX_BLOCK;
}
static_assert((int)SCALE_BLOCK == (int)LINE_BYTES, "a group of fp8 is a line");
static_assert((int)MX_BLOCK % (int)LANES == 0, "whole vectors");

/* What turns the codes of a block into weights: of fp8 a factor, of mxfp4 the values of all codes. */
static ALWAYS_INLINE vf load_factor(const void *scale, uint32_t block, const dtype type)
{
    if (type == DTYPE_FP8) return vf_set1(((const float *)scale)[block] * FP8_TINY_UNIT);
    const uint32_t code = ((const uint8_t *)scale)[block]; /* not 255: the loader looks */
    return vf_fp4_values(f32_from_bits(code << 23 | (uint32_t)(code == 0) << 22));
}

/* LANES weights of a row from column c on. */
static ALWAYS_INLINE vf load_scaled(const void *row, uint32_t c, vf factor, const dtype type)
{
    const char *at = (const char *)row + (type == DTYPE_MXFP4 ? c / 2 : c);
    return type == DTYPE_MXFP4 ? vf_load_fp4(at, factor) : vf_mul(vf_load_fp8_tiny(at), factor);
}

/* The first n < LANES of them, zeros behind; only rows of fp8 end inside a vector. */
static ALWAYS_INLINE vf load_scaled_part(const void *row, uint32_t c, uint32_t n, vf factor)
{
    char whole[LANES] = {0};
    memcpy(whole, (const char *)row + c, n);
    return load_scaled(whole, 0, factor, DTYPE_FP8);
}

/* ---- direct ---- */

/* acc[i][j] += w[i] * x[j], one vector each, s vectors behind the pointers. */
static ALWAYS_INLINE void direct_step(vf acc[DIRECT_TILE][DIRECT_TOKENS_MAX], const char *const *w,
                                      const float *const *x, size_t s, const int R, const int N,
                                      const dtype type)
{
    vf xs[DIRECT_TOKENS_MAX];
    UNROLL
    for (int j = 0; j < N; j++)
        xs[j] = vf_load(x[j] + s * LANES);
    UNROLL
    for (int i = 0; i < R; i++) {
        const vf ws = vf_load_as(w[i] + s * LANES * dtype_bytes(type), type);
        UNROLL
        for (int j = 0; j < N; j++)
            acc[i][j] = vf_fma(ws, xs[j], acc[i][j]);
    }
}

/* out[i * N + j] = the sum of acc[i][j]. */
static ALWAYS_INLINE void direct_sums(vf acc[DIRECT_TILE][DIRECT_TOKENS_MAX], float *out,
                                      const int R, const int N)
{
    int n = 0;
    UNROLL
    for (; n + 4 <= R * N; n += 4) {
        const vf four[4] = {acc[n / N][n % N], acc[(n + 1) / N][(n + 1) % N],
                            acc[(n + 2) / N][(n + 2) % N], acc[(n + 3) / N][(n + 3) % N]};
        vf_sum4(four, out + n);
    }
    UNROLL
    for (; n < R * N; n++)
        out[n] = vf_sum(acc[n / N][n % N]);
}

/* R rows from row r for all N tokens. R, N and type are constants after inlining. */
static ALWAYS_INLINE void direct_tile(const dots *d, uint32_t r, const int R, const int N,
                                      const dtype type)
{
    const uint32_t step_bytes = LANES * dtype_bytes(type), line_steps = LINE_BYTES / step_bytes;
    const uint32_t n_steps = d->cols / LANES, n_rest = d->cols % LANES;
    const char *w[DIRECT_TILE], *ahead = d->ahead + (size_t)r * d->cols * dtype_bytes(type);
    const float *x[DIRECT_TOKENS_MAX];
    vf acc[DIRECT_TILE][DIRECT_TOKENS_MAX];
    UNROLL
    for (int i = 0; i < R; i++) {
        w[i] = d->w[r + (uint32_t)i];
        UNROLL
        for (int j = 0; j < N; j++)
            acc[i][j] = vf_set1(0);
    }
    UNROLL
    for (int j = 0; j < N; j++)
        x[j] = d->x[j];
    size_t s = 0;
    for (; s + line_steps <= n_steps; s += line_steps, ahead += R * LINE_BYTES) {
        UNROLL
        for (int i = 0; i < R; i++)
            _mm_prefetch(ahead + i * LINE_BYTES, _MM_HINT_T0);
        for (uint32_t u = 0; u < line_steps; u++)
            direct_step(acc, w, x, s + u, R, N, type);
    }
    for (; s < n_steps; s++)
        direct_step(acc, w, x, s, R, N, type);
    UNROLL
    for (int i = 0; i < R && n_rest > 0; i++) {
        const vf ws = vf_load_part(w[i] + s * step_bytes, type, n_rest);
        UNROLL
        for (int j = 0; j < N; j++) {
            const vf xs = vf_load_part(x[j] + s * LANES, DTYPE_F32, n_rest);
            acc[i][j] = vf_fma(ws, xs, acc[i][j]);
        }
    }
    direct_sums(acc, d->out + (size_t)r * (size_t)N, R, N);
}

/* The rows and columns of a tile of weights with scales. */
typedef struct scaled_tile {
    const char *w[DIRECT_TILE];
    const float *x[DIRECT_TOKENS_MAX];
    vf factor[DIRECT_TILE]; /* of the block that is read */
} scaled_tile;

/* acc[i][j] += w[i] * x[j] for the vector from column c on; n > 0: only n columns of it are there. */
static ALWAYS_INLINE void scaled_step(vf acc[DIRECT_TILE][DIRECT_TOKENS_MAX], const scaled_tile *t,
                                      uint32_t c, uint32_t n, const int R, const int N,
                                      const dtype type)
{
    vf xs[DIRECT_TOKENS_MAX];
    UNROLL
    for (int j = 0; j < N; j++)
        xs[j] = n > 0 ? vf_load_part(t->x[j] + c, DTYPE_F32, n) : vf_load(t->x[j] + c);
    UNROLL
    for (int i = 0; i < R; i++) {
        const vf ws = n > 0 ? load_scaled_part(t->w[i], c, n, t->factor[i])
                            : load_scaled(t->w[i], c, t->factor[i], type);
        UNROLL
        for (int j = 0; j < N; j++)
            acc[i][j] = vf_fma(ws, xs[j], acc[i][j]);
    }
}

/* direct_tile of a type with scales: block by block of columns. */
static ALWAYS_INLINE void scaled_direct_tile(const dots *d, uint32_t r, const int R, const int N,
                                             const dtype type)
{
    const uint32_t group = group_cols(type), group_bytes = type == DTYPE_MXFP4 ? group / 2 : group;
    const char *ahead = d->ahead + r * dtype_row_bytes(type, d->cols);
    scaled_tile t;
    vf acc[DIRECT_TILE][DIRECT_TOKENS_MAX];
    UNROLL
    for (int i = 0; i < R; i++) {
        t.w[i] = d->w[r + (uint32_t)i];
        UNROLL
        for (int j = 0; j < N; j++)
            acc[i][j] = vf_set1(0);
    }
    UNROLL
    for (int j = 0; j < N; j++)
        t.x[j] = d->x[j];
    for (uint32_t c = 0, block = 0; c < d->cols; block++) {
        const uint32_t n_left = d->cols - c;
        const uint32_t end = c + (n_left < d->block_cols ? n_left : d->block_cols);
        UNROLL
        for (int i = 0; i < R; i++)
            t.factor[i] = load_factor(d->scale[r + (uint32_t)i], block, type);
        for (; c + group <= end; ahead += (uint32_t)R * group_bytes) {
            UNROLL
            for (uint32_t b = 0; b < (uint32_t)R * group_bytes; b += LINE_BYTES)
                _mm_prefetch(ahead + b, _MM_HINT_T0);
            UNROLL
            for (uint32_t g = 0; g < group; g += LANES, c += LANES)
                scaled_step(acc, &t, c, 0, R, N, type);
        }
        for (; c + LANES <= end; c += LANES)
            scaled_step(acc, &t, c, 0, R, N, type);
        if (c < end) scaled_step(acc, &t, c, end - c, R, N, type);
        c = end;
    }
    direct_sums(acc, d->out + (size_t)r * (size_t)N, R, N);
}

/* All rows: tiles of R, then single rows. */
static ALWAYS_INLINE void direct_rows(const dots *d, const int R, const int N, const dtype type)
{
    uint32_t r = 0;
    if (dtype_has_scales(type)) {
        for (; r + (uint32_t)R <= d->n_rows; r += (uint32_t)R)
            scaled_direct_tile(d, r, R, N, type);
        for (; r < d->n_rows; r++)
            scaled_direct_tile(d, r, 1, N, type);
        return;
    }
    for (; r + (uint32_t)R <= d->n_rows; r += (uint32_t)R)
        direct_tile(d, r, R, N, type);
    for (; r < d->n_rows; r++)
        direct_tile(d, r, 1, N, type);
}

/* At most 12 accumulators (16 registers). Few tokens need no more: memory is slower than that. */
static ALWAYS_INLINE void direct_typed(const dots *d, const dtype type)
{
    switch (d->n_x) {
    case 1: direct_rows(d, DIRECT_TILE, 1, type); break;
    case 2: direct_rows(d, DIRECT_TILE, 2, type); break;
    case 3: direct_rows(d, DIRECT_TILE, 3, type); break;
    case 4: direct_rows(d, 3, 4, type); break;
    default: assert(d->n_x == 0);
    }
}

static void dots_direct(const dots *d)
{
    switch (d->type) {
    case DTYPE_F32: direct_typed(d, DTYPE_F32); break;
    case DTYPE_BF16: direct_typed(d, DTYPE_BF16); break;
    case DTYPE_F16: direct_typed(d, DTYPE_F16); break;
    case DTYPE_FP8: direct_typed(d, DTYPE_FP8); break;
    case DTYPE_MXFP4: direct_typed(d, DTYPE_MXFP4); break;
    default: assert(false);
    }
}

/* ---- packed ---- */

enum {
    N_ROW_TILES = ROW_BLOCK / TILE_ROWS,
    N_TOKEN_TILES = TOKEN_BLOCK / TILE_TOKENS,
    TILE_FLOATS = TILE_ROWS * TILE_TOKENS * LANES
};

/* Panels are stored in the order in which a tile reads them: [k / LANES][tile][LANES]. */
typedef struct packed {
    float w[N_ROW_TILES][K_BLOCK * TILE_ROWS];
    float x[N_TOKEN_TILES][K_BLOCK * TILE_TOKENS];
    float acc[N_TOKEN_TILES][N_ROW_TILES][TILE_FLOATS]; /* [TILE_ROWS][TILE_TOKENS][LANES] */
} packed;

/* Columns [k, k + n) of one row to every `step`th vector of `panel`; a last part is zero-filled. The
 * columns after them are prefetched for the next panel: such short pieces of far apart rows are
 * nothing that the hardware foresees. */
static ALWAYS_INLINE void pack_row(float *panel, const int step, const void *row, uint32_t k,
                                   uint32_t n, const dtype type)
{
    const char *at = (const char *)row + (size_t)k * dtype_bytes(type);
    const char *next = at + (size_t)n * dtype_bytes(type);
    for (uint32_t i = 0; i + LANES <= n; i += LANES, panel += step * LANES) {
        vf_store(panel, vf_load_as(at + (size_t)i * dtype_bytes(type), type));
        _mm_prefetch(next + (size_t)i * dtype_bytes(type), _MM_HINT_T1);
    }
    const uint32_t n_rest = n % LANES;
    if (n_rest == 0) return;
    vf_store(panel, vf_load_part(at + (size_t)(n - n_rest) * dtype_bytes(type), type, n_rest));
}

/* pack_row of a type with scales. */
static ALWAYS_INLINE void pack_scaled_row(float *panel, const dots *d, uint32_t r, uint32_t k,
                                          uint32_t n, const dtype type)
{
    const char *const row = d->w[r];
    for (uint32_t c = k, block = k / d->block_cols; c < k + n; block++) {
        const uint32_t n_left = k + n - c, n_block = d->block_cols - c % d->block_cols;
        const uint32_t end = c + (n_left < n_block ? n_left : n_block);
        const vf factor = load_factor(d->scale[r], block, type);
        for (; c + LANES <= end; c += LANES, panel += TILE_ROWS * LANES) {
            vf_store(panel, load_scaled(row, c, factor, type));
            _mm_prefetch(row + dtype_row_bytes(type, c + n), _MM_HINT_T1);
        }
        if (c < end) vf_store(panel, load_scaled_part(row, c, end - c, factor));
        c = end;
    }
}

/* The last tile repeats the last row: its results are not read. */
static void pack_rows(packed *p, const dots *d, uint32_t k, uint32_t n)
{
    const uint32_t n_padded = (d->n_rows + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
    for (uint32_t r = 0; r < n_padded; r++) {
        const uint32_t from = r < d->n_rows ? r : d->n_rows - 1;
        const void *row = d->w[from];
        float *panel = p->w[r / TILE_ROWS] + (size_t)(r % TILE_ROWS) * LANES;
        switch (d->type) {
        case DTYPE_F32: pack_row(panel, TILE_ROWS, row, k, n, DTYPE_F32); break;
        case DTYPE_BF16: pack_row(panel, TILE_ROWS, row, k, n, DTYPE_BF16); break;
        case DTYPE_F16: pack_row(panel, TILE_ROWS, row, k, n, DTYPE_F16); break;
        case DTYPE_FP8: pack_scaled_row(panel, d, from, k, n, DTYPE_FP8); break;
        case DTYPE_MXFP4: pack_scaled_row(panel, d, from, k, n, DTYPE_MXFP4); break;
        default: assert(false);
        }
    }
}

static void pack_tokens(packed *p, const dots *d, uint32_t k, uint32_t n)
{
    const uint32_t n_padded = (d->n_x + TILE_TOKENS - 1) / TILE_TOKENS * TILE_TOKENS;
    for (uint32_t t = 0; t < n_padded; t++) {
        const float *row = d->x[t < d->n_x ? t : d->n_x - 1];
        float *panel = p->x[t / TILE_TOKENS] + (size_t)(t % TILE_TOKENS) * LANES;
        pack_row(panel, TILE_TOKENS, row, k, n, DTYPE_F32);
    }
}

/* n_steps vectors of one tile: acc[i][j] += w[i] * x[j]. */
static void run_tile(float *saved, const float *w, const float *x, uint32_t n_steps)
{
    vf acc[TILE_ROWS][TILE_TOKENS];
    UNROLL
    for (int i = 0; i < TILE_ROWS; i++) {
        UNROLL
        for (int j = 0; j < TILE_TOKENS; j++)
            acc[i][j] = vf_load(saved + (i * TILE_TOKENS + j) * LANES);
    }
    for (uint32_t s = 0; s < n_steps; s++, w += TILE_ROWS * LANES, x += TILE_TOKENS * LANES) {
        vf ws[TILE_ROWS];
        UNROLL
        for (int i = 0; i < TILE_ROWS; i++)
            ws[i] = vf_load(w + i * LANES);
        UNROLL
        for (int j = 0; j < TILE_TOKENS; j++) {
            const vf xs = vf_load(x + j * LANES);
            UNROLL
            for (int i = 0; i < TILE_ROWS; i++)
                acc[i][j] = vf_fma(ws[i], xs, acc[i][j]);
        }
    }
    UNROLL
    for (int i = 0; i < TILE_ROWS; i++) {
        UNROLL
        for (int j = 0; j < TILE_TOKENS; j++)
            vf_store(saved + (i * TILE_TOKENS + j) * LANES, acc[i][j]);
    }
}

/* out[r][t .. t + 3] of one row tile and one token tile. */
static void sum_tile(const packed *p, const dots *d, uint32_t token_tile, uint32_t row_tile)
{
    const uint32_t n_rows = d->n_rows - row_tile * TILE_ROWS;
    for (uint32_t i = 0; i < TILE_ROWS && i < n_rows; i++) {
        const float *acc = p->acc[token_tile][row_tile] + i * TILE_TOKENS * LANES;
        const vf four[4] = {vf_load(acc), vf_load(acc + LANES), vf_load(acc + 2 * LANES),
                            vf_load(acc + 3 * LANES)};
        const size_t r = (size_t)row_tile * TILE_ROWS + i;
        vf_sum4(four, d->out + r * TOKEN_BLOCK + (size_t)token_tile * TILE_TOKENS);
    }
}

static void dots_packed(const dots *d)
{
    packed p;
    const uint32_t n_row_tiles = (d->n_rows + TILE_ROWS - 1) / TILE_ROWS;
    const uint32_t n_token_tiles = (d->n_x + TILE_TOKENS - 1) / TILE_TOKENS;
    assert(d->n_rows <= ROW_BLOCK);
    assert(d->n_x <= TOKEN_BLOCK);
    memset(p.acc, 0, n_token_tiles * sizeof p.acc[0]);
    for (uint32_t k = 0; k < d->cols; k += K_BLOCK) {
        const uint32_t n = d->cols - k < K_BLOCK ? d->cols - k : K_BLOCK;
        pack_rows(&p, d, k, n);
        pack_tokens(&p, d, k, n);
        for (uint32_t t = 0; t < n_token_tiles; t++) { /* a token tile stays in L1 meanwhile */
            for (uint32_t r = 0; r < n_row_tiles; r++)
                run_tile(p.acc[t][r], p.w[r], p.x[t], (n + LANES - 1) / LANES);
        }
    }
    for (uint32_t t = 0; t < n_token_tiles; t++) {
        for (uint32_t r = 0; r < n_row_tiles; r++)
            sum_tile(&p, d, t, r);
    }
}

static void dots_run(const dots *d)
{
    if (d->n_x <= DIRECT_TOKENS_MAX) {
        dots_direct(d);
    } else {
        dots_packed(d);
    }
}

#endif
