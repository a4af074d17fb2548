/* kernels/cuda_moe.cu - router and experts. Contracts: moe.h; the order of terms: cuda_product.cuh.
 *
 * Nothing about the choices is known to the host: grids are as large as the choices could want, and blocks
 * behind the last tile of a list end at once.
 *
 *   plan       a block per expert: how many pairs come before its own, then its own in rising order, found by
 *              ballots, not by atomics, so the list is the same in every run
 *   tiles      cuts every expert's pairs into tiles of 8 (small batches) or 64, so that a weight is read once
 *              for all of them
 *   hidden     silu(gate x) * up x of every pair, gate and up together
 *   down       a row of its own for every pair
 *   combine    out[t] += weight * row, over the choices of t in rising order of the expert: no atomics */
#include "kernels/cuda_prompt_tile.cuh"
#include "kernels/cuda_sizes.h"
#include "kernels/cuda_tiles.cuh"

#include <float.h>

enum {
    PLAN_THREADS = 256,
    PLAN_WARPS = PLAN_THREADS / WARP,
    TILES_THREADS = 1024,
    ROUTER_WARPS = 4
};

/* In the scratch. A position is a place in `pairs`. */
typedef struct device_plan {
    uint32_t *first;     /* [n_experts + 1] */
    uint32_t *pairs;     /* [n_pairs]: t * top_k + choice, by expert */
    uint32_t *place;     /* [n_pairs]: the position of a pair, or MOE_ELSEWHERE */
    uint32_t *tile;      /* [tiles_max][2]: expert, first position */
    uint32_t *n_tiles;   /* [1] */
    float *hidden;       /* [n_pairs][ffn] */
    float *rows;         /* [n_pairs][dim]: what down gives */
    uint32_t tile_items; /* 8 or 64 */
    uint32_t tiles_max;
} device_plan;

static device_plan plan_of(const moe_args *args)
{
    const uint32_t n_pairs = args->n_tokens * args->top_k;
    uint8_t *base = static_cast<uint8_t *>(args->scratch);
    size_t at[CUDA_MOE_ARRAYS + 1];
    const err_t err = cuda_moe_lay_out(n_pairs, args->dim, args->ffn, args->n_experts, at);
    assert(err == ERR_OK);
    device_plan plan = {};
    plan.first = reinterpret_cast<uint32_t *>(base + at[0]);
    plan.pairs = reinterpret_cast<uint32_t *>(base + at[1]);
    plan.place = reinterpret_cast<uint32_t *>(base + at[2]);
    plan.tile = reinterpret_cast<uint32_t *>(base + at[3]);
    plan.n_tiles = reinterpret_cast<uint32_t *>(base + at[4]);
    plan.hidden = reinterpret_cast<float *>(base + at[5]);
    plan.rows = reinterpret_cast<float *>(base + at[6]);
    plan.tile_items = args->n_tokens > SMALL ? uint32_t{PROMPT_TILE} : uint32_t{TILE_TOKENS};
    const uint32_t most =
        div_up(n_pairs, plan.tile_items) + args->n_experts; /* a ragged tile each */
    plan.tiles_max = most < n_pairs ? most : n_pairs;
    return plan;
}

/* The sum over the block of one number per thread; `sums` [PLAN_WARPS] may be used again after a barrier. */
static __device__ uint32_t block_sum(uint32_t mine, uint32_t *sums)
{
    const uint32_t of_warp = warp_sum(mine);
    uint32_t total = 0;
    if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = of_warp;
    __syncthreads();
    for (uint32_t w = 0; w < PLAN_WARPS; w++)
        total += sums[w];
    __syncthreads();
    return total;
}

