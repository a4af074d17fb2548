/* config.json: both generations of keys, and that nothing is ignored that would change the result. */
#include "model/model_config.h"
#include "tests/model/temp_dir.h"
#include "tests/test_main.h"

#include <stdio.h>
#include <string.h>

/* A good Mixtral, in pieces so that a case can replace one: base keys, rope keys. */
static const char *const base =
    "\"model_type\":\"mixtral\",\"hidden_size\":64,\"intermediate_size\":48,\"num_hidden_layers\":"
    "2,"
    "\"num_attention_heads\":8,\"num_key_value_heads\":2,\"num_local_experts\":8,\"num_experts_per_"
    "tok\":2,"
    "\"vocab_size\":128,\"max_position_embeddings\":1024,\"rms_norm_eps\":1e-05,\"bos_token_id\":1,"
    "\"eos_token_id\":2";
static const char *const rope = "\"rope_theta\":1e6";

static err_t read_config(const char *keys, const char *generation, model_config *out,
                         err_info *info)
{
    temp_dir dir;
    char text[4096];
    temp_dir_open(&dir);
    (void)snprintf(text, sizeof text, "{%s}", keys);
    temp_write_text(&dir, "config.json", text);
    if (generation != NULL) temp_write_text(&dir, "generation_config.json", generation);
    const err_t err = model_config_read(dir.path, out, info);
    temp_dir_close(&dir);
    return err;
}

/* base and rope with "key": replaced by `value` (NULL: left out), `more` added. */
static const char *edited(const char *key, const char *value, const char *more)
{
    static char text[2048];
    char all[1024], quoted[64];
    (void)snprintf(all, sizeof all, "%s,%s", base, rope);
    text[0] = '\0';
    (void)snprintf(quoted, sizeof quoted, "\"%s\":", key);
    char *rest = all;
    for (char *part; (part = strsep(&rest, ",")) != NULL;) {
        const bool is_it = strncmp(part, quoted, strlen(quoted)) == 0;
        if (is_it && value == NULL) continue;
        if (text[0] != '\0') strcat(text, ",");
        strcat(text, is_it ? quoted : part);
        if (is_it) strcat(text, value);
    }
    if (more[0] != '\0') strcat(text, ",");
    return strcat(text, more);
}

START_TEST(the_old_keys_are_read)
{
    model_config c;
    err_info info = {0};
    ck_assert_msg(
        read_config(edited("", "",
                           "\"torch_dtype\":\"bfloat16\",\"sliding_window\":null,\"head_dim\":null,"
                           "\"rope_scaling\":null,\"hidden_act\":\"silu\""),
                    NULL, &c, &info) == ERR_OK,
        "%s", info.message);
    ck_assert_str_eq(c.family, "mixtral");
    ck_assert_uint_eq(c.n_layers, 2);
    ck_assert_uint_eq(c.d_model, 64);
    ck_assert_uint_eq(c.n_heads, 8);
    ck_assert_uint_eq(c.n_kv_heads, 2);
    ck_assert_uint_eq(c.head_dim, 8);
    ck_assert_uint_eq(c.n_experts, 8);
    ck_assert_uint_eq(c.top_k, 2);
    ck_assert_uint_eq(c.d_ffn, 48);
    ck_assert_uint_eq(c.window, 0);
    ck_assert_uint_eq(c.n_positions, 1024);
    ck_assert(c.rope.theta == 1e6f);
    ck_assert(c.norm_eps == 1e-5f);
    ck_assert(c.renormalise_top_k);
    ck_assert(!c.tied_embeddings);
    ck_assert(c.stored_type == DTYPE_BF16);
    ck_assert_int_eq(c.bos, 1);
    ck_assert_uint_eq(c.n_eos, 1);
    ck_assert_uint_eq(c.eos[0], 2);
    const uint64_t attention = 64 * 64 + 2 * 64 * 16 + 64 * 64, expert = 3 * 64 * 48;
    ck_assert_uint_eq(c.n_params,
                      2 * (attention + 2 * 64 + 64 * 8 + 8 * expert) + 2 * 128 * 64 + 64);
    ck_assert_uint_eq(c.n_params_active, c.n_params - 2 * 6 * expert);
}
END_TEST

START_TEST(the_new_keys_are_read)
{
    model_config c;
    err_info info = {0};
    ck_assert_msg(
        read_config(
            edited(
                "rope_theta", NULL,
                "\"dtype\":\"float16\",\"rope_parameters\":{\"rope_theta\":5e5,\"rope_type\":"
                "\"default\"},\"sliding_window\":24,\"head_dim\":16,\"tie_word_embeddings\":true"),
            NULL, &c, &info) == ERR_OK,
        "%s", info.message);
    ck_assert(c.rope.theta == 5e5f);
    ck_assert(c.stored_type == DTYPE_F16);
    ck_assert_uint_eq(c.window, 24);
    ck_assert_uint_eq(c.head_dim, 16);
    ck_assert(c.tied_embeddings);
}
END_TEST

