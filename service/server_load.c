/* service/server_load.c - from files to an engine that answers. See server_parts.h.
 *
 * Every phase is one line in the log with its seconds, since "why does it take so long to start" is the first
 * question of everybody who runs a server. The warm-up is a request like any other: it touches the
 * weights, the cache and the sampler once, so that the first client does not pay for page faults. */
#include "service/server_parts.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "service/cli.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

enum {
    PATH_BYTES = 4096,
    WARM_UP_TOKENS = 2,
    WARM_UP_POLL_NS = 500000,
    TEXT_BYTES_MIN = 1 << 20, /* a request may always bring so much text: about a second's work */
    CONTEXT_TOKEN_BYTES = 8   /* and so much per token of the context, twice what English needs */
};
static const double GIB = 1024.0 * 1024.0 * 1024.0;

/* ---- names and times ----------------------------------------------------------------------------------- */

static char *last_part(const char *dir)
{
    size_t end = strlen(dir);
    while (end > 1 && dir[end - 1] == '/')
        end--;
    size_t begin = end;
    while (begin > 0 && dir[begin - 1] != '/')
        begin--;
    return strndup(dir + begin, end - begin);
}

static err_t make_names(server_parts *parts, err_info *info)
{
    const serve_config *serve = &parts->settings->serve;
    const cfg_strings *given = &serve->served_model_names;
    const size_t n_names = given->n_items > 0 ? given->n_items : 1;
    parts->default_name = last_part(serve->model_dir);
    parts->model_names = calloc(n_names, sizeof *parts->model_names);
    if (parts->default_name == NULL || parts->model_names == NULL) {
        return err_set(info, ERR_NO_MEMORY, "out of memory");
    }
    parts->model_names[0] = parts->default_name;
    for (size_t i = 0; i < given->n_items; i++)
        parts->model_names[i] = given->items[i];
    parts->api.model_names = parts->model_names;
    parts->api.n_model_names = n_names;
    return ERR_OK;
}

/* A number for the file's content that costs no reading of it: size and time of change. */
static hash128 file_mark(const char *dir, const char *name, int64_t *changed)
{
    static const hash_key key = {{0}}; /* public: it only tells models apart */
    char path[PATH_BYTES];
    struct stat status;
    int64_t facts[2] = {0, 0};
    snprintf(path, sizeof path, "%s/%s", dir, name);
    if (stat(path, &status) == 0) {
        facts[0] = status.st_size;
        facts[1] = status.st_mtim.tv_sec;
    }
    if (facts[1] > *changed) *changed = facts[1];
    return hash_bytes(&key, facts, sizeof facts);
}

/* `created` of the model and the fingerprint: the same after a restart with the same files. */
static void make_fingerprint(server_parts *parts)
{
    static const char *const names[] = {"config.json", "model.safetensors",
                                        "model.safetensors.index.json", "kv_bases.safetensors"};
    uint64_t mixed = hash_bytes(&(hash_key){{0}}, PIKV_VERSION, sizeof PIKV_VERSION).lo;
    parts->api.created = 0;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const char *dir = parts->settings->serve.model_dir;
        mixed = mixed * 31 + file_mark(dir, names[i], &parts->api.created).lo;
    }
    snprintf(parts->api.fingerprint, sizeof parts->api.fingerprint, "fp_%012" PRIx64,
             mixed & UINT64_C(0xffffffffffff));
}

/* What requests get that do not say how to sample. */
static err_t read_generation(server_parts *parts, err_info *info)
{
    const serve_config *serve = &parts->settings->serve;
    if (serve->generation == GENERATION_VLLM) return ERR_OK;
    TRY(generation_config_read(serve->model_dir, &parts->generation, info));
    parts->api.generation = &parts->generation;
    return ERR_OK;
}

