/* bench/expert_balance.c - how evenly placements of experts share a real text among ranks.
 *
 *   bench_expert_balance MODEL_DIR TEXT [window]
 *
 * The text goes through the model once, in windows of tokens (512), and what the routers chose is kept. Each
 * placement (model/expert_placement.h) is then dealt these choices: the first half of the windows is what
 * `eplb` measures, and after it packs; the second half is counted. A row is the choices that the busiest rank
 * computes of the second half over the mean of the ranks, by layer and for all layers: how much longer the
 * experts of a layer take than they would if ranks shared them evenly. Nothing is timed, so every run prints
 * the same. */
#include "base/check.h"
#include "base/hash.h"
#include "model/expert_placement.h"
#include "service/cli_parts.h"
#include "service/eval/eval_file.h"
#include "service/eval/eval_text.h"

#include <stdio.h>
#include <stdlib.h>

enum { WINDOW_MAX = 2048 };

static const struct {
    uint32_t n_ranks, n_redundant;
    experts_strategy strategy;
} placements[] = {
    {2, 0, EXPERTS_LINEAR}, {2, 2, EXPERTS_LINEAR}, {2, 0, EXPERTS_EPLB},   {2, 2, EXPERTS_EPLB},
    {4, 0, EXPERTS_LINEAR}, {4, 2, EXPERTS_LINEAR}, {4, 4, EXPERTS_LINEAR}, {4, 0, EXPERTS_EPLB},
    {4, 2, EXPERTS_EPLB},   {4, 4, EXPERTS_EPLB},
};
enum { N_PLACEMENTS = sizeof placements / sizeof placements[0] };

typedef struct bench {
    cli_parts parts;
    eval_windows windows;
    uint32_t n_layers, n_experts, top_k, n_window;
    uint32_t positions[WINDOW_MAX];
    uint32_t *chosen; /* [n_windows][n_layers][n_window][top_k] */
    uint32_t *at;     /* the window that runs */
} bench;

/* ---- choices ------------------------------------------------------------------------------------- */

static uint32_t *window_choices(const bench *b, uint32_t window, uint32_t layer)
{
    const size_t n = (size_t)window * b->n_layers + layer;
    return b->chosen + n * b->n_window * b->top_k;
}

static void keep_experts(void *ctx, uint32_t layer, const uint32_t *chosen, uint32_t n_tokens,
                         uint32_t top_k)
{
    const bench *b = ctx;
    memcpy(b->at + (size_t)layer * b->n_window * top_k, chosen,
           (size_t)n_tokens * top_k * sizeof *chosen);
}

/* Tokens that are fed: the last one of a window is only scored elsewhere. */
static uint32_t n_fed(const bench *b, uint32_t window)
{
    return b->windows.jobs[window].n_tokens - 1;
}

static err_t run_window(bench *b, uint32_t window)
{
    kv_cache *cache = b->parts.cache;
    kv_seq *seq;
    const uint32_t n = n_fed(b, window);
    b->at = window_choices(b, window, 0);
    TRY(kv_seq_open(cache, &(kv_seq_options){.salt = "", .n_prompt_tokens = n}, &seq));
    const err_t err = kv_step_begin(cache, &(kv_row){.seq = seq, .n_tokens = n}, 1);
    if (err == ERR_OK) {
        const model_batch batch = {.tokens = b->windows.jobs[window].tokens,
                                   .positions = b->positions,
                                   .n_tokens = n,
                                   .on_experts = keep_experts,
                                   .on_experts_ctx = b};
        model_forward(b->parts.m, cache, &batch);
        kv_step_end(cache);
    }
    kv_seq_close(seq, NULL);
    return err;
}

static err_t run_text(bench *b)
{
    size_t n;
    const model_config *const c = model_get_config(b->parts.m);
    b->n_layers = c->n_layers;
    b->n_experts = c->n_experts;
    b->top_k = c->top_k;
    for (uint32_t i = 0; i < b->n_window; i++)
        b->positions[i] = i;
    TRY(size_mul((size_t)b->n_window * b->top_k, (size_t)b->n_layers * b->windows.n_windows, &n));
    b->chosen = calloc(n, sizeof *b->chosen);
    if (b->chosen == NULL) return ERR_NO_MEMORY;
    for (uint32_t w = 0; w < b->windows.n_windows; w++)
        TRY(run_window(b, w));
    return ERR_OK;
}

/* ---- placements ---------------------------------------------------------------------------------- */

static void deal_windows(const bench *b, expert_placement *p, uint32_t first, uint32_t end)
{
    for (uint32_t w = first; w < end; w++) {
        for (uint32_t l = 0; l < b->n_layers; l++)
            expert_placement_count(p, l,
                                   &(expert_choices){.chosen = window_choices(b, w, l),
                                                     .positions = b->positions,
                                                     .n_tokens = n_fed(b, w),
                                                     .top_k = b->top_k});
    }
}