static __global__ void __launch_bounds__(PLAN_THREADS) plan_kernel(moe_args args, device_plan plan)
{
    CUDA_SHARED(uint32_t, sums); /* [PLAN_WARPS] */
    const uint32_t e = blockIdx.x, n = args.n_tokens * args.top_k;
    const uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    uint32_t n_before = 0;
    for (uint32_t i = threadIdx.x; i < n; i += PLAN_THREADS)
        n_before += args.chosen[i] < e; /* MOE_ELSEWHERE is above all */
    uint32_t next = block_sum(n_before, sums);
    if (threadIdx.x == 0) plan.first[e] = next;
    for (uint32_t from = 0; from < n; from += PLAN_THREADS) {
        const uint32_t i = from + threadIdx.x, chosen = i < n ? args.chosen[i] : MOE_ELSEWHERE;
        const uint32_t votes = __ballot_sync(WARP_ALL, chosen == e);
        if (lane == 0) sums[warp] = static_cast<uint32_t>(__popc(votes));
        __syncthreads();
        uint32_t in_warps_before = 0, in_all = 0;
        for (uint32_t w = 0; w < PLAN_WARPS; w++) {
            in_warps_before += w < warp ? sums[w] : 0;
            in_all += sums[w];
        }
        __syncthreads();
        const uint32_t below = static_cast<uint32_t>(__popc(votes & ((1u << lane) - 1)));
        const uint32_t position = next + in_warps_before + below;
        if (chosen == e) {
            plan.pairs[position] = i;
            plan.place[i] = position;
        }
        if (e == 0 && i < n && chosen == MOE_ELSEWHERE) plan.place[i] = MOE_ELSEWHERE;
        next += in_all;
    }
    if (e + 1 == args.n_experts && threadIdx.x == 0) plan.first[e + 1] = next;
}

/* One block, a thread per expert. */
static __global__ void __launch_bounds__(TILES_THREADS)
    tiles_kernel(uint32_t n_experts, device_plan plan)
{
    CUDA_SHARED(uint32_t, counts); /* [n_experts]: tiles */
    const uint32_t e = threadIdx.x;
    const uint32_t first = e < n_experts ? plan.first[e] : 0,
                   end = e < n_experts ? plan.first[e + 1] : 0;
    const uint32_t mine = div_up(end - first, plan.tile_items);
    if (e < n_experts) counts[e] = mine;
    __syncthreads();
    if (e >= n_experts) return;
    uint32_t at = 0;
    for (uint32_t other = 0; other < e; other++)
        at += counts[other];
    for (uint32_t i = 0; i < mine; i++) {
        plan.tile[2 * (at + i)] = e;
        plan.tile[2 * (at + i) + 1] = first + i * plan.tile_items;
    }
    if (e + 1 == n_experts) *plan.n_tiles = at + mine;
}

/* Element `row` of a bias; 0 if there is none. */
static __device__ __forceinline__ float bias_of(const matrix *bias, uint32_t row)
{
    return bias->data != NULL ? cuda_load(bias->data, bias->type, row) : 0;
}

/* Of an expert's products with row `row` of gate and up. */
static __device__ __forceinline__ float gated(const moe_args *args, const moe_expert *expert,
                                              uint32_t row, float gate, float up)
{
    gate += bias_of(&expert->gate_bias, row);
    up += bias_of(&expert->up_bias, row);
    if (args->activation == MOE_SILU) return gate / (1 + expf(-gate)) * up;
    gate = fminf(gate, args->limit);
    up = fmaxf(fminf(up, args->limit), -args->limit);
    return gate / (1 + expf(-args->alpha * gate)) * (up + 1);
}

/* The items of tile blockIdx.y, of x (hidden) or of the hidden rows (down); false behind the last tile. */
static __device__ bool find_items(const moe_args *args, const device_plan *plan, bool is_down,
                                  const moe_expert **expert, product_tokens *items)
{
    if (blockIdx.y >= *plan->n_tiles) return false;
    const uint32_t e = plan->tile[2 * blockIdx.y], first = plan->tile[2 * blockIdx.y + 1];
    const uint32_t end = plan->first[e + 1], most = first + plan->tile_items;
    *expert = &args->expert[e];
    items->x = is_down ? plan->hidden : args->x;
    items->x_stride = is_down ? args->ffn : args->dim;
    items->pairs = is_down ? NULL : plan->pairs;
    items->per = args->top_k;
    items->first = first;
    items->end = end < most ? end : most;
    return true;
}

static __global__ void __launch_bounds__(SMALL_THREADS)
    hidden_kernel(moe_args args, device_plan plan)
{
    CUDA_SHARED(float, cells);
    const moe_expert *expert;
    product_tokens items;
    if (!find_items(&args, &plan, false, &expert, &items)) return;
    const matrix *const w[2] = {&expert->gate, &expert->up};
    float sum[2];
    small_tile<2>(w, blockIdx.x * TILE_ROWS, &items, cells, sum);
    const uint32_t row = blockIdx.x * TILE_ROWS + threadIdx.x % TILE_ROWS;
    const uint32_t item = items.first + threadIdx.x / TILE_ROWS;
    if (threadIdx.x < SMALL_CELLS && row < args.ffn && item < items.end)
        plan.hidden[static_cast<size_t>(item) * args.ffn + row] =
            gated(&args, expert, row, sum[0], sum[1]);
}

