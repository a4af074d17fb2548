/* kernels/cuda_sample.cu - draws from logits on the device. Contract: sample.h.
 *
 * A block of 1024 threads per row; a row (0.1 to 1 MB) stays in the L2 cache and is read some 3 times, or 10 when
 * cut. Weights are integers, units of 2^-45: 2^18 of at most 2^45 fit 64 bits, their sums are exact, and atomics on
 * them have one result in whatever order they come. A weight below a unit is none: all of them together are less
 * than 2^-27 of the largest.
 *
 * A cut is found by halving, 2048 ways at a time, what is known of its logit: the weights of all candidates are
 * added up in bins of falling logits, and the bin in which the target falls is what is left. The first bins
 * are even parts of the distance to the largest logit, so that few threads meet in one; then they are ranges of
 * the logit's bits, at most three times, until a bin is one value. Those with that value are counted in the order
 * of ids. Every warp has a segment of the ids for that, and for the draw, which is the same walk. */
#include "kernels/cuda_device.cuh"

enum {
    SAMPLE_THREADS = 1024,
    SAMPLE_WARPS = SAMPLE_THREADS / WARP,
    N_BINS = 2048,
    BINS_PER_LANE = N_BINS / WARP
};

typedef unsigned long long units; /* 2^45 are 1 */

#define UNITS_OF_ONE 0x1p45f
#define LEAST_UNIT   32.0f /* exp(-32) is less than one of them */

/* 17 KiB. */
typedef struct sample_shared {
    units weight[N_BINS];
    units partial[SAMPLE_WARPS];
    units before; /* of the bin that was found */
    uint32_t bin; /* N_BINS: the target is behind all */
    uint32_t token;
    uint32_t n_top;
    sample_entry top[SAMPLE_LOGPROBS_MAX];
} sample_shared;

/* Candidates of a row: all of its tokens (raw), or those that may be drawn. */
typedef struct tokens {
    const float *x; /* [n] */
    uint32_t n;
    float max, temperature, min_p;
    bool is_raw;
    uint32_t cut_key, cut_token; /* the last one in rank */
} tokens;

