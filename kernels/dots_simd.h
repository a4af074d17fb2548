/* kernels/dots_simd.h - the one dot product of all fast ops, in two shapes.
 *
 * dot(w, x): lane c of one vector adds w[c + i LANES] * x[c + i LANES] for i = 0, 1, 2..., by fused
 * multiply-add; a last part is filled up with zeros; vf_sum adds the lanes. Every shape below
 * computes exactly this for each (row, token), only several at once, so the shape never shows in
 * the bits:
 *
 *   direct  few tokens: rows are converted on the fly, several rows hide the latency of the adds,
 *           and the weights are prefetched, since this shape is bound by memory
 *   packed  many tokens: K_BLOCK columns of ROW_BLOCK rows are converted once into a panel that
 *           stays in L2, and TILE_ROWS x TILE_TOKENS accumulators run over it; between blocks of
 *           columns they wait in memory as whole vectors
 *
 * ROW_BLOCK is a multiple of the tiles of all instruction sets. Stack: about 150 KiB. */
#ifndef KERNELS_DOTS_SIMD_H
#define KERNELS_DOTS_SIMD_H

#include "base/check.h"
#include "kernels/simd.h"

enum {
    ROW_BLOCK = 24,
    TOKEN_BLOCK = 64,
    K_BLOCK = 512,
    TILE_TOKENS = 4,
    DIRECT_TOKENS_MAX = 4,
    DIRECT_ROWS = 8,      /* rows of the widest direct tile */
    PREFETCH_BYTES = 1024 /* ahead within each row: about the latency of memory at full rate */
};
static_assert(ROW_BLOCK % TILE_ROWS == 0, "whole tiles");
static_assert(TOKEN_BLOCK % TILE_TOKENS == 0, "whole tiles");
static_assert(K_BLOCK % LANES == 0, "whole vectors");

typedef struct dots {
    const void *const *w;  /* [n_rows] first element of each row, stored as `type` */
    const float *const *x; /* [n_x] */
    float *out;            /* dot(w[r], x[t]) at out[t * out_stride + r] */
    size_t out_stride;
    size_t row_bytes; /* distance of consecutive rows, for the prefetch across rows; or 0 */
    uint32_t n_rows, n_x, cols;
    dtype type;
} dots;

/* ---- direct ---- */

/* R rows x N tokens from row r, token t. R, N and type are constants after inlining. */
static ALWAYS_INLINE void direct_tile(const dots *d, uint32_t r, uint32_t t, const int R,
                                      const int N, const dtype type)
{
    const size_t step_bytes = (size_t)LANES * dtype_bytes(type);
    const uint32_t n_steps = d->cols / LANES, n_rest = d->cols % LANES;
    const char *w[DIRECT_ROWS];
    const float *x[DIRECT_TOKENS_MAX];
    vf acc[DIRECT_ROWS][DIRECT_TOKENS_MAX];
    UNROLL
    for (int i = 0; i < R; i++)
        w[i] = d->w[r + (uint32_t)i];
    UNROLL
    for (int j = 0; j < N; j++)
        x[j] = d->x[t + (uint32_t)j];
    UNROLL
    for (int i = 0; i < R; i++) {
        UNROLL
        for (int j = 0; j < N; j++)
            acc[i][j] = vf_set1(0);
    }
    /* Near the end of the rows, the prefetch goes to the rows of the next tile. */
    const uint32_t n_ahead = (uint32_t)(PREFETCH_BYTES / step_bytes);
    const uint32_t n_near = n_steps > n_ahead ? n_steps - n_ahead : 0;
    const size_t skip_bytes = d->row_bytes != 0 ? d->row_bytes * (size_t)(R - 1) : 0;
    size_t ahead_bytes = PREFETCH_BYTES;
    for (uint32_t s = 0, end = n_near;; end = n_steps, ahead_bytes += skip_bytes) {
        for (; s < end; s++) {
            vf xs[DIRECT_TOKENS_MAX];
            UNROLL
            for (int j = 0; j < N; j++)
                xs[j] = vf_load(x[j] + (size_t)s * LANES);
            UNROLL
            for (int i = 0; i < R; i++) {
                const char *at = w[i] + s * step_bytes;
                const vf ws = vf_load_as(at, type);
                _mm_prefetch(at + ahead_bytes, _MM_HINT_T0);
                UNROLL
                for (int j = 0; j < N; j++)
                    acc[i][j] = vf_fma(ws, xs[j], acc[i][j]);
            }
        }
        if (end == n_steps) break;
    }
    UNROLL
    for (int i = 0; i < R; i++) {
        UNROLL
        for (int j = 0; j < N; j++) {
            if (n_rest > 0) {
                const vf ws = vf_load_part(w[i] + n_steps * step_bytes, type, n_rest);
                const vf xs = vf_load_part(x[j] + (size_t)n_steps * LANES, DTYPE_F32, n_rest);
                acc[i][j] = vf_fma(ws, xs, acc[i][j]);
            }
            d->out[(t + (uint32_t)j) * d->out_stride + r + (uint32_t)i] = vf_sum(acc[i][j]);
        }
    }
}

