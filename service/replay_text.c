/* service/replay_text.c - see replay_text.h. */
#include "service/replay_text.h"

#include "base/check.h"

#include <stdlib.h>
#include <string.h>

static const char ORDER[] = "\n\nRepeat the previous context:";

err_t replay_text_init(replay_text *r, const tokenizer *t, uint32_t n_vocab)
{
    uint32_t *ids;
    size_t n_ids;
    *r = (replay_text){0};
    if (t == NULL) return ERR_OK;
    TRY(tokenizer_encode(t, &(tok_text){.bytes = ORDER, .n_bytes = strlen(ORDER)}, &ids, &n_ids));
    for (size_t i = 0; i < n_ids && r->n_order < REPLAY_ORDER_MAX; i++) {
        if (ids[i] < n_vocab) r->order[r->n_order++] = ids[i];
    }
    free(ids);
    return ERR_OK;
}

static uint32_t n_tail(const kv_replay_chunk *chunk)
{
    return (uint32_t)min_size(chunk->first, REPLAY_TAIL);
}

uint32_t replay_n_tokens(const replay_text *r, const kv_replay_chunk *chunk)
{
    return r->n_order + n_tail(chunk) + (chunk->end - chunk->first);
}

uint32_t replay_token(const replay_text *r, const uint32_t *prompt, const kv_replay_chunk *chunk,
                      uint32_t i)
{
    assert(i < replay_n_tokens(r, chunk));
    if (i < r->n_order) return r->order[i];
    return prompt[chunk->first - n_tail(chunk) + (i - r->n_order)];
}

uint32_t replay_n_left(const replay_text *r, const kv_seq *seq, uint32_t n_prompt,
                       kv_replay_chunk *chunk)
{
    if (!kv_seq_wants_replay(seq, chunk)) return 0;
    return replay_n_tokens(r, chunk) - (kv_seq_length(seq) - n_prompt);
}
