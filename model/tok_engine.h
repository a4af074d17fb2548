/* model/tok_engine.h - what stands behind tokenizer.h: one table of functions for each kind of file.
 *
 *   tok_engine_spm.c   tokenizer.model, SentencePiece
 *   tok_engine_bpe.c   tokenizer.json, byte pair encoding of our own
 *
 * An engine turns text into ids and says what each id adds to a text; tokenizer.c keeps that in a table
 * and decodes from it, whatever the engine. */
#ifndef MODEL_TOK_ENGINE_H
#define MODEL_TOK_ENGINE_H

#include "base/error.h"
#include "model/text_buffer.h"
#include "model/tokenizer_settings.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum tok_kind {
    TOK_TEXT,
    TOK_BYTE,    /* one byte, which need not be a character */
    TOK_CONTROL, /* adds nothing to a text */
    TOK_UNKNOWN
} tok_kind;

/* How texts begin and what is held to be true of all of them. */
typedef struct tok_traits {
    uint32_t n_vocab;
    int64_t bos, eos; /* -1: none */
    bool adds_bos;
    bool is_byte_level;       /* every token is bytes, which need not be characters */
    bool drops_first_space;   /* one leading space of the text is the model's, not the author's */
    bool drops_first_spaces;  /* all of them */
    bool drops_first_byte;    /* that space may also come from a byte */
    bool drops_first_markers; /* of the first token's spelling every U+2581 is nothing */
    bool parts_at_nothing;    /* a token that adds nothing ends a character that is incomplete */
    bool finds_names;         /* of control tokens in a text, where parse_special asks for it */
    bool is_lossless;         /* every byte of a text is in one of its tokens */
} tok_traits;

typedef struct tok_encoding {
    size_t n_front;     /* free places before the first id */
    bool parse_special; /* of an engine that finds_names */
    bool is_inside;     /* of one that does not: other tokens stand before this text */
} tok_encoding;

typedef struct tok_engine {
    const char *name; /* "sentencepiece" */
    const char *file; /* how messages call the file */
    /* ERR_NOT_FOUND, without a message: there is no such file. */
    err_t (*open)(const char *dir, const tokenizer_settings *settings, void **model,
                  tok_traits *traits, err_info *info);
    void (*close)(void *model); /* NULL is fine */
    err_t (*encode)(const void *model, text_view text, const tok_encoding *how, uint32_t **ids,
                    size_t *n_ids); /* a heap array */
    tok_kind (*kind)(const void *model, uint32_t id);
    text_view (*spelling)(const void *model, uint32_t id); /* as the file has it; borrowed */
    err_t (*put_text)(const void *model, uint32_t id,
                      text_buffer *out); /* what it adds to a text */
    err_t (*put_name)(const void *model, uint32_t id,
                      text_buffer *out); /* when it is to be shown */
} tok_engine;

extern const tok_engine tok_engine_spm, tok_engine_bpe;

#endif