static void print_row(const bench *b, const expert_placement *p, uint32_t i)
{
    expert_stats stats;
    expert_placement_stats(p, &stats);
    const uint32_t n_ranks = placements[i].n_ranks;
    double sum_most = 0, sum_mean = 0;
    printf("| %u | %s | %u |", n_ranks, placements[i].strategy == EXPERTS_EPLB ? "eplb" : "linear",
           placements[i].n_redundant);
    for (uint32_t l = 0; l < b->n_layers; l++) {
        const uint64_t *const dealt = expert_placement_dealt(p, l);
        uint64_t most = 0, sum = 0;
        for (uint32_t r = 0; r < n_ranks; r++) {
            sum += dealt[r];
            most = dealt[r] > most ? dealt[r] : most;
        }
        const double mean = (double)sum / n_ranks;
        printf(" %.3f |", (double)most / mean);
        sum_most += (double)most;
        sum_mean += mean;
    }
    printf(" %.3f | %llu |\n", sum_most / sum_mean, (unsigned long long)stats.n_moved);
}

static err_t print_placement(const bench *b, uint32_t i, err_info *info)
{
    const uint32_t n_measured = b->windows.n_windows / 2;
    const experts_config config = {.strategy = placements[i].strategy,
                                   .n_redundant = placements[i].n_redundant,
                                   .step_interval = 1,
                                   .imbalance_min = 1};
    const expert_placement_shape shape = {b->n_layers, b->n_experts, placements[i].n_ranks};
    expert_placement *p;
    TRY(expert_placement_open(&config, &shape, &p, info));
    deal_windows(b, p, 0, n_measured);
    (void)expert_placement_end_step(p);
    deal_windows(b, p, n_measured, b->windows.n_windows);
    print_row(b, p, i);
    expert_placement_close(p);
    return ERR_OK;
}

static err_t print_table(const bench *b, err_info *info)
{
    err_t err = ERR_OK;
    printf("%u windows of %u tokens, the first %u of them measured, the others counted\n\n",
           b->windows.n_windows, b->n_window, b->windows.n_windows / 2);
    printf("| ranks | placement | replicas |");
    for (uint32_t l = 0; l < b->n_layers; l++)
        printf(" layer %u |", l);
    printf(" all | moved |\n|---:|---|---:|");
    for (uint32_t l = 0; l < b->n_layers + 2; l++)
        printf("---:|");
    printf("\n");
    for (uint32_t i = 0; i < N_PLACEMENTS && err == ERR_OK; i++)
        err = print_placement(b, i, info);
    return err;
}

/* ---- main ---------------------------------------------------------------------------------------- */

static err_t open_parts(bench *b, const char *model_dir, const char *path, err_info *info)
{
    cli_parts_config config = {0};
    kv_config kv = {0};
    const cfg_binding bindings[] = {{&cli_parts_config_table, &config}, {&kv_config_table, &kv}};
    char *text = NULL;
    size_t n_bytes = 0;
    err_t err = cfg_defaults(bindings, 2);
    kv.prefix_caching = false;
    const cli_parts_wanted wanted = {.config = &config,
                                     .kv = &kv,
                                     .model_dir = model_dir,
                                     .with_tokenizer = true,
                                     .n_seqs_max = 1,
                                     .n_step_tokens_max = b->n_window,
                                     .n_context_max = b->n_window};
    if (err == ERR_OK) err = cli_parts_open(&wanted, &b->parts, info);
    if (err == ERR_OK) err = eval_file_read(path, &text, &n_bytes, info);
    const eval_text_options options = {.text = text, .n_bytes = n_bytes, .window = b->n_window};
    if (err == ERR_OK) err = eval_windows_open(b->parts.t, &options, &b->windows, info);
    if (err == ERR_OK && b->windows.n_windows < 2)
        err = err_set(info, ERR_BAD_ARGUMENT, "%s: %u windows are fewer than 2", path,
                      b->windows.n_windows);
    free(text);
    cfg_deinit(bindings, 2);
    return err;
}

int main(int argc, char **argv)
{
    static bench b;
    err_info info = {0};
    uint64_t n_window = 512;
    if (argc < 3 || argc > 4 || (argc == 4 && cfg_parse_u64(argv[3], &n_window) != ERR_OK) ||
        n_window < EVAL_WINDOW_MIN || n_window > WINDOW_MAX) {
        fprintf(stderr, "usage: bench_expert_balance MODEL_DIR TEXT [window, %d to %d]\n",
                EVAL_WINDOW_MIN, WINDOW_MAX);
        return 2;
    }
    b.n_window = (uint32_t)n_window;
    err_t err = hash_init();
    if (err == ERR_OK) err = open_parts(&b, argv[1], argv[2], &info);
    if (err == ERR_OK) err = run_text(&b);
    if (err == ERR_OK) err = print_table(&b, &info);
    if (err != ERR_OK)
        fprintf(stderr, "bench_expert_balance: %s\n",
                info.code != ERR_OK ? info.message : err_sentence(err));
    eval_windows_close(&b.windows);
    cli_parts_close(&b.parts);
    free(b.chosen);
    return err == ERR_OK ? 0 : 1;
}