err_t server_prepare(server_parts *parts, const server_settings *settings, err_info *info)
{
    const serve_config *serve = &settings->serve;
    *parts = (server_parts){.settings = settings, .start_ns = clock_mono_ns()};
    atomic_init(&parts->api.phase, API_LOADING);
    atomic_init(&parts->api.n_requests, 0);
    parts->api.config = serve;
    parts->api.kv_config = &settings->kv;
    if (serve->auto_tool_choice) parts->api.tools = tool_find_parser(serve->tool_call_parser);
    if (hash_init() != ERR_OK) return err_set(info, ERR_SYSTEM, "no source of random numbers");
    TRY(model_config_read(serve->model_dir, &parts->shape, info));
    TRY(make_names(parts, info));
    TRY(read_generation(parts, info));
    make_fingerprint(parts);
    TRY(api_keys_open(serve, &parts->api.keys, info));
    const metrics_shape shape = {.model_name = parts->model_names[0],
                                 .n_layers = parts->shape.n_layers,
                                 .n_experts = parts->shape.n_experts,
                                 .compat = (metrics_compat)serve->metrics_compat};
    if (metrics_open(&shape, &parts->metrics) != ERR_OK) {
        return err_set(info, ERR_NO_MEMORY, "no memory for counters");
    }
    parts->api.metrics = parts->metrics;
    return ERR_OK;
}

/* ---- phases -------------------------------------------------------------------------------------------- */

static err_t load_weights(server_parts *parts, err_info *info)
{
    const uint64_t start_ns = clock_mono_ns();
    const serve_config *serve = &parts->settings->serve;
    TRY(rank_share_load(parts->settings, &parts->own, info));
    TRY(tokenizer_open(serve->model_dir, &parts->t, info));
    TRY(tokenizer_check_vocab(parts->t, model_get_config(parts->own.m)->n_vocab, info));
    log_info("server", "opened model=%s family=%s device=%s threads=%" PRIu32 " seconds=%.3f",
             serve->model_dir, parts->shape.family, parts->own.d->ops->name,
             thread_pool_n_threads(parts->own.d->pool), clock_seconds_since(start_ns));
    const uint64_t touch_ns = clock_mono_ns();
    model_touch_weights(parts->own.m);
    log_info("server", "weights gib=%.3f parameters=%" PRIu64 " active=%" PRIu64 " seconds=%.3f",
             (double)model_weight_bytes(parts->own.m) / GIB,
             model_get_config(parts->own.m)->n_params,
             model_get_config(parts->own.m)->n_params_active, clock_seconds_since(touch_ns));
    return ERR_OK;
}

/* The model's end tokens, and the one that its tokenizer says ends a turn. */
static void list_eos(server_parts *parts)
{
    const model_config *shape = model_get_config(parts->own.m);
    api_context *api = &parts->api;
    memcpy(api->eos, shape->eos, shape->n_eos * sizeof *api->eos);
    api->n_eos = shape->n_eos;
    const int64_t eos = chat_template_eos(parts->chat);
    for (uint32_t i = 0; i < api->n_eos; i++) {
        if ((int64_t)api->eos[i] == eos) return;
    }
    if (eos >= 0) api->eos[api->n_eos++] = (uint32_t)eos;
}

static void log_generation(const server_parts *parts)
{
    const generation_config *g = parts->api.generation;
    if (g == NULL) return;
    if (g->has_any) {
        log_info("server",
                 "generation_config.json: defaults temperature=%g top_p=%g top_k=%" PRIu32
                 " min_p=%g repetition_penalty=%g",
                 (double)g->temperature, (double)g->top_p, g->top_k, (double)g->min_p,
                 (double)g->repetition_penalty);
    }
    if (g->n_output_max < UINT32_MAX) {
        log_info("server", "generation_config.json: at most max_tokens=%" PRIu32, g->n_output_max);
    }
    if (g->ignored[0] != '\0') {
        log_warn("server", "generation_config.json: not applied: %s", g->ignored);
    }
}

static const char *const content_words[] = {
    [CHAT_CONTENT_TEXTS] = "contents are texts for the template",
    [CHAT_CONTENT_AS_SENT] = "contents are texts or parts, as they are sent, for the template",
    [CHAT_CONTENT_PARTS] = "contents are lists of parts for the template"};

