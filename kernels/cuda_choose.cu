/* kernels/cuda_choose.cu - which pages decode rows read. Contract: choose_pages.h.
 *
 *   bound      a block of threads per (choice, KV head, CHUNK entries): 8 lanes a box, a lane taking units of eight
 *              channels lane, lane + 8, ..., so that a box is read in pieces of 16 bytes. Lanes are added by a fixed
 *              tree; what a box gets depends on nothing else.
 *   by mass    cuda_choose_mass.cu, where a rule asks for it
 *   choose     a block per (choice, KV head): of as many as are read the last one's bound is found by its bits, eight at
 *              a time from the top, through a histogram of those that agree so far; then one walk in the order of entries
 *              takes what is above it, and the first ones of what is equal. Atomics are on integers alone.
 *
 * Sums that end in a product are explicit multiply-adds: see cuda_attention.cu. */
#include "kernels/cuda_attention_rows.cuh"
#include "kernels/cuda_choose.cuh"

#include <float.h>

enum {
    BOUND_THREADS = 128,
    BOX_LANES = 8,
    BOXES_AT_ONCE = BOUND_THREADS / BOX_LANES,
    CHUNK = 4 * BOXES_AT_ONCE,
    CHOOSE_THREADS = 256,
    CHOOSE_WARPS = CHOOSE_THREADS / WARP,
    DIGIT_BITS = 8,
    N_DIGITS = 1 << DIGIT_BITS
};

/* ---- bounds -------------------------------------------------------------------------------------- */

static __device__ __forceinline__ float sum_of_lanes(float x)
{
    for (int distance = BOX_LANES / 2; distance > 0; distance /= 2)
        x += __shfl_xor_sync(WARP_ALL, x, distance);
    return x;
}

/* sum += max(q lo, q hi), magnitude += |...| over a lane's units. */
static __device__ __forceinline__ void add_products(const attend_pages_args *attend, const float *q,
                                                    const uint8_t *lo, float *sum, float *magnitude)
{
    const uint32_t k_dim = attend->k_dim;
    const uint8_t *hi = lo + static_cast<size_t>(k_dim) * (attend->type == DTYPE_F32 ? 4 : 2);
    for (uint32_t u = threadIdx.x % BOX_LANES; u < div_up(k_dim, UNIT); u += BOX_LANES) {
        float low[UNIT], high[UNIT];
        load_plain8(lo, attend->type, UNIT * u, k_dim, low);
        load_plain8(hi, attend->type, UNIT * u, k_dim, high);
        for (uint32_t e = 0; e < UNIT && UNIT * u + e < k_dim; e++) {
            const float x = q[UNIT * u + e], largest = fmaxf(x * low[e], x * high[e]);
            *sum += largest;
            *magnitude += fabsf(largest);
        }
    }
}

static __global__ void __launch_bounds__(BOUND_THREADS)
    bound_kernel(choose_pages_args args, attend_pages_args attend, uint32_t n_chunks)
{
    const head_choice c = find_choice(&args, &attend, blockIdx.x / n_chunks);
    const uint32_t begin = blockIdx.x % n_chunks * CHUNK;
    const float slack = static_cast<float>(attend.k_dim + 2) * 0x1p-23f;
    const float *q = attend.q + c.row.first_token * attend.q_stride +
                     static_cast<size_t>(c.kv_head) * attend.group * attend.k_dim;
    for (uint32_t from = begin; from < begin + CHUNK && from < c.row.n_blocks;
         from += BOXES_AT_ONCE) {
        const uint32_t block = from + threadIdx.x / BOX_LANES;
        const attn_page *page = page_at(&c, &attend, block);
        const bool is_there = block < c.row.n_blocks, is_writer = threadIdx.x % BOX_LANES == 0;
        const bool is_candidate =
            is_there && block >= c.first && block < c.choice.n_candidates && page->live != 0;
        const uint32_t box = is_candidate ? page->box : 0;
        const bool has_bias =
            is_candidate && args.bias_most != NULL && args.bias_most[box] > -INFINITY;
        const float bias = has_bias ? args.bias_most[box] : 0;
        float most = is_candidate ? -FLT_MAX : -INFINITY;
        for (uint32_t g = 0; g < attend.group; g++) {
            float sum = 0, magnitude = 0;
            if (is_candidate)
                add_products(&attend, q + static_cast<size_t>(g) * attend.k_dim,
                             args.boxes + box * args.box_stride_bytes, &sum, &magnitude);
            sum = sum_of_lanes(sum);
            magnitude = sum_of_lanes(magnitude);
            if (!is_candidate) continue;
            const float bound = fmaf(attend.scale, fmaf(slack, magnitude, sum), bias);
            most = fmaxf(most, bound);
            if (is_writer) c.bounds[static_cast<size_t>(g) * args.n_blocks_max + block] = bound;
        }
        if (is_there && is_writer) c.most[block] = most;
    }
}

