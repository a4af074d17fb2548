/* bench/decode_long.c - whole decode steps over long contexts under several settings of the KV cache.
 *
 *   bench_decode_long MODEL_DIR [context] [batch] [steps] [rounds] [threads]
 *
 * The model has made-up weights of the shape in MODEL_DIR/config.json. Its contexts are made up as well:
 * random keys and values are appended to each cache as a step would append them, so pages fill, are encoded
 * and get boxes in the ordinary way, in seconds where the model would take an hour. What is timed is
 * everything a decode step does.
 *
 * All caches are open at once and take turns, and memory bandwidth is measured before each turn: a ratio
 * compares moments of the same machine. The best of all rounds counts. The byte bound is the speed at
 * which the bytes of a step (service/cli_bench_measure.h says how they are counted) would come at that
 * bandwidth and nothing else took time. */
#include "base/check.h"
#include "base/hash.h"
#include "base/random.h"
#include "service/cli_bench_measure.h"

#include <stdio.h>
#include <stdlib.h>

enum {
    CHUNK_TOKENS = 256,     /* appended at once */
    TABLE_FLOATS = 1 << 22, /* of the random table, 16 MiB */
    PROBE_BYTES = 512 << 20,
};
static const double PROBE_SECONDS = 0.5;

static const struct {
    const char *name, *routing, *compression;
    double routing_k;
} settings[] = {
    {"full", "full", "none", 0.25},
    {"topk 1/8", "topk", "none", 0.125},
    {"int8", "full", "int8", 0.25},
    {"int4", "full", "int4", 0.25},
};
enum { N_SETTINGS = sizeof settings / sizeof settings[0] };

typedef struct turn {
    cli_parts parts; /* the cache is this setting's; device and model are everybody's */
    bench_run run;
    bench_result best; /* seconds 0: none yet */
} turn;

typedef struct bench {
    const char *model_dir;
    uint32_t n_context, n_seqs, n_steps, n_rounds, n_threads;
    cli_parts parts; /* device and model */
    bandwidth_probe probe;
    double bandwidth; /* bytes per second, best so far */
    float *table;     /* [TABLE_FLOATS] in (-1, 1) */
    turn turns[N_SETTINGS];
} bench;

/* ---- contexts ------------------------------------------------------------------------------------ */

static err_t make_table(bench *b)
{
    b->table = malloc(TABLE_FLOATS * sizeof *b->table);
    if (b->table == NULL) return ERR_NO_MEMORY;
    for (size_t i = 0; i < TABLE_FLOATS; i++)
        b->table[i] = 2 * random_uniform(1, 0, i) - 1;
    return ERR_OK;
}

/* Numbers for one append, somewhere in the table. */
static const float *numbers_at(const bench *b, uint64_t stream, uint32_t position, size_t n)
{
    assert(n < TABLE_FLOATS);
    return b->table + random_at(2, stream, position).word[0] % (TABLE_FLOATS - n);
}

static err_t append_random(const bench *b, const turn *t, uint32_t seq, uint32_t n_tokens)
{
    static const uint32_t experts[CHUNK_TOKENS];
    kv_cache *cache = t->parts.cache;
    const kv_shape *shape = model_get_kv_shape(b->parts.m);
    const kv_row row = {.seq = t->run.seqs[seq], .n_tokens = n_tokens};
    const uint32_t position = kv_seq_length(row.seq);
    TRY(kv_step_begin(cache, &row, 1));
    for (uint32_t l = 0; l < shape->n_layers; l++) {
        const kv_layer_shape *layer = &shape->layer[l];
        const size_t n_heads = (size_t)n_tokens * layer->n_kv_heads;
        const uint64_t stream = (uint64_t)seq * shape->n_layers + l;
        kv_append(cache, &(kv_append_args){
                             .layer = l,
                             .k = numbers_at(b, 2 * stream, position, n_heads * layer->k_dim),
                             .v = numbers_at(b, 2 * stream + 1, position, n_heads * layer->v_dim),
                         });
        if (layer->has_router) kv_note_experts(cache, l, experts, 1);
    }
    kv_step_end(cache);
    return ERR_OK;
}

