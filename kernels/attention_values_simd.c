/* kernels/attention_values_simd.c - the fold of weighted values into the state; part of
 * attention_simd.c, which includes it after its types.
 *
 * A tile is R rows by C vectors of channels. Over the slots it adds p v in registers, then
 *     acc = (a + shift) added + acc kept
 * with `shift` only in encoded runs: the part of the sum that the minima make. */

enum { V_TILE_MAX = 8 };

/* The slots and rows that tiles go over. */
typedef struct v_fold {
    const void *const *v; /* [n_slots] */
    const float *p;       /* [n_slots][ATTN_ROWS] */
    uint32_t n_slots;
    const float *kept, *added, *shift; /* [n rows]; shift: coded only */
    float *const *acc;                 /* [n rows]: rows of the state */
} v_fold;

/* LANES values from channel c of a row; n_rest of them, if it is not 0. Coding and type are constants. */
static ALWAYS_INLINE vf load_values(const char *row, uint32_t c, uint32_t n_rest,
                                    const attn_coding coding, const dtype type)
{
    if (coding != ATTN_PLAIN) return load_codes(row, c, n_rest, coding);
    const char *at = row + (size_t)c * dtype_bytes(type);
    return n_rest > 0 ? vf_load_part(at, type, n_rest) : vf_load_as(at, type);
}

/* Channels [c, c + C LANES) of R rows; of a last, partial vector only n_rest. */
static ALWAYS_INLINE void fold_tile(const v_fold *f, uint32_t c, uint32_t n_rest, const int R,
                                    const int C, const attn_coding coding, const dtype type)
{
    vf a[ATTN_ROWS][V_TILE_MAX];
    UNROLL
    for (int j = 0; j < R; j++) {
        UNROLL
        for (int i = 0; i < C; i++)
            a[j][i] = vf_set1(0);
    }
    for (uint32_t s = 0; s < f->n_slots; s++) {
        vf values[V_TILE_MAX];
        UNROLL
        for (int i = 0; i < C; i++)
            values[i] = load_values(f->v[s], c + (uint32_t)(i * LANES), n_rest, coding, type);
        UNROLL
        for (int j = 0; j < R; j++) {
            const vf p = vf_set1(f->p[s * ATTN_ROWS + (uint32_t)j]);
            UNROLL
            for (int i = 0; i < C; i++)
                a[j][i] = vf_fma(p, values[i], a[j][i]);
        }
    }
    UNROLL
    for (int j = 0; j < R; j++) {
        const vf kept = vf_set1(f->kept[j]), added = vf_set1(f->added[j]);
        UNROLL
        for (int i = 0; i < C; i++) {
            float *acc = f->acc[j] + c + i * LANES;
            const vf old = n_rest > 0 ? vf_load_part(acc, DTYPE_F32, n_rest) : vf_load(acc);
            const vf new = coding == ATTN_PLAIN ? a[j][i] : vf_add(a[j][i], vf_set1(f->shift[j]));
            const vf sum = vf_fma(new, added, vf_mul(old, kept));
            if (n_rest > 0) {
                vf_store_part(acc, sum, n_rest);
            } else {
                vf_store(acc, sum);
            }
        }
    }
}

/* Channels [c, end) of R rows: tiles of C vectors, single vectors, the rest. */
static ALWAYS_INLINE void fold_channels(const v_fold *f, uint32_t c, uint32_t end, const int R,
                                        const int C, const attn_coding coding, const dtype type)
{
    for (; c + (uint32_t)C * LANES <= end; c += (uint32_t)C * LANES)
        fold_tile(f, c, 0, R, C, coding, type);
    for (; c + LANES <= end; c += LANES)
        fold_tile(f, c, 0, R, 1, coding, type);
    if (c < end) fold_tile(f, c, end - c, R, 1, coding, type);
}

static ALWAYS_INLINE void fold_values(const v_fold *f, uint32_t c, uint32_t end, uint32_t n_rows,
                                      const attn_coding coding, const dtype type)
{
    switch (n_rows) {
    case 1: fold_channels(f, c, end, 1, 8, coding, type); break;
    case 2: fold_channels(f, c, end, 2, 4, coding, type); break;
    case 3: fold_channels(f, c, end, 3, 2, coding, type); break;
    case 4: fold_channels(f, c, end, 4, 2, coding, type); break;
    default: assert(false);
    }
}

/* All n channels of plain rows. One function, since it is long, for all who fold such rows. */
static __attribute__((noinline)) void fold_plain_values(const v_fold *f, uint32_t n,
                                                        uint32_t n_rows, dtype type)
{
    if (type == DTYPE_F32) {
        fold_values(f, 0, n, n_rows, ATTN_PLAIN, DTYPE_F32);
    } else {
        fold_values(f, 0, n, n_rows, ATTN_PLAIN, DTYPE_BF16);
    }
}

static void fold_plain(const attn_query *query, const slot_set *s, const slot_run *run,
                       uint32_t n_rows, const partial *part, float *const *acc)
{
    const v_fold f = {.v = s->v + run->first,
                      .p = part->p + (size_t)run->first * ATTN_ROWS,
                      .n_slots = run->n,
                      .kept = part->kept,
                      .added = part->added,
                      .acc = acc};
    fold_plain_values(&f, query->v_dim, n_rows, query->type);
}
