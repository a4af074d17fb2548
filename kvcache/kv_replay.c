/* kvcache/kv_replay.c - see kv_replay.h. */
#include "kvcache/kv_replay.h"

#include "kvcache/blocks.h"
#include "kvcache/kv_lost.h"
#include "kvcache/ranks.h"
#include "kvcache/scatter.h"

#include <math.h>
#include <stdlib.h>

/* ---- chunks -------------------------------------------------------------------------------------- */

bool kv_replay_is_due(const kv_cache *cache, const kv_methods *methods, uint32_t n_prompt)
{
    return kv_methods_replay(methods) && kv_blocks_left(cache, n_prompt) > 0 &&
           kv_policy_n_keep(kv_methods_of_prompt(methods), n_prompt) < n_prompt;
}

/* All of one size, so that shares of chunks can be compared. 0: the positions do not suffice. */
static uint32_t chunk_tokens(const kv_cache *cache, uint32_t n_prompt)
{
    const uint64_t taken = (uint64_t)n_prompt + KV_REPLAY_LEAD;
    if (n_prompt == 0 || taken >= cache->limits.n_seq_tokens_max) return 0;
    const size_t left = cache->limits.n_seq_tokens_max - (size_t)taken;
    const uint32_t most = (uint32_t)min_size(cache->replay_tokens, left);
    if (most < min_size(n_prompt, KV_REPLAY_CHUNK_LEAST)) return 0;
    const uint32_t n_chunks = (n_prompt - 1) / most + 1;
    return (n_prompt - 1) / n_chunks + 1;
}

bool kv_seq_wants_replay(const kv_seq *seq, kv_replay_chunk *out)
{
    const uint32_t n_prompt = seq->n_prompt_tokens;
    if (seq->chosen_length > 0 || seq->n_replayed >= n_prompt || kv_seq_is_lost(seq)) return false;
    if (seq->length < n_prompt || (seq->length > n_prompt && !seq->is_replaying)) return false;
    if (!kv_replay_is_due(seq->cache, &seq->methods, n_prompt)) return false;
    const uint32_t n = chunk_tokens(seq->cache, n_prompt);
    if (n == 0) return false;
    *out = (kv_replay_chunk){.first = seq->n_replayed,
                             .end = seq->n_replayed +
                                    (uint32_t)min_size(n, (size_t)n_prompt - seq->n_replayed)};
    return true;
}

uint32_t kv_seq_replay_tokens_max(const kv_seq *seq)
{
    kv_replay_chunk chunk;
    if (!kv_seq_wants_replay(seq, &chunk)) return 0;
    return chunk.end - chunk.first + KV_REPLAY_LEAD - (seq->length - seq->n_prompt_tokens);
}

uint32_t kv_cache_replay_tokens(const kv_cache *cache, const kv_methods *methods, uint32_t n_prompt)
{
    if (!kv_replay_is_due(cache, methods, n_prompt)) return 0;
    const uint32_t n = chunk_tokens(cache, n_prompt);
    return n == 0 ? 0 : n + KV_REPLAY_LEAD;
}

err_t kv_cache_check_prompt(const kv_cache *cache, const kv_methods *methods, uint32_t n_prompt,
                            err_info *info)
{
    if (methods == NULL) methods = kv_cache_methods(cache);
    if (!kv_replay_is_due(cache, methods, n_prompt) || chunk_tokens(cache, n_prompt) > 0)
        return ERR_OK;
    return err_set(info, ERR_BAD_REQUEST,
                   "%s: %s reads a prompt of %u tokens again behind it, and a context of %u tokens "
                   "leaves less than %zu for it",
                   methods->selection.evicts ? "kv-compression" : "kv-scheduling",
                   kv_methods_of_prompt(methods)->name, n_prompt, cache->limits.n_seq_tokens_max,
                   KV_REPLAY_LEAD + min_size(n_prompt, KV_REPLAY_CHUNK_LEAST));
}

void kv_replay_need(const kv_cache *cache, const kv_methods *methods, uint32_t layer,
                    uint64_t n_blocks, uint64_t *need)
{
    if (!kv_methods_replay(methods)) return;
    const uint32_t page_tokens = cache->page_tokens;
    const uint64_t n_chunk = cache->replay_tokens / page_tokens + 1;
    const uint64_t n_all =
        (n_blocks < n_chunk ? n_blocks : n_chunk) + KV_REPLAY_LEAD / page_tokens + 2;
    const uint64_t n = kv_own_blocks_max(cache, layer, n_all);
    need[cache->layer_class[layer]] += kv_pages_most(cache, layer, n) * cache->n_kv_heads[layer];
}

/* ---- scores -------------------------------------------------------------------------------------- */

/* KV heads of all layers. */
static size_t n_heads_all(const kv_cache *cache)
{
    return cache->n_lists / cache->n_shards;
}

bool kv_replay_has_norms(const kv_seq *seq)
{
    const kv_policy *policy = kv_methods_of_prompt(&seq->methods);
    return policy != NULL && (policy->scorer->needs & KV_SCORE_INPUT_NORM) != 0;
}

/* Of every KV head, so that all have room for the widest group. */
static size_t head_floats(const kv_seq *seq)
{
    const size_t n_rows = kv_replay_has_norms(seq) ? seq->cache->observers.group_max : 1;
    return n_rows * seq->n_prompt_tokens;
}

err_t kv_replay_take(kv_seq *seq)
{
    kv_observed *o = &seq->observed;
    size_t n, bytes;
    if (o->replay != NULL) return ERR_OK;
    TRY(size_mul(n_heads_all(seq->cache), head_floats(seq), &n));
    TRY(size_mul(n, sizeof *o->replay, &bytes));
    o->replay = malloc(bytes);
    if (o->replay == NULL) return ERR_NO_MEMORY;
    o->replay_bytes = bytes;
    o->bytes += bytes;
    seq->cache->stats.observed_bytes += bytes;
    kv_replay_forget(seq);
    return ERR_OK;
}

void kv_replay_drop(kv_seq *seq)
{
    kv_observed *o = &seq->observed;
    free(o->replay);
    o->replay = NULL;
    o->bytes -= o->replay_bytes;
    seq->cache->stats.observed_bytes -= o->replay_bytes;
    o->replay_bytes = 0;
}

void kv_replay_forget(kv_seq *seq)
{
    kv_observed *o = &seq->observed;
    for (size_t i = 0; o->replay != NULL && i < o->replay_bytes / sizeof *o->replay; i++)
        o->replay[i] = -INFINITY;
}

float *kv_replay_scores(const kv_seq *seq, uint32_t layer, uint32_t head)
{
    const kv_cache *cache = seq->cache;
    const size_t index = kv_list(cache, layer, head, 0) / cache->n_shards;
    if (seq->observed.replay == NULL) return NULL;
    return seq->observed.replay + index * head_floats(seq);
}

bool kv_replay_is_done(const kv_seq *seq)
{
    return seq->observed.replay != NULL && seq->n_replayed >= seq->n_prompt_tokens;
}
