/* tests/service/engine_rig.c - see engine_rig.h. */
#include "tests/service/engine_rig.h"

#include "base/clock.h"
#include "base/hash.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char MODEL_DIR[] = "tests/golden/mixtral-gqa-bf16";

static void open_cache(const rig_options *options, uint32_t n_seqs_max, uint32_t n_step_tokens,
                       rig *r)
{
    kv_config config = {0};
    const cfg_binding binding = {&kv_config_table, &config};
    err_info info = {0};
    ck_assert_int_eq(cfg_defaults(&binding, 1), ERR_OK);
    config.memory_bytes = options->memory_bytes > 0 ? options->memory_bytes : 64u << 20;
    config.page_tokens = options->page_tokens > 0 ? options->page_tokens : 8;
    config.window_tokens = 16;
    config.host_bytes = options->host_bytes;
    config.disk_bytes = options->disk_bytes;
    if (options->disk_bytes > 0) config.disk_path = strdup("/tmp");
    config.sink_tokens = 4;
    config.prefix_caching = !options->no_prefix_caching;
    config.request_methods = options->request_methods;
    if (options->compression != NULL) {
        free(config.compression);
        config.compression = strdup(options->compression);
    }
    const kv_limits limits = {.n_seqs_max = n_seqs_max,
                              .n_step_tokens_max = n_step_tokens,
                              .n_seq_tokens_max = model_get_config(r->m)->n_positions};
    ck_assert_msg(
        kv_cache_open(r->d, &config, model_get_kv_shape(r->m), &limits, &r->cache, &info) == ERR_OK,
        "%s", info.message);
    cfg_deinit(&binding, 1);
}

void rig_open(const rig_options *options, rig *r)
{
    err_info info = {0};
    const engine_config config = {
        .n_seqs_max = options->n_seqs_max > 0 ? options->n_seqs_max : 8,
        .n_batched_tokens_max =
            options->n_batched_tokens_max > 0 ? options->n_batched_tokens_max : 64,
        .n_queued_max = options->n_queued_max > 0 ? options->n_queued_max : 256};
    const dev_config device = {.isa = "auto", .n_threads = 2};
    const model_options shape = {.n_step_tokens_max = config.n_batched_tokens_max};
    *r = (rig){0};
    ck_assert_int_eq(hash_init(), ERR_OK);
    ck_assert_int_eq(dev_open_cpu(&device, &r->d, &info), ERR_OK);
    ck_assert_int_eq(tokenizer_open("models/storyteller", &r->t, &info), ERR_OK);
    ck_assert_msg(model_open(r->d, MODEL_DIR, &shape, &r->m, &info) == ERR_OK, "%s", info.message);
    open_cache(options, config.n_seqs_max, config.n_batched_tokens_max, r);
    const model_config *c = model_get_config(r->m);
    const metrics_shape sizes = {
        .model_name = "tiny", .n_layers = c->n_layers, .n_experts = c->n_experts};
    ck_assert_int_eq(metrics_open(&sizes, &r->counted), ERR_OK);
    const engine_parts parts = {
        .d = r->d, .m = r->m, .cache = r->cache, .t = r->t, .metrics = r->counted};
    ck_assert_msg(engine_open(&config, &parts, &r->e, &info) == ERR_OK, "%s", info.message);
}

void rig_close(rig *r)
{
    engine_close(r->e);
    ck_assert_uint_eq(rig_pages_used(r), 0);
    ck_assert(kv_cache_is_sane(r->cache));
    metrics_close(r->counted);
    kv_cache_close(r->cache);
    model_close(r->m);
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
                              .compression = (char *)(uintptr_t)compression};
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
    kv_stats stats;
    kv_stats_read(r->cache, &stats);
    return stats.pages_used;
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
