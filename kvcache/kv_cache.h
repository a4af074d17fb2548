/* kvcache/kv_cache.h - PiKV, the one header of the cache that the model and the engine include.
 *
 * An entry is the key (after RoPE) and the value of one token in one layer. Its life:
 *
 *   step begin  what scheduling evicts of the tokens held goes (evict.h); pages that this step may
 *               commit are reserved; ERR_KV_FULL loses nothing
 *   append      K and V are rounded once to the cache type and lie in staging
 *   attend      queries read pages, ring and staging: one partial per block of page_tokens
 *               positions, folded in position order (kernels/attention.h), so that a result does not
 *               depend on where a block lies, how the prompt was cut, or on the prefix cache
 *   step end    staging moves into the ring; blocks that have left the window are placed on a shard
 *               and written to pages; lossy codecs encode pages (encode.h)
 *
 * The calls of one step come in this order, with the layers rising:
 *   kv_step_begin, { kv_append, kv_attend, kv_note_experts } per layer, kv_step_end (or _abort)
 *
 * Threads: one owner (the engine) calls everything, any thread kv_stats_read and what looks at settings
 * alone (kv_cache_could_fit, _methods, _check_methods, _type). Between kv_step_begin and kv_step_end nothing
 * is allocated. Ownership: a kv_seq belongs to its cache; close every sequence before the cache. */
#ifndef KVCACHE_KV_CACHE_H
#define KVCACHE_KV_CACHE_H

#include "base/error.h"
#include "kernels/dev.h"
#include "kvcache/kv_methods.h"
#include "kvcache/kv_shape.h"
#include "kvcache/kv_stats.h"

typedef struct kv_cache kv_cache;
typedef struct kv_seq kv_seq;

/* ---- life cycle ---- */
/* memory_bytes 0: room for n_seqs_max full sequences, at most a quarter of the available memory.
 * ERR_BAD_CONFIG names an unknown method or an impossible combination (a pool that cannot hold one
 * page per layer and head, sinks beyond a block, a number of shards the placement cannot serve). */
err_t kv_cache_open(dev *d, const kv_config *config, const kv_shape *shape, const kv_limits *limits,
                    kv_cache **out, err_info *info) MUST_CHECK;
void kv_cache_close(kv_cache *cache); /* NULL is fine; all sequences are closed (asserted) */

/* ---- sequences ---- */
typedef struct kv_seq_options {
    const kv_methods *methods; /* that kv_cache_check_methods accepts; copied. NULL: the cache's */
    const char *salt;          /* separates tenants in the prefix cache; may be empty, never NULL */
    size_t salt_bytes;
    uint32_t n_prompt_tokens; /* what follows is decoded: see kv_seq_step_tokens_max */
    bool no_prefix_read;  /* do not take a cached prefix (prompt logprobs need every position) */
    bool no_prefix_write; /* do not leave one behind */
} kv_seq_options;

/* ERR_NO_MEMORY, or ERR_BAD_ARGUMENT beyond n_seqs_max. Between steps, like all calls of this part. */
err_t kv_seq_open(kv_cache *cache, const kv_seq_options *options, kv_seq **out) MUST_CHECK;

/* Takes the longest cached prefix of tokens[0 .. n_tokens), at most n_tokens - 1 of them (the last
 * token must be computed to have logits). Only on an empty sequence. Returns the tokens taken, which
 * are then the sequence's length. Hits are confirmed by comparing token ids, never by hash alone. */
uint32_t kv_seq_take_prefix(kv_seq *seq, const uint32_t *tokens, uint32_t n_tokens);

/* The prompt (its ids, `n_tokens` <= length) has been computed: others may share it from now on. A
 * sequence that evicts shares whole blocks in pages, as they are now, and only before it has evicted
 * anything; when it closes it leaves nothing else behind. */
void kv_seq_share_prompt(kv_seq *seq, const uint32_t *tokens, uint32_t n_tokens);

/* Closes. With prefix caching and tokens != NULL the ring is committed and the sequence's
 * table (of which tokens[0 .. length) are the ids) stays behind as a cached object; its pages count
 * as cached, not used, and are given up under pressure, least recently used first. */
void kv_seq_close(kv_seq *seq, const uint32_t *tokens);

uint32_t kv_seq_length(const kv_seq *seq); /* tokens held */
/* How many tokens its next step may have: UINT32_MAX under exact codecs and without eviction. A lossy
 * codec encodes a prompt at its end and at multiples of 2048 positions, and later every block that leaves
 * the ring; scheduling evicts at the same lengths. No step may cross one, or what it reads would depend on
 * how the sequence was cut. At least 1. */
