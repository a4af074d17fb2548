/* Opening models: what is refused and with which words; dummy weights; tensors at odd addresses. The
 * numbers of the forward pass are tested in tests/golden. */
#include "kvcache/observed.h"
#include "model/model.h"
#include "model/safetensors.h"
#include "tests/model/temp_dir.h"
#include "tests/test_main.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const fixture = "tests/golden/mixtral-base-f32";

static const char *const dummy_config =
    "{\"model_type\":\"mixtral\",\"hidden_size\":96,\"intermediate_size\":112,\"num_hidden_"
    "layers\":3,"
    "\"num_attention_heads\":6,\"num_key_value_heads\":2,\"num_local_experts\":5,\"num_experts_per_"
    "tok\":2,"
    "\"vocab_size\":301,\"max_position_embeddings\":512,\"rms_norm_eps\":1e-05,\"rope_theta\":1e4,"
    "\"torch_dtype\":\"%s\",\"tie_word_embeddings\":%s}";

static dev *open_dev(uint32_t n_threads)
{
    dev *d;
    err_info info = {0};
    ck_assert_msg(dev_open_cpu(&(dev_config){.isa = "auto", .n_threads = n_threads}, &d, &info) ==
                      ERR_OK,
                  "%s", info.message);
    return d;
}

static void write_dummy_config(const temp_dir *dir, const char *type, const char *tied)
{
    char text[1024];
    (void)snprintf(text, sizeof text, dummy_config, type, tied);
    temp_write_text(dir, "config.json", text);
}

/* Logits after `n_tokens` tokens 1, 2, 3 ... computed in one step: a fresh array of n_vocab. */
static float *run_model(dev *d, model *m, uint32_t n_tokens)
{
    kv_cache *cache;
    kv_seq *seq;
    kv_config config = {0};
    err_info info = {0};
    uint32_t tokens[64], positions[64];
    const cfg_binding binding = {&kv_config_table, &config};
    ck_assert(cfg_defaults(&binding, 1) == ERR_OK);
    config.memory_bytes = 16 << 20;
    const kv_limits limits = {.n_seqs_max = 1, .n_step_tokens_max = 64, .n_seq_tokens_max = 128};
    ck_assert_msg(kv_cache_open(d, &config, model_get_kv_shape(m), &limits, &cache, &info) ==
                      ERR_OK,
                  "%s", info.message);
    ck_assert(kv_seq_open(cache, &(kv_seq_options){.salt = ""}, &seq) == ERR_OK);
    for (uint32_t i = 0; i < n_tokens; i++) {
        tokens[i] = i + 1;
        positions[i] = i;
    }
    ck_assert(kv_step_begin(cache, &(kv_row){.seq = seq, .n_tokens = n_tokens}, 1) == ERR_OK);
    model_forward(m, cache,
                  &(model_batch){.tokens = tokens, .positions = positions, .n_tokens = n_tokens});
    kv_step_end(cache);
    float *const logits = malloc(model_get_config(m)->n_vocab * sizeof *logits);
    ck_assert_ptr_nonnull(logits);
    model_logits(m, &(uint32_t){n_tokens - 1}, 1, logits);
    kv_seq_close(seq, NULL);
    kv_cache_close(cache);
    cfg_deinit(&binding, 1);
    return logits;
}

static model *open_model(dev *d, const char *dir, model_load load)
{
    model *m;
    err_info info = {0};
    const model_options options = {.load = load, .n_step_tokens_max = 64, .check_values = true};
    ck_assert_msg(model_open(d, dir, &options, &m, &info) == ERR_OK, "%s", info.message);
    return m;
}

/* ---- dummy weights ------------------------------------------------------------------------------- */

static float *run_dummy(const char *type, const char *tied, uint32_t n_threads)
{
    temp_dir dir;
    temp_dir_open(&dir);
    write_dummy_config(&dir, type, tied);
    dev *const d = open_dev(n_threads);
    model *const m = open_model(d, dir.path, MODEL_LOAD_DUMMY);
    const model_config *const c = model_get_config(m);
    ck_assert_uint_eq(model_weight_bytes(m), c->n_params * dtype_bytes(c->stored_type));
    ck_assert_uint_gt(model_scratch_bytes(m), 64 * 96 * sizeof(float));
    model_touch_weights(m);
    float *const logits = run_model(d, m, 20);
    model_close(m);
    dev_close(d);
    temp_dir_close(&dir);
    return logits;
}