/* Integers in the order of the floats; equal floats, zeros included, have equal ones. */
static __device__ __forceinline__ uint32_t key_of(float x)
{
    const uint32_t bits = x == 0 ? 0 : __float_as_uint(x);
    return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

static __device__ __forceinline__ float float_of(uint32_t key)
{
    return __uint_as_float((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

static __device__ units block_sum(units mine, sample_shared *s)
{
    const units of_warp = warp_sum(mine);
    units total = 0;
    if (threadIdx.x % WARP == 0) s->partial[threadIdx.x / WARP] = of_warp;
    __syncthreads();
    for (uint32_t w = 0; w < SAMPLE_WARPS; w++)
        total += s->partial[w];
    __syncthreads();
    return total;
}

static __device__ units block_max(units mine, sample_shared *s)
{
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        const units other = __shfl_xor_sync(WARP_ALL, mine, distance);
        mine = other > mine ? other : mine;
    }
    if (threadIdx.x % WARP == 0) s->partial[threadIdx.x / WARP] = mine;
    __syncthreads();
    for (uint32_t w = 0; w < SAMPLE_WARPS; w++)
        mine = s->partial[w] > mine ? s->partial[w] : mine;
    __syncthreads();
    return mine;
}

/* The first in rank. False: there is a NaN, or it is not finite. */
static __device__ bool find_first(const float *x, uint32_t n, sample_shared *s, float *max,
                                  uint32_t *token)
{
    units best = 0;
    for (uint32_t i = threadIdx.x; i < n; i += SAMPLE_THREADS) {
        const units mine =
            isnan(x[i]) ? ~units{0} : static_cast<units>(key_of(x[i])) << 32 | (UINT32_MAX - i);
        best = mine > best ? mine : best;
    }
    best = block_max(best, s);
    *max = float_of(static_cast<uint32_t>(best >> 32));
    *token = UINT32_MAX - static_cast<uint32_t>(best);
    return best != ~units{0} && isfinite(*max);
}

/* ---- weights ------------------------------------------------------------------------------------- */

static __device__ __forceinline__ bool is_kept(const tokens *of, uint32_t token, uint32_t key)
{
    return key > of->cut_key || (key == of->cut_key && token <= of->cut_token);
}

/* 0: it cannot be drawn. */
static __device__ __forceinline__ units weight_of(const tokens *of, float x)
{
    const float weight = expf((x - of->max) / of->temperature);
    return weight < of->min_p ? 0 : static_cast<units>(weight * UNITS_OF_ONE);
}

/* What a candidate adds to the sum: 1 by count; 0: it is none. */
static __device__ __forceinline__ units share_of(const tokens *of, uint32_t token, bool by_count)
{
    const float x = of->x[token];
    if (of->is_raw) return 1;
    if (!is_kept(of, token, key_of(x))) return 0;
    const units weight = weight_of(of, x);
    return by_count && weight > 0 ? 1 : weight;
}

/* ---- a walk in the order of ids ------------------------------------------------------------------ */

/* Which candidates are walked over: all, or, by count, those of one logit. */
typedef struct walk {
    uint32_t key;
    bool is_of_key;
} walk;

static __device__ __forceinline__ units step_of(const tokens *of, walk way, uint32_t token)
{
    if (way.is_of_key && key_of(of->x[token]) != way.key) return 0;
    return share_of(of, token, way.is_of_key);
}

static __device__ __forceinline__ uint32_t segment_of(const tokens *of)
{
    return div_up(of->n, SAMPLE_THREADS) * WARP;
}

/* Sums of the warps' segments to s->partial, and their sum. */
static __device__ units sum_segments(const tokens *of, walk way, sample_shared *s)
{
    const uint32_t first = threadIdx.x / WARP * segment_of(of);
    units sum = 0, total = 0;
    for (uint32_t i = threadIdx.x % WARP; i < segment_of(of); i += WARP)
        sum += first + i < of->n ? step_of(of, way, first + i) : 0;
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) s->partial[threadIdx.x / WARP] = sum;
    __syncthreads();
    for (uint32_t w = 0; w < SAMPLE_WARPS; w++)
        total += s->partial[w];
    return total;
}

/* The first token at which the sum is above target, which is less than what sum_segments gave. */
static __device__ uint32_t walk_to(const tokens *of, walk way, units target, sample_shared *s)
{
    const uint32_t lane = threadIdx.x % WARP;
    uint32_t warp = 0;
    units sum = 0;
    while (sum + s->partial[warp] <= target)
        sum += s->partial[warp++];
    if (threadIdx.x / WARP == warp) {
        uint32_t at = warp * segment_of(of);
        units mine;
        for (;; at += WARP) {
            mine = at + lane < of->n ? step_of(of, way, at + lane) : 0;
            const units all = warp_sum(mine);
            if (sum + all > target) break;
            sum += all;
        }
        uint32_t other = 0;
        for (; other < WARP; other++) {
            sum += __shfl_sync(WARP_ALL, mine, other);
            if (sum > target) break;
        }
        if (lane == 0) s->token = at + other;
    }
    __syncthreads();
    const uint32_t token = s->token;
    __syncthreads();
    return token;
}

/* ---- cuts ---------------------------------------------------------------------------------------- */

/* Keys that the cut's may be: [low, low + span], and how they fall into bins. */
typedef struct range {
    uint32_t low, span, shift;
    bool is_linear;  /* the first time */
    float per_logit; /* bins */
} range;

static __device__ __forceinline__ uint32_t bin_of(const range *in, float max, float x, uint32_t key)
{
    if (!in->is_linear) return (in->low + in->span - key) >> in->shift;
    return static_cast<uint32_t>(fminf((max - x) * in->per_logit, N_BINS - 1));
}

/* The bin at which the sum over bins reaches target, to s->bin, and the sum before it. By the first warp. */
static __device__ void find_bin(units target, sample_shared *s)
{
    const units *mine = s->weight + threadIdx.x * BINS_PER_LANE;
    units of_lane = 0;
    for (uint32_t b = 0; b < BINS_PER_LANE; b++)
        of_lane += mine[b];
    units before = 0;
    uint32_t lane = 0;
    for (; lane < WARP; lane++) {
        const units there = __shfl_sync(WARP_ALL, of_lane, lane);
        if (before + there >= target) break;
        before += there;
    }
    if (threadIdx.x != 0) return;
    uint32_t bin = lane * BINS_PER_LANE;
    while (bin < N_BINS && before + s->weight[bin] < target)
        before += s->weight[bin++];
    s->bin = bin;
    s->before = before;
}

/* One more halving of `in`, by what is left of the target. False: the target is behind all candidates. */
static __device__ bool narrow(const tokens *of, bool by_count, range *in, units *target,
                              sample_shared *s)
{
    for (uint32_t b = threadIdx.x; b < N_BINS; b += SAMPLE_THREADS)
        s->weight[b] = 0;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < of->n; i += SAMPLE_THREADS) {
        const uint32_t key = key_of(of->x[i]);
        if (key - in->low > in->span) continue;
        const units share = share_of(of, i, by_count);
        if (share > 0) atomicAdd(&s->weight[bin_of(in, of->max, of->x[i], key)], share);
    }
    __syncthreads();
    if (threadIdx.x < WARP) find_bin(*target, s);
    __syncthreads();
    const uint32_t bin = s->bin;
    *target -= bin < N_BINS ? s->before : 0;
    if (bin == N_BINS) return false;
    if (!in->is_linear) {
        const uint32_t high = in->low + in->span - (bin << in->shift);
        const uint32_t most = (1u << in->shift) - 1; /* the last bin may be cut short */
        in->span = high - in->low < most ? high - in->low : most;
        in->low = high - in->span;
        return true;
    }
    units high = 0, low = 0; /* ~the lowest */
    for (uint32_t i = threadIdx.x; i < of->n; i += SAMPLE_THREADS) {
        const uint32_t key = key_of(of->x[i]);
        if (bin_of(in, of->max, of->x[i], key) != bin || share_of(of, i, by_count) == 0) continue;
        high = key > high ? key : high;
        low = ~key > low ? ~key : low;
    }
    in->low = ~static_cast<uint32_t>(block_max(low, s));
    in->span = static_cast<uint32_t>(block_max(high, s)) - in->low;
    in->is_linear = false;
    return true;
}

/* Cuts behind the shortest prefix of the ranking whose sum reaches target, > 0; if there is one. */
static __device__ void cut_at(tokens *of, units target, bool by_count, sample_shared *s)
{
    range in = {0, UINT32_MAX, 0, true, N_BINS / LEAST_UNIT / of->temperature};
    do {
        if (!narrow(of, by_count, &in, &target, s)) return;
        in.shift = 0;
        while (in.span >> in.shift >= N_BINS)
            in.shift++;
    } while (in.span > 0);
    const walk ties = {in.low, true};
    const units each = by_count ? 1 : weight_of(of, float_of(in.low));
    (void)sum_segments(of, ties, s);
    of->cut_token = walk_to(of, ties, (target - 1) / each, s);
    of->cut_key = in.low;
}

/* ---- a row --------------------------------------------------------------------------------------- */

typedef struct raw_sum {
    float max;
    double log; /* of sum exp(logit), minus max */
} raw_sum;

/* One function for the drawn token and for the list: clients compare the two numbers for equality. */
static __device__ float logprob_of(const raw_sum *sum, float logit)
{
    return static_cast<float>(static_cast<double>(logit) - static_cast<double>(sum->max) -
                              sum->log);
}

static __device__ void sum_raw(const float *x, uint32_t n, raw_sum *sum, sample_shared *s)
{
    units mine = 0;
    for (uint32_t i = threadIdx.x; i < n; i += SAMPLE_THREADS)
        mine += static_cast<units>(expf(x[i] - sum->max) * UNITS_OF_ONE);
    const double all = static_cast<double>(block_sum(mine, s));
    sum->log = log(all / static_cast<double>(UNITS_OF_ONE));
}

/* Those above the cut are gathered in any order, then each is put to its rank. */
static __device__ void list_top(const float *x, uint32_t n, uint32_t n_top, const raw_sum *sum,
                                sample_result *out, sample_shared *s)
{
    tokens all = {x, n, sum->max, 1, 0, true, 0, UINT32_MAX};
    if (n_top < n) cut_at(&all, n_top, true, s);
    if (threadIdx.x == 0) s->n_top = 0;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < n; i += SAMPLE_THREADS) {
        if (!is_kept(&all, i, key_of(x[i]))) continue;
        const sample_entry entry = {i, x[i]};
        s->top[atomicAdd(&s->n_top, 1u)] = entry;
    }
    __syncthreads();
    if (threadIdx.x < s->n_top) {
        const sample_entry mine = s->top[threadIdx.x];
        uint32_t rank = 0;
        for (uint32_t i = 0; i < s->n_top; i++) {
            const sample_entry *other = &s->top[i];
            rank += other->logprob > mine.logprob ||
                    (other->logprob == mine.logprob && other->token < mine.token);
        }
        out->top[rank].token = mine.token;
        out->top[rank].logprob = logprob_of(sum, mine.logprob);
    }
    if (threadIdx.x == 0) out->n_top = s->n_top;
    __syncthreads();
}

