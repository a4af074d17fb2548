/* kernels/cuda_attention.cu - attention of a step over pages, rings and staging. Contract: attention_pages.h.
 *
 *   attend     a block of threads per (task, KV head, tile of ROWS query heads that read it). Sums of a query head
 *              never see the others of its tile, so ROWS, which the host takes by what fits, changes no bit.
 *              All is in one dimension of the grid: the second would end at 65535 blocks.
 *   merge      a block per (merge, query head), a thread per channel
 *
 * A split: 9 threads look up its blocks (cuda_attention_spans.cuh), then for every block
 *   fill       where keys have scales for channels, queries take them over: sum q_c (code s_c + m_c) =
 *              sum (q_c s_c) code + sum q_c m_c, so a slot costs what a plain one does. Queries against kept
 *              channels are packed, which makes plain rows of the keys.
 *   score      8 lanes a slot, 16 slots at a time, a lane taking units lane, lane + 8, ...; lanes are added by
 *              a fixed tree, in which each ends with its share of the tile's rows
 *   weigh      a warp a row: exp(s - m') with the split's running maximum m'
 *   values     a thread has one unit of eight channels of every n-th slot, and its ROWS sums in registers over the
 *              whole split; they are scaled when the maximum rises. What no row gives weight is not read.
 *   low        of pages of coefficients queries are projected when the basis changes, and sums are of coefficients, which
 *              are projected back when the values' space changes again, into sums in shared memory that are scaled as
 *              the others are. Where it changes follows from the list, not from what a row sees. Kernels without such
 *              pages have nothing of this.
 * and at its end the threads of one unit are added in order. That is the partial result, which goes to memory or,
 * by the function of the merge, to a total in shared memory.
 *
 * Every product that is added to something is an explicit fmaf, and a sum of what may end in a product (expf does) is
 * __fadd_rn: the compiler may not choose, by variant. Where a weight is 0 nothing is added, as the value of a slot
 * that only another row sees may be no number.
 * Shared memory: tile_shared, then queries [ROWS][k_dim], totals [ROWS][v_dim] and, of low rank, what was projected
 * back [ROWS][v_dim]; k_dim in whole units. */
#include "kernels/cuda_attention_low.cuh"
#include "kernels/cuda_attention_values.cuh"

enum { MERGE_CHANNELS = ATTN_PAGES_DIM_MAX / ATTEND_THREADS, SHARED_BYTES_MAX = 48 * 1024 };

static __device__ __forceinline__ float warp_max(float x)
{
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        x = fmaxf(x, __shfl_xor_sync(WARP_ALL, x, distance));
    return x;
}

/* total folded with a part that is not empty. */
typedef struct fold {
    float max, sum, kept, added;
} fold;

static __device__ __forceinline__ fold fold_of(float total_max, float total_sum, float max,
                                               float sum)
{
    fold out;
    out.max = fmaxf(total_max, max);
    out.kept = expf(total_max - out.max);
    out.added = expf(max - out.max);
    out.sum = fmaf(total_sum, out.kept, sum * out.added);
    return out;
}

static __device__ __forceinline__ float fold_channel(const fold *f, float total, float part)
{
    return fmaf(total, f->kept, part * f->added);
}

/* What attn_finish multiplies acc by, 0 where there is no key, and the lse. */
typedef struct finish {
    float factor, lse;
} finish;

static __device__ finish finish_of(const attend_pages_args *args, const attn_row *row,
                                   uint32_t head, float max, float sum)
{
    const bool has_sink = args->sink_logit != NULL && !row->has_pages_only;
    const double high = static_cast<double>(max);
    const double sink =
        has_sink ? static_cast<double>(args->sink_logit[head]) : -static_cast<double>(INFINITY);
    const double top = high > sink ? high : sink;
    if (top == -static_cast<double>(INFINITY)) return {0, -INFINITY};
    const double weight = exp(high - top);
    const double all = fma(static_cast<double>(sum), weight, exp(sink - top));
    const float lse = args->lse != NULL ? static_cast<float>(top + log(all)) : 0;
    return {static_cast<float>(weight / all), lse};
}