START_TEST(the_generation_config_decides_the_end_tokens)
{
    model_config c;
    err_info info = {0};
    ck_assert(read_config(edited("", "", ""), "{\"eos_token_id\":[2,7,5]}", &c, &info) == ERR_OK);
    ck_assert_uint_eq(c.n_eos, 3);
    ck_assert_uint_eq(c.eos[2], 5);
    ck_assert(read_config(edited("", "", ""), "{\"max_length\":9}", &c, &info) == ERR_OK);
    ck_assert_uint_eq(c.n_eos, 1);
    ck_assert(read_config(edited("", "", ""), "{\"eos_token_id\":128}", &c, &info) ==
              ERR_BAD_MODEL);
    ck_assert_msg(strstr(info.message, "generation_config.json: eos_token_id: 128") != NULL, "%s",
                  info.message);
}
END_TEST

typedef struct broken_config {
    const char *key, *value, *more;
    err_t err;
    const char *fact;
} broken_config;

static const broken_config broken_configs[] = {
    {"model_type", NULL, "", ERR_BAD_MODEL, "model_type is missing"},
    {"model_type", "\"llama\"", "", ERR_UNSUPPORTED, "model_type: \"llama\""},
    {"hidden_size", NULL, "", ERR_BAD_MODEL, "hidden_size is missing"},
    {"hidden_size", "0", "", ERR_BAD_MODEL, "hidden_size: 0 is outside"},
    {"hidden_size", "64.5", "", ERR_BAD_MODEL, "hidden_size: 64.5 is not an integer"},
    {"hidden_size", "\"64\"", "", ERR_BAD_MODEL, "hidden_size: \"64\" is not a number"},
    {"hidden_size", "1e30", "", ERR_BAD_MODEL, "hidden_size: 1e+30"},
    {"hidden_size", "65", "", ERR_BAD_MODEL, "does not divide hidden_size 65"},
    {"hidden_size", "56", "", ERR_BAD_MODEL, "head_dim: 7 is not an even"},
    {"hidden_size", "131072", "", ERR_BAD_MODEL, "head_dim: 16384"},
    {"num_key_value_heads", "3", "", ERR_BAD_MODEL, "num_key_value_heads: 3 does not divide 8"},
    {"num_key_value_heads", "16", "", ERR_BAD_MODEL, "num_key_value_heads: 16 is outside [1, 8]"},
    {"num_attention_heads", "-8", "", ERR_BAD_MODEL, "num_attention_heads: -8"},
    {"num_hidden_layers", "1e9", "", ERR_BAD_MODEL, "num_hidden_layers: 1000000000"},
    {"num_local_experts", "0", "", ERR_BAD_MODEL, "num_local_experts: 0 is outside [1, 1024]"},
    {"num_experts_per_tok", "9", "", ERR_BAD_MODEL, "num_experts_per_tok: 9 is outside [1, 8]"},
    {"num_experts_per_tok", "0", "", ERR_BAD_MODEL, "num_experts_per_tok: 0"},
    {"vocab_size", "0", "", ERR_BAD_MODEL, "vocab_size: 0"},
    {"rms_norm_eps", "-1", "", ERR_BAD_MODEL, "rms_norm_eps: -1"},
    {"rms_norm_eps", "true", "", ERR_BAD_MODEL, "rms_norm_eps: true is not a number"},
    {"max_position_embeddings", "16777217", "", ERR_BAD_MODEL, "max_position_embeddings: 16777217"},
    {"rope_theta", NULL, "", ERR_BAD_MODEL, "rope_theta is missing"},
    {"rope_theta", "0", "", ERR_BAD_MODEL, "rope_theta: 0"},
    {"bos_token_id", "128", "", ERR_BAD_MODEL, "bos_token_id: 128 is outside [0, 127]"},
    {"eos_token_id", "[1,128]", "", ERR_BAD_MODEL, "128"},
    {"", "", "\"head_dim\":513", ERR_BAD_MODEL, "head_dim: 513"},
    {"", "", "\"head_dim\":7", ERR_BAD_MODEL, "head_dim: 7 is not an even"},
    {"", "", "\"sliding_window\":-1", ERR_BAD_MODEL, "sliding_window: -1"},
    {"", "", "\"hidden_act\":\"gelu\"", ERR_UNSUPPORTED, "hidden_act: \"gelu\""},
    {"", "", "\"rope_scaling\":{\"type\":\"ntk\",\"factor\":2}", ERR_UNSUPPORTED,
     "rope_scaling.type: \"ntk\""},
    {"", "", "\"rope_scaling\":7", ERR_UNSUPPORTED, "rope_scaling: 7"},
    {"", "", "\"rope_parameters\":{\"rope_type\":\"proportional\",\"rope_theta\":1}",
     ERR_UNSUPPORTED, "rope_parameters.rope_type: \"proportional\""},
    {"", "", "\"rope_parameters\":{\"rope_theta\":1}", ERR_UNSUPPORTED,
     "rope_parameters.type: null"},
    {"", "", "\"rope_parameters\":{\"rope_type\":\"default\"}", ERR_BAD_MODEL,
     "rope_theta is missing"},
    {"", "", "\"quantization_config\":{\"quant_method\":\"awq\"}", ERR_UNSUPPORTED,
     "quantization_config.quant_method: \"awq\" is not supported"},
    {"", "", "\"quantization_config\":7", ERR_UNSUPPORTED, "quantization_config: 7"},
    {"", "", "\"quantization_config\":{}", ERR_UNSUPPORTED,
     "quantization_config.quant_method: null"},
    {"", "", "\"quantization_config\":{\"quant_method\":\"fp8\",\"fmt\":\"e5m2\"}", ERR_UNSUPPORTED,
     "quantization_config.fmt: \"e5m2\""},
    {"", "", "\"quantization_config\":{\"quant_method\":\"fp8\",\"weight_block_size\":[128,32]}",
     ERR_UNSUPPORTED, "quantization_config.weight_block_size: 32"},
    {"", "", "\"quantization_config\":{\"quant_method\":\"fp8\",\"weight_block_size\":[128]}",
     ERR_UNSUPPORTED, "quantization_config.weight_block_size: an array"},
    {"", "", "\"quantization_config\":{\"quant_method\":\"fp8\",\"activation_scheme\":\"x\"}",
     ERR_UNSUPPORTED, "quantization_config.activation_scheme: \"x\""},
    {"", "", "\"quantization_config\":{\"quant_method\":\"fp8\",\"expert_dtype\":\"fp4\"}",
     ERR_UNSUPPORTED, "quantization_config.expert_dtype: \"fp4\""},
    {"", "", "\"attention_bias\":true", ERR_UNSUPPORTED, "attention_bias: true"},
    {"", "", "\"torch_dtype\":\"int8\"", ERR_UNSUPPORTED, "torch_dtype: \"int8\""},
    {"", "", "\"partial_rotary_factor\":0.5", ERR_UNSUPPORTED, "partial_rotary_factor: 0.5"},
    {"", "", "\"tie_word_embeddings\":1", ERR_UNSUPPORTED, "tie_word_embeddings: 1"},
    {"", "", "\"hidden_size\":32", ERR_BAD_MODEL, "duplicate key hidden_size"},
    {"", "", "\"x\":[1,]", ERR_BAD_MODEL, "config.json: bad JSON"},
};