/* ---- choice -------------------------------------------------------------------------------------- */

typedef struct choose_shared {
    uint32_t n_of_digit[N_DIGITS];
    uint32_t n_above[2][CHOOSE_WARPS], n_equal[2][CHOOSE_WARPS]; /* steps of a walk take turns */
    uint32_t digit, n_left;
    uint32_t n_open, n_chosen, n_read;
    unsigned long long read_bytes;
    float max[CHOOSE_WARPS], sum[CHOOSE_WARPS];
    struct {
        float bound[ATTN_SHARDS_MAX];
        unsigned long long n_live[ATTN_SHARDS_MAX];
        uint32_t n_pages[ATTN_SHARDS_MAX];
        uint32_t n_chosen; /* pages */
    } shards;
} choose_shared;

/* As attn_n_chosen, which is the host's. */
static __device__ __forceinline__ uint32_t n_chosen_of(double k, uint32_t n_open)
{
    const double n = k <= 1 ? ceil(k * n_open) : k;
    return n < n_open ? static_cast<uint32_t>(n) : n_open;
}

/* The candidates that are chosen: with a key above, and the first n_equal of those that have it. */
typedef struct threshold {
    uint32_t key, n_equal;
} threshold;

/* Of a histogram, a digit a thread: the digit at which the n-th from above is, and how many of it belong to them. */
static __device__ void find_digit(choose_shared *s, uint32_t n)
{
    const uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const uint32_t mine = s->n_of_digit[threadIdx.x];
    uint32_t from_here = mine, above = 0; /* of the warp's digits from this one on */
    for (uint32_t distance = 1; distance < WARP; distance *= 2) {
        const uint32_t other = __shfl_sync(WARP_ALL, from_here, (lane + distance) % WARP);
        from_here += lane + distance < WARP ? other : 0;
    }
    if (lane == 0) s->n_above[0][warp] = from_here;
    __syncthreads();
    for (uint32_t w = warp + 1; w < CHOOSE_WARPS; w++)
        above += s->n_above[0][w];
    above += from_here - mine;
    if (above < n && above + mine >= n) {
        s->digit = threadIdx.x;
        s->n_left = n - above;
    }
    __syncthreads();
}

/* Where the n-th of n_open candidates is. */
static __device__ threshold find_threshold(const head_choice *c, choose_shared *s, uint32_t n)
{
    threshold out = {0, 0}; /* all are above */
    uint32_t mask = 0;
    if (n == 0) out.key = UINT32_MAX; /* none is */
    if (n == 0 || n >= s->n_open) return out;
    for (int shift = 32 - DIGIT_BITS; shift >= 0; shift -= DIGIT_BITS) {
        s->n_of_digit[threadIdx.x] = 0;
        __syncthreads();
        for (uint32_t b = threadIdx.x; b < c->row.n_blocks; b += CHOOSE_THREADS) {
            const uint32_t key = key_of(c->most[b]);
            if (c->most[b] > -INFINITY && (key & mask) == out.key)
                atomicAdd(&s->n_of_digit[key >> shift & (N_DIGITS - 1)], 1u);
        }
        __syncthreads();
        find_digit(s, n);
        n = s->n_left;
        out.key |= s->digit << shift;
        mask |= (N_DIGITS - 1u) << shift;
    }
    out.n_equal = n;
    return out;
}

/* Of a step of a walk: how many have a flag in the warps before, and in all. */
static __device__ __forceinline__ uint2 count_flags(const uint32_t n[CHOOSE_WARPS])
{
    uint2 out = {0, 0};
    for (uint32_t w = 0; w < CHOOSE_WARPS; w++) {
        if (w < threadIdx.x / WARP) out.x += n[w];
        out.y += n[w];
    }
    return out;
}

/* What a thread has taken. */
typedef struct taken {
    uint32_t n_chosen, n_read, read_bytes;
} taken;

