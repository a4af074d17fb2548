/* kernels/cuda_choose_mass.cu - choices that go by the mass of what is read. Contract: choose_pages.h.
 *
 * A block per (choice, KV head), which decides by itself, so a step waits for nobody:
 *   probe   what is read in any case: the keys of a block to a warp, 8 lanes a slot and 4 slots at once, HEADS_AT_ONCE
 *           query heads to a load of a key
 *   order   keys of (what comes first, entry) through a bitonic network, in shared memory as far as they fit
 *   rest    a warp a query head: sums over what has not been read, of every BATCH ranks, from the last one back
 *   walk    BATCH pages of the order at a time, a warp each; of every query head one thread then says at which of
 *           them reading may stop, and the first at which all may is the end. So at most BATCH - 1 pages are asked
 *           for their keys in vain, and what is read is what the definition reads.
 * A sum's order follows from the row alone. Sums that end in a product are multiply-adds: see cuda_attention.cu.
 *
 * Shared memory: mass_shared, then head_mass [group], then mass [BATCH][group]. */
#include "kernels/cuda_attention_spans.cuh"
#include "kernels/cuda_choose.cuh"

#include <float.h>

enum {
    MASS_WARPS = ATTN_RANKS_AT_ONCE,
    MASS_THREADS = MASS_WARPS * WARP,
    BATCH = MASS_WARPS,
    KEY_LANES = 8,
    SLOTS_OF_WARP = WARP / KEY_LANES,
    HEADS_AT_ONCE = 4,
    SHARED_KEYS = 1024
};

/* Of one query head; masses are in units of exp(scale). */
typedef struct head_mass {
    double scale, base, in_any_case, read; /* as in choose_mass.c */
    mass probed;                           /* what is read in any case */
    uint32_t enough;                       /* bit i: reading may stop behind page i of the batch */
} head_mass;

typedef struct mass_shared {
    uint64_t keys[SHARED_KEYS];
    tile_block block[MASS_WARPS];
    uint32_t n_open;
} mass_shared;

/* Where all of it is. */
typedef struct mass_choice {
    const choose_pages_args *args;
    const attend_pages_args *attend;
    head_choice c;
    tile t;
    mass_shared *s;
    head_mass *heads; /* [group] */
    mass *masses;     /* [BATCH][group] */
    uint64_t *order;
    double *rest; /* [group][n_rest] */
    uint32_t n_rest;
} mass_choice;

static __host__ __device__ __forceinline__ size_t n_order_of(uint32_t n_blocks)
{
    size_t n = 1;
    while (n < n_blocks)
        n *= 2;
    return n;
}

/* ---- probe ----------------------------------------------------------------------------------------- */

/* Channels 8 unit .. 8 unit + 7 of the key of a slot. */
static __device__ void load_key8(const attend_pages_args *attend, const tile_block *b,
                                 const attn_span *span, uint32_t slot, uint32_t unit, float k[UNIT])
{
    const uint32_t k_dim = attend->k_dim, first = UNIT * unit;
    const uint8_t *row =
        static_cast<const uint8_t *>(span->k) + static_cast<size_t>(slot) * span->k_stride_bytes;
    if (span->coding == ATTN_PLAIN) {
        load_plain8(row, attend->type, first, k_dim, k);
        return;
    }
    if (span->coding == ATTN_KEPT) {
        const uint32_t bits = static_cast<const uint8_t *>(span->k_grid)[unit];
        uint32_t at = n_kept_below(span->k_grid, first);
        for (uint32_t e = 0; e < UNIT; e++)
            k[e] =
                (bits >> e & 1) != 0 && first + e < k_dim ? cuda_load(row, attend->type, at++) : 0;
        return;
    }
    load_codes8(row, span->coding, k_dim, unit, k);
    for (uint32_t e = 0; e < UNIT && first + e < k_dim; e++)
        k[e] = span->coding == ATTN_FP8
                   ? k[e] * b->key_scale
                   : fmaf(k[e], grid_at(span->k_grid, first + e),
                          grid_at(span->k_grid, static_cast<size_t>(k_dim) + first + e));
}