static __global__ void __launch_bounds__(SMALL_THREADS) down_kernel(moe_args args, device_plan plan)
{
    CUDA_SHARED(float, cells);
    const moe_expert *expert;
    product_tokens items;
    if (!find_items(&args, &plan, true, &expert, &items)) return;
    const matrix *const w[1] = {&expert->down};
    float sum[1];
    small_tile<1>(w, blockIdx.x * TILE_ROWS, &items, cells, sum);
    const uint32_t row = blockIdx.x * TILE_ROWS + threadIdx.x % TILE_ROWS;
    const uint32_t item = items.first + threadIdx.x / TILE_ROWS;
    if (threadIdx.x < SMALL_CELLS && row < args.dim && item < items.end)
        plan.rows[static_cast<size_t>(item) * args.dim + row] =
            sum[0] + bias_of(&expert->down_bias, row);
}

/* Products with down, or with gate and up, which go to hidden. */
typedef struct prompt_rows {
    const moe_args *args;
    const moe_expert *expert;
    bool is_down;
    float *out;
} prompt_rows;

static __device__ __forceinline__ void put_row(const prompt_rows *to, uint32_t row, uint32_t item,
                                               float gate, float sum)
{
    const uint32_t n_rows = to->is_down ? to->args->dim : to->args->ffn;
    to->out[static_cast<size_t>(item) * n_rows + row] =
        to->is_down ? sum + bias_of(&to->expert->down_bias, row)
                    : gated(to->args, to->expert, row, gate, sum);
}

/* A tile of a type that tensor cores do not take, by the four warps of a prompt's block: 2 rows and 8 items
 * each time. */
static __device__ void lanes_of_prompt(const prompt_rows *to, const product_tokens *items)
{
    const matrix *w = to->is_down ? &to->expert->down : &to->expert->up;
    const uint32_t first_row = blockIdx.x * PROMPT_TILE, n_subtiles = PROMPT_TILE / LANE_ROWS * 8;
    for (uint32_t s = threadIdx.x / WARP; s < n_subtiles; s += PROMPT_THREADS / WARP) {
        const uint32_t row = first_row + s / 8 * LANE_ROWS;
        product_tokens some = *items;
        some.first += s % 8 * TILE_TOKENS;
        float sums[LANE_ROWS][TILE_TOKENS] = {}, gates[LANE_ROWS][TILE_TOKENS] = {};
        lanes_tile(w, row, &some, sums);
        if (!to->is_down) lanes_tile(&to->expert->gate, row, &some, gates);
        for (uint32_t i = 0; threadIdx.x % WARP == 0 && i < LANE_ROWS * TILE_TOKENS; i++) {
            const uint32_t r = i % LANE_ROWS, t = i / LANE_ROWS, item = some.first + t;
            if (row + r >= w->rows || item >= some.end) continue;
            put_row(to, row + r, item, gates[r][t], sums[r][t]);
        }
    }
}

/* The same two for prompts. */
static __device__ void run_prompt(prompt_tiles *tiles, const prompt_rows *to,
                                  const product_tokens *items)
{
    const matrix *w = to->is_down ? &to->expert->down : &to->expert->up;
    if (!is_tensor_type(w->type)) {
        lanes_of_prompt(to, items);
        return;
    }
    const uint32_t first_row = blockIdx.x * PROMPT_TILE;
    float total[2][4][4] = {}, gates[2][4][4] = {};
    prompt_tile(tiles, w, first_row, items, total);
    if (!to->is_down) prompt_tile(tiles, &to->expert->gate, first_row, items, gates);
    for (int r = 0; r < 2; r++) {
        for (int n = 0; n < 4; n++) {
            for (int i = 0; i < 4; i++) {
                const uint32_t row = first_row + prompt_row(r, i),
                               item = items->first + prompt_item(n, i);
                if (row >= w->rows || item >= items->end) continue;
                put_row(to, row, item, gates[r][n][i], total[r][n][i]);
            }
        }
    }
}

