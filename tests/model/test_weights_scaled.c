/* Weights with scales: found in files, compared with what transformers reads in the same bytes, refused when broken.
 * What models of them compute is tested in tests/golden. */
#include "model/family.h"
#include "model/model.h"
#include "model/weights_device.h"
#include "model/weights_scaled.h"
#include "tests/kernels/dev_apart.h"
#include "tests/model/temp_dir.h"
#include "tests/test_main.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const block_fixture = "tests/golden/mixtral-fp8-block";

/* Rows first_row, first_row + 2 ... of one of the three experts, 6 x 96 each. */
static model_weight packed_weight(matrix *into, uint32_t expert, uint32_t first_row)
{
    return (model_weight){
        .name = "experts",
        .rows = 3,
        .cols = 96,
        .part = {.n_items = 3, .item = expert, .n_rows = 6, .first_row = first_row, .row_step = 2},
        .into = into};
}

START_TEST(packed_experts_mean_what_transformers_finds_in_them)
{
    tensor_files *files;
    err_info info = {0};
    ck_assert_msg(tensor_file_open("tests/golden/packed_tensors.safetensors", &files, &info) ==
                      ERR_OK,
                  "%s", info.message);
    const model_config config = {.quantisation = {.method = QUANTISATION_MXFP4}};
    const model_weights weights = {0};
    const scaled_source from = {files, &config, &weights, &info};
    const float *const values = tensor_find(files, "values")->data;
    for (uint32_t i = 0; i < 6; i++) {
        matrix w = {0};
        const model_weight weight = packed_weight(&w, i / 2, i % 2);
        const tensor *const blocks = scaled_find_blocks(&from, &weight);
        ck_assert_ptr_nonnull(blocks);
        ck_assert_msg(scaled_view(&from, blocks, &weight, &w) == ERR_OK, "%s", info.message);
        for (uint32_t r = 0; r < w.rows; r++) {
            for (uint32_t c = 0; c < w.cols; c++) {
                float want;
                const size_t row = (i / 2) * 6 + i % 2 + 2 * r;
                memcpy(&want, (const char *)values + (row * 96 + c) * sizeof want, sizeof want);
                ck_assert_double_eq((double)matrix_element(&w, r, c), (double)want);
            }
        }
    }
    tensor_files_close(files);
}
END_TEST

/* Gate and up of three experts, whose rows take turns in one tensor. */
static err_t each_packed(const model_config *c, model_weights *w, model_weight_visit *visit,
                         void *ctx)
{
    for (uint32_t i = 0; i < 2 * c->n_experts; i++) {
        moe_expert *const e = &w->experts[i / 2];
        const model_weight weight = packed_weight(i % 2 == 0 ? &e->gate : &e->up, i / 2, i % 2);
        TRY(visit(ctx, &weight));
    }
    return ERR_OK;
}

static err_t view_packed(void *ctx, const model_weight *weight)
{
    const scaled_source *const from = ctx;
    return scaled_view(from, scaled_find_blocks(from, weight), weight, weight->into);
}

static err_t compare_packed(void *ctx, const model_weight *weight)
{
    dev *const d = ctx; /* the matrix lies in its memory */
    matrix there = *weight->into;
    uint8_t codes[3 * 48], scales[3 * 3];
    err_info info = {0};
    tensor_files *files;
    ck_assert_uint_le(matrix_row_step(&there), 1);
    dev_download(d, codes, there.data, sizeof codes);
    dev_download(d, scales, there.scale, sizeof scales);
    there.data = codes;
    there.scale = scales;
    ck_assert(tensor_file_open("tests/golden/packed_tensors.safetensors", &files, &info) == ERR_OK);
    const char *const values = tensor_find(files, "values")->data;
    for (uint32_t i = 0; i < 3 * 96; i++) {
        float want;
        const size_t row = weight->part.item * 6 + weight->part.first_row + 2 * (i / 96);
        memcpy(&want, values + (row * 96 + i % 96) * sizeof want, sizeof want);
        ck_assert_double_eq((double)matrix_element(&there, i / 96, i % 96), (double)want);
    }
    tensor_files_close(files);
    return ERR_OK;
}