static __device__ __forceinline__ bool is_seen(const tile *t, const attn_span *span, uint32_t i)
{
    const uint32_t at = span->positions != NULL ? span->positions[i] : span->first_position + i;
    if ((span->live >> i & 1) == 0 || at > t->last_position) return false;
    return t->args->window == 0 || t->last_position - at < t->args->window;
}

/* Scores of heads first .. of a slot, the same in its lanes; -inf where it is not seen. All lanes come here. */
static __device__ void score_slot(const tile *t, const tile_block *b, uint32_t slot, uint32_t first,
                                  float out[HEADS_AT_ONCE])
{
    const attend_pages_args *attend = t->args;
    const uint32_t k_dim = attend->k_dim, group = attend->group, n_first = b->span[0].n_slots;
    const attn_span *span = &b->span[slot >= n_first];
    const uint32_t i = slot >= n_first ? slot - n_first : slot;
    const bool is_there = slot < b->n_slots && is_seen(t, span, i);
    const float *q = attend->q + t->row.first_token * attend->q_stride +
                     (static_cast<size_t>(t->kv_head) * group + first) * k_dim;
    float sum[HEADS_AT_ONCE] = {};
    for (uint32_t u = threadIdx.x % KEY_LANES; is_there && u < div_up(k_dim, UNIT);
         u += KEY_LANES) {
        float k[UNIT];
        load_key8(attend, b, span, i, u, k);
        for (uint32_t h = 0; h < HEADS_AT_ONCE && first + h < group; h++) {
            for (uint32_t e = 0; e < UNIT && UNIT * u + e < k_dim; e++)
                sum[h] = fmaf(q[static_cast<size_t>(h) * k_dim + UNIT * u + e], k[e], sum[h]);
        }
    }
    const float bias = is_there && span->bias != NULL ? span->bias[i] : 0;
    for (uint32_t h = 0; h < HEADS_AT_ONCE; h++) {
        for (int distance = KEY_LANES / 2; distance > 0; distance /= 2)
            sum[h] += __shfl_xor_sync(WARP_ALL, sum[h], distance);
        out[h] = is_there ? fmaf(sum[h], attend->scale, bias) : -INFINITY;
    }
}

/* A warp: what the block of the same number has in every query head. */
static __device__ void probe_block(const mass_choice *m)
{
    const uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, group = m->attend->group;
    const tile_block *b = &m->s->block[warp];
    for (uint32_t first = 0; first < group; first += HEADS_AT_ONCE) {
        mass mine[HEADS_AT_ONCE];
        for (uint32_t h = 0; h < HEADS_AT_ONCE; h++)
            mine[h] = {-INFINITY, 0};
        for (uint32_t slot = 0; slot < b->n_slots; slot += SLOTS_OF_WARP) {
            float scores[HEADS_AT_ONCE];
            score_slot(&m->t, b, slot + lane / KEY_LANES, first, scores);
            for (uint32_t h = 0; h < HEADS_AT_ONCE; h++)
                mine[h] = add_masses(mine[h], {scores[h], scores[h] > -INFINITY ? 1.0f : 0.0f});
        }
        for (uint32_t h = 0; h < HEADS_AT_ONCE; h++) {
            for (int distance = WARP / 2; distance >= KEY_LANES; distance /= 2) {
                const mass other = {__shfl_xor_sync(WARP_ALL, mine[h].max, distance),
                                    __shfl_xor_sync(WARP_ALL, mine[h].sum, distance)};
                mine[h] = add_masses(mine[h], other);
            }
            if (lane == 0 && first + h < group) m->masses[warp * group + first + h] = mine[h];
        }
    }
}