static __global__ void __launch_bounds__(PROMPT_THREADS)
    prompt_hidden_kernel(moe_args args, device_plan plan)
{
    CUDA_SHARED(prompt_tiles, tiles);
    const moe_expert *expert;
    product_tokens items;
    if (!find_items(&args, &plan, false, &expert, &items)) return;
    const prompt_rows to = {&args, expert, false, plan.hidden};
    run_prompt(tiles, &to, &items);
}

static __global__ void __launch_bounds__(PROMPT_THREADS)
    prompt_down_kernel(moe_args args, device_plan plan)
{
    CUDA_SHARED(prompt_tiles, tiles);
    const moe_expert *expert;
    product_tokens items;
    if (!find_items(&args, &plan, true, &expert, &items)) return;
    const prompt_rows to = {&args, expert, true, plan.rows};
    run_prompt(tiles, &to, &items);
}

/* A block per token. */
static __global__ void __launch_bounds__(PLAN_THREADS)
    combine_kernel(moe_args args, device_plan plan)
{
    CUDA_SHARED(uint32_t, order); /* [top_k]: pairs of this token in rising order of the expert */
    const size_t first = static_cast<size_t>(blockIdx.x) * args.top_k;
    if (threadIdx.x < args.top_k) {
        const uint32_t mine = args.chosen[first + threadIdx.x];
        uint32_t rank = 0;
        for (uint32_t c = 0; c < args.top_k; c++) {
            const uint32_t other = args.chosen[first + c];
            rank += other < mine || (other == mine && c < threadIdx.x);
        }
        order[rank] = threadIdx.x;
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < args.dim; i += PLAN_THREADS) {
        float *out = args.out + static_cast<size_t>(blockIdx.x) * args.dim + i;
        float sum = *out;
        for (uint32_t c = 0; c < args.top_k; c++) {
            const size_t pair = first + order[c];
            const uint32_t place = plan.place[pair];
            if (place == MOE_ELSEWHERE) continue;
            sum =
                fmaf(args.weight[pair], plan.rows[static_cast<size_t>(place) * args.dim + i], sum);
        }
        *out = sum;
    }
}

void moe_cuda(dev_cuda *d, const moe_args *args)
{
    assert(args->n_experts <= MOE_EXPERTS_MAX);
    assert(args->top_k <= MOE_TOP_K_MAX);
    if (args->n_tokens == 0 || args->top_k == 0) return;
    const device_plan plan = plan_of(args);
    const size_t sums_bytes = PLAN_WARPS * sizeof(uint32_t),
                 counts = args->n_experts * sizeof(uint32_t);
    cuda_launch(d, cuda_shape{dim3(args->n_experts), PLAN_THREADS, sums_bytes}, plan_kernel, *args,
                plan);
    cuda_launch(d, cuda_shape{dim3(1), TILES_THREADS, counts}, tiles_kernel, args->n_experts, plan);
    const bool is_small = plan.tile_items == TILE_TOKENS;
    const uint32_t rows = is_small ? uint32_t{TILE_ROWS} : uint32_t{PROMPT_TILE};
    const dim3 hidden(div_up(args->ffn, rows), plan.tiles_max),
        down(div_up(args->dim, rows), plan.tiles_max);
    const size_t cells = STRANDS * SMALL_CELLS * sizeof(float), tiles = sizeof(prompt_tiles);
    if (is_small) {
        cuda_launch(d, cuda_shape{hidden, SMALL_THREADS, 2 * cells}, hidden_kernel, *args, plan);
        cuda_launch(d, cuda_shape{down, SMALL_THREADS, cells}, down_kernel, *args, plan);
    } else {
        cuda_launch(d, cuda_shape{hidden, PROMPT_THREADS, tiles}, prompt_hidden_kernel, *args,
                    plan);
        cuda_launch(d, cuda_shape{down, PROMPT_THREADS, tiles}, prompt_down_kernel, *args, plan);
    }
    const size_t order_bytes = args->top_k * sizeof(uint32_t);
    cuda_launch(d, cuda_shape{dim3(args->n_tokens), PLAN_THREADS, order_bytes}, combine_kernel,
                *args, plan);
}

enum { UNCHOOSABLE = -2, IS_NAN = -1 }; /* stand in for a probability: below all, in this order */

/* p = softmax(logits), in double as the definition's, so that the rounded f32 are the same almost always. A NaN
 * anywhere makes all of them NaN. */