/* Where the lse of a token's head goes; NULL: nowhere. */
static __device__ __forceinline__ float *lse_at(const attend_pages_args *args, uint32_t token,
                                                uint32_t head)
{
    const size_t n_heads = static_cast<size_t>(args->n_kv_heads) * args->group;
    return args->lse != NULL ? args->lse + token * n_heads + head : NULL;
}

static __device__ __forceinline__ float *partial_at(const attend_pages_args *args, uint32_t partial,
                                                    uint32_t head)
{
    const size_t n_heads = static_cast<size_t>(args->n_kv_heads) * args->group;
    return args->partials + (partial * n_heads + head) * (static_cast<size_t>(args->v_dim) + 2);
}

template <int ROWS>
static __device__ __forceinline__ bool find_tile(const attend_pages_args *args, uint32_t n_tiles,
                                                 tile *out)
{
    const uint32_t at = blockIdx.x / n_tiles;
    out->args = args;
    out->task = args->tasks[at / args->n_kv_heads];
    out->kv_head = at % args->n_kv_heads;
    out->first = blockIdx.x % n_tiles * ROWS;
    const uint32_t n = out->task.n_queries * args->group;
    if (out->first >= n) return false;
    out->n_rows = min_u32(n - out->first, ROWS);
    out->row = args->rows[out->task.row];
    const uint32_t position = out->row.length + out->task.first_query;
    out->first_position = position + out->first / args->group;
    out->last_position = position + (out->first + out->n_rows - 1) / args->group;
    out->chosen = NULL;
    out->n_listed = out->row.n_blocks;
    if (out->row.chosen != NULL) {
        const uint32_t *list =
            out->row.chosen + static_cast<size_t>(out->kv_head) * args->chosen_stride;
        out->n_listed = list[0];
        out->chosen = list + 1;
    }
    if (out->task.partial ==
        ATTN_NO_PARTIAL) { /* splits behind the tile's last query change nothing */
        const uint32_t last = out->last_position / args->block_tokens / ATTN_SPLIT_BLOCKS;
        const uint32_t n_before = min_u32(out->task.first_split, last + 1);
        out->task.n_splits = min_u32(out->task.n_splits, last + 1 - n_before);
    }
    return true;
}

/* sum += q . k over the units of one lane of a slot. */
template <int ROWS>
static __device__ __forceinline__ void add_products(const tile *t, const tile_block *b,
                                                    const uint8_t *row, const float *q,
                                                    float sum[ROWS])
{
    const attn_coding coding = b->span[0].coding;
    const uint32_t width = n_units_of(t->args->k_dim);
    const bool is_plain = coding == ATTN_PLAIN || coding == ATTN_KEPT || coding == ATTN_LOW;
    for (uint32_t u = threadIdx.x % SLOT_LANES; u < n_units_of(b->key_dim); u += SLOT_LANES) {
        float k[UNIT];
        if (is_plain) {
            load_plain8(row, t->args->type, UNIT * u, b->key_dim, k);
        } else {
            load_codes8(row, coding, b->key_dim, u, k);
        }
        for (uint32_t r = 0; r < ROWS; r++) {
            const float *of_row = q + r * width * UNIT + 4 * u;
            const float4 low = *reinterpret_cast<const float4 *>(of_row);
            const float4 high = *reinterpret_cast<const float4 *>(of_row + 4 * width);
            sum[r] = fmaf(low.x, k[0], sum[r]), sum[r] = fmaf(low.y, k[1], sum[r]);
            sum[r] = fmaf(low.z, k[2], sum[r]), sum[r] = fmaf(low.w, k[3], sum[r]);
            sum[r] = fmaf(high.x, k[4], sum[r]), sum[r] = fmaf(high.y, k[5], sum[r]);
            sum[r] = fmaf(high.z, k[6], sum[r]), sum[r] = fmaf(high.w, k[7], sum[r]);
        }
    }
}

/* Does row r of the tile see slot i of a span? */
template <int ROWS>
static __device__ __forceinline__ bool is_visible(const tile *t, const attn_span *span, uint32_t i,
                                                  const tile_shared<ROWS> *s, uint32_t r)
{
    const uint32_t at = span->positions != NULL ? span->positions[i] : span->first_position + i;
    const uint32_t position = t->row.length + (s->token[r] - t->row.first_token);
    if (r >= t->n_rows || at > position) return false;
    return t->args->window == 0 || position - at < t->args->window;
}

