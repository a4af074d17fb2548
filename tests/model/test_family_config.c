/* config.json of every family: what is read, and that what is not computed is refused by key and value. */
#include "model/model_config.h"
#include "tests/model/temp_dir.h"
#include "tests/test_main.h"

#include <stdio.h>
#include <string.h>

static const char *const common =
    "\"hidden_size\":32,\"num_hidden_layers\":4,\"num_attention_heads\":4,\"num_key_value_heads\":"
    "2,"
    "\"vocab_size\":96,\"max_position_embeddings\":256,\"rms_norm_eps\":1e-05,"
    "\"num_experts_per_tok\":2,\"intermediate_size\":24,";

typedef struct family_base {
    const char *family, *keys;
} family_base;

static const family_base bases[] = {
    {"mixtral", "\"num_local_experts\":6"},
    {"olmoe", "\"num_experts\":6"},
    {"qwen2_moe", "\"num_experts\":6,\"moe_intermediate_size\":16,"
                  "\"shared_expert_intermediate_size\":20"},
    {"qwen3_moe", "\"num_experts\":6,\"moe_intermediate_size\":16,\"head_dim\":16"},
    {"granitemoe", "\"num_local_experts\":6"},
    {"granitemoeshared", "\"num_local_experts\":6,\"shared_intermediate_size\":20"},
    {"phimoe", "\"num_local_experts\":6"},
    {"gpt_oss", "\"num_local_experts\":6,\"head_dim\":16,\"sliding_window\":24"},
};
enum { N_BASES = sizeof bases / sizeof bases[0] };

#define THETA "\"rope_theta\":1e4"

/* The family's base, and `more`, which holds rope_theta or rope_parameters. */
static err_t read_more(const char *family, const char *more, model_config *out, err_info *info)
{
    temp_dir dir;
    char text[4096];
    const char *keys = NULL;
    for (int i = 0; i < N_BASES; i++) {
        if (strcmp(bases[i].family, family) == 0) keys = bases[i].keys;
    }
    ck_assert_ptr_nonnull(keys);
    (void)snprintf(text, sizeof text, "{\"model_type\":\"%s\",%s%s,%s}", family, common, keys,
                   more);
    temp_dir_open(&dir);
    temp_write_text(&dir, "config.json", text);
    const err_t err = model_config_read(dir.path, out, info);
    temp_dir_close(&dir);
    return err;
}

static model_config must_read(const char *family, const char *more)
{
    model_config c;
    err_info info = {0};
    const err_t err = read_more(family, more, &c, &info);
    ck_assert_msg(err == ERR_OK, "%s: %s", family, info.message);
    return c;
}

