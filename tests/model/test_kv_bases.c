/* Bases of low-rank codecs: what is read from a file, and what is refused with which words. */
#include "model/kv_bases.h"
#include "model/model.h"
#include "tests/model/temp_dir.h"
#include "tests/test_main.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_LAYERS = 2, HEADS = 2, K_DIM = 3, V_DIM = 2, FLOATS_MAX = 4096 };

/* A file in the making. */
typedef struct bases_file {
    char header[8192];
    size_t n_header;
    float data[FLOATS_MAX];
    size_t n_floats;
} bases_file;

/* Elements count up from the first of the file. */
static void add(bases_file *f, const char *name, uint32_t heads, uint32_t rank, uint32_t dim)
{
    const size_t n = (size_t)heads * rank * dim;
    ck_assert_uint_le(f->n_floats + n, FLOATS_MAX);
    const int written =
        snprintf(f->header + f->n_header, sizeof f->header - f->n_header,
                 "%s\"%s\":{\"dtype\":\"F32\",\"shape\":[%u,%u,%u],\"data_offsets\":[%zu,%zu]}",
                 f->n_header == 0 ? "{" : ",", name, heads, rank, dim, 4 * f->n_floats,
                 4 * (f->n_floats + n));
    ck_assert_int_gt(written, 0);
    f->n_header += (size_t)written;
    for (size_t i = 0; i < n; i++, f->n_floats++)
        f->data[f->n_floats] = (float)f->n_floats;
}

static void add_layer(bases_file *f, const char *codec, uint32_t layer, uint32_t k_rank,
                      uint32_t v_rank)
{
    static const char *const names[] = {"k_down", "k_up", "v_down", "v_up"};
    for (size_t i = 0; i < 4; i++) {
        char name[64];
        (void)snprintf(name, sizeof name, "%s.%u.%s", codec, layer, names[i]);
        add(f, name, HEADS, i < 2 ? k_rank : v_rank, i < 2 ? K_DIM : V_DIM);
    }
}

static void write_file(const temp_dir *dir, bases_file *f)
{
    static uint8_t bytes[8 + sizeof f->header + sizeof f->data];
    f->header[f->n_header++] = '}';
    memset(bytes, 0, 8);
    for (int i = 0; i < 8; i++)
        bytes[i] = (uint8_t)((uint64_t)f->n_header >> (8 * i));
    memcpy(bytes + 8, f->header, f->n_header);
    memcpy(bytes + 8 + f->n_header, f->data, 4 * f->n_floats);
    temp_write(dir, "kv_bases.safetensors", bytes, 8 + f->n_header + 4 * f->n_floats);
}

static void make_layers(kv_layer_shape layers[N_LAYERS])
{
    for (int l = 0; l < N_LAYERS; l++)
        layers[l] = (kv_layer_shape){
            .n_heads = 4, .n_kv_heads = HEADS, .k_dim = K_DIM, .v_dim = V_DIM, .scale = 1};
}

START_TEST(without_a_file_there_are_no_bases)
{
    temp_dir dir;
    float *values;
    kv_layer_shape layers[N_LAYERS];
    temp_dir_open(&dir);
    make_layers(layers);
    ck_assert_int_eq(model_kv_bases_load(dir.path, layers, N_LAYERS, &values, NULL), ERR_OK);
    ck_assert_ptr_null(values);
    ck_assert_uint_eq(layers[0].lora.k.rank, 0);
    temp_dir_close(&dir);
}
END_TEST

START_TEST(every_layer_finds_its_matrices)
{
    temp_dir dir;
    float *values;
    kv_layer_shape layers[N_LAYERS];
    bases_file *f = calloc(1, sizeof *f);
    temp_dir_open(&dir);
    make_layers(layers);
    add_layer(f, "lora", 0, 2, 1);
    add_layer(f, "lora", 1, 3, 2); /* 24 + 8 floats before */
    write_file(&dir, f);
    ck_assert_int_eq(model_kv_bases_load(dir.path, layers, N_LAYERS, &values, NULL), ERR_OK);
    ck_assert_uint_eq(layers[0].lora.k.rank, 2);
    ck_assert_uint_eq(layers[0].lora.v.rank, 1);
    ck_assert_uint_eq(layers[1].lora.k.rank, 3);
    ck_assert(layers[0].lora.k.down[0] == 0);
    ck_assert(layers[0].lora.k.up[11] == 23);
    ck_assert(layers[0].lora.v.up[3] == 31);
    ck_assert(layers[1].lora.k.down[0] == 32);
    ck_assert(layers[1].lora.v.up[7] == 32 + 36 + 16 - 1);
    ck_assert_uint_eq(layers[0].lora_plus.k.rank, 0);
    free(values);
    free(f);
    temp_dir_close(&dir);
}
END_TEST

