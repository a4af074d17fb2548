/* model/tokenizer_bpe.h - the tokenizer that a tokenizer.json describes: byte pair encoding, with what
 * the tokenizers library puts around it.
 *
 *   text -> added tokens -> normalizer -> added tokens -> pre_tokenizer -> bpe -> ids
 *   ids  -> spellings -> decoder -> text
 *
 * tokenizer_json.c fills a tok_bpe; from then on it is const, and any thread may call. */
#ifndef MODEL_TOKENIZER_BPE_H
#define MODEL_TOKENIZER_BPE_H

#include "base/error.h"
#include "model/added_tokens.h"
#include "model/bpe.h"
#include "model/normalizer.h"
#include "model/pre_tokenizer.h"
#include "model/text_buffer.h"
#include "model/tok_engine.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { TOK_REPLACES_MAX = 8 };

/* What the decoder does to every spelling, and to the whole text at the end. */
typedef struct tok_decoding {
    bool is_byte_level; /* characters stand for bytes; else: */
    struct {
        text_buffer from, to;
    } replace[TOK_REPLACES_MAX]; /* [n_replaces], in this order */
    size_t n_replaces;
    bool byte_fallback;       /* "<0x..>" is a byte */
    bool drops_first_space;   /* Strip: one space at the beginning of the text */
    bool drops_first_markers; /* Metaspace: the first token's markers are nothing */
} tok_decoding;

/* A token that is looked for before the text is cut; sorted by id once they are all there. */
typedef struct tok_added {
    uint32_t id;
    size_t begin, n_bytes; /* in `added_text`: its spelling, normalised if it is looked for so */
    bool is_special;
} tok_added;

typedef struct tok_bpe {
    bpe *vocabulary;
    uint32_t n_ids;  /* every id, added ones too, is below */
    size_t n_pieces; /* of the vocabulary without the added ones */
    normalizer normalizer;
    pre_tokenizer pre_tokenizer;
    added_set *plain, *normalized; /* looked for before and after the normalizer */
    tok_added *added;              /* [n_added] */
    size_t n_added;
    text_buffer added_text;
    tok_decoding decoding;
    int64_t template_bos; /* what the post-processor puts first; -1: nothing */
} tok_bpe;

void tok_bpe_close(tok_bpe *t); /* NULL is fine */

/* A fresh heap array. Without parse_special the names of special tokens are text like any other: what the
 * library does if encode_special_tokens is set. */
err_t tok_bpe_encode(const tok_bpe *t, text_view text, const tok_encoding *how, uint32_t **ids,
                     size_t *n_ids) MUST_CHECK;

text_view tok_bpe_spelling(const tok_bpe *t, uint32_t id);   /* empty: no such token */
uint32_t tok_bpe_find(const tok_bpe *t, text_view spelling); /* BPE_NO_ID: none */
bool tok_bpe_is_special(const tok_bpe *t, uint32_t id);
bool tok_bpe_is_byte(const tok_bpe *t, uint32_t id); /* one byte, to the decoder */

/* Appends what the decoder makes of one token. ERR_NO_MEMORY. */
err_t tok_bpe_decode(const tok_bpe *t, uint32_t id, text_buffer *out) MUST_CHECK;

bool tok_bpe_is_lossless(const tok_bpe *t); /* every byte of a text is in one of its tokens */

#endif
