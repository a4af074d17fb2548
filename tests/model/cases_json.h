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
    const char *shown; /* decoded with special tokens; NULL: not told */
    size_t n_shown;
} golden_case;

typedef struct golden_piece {
    const char *piece;
    const char *type; /* "normal", "unknown", "control", "byte", "user_defined", "unused" */
} golden_piece;

/* Lines made of these, and what became of them (tools/make_tokenizer_json_goldens.py). */
typedef struct golden_lines {
    const char *fragment[160]; /* [n_fragments] */
    size_t n_fragment_bytes[160];
    size_t n_fragments;
    uint32_t block[64][2]; /* [n_blocks], first and last character */
    size_t n_blocks;
    size_t n_lines;
    uint64_t digest;
} golden_lines;

typedef struct golden_cases {
    golden_case *encode; /* [n_encode] */
    size_t n_encode;
    golden_case *decode; /* [n_decode] */
    size_t n_decode;
    golden_case *plain; /* [n_plain], encoded with special tokens as text; may be none */
    size_t n_plain;
    golden_piece *piece; /* [n_pieces], by id */
    size_t n_pieces;
    golden_lines lines; /* n_lines 0: there are none */
    void *tree;         /* owns the strings */
} golden_cases;

void golden_cases_open(const char *path, golden_cases *out);
void golden_chats_open(const char *path,
                       golden_cases *out); /* of tokenizer-chat-NAME: encode and plain */
void golden_cases_close(golden_cases *cases);

#endif
