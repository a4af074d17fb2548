/* model/bpe.h - byte pair encoding: a vocabulary, ranked merges, and one word cut into pieces.
 *
 * As the tokenizers library does it: a word begins as its characters, and of all adjacent pairs that
 * have a merge the one of lowest rank (the leftmost of equals) is joined until none is left. A heap
 * keeps the candidates, so that a word of n characters costs n log n, however long.
 *
 * A bpe is filled (bpe_add_piece, then bpe_add_merge, then bpe_finish), and const from then on: any
 * thread may encode, each with scratch of its own. */
#ifndef MODEL_BPE_H
#define MODEL_BPE_H

#include "base/error.h"
#include "model/text_buffer.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { BPE_NO_ID = UINT32_MAX };

typedef struct bpe bpe;

typedef struct bpe_limits {
    uint32_t n_ids;      /* every id is below; ids without a piece are allowed */
    size_t n_pieces;     /* as many will be added */
    size_t n_merges;     /* at most so many */
    size_t pieces_bytes; /* all spellings together */
} bpe_limits;

typedef struct bpe_settings {
    uint32_t unk;       /* BPE_NO_ID: what cannot be spelled is left out */
    bool byte_fallback; /* what is no piece becomes <0x..> pieces, if there are all of them */
    bool fuse_unk;      /* neighbouring unknown characters give one unk */
    bool ignore_merges; /* a word that is a piece is that piece, whatever the merges say */
} bpe_settings;

/* life cycle */
err_t bpe_open(const bpe_limits *limits, bpe **out) MUST_CHECK; /* ERR_NO_MEMORY, ERR_OVERFLOW */
void bpe_close(bpe *b);                                         /* NULL is fine */

/* ERR_BAD_MODEL if the id or the spelling is taken. `piece` is copied. */
err_t bpe_add_piece(bpe *b, uint32_t id, text_view piece) MUST_CHECK;

/* Merges are added by falling priority; of equal pairs the last counts, as in the library. ERR_BAD_MODEL
 * if one of the two, or both together, are no piece. */
err_t bpe_add_merge(bpe *b, text_view left, text_view right) MUST_CHECK;

/* After the last piece. */
void bpe_finish(bpe *b, const bpe_settings *settings);

/* queries */
uint32_t bpe_find(const bpe *b, text_view piece); /* BPE_NO_ID: none */
text_view bpe_piece(const bpe *b, uint32_t id);   /* empty for an id without a piece; borrowed */
bool bpe_has_all_bytes(const bpe *b);             /* <0x00> to <0xFF> */

/* main verb: appends the ids of one word of valid UTF-8. ERR_NO_MEMORY. */
typedef struct bpe_scratch {
    struct bpe_symbol *symbol; /* [n_symbols] of [symbol_room] */
    size_t n_symbols, symbol_room;
    struct bpe_candidate *candidate; /* a heap of [n_candidates] of [candidate_room] */
    size_t n_candidates, candidate_room;
} bpe_scratch;
err_t bpe_encode(const bpe *b, bpe_scratch *scratch, text_view word, id_list *ids) MUST_CHECK;
void bpe_scratch_deinit(bpe_scratch *scratch); /* zeroed is fine */

#endif
