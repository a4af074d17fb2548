/* service/cli_generate.c - `pikv generate`: one prompt, its continuation on standard output.
 *
 * The same session and engine as behind HTTP, so what is seen here is what the server would send. The
 * text comes out as it is made; everything else goes to standard error. */
#include "base/check.h"
#include "base/clock.h"
#include "base/hash.h"
#include "service/cli.h"
#include "service/cli_parts.h"
#include "service/engine.h"

#include <semaphore.h>
#include <stdlib.h>
#include <string.h>

typedef struct generate_config {
    char *prompt;
    uint32_t max_tokens, min_tokens, top_k;
    double temperature, top_p, min_p;
    double repetition_penalty, presence_penalty, frequency_penalty;
    uint64_t seed;
    cfg_strings stops;
    bool ignore_eos;
} generate_config;

static const cfg_field generate_fields[] = {
    CFG_TEXT(generate_config, prompt, "prompt", NULL, "TEXT", "what to continue (also -p)"),
    CFG_NUM32(generate_config, max_tokens, "max-tokens", 1, 16777216, "64",
              "tokens to generate at most (also -n)"),
    CFG_NUM32(generate_config, min_tokens, "min-tokens", 0, 16777216, "0",
              "tokens before an end or a stop counts"),
    CFG_REAL(generate_config, temperature, "temperature", 0, 100, "1", "0: the likeliest token"),
    CFG_REAL(generate_config, top_p, "top-p", 1e-6, 1, "1", "nucleus sampling"),
    CFG_NUM32(generate_config, top_k, "top-k", 0, 16777216, "0", "0: off"),
    CFG_REAL(generate_config, min_p, "min-p", 0, 1, "0", "0: off"),
    CFG_REAL(generate_config, repetition_penalty, "repetition-penalty", 1e-6, 100, "1", "1: off"),
    CFG_REAL(generate_config, presence_penalty, "presence-penalty", -2, 2, "0", "0: off"),
    CFG_REAL(generate_config, frequency_penalty, "frequency-penalty", -2, 2, "0", "0: off"),
    CFG_NUM64(generate_config, seed, "seed", 0, 9007199254740992.0, "0", "of the random draws"),
    CFG_LIST(generate_config, stops, "stop", NULL, "TEXT", "ends the text; several are allowed"),
    CFG_FLAG(generate_config, ignore_eos, "ignore-eos", "false", "go on behind an end of sequence"),
};

static const cfg_table generate_config_table = {.title = "Generation",
                                                .fields = generate_fields,
                                                .n_fields = sizeof generate_fields /
                                                            sizeof generate_fields[0]};

static const cfg_alias aliases[] = {
    {"-p", "prompt"}, {"-n", "max-tokens"}, {"-t", "threads"}, {"-h", "help"}, {NULL, NULL}};

typedef struct generate_settings {
    generate_config generate;
    cli_parts_config parts;
    engine_config engine;
    kv_config kv;
} generate_settings;

static void post_progress(void *semaphore)
{
    sem_post(semaphore);
}

/* Writes what is new until the session is over. */
static session_finish follow(const session *s, sem_t *progress)
{
    size_t n_written = 0;
    for (;;) {
        while (sem_wait(progress) != 0) { /* a signal */
        }
        const session_progress p = session_read(s);
        if (p.n_text_bytes > n_written) {
            fwrite(session_text(s) + n_written, 1, p.n_text_bytes - n_written, stdout);
            fflush(stdout);
            n_written = p.n_text_bytes;
        }
        if (p.finish != FINISH_NONE) return p.finish;
    }
}

static double rate(double n, uint64_t from_ns, uint64_t to_ns)
{
    return to_ns > from_ns ? n / ((double)(to_ns - from_ns) * 1e-9) : 0;
}