static __device__ void softmax(const float *logits, uint32_t n, float *p)
{
    const uint32_t lane = threadIdx.x % WARP;
    double top = -INFINITY, sum = 0;
    for (uint32_t e = lane; e < n; e += WARP)
        top = fmax(top, static_cast<double>(logits[e]));
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        top = fmax(top, __shfl_xor_sync(WARP_ALL, top, distance));
    for (uint32_t e = lane; e < n; e += WARP)
        sum += exp(static_cast<double>(logits[e]) - top);
    sum = warp_sum(sum);
    for (uint32_t e = lane; e < n; e += WARP) {
        const float share = static_cast<float>(exp(static_cast<double>(logits[e]) - top) / sum);
        p[e] = share >= 0 ? share : static_cast<float>(IS_NAN);
    }
}

static __device__ void sigmoid(const float *logits, uint32_t n, float *p)
{
    for (uint32_t e = threadIdx.x % WARP; e < n; e += WARP) {
        const float share = static_cast<float>(1 / (1 + exp(-static_cast<double>(logits[e]))));
        p[e] = share >= 0 ? share : static_cast<float>(IS_NAN);
    }
}

/* For choices by the logit itself: a NaN is below all of them. */
static __device__ void finite(const float *logits, uint32_t n, float *p)
{
    for (uint32_t e = threadIdx.x % WARP; e < n; e += WARP)
        p[e] = logits[e] > -FLT_MAX ? logits[e] : -FLT_MAX;
}

/* The largest of p, ties to the lower expert: exact comparisons of (p, e). It is made `unchoosable`. */
static __device__ uint32_t take_largest(float *p, uint32_t n, float unchoosable, float *largest)
{
    const uint32_t lane = threadIdx.x % WARP;
    float best = unchoosable;
    uint32_t best_e = UINT32_MAX;
    for (uint32_t e = lane; e < n; e += WARP) {
        if (p[e] > best) best = p[e], best_e = e;
    }
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        const float other = __shfl_xor_sync(WARP_ALL, best, distance);
        const uint32_t other_e = __shfl_xor_sync(WARP_ALL, best_e, distance);
        if (other > best || (other == best && other_e < best_e)) best = other, best_e = other_e;
    }
    if (best_e % WARP == lane) p[best_e] = unchoosable; /* by the lane that alone reads it */
    *largest = best;
    return best_e;
}

static __device__ uint32_t take_probable(float *p, uint32_t n, float *share)
{
    const uint32_t e = take_largest(p, n, UNCHOOSABLE, share);
    if (*share == static_cast<float>(IS_NAN)) *share = NAN;
    return e;
}

/* See take_mixed of moe_cpu.c. */
static __device__ uint32_t take_mixed(const router_args *args, const float *logits, float *p,
                                      float *share)
{
    float top;
    double sum = 0;
    const uint32_t best = take_largest(p, args->n_experts, -INFINITY, &top);
    const double m = static_cast<double>(logits[best]);
    for (uint32_t e = threadIdx.x % WARP; e < args->n_experts; e += WARP) {
        const double l = static_cast<double>(logits[e]), scale = fabs(l) > m ? fabs(l) : m;
        if (p[e] == -INFINITY || (m - l) / scale > 2 * static_cast<double>(args->jitter)) continue;
        sum += exp(l - m);
    }
    *share = static_cast<float>(1 / (1 + warp_sum(sum)));
    return best;
}

/* See group_worth of moe_cpu.c. */
static __device__ float group_worth(const float *choice, uint32_t n, uint32_t n_best)
{
    float best = choice[0], second = -INFINITY;
    for (uint32_t e = 1; e < n; e++) {
        second = choice[e] > best ? best : choice[e] > second ? choice[e] : second;
        best = choice[e] > best ? choice[e] : best;
    }
    return n_best == 1 || n == 1 ? best : best + second;
}

/* Makes the experts of all but the best groups unchoosable. `worth` [n_groups] is the warp's. */
static __device__ void leave_groups(const router_args *args, float *choice, float *worth)
{
    const uint32_t lane = threadIdx.x % WARP, n = args->n_experts / args->n_groups;
    uint32_t best = 0; /* bit g: group g */
    float unused;
    __syncwarp();
    if (lane < args->n_groups) worth[lane] = group_worth(choice + lane * n, n, args->n_group_best);
    __syncwarp();
    for (uint32_t i = 0; i < args->top_groups; i++)
        best |= 1u << take_largest(worth, args->n_groups, -INFINITY, &unused);
    for (uint32_t e = lane; e < args->n_experts; e += WARP) {
        if ((best >> e / n & 1) == 0) choice[e] = -INFINITY;
    }
}