START_TEST(rows_that_take_turns_are_brought_together_on_a_device)
{
    const model_family family = {.name = "packed", .each_weight = each_packed};
    const model_config config = {
        .n_layers = 1, .n_experts = 3, .quantisation = {.method = QUANTISATION_MXFP4}};
    model_weights host = {0};
    model_device_weights out;
    tensor_files *files;
    dev *d;
    err_info info = {0};
    ck_assert(dev_apart_open(&(dev_config){.isa = "auto", .n_threads = 1}, 1 << 20, &d, &info) ==
              ERR_OK);
    ck_assert(tensor_file_open("tests/golden/packed_tensors.safetensors", &files, &info) == ERR_OK);
    ck_assert(model_weights_alloc(&config, &host, &info) == ERR_OK);
    scaled_source from = {files, &config, &host, &info};
    ck_assert(each_packed(&config, &host, view_packed, &from) == ERR_OK);
    const device_weights_args args = {
        .family = &family, .config = &config, .host = &host, .all_experts = true};
    ck_assert_msg(model_weights_to_device(d, &args, &out, &info) == ERR_OK, "%s", info.message);
    ck_assert(each_packed(&config, &out.copy, compare_packed, d) == ERR_OK);
    model_weights_leave_device(d, &out);
    model_weights_deinit(&host);
    tensor_files_close(files);
    dev_close(d);
}
END_TEST

typedef struct broken_file {
    quantisation quantisation;
    const char *header;
    size_t data_bytes;
    const char *fact;
} broken_file;

#define MXFP4                        \
    {                                \
        .method = QUANTISATION_MXFP4 \
    }
#define BLOCKS                                                           \
    {                                                                    \
        .method = QUANTISATION_FP8, .block_rows = 128, .block_cols = 128 \
    }
#define PACKED   "\"x_blocks\":{\"dtype\":\"U8\",\"shape\":[2,2,16],\"data_offsets\":[0,64]}"
#define CODES    "\"x\":{\"dtype\":\"F8_E4M3\",\"shape\":[2,64],\"data_offsets\":[0,128]}"
#define SCALE(t) "\"x_scale_inv\":{\"dtype\":\"" t "\",\"shape\":[1,1],\"data_offsets\":[128,132]}"

#define WIDE "\"x_scale_inv\":{\"dtype\":\"F32\",\"shape\":[1,2],\"data_offsets\":[128,136]}"

static const broken_file broken_files[] = {
    {MXFP4, "{" PACKED "}", 64, "its scales, x_scales, are missing"},
    {MXFP4, "{" PACKED ",\"x_scales\":{\"dtype\":\"U8\",\"shape\":[2,3],\"data_offsets\":[64,70]}}",
     70, "x_scales: its shape, 2 dimensions, does not end in [2, 2]"},
    {MXFP4, "{" PACKED ",\"x_scales\":{\"dtype\":\"I8\",\"shape\":[2,2],\"data_offsets\":[64,68]}}",
     68, "x_scales: type I8 is not U8"},
    {MXFP4, "{\"x_blocks\":{\"dtype\":\"U8\",\"shape\":[2,2,8],\"data_offsets\":[0,32]}}", 32,
     "x_blocks: its shape, 3 dimensions, does not end in [2, 2, 16]"},
    {BLOCKS, "{" CODES "}", 128, "its scales, x_scale_inv, are missing"},
    {BLOCKS, "{" CODES "," SCALE("I32") "}", 132, "x_scale_inv: type I32 is not one of F32, BF16"},
    {{.method = QUANTISATION_NONE},
     "{" CODES "," SCALE("F32") "}",
     132,
     "x: type F8_E4M3, of which quantization_config says nothing"},
    {{.method = QUANTISATION_FP8, .block_rows = 64, .block_cols = 64},
     "{" CODES ",\"x_scale_inv\":{\"dtype\":\"F32\",\"shape\":[1,1],\"data_offsets\":[128,132]}}",
     132,
     ""},
    {{.method = QUANTISATION_FP8, .block_rows = 64, .block_cols = 64},
     "{" CODES "," WIDE "}",
     136,
     "x_scale_inv: its shape, 2 dimensions, does not end in [1, 1]"},
    {{.method = QUANTISATION_FP8},
     "{" CODES "," SCALE("F32") "}",
     132,
     "x_scale_inv: its shape, 2 dimensions, does not end in []"},
};