static void print_figures(const session *s, session_finish finish)
{
    const session_times times = session_get_times(s);
    const session_progress p = session_read(s);
    const uint32_t n_prompt = session_get_spec(s)->n_prompt;
    fprintf(stderr, "\nprompt: %u tokens, %.1f tokens/s\n", n_prompt,
            rate(n_prompt, times.scheduled_ns, times.first_token_ns));
    fprintf(stderr, "output: %u tokens, %.1f tokens/s, finish: %s\n", p.n_tokens,
            rate(p.n_tokens > 0 ? p.n_tokens - 1 : 0, times.first_token_ns, times.last_token_ns),
            session_finish_name(finish));
}

static session_spec make_spec(const generate_config *g, const model_config *shape,
                              const size_t *stop_bytes)
{
    return (session_spec){
        .max_tokens = g->max_tokens,
        .min_tokens = g->min_tokens,
        .sampling = {.temperature = (float)g->temperature,
                     .top_p = (float)g->top_p,
                     .min_p = (float)g->min_p,
                     .top_k = g->top_k,
                     .repetition_penalty = (float)g->repetition_penalty,
                     .presence_penalty = (float)g->presence_penalty,
                     .frequency_penalty = (float)g->frequency_penalty,
                     .seed = g->seed,
                     .n_logprobs = -1},
        .stops = (const char *const *)g->stops.items,
        .stop_bytes = stop_bytes,
        .n_stops = (uint32_t)g->stops.n_items,
        .eos = shape->eos,
        .n_eos = shape->n_eos,
        .ignore_eos = g->ignore_eos,
        .skip_special = true,
        .salt = "",
        .arrival_ns = clock_mono_ns(),
    };
}

static err_t check_stops(const cfg_strings *stops, size_t *stop_bytes, err_info *info)
{
    if (stops->n_items > SESSION_STOPS_MAX) {
        return err_set(info, ERR_BAD_CONFIG, "stop: more than %d", SESSION_STOPS_MAX);
    }
    for (size_t i = 0; i < stops->n_items; i++) {
        stop_bytes[i] = strlen(stops->items[i]);
        if (stop_bytes[i] >= 1 && stop_bytes[i] <= SESSION_STOP_BYTES_MAX) continue;
        return err_set(info, ERR_BAD_CONFIG, "stop: %zu bytes are outside [1, %d]", stop_bytes[i],
                       SESSION_STOP_BYTES_MAX);
    }
    return ERR_OK;
}

/* Encodes the prompt and makes the session. */
static err_t make_session(const generate_config *g, const cli_parts *parts, sem_t *progress,
                          session **out, err_info *info)
{
    size_t stop_bytes[SESSION_STOPS_MAX], n_ids;
    TRY(check_stops(&g->stops, stop_bytes, info));
    uint32_t *ids;
    const tok_text text = {
        .bytes = g->prompt, .n_bytes = strlen(g->prompt), .add_bos = tokenizer_adds_bos(parts->t)};
    const err_t err = tokenizer_encode(parts->t, &text, &ids, &n_ids);
    if (err != ERR_OK) return err_set(info, err, "the prompt: %s", err_sentence(err));
    if (n_ids == 0 || n_ids > UINT32_MAX) {
        free(ids);
        return err_set(info, ERR_BAD_REQUEST, "the prompt has no tokens");
    }
    session_spec spec = make_spec(g, model_get_config(parts->m), stop_bytes);
    spec.prompt = ids;
    spec.n_prompt = (uint32_t)n_ids;
    spec.on_progress = post_progress;
    spec.progress_ctx = progress;
    const err_t opened = session_open(parts->t, &spec, out);
    free(ids);
    if (opened != ERR_OK) return err_set(info, opened, "no room for the output");
    return ERR_OK;
}