/* q . k of row r, of what its lanes have. */
template <int ROWS>
static __device__ __forceinline__ float product_of(const tile_block *b, const tile_shared<ROWS> *s,
                                                   uint32_t r, float dot)
{
    if (!has_channel_grid(b->span[0].coding)) return dot * b->key_scale;
    return dot + (s->offset[0][r] + s->offset[1][r] + s->offset[2][r] + s->offset[3][r]);
}

template <int ROWS>
static __device__ void score_slots(const tile *t, const tile_block *b, const tile_shared<ROWS> *s,
                                   const float *q, float *scores)
{
    const uint32_t lane = threadIdx.x % SLOT_LANES;
    for (uint32_t from = 0; from < b->n_slots; from += SLOTS_AT_ONCE) {
        const uint32_t slot = from + threadIdx.x / SLOT_LANES, n_first = b->span[0].n_slots;
        const attn_span *span = &b->span[slot >= n_first];
        const uint32_t i = slot >= n_first ? slot - n_first : slot;
        const bool is_live = slot < b->n_slots && (span->live >> i & 1) != 0;
        float sum[ROWS] = {};
        if (is_live) {
            const uint8_t *k = static_cast<const uint8_t *>(span->k);
            add_products<ROWS>(t, b, k + static_cast<size_t>(i) * span->k_stride_bytes, q, sum);
        }
        const float dot = sum_of_lanes<ROWS>(sum, lane);
        if (slot >= b->n_slots || lane % (SLOT_LANES / ROWS) != 0) continue;
        const uint32_t r = lane * ROWS / SLOT_LANES;
        const bool is_seen = is_live && is_visible<ROWS>(t, span, i, s, r);
        const float bias = is_seen && span->bias != NULL ? span->bias[i] : 0;
        scores[slot * ROWS + r] =
            is_seen ? fmaf(product_of<ROWS>(b, s, r, dot), t->args->scale, bias) : -INFINITY;
    }
}

/* Scores become weights, and maximum and sum of every row take them in. */
template <int ROWS>
static __device__ void weigh_slots(uint32_t n_slots, tile_shared<ROWS> *s, float *scores)
{
    const uint32_t lane = threadIdx.x % WARP, other = lane + WARP;
    for (uint32_t r = threadIdx.x / WARP; r < ROWS; r += ATTEND_WARPS) {
        const float a = lane < n_slots ? scores[lane * ROWS + r] : -INFINITY;
        const float b = other < n_slots ? scores[other * ROWS + r] : -INFINITY;
        const float before = s->max[r], top = warp_max(fmaxf(a, b));
        const bool is_empty = top == -INFINITY;
        const float max = fmaxf(before, top), kept = is_empty ? 1 : expf(before - max);
        const float weight_a = is_empty ? 0 : expf(a - max),
                    weight_b = is_empty ? 0 : expf(b - max);
        const float sum = warp_sum(__fadd_rn(weight_a, weight_b));
        if (lane < n_slots) scores[lane * ROWS + r] = weight_a;
        if (other < n_slots) scores[other * ROWS + r] = weight_b;
        if (lane > 0) continue;
        s->kept[r] = kept;
        s->max[r] = max;
        s->sum[r] = fmaf(s->sum[r], kept, sum);
    }
}

/* acc += weight value over the thread's slots of the block. */
template <int ROWS>
static __device__ void add_values(const tile *t, const tile_block *b, const float *weights,
                                  const float *kept, float acc[ROWS][UNIT])
{
    const uint32_t n_units = n_units_of(b->value_dim), n_strands = ATTEND_THREADS / n_units;
    const uint32_t strand = threadIdx.x / n_units, n_first = b->span[0].n_slots;
    if (strand >= n_strands) return;
    const value_unit unit =
        find_value_unit(t->args, &b->span[0], b->value_dim, threadIdx.x % n_units);
    for (uint32_t r = 0; r < ROWS; r++) {
        for (uint32_t e = 0; e < UNIT; e++)
            acc[r][e] *= kept[r];
    }
    for (uint32_t slot = strand; slot < b->n_slots; slot += n_strands) {
        float weight[ROWS], v[UNIT];
        bool is_wanted = false;
        for (uint32_t r = 0; r < ROWS; r++) {
            weight[r] = weights[slot * ROWS + r];
            is_wanted = is_wanted || weight[r] != 0;
        }
        if (!is_wanted) continue;
        const bool is_second = slot >= n_first;
        load_values8(&b->span[is_second], is_second ? slot - n_first : slot, &unit, v);
        for (uint32_t r = 0; r < ROWS; r++) {
            if (weight[r] == 0) continue;
            for (uint32_t e = 0; e < UNIT; e++)
                acc[r][e] = fmaf(weight[r], v[e], acc[r][e]);
        }
    }
}

