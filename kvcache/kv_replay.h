/* kvcache/kv_replay.h - a prompt that is read again before it is chosen what stays of it (scorers `kvzip` and
 * `kvzip_plus`).
 *
 * Under methods whose prompt such a scorer chooses, nothing is chosen or encoded while the prompt arrives,
 * however long it is, unless all of it may stay. At its end the caller feeds it once more, chunk by chunk,
 * as tokens that follow it:
 *
 *   prompt ........................ | lead | a chunk's tokens      positions n_prompt and up
 *           [first   end)                    attend to everything before them
 *
 * in steps whose rows say is_replay, as many tokens at once as it likes. What these queries give to the
 * chunk's entries is noted; kv_seq_end_replay takes the tokens away again, and the next chunk begins. Behind
 * the last one the sequence holds its prompt as if nothing had been, and the step that follows chooses.
 *
 *   while (kv_seq_wants_replay(seq, &chunk)) { rows with is_replay ...; kv_seq_end_replay(seq); }
 *
 * Scores do not depend on how a chunk is cut into steps, nor on the neighbours. The softmax of a score is
 * over the first KV_REPLAY_SINKS entries, the chunk's and the replay's own up to the query (Kim et al.,
 * KVzip, arXiv 2505.23416).
 *
 * Memory: at the peak the whole prompt is there unencoded, and one chunk with its lead beside it;
 * kv_cache_could_fit and kv_cache_capacity_tokens count that. Layers with a sliding window keep what the
 * prompt's end sees of it. A caller that feeds no replay gets what the scorer has instead (scoring/kvzip.c).
 *
 * Threads: the owner between steps, but for what looks at settings alone, as in kv_cache.h. */
#ifndef KVCACHE_KV_REPLAY_H
#define KVCACHE_KV_REPLAY_H

#include "kvcache/kv_cache.h"

enum {
    KV_REPLAY_CHUNK = 2048, /* tokens of the prompt that are read again at once, at most */
    KV_REPLAY_CHUNK_LEAST =
        64,             /* at least, or the whole prompt: smaller ones would compare too few */
    KV_REPLAY_LEAD = 48 /* tokens before them that the caller may add, at most */
};

/* Positions of the prompt. */
typedef struct kv_replay_chunk {
    uint32_t first, end;
} kv_replay_chunk;

/* Is there more of the prompt to be read again? Then also how far: kv_seq_length - n_prompt tokens of this
 * chunk's replay are held. Chunks are of one size, but for the last. */
bool kv_seq_wants_replay(const kv_seq *seq, kv_replay_chunk *out);

/* Tokens that the chunk's replay may still take, lead included; 0 if none is wanted. */
uint32_t kv_seq_replay_tokens_max(const kv_seq *seq);

/* The chunk has been read again: cuts the sequence to its prompt. Returns the tokens held then: those of the
 * prompt, or 0, to be computed again, all of it, if pages can no longer be read or owned. Over ranks collective, the same on
 * all. */
uint32_t kv_seq_end_replay(kv_seq *seq);

/* Most positions behind a prompt that its replay takes; 0: there is none. */
uint32_t kv_cache_replay_tokens(const kv_cache *cache, const kv_methods *methods,
                                uint32_t n_prompt);

/* ERR_BAD_REQUEST names the method and the numbers if a sequence's positions do not hold prompt and
 * replay. methods NULL: the cache's. */
err_t kv_cache_check_prompt(const kv_cache *cache, const kv_methods *methods, uint32_t n_prompt,
                            err_info *info) MUST_CHECK;

/* ---- for the cache itself ---- */

/* Is a prompt of this length read again under these methods? Not if nothing of it could go. */
bool kv_replay_is_due(const kv_cache *cache, const kv_methods *methods, uint32_t n_prompt);

/* Adds to `need` the raw pages in one layer of the largest replay of n_blocks blocks. */
void kv_replay_need(const kv_cache *cache, const kv_methods *methods, uint32_t layer,
                    uint64_t n_blocks, uint64_t *need);

/* Memory for the scores, if it is not there yet. ERR_NO_MEMORY, ERR_OVERFLOW. */
err_t kv_replay_take(kv_seq *seq) MUST_CHECK;
void kv_replay_drop(kv_seq *seq);   /* gives it back */
void kv_replay_forget(kv_seq *seq); /* the sequence begins anew */

/* Are shares divided by the norm of the layer's input, and kept for every query head (scorer `kvzip_plus`)? Of
 * the scorer that chooses from the prompt: no other then asks for shares (kv_methods.c). */
bool kv_replay_has_norms(const kv_seq *seq);

/* By position of the prompt: the largest share, as a logarithm; -inf: none. [n_prompt_tokens], with norms
 * [group][n_prompt_tokens]. NULL: no memory was taken. */
float *kv_replay_scores(const kv_seq *seq, uint32_t layer, uint32_t head);

/* Has all of the prompt been read again? */
bool kv_replay_is_done(const kv_seq *seq);

#endif