static err_t open_chat(server_parts *parts, err_info *info)
{
    const serve_config *serve = &parts->settings->serve;
    TRY(chat_template_open(serve->model_dir, serve->chat_template_file, parts->t, &parts->chat,
                           info));
    const char *fault = chat_template_fault(parts->chat);
    parts->api.chat = parts->chat;
    parts->api.content =
        chat_template_content(parts->chat, (chat_content_format)serve->content_format);
    log_info("server", "chat %s%s", fault != NULL ? "is off: " : "is on; ",
             fault != NULL ? fault : content_words[parts->api.content]);
    list_eos(parts);
    return ERR_OK;
}

static err_t open_cache(server_parts *parts, err_info *info)
{
    const uint64_t start_ns = clock_mono_ns();
    TRY(rank_share_open_cache(parts->settings, &parts->own, info));
    const uint32_t context_max = model_get_config(parts->own.m)->n_positions;
    kv_stats stats;
    kv_stats_read(parts->own.cache, &stats);
    const uint64_t capacity = kv_cache_capacity_tokens(parts->own.cache, NULL);
    log_info("server",
             "kv cache capacity_tokens=%" PRIu64 " type=%s gib=%.3f bytes_per_token=%zu"
             " context=%" PRIu32 " max_concurrency=%.2fx seconds=%.3f",
             capacity, dtype_name(kv_cache_type(parts->own.cache)),
             (double)stats.pool_budget_bytes / GIB, kv_cache_bytes_per_token(parts->own.cache),
             context_max, (double)capacity / context_max, clock_seconds_since(start_ns));
    return ERR_OK;
}

static err_t open_engine(server_parts *parts, err_info *info)
{
    const engine_parts all = {.d = parts->own.d,
                              .m = parts->own.m,
                              .cache = parts->own.cache,
                              .t = parts->t,
                              .metrics = parts->metrics,
                              .comm = parts->own.comm};
    TRY(engine_open(&parts->settings->engine, &all, &parts->e, info));
    parts->api.engine = parts->e;
    parts->api.m = parts->own.m;
    parts->api.cache = parts->own.cache;
    parts->api.t = parts->t;
    parts->api.n_context_max = engine_context_max(parts->e);
    parts->api.n_capacity_tokens = kv_cache_capacity_tokens(parts->own.cache, NULL);
    /* A request with more choices could never be queued: 429 would make clients repeat it for ever. */
    const engine_config *config = &parts->settings->engine;
    parts->api.n_choices_max = (uint32_t)min_size(parts->settings->serve.n_choices_max,
                                                  config->n_seqs_max + config->n_queued_max);
    parts->api.text_bytes_max =
        max_size(TEXT_BYTES_MIN, (size_t)parts->api.n_context_max * CONTEXT_TOKEN_BYTES);
    parts->api.dev_name = parts->own.d->ops->name;
    return ERR_OK;
}

/* ---- warm-up ------------------------------------------------------------------------------------------- */

static void ignore(void *ctx)
{
    (void)ctx;
}

static err_t wait_for(const session *s, err_info *info)
{
    const struct timespec pause = {.tv_nsec = WARM_UP_POLL_NS};
    while (session_read(s).finish == FINISH_NONE)
        nanosleep(&pause, NULL);
    const session_finish finish = session_read(s).finish;
    if (finish == FINISH_STOP || finish == FINISH_LENGTH) return ERR_OK;
    return err_set(info, ERR_BAD_MODEL, "the warm-up request ended with \"%s\"",
                   session_finish_name(finish));
}

