/* tests/kvcache/fake_model.h - a stand-in for a model around a cache.
 *
 * Queries, keys and values are a pure function of (token id, position, layer, head, channel), so two
 * sequences with the same ids have the same entries and what attention must return is known: the
 * reference computes it in double precision over all positions, knowing nothing of pages.
 *
 * With PIKV_TEST_DEVICE=apart in the environment the cache is on a device that has memory of its own and attends by
 * itself (tests/kernels/dev_apart.h), so every test of this model is one of kvcache/device_view.h as well. */
#ifndef TESTS_KVCACHE_FAKE_MODEL_H
#define TESTS_KVCACHE_FAKE_MODEL_H

#include "kvcache/blocks.h"

enum { FAKE_LAYERS_MAX = 4, FAKE_ROWS_MAX = 16, FAKE_DIM_MAX = 576 };

typedef struct fake_options {
    const kv_layer_shape *layers; /* NULL: three layers that differ in everything */
    uint32_t n_layers;
    dtype model_type;
    const char *isa;    /* NULL: "ref" */
    uint32_t n_threads; /* 0: 1 */
    kv_limits limits;   /* zero fields: 8 sequences, 64 tokens a step, 512 positions */
    kv_config config;   /* zero fields: see fake_defaults */
    bool no_prefix_caching;
} fake_options;

typedef struct fake {
    dev *d;
    kv_cache *cache;
    kv_layer_shape layers[FAKE_LAYERS_MAX];
    uint32_t n_layers;
    kv_limits limits;
    size_t n_out; /* floats that attention returns of one token, all layers */
    float *q, *k, *v, *out, *input_norm; /* of one layer and step */
    struct {
        float *q, *k, *v,
            *out; /* where the device has them; the same if its memory is the host's */
    } there;
    uint32_t *experts;
    uint32_t
        expert_step; /* a token's expert of 8 is its id, and this more in every layer; 0 at first */
    float *bases;    /* of all layers that have none of their own */
    uint32_t n_checks;
} fake;

typedef struct fake_seq {
    kv_seq *seq;
    uint32_t *tokens;  /* [n_seq_tokens_max]: ids of the present and, already, the future */
    float *out;        /* [n_seq_tokens_max][n_out]: what attention returned, by position */
    uint32_t n_prompt; /* what is fed alone behind it is a decode step; at first there is none */
    bool is_replay;    /* what is fed is read again */
} fake_seq;

/* n channels of what a token at a position has in a head. */
typedef enum fake_kind { FAKE_QUERY, FAKE_KEY, FAKE_VALUE } fake_kind;
void fake_fill(fake_kind what, uint32_t layer, uint32_t head, uint32_t token, uint32_t position,
               uint32_t n, float *out);
float fake_input_norm(uint32_t layer, uint32_t token, uint32_t position);

/* The settings that tests use unless they say otherwise: pages of 4, a window of 8, 2 sinks. */
kv_config fake_defaults(void);
extern const kv_layer_shape fake_layers[3];

/* Layers and settings for lossy codecs: two layers whose heads they all make smaller, pages of 8, a
 * window of 12, 3 sinks. */
extern const kv_layer_shape fake_coded_layers[2];
kv_config fake_coded(const char *codec);
extern const kv_rope
    fake_rope; /* of 8 channels, for layers that want one: the model itself turns nothing */

/* Copies of layers with an output projection each, until the next call. */
const kv_layer_shape *fake_projecting(const kv_layer_shape *layers, uint32_t n_layers);

/* The device that the environment asks for, as above. */
dev *fake_open_device(const dev_config *config);

fake *fake_open(const fake_options *options); /* fails the test on an error */

/* A basis of a random subspace of half as many directions, the same for all heads, in [2][heads][rank][dim]
 * floats of `memory`; with_mean: its last direction is a mean instead. */
kv_basis fake_basis(float *memory, uint32_t n_kv_heads, uint32_t dim, bool with_mean);
void fake_close(fake *f);

/* A sequence whose ids are drawn from `seed`; the first n_shared from `shared_seed`. */
typedef struct fake_ids {
    uint64_t seed, shared_seed;
    uint32_t n_shared;
    uint32_t n_prompt;         /* what the cache is told; only lossy codecs and eviction mind */
    const kv_methods *methods; /* NULL: the cache's */
} fake_ids;
fake_seq fake_seq_open(fake *f, fake_ids ids);
fake_seq fake_seq_open_salted(fake *f, fake_ids ids, const char *salt);
void fake_seq_close(fake *f, fake_seq *s, bool with_tokens);
void fake_seq_free(fake_seq *s); /* what is left after kv_seq_close */

/* One step: n_tokens[i] next tokens of seqs[i]. Returns what kv_step_begin returned. */
err_t fake_step(fake *f, fake_seq *const *seqs, const uint32_t *n_tokens, uint32_t n_rows);
/* Steps of one sequence until it holds n_tokens, chunks of `chunk` or as many as the cache allows. */
void fake_run(fake *f, fake_seq *s, uint32_t n_tokens, uint32_t chunk);

/* Largest difference from the reference over positions [first, end), in units of the tolerance of
 * the cache type: at most 1 is right. */
double fake_error(const fake *f, const fake_seq *s, uint32_t first, uint32_t end);

/* The same over the entries that a query at `position` still finds. */
typedef struct fake_key {
    uint32_t layer, head, position;
} fake_key;
typedef bool fake_keeps(const void *ctx, fake_key key, uint32_t position);
typedef struct fake_range {
    uint32_t first, end;
} fake_range;
double fake_error_of_kept(const fake *f, const fake_seq *s, const fake_range *range,
                          fake_keeps *keeps, const void *ctx);

/* The same bits at positions [first, end)? */
bool fake_same(const fake *f, const fake_seq *a, const fake_seq *b, uint32_t first, uint32_t end);

/* Fails the test if an invariant is broken. Paranoid builds have looked already, after every call; others,
 * where a sanitizer looks after memory and makes this walk slow, do so every eighth time. */
void fake_check(fake *f);

kv_stats fake_stats(const fake *f);

#endif