/* An empty fact: nothing is wrong. */
static void check_broken(const broken_file *b)
{
    temp_dir dir;
    tensor_files *files;
    err_info info = {0};
    temp_dir_open(&dir);
    temp_write_tensors(&dir, "model.safetensors", b->header, b->data_bytes);
    ck_assert_msg(tensor_files_open(dir.path, &files, &info) == ERR_OK, "%s", info.message);
    const model_config config = {.quantisation = b->quantisation};
    const model_weights weights = {0};
    const scaled_source from = {files, &config, &weights, &info};
    matrix w = {0};
    const model_weight weight = {.name = "x", .rows = 2, .cols = 64, .into = &w};
    const tensor *const blocks = scaled_find_blocks(&from, &weight);
    const err_t err =
        scaled_view(&from, blocks != NULL ? blocks : tensor_find(files, "x"), &weight, &w);
    ck_assert_msg((err == ERR_OK) == (b->fact[0] == '\0'), "%s", info.message);
    ck_assert_msg(strstr(info.message, b->fact) != NULL, "\"%s\" lacks \"%s\"", info.message,
                  b->fact);
    tensor_files_close(files);
    temp_dir_close(&dir);
}

START_TEST(broken_tensors_are_refused_with_name_and_fact)
{
    for (size_t i = 0; i < sizeof broken_files / sizeof broken_files[0]; i++)
        check_broken(&broken_files[i]);
}
END_TEST

static dev *open_dev(void)
{
    dev *d;
    err_info info = {0};
    ck_assert_msg(dev_open_cpu(&(dev_config){.isa = "auto", .n_threads = 2}, &d, &info) == ERR_OK,
                  "%s", info.message);
    return d;
}

/* Opens a copy of the fixture in which `n` bytes of `name`, from byte `at` on, are `bytes`. */
static void check_patched(const char *name, size_t at, const void *bytes, size_t n,
                          const char *fact)
{
    temp_dir dir;
    tensor_files *files;
    err_info info = {0};
    size_t n_config, n_bytes;
    char path[256];
    (void)snprintf(path, sizeof path, "%s/config.json", block_fixture);
    char *const config = temp_read(path, &n_config);
    (void)snprintf(path, sizeof path, "%s/model.safetensors", block_fixture);
    char *const whole = temp_read(path, &n_bytes);
    ck_assert(tensor_files_open(block_fixture, &files, &info) == ERR_OK);
    const tensor *const t = tensor_find(files, name);
    ck_assert_ptr_nonnull(t);
    size_t first = 0; /* of the tensor in the file: where its bytes are */
    while (memcmp(whole + first, t->data, t->data_bytes) != 0)
        first++;
    memcpy(whole + first + at, bytes, n);
    tensor_files_close(files);
    temp_dir_open(&dir);
    temp_write(&dir, "config.json", config, n_config);
    temp_write(&dir, "model.safetensors", whole, n_bytes);
    dev *d = open_dev();
    model *m;
    const model_options options = {
        .load = MODEL_LOAD_SAFETENSORS, .n_step_tokens_max = 8, .check_values = true};
    ck_assert(model_open(d, dir.path, &options, &m, &info) == ERR_BAD_MODEL);
    ck_assert_msg(strstr(info.message, fact) != NULL, "\"%s\" lacks \"%s\"", info.message, fact);
    dev_close(d);
    temp_dir_close(&dir);
    free(config);
    free(whole);
}

