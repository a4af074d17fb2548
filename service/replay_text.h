/* service/replay_text.h - what is fed when a prompt is read again (kvcache/kv_replay.h).
 *
 * Behind the prompt come, for each chunk of it,
 *
 *   "\n\nRepeat the previous context:" | the last 8 tokens before the chunk | the chunk's tokens
 *
 * the middle part only behind the first chunk: it says where to go on (Kim et al., KVzip, arXiv 2505.23416).
 * The engine and `pikv eval` feed the same. Threads: const functions of plain data. */
#ifndef SERVICE_REPLAY_TEXT_H
#define SERVICE_REPLAY_TEXT_H

#include "base/error.h"
#include "kvcache/kv_replay.h"
#include "model/tokenizer.h"

enum { REPLAY_TAIL = 8, REPLAY_ORDER_MAX = KV_REPLAY_LEAD - REPLAY_TAIL };

typedef struct replay_text {
    uint32_t order[REPLAY_ORDER_MAX]; /* the instruction; n_order valid */
    uint32_t n_order;
} replay_text;

/* With the model's tokenizer; NULL: chunks come without the instruction. Tokens that the model does not
 * have, and what is beyond KV_REPLAY_LEAD, are left out. ERR_NO_MEMORY. */
err_t replay_text_init(replay_text *r, const tokenizer *t, uint32_t n_vocab) MUST_CHECK;

/* Tokens of the chunk's replay. */
uint32_t replay_n_tokens(const replay_text *r, const kv_replay_chunk *chunk);

/* Token i of them. */
uint32_t replay_token(const replay_text *r, const uint32_t *prompt, const kv_replay_chunk *chunk,
                      uint32_t i);

/* The chunk's tokens that the sequence, whose prompt has n_prompt tokens, has not been fed yet; 0: there is
 * no replay now. */
uint32_t replay_n_left(const replay_text *r, const kv_seq *seq, uint32_t n_prompt,
                       kv_replay_chunk *chunk);

#endif
