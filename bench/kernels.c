/* bench/kernels.c - how near the kernels come to what the machine can do.
 *
 *   bench_kernels [threads] [isa] [rounds]
 *
 * Two limits are measured first, in the same run: the rate at which all threads together read
 * memory (a sum over 1 GiB) and the rate of fused multiply-adds in registers. Every kernel is then
 * a rate and a share of its limit. Limits and kernels are measured in turns, and the best of each
 * counts: on a machine with other work the best is what repeats. */
#include "base/clock.h"
#include "base/random.h"
#include "kernels/dev.h"

#include <stdio.h>
#include <stdlib.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { GIB = 1 << 30, CHUNK_BYTES = 1 << 20, PROMPT_TOKENS = 512 };

typedef struct bench {
    dev *d;
    uint8_t *memory; /* [GIB] random bf16 in (-1, 1) */
    float *scales;   /* [SCALES] ones: of fp8 */
    uint8_t *powers; /* [POWERS] 2^-7: of mxfp4 */
    float *x, *out;  /* [PROMPT_TOKENS][DIM_MAX] */
} bench;
enum { DIM_MAX = 14336, SCALES = GIB / (128 * 128), POWERS = GIB / 16 };

typedef struct rates {
    double best, last;
} rates;

static void note(rates *r, double rate)
{
    r->last = rate;
    if (rate > r->best) r->best = rate;
}

/* ---- limits ---- */

typedef struct read_job {
    const uint8_t *memory;
    _Atomic uint64_t sum; /* keeps the loads alive */
} read_job;

typedef uint64_t words __attribute__((vector_size(32), aligned(32)));

/* Eight streams a thread: one alone does not keep the memory busy. */
enum { N_STREAMS = 8 };

static void read_chunks(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    (void)worker;
    read_job *job = ctx;
    words sum[N_STREAMS] = {{0}}, all = {0};
    const words *from = (const words *)(const void *)(job->memory + begin * CHUNK_BYTES);
    const size_t n = (end - begin) * CHUNK_BYTES / sizeof(words) / N_STREAMS;
    for (size_t i = 0; i < n; i += 2) {
        for (size_t j = 0; j < N_STREAMS; j++) {
            __builtin_prefetch((const char *)(from + j * n + i) + 1024);
            sum[j] += from[j * n + i] + from[j * n + i + 1];
        }
    }
    for (size_t j = 0; j < N_STREAMS; j++)
        all += sum[j];
    job->sum += all[0] + all[1] + all[2] + all[3];
}

/* GB/s */
static double read_rate(const bench *b)
{
    read_job job = {.memory = b->memory};
    const uint64_t start_ns = clock_mono_ns();
    parallel_for(b->d->pool, GIB / CHUNK_BYTES, 4, read_chunks, &job);
    return GIB * 1e-9 / clock_seconds_since(start_ns);
}

enum { FMA_CHAINS = 12, FMA_STEPS = 200000 };

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) static double fma_avx2(void)
{
    __m256 acc[FMA_CHAINS];
    const __m256 a = _mm256_set1_ps(0.999f), c = _mm256_set1_ps(0.001f);
    for (int i = 0; i < FMA_CHAINS; i++)
        acc[i] = _mm256_set1_ps((float)i);
    for (int s = 0; s < FMA_STEPS; s++) {
#pragma GCC unroll 16
        for (int i = 0; i < FMA_CHAINS; i++)
            acc[i] = _mm256_fmadd_ps(acc[i], a, c);
    }
    for (int i = 1; i < FMA_CHAINS; i++)
        acc[0] = _mm256_add_ps(acc[0], acc[i]);
    return (double)_mm256_cvtss_f32(acc[0]);
}

__attribute__((target("avx512f"))) static double fma_avx512(void)
{
    __m512 acc[FMA_CHAINS];
    const __m512 a = _mm512_set1_ps(0.999f), c = _mm512_set1_ps(0.001f);
    for (int i = 0; i < FMA_CHAINS; i++)
        acc[i] = _mm512_set1_ps((float)i);
    for (int s = 0; s < FMA_STEPS; s++) {
#pragma GCC unroll 16
        for (int i = 0; i < FMA_CHAINS; i++)
            acc[i] = _mm512_fmadd_ps(acc[i], a, c);
    }
    for (int i = 1; i < FMA_CHAINS; i++)
        acc[0] = _mm512_add_ps(acc[0], acc[i]);
    return (double)_mm512_cvtss_f32(acc[0]);
}
#endif