START_TEST(every_broken_config_is_refused_with_key_and_value)
{
    for (size_t i = 0; i < sizeof broken_configs / sizeof broken_configs[0]; i++) {
        const broken_config *const b = &broken_configs[i];
        model_config c;
        err_info info = {0};
        const err_t err = read_config(edited(b->key, b->value, b->more), NULL, &c, &info);
        ck_assert_msg(err == b->err, "%s %s: %s: %s", b->key, b->more, err_name(err), info.message);
        ck_assert_msg(strstr(info.message, b->fact) != NULL, "\"%s\" lacks \"%s\"", info.message,
                      b->fact);
    }
}
END_TEST

START_TEST(ways_of_quantising_are_read)
{
    static const struct {
        const char *more;
        quantisation want;
    } cases[] = {
        {"\"quantization_config\":null", {QUANTISATION_NONE, 0, 0}},
        {"\"quantization_config\":{\"quant_method\":\"fp8\",\"fmt\":\"e4m3\",\"activation_scheme\":"
         "\"dynamic\",\"weight_block_size\":[128,192],\"modules_to_not_convert\":[\"lm_head\"]}",
         {QUANTISATION_FP8, 128, 192}},
        {"\"quantization_config\":{\"quant_method\":\"fp8\",\"activation_scheme\":\"static\"}",
         {QUANTISATION_FP8, 0, 0}},
        {"\"quantization_config\":{\"quant_method\":\"mxfp4\",\"modules_to_not_convert\":[]}",
         {QUANTISATION_MXFP4, 0, 0}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        model_config c;
        err_info info = {0};
        ck_assert_msg(read_config(edited("", "", cases[i].more), NULL, &c, &info) == ERR_OK, "%s",
                      info.message);
        ck_assert(c.quantisation.method == cases[i].want.method);
        ck_assert_uint_eq(c.quantisation.block_rows, cases[i].want.block_rows);
        ck_assert_uint_eq(c.quantisation.block_cols, cases[i].want.block_cols);
    }
}
END_TEST

START_TEST(a_missing_config_is_an_error_of_the_folder)
{
    temp_dir dir;
    model_config c;
    err_info info = {0};
    temp_dir_open(&dir);
    ck_assert(model_config_read(dir.path, &c, &info) == ERR_IO);
    ck_assert_msg(strstr(info.message, "config.json is not there") != NULL, "%s", info.message);
    temp_dir_close(&dir);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(the_old_keys_are_read),
    TEST_CASE(the_new_keys_are_read),
    TEST_CASE(the_generation_config_decides_the_end_tokens),
    TEST_CASE(every_broken_config_is_refused_with_key_and_value),
    TEST_CASE(ways_of_quantising_are_read),
    TEST_CASE(a_missing_config_is_an_error_of_the_folder),
    TEST_CASES_END,
};