START_TEST(every_family_is_read_with_what_it_has)
{
    const model_config olmoe =
        must_read("olmoe", THETA ",\"clip_qkv\":8.0,\"sliding_window\":null");
    ck_assert(olmoe.qk_norm == MODEL_QK_NORM_WHOLE);
    ck_assert(olmoe.qkv_limit == 8.0f);
    ck_assert(!olmoe.renormalise_top_k);
    ck_assert(!olmoe.has_qkv_bias);

    const model_config qwen2 = must_read("qwen2_moe", THETA ",\"norm_topk_prob\":true,"
                                                            "\"sliding_window\":4096,"
                                                            "\"mlp_only_layers\":[2]");
    ck_assert(qwen2.has_qkv_bias);
    ck_assert(!qwen2.has_o_bias);
    ck_assert(qwen2.is_shared_gated);
    ck_assert(qwen2.renormalise_top_k);
    ck_assert_uint_eq(qwen2.window, 0);
    ck_assert_uint_eq(qwen2.d_ffn, 16);
    ck_assert_uint_eq(model_layer_common_ffn(&qwen2, 0), 20);
    ck_assert_uint_eq(model_layer_common_ffn(&qwen2, 2), 24);
    ck_assert(model_layer_is_dense(&qwen2, 2));
    ck_assert(!model_layer_is_dense(&qwen2, 3));

    const model_config qwen3 = must_read("qwen3_moe", THETA ",\"decoder_sparse_step\":2");
    ck_assert(qwen3.qk_norm == MODEL_QK_NORM_HEAD);
    ck_assert_uint_eq(qwen3.head_dim, 16);
    ck_assert(model_layer_is_dense(&qwen3, 0));
    ck_assert(!model_layer_is_dense(&qwen3, 1));
    ck_assert_uint_eq(model_layer_common_ffn(&qwen3, 1), 0);

    const model_config granite =
        must_read("granitemoe", THETA ",\"embedding_multiplier\":12,\"residual_multiplier\":0.22,"
                                      "\"attention_multiplier\":0.015625,\"logits_scaling\":6");
    ck_assert(granite.embedding_scale == 12);
    ck_assert(granite.residual_scale == 0.22f);
    ck_assert(granite.attention_scale == 0.015625f);
    ck_assert(granite.logits_divisor == 6);
    ck_assert(granite.renormalise_top_k);
    ck_assert_uint_eq(must_read("granitemoeshared", THETA).d_shared_ffn, 20);

    const model_config phi =
        must_read("phimoe", THETA ",\"attention_bias\":true,\"lm_head_bias\":true");
    ck_assert(phi.norm == MODEL_NORM_LAYER);
    ck_assert(phi.router == ROUTER_SPARSEMIXER);
    ck_assert(phi.router_jitter == 0.01f);
    ck_assert(phi.has_qkv_bias && phi.has_o_bias && phi.has_head_bias);
}
END_TEST

/* 4 layers of 32 channels, 4 heads of 16 with 2 for keys and values, 6 experts of 16. */
START_TEST(gpt_oss_is_read_as_released_and_as_it_may_be_changed)
{
    const model_config plain = must_read("gpt_oss", THETA);
    ck_assert(plain.activation == MOE_CLAMPED);
    ck_assert(plain.activation_alpha == 1.702f);
    ck_assert(plain.activation_limit == 7.0f);
    ck_assert(plain.has_qkv_bias && plain.has_o_bias && plain.renormalise_top_k);
    for (uint32_t l = 0; l < 4; l++)
        ck_assert_uint_eq(model_layer_window(&plain, l), l % 2 == 0 ? 24 : 0);

    const model_config changed = must_read(
        "gpt_oss", THETA ",\"swiglu_limit\":5,\"swiglu_alpha\":1,\"attention_bias\":false,"
                         "\"experts_per_token\":2,\"quantization_config\":{\"quant_method\":"
                         "\"mxfp4\",\"modules_to_not_convert\":[\"lm_head\"]},\"layer_types\":["
                         "\"full_attention\",\"full_attention\",\"full_attention\","
                         "\"sliding_attention\"]");
    ck_assert(changed.activation_alpha == 1.0f);
    ck_assert(changed.activation_limit == 5.0f);
    ck_assert(!changed.has_qkv_bias && !changed.has_o_bias);
    ck_assert(changed.quantisation.method == QUANTISATION_MXFP4);
    ck_assert(changed.stored_type == DTYPE_BF16);
    for (uint32_t l = 0; l < 4; l++)
        ck_assert_uint_eq(model_layer_window(&changed, l), l == 3 ? 24 : 0);
    ck_assert(must_read("mixtral", THETA).activation == MOE_SILU);
}
END_TEST

START_TEST(gpt_oss_has_two_names_for_the_experts_of_a_token)
{
    static const char config[] =
        "{\"model_type\":\"gpt_oss\",\"hidden_size\":32,\"num_hidden_layers\":2,"
        "\"num_attention_heads\":4,\"vocab_size\":96,\"max_position_embeddings\":256,"
        "\"rms_norm_eps\":1e-05,\"rope_theta\":1e4,\"intermediate_size\":24,"
        "\"num_local_experts\":6,\"sliding_window\":24,\"experts_per_token\":3}";
    temp_dir dir;
    model_config c;
    err_info info = {0};
    temp_dir_open(&dir);
    temp_write_text(&dir, "config.json", config);
    ck_assert_msg(model_config_read(dir.path, &c, &info) == ERR_OK, "%s", info.message);
    ck_assert_uint_eq(c.top_k, 3);
    temp_dir_close(&dir);
}
END_TEST