uint32_t kv_seq_step_tokens_max(const kv_seq *seq);

/* Between steps; walks the whole table. */
void kv_seq_usage(const kv_seq *seq, kv_usage *out);

/* Cuts to n_tokens <= length: rejected drafts, regenerated tails. Only this sequence's view changes.
 * Returns the tokens held then: n_tokens, or 0, to be computed again, if a window has freed what the cut
 * needs, it cannot be read any more, the sequence evicts, or copies of shared pages find no room. */
uint32_t kv_seq_truncate(kv_seq *seq, uint32_t n_tokens);

/* Gives up every cached object that no open sequence uses. */
void kv_cache_drop_prefixes(kv_cache *cache);

/* Could a sequence of n_tokens run alone in an empty cache and its working tiers? NULL: its methods. */
bool kv_cache_could_fit(const kv_cache *cache, const kv_methods *methods, uint32_t n_tokens);

/* ---- one step ---- */
/* One sequence's share of a step: tokens [first_token, first_token + n_tokens) of the batch, at the
 * positions kv_seq_length(seq) and up. Only in decode rows does routing choose what is read. */
typedef struct kv_row {
    kv_seq *seq;
    uint32_t first_token, n_tokens;
    bool is_decode; /* one token behind the prompt; a prompt's chunk of one token is none */
    bool is_replay; /* tokens of the prompt that are read again: kv_replay.h */
} kv_row;

/* Rows are in batch order, without gaps, each sequence at most once, with no more tokens than
 * kv_seq_step_tokens_max, or a replay's chunk (all asserted). Demotes pages and gives up cached prefixes as
 * needed; ERR_KV_FULL if that is not enough on any rank (ranks.h, which has more errors): then nothing else
 * has changed, but what scheduling evicts at the present length may be gone, as with the step. */
err_t kv_step_begin(kv_cache *cache, const kv_row *rows, uint32_t n_rows) MUST_CHECK;

typedef struct kv_append_args { /* arrays, here and below: in the device's memory */
    uint32_t layer;
    const float *k; /* [n_tokens][n_kv_heads][k_dim], after RoPE */
    const float *v; /* [n_tokens][n_kv_heads][v_dim]; ignored with v_in_k */
} kv_append_args;
void kv_append(kv_cache *cache, const kv_append_args *args);

typedef struct kv_attend_args {
    uint32_t layer;
    const float *q;      /* [n_tokens][n_heads][k_dim], after RoPE */
    const float *q_nope; /* before it, of the host, may be `out`; NULL unless ..._wants_q_nope */
    const float *input_norm; /* [n_tokens] lengths of inputs, of the host; NULL unless wanted */
    float *out;              /* [n_tokens][n_heads][v_dim] */
} kv_attend_args;
void kv_attend(kv_cache *cache, const kv_attend_args *args);

/* The expert with the largest gate probability of every token in this layer. Layers whose shape says
 * has_router call it once per step, after kv_attend; placement by expert needs it. */
void kv_note_experts(kv_cache *cache, uint32_t layer, const uint32_t *top1, size_t stride);

void kv_step_end(kv_cache *cache);   /* lengths grow; commits */
void kv_step_abort(kv_cache *cache); /* as if the step had never begun */

/* ---- queries ---- */
dtype kv_cache_type(const kv_cache *cache);                /* after `auto` */
const kv_methods *kv_cache_methods(const kv_cache *cache); /* of sequences that bring none */
/* Inside a step: what scorers of its sequences may ask of kv_attend beside queries. */
bool kv_cache_wants_q_nope(const kv_cache *cache);
bool kv_cache_wants_input_norm(const kv_cache *cache);
/* May a sequence have these methods? ERR_UNSUPPORTED names what the cache does not keep: without
 * kv-request-methods it has what its own methods need. */
err_t kv_cache_check_methods(const kv_cache *cache, const kv_methods *methods,
                             err_info *info) MUST_CHECK;
/* Bytes of one position over all layers, as pages of the present codec hold them. */
size_t kv_cache_bytes_per_token(const kv_cache *cache);
/* Positions that fit in pool and tiers at least, if all sequences had these methods (NULL: the cache's). */
uint64_t kv_cache_capacity_tokens(const kv_cache *cache, const kv_methods *methods);

/* A consistent copy of the counters as of the owner's last step or call. Any thread; never waits. */
void kv_stats_read(const kv_cache *cache, kv_stats *out);

/* All invariants, in bytes: free + used = budget, every live slot has one owner, reference counts
 * match the tables, the counters match the structures. Slow: for tests and paranoid asserts. */
bool kv_cache_is_sane(const kv_cache *cache);

#endif
