/* tests/kvcache/route_probe.h - a sequence of one KV head, of which is known what decode queries have read.
 *
 * A value has a 1 in the channel of its block, so the output is the attention of every block, and 0 in
 * those that were not read. What attention is there is computed in double precision over all keys. The device is the
 * one that the environment asks for: fake_model.h. */
#ifndef TESTS_KVCACHE_ROUTE_PROBE_H
#define TESTS_KVCACHE_ROUTE_PROBE_H

#include "tests/kvcache/fake_model.h"

enum {
    N_BLOCKS = 80,
    PAGE = 4,
    N_TOKENS = N_BLOCKS * PAGE,
    N_PROMPT = 21,
    K_DIM = 16,
    V_DIM = N_BLOCKS + 1, /* the last channel is of the sinks */
    N_SINKS = 2,
    GROUP_MAX = 4
};

/* How keys lie: random; all the same, so that a bound is the score; in corners of wide boxes, so that
 * it is far above; a few needles among small ones; small ones behind two sinks that take almost all. */
typedef enum key_kind { RANDOM, EQUAL, CORNERS, NEEDLES, SINKS, N_KEY_KINDS } key_kind;

typedef struct probe {
    dev *d;
    kv_cache *cache;
    kv_seq *seq;
    kv_layer_shape layer;
    float keys[N_TOKENS][K_DIM]; /* as the cache stores them */
    float bias[N_TOKENS];        /* that attention adds, 0 outside pages */
    float *q, *k, *v, *out;      /* of a step, where the device has them */
} probe;

/* Of the tokens of one step: queries, values, and what attention returned. */
typedef struct probe_step {
    float v[N_TOKENS][V_DIM];
    float q[N_TOKENS][GROUP_MAX * K_DIM], out[N_TOKENS][GROUP_MAX * V_DIM];
} probe_step;

/* Small pages, and this routing. */
kv_config probe_config(const char *method, kv_route_settings settings);

probe probe_open(const kv_config *config, uint32_t group, key_kind kind, dtype type);
void probe_close(probe *p);

/* The next n tokens. */
void probe_run(probe *p, uint32_t n, bool is_decode, probe_step *s);

/* Decodes a sequence; after every step no head may have missed more than the certificate says, and under
 * `certified` than its eps. */
void probe_check_certificates(const kv_config *config, uint32_t group, key_kind kind, dtype type);

#endif
