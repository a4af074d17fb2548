/* kernels/attention_coded_values_simd.c - the fold of encoded values; part of attention_coded_simd.c, which
 * includes it.
 *
 *     sum_t p_t v_tc = sum_t (p_t s_t) code_tc + sum_t p_t m_t
 * with s and m of the channel's group: p_t s_t and the last sum serve all its channels, and are made
 * for four groups at once. Tiles are those of plain values, of channels that lie in lots or in order.
 *
 * A latent's channels have scales of their own, for all slots of the page:
 *     sum_t p_t v_tc = s_c sum_t p_t code_tc + m_c sum_t p_t
 * so there is one group with a scale of 1, and s_c and m_c come in where a tile's sums leave it. */

enum { ATTN_GROUPS_MAX = ATTN_CODED_DIM_MAX / ATTN_GROUP_MIN };
static_assert(ATTN_GROUPS_MAX % 4 == 0, "whole fours");
static_assert((int)ATTN_GROUP_MIN % (int)LANES == 0, "a vector has one group");

/* The weights of a run, in rows of n_wide groups: n_groups, and zeros up to whole fours. */
typedef struct coded_weights {
    float
        p[ATTN_BLOCK_SLOTS_MAX * ATTN_ROWS * ATTN_GROUPS_MAX]; /* [n_slots][n_rows][n_wide]: p s */
    float shift[ATTN_ROWS * ATTN_GROUPS_MAX];                  /* [n_rows][n_wide]: sum p m */
    uint8_t group[ATTN_GROUPS_MAX];                            /* of channels 16 i .. 16 i + 15 */
    uint32_t n_groups, n_wide;
} coded_weights;

/* n bf16, and zeros. */
static ALWAYS_INLINE four load_four(const uint16_t *p, const uint32_t n)
{
    uint64_t half = 0;
    memcpy(&half, p, n * sizeof *p);
    return (four)_mm_slli_epi32(_mm_cvtepu16_epi32(_mm_cvtsi64_si128((long long)half)), 16);
}

/* n groups from g of R rows. p is [n_slots][row_width]. */
static ALWAYS_INLINE void weigh_groups(const slot_set *s, const slot_run *run, const float *p,
                                       uint32_t g, coded_weights *out, const uint32_t n,
                                       const int R)
{
    const void *const *grids = s->v_grid + run->first;
    const attn_span *next = s->next != NULL ? s->next : run->coded; /* to ask for meanwhile */
    const char *ahead = next->v_grid;
    const uint32_t n_slots = run->n, n_groups = out->n_groups, n_wide = out->n_wide;
    four shift[ATTN_ROWS] = {{0}};
    float *to = out->p + g;
    for (uint32_t i = 0; i < n_slots; i++, p += row_width((uint32_t)R)) {
        const uint16_t *grid = grids[i];
        _mm_prefetch(ahead + (size_t)i * run->coded->v_grid_stride_bytes, _MM_HINT_T0);
        const four scale = load_four(grid + g, n), min = load_four(grid + n_groups + g, n);
        UNROLL
        for (int j = 0; j < R; j++, to += n_wide) {
            const four weights = scale * p[j];
            shift[j] += min * p[j];
            memcpy(to, &weights, sizeof weights);
        }
    }
    UNROLL
    for (int j = 0; j < R; j++)
        memcpy(out->shift + (size_t)j * n_wide + g, &shift[j], sizeof shift[j]);
}

static ALWAYS_INLINE void weigh_run(const slot_set *s, const slot_run *run, const float *p,
                                    coded_weights *out, const int R)
{
    uint32_t g = 0;
    for (; g + 4 <= out->n_groups; g += 4)
        weigh_groups(s, run, p, g, out, 4, R);
    switch (out->n_groups - g) {
    case 1: weigh_groups(s, run, p, g, out, 1, R); break;
    case 2: weigh_groups(s, run, p, g, out, 2, R); break;
    case 3: weigh_groups(s, run, p, g, out, 3, R); break;
    default: assert(g == out->n_groups);
    }
}

/* One scale and one minimum for all: fp8's, and 0; or 1 and 1, which channels have yet to multiply. */
static void weigh_alike(const slot_run *run, const float *p, uint32_t n_rows, coded_weights *out)
{
    const bool is_fp8 = run->coded->coding == ATTN_FP8;
    float scale = 1, sum[ATTN_ROWS] = {0};
    if (is_fp8) memcpy(&scale, run->coded->v_grid, sizeof scale);
    for (uint32_t i = 0; i < run->n; i++) {
        for (uint32_t j = 0; j < n_rows; j++) {
            const float of_slot = p[i * row_width(n_rows) + j];
            out->p[(i * n_rows + j) * out->n_wide] = of_slot * scale;
            sum[j] += of_slot;
        }
    }
    for (uint32_t j = 0; j < n_rows; j++)
        out->shift[j * out->n_wide] = is_fp8 ? 0 : sum[j];
}

