/* model/special_tokens.h - tokens that a text names: "<s>", "[INST]", found before the rest is encoded.
 *
 * SentencePiece never reads its control symbols from a text, which is right for the text of strangers and
 * wrong for a rendered chat template. What is found is the first special token of a text, and of those that begin
 * at one byte the longest. A byte at which none begins costs one look at a table; at which one may, a walk through
 * the sorted names as through a tree. */
#ifndef MODEL_SPECIAL_TOKENS_H
#define MODEL_SPECIAL_TOKENS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct special_token {
    const char *bytes; /* [n_bytes], not empty; borrowed */
    size_t n_bytes;
    uint32_t id;
} special_token;

typedef struct special_tokens {
    special_token
        *sorted; /* [n_tokens] by bytes, a name before what it begins; the owner's to free */
    size_t n_tokens;
    bool begins[256]; /* some name begins with this byte */
} special_tokens;

/* Sorts `tokens` in place and keeps them. */
void special_tokens_init(special_tokens *out, special_token *tokens, size_t n_tokens);

/* The first one in text[from .. n_bytes), *at its place; NULL if there is none. */
const special_token *special_tokens_find(const special_tokens *s, const char *text, size_t n_bytes,
                                         size_t from, size_t *at);

#endif