typedef struct fma_job {
    bool is_wide;
    double *sum; /* [n_items]: keeps the sums alive */
} fma_job;

static void fma_items(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    (void)worker;
    const fma_job *job = ctx;
    for (size_t i = begin; i < end; i++) {
#if defined(__x86_64__)
        job->sum[i] = job->is_wide ? fma_avx512() : fma_avx2();
#else
        job->sum[i] = 0;
#endif
    }
}

/* GFLOP/s */
static double fma_rate(const bench *b)
{
    double sum[64];
    const bool is_wide = strcmp(b->d->ops->name, "avx512") == 0;
    fma_job job = {.is_wide = is_wide, .sum = sum};
    const uint64_t start_ns = clock_mono_ns();
    parallel_for(b->d->pool, 64, 1, fma_items, &job);
    const double n_lanes = is_wide ? 16 : 8;
    return 64. * FMA_STEPS * FMA_CHAINS * n_lanes * 2 * 1e-9 / clock_seconds_since(start_ns);
}

/* ---- kernels ---- */

/* A matrix at `at`, whose scales, if it has some, are ones that all matrices share. */
static matrix matrix_at(const bench *b, const void *at, dtype type, uint32_t rows, uint32_t cols)
{
    return (matrix){.data = at,
                    .type = type,
                    .rows = rows,
                    .cols = cols,
                    .block_rows = 128,
                    .block_cols = 128,
                    .scale = type == DTYPE_MXFP4 ? (const void *)b->powers : b->scales};
}

/* GB/s of weights for one token, over the whole of memory. */
static double matvec_rate(const bench *b, dtype type, uint32_t cols)
{
    const size_t row_bytes = dtype_row_bytes(type, cols), rows = GIB / row_bytes;
    float *out = malloc(rows * sizeof *out);
    if (out == NULL) return 0;
    const matmul_args args = {.x = b->x,
                              .x_stride = cols,
                              .n_tokens = 1,
                              .n_parts = 1,
                              .part = {{.w = matrix_at(b, b->memory, type, (uint32_t)rows, cols),
                                        .out = out,
                                        .out_stride = rows}}};
    const uint64_t start_ns = clock_mono_ns();
    b->d->ops->matmul(b->d, &args);
    const double seconds = clock_seconds_since(start_ns);
    free(out);
    const size_t scale_bytes = type == DTYPE_MXFP4 ? cols / MX_BLOCK : 0; /* of fp8: nothing */
    return (double)rows * (double)(row_bytes + scale_bytes) * 1e-9 / seconds;
}

/* GFLOP/s of weights [rows][cols]. */
static double matmul_rate(const bench *b, dtype type, const uint32_t shape[2], uint32_t n_tokens)
{
    const uint32_t rows = shape[0], cols = shape[1];
    const matmul_args args = {
        .x = b->x,
        .x_stride = cols,
        .n_tokens = n_tokens,
        .n_parts = 1,
        .part = {
            {.w = matrix_at(b, b->memory, type, rows, cols), .out = b->out, .out_stride = rows}}};
    const uint64_t start_ns = clock_mono_ns();
    b->d->ops->matmul(b->d, &args);
    return 2. * rows * cols * n_tokens * 1e-9 / clock_seconds_since(start_ns);
}

/* GB/s of the chosen experts' weights for one token: 8 experts of 2048 x 768 in each of many
 * layers, 8 of 8 chosen, so that memory is swept. */
static double moe_rate(const bench *b, dtype type)
{
    enum { DIM = 2048, FFN = 768, N_EXPERTS = 8 };
    const size_t part_bytes = dtype_row_bytes(type, (size_t)DIM * FFN),
                 expert_bytes = 3 * part_bytes;
    const size_t n_layers = GIB / (N_EXPERTS * expert_bytes);
    moe_expert experts[N_EXPERTS];
    uint32_t chosen[N_EXPERTS];
    float weight[N_EXPERTS];
    void *scratch = aligned_alloc(64, moe_scratch_bytes(1, DIM, FFN, N_EXPERTS, N_EXPERTS));
    if (scratch == NULL) return 0;
    memset(b->out, 0, DIM * sizeof(float));
    const uint64_t start_ns = clock_mono_ns();
    for (size_t l = 0; l < n_layers; l++) {
        for (uint32_t e = 0; e < N_EXPERTS; e++) {
            const uint8_t *at = b->memory + (l * N_EXPERTS + e) * expert_bytes;
            experts[e].gate = matrix_at(b, at, type, FFN, DIM);
            experts[e].up = matrix_at(b, at + part_bytes, type, FFN, DIM);
            experts[e].down = matrix_at(b, at + 2 * part_bytes, type, DIM, FFN);
            chosen[e] = e;
            weight[e] = 0.125f;
        }
        const moe_args args = {.x = b->x,
                               .n_tokens = 1,
                               .dim = DIM,
                               .ffn = FFN,
                               .n_experts = N_EXPERTS,
                               .top_k = N_EXPERTS,
                               .expert = experts,
                               .chosen = chosen,
                               .weight = weight,
                               .out = b->out,
                               .scratch = scratch};
        b->d->ops->moe(b->d, &args);
    }
    const double seconds = clock_seconds_since(start_ns);
    free(scratch);
    return (double)(n_layers * N_EXPERTS * expert_bytes) * 1e-9 / seconds;
}

