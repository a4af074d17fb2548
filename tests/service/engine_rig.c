/* tests/service/engine_rig.c - see engine_rig.h. */
#include "tests/service/engine_rig.h"

#include "base/clock.h"
#include "base/hash.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char MODEL_DIR[] = "tests/golden/mixtral-gqa-bf16";

enum { TIMEOUT_MS = 60000, LEAST_BYTES = 64 << 10 /* one page per layer and head */ };

static uint32_t n_ranks_of(const rig_options *options)
{
    return options->n_ranks > 0 ? options->n_ranks : RIG_RANKS;
}

static engine_config config_of(const rig_options *options)
{
    return (engine_config){.n_seqs_max = options->n_seqs_max > 0 ? options->n_seqs_max : 8,
                           .n_batched_tokens_max = options->n_batched_tokens_max > 0
                                                       ? options->n_batched_tokens_max
                                                       : 64,
                           .n_queued_max = options->n_queued_max > 0 ? options->n_queued_max : 256};
}

static kv_limits limits_of(const rig_options *options, const model *m)
{
    const engine_config config = config_of(options);
    return (kv_limits){.n_seqs_max = config.n_seqs_max,
                       .n_step_tokens_max = config.n_batched_tokens_max,
                       .n_seq_tokens_max = model_get_config(m)->n_positions};
}

static void fill_kv_config(const rig_options *options, comm *c, kv_config *config)
{
    const uint64_t all_bytes = options->memory_bytes > 0 ? options->memory_bytes : 64u << 20;
    const uint64_t share = all_bytes / n_ranks_of(options);
    const uint64_t least = options->compression != NULL ? 2 * LEAST_BYTES : LEAST_BYTES;
    config->memory_bytes = share > least ? share : least;
    config->page_tokens = options->page_tokens > 0 ? options->page_tokens : 8;
    config->window_tokens = 16;
    config->host_bytes = options->host_bytes;
    config->disk_bytes = options->disk_bytes;
    if (options->disk_bytes > 0) config->disk_path = strdup("/tmp");
    config->sink_tokens = 4;
    config->prefix_caching = !options->no_prefix_caching;
    config->request_methods = options->request_methods;
    config->comm = c;
    if (options->compression == NULL) return;
    free(config->compression);
    config->compression = strdup(options->compression);
}

static kv_cache *open_cache(const rig_options *options, dev *d, const model *m, comm *c)
{
    kv_cache *cache;
    kv_config config = {0};
    const cfg_binding binding = {&kv_config_table, &config};
    const kv_limits limits = limits_of(options, m);
    err_info info = {0};
    ck_assert_int_eq(cfg_defaults(&binding, 1), ERR_OK);
    fill_kv_config(options, c, &config);
    ck_assert_msg(kv_cache_open(d, &config, model_get_kv_shape(m), &limits, &cache, &info) ==
                      ERR_OK,
                  "%s", info.message);
    cfg_deinit(&binding, 1);
    return cache;
}

static void open_model(const rig_options *options, comm *c, uint32_t n_threads, dev **d, model **m)
{
    err_info info = {0};
    const dev_config device = {.isa = "auto", .n_threads = n_threads};
    const model_options shape = {.n_step_tokens_max = config_of(options).n_batched_tokens_max,
                                 .comm = c};
    ck_assert_int_eq(
        (options->open_dev != NULL ? options->open_dev : dev_open_cpu)(&device, d, &info), ERR_OK);
    ck_assert_msg(model_open(*d, MODEL_DIR, &shape, m, &info) == ERR_OK, "%s", info.message);
}

static uint64_t pages_used(const kv_cache *cache)
{
    kv_stats stats;
    kv_stats_read(cache, &stats);
    return stats.pages_used;
}

static void *run_other(void *ctx)
{
    rig_rank *rank = ctx;
    dev *d;
    model *m;
    open_model(rank->options, rank->comm, 1, &d, &m);
    kv_cache *cache = open_cache(rank->options, d, m, rank->comm);
    const rank_parts parts = {.cache = cache,
                              .m = m,
                              .comm = rank->comm,
                              .limits = limits_of(rank->options, m),
                              .page_tokens =
                                  rank->options->page_tokens > 0 ? rank->options->page_tokens : 8};
    (void)!follower_run(&parts, &rank->ended);
    ck_assert_uint_eq(pages_used(cache), 0);
    ck_assert(kv_cache_is_sane(cache));
    kv_cache_close(cache);
    model_close(m);
    dev_close(d);
    comm_close(rank->comm);
    return NULL;
}

static void open_others(rig *r)
{
    comm *comms[RIG_RANKS_MAX];
    const uint32_t n = n_ranks_of(&r->options);
    if (n == 1) return;
    ck_assert_int_eq(comm_open_local(n, TIMEOUT_MS, comms, NULL), ERR_OK);
    r->comm = comms[0];
    for (uint32_t i = 1; i < n; i++) {
        rig_rank *other = &r->others[i - 1];
        *other = (rig_rank){.options = &r->options, .comm = comms[i]};
        ck_assert_int_eq(pthread_create(&other->thread, NULL, run_other, other), 0);
    }
}

void rig_open(const rig_options *options, rig *r)
{
    err_info info = {0};
    const engine_config config = config_of(options);
    *r = (rig){.options = *options};
    ck_assert_int_eq(hash_init(), ERR_OK);
    open_others(r);
    open_model(options, r->comm, 2, &r->d, &r->m);
    ck_assert_int_eq(tokenizer_open("models/storyteller", &r->t, &info), ERR_OK);
    r->cache = open_cache(options, r->d, r->m, r->comm);
    const model_config *c = model_get_config(r->m);
    const metrics_shape sizes = {
        .model_name = "tiny", .n_layers = c->n_layers, .n_experts = c->n_experts};
    ck_assert_int_eq(metrics_open(&sizes, &r->counted), ERR_OK);
    const engine_parts parts = {
        .d = r->d, .m = r->m, .cache = r->cache, .t = r->t, .metrics = r->counted, .comm = r->comm};
    ck_assert_msg(engine_open(&config, &parts, &r->e, &info) == ERR_OK, "%s", info.message);
}