/* What lies behind the entries up to the query's own block, those that are no candidates, and the sinks. */
static __device__ void probe_in_any_case(const mass_choice *m)
{
    const head_choice *c = &m->c;
    const uint32_t warp = threadIdx.x / WARP, group = m->attend->group;
    const uint32_t from = c->first > c->choice.n_candidates ? c->first : c->choice.n_candidates;
    const uint32_t begin =
        min_u32(from, c->row.n_blocks); /* a window may have passed all entries */
    const uint32_t n = m->t.last_position / m->attend->block_tokens + 1 - begin;
    for (uint32_t g = threadIdx.x; g < group; g += MASS_THREADS)
        m->heads[g].probed = {-INFINITY, 0};
    for (uint32_t at = 0; at < n + 1; at += MASS_WARPS) {
        if (threadIdx.x % WARP == 0) {
            const uint32_t mine = at + warp, block = begin + mine - 1;
            tile_block *to = &m->s->block[warp];
            if (mine == 0) find_block(&m->t, 0, 0, to);
            if (mine > 0 && mine <= n)
                find_block(&m->t, block / ATTN_SPLIT_BLOCKS, 1 + block % ATTN_SPLIT_BLOCKS, to);
            if (mine > n) to->n_slots = 0;
        }
        __syncwarp();
        probe_block(m);
        __syncthreads();
        for (uint32_t g = threadIdx.x; g < group; g += MASS_THREADS) {
            for (uint32_t w = 0; w < MASS_WARPS; w++)
                m->heads[g].probed = add_masses(m->heads[g].probed, m->masses[w * group + g]);
        }
        __syncthreads();
    }
}

/* ---- order ----------------------------------------------------------------------------------------- */

static __device__ __forceinline__ float log_mass(const mass_choice *m, uint32_t g, uint32_t block)
{
    const int n_live = __popcll(page_at(&m->c, m->attend, block)->live);
    return logf(static_cast<float>(n_live)) +
           m->c.bounds[static_cast<size_t>(g) * m->args->n_blocks_max + block];
}

static __device__ __forceinline__ double mass_in(mass x, double scale)
{
    return x.sum > 0 ? static_cast<double>(x.sum) * exp(static_cast<double>(x.max) - scale) : 0;
}

/* A warp a head. */
static __device__ void find_scales(const mass_choice *m)
{
    const uint32_t lane = threadIdx.x % WARP;
    for (uint32_t g = threadIdx.x / WARP; g < m->attend->group; g += MASS_WARPS) {
        head_mass *head = &m->heads[g];
        const mass probed = head->probed;
        float most = -INFINITY;
        for (uint32_t b = lane; b < m->c.row.n_blocks; b += WARP) {
            if (m->c.most[b] > -INFINITY) most = fmaxf(most, log_mass(m, g, b));
        }
        for (int distance = WARP / 2; distance > 0; distance /= 2)
            most = fmaxf(most, __shfl_xor_sync(WARP_ALL, most, distance));
        if (lane != 0) continue;
        const double high = static_cast<double>(most);
        const double log_read =
            probed.sum > 0 ? static_cast<double>(probed.max) + log(static_cast<double>(probed.sum))
                           : -static_cast<double>(INFINITY);
        head->scale = log_read > high ? log_read : high;
        head->base = probed.sum > 0 ? log_read : head->scale;
        head->in_any_case = head->read = mass_in(probed, head->scale);
    }
}

/* `most` and the keys of the order, with those of no candidate behind all others. */
static __device__ void fill_order(const mass_choice *m, uint32_t n_keys)
{
    for (uint32_t b = threadIdx.x; b < n_keys; b += MASS_THREADS) {
        uint64_t key = UINT64_MAX;
        if (b < m->c.row.n_blocks && m->c.most[b] > -INFINITY) {
            float priority = -FLT_MAX;
            for (uint32_t g = 0; g < m->attend->group; g++)
                priority =
                    fmaxf(priority, log_mass(m, g, b) - static_cast<float>(m->heads[g].base));
            m->c.most[b] = priority;
            key = static_cast<uint64_t>(~key_of(priority)) << 32 | b;
        }
        m->order[b] = key;
    }
}

/* n_keys: a power of two. Begins and ends with a barrier. */
static __device__ void sort_order(const mass_choice *m, uint32_t n_keys)
{
    __syncthreads();
    for (uint32_t run = 2; run <= n_keys; run *= 2) {
        for (uint32_t distance = run / 2; distance > 0; distance /= 2) {
            for (uint32_t i = threadIdx.x; i < n_keys / 2; i += MASS_THREADS) {
                const uint32_t low = i / distance * 2 * distance + i % distance;
                const uint32_t high = low + distance;
                const uint64_t a = m->order[low], b = m->order[high];
                const bool is_rising = (low & run) == 0;
                if ((a > b) != is_rising) continue;
                m->order[low] = b;
                m->order[high] = a;
            }
            __syncthreads();
        }
    }
}

