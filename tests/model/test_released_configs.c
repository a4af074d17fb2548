/* config.json as models were released with it: it is read, what it says is what is known of the model, and every key is
 * either read or known to change nothing. `released` has the files; of Phi-3.5's long_factor the numbers are made up. */
#include "model/config_json.h"
#include "model/model_config.h"
#include "tests/model/temp_dir.h"
#include "tests/test_main.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct released {
    const char *name, *family;
    uint64_t n_params; /* as published; of Qwen2-57B and Granite 3B that is 57.4 and 3.3 billion */
    uint32_t n_layers, n_dense;
} released;

static const released models[] = {
    {"Mixtral-8x7B", "mixtral", 46702792704, 32, 0},
    {"Mixtral-8x7B-Instruct", "mixtral", 46702792704, 32, 0},
    {"Mixtral-8x22B", "mixtral", 140620634112, 56, 0},
    {"OLMoE-1B-7B-0924", "olmoe", 6919161856, 16, 0},
    {"OLMoE-1B-7B-0125", "olmoe", 6919161856, 16, 0},
    {"Qwen1.5-MoE-A2.7B", "qwen2_moe", 14315784192, 24, 0},
    {"Qwen2-57B-A14B", "qwen2_moe", 57408658944, 28, 0},
    {"Qwen3-30B-A3B", "qwen3_moe", 30532122624, 48, 0},
    {"Qwen3-30B-A3B-2507", "qwen3_moe", 30532122624, 48, 0},
    {"Qwen3-30B-A3B-FP8", "qwen3_moe", 30532122624, 48, 0},
    {"Qwen3-235B-A22B", "qwen3_moe", 235093634560, 94, 0},
    {"granite-3.1-1b-a400m", "granitemoe", 1334628352, 24, 0},
    {"granite-3.1-3b-a800m", "granitemoe", 3298793472, 32, 0},
    {"Phi-3.5-MoE", "phimoe", 41873153344, 32, 0},
    {"DeepSeek-V2", "deepseek_v2", 235741434880, 60, 1},
    {"DeepSeek-V2.5", "deepseek_v2", 235741434880, 60, 1},
    {"DeepSeek-V2-Lite", "deepseek_v2", 15706484224, 27, 1},
    {"DeepSeek-V3", "deepseek_v3", 671026419200, 61, 3},
    {"DeepSeek-R1", "deepseek_v3", 671026419200, 61, 3},
    {"DeepSeek-V3.1", "deepseek_v3", 671026419200, 61, 3},
    {"gpt-oss-20b", "gpt_oss", 20914757184, 24, 0},
    {"gpt-oss-120b", "gpt_oss", 116829156672, 36, 0},
};
enum { N_MODELS = sizeof models / sizeof models[0] };

/* What changes no number that is computed here. */
static const char *const ignored[] = {
    "architectures",
    "auto_map",
    "transformers_version", /* model_type says it */
    "attention_dropout",
    "hidden_dropout",
    "initializer_range",
    "input_jitter_noise", /* training */
    "aux_loss_alpha",
    "seq_aux",
    "router_aux_loss_coef",
    "output_router_logits", /* its losses */
    "ep_size",
    "pretraining_tp", /* how it was spread over processors */
    "pad_token_id",
    "use_cache",              /* of other programs */
    "initial_context_length", /* rope_scaling has it */
};

/* Of a model: keys that its other keys make meaningless. */
static const struct {
    const char *name, *key;
} meaningless[] = {
    {"Qwen", "max_window_layers"}, /* use_sliding_window is false */
    {"Qwen1.5", "sliding_window"}, /* the same */
    {"Qwen2-57B", "sliding_window"},    {"Qwen3", "sliding_window"},
    {"Qwen", "intermediate_size"},   /* no layer is dense */
    {"DeepSeek-V2-Lite", "n_group"}, /* topk_method is greedy */
    {"DeepSeek-V2-Lite", "topk_group"},
};

static bool is_ignored(const char *name, const char *key)
{
    for (size_t i = 0; i < sizeof ignored / sizeof ignored[0]; i++) {
        if (strcmp(ignored[i], key) == 0) return true;
    }
    for (size_t i = 0; i < sizeof meaningless / sizeof meaningless[0]; i++) {
        if (strncmp(meaningless[i].name, name, strlen(meaningless[i].name)) == 0 &&
            strcmp(meaningless[i].key, key) == 0)
            return true;
    }
    return false;
}