/* With biases of every product, of the router, and a sink for each head. */
START_TEST(gpt_oss_counts_biases_and_sinks)
{
    const uint64_t biases = 64 + 2 * 32 + 32, norms = 2 * 32, sinks = 4,
                   attention = 2 * 64 * 32 + 2 * 32 * 32 + biases + norms + sinks,
                   expert = 2 * 24 * (32 + 1) + 32 * (24 + 1), router = 6 * (32 + 1),
                   tables = 2 * 96 * 32 + 32;
    const model_config c = must_read("gpt_oss", THETA);
    ck_assert_uint_eq(c.n_params, 4 * (attention + router + 6 * expert) + tables);
    ck_assert_uint_eq(c.n_params_active, c.n_params - 4 * 4 * expert);
}
END_TEST

START_TEST(parameters_are_counted_in_all_and_as_a_token_passes_them)
{
    const uint64_t attention = 2 * 64 * 32 + 2 * 32 * 32 + 2 * 16 + 2 * 32, expert = 3 * 16 * 32,
                   dense = 3 * 24 * 32, router = 6 * 32, tables = 2 * 96 * 32 + 32;
    const model_config c = must_read("qwen3_moe", THETA ",\"decoder_sparse_step\":2");
    ck_assert_uint_eq(c.n_params, 4 * attention + 2 * dense + 2 * (router + 6 * expert) + tables);
    ck_assert_uint_eq(c.n_params_active, c.n_params - 2 * 4 * expert);
}
END_TEST

START_TEST(windows_of_some_layers_are_read_either_way)
{
    const model_config rule =
        must_read("qwen2_moe", THETA
                  ",\"use_sliding_window\":true,\"sliding_window\":24,\"max_window_layers\":2");
    const model_config list = must_read(
        "qwen2_moe", THETA ",\"use_sliding_window\":true,\"sliding_window\":24,\"layer_types\":["
                           "\"full_attention\",\"sliding_attention\",\"full_attention\","
                           "\"sliding_attention\"]");
    for (uint32_t l = 0; l < 4; l++) {
        ck_assert_uint_eq(model_layer_window(&rule, l), l == 0 ? 24 : 0);
        ck_assert_uint_eq(model_layer_window(&list, l), l % 2 == 1 ? 24 : 0);
    }
    ck_assert_uint_eq(
        must_read("qwen3_moe", THETA ",\"use_sliding_window\":true,\"sliding_window\":24").window,
        24);
}
END_TEST

START_TEST(both_spellings_of_a_scaling_are_the_same)
{
    const model_config old =
        must_read("mixtral", THETA ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4,"
                                   "\"original_max_position_embeddings\":128}");
    const model_config new =
        must_read("mixtral", "\"rope_parameters\":{\"rope_type\":\"yarn\",\"factor\":4,"
                             "\"rope_theta\":1e4,\"original_max_position_embeddings\":128}");
    ck_assert(memcmp(&old.rope, &new.rope, sizeof old.rope) == 0);
    ck_assert(old.rope.kind == ROPE_YARN);
    ck_assert_uint_eq(old.rope.n_original, 128);
    ck_assert_uint_eq(old.n_positions, 512);
    ck_assert(old.rope.beta_fast == 32);
    ck_assert_uint_eq(
        must_read("mixtral", THETA ",\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2}")
            .n_positions,
        512);
}
END_TEST

typedef struct refused {
    const char *family, *more, *fact;
} refused;