typedef struct coded_fold {
    const void *const *v; /* [n_slots] */
    const coded_weights *w;
    uint32_t n_slots, v_dim;
    const uint16_t *channels; /* of a latent: bf16 [2][row_dim], s and m; or NULL */
    uint32_t row_dim;         /* channels of a row of codes: v_dim, of a latent k_dim */
    const char *ahead;        /* as many rows, v_stride_bytes apart, to ask for meanwhile */
    uint32_t v_stride_bytes;
    const float *kept, *added; /* [n_rows] */
    float *const *acc;         /* [n_rows] */
} coded_fold;

/* What vectors of a tile are: the first one's channel within its lot, or codes in order. */
enum { IN_ORDER = -1 };

/* Vector i of a tile that begins at channel c of the row. */
static ALWAYS_INLINE vf tile_codes(const char *row, uint32_t c, uint32_t n_rest, const int i,
                                   const int at, const attn_coding coding)
{
    const uint32_t bits = attn_code_bits(coding), n_lot = attn_lot_channels(coding);
    if (at == IN_ORDER) return load_codes(row, c + (uint32_t)i * LANES, n_rest, coding);
    const uint32_t from = (uint32_t)at + (uint32_t)i * LANES; /* of the lot that has channel c */
    const char *lot = row + (size_t)(c - (uint32_t)at) * bits / 8 + from / n_lot * ATTN_LOT_BYTES;
    return lot_codes(lot, bits, from % n_lot);
}

/* a += (p s) code over the slots. has_one: all channels are of one group. */
static ALWAYS_INLINE void add_codes(const coded_fold *f, uint32_t c, uint32_t n_rest, const int R,
                                    const int C, const int at, const attn_coding coding,
                                    const bool has_one, vf a[ATTN_ROWS][V_TILE_MAX])
{
    const uint8_t *group = f->w->group + c / ATTN_GROUP_MIN;
    const uint32_t n_wide = f->w->n_wide, n_slots = f->n_slots;
    const float *p = f->w->p;
    const char *ahead = f->ahead + (size_t)c * attn_code_bits(coding) / 8;
    UNROLL_TWICE
    for (uint32_t s = 0; s < n_slots; s++, p += (uint32_t)R * n_wide, ahead += f->v_stride_bytes) {
        _mm_prefetch(ahead, _MM_HINT_T0);
        vf one[ATTN_ROWS];
        UNROLL
        for (int j = 0; j < R; j++)
            one[j] = vf_set1(p[(uint32_t)j * n_wide + group[0]]);
        UNROLL
        for (int i = 0; i < C; i++) {
            const vf codes = tile_codes(f->v[s], c, n_rest, i, at, coding);
            const uint32_t g = group[(uint32_t)i * LANES / ATTN_GROUP_MIN];
            UNROLL
            for (int j = 0; j < R; j++) {
                const vf w = has_one ? one[j] : vf_set1(p[(uint32_t)j * n_wide + g]);
                a[j][i] = vf_fma(w, codes, a[j][i]);
            }
        }
    }
}

/* What LANES channels from c, or the last n_rest, have of the sum of the codes and of that of the weights. */
static ALWAYS_INLINE vf to_values(const coded_fold *f, uint32_t c, uint32_t n_rest, vf a, vf unit,
                                  vf shift)
{
    if (f->channels == NULL) return vf_fma(a, unit, shift);
    const uint16_t *scale = f->channels + c, *min = scale + f->row_dim;
    const vf s = n_rest > 0 ? vf_load_part(scale, DTYPE_BF16, n_rest) : vf_load_bf16(scale);
    const vf m = n_rest > 0 ? vf_load_part(min, DTYPE_BF16, n_rest) : vf_load_bf16(min);
    return vf_fma(a, vf_mul(unit, s), vf_mul(shift, m));
}

/* Channels [c, c + C LANES) of R rows; of a last, partial vector only n_rest. R, C, `at` and coding are
 * constants. */
