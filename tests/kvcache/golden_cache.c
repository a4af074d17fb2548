/* tests/kvcache/golden_cache.c - see golden_cache.h. */
#include "tests/kvcache/golden_cache.h"

#include <check.h>
#include <math.h>

enum { D = GOLDEN_DIM, HQ = GOLDEN_HEADS, HK = GOLDEN_KV_HEADS };

fake *golden_open(fake_options options)
{
    static float weights[GOLDEN_WIDTH * HQ * D];
    static matrix out_proj;
    static kv_layer_shape layer;
    golden_out_proj(weights);
    out_proj = (matrix){.data = weights, .type = DTYPE_F32, .rows = GOLDEN_WIDTH, .cols = HQ * D};
    layer = (kv_layer_shape){.n_heads = HQ,
                             .n_kv_heads = HK,
                             .k_dim = D,
                             .v_dim = D,
                             .scale = 1 / sqrtf(D),
                             .out_proj = &out_proj};
    options.layers = &layer;
    options.n_layers = 1;
    options.model_type = DTYPE_F32;
    return fake_open(&options);
}

kv_seq *golden_seq(fake *f, uint32_t n_prompt)
{
    kv_seq *seq;
    const kv_seq_options options = {.salt = "", .n_prompt_tokens = n_prompt};
    ck_assert_int_eq(kv_seq_open(f->cache, &options, &seq), ERR_OK);
    return seq;
}

/* Of hidden state t. */
static float input_norm(uint32_t t)
{
    double sum = 0;
    for (uint32_t c = 0; c < GOLDEN_WIDTH; c++)
        sum += pow(golden_uniform(1, (uint64_t)t * GOLDEN_WIDTH + c, 1), 2);
    return (float)sqrt(sum);
}

void golden_feed(fake *f, kv_seq *seq, golden_tokens tokens)
{
    enum { T = GOLDEN_TOKENS };
    static float q[T][HQ][D], k[T][HK][D], v[T][HK][D], out[T][HQ][D], norm[T];
    const uint32_t by = kv_seq_length(seq);
    ck_assert_uint_le(tokens.n, T);
    for (uint32_t t = 0; t < tokens.n; t++) {
        const uint32_t state = tokens.first + t;
        norm[t] = input_norm(state);
        for (uint32_t h = 0; h < HQ; h++)
            golden_query_at(h, state, by + t, q[t][h]);
        for (uint32_t h = 0; h < HK; h++) {
            golden_key_at(h, state, by + t, k[t][h]);
            golden_value(h, state, v[t][h]);
        }
    }
    const kv_row row = {.seq = seq,
                        .n_tokens = tokens.n,
                        .is_decode = by >= seq->n_prompt_tokens && !tokens.is_replay,
                        .is_replay = tokens.is_replay};
    ck_assert_int_eq(kv_step_begin(f->cache, &row, 1), ERR_OK);
    kv_append(f->cache, &(kv_append_args){.layer = 0, .k = **k, .v = **v});
    kv_attend(f->cache, &(kv_attend_args){.layer = 0, .q = **q, .input_norm = norm, .out = **out});
    kv_step_end(f->cache);
}

uint64_t golden_held(const fake *f, const kv_seq *seq, uint32_t head)
{
    const kv_cache *cache = f->cache;
    const kv_pages *pages = kv_pool_pages(cache->pool);
    const uint32_t in_pages = seq->n_blocks * cache->page_tokens;
    uint64_t held = 0;
    ck_assert_uint_eq(cache->n_shards, 1);
    ck_assert_uint_le(seq->length, 64);
    for (uint32_t p = 0; p < seq->length; p++)
        held |= (uint64_t)(p < cache->sink_tokens || p >= in_pages) << p;
    for (uint32_t b = 0; b < seq->n_blocks; b++) {
        const size_t entry = kv_table_entry(&seq->table, kv_list(cache, 0, head, 0), b);
        for (uint64_t live = seq->table.live[entry]; live != 0; live &= live - 1)
            held |= UINT64_C(1)
                    << pages->positions[(size_t)seq->table.page[entry] * cache->page_tokens +
                                        (uint32_t)__builtin_ctzll(live)];
    }
    return held;
}
