/* The safetensors reader: what good files give, and that each kind of broken file is refused with a
 * line that names the fact. */
#include "model/safetensors.h"
#include "tests/model/temp_dir.h"
#include "tests/test_main.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define TWO_FLOATS "\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]"

/* ---- headers ------------------------------------------------------------------------------------- */

typedef struct broken_header {
    const char *header;
    size_t data_bytes;
    const char *fact; /* part of the message */
} broken_header;

static const broken_header broken_headers[] = {
    {"", 0, "does not begin with '{'"},
    {" {}", 0, "does not begin with '{'"},
    {"[]", 0, "does not begin with '{'"},
    {"{}\n", 0, "does not end with '}' and spaces"},
    {"{} x", 0, "does not end with '}' and spaces"},
    {"{", 0, "does not end"},
    {"{}}", 0, "something after the end"},
    {"{\"a\":1,}", 0, "no string"},
    {"{\"a\" 1}", 0, "no ':'"},
    {"{\"a\":{\"dtype\":\"F32\"}  \"b\":1}", 0, "neither ','"},
    {"{\"a\x80\":{" TWO_FLOATS "}}", 8, "UTF-8"},
    {"{\"a\xed\xa0\x80\":{" TWO_FLOATS "}}", 8, "UTF-8"},
    {"{\"a\\u0000b\":{" TWO_FLOATS "}}", 8, "\\u0000"},
    {"{\"a\\ud800\":{" TWO_FLOATS "}}", 8, "surrogate"},
    {"{\"a\\ud800\\u0041\":{" TWO_FLOATS "}}", 8, "surrogate"},
    {"{\"a\\x\":{" TWO_FLOATS "}}", 8, "unknown escape"},
    {"{\"a\nb\":{" TWO_FLOATS "}}", 8, "control character"},
    {"{\"a\":{" TWO_FLOATS "},\"a\":{" TWO_FLOATS "}}", 8, "duplicate key a"},
    {"{\"a\":{" TWO_FLOATS "},\"\\u0061\":{" TWO_FLOATS "}}", 8, "duplicate key a"},
    {"{\"a\":{\"dtype\":\"F32\"," TWO_FLOATS "}}", 8, "duplicate key dtype"},
    {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, "duplicate key __metadata__"},
    {"{\"__metadata__\":[]}", 0, "__metadata__ is not an object"},
    {"{\"__metadata__\":{\"k\":1}}", 0, "k is not a string"},
    {"{\"a\":1}", 0, "tensor a: not an object"},
    {"{\"a\":{\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "dtype is missing"},
    {"{\"a\":{\"dtype\":7,\"shape\":[2],\"data_offsets\":[0,8]}}", 8,
     "dtype is missing or no string"},
    {"{\"a\":{\"dtype\":\"F31\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8,
     "unknown dtype \"F31\""},
    {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,8]}}", 8, "shape is missing"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":{},\"data_offsets\":[0,8]}}", 8,
     "shape is missing or no array"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-2],\"data_offsets\":[0,8]}}", 8,
     "-2 is not an integer"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1.5],\"data_offsets\":[0,8]}}", 8,
     "1.5 is not an integer"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[\"2\"],\"data_offsets\":[0,8]}}", 8,
     "\"2\" is not an integer"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1e999],\"data_offsets\":[0,8]}}", 8,
     "inf is not an integer"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[02],\"data_offsets\":[0,8]}}", 8, "malformed number"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[+2],\"data_offsets\":[0,8]}}", 8, "no value"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[281474976710657],\"data_offsets\":[0,8]}}", 8,
     "281474976710657"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[281474976710656,281474976710656],\"data_offsets\":[0,8]}"
     "}",
     8, "overflows"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387906],\"data_offsets\":[0,8]}}", 8,
     "not an integer"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,2],\"data_offsets\":[0,8]}}", 8,
     "dimensions"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8, "data_offsets is not a pair"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8]}}", 8, "not a pair"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8,8]}}", 8, "not a pair"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}}", 8, "[8, 0] run backwards"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[-8,0]}}", 8,
     "-8 is not an integer"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,16]}}", 8, "ends at 16 of 8"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,18446744073709551615]}}", 8,
     "not an integer"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]}}", 8,
     "need 12 bytes, data_offsets hold 8"},
    {"{\"a\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "need 4 bytes"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,8]}}", 8, "need 4 bytes"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,8]}}", 8, "need 0 bytes"},
    {"{\"a\":{" TWO_FLOATS "}}", 12, "a hole at the end"},
    {"{}", 4, "a hole at the end"},
    {"{\"a\":{" TWO_FLOATS "}}", 4, "ends at 8 of 4"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8, "a hole at 0"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
     "\"b\":{\"dtype\":\"U8\",\"shape\":[5],\"data_offsets\":[3,8]}}",
     8, "tensor b: data begins at 3, which leaves a hole at 2"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
     "\"b\":{\"dtype\":\"U8\",\"shape\":[5],\"data_offsets\":[3,8]}}",
     8, "tensor b: data begins at 3, which leaves an overlap"},
    {"{\"a\":{" TWO_FLOATS "},\"b\":{" TWO_FLOATS "}}", 8, "an overlap"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8],\"x\":[[[[[[[[[[[[[[[[[[[1]]]]"
     "]]]]]]]]]]]]]]]}}",
     8, "too deep"},
};