enum { HEAD_DIM = 128, BLOCK_SLOTS = 32, N_BLOCKS = GIB / (BLOCK_SLOTS * HEAD_DIM * 2 * 2) };
enum { BLOCKS_PER_ITEM = 64, GROUP_MAX = 8, QUERIES_MAX = 64 };

typedef struct attend_job {
    const bench *b;
    uint32_t group, n_queries;
    attn_coding coding; /* of codes only the codes come from memory: one grid serves all pages */
    const uint16_t *grid;
} attend_job;

static uint32_t coded_row_bytes(attn_coding coding)
{
    return coding == ATTN_PLAIN ? HEAD_DIM * 2 : HEAD_DIM * attn_code_bits(coding) / 8;
}

/* Scales of 1/256, minima of -1/2, for keys and for any slot. */
static const uint16_t *one_grid(void)
{
    static uint16_t grid[2 * HEAD_DIM];
    for (uint32_t i = 0; i < 2 * HEAD_DIM && grid[HEAD_DIM] == 0; i++)
        grid[i] = bf16_from_f32(i < HEAD_DIM ? 1.0f / 256 : -0.5f);
    return grid;
}

static attn_span block_span(const attend_job *job, size_t block)
{
    const uint32_t row_bytes = coded_row_bytes(job->coding);
    const uint8_t *at = job->b->memory + block * 2 * BLOCK_SLOTS * row_bytes;
    return (attn_span){.k = at,
                       .v = at + BLOCK_SLOTS * row_bytes,
                       .k_stride_bytes = row_bytes,
                       .v_stride_bytes = row_bytes,
                       .n_slots = BLOCK_SLOTS,
                       .live = UINT64_MAX,
                       .coding = job->coding,
                       .v_group = 32,
                       .k_grid = job->grid,
                       .v_grid = job->grid + HEAD_DIM - 4};
}

/* 64 blocks of keys and values, as a sequence of their own. */
static void attend_items(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    (void)worker;
    const attend_job *job = ctx;
    attn_span spans[BLOCKS_PER_ITEM];
    attn_block blocks[BLOCKS_PER_ITEM];
    uint32_t positions[QUERIES_MAX];
    static _Thread_local float max[QUERIES_MAX * GROUP_MAX], sum[QUERIES_MAX * GROUP_MAX];
    static _Thread_local float acc[QUERIES_MAX * GROUP_MAX * HEAD_DIM];
    for (uint32_t j = 0; j < job->n_queries; j++)
        positions[j] = BLOCKS_PER_ITEM * BLOCK_SLOTS + j;
    for (size_t item = begin; item < end; item++) {
        for (uint32_t i = 0; i < BLOCKS_PER_ITEM; i++) {
            spans[i] = block_span(job, item * BLOCKS_PER_ITEM + i);
            spans[i].first_position = i * BLOCK_SLOTS;
            blocks[i] = (attn_block){i, 1};
        }
        const attn_query query = {.q = job->b->x,
                                  .q_stride = (size_t)job->group * HEAD_DIM,
                                  .positions = positions,
                                  .n_queries = job->n_queries,
                                  .group = job->group,
                                  .k_dim = HEAD_DIM,
                                  .v_dim = HEAD_DIM,
                                  .scale = 0.08f,
                                  .type = DTYPE_BF16};
        const attn_blocks all = {spans, blocks, BLOCKS_PER_ITEM};
        attn_state state = {max, sum, acc};
        attn_state_reset(&state, (size_t)job->n_queries * job->group, HEAD_DIM);
        job->b->d->ops->attend(&query, &all, &state);
    }
}