static err_t run_session(const generate_settings *g, const cli_parts *parts, session *s,
                         sem_t *progress, err_info *info)
{
    const model_config *shape = model_get_config(parts->m);
    metrics *counted = NULL;
    engine *e = NULL;
    const metrics_shape sizes = {
        .model_name = shape->family, .n_layers = shape->n_layers, .n_experts = shape->n_experts};
    TRY(metrics_open(&sizes, &counted));
    const engine_parts borrowed = {
        .d = parts->d, .m = parts->m, .cache = parts->cache, .t = parts->t, .metrics = counted};
    err_t err = engine_open(&g->engine, &borrowed, &e, info);
    if (err == ERR_OK) err = engine_submit(e, &s, 1, info);
    if (err == ERR_OK) {
        const session_finish finish = follow(s, progress);
        print_figures(s, finish);
        if (finish == FINISH_ERROR)
            err = err_set(info, ERR_SYSTEM, "the model gave no finite logits");
    }
    engine_close(e);
    metrics_close(counted);
    return err;
}

static err_t generate(const generate_settings *g, const char *model_dir, err_info *info)
{
    cli_parts parts;
    sem_t progress;
    session *s = NULL;
    const cli_parts_wanted wanted = {.config = &g->parts,
                                     .kv = &g->kv,
                                     .model_dir = model_dir,
                                     .with_tokenizer = true,
                                     .n_seqs_max = g->engine.n_seqs_max,
                                     .n_step_tokens_max = g->engine.n_batched_tokens_max,
                                     .n_context_max = g->engine.n_context_max};
    if (sem_init(&progress, 0, 0) != 0) return err_set(info, ERR_SYSTEM, "no semaphore");
    err_t err = cli_parts_open(&wanted, &parts, info);
    if (err == ERR_OK) {
        fprintf(stderr, "loaded %s: %.1f MiB of weights in %.2f s, %s\n", model_dir,
                (double)model_weight_bytes(parts.m) / (1 << 20), parts.load_seconds,
                parts.d->ops->name);
        err = make_session(&g->generate, &parts, &progress, &s, info);
    }
    if (err == ERR_OK) err = run_session(g, &parts, s, &progress, info);
    session_release(s);
    cli_parts_close(&parts);
    sem_destroy(&progress);
    return err;
}

int cli_generate(int argc, char **argv, char *const *environment)
{
    generate_settings g = {0};
    const cfg_binding bindings[] = {{&generate_config_table, &g.generate},
                                    {&cli_parts_config_table, &g.parts},
                                    {&engine_config_table, &g.engine},
                                    {&kv_config_table, &g.kv}};
    const size_t n_bindings = sizeof bindings / sizeof bindings[0];
    cli_settings settings = {.command = "generate",
                             .usage = "pikv generate [MODEL_DIR] -p TEXT [-n TOKENS] [flags]",
                             .bindings = bindings,
                             .n_bindings = n_bindings,
                             .aliases = aliases};
    err_info info = {0};
    err_t err = cfg_defaults(bindings, n_bindings);
    g.engine.n_seqs_max = 1; /* one sequence: the cache need not hold more */
    if (err == ERR_OK) err = cli_settings_read(&settings, argc, argv, environment, &info);
    if (err == ERR_OK) err = hash_init();
    int status = err == ERR_OK ? CLI_EXIT_OK : CLI_EXIT_USAGE;
    if (err == ERR_OK && g.parts.help) {
        cli_print_help(&settings, stdout);
    } else if (err == ERR_OK && g.generate.prompt == NULL) {
        status = CLI_EXIT_USAGE;
        err = err_set(&info, ERR_BAD_CONFIG, "no prompt; usage: %s", settings.usage);
    } else if (err == ERR_OK) {
        err = generate(&g, settings.model_dir, &info);
        if (err != ERR_OK) status = CLI_EXIT_FAILED;
    }
    if (err != ERR_OK) {
        fprintf(stderr, "pikv generate: %s\n",
                info.code != ERR_OK ? info.message : err_sentence(err));
    }
    cfg_deinit(bindings, n_bindings);
    return status;
}