START_TEST(every_broken_header_is_refused_with_its_fact)
{
    for (size_t i = 0; i < sizeof broken_headers / sizeof broken_headers[0]; i++) {
        const broken_header *const c = &broken_headers[i];
        err_info info = {0};
        const err_t err = tensor_header_check(c->header, strlen(c->header), c->data_bytes, &info);
        ck_assert_msg(err == ERR_BAD_MODEL, "%s: %s", c->header, err_name(err));
        ck_assert_msg(strstr(info.message, c->fact) != NULL, "%s: \"%s\" lacks \"%s\"", c->header,
                      info.message, c->fact);
    }
}
END_TEST

START_TEST(good_headers_are_accepted)
{
    static const broken_header good[] = {
        {"{}", 0, NULL},
        {"{}        ", 0, NULL},
        {"{\"a\":{" TWO_FLOATS "}}  ", 8, NULL},
        {"{\"a\":{" TWO_FLOATS ",\"new\":null}}", 8, NULL},
        {"{\"a\":{\"dtype\":\"F64\",\"shape\":[],\"data_offsets\":[0,8]}}", 8, NULL},
        {"{\"a\":{\"dtype\":\"F64\",\"shape\":[7,0,3],\"data_offsets\":[0,0]}}", 0, NULL},
        {"{\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[4,8]},"
         "\"e\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[4,4]},"
         "\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}",
         8, NULL},
        {"{\"__metadata__\":{\"format\":\"pt\"},\"\\u00e9\\ud83d\\ude00\":{" TWO_FLOATS "}}", 8,
         NULL},
    };
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        err_info info = {0};
        const err_t err =
            tensor_header_check(good[i].header, strlen(good[i].header), good[i].data_bytes, &info);
        ck_assert_msg(err == ERR_OK, "%s: %s", good[i].header, info.message);
    }
}
END_TEST

