/* kernels/attention_coded_simd.c - encoded runs; part of attention_simd.c, which includes it.
 *
 * Codes are turned into floats in registers and never scaled there: scales and minima leave the sums.
 * Of a key, with the grid of the page taken into the query once per row and page,
 *     q . k_t = sum_c (q_c s_c) code_tc + sum_c q_c m_c
 * and of a value, group by group of its channels,
 *     sum_t p_t v_tc = sum_t (p_t s_t) code_tc + sum_t p_t m_t
 * where p_t s_t and the last sum serve all channels of a group. Every sum has one order: lanes along
 * channels as in dots_simd.c, slots one after the other. A masked slot has p = 0 and adds zero. */

/* A run against up to ATTN_ROWS rows. */
typedef struct coded_query {
    float q[ATTN_ROWS][ATTN_CODED_DIM_MAX]; /* q_c s_c */
    float base[ATTN_ROWS];                  /* sum q_c m_c */
} coded_query;

/* fp8 has one scale, and the minimum is 0. */
static void take_grid(const attn_query *query, const attn_span *span, const row_set *r,
                      coded_query *out)
{
    assert(query->k_dim <= ATTN_CODED_DIM_MAX);
    const uint16_t *grid = span->k_grid;
    float one;
    memcpy(&one, span->k_grid, sizeof one);
    for (uint32_t j = 0; j < r->n; j++) {
        vf sum = vf_set1(0);
        for (uint32_t c = 0; c < query->k_dim; c += LANES) {
            const uint32_t n_rest = query->k_dim - c < LANES ? query->k_dim - c : 0;
            vf s = vf_set1(one), m = vf_set1(0);
            if (span->coding != ATTN_FP8) {
                const uint16_t *min = grid + query->k_dim;
                s = n_rest > 0 ? vf_load_part(grid + c, DTYPE_BF16, n_rest)
                               : vf_load_bf16(grid + c);
                m = n_rest > 0 ? vf_load_part(min + c, DTYPE_BF16, n_rest) : vf_load_bf16(min + c);
            }
            const float *q = r->q[j] + c;
            const vf x = n_rest > 0 ? vf_load_part(q, DTYPE_F32, n_rest) : vf_load(q);
            sum = vf_fma(x, m, sum);
            if (n_rest > 0) {
                vf_store_part(out->q[j] + c, vf_mul(x, s), n_rest);
            } else {
                vf_store(out->q[j] + c, vf_mul(x, s));
            }
        }
        out->base[j] = vf_sum(sum);
    }
}

/* Keys of n slots against a prepared query: out[slot][n rows]. */
typedef struct coded_keys {
    const void *const *k;
    const coded_query *q;
    float *out;
    uint32_t n_slots, k_dim;
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
            acc[r][j] = vf_set1(0);
    }
    uint32_t c = 0;
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
    float *out = t->out + (size_t)i * (size_t)N;
    direct_sums(acc, out, R, N);
    for (int n = 0; n < R * N; n++)
        out[n] += t->q->base[n % N];
}

/* Tiles of R slots, then single slots. */
static ALWAYS_INLINE void score_slots(const coded_keys *t, const int R, const int N,
                                      const attn_coding coding)
{
    uint32_t i = 0;
    for (; i + (uint32_t)R <= t->n_slots; i += (uint32_t)R)
        score_tile(t, i, R, N, coding);
    for (; i < t->n_slots; i++)
        score_tile(t, i, 1, N, coding);
}

static ALWAYS_INLINE void score_rows_of(const coded_keys *t, uint32_t n_rows,
                                        const attn_coding coding)
{
    switch (n_rows) {
    case 1: score_slots(t, 4, 1, coding); break;
    case 2: score_slots(t, 4, 2, coding); break;
    case 3: score_slots(t, 2, 3, coding); break;
    case 4: score_slots(t, 2, 4, coding); break;
    default: assert(false);
    }
}

/* A function for each coding: one for all would be too long to compile under sanitizers. */
#define CODING_LIST(X) X(fp8, ATTN_FP8) X(int8, ATTN_INT8) X(int4, ATTN_INT4) X(int2, ATTN_INT2)
#define X(name, coding)                                                                          \
    static __attribute__((noinline)) void score_##name(const coded_keys *t, uint32_t n_rows)     \
    {                                                                                            \
        score_rows_of(t, n_rows, coding);                                                        \
    }                                                                                            \
    static __attribute__((noinline)) void fold_##name(const v_fold *f, uint32_t c, uint32_t end, \
                                                      uint32_t n_rows)                           \
    {                                                                                            \
        fold_values(f, c, end, n_rows, coding, DTYPE_F32);                                       \
    }
CODING_LIST(X)
#undef X

static void score_coded(const attn_query *query, const slot_set *s, const slot_run *run,
                        const row_set *r, float *out)
{
    coded_query q;
    take_grid(query, run->coded, r, &q);
    const coded_keys t = {
        .k = s->k + run->first, .q = &q, .out = out, .n_slots = run->n, .k_dim = query->k_dim};
    switch (run->coded->coding) {
#define X(name, coding) \
    case coding: score_##name(&t, r->n); break;
        CODING_LIST(X)
#undef X
    default: assert(false);
    }
}

/* p of one group, and what its minima add. */
typedef struct coded_weights {
    float p[ATTN_BLOCK_SLOTS_MAX * ATTN_ROWS]; /* p s */
    float shift[ATTN_ROWS];                    /* sum p m */
} coded_weights;

static void weigh_group(const slot_set *s, const slot_run *run, uint32_t group, uint32_t n_groups,
                        const float *p, coded_weights *out)
{
    four shift = {0}, weights;
    for (uint32_t i = 0; i < run->n; i++) {
        float scale, min = 0;
        if (run->coded->coding == ATTN_FP8) {
            memcpy(&scale, run->coded->v_grid, sizeof scale);
        } else {
            const uint16_t *grid = s->v_grid[run->first + i];
            scale = f32_from_bf16(grid[group]);
            min = f32_from_bf16(grid[n_groups + group]);
        }
        memcpy(&weights, p + i * ATTN_ROWS, sizeof weights);
        shift += weights * min;
        weights *= scale;
        memcpy(out->p + i * ATTN_ROWS, &weights, sizeof weights);
    }
    memcpy(out->shift, &shift, sizeof shift);
}

static void fold_coded(const attn_query *query, const slot_set *s, const slot_run *run,
                       uint32_t n_rows, const partial *part, float *const *acc)
{
    const uint32_t v_group = run->coded->v_group;
    const uint32_t n_groups = (query->v_dim + v_group - 1) / v_group;
    coded_weights w;
    const v_fold f = {.v = s->v + run->first,
                      .p = w.p,
                      .n_slots = run->n,
                      .kept = part->kept,
                      .added = part->added,
                      .shift = w.shift,
                      .acc = acc};
    assert(v_group % ATTN_GROUP_MIN == 0);
    for (uint32_t g = 0; g < n_groups; g++) {
        const uint32_t c = g * v_group;
        const uint32_t end = c + v_group < query->v_dim ? c + v_group : query->v_dim;
        weigh_group(s, run, g, n_groups, part->p + (size_t)run->first * ATTN_ROWS, &w);
        switch (run->coded->coding) {
#define X(name, coding) \
    case coding: fold_##name(&f, c, end, n_rows); break;
            CODING_LIST(X)
#undef X
        default: assert(false);
        }
    }
}