/* ---- rest ------------------------------------------------------------------------------------------ */

static __device__ __forceinline__ double bound_mass(const mass_choice *m, uint32_t g, uint32_t rank)
{
    if (rank >= m->s->n_open) return 0;
    const uint32_t block = static_cast<uint32_t>(m->order[rank]);
    return exp(static_cast<double>(log_mass(m, g, block)) - m->heads[g].scale);
}

/* Lane l has the l-th batch from the back of 32. */
static __device__ void sum_rests(const mass_choice *m)
{
    const uint32_t lane = threadIdx.x % WARP, n = div_up(m->s->n_open, BATCH);
    for (uint32_t g = threadIdx.x / WARP; g < m->attend->group; g += MASS_WARPS) {
        double *rest = m->rest + static_cast<size_t>(g) * m->n_rest;
        double behind = 0;
        if (lane == 0) rest[n] = 0;
        for (uint32_t done = 0; done < n; done += WARP) {
            const bool is_there = done + lane < n;
            const uint32_t batch = is_there ? n - 1 - done - lane : 0;
            double sum = 0;
            for (uint32_t i = BATCH; i-- > 0 && is_there;)
                sum += bound_mass(m, g, batch * BATCH + i);
            for (uint32_t distance = 1; distance < WARP; distance *= 2) {
                const double other = __shfl_sync(WARP_ALL, sum, (lane - distance) % WARP);
                sum += lane >= distance ? other : 0;
            }
            sum += behind;
            if (is_there) rest[batch] = sum;
            behind = __shfl_sync(WARP_ALL, sum, WARP - 1);
        }
    }
}

/* ---- walk ------------------------------------------------------------------------------------------ */

/* May head g stop where it has read so much and may miss so much? */
static __device__ __forceinline__ bool is_enough(const mass_choice *m, uint32_t g, double read,
                                                 double rest)
{
    const double amount = m->c.choice.amount;
    const double all = m->heads[g].in_any_case + m->rest[static_cast<size_t>(g) * m->n_rest];
    return rest <=
           (m->c.choice.rule == ATTN_RULE_NUCLEUS ? (1 - amount) * all : amount * (read + rest));
}

/* A head's bits for a batch whose pages have been asked; then they count as read. */
static __device__ void judge_batch(const mass_choice *m, uint32_t g, uint32_t batch)
{
    const uint32_t group = m->attend->group;
    const bool reads = m->c.choice.rule == ATTN_RULE_CERTIFIED;
    double rest[BATCH], read = m->heads[g].read;
    uint32_t enough = 0;
    rest[BATCH - 1] = m->rest[static_cast<size_t>(g) * m->n_rest + batch + 1];
    for (uint32_t i = BATCH - 1; i-- > 0;)
        rest[i] = rest[i + 1] + bound_mass(m, g, batch * BATCH + i + 1);
    for (uint32_t i = 0; i < BATCH; i++) {
        if (reads) read += mass_in(m->masses[i * group + g], m->heads[g].scale);
        enough |= static_cast<uint32_t>(is_enough(m, g, read, rest[i])) << i;
    }
    m->heads[g].read = read;
    m->heads[g].enough = enough;
}

static __device__ void probe_batch(const mass_choice *m, uint32_t batch)
{
    const uint32_t warp = threadIdx.x / WARP, rank = batch * BATCH + warp;
    if (threadIdx.x % WARP == 0) {
        const uint32_t block = rank < m->s->n_open ? static_cast<uint32_t>(m->order[rank]) : 0;
        if (rank < m->s->n_open)
            find_block(&m->t, block / ATTN_SPLIT_BLOCKS, 1 + block % ATTN_SPLIT_BLOCKS,
                       &m->s->block[warp]);
        if (rank >= m->s->n_open) m->s->block[warp].n_slots = 0;
    }
    __syncwarp();
    probe_block(m);
}

/* All heads may stop: the same answer in all threads. */
static __device__ uint32_t enough_of_all(const mass_choice *m)
{
    uint32_t enough = UINT32_MAX;
    for (uint32_t g = 0; g < m->attend->group; g++)
        enough &= m->heads[g].enough;
    return enough;
}

