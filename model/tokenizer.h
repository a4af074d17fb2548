/* model/tokenizer.h - text to token ids and back.
 *
 * Behind it, by the file that is there: SentencePiece for tokenizer.model, our own byte pair encoding
 * for tokenizer.json (tok_engine.h). Threads: after open every call is const and may run on any thread;
 * a tok_stream belongs to one request. */
#ifndef MODEL_TOKENIZER_H
#define MODEL_TOKENIZER_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct tokenizer tokenizer;

/* DIR/tokenizer.json or DIR/tokenizer.model; of two tokenizer.json, or, with a warning, tokenizer.model where the
 * other is not supported. ERR_BAD_MODEL, ERR_UNSUPPORTED, ERR_IO; never throws. */
err_t tokenizer_open(const char *dir, tokenizer **out, err_info *info) MUST_CHECK;
void tokenizer_close(tokenizer *t); /* NULL is fine */

/* ERR_BAD_MODEL if the tokenizer knows more ids than the model's embedding has rows. */
err_t tokenizer_check_vocab(const tokenizer *t, uint32_t n_vocab, err_info *info) MUST_CHECK;

uint32_t tokenizer_n_vocab(const tokenizer *t);
int64_t tokenizer_bos(const tokenizer *t); /* -1: none */
int64_t tokenizer_eos(const tokenizer *t);
const char *tokenizer_kind(const tokenizer *t); /* "sentencepiece" or "bpe" */

/* tokenizer_config.json add_bos_token; without it true of tokenizer.model, and the post-processor's to
 * say of tokenizer.json. */
bool tokenizer_adds_bos(const tokenizer *t);

/* A heap array of ids, without BOS unless add_bos; free(*ids). The text is valid UTF-8 and may hold
 * NULs. With tokenizer.json the names of added tokens that are not special always become them.
 * ERR_NO_MEMORY, ERR_BAD_REQUEST (invalid UTF-8, or a pattern of tokenizer.json takes too long over it). */
typedef struct tok_text {
    const char *bytes;
    size_t n_bytes;
    bool add_bos;
    bool
        parse_special; /* names of control tokens in the text ("</s>") become those tokens; the text between
                         * them is encoded piece by piece, and the files say whether each begins a text */
} tok_text;
err_t tokenizer_encode(const tokenizer *t, const tok_text *text, uint32_t **ids,
                       size_t *n_ids) MUST_CHECK;

/* No text of n_bytes has fewer ids than this (0: nothing is known). SentencePiece needs 260 bytes of
 * memory and 1 to 3 microseconds for each byte of text: callers refuse what cannot fit anyway first. */
size_t tokenizer_n_ids_min(const tokenizer *t, size_t n_bytes);

/* The bytes that token `id` adds to a text after other tokens: " the", one raw byte for <0x..>, nothing for
 * control tokens (their name, "<s>", with `show_special`). Borrowed for the tokenizer's life. Ids
 * beyond the vocabulary give an empty piece. */
typedef struct tok_piece {
    const char *bytes;
    size_t n_bytes;
    bool is_special; /* control or unknown */
} tok_piece;
tok_piece tokenizer_piece(const tokenizer *t, uint32_t id, bool show_special);
size_t tokenizer_piece_bytes_max(const tokenizer *t);

/* Whole text of ids into a fresh heap string (NUL-terminated, length out): invalid bytes become U+FFFD.
 * Equal to the concatenated output of a tok_stream over the same ids. */
err_t tokenizer_decode(const tokenizer *t, const uint32_t *ids, size_t n_ids, bool show_special,
                       char **text, size_t *n_bytes) MUST_CHECK;

/* Streaming decode. Holds back at most 3 bytes: the incomplete beginning of a character; bytes
 * that can begin none come out as U+FFFD at once, and the end flushes what is held. A dummy space
 * that the model puts before the first word is dropped if `at_start`. No allocation. */
typedef struct tok_stream {
    const tokenizer *tokenizer;
    bool show_special;
    bool at_start; /* no text has come out yet and the sequence began here */
    uint8_t held[4];
    uint8_t n_held;
} tok_stream;
void tok_stream_init(tok_stream *s, const tokenizer *t, bool show_special, bool at_start);
/* Appends to out, which has room for tok_stream_bytes_max(); returns the bytes written. */
size_t tok_stream_push(tok_stream *s, uint32_t id, char *out);
size_t tok_stream_end(tok_stream *s, char *out);
size_t tok_stream_bytes_max(const tokenizer *t); /* of one push or end */

#endif
