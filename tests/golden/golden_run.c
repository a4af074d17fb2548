/* tests/golden/golden_run.c - see golden_run.h. */
#include "tests/golden/golden_run.h"

#include "kvcache/cache_state.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const folder = "tests/golden"; /* tests run in the root of the repository */

/* ---- the fixture --------------------------------------------------------------------------------- */

static void must(err_t err, const err_info *info)
{
    ck_assert_msg(err == ERR_OK, "%s: %s", err_name(err), info->message);
}

static const tensor *find_reference(const golden *g, uint32_t prompt, const char *name)
{
    char full[64];
    (void)snprintf(full, sizeof full, "p%u.%s", prompt, name);
    return tensor_find(g->reference, full);
}

static void open_cache(const golden_setup *setup, golden *g)
{
    err_info info = {0};
    kv_config config = {0};
    const cfg_binding binding = {&kv_config_table, &config};
    ck_assert(cfg_defaults(&binding, 1) == ERR_OK);
    config.dtype = setup->cache_type;
    config.memory_bytes = 64 << 20;
    config.prefix_caching = setup->prefix_caching;
    config.comm = setup->whole_cache ? NULL : setup->comm;
    if (setup->small_pages) {
        config.window_tokens = 8;
        config.sink_tokens = 2;
        config.page_tokens = 4;
    }
    if (setup->compression != NULL) {
        config.window_tokens = 8;
        config.page_tokens = 8;
        free(config.compression);
        config.compression = strdup(setup->compression);
    }
    for (const char *const *s = setup->settings; s != NULL && *s != NULL; s += 2)
        must(cfg_set(&binding, 1, s[0], s[1], &info), &info);
    const kv_limits limits = {.n_seqs_max = GOLDEN_PROMPTS_MAX,
                              .n_step_tokens_max = GOLDEN_STEP_TOKENS_MAX,
                              .n_seq_tokens_max = model_get_config(g->m)->n_positions};
    must(kv_cache_open(g->d, &config, model_get_kv_shape(g->m), &limits, &g->cache, &info), &info);
    if (setup->compression != NULL) g->cache->section_tokens = 32;
    cfg_deinit(&binding, 1);
}

/* Of fixtures whose rotary positions depend on it; 0: all that the model has. */
static uint32_t served_positions(const tensor_files *reference)
{
    const tensor *const t = tensor_find(reference, "n_positions");
    if (t == NULL) return 0;
    ck_assert(t->type == TENSOR_I32);
    return (uint32_t) * (const int32_t *)t->data;
}

void golden_open(const golden_setup *setup, golden *out)
{
    err_info info = {0};
    char dir[256], path[512];
    *out = (golden){0};
    (void)snprintf(dir, sizeof dir, "%s/%s", folder, setup->fixture);
    (void)snprintf(path, sizeof path, "%s/reference.safetensors", dir);
    const dev_config device = {.isa = setup->isa, .n_threads = setup->n_threads};
    must((setup->open_dev != NULL ? setup->open_dev : dev_open_cpu)(&device, &out->d, &info),
         &info);
    if (setup->devices != NULL)
        must(dev_comm_join(out->d, setup->comm, setup->devices, &info), &info);
    must(tensor_file_open(path, &out->reference, &info), &info);
    const model_options options = {.load = setup->load,
                                   .n_step_tokens_max = GOLDEN_STEP_TOKENS_MAX,
                                   .n_positions_max = served_positions(out->reference),
                                   .check_values = true,
                                   .comm = setup->comm,
                                   .experts = setup->experts};
    const char *const model_dir = setup->model_dir != NULL ? setup->model_dir : dir;
    must(model_open(out->d, model_dir, &options, &out->m, &info), &info);
    open_cache(setup, out);
    out->n_vocab = model_get_config(out->m)->n_vocab;
    while (find_reference(out, out->n_prompts, "prompt") != NULL)
        out->n_prompts++;
    ck_assert(out->n_prompts > 0);
    ck_assert(out->n_prompts <= GOLDEN_PROMPTS_MAX);
}

void golden_close(golden *g)
{
    ck_assert(kv_cache_is_sane(g->cache));
    kv_cache_close(g->cache);
    tensor_files_close(g->reference);
    model_close(g->m);
    dev_close(g->d);
}

const int32_t *golden_ids(const golden *g, uint32_t prompt, const char *name, uint32_t *n)
{
    const tensor *const t = find_reference(g, prompt, name);
    ck_assert_ptr_nonnull(t);
    ck_assert(t->type == TENSOR_I32);
    ck_assert(t->n_dims == 1);
    *n = (uint32_t)t->shape[0];
    return t->data;
}

const float *golden_floats(const golden *g, uint32_t prompt, const char *name)
{
    const tensor *const t = find_reference(g, prompt, name);
    ck_assert_ptr_nonnull(t);
    ck_assert(t->type == TENSOR_F32);
    return t->data;
}

/* ---- tracks -------------------------------------------------------------------------------------- */