void rig_close(rig *r)
{
    engine_close(r->e);
    for (uint32_t i = 0; i + 1 < n_ranks_of(&r->options); i++) {
        ck_assert_int_eq(pthread_join(r->others[i].thread, NULL), 0);
        ck_assert_msg(r->may_fail || r->others[i].ended.code == ERR_OK, "%s",
                      r->others[i].ended.message);
    }
    ck_assert_uint_eq(rig_pages_used(r), 0);
    ck_assert(kv_cache_is_sane(r->cache));
    metrics_close(r->counted);
    kv_cache_close(r->cache);
    model_close(r->m);
    comm_close(r->comm);
    tokenizer_close(r->t);
    dev_close(r->d);
}

static void post(void *ctx)
{
    sem_post(ctx);
}

/* The methods of a wish; what it does not say is exact. */
static const kv_methods *methods_of(const wish *w, kv_methods *own)
{
    const char *routing = w->routing != NULL ? w->routing : "full";
    const char *scheduling = w->scheduling != NULL ? w->scheduling : "none";
    const char *compression = w->compression != NULL ? w->compression : "none";
    const kv_config config = {.routing = (char *)(uintptr_t)routing,
                              .routing_k = 2,
                              .scheduling = (char *)(uintptr_t)scheduling,
                              .budget = w->budget,
                              .compression = (char *)(uintptr_t)compression,
                              .rewrite = (char *)(uintptr_t) "none"};
    if (w->routing == NULL && w->scheduling == NULL && w->compression == NULL) return NULL;
    ck_assert_int_eq(kv_methods_resolve(&config, own, NULL), ERR_OK);
    return own;
}

void guest_make(const rig *r, const wish *w, guest *g)
{
    kv_methods own;
    const uint32_t n_vocab = model_get_config(r->m)->n_vocab;
    const uint32_t n_prompt = w->n_prompt > 0 ? w->n_prompt : 20;
    uint32_t *prompt = malloc(n_prompt * sizeof *prompt);
    ck_assert_ptr_nonnull(prompt);
    for (uint32_t i = 0; i < n_prompt; i++)
        prompt[i] =
            w->prompt != NULL ? w->prompt[i] : (w->prompt_kind * 131 + i * i * 7 + i) % n_vocab;
    ck_assert_int_eq(sem_init(&g->progress, 0, 0), 0);
    const session_spec spec = {
        .prompt = prompt,
        .n_prompt = n_prompt,
        .max_tokens = w->score_only       ? 0
                      : w->max_tokens > 0 ? w->max_tokens
                                          : 12,
        .sampling = {.temperature = w->seed > 0 ? 1.0f : 0.0f,
                     .top_p = 1,
                     .repetition_penalty = w->repetition_penalty > 0 ? w->repetition_penalty : 1,
                     .seed = w->seed,
                     .n_logprobs = w->score_only || w->with_logprobs ? 2 : -1},
        .ignore_eos = true,
        .skip_special = true,
        .score_prompt = w->score_only,
        .salt = "",
        .methods = methods_of(w, &own),
        .group = w->group,
        .arrival_ns = clock_mono_ns(),
        .deadline_ns = w->deadline_ns,
        .on_progress = post,
        .progress_ctx = &g->progress};
    ck_assert_int_eq(session_open(r->t, &spec, &g->s), ERR_OK);
    free(prompt);
}

void guest_submit(const rig *r, guest *g)
{
    err_info info = {0};
    ck_assert_msg(engine_submit(r->e, &g->s, 1, &info) == ERR_OK, "%s", info.message);
}

session_finish guest_wait(guest *g)
{
    for (;;) {
        const session_finish finish = session_read(g->s).finish;
        if (finish != FINISH_NONE) return finish;
        sem_wait(&g->progress);
    }
}

void guest_wait_tokens(guest *g, uint32_t n_tokens)
{
    while (session_read(g->s).n_tokens < n_tokens && session_read(g->s).finish == FINISH_NONE)
        sem_wait(&g->progress);
}

void guest_leave(guest *g)
{
    session_release(g->s);
    g->s = NULL; /* the semaphore stays: the engine may be about to post */
}

uint32_t rig_run(const rig *r, const wish *w, uint32_t *tokens)
{
    guest g;
    guest_make(r, w, &g);
    guest_submit(r, &g);
    ck_assert_int_eq(guest_wait(&g), FINISH_LENGTH);
    const uint32_t n_tokens = session_read(g.s).n_tokens;
    memcpy(tokens, session_tokens(g.s), n_tokens * sizeof *tokens);
    rig_wait_idle(r); /* `g` ends here, and with it the semaphore */
    guest_leave(&g);
    return n_tokens;
}

uint64_t rig_pages_used(const rig *r)
{
    return pages_used(r->cache);
}

void rig_wait_idle(const rig *r)
{
    const struct timespec pause = {.tv_nsec = 200000};
    for (int i = 0; i < 100000; i++) {
        const engine_load load = engine_get_load(r->e);
        if (load.n_running + load.n_waiting + load.n_preempted == 0) return;
        nanosleep(&pause, NULL);
    }
    ck_abort_msg("the engine does not come to rest");
}