/* Seconds for `n_items` items: 1 MiB of keys and values each, if they are bf16. */
static double attend_seconds(const attend_job *job, size_t n_items)
{
    const uint64_t start_ns = clock_mono_ns();
    parallel_for(job->b->d->pool, n_items, 1, attend_items, (void *)job);
    return clock_seconds_since(start_ns);
}

static double attend_decode_rate(const bench *b, uint32_t group, attn_coding coding) /* GB/s */
{
    const size_t n_items = N_BLOCKS / BLOCKS_PER_ITEM;
    const attend_job job = {b, group, 1, coding, one_grid()};
    const double share = coded_row_bytes(coding) / (2.0 * HEAD_DIM);
    return GIB * share * 1e-9 / attend_seconds(&job, n_items);
}

static double attend_prompt_rate(const bench *b) /* GFLOP/s */
{
    const size_t n_items = 16;
    const attend_job job = {b, 4, QUERIES_MAX, ATTN_PLAIN, NULL};
    const double n_slots = (double)n_items * BLOCKS_PER_ITEM * BLOCK_SLOTS;
    return 4. * n_slots * HEAD_DIM * 4 * QUERIES_MAX * 1e-9 / attend_seconds(&job, n_items);
}

/* ---- report ---- */

typedef enum row {
    READ,
    FMA,
    MATVEC_BF16,
    MATVEC_F32,
    MATVEC_F16,
    MATVEC_SHORT,
    MATVEC_FP8,
    MATVEC_MXFP4,
    MOE_DECODE,
    MOE_FP8,
    MOE_MXFP4,
    PROMPT_SQUARE,
    PROMPT_WIDE,
    PROMPT_16,
    PROMPT_FP8,
    PROMPT_MXFP4,
    ATTEND_1,
    ATTEND_4,
    ATTEND_8,
    ATTEND_FP8,
    ATTEND_INT8,
    ATTEND_INT4,
    ATTEND_INT2,
    ATTEND_PROMPT,
    N_ROWS
} row;

static double measure(const bench *b, row r)
{
    static const uint32_t square[2] = {4096, 4096}, wide[2] = {4096, 14336};
    switch (r) {
    case READ: return read_rate(b);
    case FMA: return fma_rate(b);
    case MATVEC_BF16: return matvec_rate(b, DTYPE_BF16, 4096);
    case MATVEC_F32: return matvec_rate(b, DTYPE_F32, 4096);
    case MATVEC_F16: return matvec_rate(b, DTYPE_F16, 4096);
    case MATVEC_SHORT: return matvec_rate(b, DTYPE_BF16, 512);
    case MATVEC_FP8: return matvec_rate(b, DTYPE_FP8, 4096);
    case MATVEC_MXFP4: return matvec_rate(b, DTYPE_MXFP4, 4096);
    case MOE_DECODE: return moe_rate(b, DTYPE_BF16);
    case MOE_FP8: return moe_rate(b, DTYPE_FP8);
    case MOE_MXFP4: return moe_rate(b, DTYPE_MXFP4);
    case PROMPT_SQUARE: return matmul_rate(b, DTYPE_BF16, square, PROMPT_TOKENS);
    case PROMPT_WIDE: return matmul_rate(b, DTYPE_BF16, wide, PROMPT_TOKENS);
    case PROMPT_16: return matmul_rate(b, DTYPE_BF16, square, 16);
    case PROMPT_FP8: return matmul_rate(b, DTYPE_FP8, square, PROMPT_TOKENS);
    case PROMPT_MXFP4: return matmul_rate(b, DTYPE_MXFP4, square, PROMPT_TOKENS);
    case ATTEND_1: return attend_decode_rate(b, 1, ATTN_PLAIN);
    case ATTEND_4: return attend_decode_rate(b, 4, ATTN_PLAIN);
    case ATTEND_8: return attend_decode_rate(b, 8, ATTN_PLAIN);
    case ATTEND_FP8: return attend_decode_rate(b, 4, ATTN_FP8);
    case ATTEND_INT8: return attend_decode_rate(b, 4, ATTN_INT8);
    case ATTEND_INT4: return attend_decode_rate(b, 4, ATTN_INT4);
    case ATTEND_INT2: return attend_decode_rate(b, 4, ATTN_INT2);
    case ATTEND_PROMPT: return attend_prompt_rate(b);
    case N_ROWS: break;
    }
    return 0;
}