/* What `build` writes is refused with these words. */
static void expect_refusal(void (*build)(bases_file *f), const char *words)
{
    temp_dir dir;
    float *values;
    err_info info = {0};
    kv_layer_shape layers[N_LAYERS];
    bases_file *f = calloc(1, sizeof *f);
    temp_dir_open(&dir);
    make_layers(layers);
    build(f);
    write_file(&dir, f);
    ck_assert_int_eq(model_kv_bases_load(dir.path, layers, N_LAYERS, &values, &info),
                     ERR_BAD_MODEL);
    ck_assert_msg(strstr(info.message, words) != NULL, "%s", info.message);
    free(values);
    free(f);
    temp_dir_close(&dir);
}

static void one_layer_only(bases_file *f)
{
    add_layer(f, "lora_plus", 0, 2, 1);
}

static void other_dimensions(bases_file *f)
{
    add(f, "lora.0.k_down", HEADS, 2, K_DIM + 1);
}

static void rank_beyond_the_head(bases_file *f)
{
    add(f, "lora.0.k_down", HEADS, K_DIM + 1, K_DIM);
}

static void two_ranks(bases_file *f)
{
    add(f, "lora.0.k_down", HEADS, 2, K_DIM);
    add(f, "lora.0.k_up", HEADS, 1, K_DIM);
}

static void an_infinite_number(bases_file *f)
{
    add_layer(f, "lora", 0, 2, 1);
    add_layer(f, "lora", 1, 2, 1);
    f->data[40] = INFINITY;
}

START_TEST(a_part_of_a_codec_is_refused)
{
    expect_refusal(one_layer_only, "kv_bases.safetensors: lora_plus.1.k_down is missing");
}
END_TEST

START_TEST(shapes_and_numbers_are_checked)
{
    expect_refusal(other_dimensions, "lora.0.k_down is not [2][rank][3]");
    expect_refusal(rank_beyond_the_head, "lora.0.k_down has rank 4, outside [1, 3]");
    expect_refusal(two_ranks, "lora.0.k_down has rank 2, k_up 1");
    expect_refusal(an_infinite_number, "lora.1.k_down: element 8 is not finite");
}
END_TEST

START_TEST(another_type_is_refused)
{
    temp_dir dir;
    float *values;
    err_info info = {0};
    kv_layer_shape layers[N_LAYERS];
    temp_dir_open(&dir);
    make_layers(layers);
    temp_write_tensors(&dir, "kv_bases.safetensors",
                       "{\"lora.0.k_down\":{\"dtype\":\"F16\",\"shape\":[2,1,3],"
                       "\"data_offsets\":[0,12]}}",
                       12);
    ck_assert_int_eq(model_kv_bases_load(dir.path, layers, N_LAYERS, &values, &info),
                     ERR_BAD_MODEL);
    ck_assert_msg(strstr(info.message, "lora.0.k_down is F16, not F32") != NULL, "%s",
                  info.message);
    temp_dir_close(&dir);
}
END_TEST

/* sum_c down[i][c] up[j][c] of one head: 1 if i = j, else 0. */
static void check_projection(const kv_basis *basis, uint32_t n_heads, uint32_t dim, uint32_t rank)
{
    for (uint32_t h = 0; h < n_heads; h++) {
        const float *down = basis->down + (size_t)h * basis->rank * dim;
        const float *up = basis->up + (size_t)h * basis->rank * dim;
        for (uint32_t i = 0; i < rank * rank; i++) {
            double sum = 0;
            for (uint32_t c = 0; c < dim; c++)
                sum += (double)down[i / rank * dim + c] * (double)up[i % rank * dim + c];
            ck_assert_double_eq_tol(sum, i / rank == i % rank ? 1 : 0, 1e-4);
        }
    }
}

START_TEST(the_tool_writes_projections)
{
    dev *d;
    model *m;
    err_info info = {0};
    const model_options options = {.n_step_tokens_max = 8};
    ck_assert_int_eq(dev_open_cpu(&(dev_config){.isa = "ref", .n_threads = 1}, &d, NULL), ERR_OK);
    const err_t err = model_open(d, "tests/golden/mixtral-gqa-bf16", &options, &m, &info);
    ck_assert_msg(err == ERR_OK, "%s", info.message);
    const kv_shape *shape = model_get_kv_shape(m);
    for (uint32_t l = 0; l < shape->n_layers; l++) {
        const kv_layer_shape *layer = &shape->layer[l];
        const uint32_t rank = layer->k_dim / 2, n = layer->n_kv_heads;
        ck_assert_uint_eq(layer->lora.k.rank, rank);
        ck_assert_uint_eq(layer->lora_plus.v.rank, rank);
        check_projection(&layer->lora.k, n, layer->k_dim, rank);
        check_projection(&layer->lora.v, n, layer->v_dim, rank);
        check_projection(&layer->lora_plus.k, n, layer->k_dim, rank - 1);
        check_projection(&layer->lora_plus.v, n, layer->v_dim, rank - 1);
    }
    model_close(m);
    dev_close(d);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(without_a_file_there_are_no_bases),
    TEST_CASE(every_layer_finds_its_matrices),
    TEST_CASE(a_part_of_a_codec_is_refused),
    TEST_CASE(shapes_and_numbers_are_checked),
    TEST_CASE(another_type_is_refused),
    TEST_CASE(the_tool_writes_projections),
    TEST_CASES_END,
};
