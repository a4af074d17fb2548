/* kernels/attention_coded_simd.c - encoded runs; part of attention_simd.c, which includes it.
 *
 * Codes are turned into floats in registers and never scaled there: scales and minima leave the sums.
 * Of a key, with the grid of the page taken into the query once per row and page,
 *     q . k_t = sum_c (q_c s_c) code_tc + sum_c q_c m_c
 * and of values see attention_coded_values_simd.c. Every sum has one order: lanes along channels as in
 * dots_simd.c, slots one after the other. A masked slot has p = 0 and adds zero. */

#include "kernels/attention_coded_values_simd.c"

/* A run against up to ATTN_ROWS rows. */
typedef struct coded_query {
    float q[ATTN_ROWS][ATTN_CODED_DIM_MAX]; /* q_c s_c, times lot_unit in lots */
    vf base[ATTN_ROWS]; /* sum q_c m_c, lane by lane: where each product begins */
} coded_query;

/* LANES channels from c into the query of N rows, and into sum. */
static ALWAYS_INLINE void take_channels(const row_set *r, uint32_t c, vf s, vf m, coded_query *out,
                                        vf *sum, const int N)
{
    UNROLL
    for (int j = 0; j < N; j++) {
        const vf x = vf_load(r->q[j] + c);
        sum[j] = vf_fma(x, m, sum[j]);
        vf_store(out->q[j] + c, vf_mul(x, s));
    }
}

/* The same for the last n < LANES channels. */
static ALWAYS_INLINE void take_rest(const row_set *r, uint32_t c, uint32_t n, vf s, vf m,
                                    coded_query *out, vf *sum, const int N)
{
    for (int j = 0; j < N; j++) {
        const vf x = vf_load_part(r->q[j] + c, DTYPE_F32, n);
        sum[j] = vf_fma(x, m, sum[j]);
        vf_store_part(out->q[j] + c, vf_mul(x, s), n);
    }
}

/* fp8 has one scale, and the minimum is 0. */
static ALWAYS_INLINE void take_fp8(uint32_t k_dim, const attn_span *span, const row_set *r,
                                   coded_query *out, vf *sum, const int N)
{
    float one;
    memcpy(&one, span->k_grid, sizeof one);
    uint32_t c = 0;
    for (; c + LANES <= k_dim; c += LANES)
        take_channels(r, c, vf_set1(one), vf_set1(0), out, sum, N);
    if (c < k_dim) take_rest(r, c, k_dim - c, vf_set1(one), vf_set1(0), out, sum, N);
}

/* next: the span whose grid is asked for meanwhile. */
static ALWAYS_INLINE void take_int(uint32_t k_dim, const attn_span *span, const attn_span *next,
                                   const row_set *r, coded_query *out, vf *sum, const int N,
                                   const attn_coding coding)
{
    const uint32_t n_lot = attn_lot_channels(coding), lots_end = attn_lots_end(coding, k_dim);
    const uint16_t *grid = span->k_grid, *min = grid + k_dim;
    uint32_t c = 0;
    prefetch_bytes(next->k_grid, (size_t)2 * k_dim * sizeof *grid);
    for (; c < lots_end; c += n_lot) {
        UNROLL
        for (uint32_t i = 0; i < n_lot; i += LANES) {
            const vf s = vf_mul(vf_load_bf16(grid + c + i), lot_unit(attn_code_bits(coding), i));
            take_channels(r, c + i, s, vf_load_bf16(min + c + i), out, sum, N);
        }
    }
    for (; c + LANES <= k_dim; c += LANES)
        take_channels(r, c, vf_load_bf16(grid + c), vf_load_bf16(min + c), out, sum, N);
    if (c == k_dim) return;
    take_rest(r, c, k_dim - c, vf_load_part(grid + c, DTYPE_BF16, k_dim - c),
              vf_load_part(min + c, DTYPE_BF16, k_dim - c), out, sum, N);
}

static ALWAYS_INLINE void take_grid(uint32_t k_dim, const attn_span *span, const attn_span *next,
                                    const row_set *r, coded_query *out, const int N,
                                    const attn_coding coding)
{
    vf sum[ATTN_ROWS];
    UNROLL
    for (int j = 0; j < N; j++)
        sum[j] = vf_set1(0);
    if (coding == ATTN_FP8) {
        take_fp8(k_dim, span, r, out, sum, N);
    } else {
        take_int(k_dim, span, next, r, out, sum, N, coding);
    }
    UNROLL
    for (int j = 0; j < N; j++)
        out->base[j] = sum[j];
}

