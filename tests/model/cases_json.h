/* tests/model/cases_json.h - tests/golden/tokenizer-NAME/cases.json as arrays (see its README.md). */
#ifndef TESTS_MODEL_CASES_JSON_H
#define TESTS_MODEL_CASES_JSON_H

#include <stddef.h>
#include <stdint.h>

typedef struct golden_case {
    const char *text; /* may hold NULs; NULL in decode cases */
    size_t n_text;
    uint32_t *ids; /* [n_ids] */
    size_t n_ids;
    const char *decoded;
    size_t n_decoded;
} golden_case;

typedef struct golden_piece {
    const char *piece;
    const char *type; /* "normal", "unknown", "control", "byte", "user_defined", "unused" */
} golden_piece;

typedef struct golden_cases {
    golden_case *encode; /* [n_encode] */
    size_t n_encode;
    golden_case *decode; /* [n_decode] */
    size_t n_decode;
    golden_piece *piece; /* [n_pieces], by id */
    size_t n_pieces;
    void *tree; /* owns the strings */
} golden_cases;

void golden_cases_open(const char *path, golden_cases *out);
void golden_cases_close(golden_cases *cases);

#endif