/* Writes what is read, rising, and marks it in `most`. */
static __device__ taken list_chosen(const head_choice *c, const attend_pages_args *attend,
                                    choose_shared *s, threshold from, uint32_t *chosen)
{
    const uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, below = (1u << lane) - 1;
    uint32_t n_above = 0, n_equal = 0, turn = 0;
    taken mine = {0, 0, 0};
    for (uint32_t begin = 0; begin < c->row.n_blocks; begin += CHOOSE_THREADS, turn ^= 1) {
        const uint32_t b = begin + threadIdx.x;
        const bool is_there = b < c->row.n_blocks && b >= c->first;
        const bool is_candidate = is_there && c->most[b] > -INFINITY;
        const uint32_t key = is_candidate ? key_of(c->most[b]) : 0;
        const bool is_above =
            (is_there && b >= c->choice.n_candidates) || (is_candidate && key > from.key);
        const bool is_equal = is_candidate && key == from.key;
        const uint32_t above = __ballot_sync(WARP_ALL, is_above);
        const uint32_t equal = __ballot_sync(WARP_ALL, is_equal);
        if (lane == 0) {
            s->n_above[turn][warp] = static_cast<uint32_t>(__popc(above));
            s->n_equal[turn][warp] = static_cast<uint32_t>(__popc(equal));
        }
        __syncthreads();
        const uint2 of_above = count_flags(s->n_above[turn]),
                    of_equal = count_flags(s->n_equal[turn]);
        const uint32_t above_before =
            n_above + of_above.x + static_cast<uint32_t>(__popc(above & below));
        const uint32_t equal_before =
            n_equal + of_equal.x + static_cast<uint32_t>(__popc(equal & below));
        n_above += of_above.y;
        n_equal += of_equal.y;
        if (!is_above && !(is_equal && equal_before < from.n_equal)) continue;
        const uint32_t n_before =
            above_before + (equal_before < from.n_equal ? equal_before : from.n_equal);
        const attn_page *page = page_at(c, attend, b);
        chosen[1 + n_before] = b;
        c->most[b] = -INFINITY;
        mine.n_chosen += is_candidate;
        mine.n_read += page->live != 0;
        mine.read_bytes += page->live != 0 ? page->read_bytes : 0;
    }
    if (threadIdx.x == 0) chosen[0] = n_above + (n_equal < from.n_equal ? n_equal : from.n_equal);
    return mine;
}

/* What head g may miss. */
static __device__ void sum_unread(const choose_pages_args *args, const attend_pages_args *attend,
                                  const head_choice *c, choose_shared *s, uint32_t g)
{
    mass mine = {-INFINITY, 0};
    const float *bound = c->bounds + static_cast<size_t>(g) * args->n_blocks_max;
    for (uint32_t b = threadIdx.x; b < c->row.n_blocks; b += CHOOSE_THREADS) {
        if (c->most[b] == -INFINITY) continue;
        const int n_live = __popcll(page_at(c, attend, b)->live);
        mine = add_masses(mine, {bound[b], static_cast<float>(n_live)});
    }
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        const mass other = {__shfl_xor_sync(WARP_ALL, mine.max, distance),
                            __shfl_xor_sync(WARP_ALL, mine.sum, distance)};
        mine = add_masses(mine, other);
    }
    if (threadIdx.x % WARP == 0) {
        s->max[threadIdx.x / WARP] = mine.max;
        s->sum[threadIdx.x / WARP] = mine.sum;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        for (uint32_t w = 1; w < CHOOSE_WARPS; w++)
            mine = add_masses(mine, {s->max[w], s->sum[w]});
        args->log_unread[c->at * attend->group + g] =
            mine.sum > 0 ? static_cast<double>(mine.max) + log(static_cast<double>(mine.sum))
                         : -static_cast<double>(INFINITY);
    }
    __syncthreads();
}

/* ---- shards: a thread each ---- */

static __device__ void sum_shard(const head_choice *c, const attend_pages_args *attend,
                                 choose_shared *s, uint32_t shard)
{
    unsigned long long n_live = 0;
    uint32_t n_pages = 0;
    float bound = -INFINITY;
    for (uint32_t b = shard; b < c->row.n_blocks; b += c->choice.n_shards) {
        if (c->most[b] == -INFINITY) continue;
        n_pages++;
        n_live += static_cast<uint32_t>(__popcll(page_at(c, attend, b)->live));
        bound = fmaxf(bound, c->most[b]);
    }
    s->shards.bound[shard] = bound;
    s->shards.n_live[shard] = n_live;
    s->shards.n_pages[shard] = n_pages;
}

/* Is one of the first n? */
static __device__ bool is_best_shard(const head_choice *c, const choose_shared *s, uint32_t shard,
                                     uint32_t n)
{
    const float mine = s->shards.bound[shard];
    uint32_t n_before = 0;
    for (uint32_t other = 0; other < c->choice.n_shards; other++) {
        const float bound = s->shards.bound[other];
        n_before += bound > mine || (bound == mine && other < shard);
    }
    return s->shards.n_pages[shard] > 0 && n_before < n;
}