START_TEST(dummy_weights_are_the_same_for_any_number_of_threads)
{
    static const char *const types[] = {"float32", "bfloat16", "float16"};
    for (int i = 0; i < 6; i++) {
        const char *const tied = i < 3 ? "false" : "true";
        float *const a = run_dummy(types[i % 3], tied, 1), *const b =
                                                               run_dummy(types[i % 3], tied, 3);
        float largest = 0;
        ck_assert(memcmp(a, b, 301 * sizeof *a) == 0);
        for (int j = 0; j < 301; j++) {
            ck_assert(isfinite(a[j]));
            largest = fmaxf(largest, fabsf(a[j]));
        }
        ck_assert_msg(largest > 0.1f && largest < 100.0f, "the largest logit is %g",
                      (double)largest);
        free(a);
        free(b);
    }
}
END_TEST

/* ---- files --------------------------------------------------------------------------------------- */

/* Copies the fixture into `dir`, its header changed: `from` replaced by `to` of the same length. */
static void copy_folder(const temp_dir *dir, const char *folder, const char *config_from,
                        const char *config_to, const char *from, const char *to)
{
    char path[256];
    size_t n_config, n_model;
    (void)snprintf(path, sizeof path, "%s/config.json", folder);
    char *const config = temp_read(path, &n_config);
    (void)snprintf(path, sizeof path, "%s/model.safetensors", folder);
    char *const model_bytes = temp_read(path, &n_model);
    if (from != NULL) {
        char *const at = memmem(model_bytes, n_model, from, strlen(from));
        ck_assert_msg(at != NULL, "%s is not in the file", from);
        memcpy(at, to, strlen(to));
    }
    if (config_from != NULL) {
        char *const at = strstr(config, config_from);
        ck_assert_msg(at != NULL, "%s is not in the config", config_from);
        memcpy(at, config_to, strlen(config_to));
    }
    temp_write(dir, "config.json", config, n_config);
    temp_write(dir, "model.safetensors", model_bytes, n_model);
    free(config);
    free(model_bytes);
}

static void copy_fixture(const temp_dir *dir, const char *config_from, const char *config_to,
                         const char *from, const char *to)
{
    copy_folder(dir, fixture, config_from, config_to, from, to);
}

static void expect_refusal(const temp_dir *dir, const model_options *options, err_t expected,
                           const char *fact)
{
    dev *const d = open_dev(2);
    model *m = NULL;
    err_info info = {0};
    const err_t err = model_open(d, dir->path, options, &m, &info);
    ck_assert_msg(err == expected, "%s: %s", err_name(err), info.message);
    ck_assert_msg(strstr(info.message, fact) != NULL, "\"%s\" lacks \"%s\"", info.message, fact);
    ck_assert_ptr_null(m);
    dev_close(d);
}

static const model_options checked = {.n_step_tokens_max = 16, .check_values = true};