START_TEST(codes_and_scales_that_are_no_numbers_are_found)
{
    static const char *const codes = "model.layers.1.self_attn.q_proj.weight";
    static const float nan = NAN, large = 256;
    const uint16_t infinite = 0x7f80;
    check_patched(codes, 160 + 3, "\xff", 1, "q_proj.weight: row 1, column 3 is NaN or infinite");
    check_patched("model.layers.0.self_attn.q_proj.weight_scale_inv", 4, &nan, sizeof nan,
                  "layers.0.self_attn.q_proj.weight: a scale of row 0 is NaN or too large");
    check_patched("model.layers.0.self_attn.o_proj.weight_scale_inv", 4, &large, sizeof large,
                  "layers.0.self_attn.o_proj.weight: a scale of row 128 is NaN or too large");
    check_patched("model.layers.1.self_attn.o_proj.weight_scale_inv", 2, &infinite, sizeof infinite,
                  "layers.1.self_attn.o_proj.weight: a scale of row 128 is NaN or too large");
}
END_TEST

/* 96 x 112 experts; config.json says how weights are coded. */
static model *open_dummy(dev *d, const char *coded)
{
    static const char *const format =
        "{\"model_type\":\"mixtral\",\"hidden_size\":96,\"intermediate_size\":128,"
        "\"num_hidden_layers\":2,\"num_attention_heads\":6,\"num_key_value_heads\":2,"
        "\"num_local_experts\":5,\"num_experts_per_tok\":2,\"vocab_size\":301,"
        "\"max_position_embeddings\":512,\"rms_norm_eps\":1e-05,\"rope_theta\":1e4,"
        "\"torch_dtype\":\"bfloat16\",\"quantization_config\":%s}";
    char text[1024];
    temp_dir dir;
    model *m;
    err_info info = {0};
    temp_dir_open(&dir);
    (void)snprintf(text, sizeof text, format, coded);
    temp_write_text(&dir, "config.json", text);
    const model_options options = {
        .load = MODEL_LOAD_DUMMY, .n_step_tokens_max = 8, .check_values = true};
    ck_assert_msg(model_open(d, dir.path, &options, &m, &info) == ERR_OK, "%s", info.message);
    temp_dir_close(&dir);
    return m;
}

START_TEST(dummy_weights_are_coded_as_the_config_says)
{
    enum { D = 96, FFN = 128, VOCAB = 301, E = 5, KV = 32, L = 2 };
    enum { PLAIN = 2 * VOCAB * D + D + L * (2 * D + E * D) };
    enum { EXPERTS = L * E * 3 * D * FFN, ATTENTION = L * (2 * D * D + 2 * D * KV) };
    static const struct {
        const char *coded;
        size_t bytes;
    } cases[] = {
        {"{\"quant_method\":\"fp8\",\"weight_block_size\":[64,64]}",
         2 * PLAIN + EXPERTS + ATTENTION + L * 4 * (E * 3 * 4 + 2 * 4 + 2 * 2)},
        {"{\"quant_method\":\"fp8\"}", 2 * PLAIN + EXPERTS + ATTENTION + L * 4 * (E * 3 + 4)},
        {"{\"quant_method\":\"mxfp4\"}", 2 * (PLAIN + ATTENTION) + EXPERTS / 2 + EXPERTS / 32},
    };
    dev *d = open_dev();
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        model *m = open_dummy(d, cases[i].coded);
        ck_assert_uint_eq(model_weight_bytes(m), cases[i].bytes);
        ck_assert(model_get_config(m)->stored_type == DTYPE_BF16);
        model_close(m);
    }
    dev_close(d);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(packed_experts_mean_what_transformers_finds_in_them),
    TEST_CASE(rows_that_take_turns_are_brought_together_on_a_device),
    TEST_CASE(broken_tensors_are_refused_with_name_and_fact),
    TEST_CASE(codes_and_scales_that_are_no_numbers_are_found),
    TEST_CASE(dummy_weights_are_coded_as_the_config_says),
    TEST_CASES_END,
};