/* Keys of n slots against a prepared query: out[slot][n rows]. */
typedef struct coded_keys {
    const void *const *k;
    const coded_query *q;
    float *out;
    uint32_t n_slots, k_dim;
    const attn_span *next; /* to ask for meanwhile: the span that follows, or this one again */
    uint32_t k_stride_bytes;
} coded_keys;

/* R slots from slot i for all N rows. R, N and coding are constants after inlining. */
static ALWAYS_INLINE void score_tile(const coded_keys *t, uint32_t i, const int R, const int N,
                                     const attn_coding coding)
{
    vf acc[DIRECT_TILE][DIRECT_TOKENS_MAX];
    UNROLL
    for (int r = 0; r < R; r++) {
        UNROLL
        for (int j = 0; j < N; j++)
            acc[r][j] = t->q->base[j];
    }
    const uint32_t bits = attn_code_bits(coding), n_lot = attn_lot_channels(coding);
    const uint32_t lots_end = attn_lots_end(coding, t->k_dim);
    for (uint32_t at = 0; at < t->k_stride_bytes; at += LINE_BYTES) {
        UNROLL
        for (int r = 0; r < R; r++)
            _mm_prefetch((const char *)t->next->k + (size_t)(i + (uint32_t)r) * t->k_stride_bytes +
                             at,
                         _MM_HINT_T0);
    }
    uint32_t c = 0;
    for (; c < lots_end; c += n_lot) {
        UNROLL
        for (uint32_t l = 0; l < n_lot; l += LANES) {
            UNROLL
            for (int r = 0; r < R; r++) {
                const char *row = t->k[i + (uint32_t)r];
                const vf code = lot_codes(row + (size_t)c * bits / 8, bits, l);
                UNROLL
                for (int j = 0; j < N; j++)
                    acc[r][j] = vf_fma(code, vf_load(t->q->q[j] + c + l), acc[r][j]);
            }
        }
    }
    for (; c + LANES <= t->k_dim; c += LANES) {
        vf q[DIRECT_TOKENS_MAX];
        UNROLL
        for (int j = 0; j < N; j++)
            q[j] = vf_load(t->q->q[j] + c);
        UNROLL
        for (int r = 0; r < R; r++) {
            const vf code = load_codes(t->k[i + (uint32_t)r], c, 0, coding);
            UNROLL
            for (int j = 0; j < N; j++)
                acc[r][j] = vf_fma(code, q[j], acc[r][j]);
        }
    }
    const uint32_t n_rest = t->k_dim - c;
    UNROLL
    for (int r = 0; r < R && n_rest > 0; r++) {
        const vf code = load_codes(t->k[i + (uint32_t)r], c, n_rest, coding);
        UNROLL
        for (int j = 0; j < N; j++)
            acc[r][j] = vf_fma(code, vf_load_part(t->q->q[j] + c, DTYPE_F32, n_rest), acc[r][j]);
    }
    direct_sums(acc, t->out + (size_t)i * (size_t)N, R, N);
}

/* Tiles of R slots, then single slots. */
static ALWAYS_INLINE void score_slots(coded_keys *t, const attn_span *span, const row_set *r,
                                      const int R, const int N, const attn_coding coding)
{
    coded_query q;
    uint32_t i = 0;
    take_grid(t->k_dim, span, t->next, r, &q, N, coding);
    t->q = &q;
    for (; i + (uint32_t)R <= t->n_slots; i += (uint32_t)R)
        score_tile(t, i, R, N, coding);
    for (; i < t->n_slots; i++)
        score_tile(t, i, 1, N, coding);
}

static ALWAYS_INLINE void score_rows_of(coded_keys *t, const attn_span *span, const row_set *r,
                                        const attn_coding coding)
{
    switch (r->n) {
    case 1: score_slots(t, span, r, 4, 1, coding); break;
    case 2: score_slots(t, span, r, 4, 2, coding); break;
    case 3: score_slots(t, span, r, 2, 3, coding); break;
    case 4: score_slots(t, span, r, 2, 4, coding); break;
    default: assert(false);
    }
}