static const struct {
    const char *name;
    row limit;
} rows[N_ROWS] = {
    [READ] = {"read memory", READ},
    [FMA] = {"fused multiply-add", FMA},
    [MATVEC_BF16] = {"matvec bf16, 4096 columns", READ},
    [MATVEC_F32] = {"matvec f32, 4096 columns", READ},
    [MATVEC_F16] = {"matvec f16, 4096 columns", READ},
    [MATVEC_SHORT] = {"matvec bf16, 512 columns", READ},
    [MATVEC_FP8] = {"matvec fp8, 4096 columns", READ},
    [MATVEC_MXFP4] = {"matvec mxfp4, 4096 columns", READ},
    [MOE_DECODE] = {"experts 2048 x 768, 1 token", READ},
    [MOE_FP8] = {"the same in fp8", READ},
    [MOE_MXFP4] = {"the same in mxfp4", READ},
    [PROMPT_SQUARE] = {"4096 x 4096, 512 tokens", FMA},
    [PROMPT_WIDE] = {"4096 x 14336, 512 tokens", FMA},
    [PROMPT_16] = {"4096 x 4096, 16 tokens", FMA},
    [PROMPT_FP8] = {"4096 x 4096 fp8, 512 tokens", FMA},
    [PROMPT_MXFP4] = {"the same in mxfp4", FMA},
    [ATTEND_1] = {"attention, 1 query head", READ},
    [ATTEND_4] = {"attention, 4 query heads", READ},
    [ATTEND_8] = {"attention, 8 query heads", READ},
    [ATTEND_FP8] = {"the same over fp8, 4 heads", READ},
    [ATTEND_INT8] = {"the same over int8, 4 heads", READ},
    [ATTEND_INT4] = {"the same over int4, 4 heads", READ},
    [ATTEND_INT2] = {"the same over int2, 4 heads", READ},
    [ATTEND_PROMPT] = {"attention, 64 queries x 4", FMA},
};

static void report(const rates *r)
{
    for (row i = 0; i < N_ROWS; i++) {
        const row limit = rows[i].limit;
        printf("%-28s %8.1f %-8s %5.1f %% of %s\n", rows[i].name, r[i].best,
               limit == READ ? "GB/s" : "GFLOP/s", 100 * r[i].best / r[limit].best,
               rows[limit].name);
    }
}

static bool fill(bench *b)
{
    b->memory = aligned_alloc(4096, GIB);
    b->x = malloc((size_t)PROMPT_TOKENS * DIM_MAX * sizeof(float));
    b->out = malloc((size_t)PROMPT_TOKENS * DIM_MAX * sizeof(float));
    b->scales = malloc(SCALES * sizeof(float));
    b->powers = malloc(POWERS);
    if (b->memory == NULL || b->x == NULL || b->out == NULL) return false;
    if (b->scales == NULL || b->powers == NULL) return false;
    for (size_t i = 0; i < SCALES; i++)
        b->scales[i] = 1;
    memset(b->powers, 120, POWERS);
    uint16_t pattern[4096];
    for (size_t i = 0; i < 4096; i++)
        pattern[i] = bf16_from_f32(random_uniform(1, 0, i) - 0.5f);
    for (size_t i = 0; i < GIB; i += sizeof pattern)
        memcpy(b->memory + i, pattern, sizeof pattern);
    for (size_t i = 0; i < (size_t)PROMPT_TOKENS * DIM_MAX; i++)
        b->x[i] = random_uniform(2, 0, i) - 0.5f;
    return true;
}

int main(int argc, char **argv)
{
    const dev_config config = {.isa = argc > 2 ? argv[2] : "auto",
                               .n_threads = argc > 1 ? (uint32_t)atoi(argv[1]) : 0};
    err_info info = {0};
    bench b = {0};
    rates r[N_ROWS] = {{0}};
    if (dev_open_cpu(&config, &b.d, &info) != ERR_OK) {
        fprintf(stderr, "%s\n", info.message);
        return EXIT_FAILURE;
    }
    if (!fill(&b)) {
        fprintf(stderr, "out of memory\n");
        return EXIT_FAILURE;
    }
    printf("table %s, %u threads, %u processors\n", b.d->ops->name,
           thread_pool_n_threads(b.d->pool), threads_available());
    const int n_rounds = argc > 3 ? atoi(argv[3]) : 15;
    for (int round = 0; round < n_rounds; round++) {
        for (row i = 0; i < N_ROWS; i++)
            note(&r[i], measure(&b, i));
    }
    report(r);
    free(b.memory);
    free(b.x);
    free(b.out);
    free(b.scales);
    free(b.powers);
    dev_close(b.d);
    return EXIT_SUCCESS;
}
