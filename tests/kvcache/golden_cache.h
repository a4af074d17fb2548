/* tests/kvcache/golden_cache.h - the golden layer (tests/kernels/golden_layer.h) as the only one of a cache. */
#ifndef TESTS_KVCACHE_GOLDEN_CACHE_H
#define TESTS_KVCACHE_GOLDEN_CACHE_H

#include "tests/kernels/golden_layer.h"
#include "tests/kvcache/fake_model.h"

enum { GOLDEN_KV_HEADS = 2 };

/* Layers are set here, in f32, with the output projection. */
fake *golden_open(fake_options options);

/* A sequence whose prompt has n_prompt tokens. */
kv_seq *golden_seq(fake *f, uint32_t n_prompt);

/* Tokens of the layer that are fed at once, [first, first + n), at the end of the sequence. */
typedef struct golden_tokens {
    uint32_t first, n;
    bool is_replay;
} golden_tokens;
void golden_feed(fake *f, kv_seq *seq, golden_tokens tokens);

/* Bit p: the head holds position p. */
uint64_t golden_held(const fake *f, const kv_seq *seq, uint32_t head);

#endif