static model_config must_read(const char *name)
{
    char path[128];
    model_config c;
    err_info info = {0};
    (void)snprintf(path, sizeof path, "tests/model/released/%s", name);
    const err_t err = model_config_read(path, &c, &info);
    ck_assert_msg(err == ERR_OK, "%s: %s", name, info.message);
    return c;
}

START_TEST(released_configs_say_what_is_known_of_the_models)
{
    for (int i = 0; i < N_MODELS; i++) {
        const released *const want = &models[i];
        const model_config c = must_read(want->name);
        uint32_t n_dense = 0;
        for (uint32_t l = 0; l < c.n_layers; l++)
            n_dense += model_layer_is_dense(&c, l);
        ck_assert_str_eq(c.family, want->family);
        ck_assert_uint_eq(c.n_layers, want->n_layers);
        ck_assert_uint_eq(n_dense, want->n_dense);
        ck_assert_msg(c.n_params == want->n_params, "%s: %zu parameters", want->name, c.n_params);
        ck_assert(c.quantisation.method != QUANTISATION_NONE || c.n_unused_layers == 0);
    }
}
END_TEST

START_TEST(deepseeks_released_settings_are_read)
{
    const model_config v2 = must_read("DeepSeek-V2"), lite = must_read("DeepSeek-V2-Lite"),
                       v3 = must_read("DeepSeek-V3"), v31 = must_read("DeepSeek-V3.1");
    ck_assert_uint_eq(v2.router_groups, 8);
    ck_assert_uint_eq(v2.router_top_groups, 3);
    ck_assert_uint_eq(v2.router_group_best, 1);
    ck_assert(v2.router_scale == 16);
    ck_assert_uint_eq(lite.router_groups, 0);
    ck_assert_uint_eq(lite.latent.q_rank, 0);
    ck_assert(v3.router == ROUTER_SIGMOID);
    ck_assert(v3.has_choice_bias);
    ck_assert(v3.renormalise_top_k);
    ck_assert_uint_eq(v3.router_group_best, 2);
    ck_assert_uint_eq(v3.n_unused_layers, 1);
    ck_assert_uint_eq(v3.quantisation.block_rows, 128);
    ck_assert(memcmp(&v3.quantisation, &v31.quantisation, sizeof v3.quantisation) == 0);
    ck_assert_uint_eq(v3.n_positions, 163840);
    ck_assert(v3.rope.mscale_all == 1);
    ck_assert_uint_eq(model_key_dim(&v3), 576);
    ck_assert_uint_eq(model_value_dim(&v3), 512);
}
END_TEST

/* The released file with one key changed. */
typedef struct variant {
    const char *name, *key, *value; /* value NULL: the key is not there */
    uint32_t n_dense, first_with_experts;
    const char *fact; /* of the refusal; NULL: it is read */
} variant;

static const variant variants[] = {
    {"DeepSeek-V2-Lite", "first_k_dense_replace", "0", 0, 0, NULL},
    {"DeepSeek-V2-Lite", "first_k_dense_replace", NULL, 0, 0, NULL},
    {"DeepSeek-V2-Lite", "first_k_dense_replace", "26", 26, 26, NULL},
    {"DeepSeek-V2-Lite", "first_k_dense_replace", "27", 0, 0, "no layer has experts"},
    {"DeepSeek-V2-Lite", "first_k_dense_replace", "28", 0, 0, "first_k_dense_replace: 28"},
    {"DeepSeek-V2-Lite", "moe_layer_freq", NULL, 1, 1, NULL},
    {"DeepSeek-V2-Lite", "moe_layer_freq", "2", 14, 2, NULL}, /* 2, 4 ... 26 */
    {"DeepSeek-V2-Lite", "moe_layer_freq", "26", 26, 26, NULL},
    {"DeepSeek-V2-Lite", "moe_layer_freq", "27", 0, 0, "no layer has experts"},
    {"DeepSeek-V2-Lite", "moe_layer_freq", "0", 0, 0, "moe_layer_freq: 0"},
    {"DeepSeek-V2-Lite", "moe_layer_freq", "[0,1]", 0, 0, "moe_layer_freq"},
    {"DeepSeek-V2-Lite", "norm_topk_prob", "true", 0, 0, "norm_topk_prob: true is not supported"},
    {"DeepSeek-V2-Lite", "topk_method", "\"noaux_tc\"", 0, 0, "topk_method: \"noaux_tc\""},
    {"DeepSeek-V2", "topk_group", "9", 0, 0, "topk_group: 9"},
    {"DeepSeek-V2", "n_group", "7", 0, 0, "n_group: 7 does not divide 160"},
    {"DeepSeek-V3", "scoring_func", "\"softmax\"", 0, 0, "scoring_func: \"softmax\""},
    {"DeepSeek-V3", "num_nextn_predict_layers", NULL, 3, 3, NULL},
};