/* All rows x N tokens from token t: tiles of R rows, then single rows. */
static ALWAYS_INLINE void direct_rows(const dots *d, uint32_t t, const int R, const int N,
                                      const dtype type)
{
    uint32_t r = 0;
    for (; r + (uint32_t)R <= d->n_rows; r += (uint32_t)R)
        direct_tile(d, r, t, R, N, type);
    for (; r < d->n_rows; r++)
        direct_tile(d, r, t, 1, N, type);
}

/* At least 8 accumulators: two adds a cycle, four cycles each. */
static ALWAYS_INLINE void direct_typed(const dots *d, const dtype type)
{
    uint32_t t = 0;
    for (; t + 4 <= d->n_x; t += 4)
        direct_rows(d, t, 2, 4, type);
    switch (d->n_x - t) {
    case 1: direct_rows(d, t, DIRECT_ROWS, 1, type); break;
    case 2: direct_rows(d, t, 4, 2, type); break;
    case 3: direct_rows(d, t, 4, 3, type); break;
    default: break;
    }
}

static void dots_direct(const dots *d)
{
    switch (d->type) {
    case DTYPE_F32: direct_typed(d, DTYPE_F32); break;
    case DTYPE_BF16: direct_typed(d, DTYPE_BF16); break;
    case DTYPE_F16: direct_typed(d, DTYPE_F16); break;
    default: assert(false);
    }
}

/* ---- packed ---- */

enum {
    N_ROW_TILES = ROW_BLOCK / TILE_ROWS,
    N_TOKEN_TILES = TOKEN_BLOCK / TILE_TOKENS,
    TILE_FLOATS = TILE_ROWS * TILE_TOKENS * LANES
};

typedef struct packed {
    float panel[N_ROW_TILES][K_BLOCK * TILE_ROWS];      /* [k / LANES][TILE_ROWS][LANES] */
    float acc[N_TOKEN_TILES][N_ROW_TILES][TILE_FLOATS]; /* [TILE_TOKENS][TILE_ROWS][LANES] */
    float rest[TOKEN_BLOCK][LANES];                     /* the last columns of x, zero-filled */
} packed;

/* Columns [k, k + n) of one row into its place of the panel; a last part is filled with zeros. */
static ALWAYS_INLINE void pack_row(float *panel, const void *w, uint32_t k, uint32_t n,
                                   const dtype type)
{
    const char *at = (const char *)w + (size_t)k * dtype_bytes(type);
    for (uint32_t i = 0; i + LANES <= n; i += LANES, panel += TILE_ROWS * LANES)
        vf_store(panel, vf_load_as(at + (size_t)i * dtype_bytes(type), type));
    const uint32_t n_rest = n % LANES;
    if (n_rest == 0) return;
    vf_store(panel, vf_load_part(at + (size_t)(n - n_rest) * dtype_bytes(type), type, n_rest));
}