static ALWAYS_INLINE void fold_code_tile(const coded_fold *f, uint32_t c, uint32_t n_rest,
                                         const int R, const int C, const int at,
                                         const attn_coding coding)
{
    vf a[ATTN_ROWS][V_TILE_MAX];
    const uint8_t *group = f->w->group + c / ATTN_GROUP_MIN;
    const bool has_one = group[0] == group[((uint32_t)C * LANES - 1) / ATTN_GROUP_MIN];
    UNROLL
    for (int j = 0; j < R; j++) {
        UNROLL
        for (int i = 0; i < C; i++)
            a[j][i] = vf_set1(0);
    }
    if (has_one) {
        add_codes(f, c, n_rest, R, C, at, coding, true, a);
    } else {
        add_codes(f, c, n_rest, R, C, at, coding, false, a);
    }
    UNROLL
    for (int i = 0; i < C; i++) {
        const uint32_t n_lot = attn_lot_channels(coding),
                       g = group[(uint32_t)i * LANES / ATTN_GROUP_MIN];
        const uint32_t from = (uint32_t)(at == IN_ORDER ? 0 : at) + (uint32_t)i * LANES;
        const vf unit =
            at == IN_ORDER ? vf_set1(1) : lot_unit(attn_code_bits(coding), from % n_lot);
        UNROLL
        for (int j = 0; j < R; j++) {
            const vf shift = vf_set1(f->w->shift[(uint32_t)j * f->w->n_wide + g]);
            fold_vector(f->acc[j] + c + i * LANES, n_rest,
                        to_values(f, c + (uint32_t)i * LANES, n_rest, a[j][i], unit, shift),
                        vf_set1(f->kept[j]), vf_set1(f->added[j]));
        }
    }
}

/* Up to LANES channels from c, of a lot that goes on behind the last value: no published latent has one, so
 * they are taken one by one. */
static ALWAYS_INLINE void fold_begun_lot(const coded_fold *f, uint32_t c, const int R,
                                         const attn_coding coding)
{
    const uint32_t bits = attn_code_bits(coding), n_left = f->v_dim - c;
    const uint32_t n = n_left < LANES ? n_left : LANES;
    for (int j = 0; j < R; j++) {
        float sum[LANES] = {0};
        const float *p = f->w->p + (size_t)j * f->w->n_wide;
        for (uint32_t i = 0; i < n; i++) {
            const uint32_t at = attn_code_place(coding, f->row_dim, c + i) * bits;
            for (uint32_t s = 0; s < f->n_slots; s++) {
                const uint32_t byte = ((const uint8_t *)f->v[s])[at / 8];
                const float code = (float)(byte >> at % 8 & ((1u << bits) - 1));
                sum[i] = fmaf(p[(size_t)s * (size_t)R * f->w->n_wide], code, sum[i]);
            }
        }
        const uint32_t n_rest = n < LANES ? n : 0;
        const vf shift = vf_set1(f->w->shift[(uint32_t)j * f->w->n_wide]);
        fold_vector(f->acc[j] + c, n_rest, to_values(f, c, n_rest, vf_load(sum), vf_set1(1), shift),
                    vf_set1(f->kept[j]), vf_set1(f->added[j]));
    }
}

/* Lots, in tiles of C vectors that are several lots or parts of one, then codes in order. */
static ALWAYS_INLINE void fold_code_channels(const coded_fold *f, const int R, const int C,
                                             const attn_coding coding)
{
    const int n_lot = (int)(attn_lot_channels(coding) / LANES); /* vectors */
    const int n_tile = C < n_lot ? C : n_lot;
    const uint32_t row_end = attn_lots_end(coding, f->row_dim);
    const uint32_t lots_end = row_end > f->v_dim ? attn_lots_end(coding, f->v_dim) : row_end;
    uint32_t c = 0;
    for (; C > n_lot && c + (uint32_t)C * LANES <= lots_end; c += (uint32_t)C * LANES)
        fold_code_tile(f, c, 0, R, C, 0, coding);
    for (; c < lots_end; c += (uint32_t)n_lot * LANES) {
        UNROLL
        for (int i = 0; i < n_lot; i += n_tile)
            fold_code_tile(f, c + (uint32_t)(i * LANES), 0, R, n_tile, i * LANES, coding);
    }
    for (; row_end > f->v_dim && c < f->v_dim; c += LANES)
        fold_begun_lot(f, c, R, coding);
    for (; coding == ATTN_FP8 && c + (uint32_t)C * LANES <= f->v_dim; c += (uint32_t)C * LANES)
        fold_code_tile(f, c, 0, R, C, IN_ORDER, coding);
    for (; c + LANES <= f->v_dim; c += LANES)
        fold_code_tile(f, c, 0, R, 1, IN_ORDER, coding);
    if (c < f->v_dim) fold_code_tile(f, c, f->v_dim - c, R, 1, IN_ORDER, coding);
}

static ALWAYS_INLINE void fold_codes(const coded_fold *f, uint32_t n_rows, const attn_coding coding)
{
    switch (n_rows) {
    case 1: fold_code_channels(f, 1, 8, coding); break;
    case 2: fold_code_channels(f, 2, 4, coding); break;
    case 3: fold_code_channels(f, 3, 2, coding); break;
    case 4: fold_code_channels(f, 4, 2, coding); break;
    default: assert(false);
    }
}