/* What experts are chosen by, where it is not p. */
static __device__ void fill_choice(const router_args *args, const float *p, float *choice,
                                   float *worth)
{
    for (uint32_t e = threadIdx.x % WARP; e < args->n_experts; e += WARP) {
        const float bias =
            args->choice_bias != NULL ? cuda_load(args->choice_bias, args->choice_bias_type, e) : 0;
        choice[e] = p[e] == static_cast<float>(IS_NAN) ? -FLT_MAX : p[e] + bias;
    }
    if (args->n_groups > 0) leave_groups(args, choice, worth);
}

/* The next one by `choice`, and its p, which one lane has. */
static __device__ uint32_t take_chosen(const router_args *args, const float *p, float *choice,
                                       float *share)
{
    float unused;
    const uint32_t e = take_largest(choice, args->n_experts, -INFINITY, &unused);
    const float mine = e % WARP == threadIdx.x % WARP ? p[e] : 0;
    *share = __shfl_sync(WARP_ALL, mine, static_cast<int>(e % WARP));
    if (*share == static_cast<float>(IS_NAN)) *share = NAN;
    return e;
}

static __host__ __device__ __forceinline__ bool is_plain(const router_args *args)
{
    return args->choice_bias == NULL && args->n_groups == 0;
}

/* Floats in shared memory of a warp: p, and where something else chooses, that and the worth of groups. */
static __host__ __device__ __forceinline__ uint32_t router_floats(const router_args *args)
{
    return is_plain(args) ? args->n_experts : 2 * args->n_experts + MOE_GROUPS_MAX;
}

/* A warp per token; a lane has every 32nd expert, so no lane reads what another wrote, but for groups. */
static __global__ void __launch_bounds__(ROUTER_WARPS *WARP) router_kernel(router_args args)
{
    CUDA_SHARED(float, shared); /* [ROUTER_WARPS][router_floats] */
    const uint32_t warp = threadIdx.x / WARP, t = blockIdx.x * ROUTER_WARPS + warp;
    float *p = shared + warp * router_floats(&args), chosen[MOE_TOP_K_MAX];
    float *choice = p + args.n_experts;
    double sum = 0;
    if (t >= args.n_tokens) return;
    const float *logits = args.logits + static_cast<size_t>(t) * args.n_experts;
    const bool is_mixed = args.kind == ROUTER_SPARSEMIXER;
    if (args.kind == ROUTER_SOFTMAX) softmax(logits, args.n_experts, p);
    if (args.kind == ROUTER_SIGMOID) sigmoid(logits, args.n_experts, p);
    if (is_mixed) finite(logits, args.n_experts, p);
    if (!is_plain(&args)) fill_choice(&args, p, choice, choice + args.n_experts);
    const size_t first = static_cast<size_t>(t) * args.top_k;
    for (uint32_t i = 0; i < args.top_k; i++) {
        const uint32_t e = is_mixed          ? take_mixed(&args, logits, p, &chosen[i])
                           : is_plain(&args) ? take_probable(p, args.n_experts, &chosen[i])
                                             : take_chosen(&args, p, choice, &chosen[i]);
        if (threadIdx.x % WARP == 0) args.expert[first + i] = e;
        sum += static_cast<double>(chosen[i]);
    }
    for (uint32_t i = 0; threadIdx.x % WARP == 0 && i < args.top_k; i++) {
        const double share = static_cast<double>(chosen[i]) * static_cast<double>(args.scale);
        args.weight[first + i] =
            static_cast<float>(args.renormalise ? share / (sum + 1e-20) : share);
    }
}

void router_cuda(dev_cuda *d, const router_args *args)
{
    assert(args->n_experts <= MOE_EXPERTS_MAX);
    assert(args->top_k >= 1);
    assert(args->top_k <= args->n_experts);
    assert(args->top_k <= MOE_TOP_K_MAX);
    if (args->n_tokens == 0) return;
    assert(args->n_groups <= MOE_GROUPS_MAX);
    const size_t bytes = ROUTER_WARPS * router_floats(args) * sizeof(float);
    const cuda_shape shape = {dim3(div_up(args->n_tokens, ROUTER_WARPS)), ROUTER_WARPS * WARP,
                              bytes};
    cuda_launch(d, shape, router_kernel, *args);
}