static err_t fill(const bench *b, turn *t)
{
    for (uint32_t i = 0; i < b->n_seqs; i++) {
        for (uint32_t n_left = b->n_context; n_left > 0;) {
            const uint32_t n_most = (uint32_t)min_size(n_left, CHUNK_TOKENS);
            const uint32_t n = (uint32_t)min_size(n_most, kv_seq_step_tokens_max(t->run.seqs[i]));
            TRY(append_random(b, t, i, n));
            n_left -= n;
        }
    }
    t->run.n_context = b->n_context; /* what decoding cuts back to */
    return ERR_OK;
}

/* ---- parts --------------------------------------------------------------------------------------- */

/* What the pages of a raw cache hold, and as much again for slabs that are not full and for what waits
 * to be encoded: memory that is never touched is never taken. */
static uint64_t budget_bytes(const bench *b)
{
    const model_config *c = model_get_config(b->parts.m);
    const uint64_t token_bytes =
        (uint64_t)c->n_layers * c->n_kv_heads * 2 * c->head_dim * dtype_bytes(c->stored_type);
    return 2 * token_bytes * b->n_seqs * (b->n_context + b->n_steps);
}

static err_t open_turn(bench *b, size_t i, err_info *info)
{
    turn *t = &b->turns[i];
    kv_config kv = {0};
    const cfg_binding binding = {&kv_config_table, &kv};
    const kv_limits limits = {.n_seqs_max = b->n_seqs,
                              .n_step_tokens_max = CHUNK_TOKENS,
                              .n_seq_tokens_max = b->n_context + b->n_steps};
    char k[32];
    snprintf(k, sizeof k, "%.17g", settings[i].routing_k);
    t->parts = (cli_parts){.d = b->parts.d, .m = b->parts.m};
    err_t err = cfg_defaults(&binding, 1);
    if (err == ERR_OK) err = cfg_set(&binding, 1, "kv-routing", settings[i].routing, info);
    if (err == ERR_OK) err = cfg_set(&binding, 1, "kv-routing-k", k, info);
    if (err == ERR_OK) err = cfg_set(&binding, 1, "kv-compression", settings[i].compression, info);
    kv.memory_bytes = budget_bytes(b);
    if (err == ERR_OK) {
        err = kv_cache_open(b->parts.d, &kv, model_get_kv_shape(b->parts.m), &limits,
                            &t->parts.cache, info);
    }
    cfg_deinit(&binding, 1);
    if (err != ERR_OK) return err;
    t->run = (bench_run){.n_seqs = b->n_seqs, .n_step_tokens_max = CHUNK_TOKENS};
    TRY(bench_run_open(&t->parts, &t->run, info));
    err = fill(b, t);
    return err == ERR_OK ? ERR_OK
                         : err_set(info, err, "%s: %s", settings[i].name, err_sentence(err));
}

static err_t open_parts(bench *b, err_info *info)
{
    char isa[] = "auto";
    const cli_parts_config config = {.device = {.isa = isa, .n_threads = b->n_threads},
                                     .load_format = MODEL_LOAD_DUMMY};
    const cli_parts_wanted wanted = {
        .config = &config, .model_dir = b->model_dir, .n_step_tokens_max = CHUNK_TOKENS};
    TRY(cli_parts_open(&wanted, &b->parts, info));
    TRY(bandwidth_probe_open(b->parts.d, PROBE_BYTES, &b->probe, info));
    TRY(make_table(b));
    for (size_t i = 0; i < N_SETTINGS; i++)
        TRY(open_turn(b, i, info));
    return ERR_OK;
}

static void close_parts(bench *b)
{
    for (size_t i = 0; i < N_SETTINGS; i++) {
        bench_run_close(&b->turns[i].run);
        kv_cache_close(b->turns[i].parts.cache);
    }
    free(b->table);
    bandwidth_probe_close(&b->probe);
    cli_parts_close(&b->parts);
}

/* ---- measuring ----------------------------------------------------------------------------------- */