/* Gives the candidates of chosen shards 1, others 0; returns how many have 1. */
static __device__ uint32_t choose_shards(const head_choice *c, const attend_pages_args *attend,
                                         choose_shared *s)
{
    const uint32_t shard = threadIdx.x, n_shards = c->choice.n_shards;
    unsigned long long n_live = 0;
    uint32_t n_with = 0;
    if (shard == 0) s->shards.n_chosen = 0;
    if (shard < n_shards) sum_shard(c, attend, s, shard);
    __syncthreads();
    for (uint32_t other = 0; other < n_shards; other++) {
        n_live += s->shards.n_live[other];
        n_with += s->shards.n_pages[other] > 0;
    }
    const float mean = static_cast<float>(n_live) / static_cast<float>(n_with);
    if (shard < n_shards && s->shards.n_pages[shard] > 0 &&
        c->choice.rule == ATTN_RULE_SHARDS_BALANCED)
        s->shards.bound[shard] -= static_cast<float>(s->shards.n_live[shard]) / mean - 1;
    __syncthreads();
    if (shard < n_shards) {
        const bool is_chosen = is_best_shard(c, s, shard, n_chosen_of(c->choice.amount, n_with));
        if (is_chosen) atomicAdd(&s->shards.n_chosen, s->shards.n_pages[shard]);
        for (uint32_t b = shard; b < c->row.n_blocks; b += n_shards) {
            if (c->most[b] > -INFINITY) c->most[b] = is_chosen ? 1 : 0;
        }
    }
    __syncthreads();
    return s->shards.n_chosen;
}

/* How many candidates are read: those that have the largest `most` then. */
static __device__ uint32_t find_number(const choose_pages_args *args, const head_choice *c,
                                       const attend_pages_args *attend, choose_shared *s)
{
    if (s->n_open == 0) return 0;
    switch (c->choice.rule) {
    case ATTN_RULE_NUCLEUS:
    case ATTN_RULE_CERTIFIED: return args->notes[c->at].n_chosen;
    case ATTN_RULE_SHARDS:
    case ATTN_RULE_SHARDS_BALANCED: return choose_shards(c, attend, s);
    default: return n_chosen_of(c->choice.amount, s->n_open);
    }
}

static __global__ void __launch_bounds__(CHOOSE_THREADS)
    choose_kernel(choose_pages_args args, attend_pages_args attend)
{
    CUDA_SHARED(choose_shared, s);
    const head_choice c = find_choice(&args, &attend, blockIdx.x);
    uint32_t n_mine = 0;
    if (threadIdx.x == 0) {
        s->n_open = s->n_chosen = s->n_read = 0;
        s->read_bytes = 0;
    }
    __syncthreads();
    for (uint32_t b = threadIdx.x; b < c.row.n_blocks; b += CHOOSE_THREADS)
        n_mine += c.most[b] > -INFINITY;
    atomicAdd(&s->n_open, n_mine);
    __syncthreads();
    const uint32_t n = find_number(&args, &c, &attend, s);
    const threshold from = find_threshold(&c, s, n);
    uint32_t *chosen = c.row.chosen + static_cast<size_t>(c.kv_head) * attend.chosen_stride;
    const taken mine = list_chosen(&c, &attend, s, from, chosen);
    atomicAdd(&s->n_chosen, mine.n_chosen);
    atomicAdd(&s->n_read, mine.n_read);
    atomicAdd(&s->read_bytes, static_cast<unsigned long long>(mine.read_bytes));
    for (uint32_t g = 0; g < attend.group; g++)
        sum_unread(&args, &attend, &c, s, g);
    if (threadIdx.x == 0) args.notes[c.at] = {s->n_open, s->n_chosen, s->n_read, s->read_bytes};
}

void choose_pages_cuda(dev_cuda *d, const choose_pages_args *args)
{
    const attend_pages_args *attend = args->attend;
    const uint32_t n_heads = args->n_choices * attend->n_kv_heads;
    const uint32_t n_chunks = div_up(args->n_blocks_max, CHUNK);
    const cuda_shape bound = {dim3(n_heads * n_chunks), BOUND_THREADS, 0},
                     choose = {dim3(n_heads), CHOOSE_THREADS, sizeof(choose_shared)};
    assert(attend->type != DTYPE_F16);
    if (n_heads == 0) return;
    assert(static_cast<size_t>(n_heads) * n_chunks <= INT32_MAX);
    cuda_launch(d, bound, bound_kernel, *args, *attend, n_chunks);
    if (args->order != NULL) choose_by_mass_cuda(d, args);
    cuda_launch(d, choose, choose_kernel, *args, *attend);
}