/* Every beginning of a good header, flush against a page that cannot be read. */
START_TEST(no_byte_behind_the_header_is_read)
{
    static const char header[] =
        "{\"__metadata__\":{\"a\":\"\\n\"},\"a\":{" TWO_FLOATS "},\"b\":{\"dtype\":\"I64\","
        "\"shape\":[1,-2.5e+3,true],\"data_offsets\":[0,8]}}";
    const size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    char *const pages =
        mmap(NULL, 2 * page_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ck_assert(pages != MAP_FAILED);
    ck_assert(mprotect(pages + page_bytes, page_bytes, PROT_NONE) == 0);
    for (size_t n = 0; n < sizeof header; n++) {
        char *const at = pages + page_bytes - n;
        memcpy(at, header, n);
        for (int spaces = 0; spaces < 2; spaces++) { /* and with the last byte a closing brace */
            if (spaces == 1 && n > 0) at[n - 1] = '}';
            ck_assert(tensor_header_check(at, n, 7, NULL) == ERR_BAD_MODEL);
        }
    }
    munmap(pages, 2 * page_bytes);
}
END_TEST

START_TEST(a_header_of_too_many_values_is_refused_before_it_is_parsed)
{
    const size_t n = 8 << 20;
    char *const header = malloc(n);
    ck_assert_ptr_nonnull(header);
    memset(header, '0', n);
    memcpy(header, "{\"a\":[", 6);
    for (size_t i = 7; i + 2 < n; i += 2)
        header[i] = ',';
    header[n - 3] = '1';
    header[n - 2] = ']';
    header[n - 1] = '}';
    err_info info = {0};
    ck_assert(tensor_header_check(header, n, 0, &info) == ERR_BAD_MODEL);
    ck_assert_msg(strstr(info.message, "too many values") != NULL, "%s", info.message);
    free(header);
}
END_TEST

/* ---- files --------------------------------------------------------------------------------------- */

START_TEST(tensors_are_found_by_name_with_shape_and_data)
{
    temp_dir dir;
    temp_dir_open(&dir);
    temp_write_tensors(&dir, "model.safetensors",
                       "{\"z\":{\"dtype\":\"U8\",\"shape\":[2,3],\"data_offsets\":[0,6]},"
                       "\"a\":{\"dtype\":\"I16\",\"shape\":[1],\"data_offsets\":[6,8]}}",
                       8);
    tensor_files *files;
    err_info info = {0};
    ck_assert_msg(tensor_files_open(dir.path, &files, &info) == ERR_OK, "%s", info.message);
    ck_assert_uint_eq(tensor_count(files), 2);
    ck_assert_uint_eq(tensor_files_bytes(files), 8);
    ck_assert_str_eq(tensor_at(files, 0)->name, "a");
    ck_assert_ptr_null(tensor_find(files, "b"));
    const tensor *const z = tensor_find(files, "z");
    ck_assert_ptr_nonnull(z);
    ck_assert(z->type == TENSOR_U8);
    ck_assert_uint_eq(z->n_dims, 2);
    ck_assert_uint_eq(z->shape[1], 3);
    ck_assert_mem_eq(z->data, "\0\1\2\3\4\5", 6);
    ck_assert_mem_eq(tensor_find(files, "a")->data, "\6\7", 2);
    tensor_files_close(files);
    temp_dir_close(&dir);
}
END_TEST

static void expect_failure(const temp_dir *dir, err_t expected, const char *fact)
{
    tensor_files *files = NULL;
    err_info info = {0};
    const err_t err = tensor_files_open(dir->path, &files, &info);
    ck_assert_msg(err == expected, "%s instead of %s: %s", err_name(err), err_name(expected),
                  info.message);
    ck_assert_msg(strstr(info.message, fact) != NULL, "\"%s\" lacks \"%s\"", info.message, fact);
    ck_assert_ptr_null(files);
}

START_TEST(a_file_whose_length_field_lies_is_refused)
{
    static const struct {
        const char *bytes;
        size_t n_bytes;
        const char *fact;
    } cases[] = {
        {"", 0, "0 bytes are too few"},
        {"\2\0\0\0\0\0\0", 7, "7 bytes are too few"},
        {"\3\0\0\0\0\0\0\0{}", 10, "a header length of 3 reaches beyond"},
        {"\377\377\377\377\377\377\377\377{}", 10, "18446744073709551615"},
        {"\1\0\0\1\0\0\0\0{}", 10, "a header length of 16777217 is more than"},
        {"\0\0\0\0\0\0\0\0", 8, "does not begin with '{'"},
        {"\2\0\0\0\0\0\0\0{}x", 11, "a hole at the end"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        temp_dir dir;
        temp_dir_open(&dir);
        temp_write(&dir, "model.safetensors", cases[i].bytes, cases[i].n_bytes);
        expect_failure(&dir, ERR_BAD_MODEL, cases[i].fact);
        temp_dir_close(&dir);
    }
}
END_TEST

START_TEST(something_that_is_no_regular_file_is_refused)
{
    temp_dir dir;
    temp_dir_open(&dir);
    expect_failure(&dir, ERR_IO, "neither model.safetensors nor an index");
    ck_assert(mkfifo(temp_path(&dir, "model.safetensors"), 0600) == 0);
    expect_failure(&dir, ERR_BAD_MODEL, "not a regular file");
    ck_assert(unlink(temp_path(&dir, "model.safetensors")) == 0);
    ck_assert(mkdir(temp_path(&dir, "model.safetensors"), 0700) == 0);
    expect_failure(&dir, ERR_BAD_MODEL, "not a regular file");
    temp_dir_close(&dir);
}
END_TEST

/* ---- shards -------------------------------------------------------------------------------------- */

static const char *const index_name = "model.safetensors.index.json";
static const char *const shard_a =
    "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}";
static const char *const shard_b =
    "{\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}";

static void write_shards(const temp_dir *dir)
{
    temp_write_tensors(dir, "one.safetensors", shard_a, 4);
    temp_write_tensors(dir, "two.safetensors", shard_b, 4);
}

START_TEST(an_index_gathers_its_shards)
{
    temp_dir dir;
    temp_dir_open(&dir);
    write_shards(&dir);
    temp_write_text(&dir, index_name,
                    "{\"metadata\":{\"total_size\":8},\"weight_map\":"
                    "{\"b\":\"two.safetensors\",\"a\":\"one.safetensors\"}}\n");
    tensor_files *files;
    err_info info = {0};
    ck_assert_msg(tensor_files_open(dir.path, &files, &info) == ERR_OK, "%s", info.message);
    ck_assert_uint_eq(tensor_count(files), 2);
    ck_assert_ptr_nonnull(tensor_find(files, "a"));
    ck_assert_ptr_nonnull(tensor_find(files, "b"));
    tensor_files_close(files);
    temp_dir_close(&dir);
}
END_TEST

START_TEST(an_index_that_disagrees_with_its_files_is_refused)
{
    static const struct {
        const char *map;
        err_t err;
        const char *fact;
    } cases[] = {
        {"{\"a\":\"../one.safetensors\"}", ERR_BAD_MODEL,
         "\"../one.safetensors\" is not a plain file name"},
        {"{\"a\":\"/etc/passwd\"}", ERR_BAD_MODEL, "not a plain file name"},
        {"{\"a\":\"..\"}", ERR_BAD_MODEL, "not a plain file name"},
        {"{\"a\":\"\"}", ERR_BAD_MODEL, "not a plain file name"},
        {"{\"a\":\"x\\\\one\"}", ERR_BAD_MODEL, "not a plain file name"},
        {"{\"a\":3}", ERR_BAD_MODEL, "3 is not a plain file name"},
        {"{}", ERR_BAD_MODEL, "weight_map has 0 tensors"},
        {"[]", ERR_BAD_MODEL, "weight_map is missing or no object"},
        {"{\"a\":\"one.safetensors\",\"a\":\"two.safetensors\"}", ERR_BAD_MODEL, "duplicate key a"},
        {"{\"a\":\"three.safetensors\"}", ERR_IO,
         "three.safetensors: the index names this file, but it is missing"},
        {"{\"a\":\"one.safetensors\",\"c\":\"two.safetensors\"}", ERR_BAD_MODEL,
         "tensor b is not where"},
        {"{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\",\"c\":\"two.safetensors\"}",
         ERR_BAD_MODEL, "two.safetensors: tensor c, which the index names, is missing"},
        {"{\"a\":\"two.safetensors\",\"b\":\"one.safetensors\"}", ERR_BAD_MODEL,
         "places it in two.safetensors"},
        {"{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\"},\"x\":[}", ERR_BAD_MODEL,
         "bad JSON"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        temp_dir dir;
        char text[512];
        temp_dir_open(&dir);
        write_shards(&dir);
        (void)snprintf(text, sizeof text, "{\"weight_map\":%s}", cases[i].map);
        temp_write_text(&dir, index_name, text);
        expect_failure(&dir, cases[i].err, cases[i].fact);
        temp_dir_close(&dir);
    }
}
END_TEST

START_TEST(a_tensor_in_two_files_is_refused)
{
    temp_dir dir;
    temp_dir_open(&dir);
    temp_write_tensors(&dir, "one.safetensors", shard_a, 4);
    temp_write_tensors(&dir, "two.safetensors",
                       "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
                       "\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[2,4]}}",
                       4);
    temp_write_text(&dir, index_name,
                    "{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\"}}");
    expect_failure(&dir, ERR_BAD_MODEL, "tensor a");
    temp_dir_close(&dir);
}
END_TEST

START_TEST(a_file_written_to_while_it_is_open_is_noticed)
{
    temp_dir dir;
    temp_dir_open(&dir);
    temp_write_tensors(&dir, "model.safetensors", shard_a, 4);
    tensor_files *files;
    err_info info = {0};
    ck_assert(tensor_files_open(dir.path, &files, &info) == ERR_OK);
    ck_assert(tensor_files_unchanged(files, &info) == ERR_OK);
    FILE *const file = fopen(temp_path(&dir, "model.safetensors"), "ab");
    ck_assert_ptr_nonnull(file);
    ck_assert(fputc('x', file) == 'x');
    ck_assert(fclose(file) == 0);
    ck_assert(tensor_files_unchanged(files, &info) == ERR_IO);
    ck_assert_msg(strstr(info.message, "has changed") != NULL, "%s", info.message);
    tensor_files_close(files);
    temp_dir_close(&dir);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(every_broken_header_is_refused_with_its_fact),
    TEST_CASE(good_headers_are_accepted),
    TEST_CASE(no_byte_behind_the_header_is_read),
    TEST_CASE(a_header_of_too_many_values_is_refused_before_it_is_parsed),
    TEST_CASE(tensors_are_found_by_name_with_shape_and_data),
    TEST_CASE(a_file_whose_length_field_lies_is_refused),
    TEST_CASE(something_that_is_no_regular_file_is_refused),
    TEST_CASE(an_index_gathers_its_shards),
    TEST_CASE(an_index_that_disagrees_with_its_files_is_refused),
    TEST_CASE(a_tensor_in_two_files_is_refused),
    TEST_CASE(a_file_written_to_while_it_is_open_is_noticed),
    TEST_CASES_END,
};
