/* tests/model/cases_json.c - see cases_json.h. With jansson, because texts hold U+0000. */
#include "tests/model/cases_json.h"

#include <check.h>
#include <jansson.h>
#include <stdlib.h>

static const char *read_string(const json_t *object, const char *key, size_t *n_bytes)
{
    const json_t *const item = json_object_get(object, key);
    if (item == NULL) return NULL;
    *n_bytes = json_string_length(item);
    return json_string_value(item);
}

static golden_case *read_cases(const json_t *array, size_t *n_cases)
{
    *n_cases = json_array_size(array);
    golden_case *const cases = calloc(*n_cases + 1, sizeof *cases);
    ck_assert_ptr_nonnull(cases);
    for (size_t i = 0; i < *n_cases; i++) {
        const json_t *const object = json_array_get(array, i);
        const json_t *const ids = json_object_get(object, "ids");
        golden_case *const c = &cases[i];
        c->text = read_string(object, "text", &c->n_text);
        c->decoded = read_string(object, "decoded", &c->n_decoded);
        ck_assert_ptr_nonnull(c->decoded);
        c->shown = read_string(object, "shown", &c->n_shown);
        c->n_ids = json_array_size(ids);
        c->ids = calloc(c->n_ids + 1, sizeof *c->ids);
        ck_assert_ptr_nonnull(c->ids);
        for (size_t j = 0; j < c->n_ids; j++)
            c->ids[j] = (uint32_t)json_integer_value(json_array_get(ids, j));
    }
    return cases;
}

static golden_piece *read_pieces(const json_t *array, size_t *n_pieces)
{
    *n_pieces = json_array_size(array);
    golden_piece *const pieces = calloc(*n_pieces + 1, sizeof *pieces);
    ck_assert_ptr_nonnull(pieces);
    for (size_t i = 0; i < *n_pieces; i++) {
        const json_t *const object = json_array_get(array, i);
        pieces[i].piece = json_string_value(json_object_get(object, "piece"));
        pieces[i].type = json_string_value(json_object_get(object, "type"));
    }
    return pieces;
}

static void read_lines(const json_t *root, golden_lines *out)
{
    const json_t *const fragments = json_object_get(root, "fragments");
    const json_t *const blocks = json_object_get(root, "blocks");
    const char *const digest = json_string_value(json_object_get(root, "digest"));
    if (digest == NULL) return;
    out->digest = strtoull(digest, NULL, 16);
    out->n_lines = (size_t)json_integer_value(json_object_get(root, "n_lines"));
    out->n_fragments = json_array_size(fragments);
    out->n_blocks = json_array_size(blocks);
    ck_assert(out->n_fragments > 0 && out->n_fragments <= 160);
    ck_assert(out->n_blocks > 0 && out->n_blocks <= 64);
    for (size_t i = 0; i < out->n_fragments; i++) {
        const json_t *const item = json_array_get(fragments, i);
        out->fragment[i] = json_string_value(item);
        out->n_fragment_bytes[i] = json_string_length(item);
    }
    for (size_t i = 0; i < out->n_blocks; i++)
        for (size_t j = 0; j < 2; j++)
            out->block[i][j] =
                (uint32_t)json_integer_value(json_array_get(json_array_get(blocks, i), j));
}

static void load(const char *path, golden_cases *out)
{
    json_error_t error;
    json_t *const root = json_load_file(path, JSON_ALLOW_NUL, &error);
    ck_assert_msg(root != NULL, "%s: %s", path, error.text);
    *out = (golden_cases){.tree = root};
    out->encode = read_cases(json_object_get(root, "cases"), &out->n_encode);
    out->decode = read_cases(json_object_get(root, "decode_cases"), &out->n_decode);
    out->plain = read_cases(json_object_get(root, "plain_cases"), &out->n_plain);
    out->piece = read_pieces(json_object_get(root, "pieces"), &out->n_pieces);
    ck_assert(out->n_encode > 0);
    read_lines(root, &out->lines);
}

void golden_cases_open(const char *path, golden_cases *out)
{
    load(path, out);
    ck_assert(out->n_decode > 0);
    ck_assert(out->n_pieces > 0 || out->lines.n_lines > 0);
}

void golden_chats_open(const char *path, golden_cases *out)
{
    load(path, out);
    ck_assert(out->n_plain == out->n_encode);
}

void golden_cases_close(golden_cases *cases)
{
    for (size_t i = 0; i < cases->n_encode; i++)
        free(cases->encode[i].ids);
    for (size_t i = 0; i < cases->n_decode; i++)
        free(cases->decode[i].ids);
    for (size_t i = 0; i < cases->n_plain; i++)
        free(cases->plain[i].ids);
    free(cases->plain);
    free(cases->encode);
    free(cases->decode);
    free(cases->piece);
    json_decref(cases->tree);
}
