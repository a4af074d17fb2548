/* service/cli_bench.c - `pikv bench`: how fast this machine decodes this model, and how far that is from
 * what its memory allows.
 *
 * Rounds: in each one every case runs once, with the read bandwidth measured before and after it. The
 * best of all rounds counts, for bandwidth and cases alike: other work on the machine only ever takes
 * away. Both are measured in the same run, since the same machine differs from hour to hour. */
#include "base/check.h"
#include "base/clock.h"
#include "base/hash.h"
#include "service/cli.h"
#include "service/cli_bench_measure.h"

#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

enum { CASES_MAX = 16 };

typedef struct bench_config {
    char *batches;
    uint32_t n_prompt, n_context, n_steps, n_rounds, n_step_tokens;
    uint64_t probe_bytes;
    bool json;
} bench_config;

static const cfg_field bench_fields[] = {
    CFG_TEXT(bench_config, batches, "batches", "1,8,32", "LIST", "batch sizes of the decode cases"),
    CFG_NUM32(bench_config, n_prompt, "prompt-tokens", 1, 1048576, "512",
              "length of the prompt case"),
    CFG_NUM32(bench_config, n_context, "context-tokens", 1, 1048576, "128",
              "tokens in each sequence before it decodes"),
    CFG_NUM32(bench_config, n_steps, "steps", 1, 1048576, "16", "decode steps of a case"),
    CFG_NUM32(bench_config, n_rounds, "rounds", 1, 1000, "3", "best of this many"),
    CFG_NUM32(bench_config, n_step_tokens, "max-num-batched-tokens", 1, 65536, "512",
              "tokens of one prompt chunk"),
    CFG_NUM64(bench_config, probe_bytes, "probe-bytes", 1048576, 1e12, "512Mi",
              "buffer of the bandwidth measurement; larger than the caches"),
    CFG_FLAG(bench_config, json, "json", "false", "one JSON object per line"),
};

static const cfg_table bench_config_table = {.title = "Measurement",
                                             .fields = bench_fields,
                                             .n_fields =
                                                 sizeof bench_fields / sizeof bench_fields[0]};

static const cfg_alias aliases[] = {{"-t", "threads"}, {"-h", "help"}, {NULL, NULL}};

typedef struct bench_settings {
    bench_config bench;
    cli_parts_config parts;
    kv_config kv;
} bench_settings;

typedef struct bench_case {
    uint32_t n_seqs; /* 0: the prompt */
    bench_result best;
} bench_case;

typedef struct bench {
    const bench_config *config;
    cli_parts parts;
    bench_run run;
    bandwidth_probe probe;
    double bandwidth; /* bytes per second, best so far */
    bench_case cases[CASES_MAX];
    size_t n_cases;
    uint32_t n_seqs_max;
} bench;

static err_t parse_batches(bench *b, err_info *info)
{
    const char *at = b->config->batches;
    b->cases[b->n_cases++] = (bench_case){.n_seqs = 0};
    while (*at != '\0') {
        char *end;
        const unsigned long n = strtoul(at, &end, 10);
        if (end == at || n < 1 || n > 4096 || (*end != ',' && *end != '\0')) {
            return err_set(info, ERR_BAD_CONFIG,
                           "batches: '%s' is not a list of numbers in [1, 4096]",
                           b->config->batches);
        }
        if (b->n_cases == CASES_MAX) return err_set(info, ERR_BAD_CONFIG, "batches: too many");
        b->cases[b->n_cases++] = (bench_case){.n_seqs = (uint32_t)n};
        if (n > b->n_seqs_max) b->n_seqs_max = (uint32_t)n;
        at = *end == ',' ? end + 1 : end;
    }
    if (b->n_cases == 1) return err_set(info, ERR_BAD_CONFIG, "batches: the list is empty");
    if (b->n_seqs_max > b->config->n_step_tokens) {
        return err_set(info, ERR_BAD_CONFIG, "batches: %u is beyond max-num-batched-tokens, %u",
                       b->n_seqs_max, b->config->n_step_tokens);
    }
    return ERR_OK;
}

/* As long as the case beside it, within reason: a short probe would find a quiet moment of a busy machine
 * that the longer case cannot find, and make the share too small. */
static void probe(bench *b, double case_seconds)
{
    const double seconds = case_seconds < 0.5 ? case_seconds : 0.5;
    const double bandwidth = bandwidth_probe_run(&b->probe, seconds);
    if (bandwidth > b->bandwidth) b->bandwidth = bandwidth;
}

static double speed(const bench_result *r)
{
    return r->seconds > 0 ? (double)r->n_tokens / r->seconds : 0;
}

static err_t run_case(bench *b, bench_case *c)
{
    bench_result result;
    if (c->best.seconds > 0)
        probe(b, c->best.seconds); /* not in the first round, whose length is unknown */
    if (c->n_seqs == 0) {
        TRY(bench_prompt(&b->run, b->config->n_prompt, &result));
    } else {
        TRY(bench_decode(&b->run, c->n_seqs, b->config->n_steps, &result));
    }
    probe(b, result.seconds);
    if (speed(&result) > speed(&c->best)) c->best = result;
    return ERR_OK;
}

static double share_of_bound(const bench *b, const bench_result *r)
{
    return (r->weight_bytes + r->kv_bytes) / r->seconds / b->bandwidth;
}

static double peak_resident_bytes(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)usage.ru_maxrss * 1024;
}