static err_t measure(bench *b)
{
    for (uint32_t round = 0; round < b->n_rounds; round++) {
        for (size_t i = 0; i < N_SETTINGS; i++) {
            turn *t = &b->turns[i];
            bench_result result;
            const double bandwidth = bandwidth_probe_run(&b->probe, PROBE_SECONDS);
            if (bandwidth > b->bandwidth) b->bandwidth = bandwidth;
            TRY(bench_decode(&t->run, b->n_seqs, b->n_steps, &result));
            if (t->best.seconds == 0 || result.seconds < t->best.seconds) t->best = result;
        }
    }
    return ERR_OK;
}

static double resident_bytes(const turn *t)
{
    kv_stats stats;
    kv_stats_read(t->parts.cache, &stats);
    return (double)(stats.slab_bytes + stats.table_bytes + stats.ring_bytes + stats.staging_bytes);
}

static void print_table(const bench *b)
{
    printf("device %s, %u threads; weights %.3f GB; read bandwidth %.2f GB/s\n"
           "%u sequences of %u tokens, %u decode steps, best of %u rounds\n",
           b->parts.d->ops->name, thread_pool_n_threads(b->parts.d->pool),
           (double)model_weight_bytes(b->parts.m) * 1e-9, b->bandwidth * 1e-9, b->n_seqs,
           b->n_context, b->n_steps, b->n_rounds);
    printf("%-10s %9s %8s %9s %9s %11s %9s %9s %8s\n", "setting", "tokens/s", "ratio", "bound",
           "of bound", "weights MB", "KV MB", "ms/step", "KV GB");
    for (size_t i = 0; i < N_SETTINGS; i++) {
        const bench_result *r = &b->turns[i].best;
        const double bytes = r->weight_bytes + r->kv_bytes;
        const double speed = (double)r->n_tokens / r->seconds;
        printf("%-10s %9.2f %8.3f %9.2f %8.1f%% %11.1f %9.1f %9.2f %8.3f\n", settings[i].name,
               speed, b->turns[0].best.seconds / r->seconds,
               (double)r->n_tokens * b->bandwidth / bytes, 100 * bytes / r->seconds / b->bandwidth,
               r->weight_bytes / b->n_steps * 1e-6, r->kv_bytes / b->n_steps * 1e-6,
               r->seconds / b->n_steps * 1e3, resident_bytes(&b->turns[i]) * 1e-9);
    }
}

static err_t number_of(int argc, char **argv, int i, uint32_t default_value, uint32_t *out)
{
    *out = default_value;
    uint64_t n;
    if (i >= argc) return ERR_OK;
    TRY(cfg_parse_u64(argv[i], &n));
    if (n > 1u << 20) return ERR_BAD_ARGUMENT;
    *out = (uint32_t)n;
    return ERR_OK;
}

static err_t read_arguments(int argc, char **argv, bench *b)
{
    if (argc < 2 || argc > 7) return ERR_BAD_ARGUMENT;
    b->model_dir = argv[1];
    TRY(number_of(argc, argv, 2, 16384, &b->n_context));
    TRY(number_of(argc, argv, 3, 4, &b->n_seqs));
    TRY(number_of(argc, argv, 4, 8, &b->n_steps));
    TRY(number_of(argc, argv, 5, 5, &b->n_rounds));
    TRY(number_of(argc, argv, 6, 0, &b->n_threads));
    const bool is_sane = b->n_context > 0 && b->n_seqs > 0 && b->n_seqs <= CHUNK_TOKENS &&
                         b->n_steps > 0 && b->n_rounds > 0;
    return is_sane ? ERR_OK : ERR_BAD_ARGUMENT;
}

int main(int argc, char **argv)
{
    static bench b;
    err_info info = {0};
    if (read_arguments(argc, argv, &b) != ERR_OK) {
        fprintf(
            stderr,
            "usage: bench_decode_long MODEL_DIR [context] [batch] [steps] [rounds] [threads]\n");
        return 2;
    }
    err_t err = hash_init();
    if (err == ERR_OK) err = open_parts(&b, &info);
    if (err == ERR_OK) err = measure(&b);
    if (err == ERR_OK) {
        print_table(&b);
    } else {
        fprintf(stderr, "bench_decode_long: %s\n",
                info.code != ERR_OK ? info.message : err_sentence(err));
    }
    close_parts(&b);
    return err == ERR_OK ? 0 : 1;
}
