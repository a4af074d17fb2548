/* kernels/attention_mass_simd.c - second passes of attention, fast; a part of attention_simd.c.
 *
 * Rows that are scored together belong to one query, so a query's shares never depend on its neighbours. */

/* sum[slot] += exp(score - lse) over the rows. Rows that are missing, or have seen no key, add zeros. */
static void add_shares(const attn_query *query, const slot_set *s, const row_set *r,
                       const float *lse, float *sum)
{
    partial part;
    float lane[LANES];
    const uint32_t width = row_width(r->n);
    score_rows(query, s, r, &part);
    mask_rows(query, s, r, &part);
    for (uint32_t i = 0; i < LANES; i++) {
        const uint32_t row = i & (width - 1);
        lane[i] = row < r->n && lse[row] > -INFINITY ? lse[row] : INFINITY;
    }
    const vf norm = vf_load(lane);
    for (uint32_t i = 0; i < s->n * width; i += LANES)
        vf_store(part.p + i, vf_exp(vf_sub(vf_load(part.p + i), norm)));
    for (uint32_t i = 0; i < s->n; i++) {
        const float *p = part.p + i * width;
        sum[i] += width == 1 ? p[0] : width == 2 ? p[0] + p[1] : (p[0] + p[1]) + (p[2] + p[3]);
    }
}

static void mass_block(const attn_mass_args *args, const slot_set *s)
{
    const attn_query *query = args->query;
    for (uint32_t j = 0; j < query->n_queries; j++) {
        const uint64_t visible = visible_slots(s, query->positions[j], query->window);
        float sum[ATTN_BLOCK_SLOTS_MAX] = {0};
        for (uint32_t g = 0; g < query->group && visible != 0; g += ATTN_ROWS) {
            row_set r = {.n = 0};
            for (; r.n < ATTN_ROWS && g + r.n < query->group; r.n++) {
                r.q[r.n] = query->q + j * query->q_stride + (size_t)(g + r.n) * query->k_dim;
                r.visible[r.n] = visible;
            }
            add_shares(query, s, &r, args->lse + (size_t)j * query->group + g, sum);
        }
        for (uint64_t seen = visible; seen != 0; seen &= seen - 1) {
            const uint32_t i = (uint32_t)__builtin_ctzll(seen);
            args->mass[s->position[i]] += sum[i] / (float)query->group;
        }
    }
}

static void attend_mass_simd(const attn_mass_args *args)
{
    if (args->query->n_queries == 0) return;
    slot_set s;
    for (uint32_t b = 0; b < args->blocks->n_blocks; b++) {
        gather_block(args->query, args->blocks, &args->blocks->blocks[b], &s);
        if (s.n > 0) mass_block(args, &s);
    }
}

/* top[slot] = max(top[slot], score - lse) over the rows. Rows that have seen no key raise nothing. */
static void raise_tops(const attn_query *query, const slot_set *s, const row_set *r,
                       const float *lse, float *top)
{
    partial part;
    const uint32_t width = row_width(r->n);
    score_rows(query, s, r, &part);
    mask_rows(query, s, r, &part);
    for (uint32_t j = 0; j < r->n; j++) {
        const float norm = lse[r->at[j]];
        if (!(norm > -INFINITY)) continue;
        for (uint32_t i = 0; i < s->n; i++) {
            const float share = part.p[i * width + j] - norm;
            top[i] = share > top[i] ? share : top[i];
        }
    }
}

static void max_block(const attn_max_args *args, const slot_set *s)
{
    const attn_query *query = args->query;
    float top[ATTN_BLOCK_SLOTS_MAX];
    row_set r = {.n = 0};
    for (uint32_t i = 0; i < s->n; i++)
        top[i] = -INFINITY;
    for (uint32_t j = 0; j < query->n_queries; j++) {
        const uint64_t visible = visible_slots(s, query->positions[j], query->window);
        for (uint32_t g = 0; g < query->group && visible != 0; g++) {
            r.q[r.n] = query->q + j * query->q_stride + (size_t)g * query->k_dim;
            r.visible[r.n] = visible;
            r.at[r.n++] = (size_t)j * query->group + g;
            if (r.n < ATTN_ROWS) continue;
            raise_tops(query, s, &r, args->lse, top);
            r.n = 0;
        }
    }
    if (r.n > 0) raise_tops(query, s, &r, args->lse, top);
    for (uint32_t i = 0; i < s->n; i++) {
        float *most = &args->most[s->position[i]];
        *most = top[i] > *most ? top[i] : *most;
    }
}

static void attend_max_simd(const attn_max_args *args)
{
    if (args->query->n_queries == 0) return;
    slot_set s;
    for (uint32_t b = 0; b < args->blocks->n_blocks; b++) {
        gather_block(args->query, args->blocks, &args->blocks->blocks[b], &s);
        if (s.n > 0) max_block(args, &s);
    }
}