START_TEST(a_model_that_differs_from_its_config_is_refused)
{
    static const struct {
        const char *config_from, *config_to, *from, *to;
        err_t err;
        const char *fact;
    } cases[] = {
        {"\"vocab_size\": 96", "\"vocab_size\": 97", NULL, NULL, ERR_BAD_MODEL,
         "model.embed_tokens.weight: shape [96, 32] is not [97, 32]"},
        {"\"num_local_experts\": 4", "\"num_local_experts\": 5", NULL, NULL, ERR_BAD_MODEL,
         "tensor model.layers.0.block_sparse_moe.gate.weight: shape [4, 32] is not [5, 32]"},
        {"\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3", NULL, NULL, ERR_BAD_MODEL,
         "19 tensors are missing, the first is model.layers.2.input_layernorm.weight"},
        {NULL, NULL, "\"lm_head.weight\"", "\"lm_tail.weight\"", ERR_BAD_MODEL,
         "1 tensors are missing, the first is lm_head.weight"},
        {NULL, NULL, "\"model.norm.weight\":{\"dtype\":\"F32\"",
         "\"model.norm.weight\":{\"dtype\":\"I32\"", ERR_UNSUPPORTED,
         "tensor model.norm.weight: type I32"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        temp_dir dir;
        temp_dir_open(&dir);
        copy_fixture(&dir, cases[i].config_from, cases[i].config_to, cases[i].from, cases[i].to);
        expect_refusal(&dir, &checked, cases[i].err, cases[i].fact);
        temp_dir_close(&dir);
    }
}
END_TEST

/* gpt-oss as transformers writes it. */
START_TEST(experts_by_column_must_have_the_shape_of_the_config)
{
#define BIAS(shape) "experts.gate_up_proj_bias\":{\"dtype\":\"BF16\",\"shape\":[" shape "]"
    static const struct {
        const char *config_from, *config_to, *from, *to;
        err_t err;
        const char *fact;
    } cases[] = {
        {"\"intermediate_size\": 16", "\"intermediate_size\": 17", NULL, NULL, ERR_BAD_MODEL,
         "experts.gate_up_proj: 3 dimensions of first size 6 are not [6, 32, 34]"},
        {NULL, NULL, BIAS("6,32"), BIAS("32,6"), ERR_BAD_MODEL,
         "experts.gate_up_proj_bias: 2 dimensions of first size 32 are not [6, 32]"},
        {NULL, NULL, "0.self_attn.sinks", "0.self_attn.stops", ERR_BAD_MODEL,
         "1 tensors are missing, the first is model.layers.0.self_attn.sinks"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        temp_dir dir;
        temp_dir_open(&dir);
        copy_folder(&dir, "tests/golden/gpt_oss-base-bf16", cases[i].config_from,
                    cases[i].config_to, cases[i].from, cases[i].to);
        expect_refusal(&dir, &checked, cases[i].err, cases[i].fact);
        temp_dir_close(&dir);
    }
#undef BIAS
}
END_TEST

START_TEST(more_layers_than_the_config_names_are_a_warning_only)
{
    temp_dir dir;
    temp_dir_open(&dir);
    copy_fixture(&dir, "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1", NULL, NULL);
    dev *const d = open_dev(1);
    model_close(open_model(d, dir.path, MODEL_LOAD_AUTO));
    dev_close(d);
    temp_dir_close(&dir);
}
END_TEST

START_TEST(more_positions_than_the_model_has_are_refused)
{
    temp_dir dir;
    temp_dir_open(&dir);
    copy_fixture(&dir, NULL, NULL, NULL, NULL);
    model_options options = {.n_step_tokens_max = 16, .n_positions_max = 1025};
    expect_refusal(&dir, &options, ERR_BAD_CONFIG,
                   "1025 positions are more than the model's max_position_embeddings 1024");
    options.n_positions_max = 100;
    dev *const d = open_dev(1);
    model *m;
    ck_assert(model_open(d, dir.path, &options, &m, NULL) == ERR_OK);
    ck_assert_uint_eq(model_get_config(m)->n_positions, 100);
    model_close(m);
    dev_close(d);
    temp_dir_close(&dir);
}
END_TEST

/* Overwrites the last value of the file's data. */
static void spoil_last_value(const temp_dir *dir, float value)
{
    size_t n_bytes;
    char *const bytes = temp_read(temp_path(dir, "model.safetensors"), &n_bytes);
    memcpy(bytes + n_bytes - sizeof value, &value, sizeof value);
    temp_write(dir, "model.safetensors", bytes, n_bytes);
    free(bytes);
}

START_TEST(nan_and_inf_are_found_when_asked_for)
{
    temp_dir dir;
    temp_dir_open(&dir);
    copy_fixture(&dir, NULL, NULL, NULL, NULL);
    spoil_last_value(&dir, NAN);
    expect_refusal(&dir, &checked, ERR_BAD_MODEL, "is NaN or infinite");
    spoil_last_value(&dir, -INFINITY);
    expect_refusal(&dir, &checked, ERR_BAD_MODEL, "is NaN or infinite");
    dev *const d = open_dev(1);
    model *m;
    ck_assert(model_open(d, dir.path, &(model_options){.n_step_tokens_max = 1}, &m, NULL) ==
              ERR_OK);
    model_close(m);
    dev_close(d);
    temp_dir_close(&dir);
}
END_TEST

/* ---- ranks --------------------------------------------------------------------------------------- */

enum { N_RANKS = 3 };

/* Opens the model on each of three ranks, one after the other: opening takes no collective. */
static void open_ranks(dev *d, const char *dir, const experts_config *experts, comm **comms,
                       model **models, err_t *errs)
{
    ck_assert(comm_open_local(N_RANKS, 1000, comms, NULL) == ERR_OK);
    for (uint32_t r = 0; r < N_RANKS; r++) {
        const model_options options = {
            .n_step_tokens_max = 16, .check_values = true, .comm = comms[r], .experts = experts};
        errs[r] = model_open(d, dir, &options, &models[r], NULL);
    }
}

static void close_ranks(comm **comms, model **models)
{
    for (uint32_t r = 0; r < N_RANKS; r++) {
        model_close(models[r]);
        comm_close(comms[r]);
    }
}

/* Four experts and two replicas, in order: 0 1 | 2 3 | 0 1. */
START_TEST(a_rank_reads_the_weights_of_the_experts_that_it_has)
{
    const experts_config experts = {
        .n_redundant = 2, .step_interval = 1, .imbalance_min = 1, .strategy = EXPERTS_LINEAR};
    comm *comms[N_RANKS];
    model *models[N_RANKS];
    err_t errs[N_RANKS];
    dev *const d = open_dev(1);
    model *const whole = open_model(d, fixture, MODEL_LOAD_AUTO);
    const model_config *const c = model_get_config(whole);
    const size_t expert_bytes =
        3 * (size_t)c->d_model * c->d_ffn * dtype_bytes(c->stored_type) * c->n_layers;
    open_ranks(d, fixture, &experts, comms, models, errs);
    for (uint32_t r = 0; r < N_RANKS; r++) {
        ck_assert(errs[r] == ERR_OK);
        ck_assert_uint_eq(model_weight_bytes(models[r]),
                          model_weight_bytes(whole) - 2 * expert_bytes);
        model_touch_weights(models[r]);
    }
    close_ranks(comms, models);
    model_close(whole);
    dev_close(d);
}
END_TEST

/* Overwrites the first value of a tensor of the folder's file. */
static void spoil_tensor(const temp_dir *dir, const char *name, float value)
{
    size_t n_bytes;
    tensor_files *files;
    ck_assert(tensor_files_open(dir->path, &files, NULL) == ERR_OK);
    const tensor *const t = tensor_find(files, name);
    ck_assert_ptr_nonnull(t);
    char *const bytes = temp_read(temp_path(dir, "model.safetensors"), &n_bytes);
    char *const at = memmem(bytes, n_bytes, t->data, t->data_bytes);
    ck_assert_ptr_nonnull(at);
    memcpy(at, &value, sizeof value);
    tensor_files_close(files);
    temp_write(dir, "model.safetensors", bytes, n_bytes);
    free(bytes);
}

/* A bad value in expert 3, which in order is rank 2's; by load it may become anybody's. */
START_TEST(a_rank_checks_the_values_of_all_experts_that_it_may_have)
{
    temp_dir dir;
    temp_dir_open(&dir);
    copy_fixture(&dir, NULL, NULL, NULL, NULL);
    spoil_tensor(&dir, "model.layers.1.block_sparse_moe.experts.3.w2.weight", NAN);
    dev *const d = open_dev(1);
    for (uint32_t strategy = EXPERTS_LINEAR; strategy <= EXPERTS_EPLB; strategy++) {
        const experts_config experts = {
            .step_interval = 1, .imbalance_min = 1, .strategy = strategy};
        comm *comms[N_RANKS];
        model *models[N_RANKS];
        err_t errs[N_RANKS];
        open_ranks(d, dir.path, &experts, comms, models, errs);
        ck_assert(errs[2] == ERR_BAD_MODEL);
        for (uint32_t r = 0; r < 2; r++)
            ck_assert(errs[r] == (strategy == EXPERTS_LINEAR ? ERR_OK : ERR_BAD_MODEL));
        close_ranks(comms, models);
    }
    dev_close(d);
    temp_dir_close(&dir);
}
END_TEST

START_TEST(replicas_on_one_rank_are_refused)
{
    const experts_config experts = {.n_redundant = 2, .step_interval = 1, .imbalance_min = 1};
    const model_options options = {.n_step_tokens_max = 16, .experts = &experts};
    const temp_dir dir = {"tests/golden/mixtral-base-f32"};
    expect_refusal(&dir, &options, ERR_BAD_CONFIG, "num-redundant-experts: 2 is more than 0");
}
END_TEST

/* ---- odd addresses ------------------------------------------------------------------------------- */

/* The same file with one more space behind its header, so that every float lies at an odd address. */
START_TEST(tensors_at_odd_addresses_give_the_same_logits)
{
    temp_dir dir;
    char path[256];
    size_t n_bytes;
    uint64_t header_bytes;
    temp_dir_open(&dir);
    copy_fixture(&dir, NULL, NULL, NULL, NULL);
    (void)snprintf(path, sizeof path, "%s/model.safetensors", fixture);
    char *const bytes = temp_read(path, &n_bytes);
    char *const shifted = malloc(n_bytes + 1);
    ck_assert_ptr_nonnull(shifted);
    memcpy(&header_bytes, bytes, sizeof header_bytes);
    memcpy(shifted, bytes, 8 + header_bytes);
    shifted[8 + header_bytes] = ' ';
    memcpy(shifted + 9 + header_bytes, bytes + 8 + header_bytes, n_bytes - 8 - header_bytes);
    header_bytes++;
    memcpy(shifted, &header_bytes, sizeof header_bytes);
    temp_write(&dir, "model.safetensors", shifted, n_bytes + 1);

    dev *const d = open_dev(2);
    model *const a = open_model(d, fixture, MODEL_LOAD_SAFETENSORS);
    model *const b = open_model(d, dir.path, MODEL_LOAD_SAFETENSORS);
    float *const x = run_model(d, a, 9), *const y = run_model(d, b, 9);
    ck_assert(memcmp(x, y, model_get_config(a)->n_vocab * sizeof *x) == 0);
    free(x);
    free(y);
    model_close(a);
    model_close(b);
    dev_close(d);
    free(shifted);
    free(bytes);
    temp_dir_close(&dir);
}
END_TEST

/* ---- counters ------------------------------------------------------------------------------------ */

typedef struct expert_count {
    uint32_t n_calls, n_tokens;
} expert_count;

static void count_experts(void *ctx, uint32_t layer, const uint32_t *chosen, uint32_t n_tokens,
                          uint32_t top_k)
{
    expert_count *const count = ctx;
    ck_assert_uint_eq(layer, count->n_calls);
    for (uint32_t i = 0; i < n_tokens * top_k; i++)
        ck_assert_uint_lt(chosen[i], 4);
    count->n_calls++;
    count->n_tokens += n_tokens;
}

START_TEST(the_routers_choices_are_reported_once_a_layer)
{
    dev *const d = open_dev(1);
    model *const m = open_model(d, fixture, MODEL_LOAD_AUTO);
    kv_cache *cache;
    kv_seq *seq;
    kv_config config = {0};
    const cfg_binding binding = {&kv_config_table, &config};
    const kv_limits limits = {.n_seqs_max = 1, .n_step_tokens_max = 8, .n_seq_tokens_max = 64};
    ck_assert(cfg_defaults(&binding, 1) == ERR_OK);
    config.memory_bytes = 16 << 20;
    ck_assert(kv_cache_open(d, &config, model_get_kv_shape(m), &limits, &cache, NULL) == ERR_OK);
    ck_assert(kv_seq_open(cache, &(kv_seq_options){.salt = ""}, &seq) == ERR_OK);
    expert_count count = {0};
    const model_batch batch = {.tokens = (uint32_t[]){5, 6, 7},
                               .positions = (uint32_t[]){0, 1, 2},
                               .n_tokens = 3,
                               .on_experts = count_experts,
                               .on_experts_ctx = &count};
    ck_assert(kv_step_begin(cache, &(kv_row){.seq = seq, .n_tokens = 3}, 1) == ERR_OK);
    model_forward(m, cache, &batch);
    kv_step_end(cache);
    ck_assert_uint_eq(count.n_calls, 2);
    ck_assert_uint_eq(count.n_tokens, 6);
    kv_seq_close(seq, NULL);
    kv_cache_close(cache);
    cfg_deinit(&binding, 1);
    model_close(m);
    dev_close(d);
}
END_TEST

/* ---- what scorers ask for ------------------------------------------------------------------------- */

enum { NORM_CALLS_MAX = 16, NORM_TOKENS = 5 };

/* Lengths of what every norm of a step got. */
static struct norm_calls {
    const dev_ops *real;
    uint32_t n;
    double length[NORM_CALLS_MAX][NORM_TOKENS];
} norm_calls;

static void note_lengths(dev *d, const rms_norm_args *args)
{
    ck_assert_uint_lt(norm_calls.n, NORM_CALLS_MAX);
    ck_assert_uint_eq(args->n_tokens, NORM_TOKENS);
    for (uint32_t t = 0; t < NORM_TOKENS; t++) {
        double sum = 0;
        for (uint32_t i = 0; i < args->dim; i++)
            sum += pow((double)args->x[(size_t)t * args->dim + i], 2);
        norm_calls.length[norm_calls.n][t] = sqrt(sum);
    }
    norm_calls.n++;
    norm_calls.real->rms_norm(d, args);
}

/* Of a layer's two norms the first has what the layer gets. */
START_TEST(the_cache_is_told_how_long_the_inputs_of_layers_are)
{
    dev *const d = open_dev(2);
    model *const m = open_model(d, fixture, MODEL_LOAD_AUTO);
    kv_cache *cache;
    kv_seq *seq;
    kv_config config = {0};
    const cfg_binding binding = {&kv_config_table, &config};
    const kv_limits limits = {.n_seqs_max = 1, .n_step_tokens_max = 8, .n_seq_tokens_max = 64};
    ck_assert(cfg_defaults(&binding, 1) == ERR_OK);
    config.memory_bytes = 16 << 20;
    config.budget = 0.5;
    ck_assert(cfg_set(&binding, 1, "kv-scheduling", "kvzip_plus", NULL) == ERR_OK);
    ck_assert(kv_cache_open(d, &config, model_get_kv_shape(m), &limits, &cache, NULL) == ERR_OK);
    ck_assert(kv_seq_open(cache, &(kv_seq_options){.salt = ""}, &seq) == ERR_OK);
    dev_ops noting = *d->ops;
    norm_calls.real = d->ops;
    noting.rms_norm = note_lengths;
    d->ops = &noting;
    const model_batch batch = {.tokens = (uint32_t[]){5, 6, 7, 8, 9},
                               .positions = (uint32_t[]){0, 1, 2, 3, 4},
                               .n_tokens = NORM_TOKENS};
    ck_assert(kv_step_begin(cache, &(kv_row){.seq = seq, .n_tokens = NORM_TOKENS}, 1) == ERR_OK);
    model_forward(m, cache, &batch);
    kv_step_end(cache);
    d->ops = norm_calls.real;
    const uint32_t n_layers = model_get_config(m)->n_layers;
    ck_assert_uint_eq(norm_calls.n, 2 * n_layers);
    for (uint32_t l = 0; l < n_layers; l++) {
        for (uint32_t t = 0; t < NORM_TOKENS; t++) {
            const kv_observed_run run = kv_observed_query_run(seq, l, t);
            const double want = norm_calls.length[2 * l][t];
            ck_assert_double_eq_tol((double)run.q[run.stride - 1], want, 1e-6 * want);
        }
    }
    kv_seq_close(seq, NULL);
    kv_cache_close(cache);
    cfg_deinit(&binding, 1);
    model_close(m);
    dev_close(d);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(dummy_weights_are_the_same_for_any_number_of_threads),
    TEST_CASE(a_model_that_differs_from_its_config_is_refused),
    TEST_CASE(experts_by_column_must_have_the_shape_of_the_config),
    TEST_CASE(more_layers_than_the_config_names_are_a_warning_only),
    TEST_CASE(more_positions_than_the_model_has_are_refused),
    TEST_CASE(nan_and_inf_are_found_when_asked_for),
    TEST_CASE(a_rank_reads_the_weights_of_the_experts_that_it_has),
    TEST_CASE(a_rank_checks_the_values_of_all_experts_that_it_may_have),
    TEST_CASE(replicas_on_one_rank_are_refused),
    TEST_CASE(tensors_at_odd_addresses_give_the_same_logits),
    TEST_CASE(the_routers_choices_are_reported_once_a_layer),
    TEST_CASE(the_cache_is_told_how_long_the_inputs_of_layers_are),
    TEST_CASES_END,
};
