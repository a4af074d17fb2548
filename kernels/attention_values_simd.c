/* kernels/attention_values_simd.c - the fold of weighted values into the state; part of
 * attention_simd.c, which includes it after its types.
 *
 * A tile is R rows by C vectors of channels. Over the slots it adds p v in registers, then
 *     acc = a added + acc kept */

enum { V_TILE_MAX = 8 };

/* The slots and rows that tiles go over. */
typedef struct v_fold {
    const void *const *v; /* [n_slots] */
    const float *p;       /* [n_slots][row_width] */
    uint32_t n_slots;
    const char *ahead; /* as many rows, stride_bytes apart, to ask for meanwhile */
    uint32_t stride_bytes;
    const float *kept, *added; /* [n rows] */
    float *const *acc;         /* [n rows]: rows of the state */
} v_fold;

/* LANES values from channel c of a row; n_rest of them, if it is not 0. The type is a constant. */
static ALWAYS_INLINE vf load_values(const char *row, uint32_t c, uint32_t n_rest, const dtype type)
{
    const char *at = row + (size_t)c * dtype_bytes(type);
    return n_rest > 0 ? vf_load_part(at, type, n_rest) : vf_load_as(at, type);
}

/* acc = a added + acc kept; of a partial vector only n_rest. */
static ALWAYS_INLINE void fold_vector(float *acc, uint32_t n_rest, vf a, vf kept, vf added)
{
    const vf old = n_rest > 0 ? vf_load_part(acc, DTYPE_F32, n_rest) : vf_load(acc);
    const vf sum = vf_fma(a, added, vf_mul(old, kept));
    if (n_rest > 0) {
        vf_store_part(acc, sum, n_rest);
    } else {
        vf_store(acc, sum);
    }
}

/* Channels [c, c + C LANES) of R rows; of a last, partial vector only n_rest. */
static ALWAYS_INLINE void fold_tile(const v_fold *f, uint32_t c, uint32_t n_rest, const int R,
                                    const int C, const dtype type)
{
    vf a[ATTN_ROWS][V_TILE_MAX];
    UNROLL
    for (int j = 0; j < R; j++) {
        UNROLL
        for (int i = 0; i < C; i++)
            a[j][i] = vf_set1(0);
    }
    const uint32_t n_bytes = (uint32_t)C * LANES * (uint32_t)dtype_bytes(type);
    const char *ahead = f->ahead + (size_t)c * dtype_bytes(type);
    for (uint32_t s = 0; s < f->n_slots; s++, ahead += f->stride_bytes) {
        vf values[V_TILE_MAX];
        UNROLL
        for (uint32_t at = 0; at < n_bytes; at += LINE_BYTES)
            _mm_prefetch(ahead + at, _MM_HINT_T0);
        UNROLL
        for (int i = 0; i < C; i++)
            values[i] = load_values(f->v[s], c + (uint32_t)(i * LANES), n_rest, type);
        UNROLL
        for (int j = 0; j < R; j++) {
            const vf p = vf_set1(f->p[s * row_width((uint32_t)R) + (uint32_t)j]);
            UNROLL
            for (int i = 0; i < C; i++)
                a[j][i] = vf_fma(p, values[i], a[j][i]);
        }
    }
    UNROLL
    for (int j = 0; j < R; j++) {
        const vf kept = vf_set1(f->kept[j]), added = vf_set1(f->added[j]);
        UNROLL
        for (int i = 0; i < C; i++)
            fold_vector(f->acc[j] + c + i * LANES, n_rest, a[j][i], kept, added);
    }
}

/* Channels [c, end) of R rows: tiles of C vectors, single vectors, the rest. */
static ALWAYS_INLINE void fold_channels(const v_fold *f, uint32_t c, uint32_t end, const int R,
                                        const int C, const dtype type)
{
    for (; c + (uint32_t)C * LANES <= end; c += (uint32_t)C * LANES)
        fold_tile(f, c, 0, R, C, type);
    for (; c + LANES <= end; c += LANES)
        fold_tile(f, c, 0, R, 1, type);
    if (c < end) fold_tile(f, c, end - c, R, 1, type);
}

static ALWAYS_INLINE void fold_values(const v_fold *f, uint32_t c, uint32_t end, uint32_t n_rows,
                                      const dtype type)
{
    switch (n_rows) {
    case 1: fold_channels(f, c, end, 1, 8, type); break;
    case 2: fold_channels(f, c, end, 2, 4, type); break;
    case 3: fold_channels(f, c, end, 3, 2, type); break;
    case 4: fold_channels(f, c, end, 4, 2, type); break;
    default: assert(false);
    }
}

/* All n channels of plain rows. One function, since it is long, for all who fold such rows. */
static __attribute__((noinline)) void fold_plain_values(const v_fold *f, uint32_t n,
                                                        uint32_t n_rows, dtype type)
{
    if (type == DTYPE_F32) {
        fold_values(f, 0, n, n_rows, DTYPE_F32);
    } else {
        fold_values(f, 0, n, n_rows, DTYPE_BF16);
    }
}

static void fold_plain(const attn_query *query, const slot_set *s, const slot_run *run,
                       uint32_t n_rows, const partial *part, float *const *acc)
{
    const v_fold f = {.v = s->v + run->first,
                      .p = part->p + (size_t)run->first * row_width(n_rows),
                      .n_slots = run->n,
                      .ahead = s->next != NULL ? s->next->v : s->v[run->first],
                      .stride_bytes = query->v_dim * (uint32_t)dtype_bytes(query->type),
                      .kept = part->kept,
                      .added = part->added,
                      .acc = acc};
    fold_plain_values(&f, query->v_dim, n_rows, query->type);
}