static const refused refusals[] = {
    /* What another family has. */
    {"mixtral", THETA ",\"attention_bias\":true", "attention_bias: true is not supported"},
    {"mixtral", THETA ",\"clip_qkv\":8", "clip_qkv: 8 is not supported"},
    {"mixtral", THETA ",\"embedding_multiplier\":12", "embedding_multiplier: 12 is not"},
    {"mixtral", THETA ",\"mlp_only_layers\":[1]", "mlp_only_layers: an array is not"},
    {"mixtral", THETA ",\"decoder_sparse_step\":2", "decoder_sparse_step: 2 is not"},
    {"olmoe", THETA ",\"sliding_window\":24", "sliding_window: 24 is not"},
    {"olmoe", THETA ",\"shared_expert_intermediate_size\":24",
     "shared_expert_intermediate_size: 24"},
    {"qwen2_moe", THETA ",\"attention_bias\":true", "attention_bias: true is not"},
    {"qwen3_moe", THETA ",\"qkv_bias\":true", "qkv_bias: true is not"},
    {"granitemoe", THETA ",\"attention_bias\":true", "attention_bias: true is not"},
    {"granitemoe", THETA ",\"shared_intermediate_size\":24", "shared_intermediate_size: 24 is not"},
    {"granitemoe", THETA ",\"sliding_window\":24", "sliding_window: 24 is not"},
    {"phimoe", THETA ",\"residual_multiplier\":0.5", "residual_multiplier: 0.5 is not"},
    {"mixtral", THETA ",\"swiglu_limit\":7", "swiglu_limit: 7 is not supported"},
    {"olmoe", THETA ",\"swiglu_alpha\":1.5", "swiglu_alpha: 1.5 is not supported"},
    {"gpt_oss", THETA ",\"experts_per_token\":3", "experts_per_token: 3 is not supported"},
    {"gpt_oss", THETA ",\"swiglu_limit\":0", "swiglu_limit: 0 is outside"},
    {"gpt_oss", THETA ",\"quantization_config\":{\"quant_method\":\"fp8\"}",
     "quantization_config: an object is not"},
    {"gpt_oss",
     THETA ",\"layer_types\":[\"chunked_attention\",\"full_attention\",\"full_attention\","
           "\"full_attention\"]",
     "layer_types: \"chunked_attention\" is not"},
    {"gpt_oss", THETA ",\"layer_types\":[\"full_attention\"]", "layer_types: an array is not"},
    /* What none has. */
    {"gpt_oss", THETA ",\"hidden_act\":\"gelu\"", "hidden_act: \"gelu\" is not"},
    {"olmoe", THETA ",\"hidden_act\":\"gelu\"", "hidden_act: \"gelu\" is not"},
    {"qwen3_moe", THETA ",\"hidden_act\":\"relu2\"", "hidden_act: \"relu2\" is not"},
    {"qwen3_moe", THETA ",\"partial_rotary_factor\":0.5", "partial_rotary_factor: 0.5 is not"},
    {"granitemoe", THETA ",\"final_logit_softcapping\":30", "final_logit_softcapping: 30 is not"},
    {"phimoe", THETA ",\"mlp_bias\":true", "mlp_bias: true is not"},
    {"qwen2_moe", THETA ",\"scoring_func\":\"sigmoid\"", "scoring_func: \"sigmoid\" is not"},
    {"qwen2_moe", THETA ",\"mlp_only_layers\":[0,1,2,3]", "no layer has experts"},
    {"qwen2_moe",
     THETA ",\"layer_types\":[\"sliding_attention\",\"full_attention\","
           "\"full_attention\",\"full_attention\"]",
     "layer_types: an array is not"},
    {"qwen2_moe",
     THETA ",\"use_sliding_window\":true,\"sliding_window\":24,\"layer_types\":["
           "\"chunked_attention\",\"full_attention\",\"full_attention\","
           "\"full_attention\"]",
     "layer_types: \"chunked_attention\" is not"},
    {"phimoe", THETA ",\"quantization_config\":{\"quant_method\":\"gptq\"}", "quantization_config"},
    {"granitemoe", THETA ",\"quantization_config\":{\"quant_method\":\"awq\"}",
     "quantization_config"},
    /* Rotary positions. */
    {"mixtral", THETA ",\"rope_scaling\":{\"type\":\"su\",\"factor\":2}",
     "rope_scaling.type: \"su\""},
    {"olmoe", "\"rope_parameters\":{\"rope_type\":\"proportional\",\"rope_theta\":1e4}",
     "rope_parameters.rope_type: \"proportional\" is not"},
    {"qwen3_moe", THETA ",\"rope_scaling\":{\"type\":\"default\",\"mrope_section\":[2,3,3]}",
     "rope_scaling.mrope_section: an array is not"},
    {"qwen3_moe",
     THETA ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4,"
           "\"partial_rotary_factor\":0.5}",
     "rope_scaling.partial_rotary_factor: 0.5 is not"},
    {"mixtral", THETA ",\"rope_scaling\":{\"type\":\"linear\"}", "factor is missing"},
    {"mixtral", THETA ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":0}",
     "factor: 0 is outside"},
    {"mixtral",
     THETA ",\"rope_scaling\":{\"type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,"
           "\"high_freq_factor\":1}",
     "low_freq_factor 4 is not below high_freq_factor 1"},
    {"phimoe",
     THETA ",\"rope_scaling\":{\"type\":\"longrope\",\"short_factor\":[1,1,1],"
           "\"long_factor\":[1,1,1,1]}",
     "short_factor is not a list of 4 numbers"},
    {"phimoe",
     THETA ",\"rope_scaling\":{\"type\":\"longrope\",\"short_factor\":[1,1,1,1],"
           "\"long_factor\":[1,1,0,1]}",
     "long_factor: item 2 is not a number"},
};