/* Is nothing to be read at all? Asks no page. To be followed by a barrier. */
static __device__ bool is_enough_at_once(const mass_choice *m)
{
    for (uint32_t g = threadIdx.x; g < m->attend->group; g += MASS_THREADS)
        m->heads[g].enough =
            is_enough(m, g, m->heads[g].read, m->rest[static_cast<size_t>(g) * m->n_rest]);
    __syncthreads();
    return enough_of_all(m) != 0;
}

/* How many candidates are read. */
static __device__ uint32_t walk(const mass_choice *m)
{
    if (is_enough_at_once(m)) return 0;
    for (uint32_t batch = 0; batch * BATCH < m->s->n_open; batch++) {
        if (m->c.choice.rule == ATTN_RULE_CERTIFIED) probe_batch(m, batch);
        __syncthreads();
        for (uint32_t g = threadIdx.x; g < m->attend->group; g += MASS_THREADS)
            judge_batch(m, g, batch);
        __syncthreads();
        const uint32_t enough = enough_of_all(m);
        for (uint32_t i = 0; i < BATCH; i++) {
            if ((enough >> i & 1) != 0) return min_u32(batch * BATCH + i + 1, m->s->n_open);
        }
    }
    return m->s->n_open;
}

static __device__ void open_choice(mass_choice *m, const choose_pages_args *args,
                                   const attend_pages_args *attend, mass_shared *s)
{
    const head_choice *c = &m->c;
    m->args = args;
    m->attend = attend;
    m->s = s;
    m->heads = reinterpret_cast<head_mass *>(s + 1);
    m->masses = reinterpret_cast<mass *>(m->heads + attend->group);
    m->n_rest = div_up(args->n_blocks_max, BATCH) + 1;
    m->rest = args->rest + c->at * attend->group * m->n_rest;
    m->order = n_order_of(c->row.n_blocks) <= SHARED_KEYS
                   ? s->keys
                   : args->order + c->at * n_order_of(args->n_blocks_max);
    m->t = {};
    m->t.args = attend;
    m->t.row = c->row;
    m->t.kv_head = c->kv_head;
    m->t.n_rows = attend->group;
    m->t.first_position = m->t.last_position = c->row.length;
    m->t.n_listed = c->row.n_blocks;
}

static __global__ void __launch_bounds__(MASS_THREADS)
    mass_kernel(choose_pages_args args, attend_pages_args attend)
{
    CUDA_SHARED(mass_shared, s);
    mass_choice m;
    m.c = find_choice(&args, &attend, blockIdx.x);
    if (m.c.choice.rule != ATTN_RULE_NUCLEUS && m.c.choice.rule != ATTN_RULE_CERTIFIED) return;
    open_choice(&m, &args, &attend, s);
    const uint32_t n_keys = static_cast<uint32_t>(n_order_of(m.c.row.n_blocks));
    uint32_t n_mine = 0;
    if (threadIdx.x == 0) s->n_open = 0;
    __syncthreads();
    for (uint32_t b = threadIdx.x; b < m.c.row.n_blocks; b += MASS_THREADS)
        n_mine += m.c.most[b] > -INFINITY;
    atomicAdd(&s->n_open, n_mine);
    __syncthreads();
    if (s->n_open == 0) return; /* the choice asks for no number then */
    probe_in_any_case(&m);
    find_scales(&m);
    __syncthreads();
    fill_order(&m, n_keys);
    sort_order(&m, n_keys);
    sum_rests(&m);
    __syncthreads();
    const uint32_t n = walk(&m);
    if (threadIdx.x == 0) args.notes[m.c.at].n_chosen = n;
}

void choose_by_mass_cuda(dev_cuda *d, const choose_pages_args *args)
{
    const attend_pages_args *attend = args->attend;
    const size_t shared_bytes =
        sizeof(mass_shared) + attend->group * (sizeof(head_mass) + BATCH * sizeof(mass));
    const cuda_shape shape = {dim3(args->n_choices * attend->n_kv_heads), MASS_THREADS,
                              shared_bytes};
    assert(attend->group <= ATTN_GROUP_MAX);
    cuda_launch(d, shape, mass_kernel, *args, *attend);
}