/* Row r's sums of a split, one per strand in `cells`, to where its partial result goes. */
template <int ROWS>
static __device__ __forceinline__ void keep_row(const tile *t, uint32_t split, uint32_t r,
                                                const tile_shared<ROWS> *s, const float *cells,
                                                const float *folded, float *total)
{
    const attend_pages_args *args = t->args;
    const uint32_t n_units = n_units_of(args->v_dim), n_strands = ATTEND_THREADS / n_units;
    const bool is_partial = t->task.partial != ATTN_NO_PARTIAL, is_empty = s->max[r] == -INFINITY;
    float *to = is_partial ? partial_at(args, t->task.partial + split, head_of(t, r)) : NULL;
    if (!is_partial && is_empty) return;
    const fold f = fold_of(s->total_max[r], s->total_sum[r], s->max[r], s->sum[r]);
    for (uint32_t c = threadIdx.x; c < args->v_dim; c += ATTEND_THREADS) {
        float sum = 0;
        for (uint32_t i = 0; i < n_strands; i++)
            sum += cells[i * n_units * UNIT + c];
        if (folded != NULL) sum += folded[c];
        if (is_partial) {
            to[2 + c] = sum;
        } else {
            total[c] = fold_channel(&f, total[c], sum);
        }
    }
    if (is_partial && threadIdx.x < 2) to[threadIdx.x] = threadIdx.x == 0 ? s->max[r] : s->sum[r];
}

/* To be followed by a barrier. */
template <int ROWS>
static __device__ void end_split(const tile *t, uint32_t split, tile_shared<ROWS> *s,
                                 const float *folded, float *total, const float acc[ROWS][UNIT])
{
    const uint32_t v_dim = t->args->v_dim;
    for (uint32_t r = 0; r < ROWS; r++) {
        float *cells = s->cells[r % 2];
        for (uint32_t e = 0; e < UNIT; e++)
            cells[threadIdx.x * UNIT + e] = acc[r][e];
        __syncthreads();
        if (r < t->n_rows)
            keep_row<ROWS>(t, split, r, s, cells, folded != NULL ? folded + r * v_dim : NULL,
                           total + r * v_dim);
    }
    __syncthreads();
    const uint32_t r = threadIdx.x;
    if (r >= ROWS) return;
    if (t->task.partial == ATTN_NO_PARTIAL && s->max[r] != -INFINITY) {
        const fold f = fold_of(s->total_max[r], s->total_sum[r], s->max[r], s->sum[r]);
        s->total_max[r] = f.max;
        s->total_sum[r] = f.sum;
    }
    s->max[r] = -INFINITY;
    s->sum[r] = 0;
}

/* The split's blocks one after the other; s->block is there. False if they have no slots. `folded` is NULL, or zeros. */
template <int ROWS, bool HAS_LOW>
static __device__ bool run_split(const tile *t, tile_shared<ROWS> *s, float *q, float *folded,
                                 float acc[ROWS][UNIT])
{
    query_space queries = {false, NULL};
    const tile_block *values = NULL; /* the first block of the space that acc is in; NULL: plain */
    uint32_t n_run = 0;
    for (uint32_t at = 0; at < SPLIT_BLOCKS; at++) {
        const tile_block *b = &s->block[at];
        float *scores = s->scores[n_run % 2];
        if (HAS_LOW && b->span[0].k != NULL) { /* also where no row of the tile sees it */
            const void *old = values != NULL ? values->span[0].v_grid : NULL;
            const bool is_low = b->span[0].coding == ATTN_LOW;
            if (old != (is_low ? b->span[0].v_grid : NULL)) {
                leave_space<ROWS>(t, values, s, folded, acc);
                values = is_low ? b : NULL;
            }
        }
        if (b->n_slots == 0) continue;
        turn_queries<ROWS, HAS_LOW>(t, b, s, q, &queries);
        score_slots<ROWS>(t, b, s, q, scores);
        __syncthreads();
        weigh_slots<ROWS>(b->n_slots, s, scores);
        __syncthreads();
        add_values<ROWS>(t, b, scores, s->kept, acc);
        if (HAS_LOW) scale_folded<ROWS>(t, s->kept, folded);
        n_run++;
    }
    if (HAS_LOW && values != NULL) leave_space<ROWS>(t, values, s, folded, acc);
    return n_run > 0;
}