START_TEST(what_is_not_computed_is_refused_by_key_and_value)
{
    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
        const refused *const r = &refusals[i];
        model_config c;
        err_info info = {0};
        const err_t err = read_more(r->family, r->more, &c, &info);
        ck_assert_msg(err == ERR_UNSUPPORTED || err == ERR_BAD_MODEL, "%s %s: %s", r->family,
                      r->more, err_name(err));
        ck_assert_msg(strstr(info.message, r->fact) != NULL, "\"%s\" lacks \"%s\"", info.message,
                      r->fact);
        ck_assert_ptr_null(strchr(info.message, '\n'));
    }
}
END_TEST

START_TEST(sparsemixer_chooses_two)
{
    temp_dir dir;
    model_config c;
    err_info info = {0};
    temp_dir_open(&dir);
    temp_write_text(&dir, "config.json",
                    "{\"model_type\":\"phimoe\",\"hidden_size\":32,\"num_hidden_layers\":1,"
                    "\"num_attention_heads\":4,\"vocab_size\":96,\"max_position_embeddings\":64,"
                    "\"rms_norm_eps\":1e-5,\"num_local_experts\":6,\"num_experts_per_tok\":3,"
                    "\"intermediate_size\":24,\"rope_theta\":1e4}");
    ck_assert(model_config_read(dir.path, &c, &info) == ERR_UNSUPPORTED);
    ck_assert_msg(strstr(info.message, "num_experts_per_tok: 3") != NULL, "%s", info.message);
    temp_dir_close(&dir);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(every_family_is_read_with_what_it_has),
    TEST_CASE(gpt_oss_is_read_as_released_and_as_it_may_be_changed),
    TEST_CASE(gpt_oss_has_two_names_for_the_experts_of_a_token),
    TEST_CASE(gpt_oss_counts_biases_and_sinks),
    TEST_CASE(parameters_are_counted_in_all_and_as_a_token_passes_them),
    TEST_CASE(windows_of_some_layers_are_read_either_way),
    TEST_CASE(both_spellings_of_a_scaling_are_the_same),
    TEST_CASE(what_is_not_computed_is_refused_by_key_and_value),
    TEST_CASE(sparsemixer_chooses_two),
    TEST_CASES_END,
};