/* A function for each coding: one for all would be too long to compile under sanitizers. */
#define CODING_LIST(X) X(fp8, ATTN_FP8) X(int8, ATTN_INT8) X(int4, ATTN_INT4) X(int2, ATTN_INT2)
#define X(name, coding)                                                                      \
    static __attribute__((noinline)) void score_##name(coded_keys *t, const attn_span *span, \
                                                       const row_set *r)                     \
    {                                                                                        \
        score_rows_of(t, span, r, coding);                                                   \
    }                                                                                        \
    static __attribute__((noinline)) void fold_##name(const coded_fold *f, uint32_t n_rows)  \
    {                                                                                        \
        fold_codes(f, n_rows, coding);                                                       \
    }
CODING_LIST(X)
#undef X

static void score_coded(const attn_query *query, const slot_set *s, const slot_run *run,
                        const row_set *r, float *out)
{
    assert(query->k_dim <= ATTN_CODED_DIM_MAX);
    coded_keys t = {.k = s->k + run->first,
                    .out = out,
                    .n_slots = run->n,
                    .k_dim = query->k_dim,
                    .next = s->next != NULL ? s->next : run->coded,
                    .k_stride_bytes = run->coded->k_stride_bytes};
    switch (run->coded->coding) {
#define X(name, coding) \
    case coding: score_##name(&t, run->coded, r); break;
        CODING_LIST(X)
#undef X
    default: assert(false);
    }
}

static void weigh_coded(const slot_set *s, const slot_run *run, const float *p, uint32_t n_rows,
                        coded_weights *out)
{
    if (run->coded->coding == ATTN_FP8 || run->coded->v_group == 0) {
        weigh_alike(run, p, n_rows, out);
        return;
    }
    switch (n_rows) {
    case 1: weigh_run(s, run, p, out, 1); break;
    case 2: weigh_run(s, run, p, out, 2); break;
    case 3: weigh_run(s, run, p, out, 3); break;
    case 4: weigh_run(s, run, p, out, 4); break;
    default: assert(false);
    }
}

/* fp8 and latents have one group of all channels. */
static void list_groups(const attn_query *query, const attn_span *span, coded_weights *out)
{
    const bool is_one = span->coding == ATTN_FP8 || span->v_group == 0;
    const uint32_t v_group = is_one ? ATTN_CODED_DIM_MAX : span->v_group;
    assert(v_group % ATTN_GROUP_MIN == 0);
    out->n_groups = 0;
    for (uint32_t c = 0, end = 0; c < query->v_dim; c += ATTN_GROUP_MIN) {
        if (c == end) {
            out->n_groups++;
            end += v_group;
        }
        out->group[c / ATTN_GROUP_MIN] = (uint8_t)(out->n_groups - 1);
    }
    out->n_wide = (out->n_groups + 3) / 4 * 4;
}

static void fold_coded(const attn_query *query, const slot_set *s, const slot_run *run,
                       uint32_t n_rows, const partial *part, float *const *acc)
{
    coded_weights w;
    assert(query->v_dim <= ATTN_CODED_DIM_MAX);
    list_groups(query, run->coded, &w);
    weigh_coded(s, run, part->p + (size_t)run->first * row_width(n_rows), n_rows, &w);
    const attn_span *span = run->coded;
    const bool is_latent = span->coding != ATTN_FP8 && span->v_group == 0;
    const coded_fold f = {
        .v = s->v + run->first,
        .channels = is_latent ? span->v_grid : NULL,
        .row_dim = attn_value_row_dim(span->coding, span->v_group, query->k_dim, query->v_dim),
        .w = &w,
        .n_slots = run->n,
        .v_dim = query->v_dim,
        .ahead = s->next != NULL ? s->next->v : s->v[run->first],
        .v_stride_bytes = run->coded->v_stride_bytes,
        .kept = part->kept,
        .added = part->added,
        .acc = acc};
    switch (run->coded->coding) {
#define X(name, coding) \
    case coding: fold_##name(&f, n_rows); break;
        CODING_LIST(X)
#undef X
    default: assert(false);
    }
}
