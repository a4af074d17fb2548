/* kernels/attention_kept_simd.c - runs of kept channels; part of attention_simd.c, which includes it.
 *
 * Rows are narrow but plain. The query is gathered once per row and page, and then the products are those
 * of plain keys of fewer channels; values are summed in their narrow order and scattered at the end:
 *     acc_c = acc_c kept + a_c added,   a_c = 0 for a channel that is not kept. */

/* The channels of one side of a run. */
typedef struct kept_list {
    uint16_t channel[ATTN_CODED_DIM_MAX];
    uint32_t n;
} kept_list;

static void list_kept(const void *grid, uint32_t dim, kept_list *out)
{
    assert(dim <= ATTN_CODED_DIM_MAX);
    out->n = 0;
    for (uint32_t c = 0; c < dim; c++) {
        out->channel[out->n] = (uint16_t)c;
        out->n += attn_is_kept(grid, c);
    }
}

static void score_kept(const attn_query *query, const slot_set *s, const slot_run *run,
                       const row_set *r, float *out)
{
    kept_list list;
    float q[ATTN_ROWS][ATTN_CODED_DIM_MAX];
    const float *rows[ATTN_ROWS];
    list_kept(run->coded->k_grid, query->k_dim, &list);
    for (uint32_t j = 0; j < r->n; j++) {
        for (uint32_t c = 0; c < list.n; c++)
            q[j][c] = r->q[j][list.channel[c]];
        rows[j] = q[j];
    }
    const dots d = {.w = s->k + run->first,
                    .x = rows,
                    .out = out,
                    .ahead = s->k[run->first],
                    .n_rows = run->n,
                    .n_x = r->n,
                    .cols = list.n,
                    .type = query->type};
    dots_direct(&d);
}

static void fold_kept(const attn_query *query, const slot_set *s, const slot_run *run,
                      uint32_t n_rows, const partial *part, float *const *acc)
{
    static const float none[ATTN_ROWS] = {0}, all[ATTN_ROWS] = {1, 1, 1, 1};
    kept_list list;
    float sums[ATTN_ROWS][ATTN_CODED_DIM_MAX], *rows[ATTN_ROWS];
    list_kept(run->coded->v_grid, query->v_dim, &list);
    for (uint32_t j = 0; j < n_rows; j++) {
        memset(sums[j], 0, list.n * sizeof sums[j][0]);
        rows[j] = sums[j];
    }
    const v_fold f = {.v = s->v + run->first,
                      .p = part->p + (size_t)run->first * row_width(n_rows),
                      .n_slots = run->n,
                      .ahead = s->v[run->first],
                      .kept = none,
                      .added = all,
                      .acc = rows};
    fold_plain_values(&f, list.n, n_rows, query->type);
    for (uint32_t j = 0; j < n_rows; j++) {
        for (uint32_t c = 0; c < query->v_dim; c++)
            acc[j][c] *= part->kept[j];
        for (uint32_t c = 0; c < list.n; c++)
            acc[j][list.channel[c]] += sums[j][c] * part->added[j];
    }
}