static void print_table(const bench *b)
{
    printf("device %s, %u threads; weights %.3f GB; bandwidth %.2f GB/s; peak RSS %.3f GB\n",
           b->parts.d->ops->name, thread_pool_n_threads(b->parts.d->pool),
           (double)model_weight_bytes(b->parts.m) * 1e-9, b->bandwidth * 1e-9,
           peak_resident_bytes() * 1e-9);
    printf("%-12s %10s %10s %12s %12s %10s %8s\n", "case", "tokens/s", "ms/step", "weights MB",
           "KV MB", "experts", "bound");
    for (size_t i = 0; i < b->n_cases; i++) {
        const bench_case *c = &b->cases[i];
        const bench_result *r = &c->best;
        if (c->n_seqs == 0) {
            printf("prompt %-5u %10.1f\n", b->config->n_prompt, speed(r));
            continue;
        }
        const double n_steps = (double)r->n_tokens / c->n_seqs;
        printf("decode %-5u %10.1f %10.2f %12.1f %12.2f %10.2f %7.1f%%\n", c->n_seqs, speed(r),
               r->seconds / n_steps * 1e3, r->weight_bytes / n_steps * 1e-6,
               r->kv_bytes / n_steps * 1e-6, r->experts_per_layer, 100 * share_of_bound(b, r));
    }
}

static void print_json(const bench *b)
{
    printf("{\"device\":\"%s\",\"threads\":%u,\"weight_bytes\":%zu,\"bandwidth_bytes_per_second\":%"
           ".0f,"
           "\"peak_resident_bytes\":%.0f}\n",
           b->parts.d->ops->name, thread_pool_n_threads(b->parts.d->pool),
           model_weight_bytes(b->parts.m), b->bandwidth, peak_resident_bytes());
    for (size_t i = 0; i < b->n_cases; i++) {
        const bench_case *c = &b->cases[i];
        const bench_result *r = &c->best;
        if (c->n_seqs == 0) {
            printf("{\"case\":\"prompt\",\"tokens\":%u,\"tokens_per_second\":%.3f}\n",
                   b->config->n_prompt, speed(r));
            continue;
        }
        const double n_steps = (double)r->n_tokens / c->n_seqs;
        printf("{\"case\":\"decode\",\"batch\":%u,\"tokens_per_second\":%.3f,"
               "\"step_seconds\":%.6f,\"weight_bytes_per_step\":%.0f,\"kv_bytes_per_step\":%.0f,"
               "\"experts_per_layer\":%.3f,\"share_of_bound\":%.4f}\n",
               c->n_seqs, speed(r), r->seconds / n_steps, r->weight_bytes / n_steps,
               r->kv_bytes / n_steps, r->experts_per_layer, share_of_bound(b, r));
    }
}

static err_t measure(bench *b, err_info *info)
{
    b->run.n_seqs = b->n_seqs_max;
    b->run.n_context = b->config->n_context;
    b->run.n_step_tokens_max = b->config->n_step_tokens;
    TRY(bandwidth_probe_open(b->parts.d, b->config->probe_bytes, &b->probe, info));
    TRY(bench_run_open(&b->parts, &b->run, info));
    for (uint32_t round = 0; round < b->config->n_rounds; round++) {
        for (size_t i = 0; i < b->n_cases; i++) {
            const err_t err = run_case(b, &b->cases[i]);
            if (err == ERR_OK) continue;
            return err_set(info, err, "batch %u: %s", b->cases[i].n_seqs, err_sentence(err));
        }
    }
    return ERR_OK;
}

static err_t run_bench(const bench_settings *s, const char *model_dir, err_info *info)
{
    bench b = {.config = &s->bench};
    TRY(parse_batches(&b, info));
    const uint32_t n_decode = s->bench.n_context + s->bench.n_steps;
    const uint32_t n_longest = n_decode > s->bench.n_prompt ? n_decode : s->bench.n_prompt;
    const cli_parts_wanted wanted = {.config = &s->parts,
                                     .kv = &s->kv,
                                     .model_dir = model_dir,
                                     .n_seqs_max = b.n_seqs_max + 1, /* the prompt's own */
                                     .n_step_tokens_max = s->bench.n_step_tokens,
                                     .n_context_max = n_longest};
    err_t err = cli_parts_open(&wanted, &b.parts, info);
    if (err == ERR_OK) err = measure(&b, info);
    if (err == ERR_OK) (s->bench.json ? print_json : print_table)(&b);
    bench_run_close(&b.run);
    bandwidth_probe_close(&b.probe);
    cli_parts_close(&b.parts);
    return err;
}

int cli_bench(int argc, char **argv, char *const *environment)
{
    bench_settings s = {0};
    const cfg_binding bindings[] = {{&bench_config_table, &s.bench},
                                    {&cli_parts_config_table, &s.parts},
                                    {&kv_config_table, &s.kv}};
    const size_t n_bindings = sizeof bindings / sizeof bindings[0];
    cli_settings settings = {.command = "bench",
                             .usage = "pikv bench [MODEL_DIR] [--load-format dummy] [flags]",
                             .bindings = bindings,
                             .n_bindings = n_bindings,
                             .aliases = aliases};
    err_info info = {0};
    err_t err = cfg_defaults(bindings, n_bindings);
    if (err == ERR_OK) err = cli_settings_read(&settings, argc, argv, environment, &info);
    if (err == ERR_OK) err = hash_init();
    int status = err == ERR_OK ? CLI_EXIT_OK : CLI_EXIT_USAGE;
    if (err == ERR_OK && s.parts.help) {
        cli_print_help(&settings, stdout);
    } else if (err == ERR_OK) {
        err = run_bench(&s, settings.model_dir, &info);
        if (err != ERR_OK) status = CLI_EXIT_FAILED;
    }
    if (err != ERR_OK) {
        fprintf(stderr, "pikv bench: %s\n", info.code != ERR_OK ? info.message : err_sentence(err));
    }
    cfg_deinit(bindings, n_bindings);
    return status;
}