static __device__ void apply_edits(float *x, sample_edit *edits, uint32_t n)
{
    for (uint32_t kind = SAMPLE_ADD; kind <= SAMPLE_PENALIZE; kind++) {
        for (uint32_t i = threadIdx.x; i < n; i += SAMPLE_THREADS) {
            sample_edit *const e = &edits[i];
            if (e->kind != kind) continue;
            const float was = x[e->token];
            float now = -INFINITY;
            if (kind == SAMPLE_ADD) now = was + e->by;
            if (kind == SAMPLE_PENALIZE)
                now = __fadd_rn(was > 0 ? was / e->by : was * e->by, -e->minus);
            e->was = was;
            x[e->token] = now;
        }
        __syncthreads();
    }
}

/* Before its edits: the first of them knows. */
static __device__ float raw_logit(const float *x, uint32_t token, const sample_edit *edits,
                                  uint32_t n, sample_shared *s)
{
    units mine = 0;
    for (uint32_t i = threadIdx.x; i < n; i += SAMPLE_THREADS) {
        if (edits[i].token == token && n - i > mine) mine = n - i;
    }
    const uint32_t first = n - static_cast<uint32_t>(block_max(mine, s));
    return first < n ? edits[first].was : x[token];
}

static __device__ uint32_t draw(const sample_row *row, tokens *of, sample_shared *s)
{
    if (row->top_k > 0 && row->top_k < of->n) cut_at(of, row->top_k, true, s);
    const walk all = {0, false};
    units total = sum_segments(of, all, s);
    if (row->top_p < 1.0f) {
        __syncthreads();
        const double least = static_cast<double>(row->top_p) * static_cast<double>(total);
        const units target = static_cast<units>(ceil(least));
        cut_at(of, target < 1 ? 1 : target > total ? total : target, false, s);
        total = sum_segments(of, all, s);
    }
    const units target = static_cast<units>(row->uniform * static_cast<double>(total));
    return walk_to(of, all, target < total ? target : total - 1, s);
}