/* What a row that chooses has read, for its certificate. */
static __device__ __forceinline__ void keep_mass(const attend_pages_args *args, const attn_row *row,
                                                 uint32_t head, float max, float sum)
{
    const size_t n_heads = static_cast<size_t>(args->n_kv_heads) * args->group;
    if (row->chosen != NULL) args->masses[row->choice * n_heads + head] = {max, sum};
}

/* The totals of a task that has all splits, to the output. */
template <int ROWS>
static __device__ void finish_rows(const tile *t, tile_shared<ROWS> *s, const float *total)
{
    const attend_pages_args *args = t->args;
    const uint32_t mine = threadIdx.x;
    __syncthreads();
    if (mine < t->n_rows) {
        const float max = s->total_max[mine], sum = s->total_sum[mine];
        const finish end = finish_of(args, &t->row, head_of(t, mine), max, sum);
        float *lse = lse_at(args, s->token[mine], head_of(t, mine));
        s->kept[mine] = end.factor;
        if (lse != NULL) *lse = end.lse;
        keep_mass(args, &t->row, head_of(t, mine), max, sum);
    }
    __syncthreads();
    for (uint32_t r = 0; r < t->n_rows; r++) {
        float *out = args->out + s->token[r] * args->out_stride +
                     static_cast<size_t>(head_of(t, r)) * args->v_dim;
        for (uint32_t c = threadIdx.x; c < args->v_dim; c += ATTEND_THREADS)
            out[c] = total[r * args->v_dim + c] * s->kept[r];
    }
}

/* Blocks that are to be on a multiprocessor together, as one alone waits for its loads: what its registers allow
 * when the sums of ROWS rows are among them. */
template <int ROWS> constexpr int blocks_together = ROWS == 8 ? 4 : ROWS == 4 ? 5 : 8;

template <int ROWS, bool HAS_LOW>
static __global__ void __launch_bounds__(ATTEND_THREADS, blocks_together<ROWS>)
    attend_kernel(attend_pages_args args, uint32_t n_tiles)
{
    CUDA_SHARED(tile_shared<ROWS>, s);
    float *q = reinterpret_cast<float *>(s + 1);
    float *total = q + ROWS * UNIT * n_units_of(args.k_dim);
    float *folded = HAS_LOW ? total + ROWS * args.v_dim : NULL;
    const uint32_t r = threadIdx.x;
    tile t;
    if (!find_tile<ROWS>(&args, n_tiles, &t)) return;
    if (r < ROWS) {
        const uint32_t query = t.task.first_query + (t.first + r) / args.group;
        s->token[r] = t.row.first_token + query;
        s->max[r] = s->total_max[r] = -INFINITY;
        s->sum[r] = s->total_sum[r] = 0;
    }
    for (uint32_t i = threadIdx.x; i < ROWS * args.v_dim; i += ATTEND_THREADS)
        total[i] = 0;
    for (uint32_t i = 0; i < t.task.n_splits; i++) {
        float acc[ROWS][UNIT] = {};
        if (threadIdx.x < SPLIT_BLOCKS)
            find_block(&t, t.task.first_split + i, threadIdx.x, &s->block[threadIdx.x]);
        if (HAS_LOW) {
            for (uint32_t k = 0; k < ROWS; k++) {
                for (uint32_t c = threadIdx.x; c < args.v_dim; c += ATTEND_THREADS)
                    folded[k * args.v_dim + c] = 0;
            }
        }
        __syncthreads();
        if (run_split<ROWS, HAS_LOW>(&t, s, q, folded, acc) || t.task.partial != ATTN_NO_PARTIAL) {
            end_split<ROWS>(&t, i, s, folded, total, acc);
        } else {
            __syncthreads(); /* all have seen that there is nothing */
        }
    }
    if (t.task.partial == ATTN_NO_PARTIAL) finish_rows<ROWS>(&t, s, total);
}