static void open_seq(track *t)
{
    const kv_seq_options options = {.salt = "", .n_prompt_tokens = t->n_prompt};
    ck_assert(kv_seq_open(t->g->cache, &options, &t->seq) == ERR_OK);
    t->n_cached = kv_seq_take_prefix(t->seq, t->tokens, t->n_prompt);
    ck_assert(t->n_cached < t->n_prompt);
    t->n_done = t->n_cached;
}

void track_open(golden *g, uint32_t prompt, track *out)
{
    *out = (track){.g = g, .prompt = prompt};
    const int32_t *const ids = golden_ids(g, prompt, "prompt", &out->n_prompt);
    const size_t n = out->n_prompt + GOLDEN_GREEDY_TOKENS;
    out->n_tokens = out->n_prompt;
    out->tokens = calloc(n, sizeof *out->tokens);
    out->logits = calloc(n * g->n_vocab, sizeof *out->logits);
    ck_assert_ptr_nonnull(out->tokens);
    ck_assert_ptr_nonnull(out->logits);
    for (uint32_t i = 0; i < out->n_prompt; i++)
        out->tokens[i] = (uint32_t)ids[i];
    open_seq(out);
}

void track_close(track *t)
{
    kv_seq_close(t->seq, t->tokens);
    free(t->tokens);
    free(t->logits);
}

void track_restart(track *t)
{
    kv_seq_close(t->seq, t->tokens);
    t->n_tokens = t->n_prompt;
    open_seq(t);
}

const float *track_logits(const track *t, uint32_t position)
{
    ck_assert(position >= t->n_cached);
    ck_assert(position < t->n_done);
    return t->logits + (size_t)position * t->g->n_vocab;
}

void track_add_greedy(track *t)
{
    const float *const logits = track_logits(t, t->n_done - 1);
    uint32_t best = 0;
    for (uint32_t i = 1; i < t->g->n_vocab; i++) {
        if (logits[i] > logits[best]) best = i;
    }
    ck_assert(t->n_tokens < t->n_prompt + GOLDEN_GREEDY_TOKENS);
    t->tokens[t->n_tokens++] = best;
}

/* ---- steps --------------------------------------------------------------------------------------- */

typedef struct step {
    uint32_t tokens[GOLDEN_STEP_TOKENS_MAX], positions[GOLDEN_STEP_TOKENS_MAX];
    kv_row rows[GOLDEN_PROMPTS_MAX];
    uint32_t n_of[GOLDEN_PROMPTS_MAX]; /* tokens of each track */
    uint32_t n_tokens, n_rows;
} step;

static void add_row(step *s, const track *t, uint32_t n_tokens)
{
    ck_assert(t->n_done + n_tokens <= t->n_tokens);
    s->rows[s->n_rows++] = (kv_row){.seq = t->seq,
                                    .first_token = s->n_tokens,
                                    .n_tokens = n_tokens,
                                    .is_decode = n_tokens == 1 && t->n_done >= t->n_prompt};
    for (uint32_t i = 0; i < n_tokens; i++) {
        s->tokens[s->n_tokens] = t->tokens[t->n_done + i];
        s->positions[s->n_tokens++] = t->n_done + i;
    }
}

static void keep_logits(track *t, uint32_t first, uint32_t n_tokens)
{
    uint32_t rows[MODEL_LOGIT_ROWS_MAX];
    for (uint32_t i = 0; i < n_tokens; i += MODEL_LOGIT_ROWS_MAX) {
        const uint32_t n =
            n_tokens - i < MODEL_LOGIT_ROWS_MAX ? n_tokens - i : MODEL_LOGIT_ROWS_MAX;
        for (uint32_t j = 0; j < n; j++)
            rows[j] = first + i + j;
        model_logits(t->g->m, rows, n, t->logits + (size_t)(t->n_done + i) * t->g->n_vocab);
    }
}

void golden_step(track *const *tracks, const uint32_t *n_tokens, uint32_t n_tracks)
{
    static _Thread_local step s; /* too large for a stack under sanitizers; ranks are threads */
    golden *const g = tracks[0]->g;
    s.n_tokens = s.n_rows = 0;
    for (uint32_t i = 0; i < n_tracks; i++) {
        s.n_of[i] = (uint32_t)min_size(n_tokens[i], kv_seq_step_tokens_max(tracks[i]->seq));
        if (s.n_of[i] > 0) add_row(&s, tracks[i], s.n_of[i]);
    }
    ck_assert(kv_step_begin(g->cache, s.rows, s.n_rows) == ERR_OK);
    const model_batch batch = {
        .tokens = s.tokens, .positions = s.positions, .n_tokens = s.n_tokens};
    model_forward(g->m, g->cache, &batch);
    kv_step_end(g->cache);
    uint32_t first = 0;
    for (uint32_t i = 0; i < n_tracks; i++) {
        keep_logits(tracks[i], first, s.n_of[i]);
        first += s.n_of[i];
        tracks[i]->n_done += s.n_of[i];
    }
}

void track_run_prompt(track *t, uint32_t chunk)
{
    while (t->n_done < t->n_prompt) {
        const uint32_t rest = t->n_prompt - t->n_done;
        golden_step(&t, &(uint32_t){rest < chunk ? rest : chunk}, 1);
    }
}