static __device__ void clear(sample_result *out, bool is_bad)
{
    if (threadIdx.x < SAMPLE_LOGPROBS_MAX) out->top[threadIdx.x] = sample_entry{0, 0};
    if (threadIdx.x == 0) {
        out->token = out->n_top = 0;
        out->logprob = 0;
        out->is_bad = is_bad;
    }
    __syncthreads();
}

static __global__ void __launch_bounds__(SAMPLE_THREADS) sample_kernel(sample_args args)
{
    CUDA_SHARED(sample_shared, s);
    const sample_row *const row = &args.rows[blockIdx.x];
    sample_result *const out = &args.results[blockIdx.x];
    sample_edit *const edits = args.edits + row->first_edit;
    float *const x = args.logits + static_cast<size_t>(row->logits_row) * args.n_vocab;
    raw_sum raw = {0, 0};
    float max;
    uint32_t token;
    const bool is_bad = row->n_logprobs >= 0 && !find_first(x, args.n_vocab, s, &raw.max, &token);
    clear(out, is_bad);
    if (is_bad) return;
    if (row->n_logprobs >= 0) sum_raw(x, args.n_vocab, &raw, s);
    if (row->n_logprobs > 0)
        list_top(x, args.n_vocab, static_cast<uint32_t>(row->n_logprobs), &raw, out, s);
    if (row->n_edits > 0) apply_edits(x, edits, row->n_edits);
    if (!find_first(x, args.n_vocab, s, &max, &token)) {
        clear(out, true);
        return;
    }
    if (row->temperature >= SAMPLE_GREEDY_BELOW && row->top_k != 1) {
        tokens all = {x, args.n_vocab, max, row->temperature, row->min_p, false, 0, UINT32_MAX};
        token = draw(row, &all, s);
    }
    float logprob = 0;
    if (row->n_logprobs >= 0)
        logprob = logprob_of(&raw, raw_logit(x, token, edits, row->n_edits, s));
    if (threadIdx.x == 0) out->token = token, out->logprob = logprob;
}

void sample_cuda(dev_cuda *d, const sample_args *args)
{
    assert(args->n_vocab >= 1);
    assert(args->n_vocab <= SAMPLE_VOCAB_MAX);
    if (args->n_rows == 0) return;
    cuda_launch(d, cuda_shape{dim3(args->n_rows), SAMPLE_THREADS, sizeof(sample_shared)},
                sample_kernel, *args);
}