/* The last tile repeats the last row: its results are not read. */
static void pack_panel(packed *p, const dots *d, uint32_t k, uint32_t n)
{
    const uint32_t n_padded = (d->n_rows + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
    for (uint32_t r = 0; r < n_padded; r++) {
        const void *w = d->w[r < d->n_rows ? r : d->n_rows - 1];
        float *panel = p->panel[r / TILE_ROWS] + (size_t)(r % TILE_ROWS) * LANES;
        switch (d->type) {
        case DTYPE_F32: pack_row(panel, w, k, n, DTYPE_F32); break;
        case DTYPE_BF16: pack_row(panel, w, k, n, DTYPE_BF16); break;
        case DTYPE_F16: pack_row(panel, w, k, n, DTYPE_F16); break;
        default: assert(false);
        }
    }
}

/* One step of a tile: acc[j][i] += w[i] * x[j]. */
static ALWAYS_INLINE void tile_step(vf acc[TILE_TOKENS][TILE_ROWS], const float *panel,
                                    const float *const *x, size_t at)
{
    vf w[TILE_ROWS];
    UNROLL
    for (int i = 0; i < TILE_ROWS; i++)
        w[i] = vf_load(panel + i * LANES);
    UNROLL
    for (int j = 0; j < TILE_TOKENS; j++) {
        const vf xs = vf_load(x[j] + at);
        UNROLL
        for (int i = 0; i < TILE_ROWS; i++)
            acc[j][i] = vf_fma(w[i], xs, acc[j][i]);
    }
}

/* n_steps whole vectors of x from column k, then `rest` (the zero-filled end of x) if given. */
static void run_tile(float *saved, const float *panel, const float *const *x, size_t k,
                     uint32_t n_steps, const float *const *rest)
{
    vf acc[TILE_TOKENS][TILE_ROWS];
    UNROLL
    for (int j = 0; j < TILE_TOKENS; j++) {
        UNROLL
        for (int i = 0; i < TILE_ROWS; i++)
            acc[j][i] = vf_load(saved + (j * TILE_ROWS + i) * LANES);
    }
    for (uint32_t s = 0; s < n_steps; s++, panel += TILE_ROWS * LANES, k += LANES)
        tile_step(acc, panel, x, k);
    if (rest != NULL) tile_step(acc, panel, rest, 0);
    UNROLL
    for (int j = 0; j < TILE_TOKENS; j++) {
        UNROLL
        for (int i = 0; i < TILE_ROWS; i++)
            vf_store(saved + (j * TILE_ROWS + i) * LANES, acc[j][i]);
    }
}

/* All tiles over columns [k, k + n) of the panel. A token tile's inputs stay in L1 meanwhile. */
static void run_panel(packed *p, const dots *d, uint32_t k, uint32_t n)
{
    const uint32_t n_row_tiles = (d->n_rows + TILE_ROWS - 1) / TILE_ROWS;
    for (uint32_t t = 0; t < d->n_x; t += TILE_TOKENS) {
        const float *x[TILE_TOKENS], *rest[TILE_TOKENS];
        for (uint32_t j = 0; j < TILE_TOKENS; j++) { /* the last tile repeats the last token */
            const uint32_t token = t + j < d->n_x ? t + j : d->n_x - 1;
            x[j] = d->x[token];
            rest[j] = p->rest[token];
        }
        for (uint32_t r = 0; r < n_row_tiles; r++) {
            run_tile(p->acc[t / TILE_TOKENS][r], p->panel[r], x, k, n / LANES,
                     n % LANES != 0 ? rest : NULL);
        }
    }
}

static void dots_packed(const dots *d)
{
    packed p;
    const uint32_t n_token_tiles = (d->n_x + TILE_TOKENS - 1) / TILE_TOKENS;
    const uint32_t n_rest = d->cols % LANES;
    memset(p.acc, 0, n_token_tiles * sizeof p.acc[0]);
    for (uint32_t t = 0; t < d->n_x && n_rest > 0; t++)
        vf_store(p.rest[t], vf_load_part(d->x[t] + (d->cols - n_rest), DTYPE_F32, n_rest));
    for (uint32_t k = 0; k < d->cols; k += K_BLOCK) {
        const uint32_t n = d->cols - k < K_BLOCK ? d->cols - k : K_BLOCK;
        pack_panel(&p, d, k, n);
        run_panel(&p, d, k, n);
    }
    for (uint32_t t = 0; t < d->n_x; t++) {
        for (uint32_t r = 0; r < d->n_rows; r++) {
            const float *acc = p.acc[t / TILE_TOKENS][r / TILE_ROWS];
            const uint32_t at = (t % TILE_TOKENS * TILE_ROWS + r % TILE_ROWS) * LANES;
            d->out[t * d->out_stride + r] = vf_sum(vf_load(acc + at));
        }
    }
}

/* ---- both ---- */

/* n_rows <= ROW_BLOCK and n_x <= TOKEN_BLOCK unless n_x <= DIRECT_TOKENS_MAX. */
static void dots_run(const dots *d)
{
    if (d->n_x <= DIRECT_TOKENS_MAX) {
        dots_direct(d);
        return;
    }
    assert(d->n_rows <= ROW_BLOCK);
    assert(d->n_x <= TOKEN_BLOCK);
    dots_packed(d);
}

#endif