static err_t warm_up(server_parts *parts, err_info *info)
{
    const uint64_t start_ns = clock_mono_ns();
    const uint32_t prompt[1] = {0};
    const uint32_t n_tokens = (uint32_t)min_size(WARM_UP_TOKENS, engine_context_max(parts->e) - 1);
    const session_spec spec = {.prompt = prompt,
                               .n_prompt = 1,
                               .max_tokens = n_tokens,
                               .sampling = {.top_p = 1, .repetition_penalty = 1, .n_logprobs = -1},
                               .ignore_eos = true,
                               .salt = "",
                               .arrival_ns = start_ns,
                               .on_progress = ignore,
                               .on_release = ignore};
    session *s;
    if (n_tokens == 0) return ERR_OK;
    if (session_open(parts->t, &spec, &s) != ERR_OK) {
        return err_set(info, ERR_NO_MEMORY, "no memory for the warm-up");
    }
    metrics_pause(parts->metrics, true);
    err_t err = engine_submit(parts->e, &s, 1, info);
    if (err == ERR_OK) err = wait_for(s, info);
    metrics_pause(parts->metrics, false);
    session_release(s);
    if (err == ERR_OK) log_info("server", "warm-up seconds=%.3f", clock_seconds_since(start_ns));
    return err;
}

static err_t load_all(server_parts *parts, err_info *info)
{
    TRY(rank_group_open(parts->settings, &parts->own, &parts->group, info));
    TRY(load_weights(parts, info));
    TRY(open_chat(parts, info));
    log_generation(parts);
    TRY(open_cache(parts, info));
    TRY(rank_share_meet(parts->settings, &parts->own, info));
    TRY(open_engine(parts, info));
    TRY(warm_up(parts, info));
    parts->api.load_seconds = clock_seconds_since(parts->start_ns);
    return ERR_OK;
}

err_t server_load(server_parts *parts, err_info *info)
{
    const err_t err = load_all(parts, info);
    if (err != ERR_OK) parts->failure = info->code != ERR_OK ? info->message : err_sentence(err);
    return err;
}

void server_unload(server_parts *parts)
{
    const bool are_let_go = parts->e != NULL; /* the other ranks, by the engine */
    const char *reason = parts->failure != NULL ? parts->failure : "it does not serve";
    comm *c = parts->own.comm;
    /* An engine that lets them go means that all is well: of a failure they hear first. */
    if (parts->failure != NULL && c != NULL && comm_status(c, NULL) == ERR_OK)
        comm_abort(c, parts->failure);
    engine_close(parts->e);
    chat_template_close(parts->chat);
    tokenizer_close(parts->t);
    rank_group_close(parts->group, &parts->own, are_let_go ? NULL : reason);
    metrics_close(parts->metrics);
    api_keys_deinit(&parts->api.keys);
    free(parts->model_names);
    free(parts->default_name);
}

/* ---- --check ------------------------------------------------------------------------------------------- */

int server_check(const server_settings *settings)
{
    err_info info = {0};
    server_parts parts;
    err_t err = server_prepare(&parts, settings, &info);
    const dev_config device = {.isa = settings->serve.device.isa,
                               .n_threads = settings->serve.device.n_threads};
    const model_options options = {.load = (model_load)settings->serve.load_format,
                                   .n_step_tokens_max = 1,
                                   .n_positions_max = settings->engine.n_context_max,
                                   .check_values = true};
    const char *dir = settings->serve.model_dir;
    if (err == ERR_OK) err = dev_open_cpu(&device, &parts.own.d, &info);
    if (err == ERR_OK) err = model_open(parts.own.d, dir, &options, &parts.own.m, &info);
    if (err == ERR_OK) err = tokenizer_open(dir, &parts.t, &info);
    if (err == ERR_OK) err = tokenizer_check_vocab(parts.t, parts.shape.n_vocab, &info);
    const char *file = settings->serve.chat_template_file;
    if (err == ERR_OK) err = chat_template_open(dir, file, parts.t, &parts.chat, &info);
    if (err == ERR_OK) {
        printf("%s: sound: %s, %" PRIu64 " parameters, %.3f GiB, %" PRIu32
               " tokens in the vocabulary\n",
               dir, parts.shape.family, model_get_config(parts.own.m)->n_params,
               (double)model_weight_bytes(parts.own.m) / GIB, parts.shape.n_vocab);
    } else {
        fprintf(stderr, "pikv: %s\n", info.code != ERR_OK ? info.message : err_sentence(err));
    }
    server_unload(&parts);
    return err == ERR_OK ? CLI_EXIT_OK : err == ERR_BAD_CONFIG ? CLI_EXIT_USAGE : CLI_EXIT_FAILED;
}
