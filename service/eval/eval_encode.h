/* service/eval/eval_encode.h - a long text to token ids, piece by piece.
 *
 * SentencePiece takes 260 bytes of memory for each byte of text, so a long text is encoded in pieces that
 * end at a line end. The ids are those of the whole text, because nothing reaches across a line end:
 *
 *   - a dummy space is put before every text: each piece is encoded with the newline before it, and what a
 * newline
 *     alone gives is dropped from the front
 *   - a vocabulary with a piece of a newline and more, or a normaliser, could reach across: no cuts
 *   - unigram models look for the best float32 sum of scores, and over a long text that sum loses the
 * digits that
 *     decide between near ties, over a piece it does not (seen after 70 kB): no cuts. They are told from
 * BPE, which
 *     depends on its neighbours alone, by the vocabulary: what BPE has merged is two of its own pieces
 *
 * Without cuts, and in a line that is very long, the memory is what the text needs. */
#ifndef SERVICE_EVAL_EVAL_ENCODE_H
#define SERVICE_EVAL_EVAL_ENCODE_H

#include "model/tokenizer.h"

typedef struct eval_encode_options {
    const char *text;
    size_t n_bytes;
    size_t piece_bytes; /* a piece ends at the first line end from here on; >= 1 */
} eval_encode_options;

/* A heap array of ids without BOS; free(*ids). ERR_BAD_REQUEST (not UTF-8), ERR_NO_MEMORY. */
err_t eval_encode(const tokenizer *t, const eval_encode_options *options, uint32_t **ids,
                  size_t *n_ids) MUST_CHECK;

#endif