START_TEST(dense_layers_of_deepseek_are_where_its_keys_say)
{
    temp_dir dir;
    temp_dir_open(&dir);
    for (size_t i = 0; i < sizeof variants / sizeof variants[0]; i++) {
        const variant *const v = &variants[i];
        char path[128];
        cJSON *config = NULL;
        (void)snprintf(path, sizeof path, "tests/model/released/%s", v->name);
        ck_assert_int_eq(model_json_read(path, "config.json", &config, NULL), ERR_OK);
        cJSON_DeleteItemFromObjectCaseSensitive(config, v->key);
        if (v->value != NULL)
            ck_assert(cJSON_AddItemToObject(config, v->key, cJSON_Parse(v->value)));
        char *const text = cJSON_PrintUnformatted(config);
        temp_write_text(&dir, "config.json", text);
        model_config c;
        err_info info = {0};
        const err_t err = model_config_read(dir.path, &c, &info);
        ck_assert_msg((err == ERR_OK) == (v->fact == NULL), "%s %s: %s", v->key, v->value,
                      info.message);
        if (v->fact != NULL)
            ck_assert_msg(strstr(info.message, v->fact) != NULL, "%s", info.message);
        uint32_t n_dense = 0, first = UINT32_MAX;
        for (uint32_t l = 0; err == ERR_OK && l < c.n_layers; l++) {
            n_dense += model_layer_is_dense(&c, l);
            if (!model_layer_is_dense(&c, l) && l < first) first = l;
        }
        ck_assert_uint_eq(n_dense, v->n_dense);
        if (err == ERR_OK) ck_assert_uint_eq(first, v->first_with_experts);
        if (err == ERR_OK && strstr(v->key, "nextn") != NULL)
            ck_assert_uint_eq(c.n_unused_layers, 0);
        free(text);
        cJSON_Delete(config);
    }
    temp_dir_close(&dir);
}
END_TEST

/* A value that no key can have. */
static cJSON *nonsense(void)
{
    cJSON *const value = cJSON_CreateObject();
    ck_assert_ptr_nonnull(cJSON_AddNumberToObject(value, "nonsense", 1));
    return value;
}

static void check_keys(const char *name, cJSON *config, temp_dir *dir)
{
    for (cJSON *member = config->child; member != NULL; member = member->next) {
        char key[64];
        (void)snprintf(key, sizeof key, "%s", member->string);
        if (is_ignored(name, key)) continue;
        cJSON *const changed = cJSON_Duplicate(config, true);
        ck_assert(cJSON_ReplaceItemInObjectCaseSensitive(changed, key, nonsense()));
        char *const text = cJSON_PrintUnformatted(changed);
        temp_write_text(dir, "config.json", text);
        model_config c;
        ck_assert_msg(model_config_read(dir->path, &c, NULL) != ERR_OK, "%s: %s is not read", name,
                      key);
        free(text);
        cJSON_Delete(changed);
    }
}

START_TEST(every_key_is_read_or_known_to_change_nothing)
{
    temp_dir dir;
    temp_dir_open(&dir);
    for (int i = 0; i < N_MODELS; i++) {
        char path[128];
        cJSON *config = NULL;
        (void)snprintf(path, sizeof path, "tests/model/released/%s", models[i].name);
        ck_assert_int_eq(model_json_read(path, "config.json", &config, NULL), ERR_OK);
        check_keys(models[i].name, config, &dir);
        cJSON_Delete(config);
    }
    temp_dir_close(&dir);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(released_configs_say_what_is_known_of_the_models),
    TEST_CASE(deepseeks_released_settings_are_read),
    TEST_CASE(dense_layers_of_deepseek_are_where_its_keys_say),
    TEST_CASE(every_key_is_read_or_known_to_change_nothing),
    TEST_CASES_END,
};