/* Every thread has maximum and sum of all, and channels threadIdx.x, threadIdx.x + ATTEND_THREADS, ... */
static __global__ void __launch_bounds__(ATTEND_THREADS) merge_kernel(attend_pages_args args)
{
    const uint32_t n_heads = args.n_kv_heads * args.group, head = blockIdx.x % n_heads;
    const attn_merge_task merge = args.merges[blockIdx.x / n_heads];
    float total_max = -INFINITY, total_sum = 0, total[MERGE_CHANNELS] = {};
    for (uint32_t i = 0; i < merge.n_partials; i++) {
        const float *part = partial_at(&args, merge.first_partial + i, head);
        if (part[0] == -INFINITY) continue;
        const fold f = fold_of(total_max, total_sum, part[0], part[1]);
        total_max = f.max;
        total_sum = f.sum;
        for (uint32_t k = 0; k < MERGE_CHANNELS; k++) {
            const uint32_t c = k * ATTEND_THREADS + threadIdx.x;
            if (c < args.v_dim) total[k] = fold_channel(&f, total[k], part[2 + c]);
        }
    }
    const attn_row *row = &args.rows[merge.row];
    const finish end = finish_of(&args, row, head, total_max, total_sum);
    float *lse = lse_at(&args, merge.token, head);
    if (threadIdx.x == 0) keep_mass(&args, row, head, total_max, total_sum);
    if (threadIdx.x == 0 && lse != NULL) *lse = end.lse;
    float *out = args.out + merge.token * args.out_stride + static_cast<size_t>(head) * args.v_dim;
    for (uint32_t k = 0; k < MERGE_CHANNELS; k++) {
        const uint32_t c = k * ATTEND_THREADS + threadIdx.x;
        if (c < args.v_dim) out[c] = total[k] * end.factor;
    }
}

template <int ROWS> static size_t shared_bytes(const attend_pages_args *args)
{
    const size_t k_floats = static_cast<size_t>(UNIT) * n_units_of(args->k_dim);
    const size_t v_floats = args->v_dim * (args->has_low ? size_t{2} : size_t{1});
    return sizeof(tile_shared<ROWS>) + ROWS * (k_floats + v_floats) * sizeof(float);
}

template <int ROWS> static void launch_attend(dev_cuda *d, const attend_pages_args *args)
{
    const size_t n_tiles =
        (static_cast<size_t>(args->n_queries_max) * args->group + ROWS - 1) / ROWS;
    const size_t n_blocks = n_tiles * args->n_kv_heads * args->n_tasks;
    if (n_blocks == 0) return;
    assert(n_blocks <= INT32_MAX);
    const cuda_shape shape = {dim3(static_cast<unsigned>(n_blocks)), ATTEND_THREADS,
                              shared_bytes<ROWS>(args)};
    cuda_launch(d, shape, args->has_low ? attend_kernel<ROWS, true> : attend_kernel<ROWS, false>,
                *args, static_cast<uint32_t>(n_tiles));
}

void attend_pages_cuda(dev_cuda *d, const attend_pages_args *args)
{
    const size_t n_rows = static_cast<size_t>(args->n_queries_max) * args->group;
    assert(args->k_dim <= ATTN_PAGES_DIM_MAX);
    assert(args->v_dim <= ATTN_PAGES_DIM_MAX);
    assert(args->type != DTYPE_F16);
    if (n_rows > 4 && shared_bytes<8>(args) <= SHARED_BYTES_MAX) {
        launch_attend<8>(d, args);
    } else if (n_rows > 1) {
        assert(shared_bytes<4>(args) <= SHARED_BYTES_MAX);
        launch_attend<4>(d, args);
    } else {
        launch_attend<1>(d, args);
    }
    const uint32_t n_merges = args->n_merges * args->n_kv_heads * args->group;
    const cuda_shape shape = {dim3(n_merges), ATTEND_THREADS, 0};
    if (n_merges > 0) cuda_launch(d, shape, merge_kernel, *args);
}
