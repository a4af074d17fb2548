/* tests/golden/golden_run.h - runs a fixture's prompts through model and cache, step by step.
 *
 * A track is one sequence: its tokens, how far it has come, and the logits of every position that was
 * computed. Tests choose how a step is made up of tracks; here a step is only carried out. Helpers
 * fail the running test themselves. */
#ifndef TESTS_GOLDEN_GOLDEN_RUN_H
#define TESTS_GOLDEN_GOLDEN_RUN_H

#include "kernels/dev_comm.h"
#include "kvcache/kv_cache.h"
#include "model/model.h"
#include "model/safetensors.h"

enum { GOLDEN_GREEDY_TOKENS = 64, GOLDEN_PROMPTS_MAX = 8, GOLDEN_STEP_TOKENS_MAX = 1024 };

typedef struct golden_setup {
    const char *fixture;   /* "mixtral-base-f32" */
    const char *model_dir; /* NULL: the fixture's; else only its prompts and references are used */
    model_load load;
    err_t (*open_dev)(const dev_config *config, dev **out, err_info *info); /* NULL: the CPU */
    const char *isa;
    uint32_t n_threads;
    kv_dtype cache_type;
    bool small_pages; /* window 8, sink 2, page_tokens 4; else the defaults */
    bool prefix_caching;
    const char *compression;     /* NULL: none; else pages of 8, a window of 8, sections of 32 */
    const char *const *settings; /* of the cache: name, value, name, value ..., NULL; or NULL */
    comm *comm;                  /* of model and cache; NULL: alone */
    const dev_comm_options *devices; /* how the ranks' devices come together; NULL: not */
    bool whole_cache;                /* every rank has all of it: comm is the model's */
    const experts_config *experts;
} golden_setup;

typedef struct golden {
    dev *d;
    model *m;
    kv_cache *cache;
    tensor_files *reference;
    uint32_t n_vocab, n_prompts;
} golden;

typedef struct track {
    golden *g;
    kv_seq *seq;
    uint32_t prompt;   /* N of pN */
    uint32_t n_prompt; /* tokens of the prompt */
    uint32_t n_tokens; /* known: the prompt, later the greedy ones too */
    uint32_t n_done;   /* computed or taken from the prefix cache */
    uint32_t n_cached;
    uint32_t *tokens; /* [n_prompt + GOLDEN_GREEDY_TOKENS] */
    float *
        logits; /* [n_prompt + GOLDEN_GREEDY_TOKENS][n_vocab]; rows n_cached .. n_done - 1 are valid */
} track;

void golden_open(const golden_setup *setup, golden *out);
void golden_close(golden *g);

void track_open(golden *g, uint32_t prompt, track *out);
void track_close(track *t);
/* Forgets what was computed: a fresh sequence, which may find its prefix in the cache. */
void track_restart(track *t);
const float *track_logits(const track *t, uint32_t position); /* [n_vocab] */

/* One step: tracks[i] computes n_tokens[i] of its known tokens, or as many as its sequence may (0: sits
 * out). */
void golden_step(track *const *tracks, const uint32_t *n_tokens, uint32_t n_tracks);

/* The prompt alone, `chunk` tokens at a time. */
void track_run_prompt(track *t, uint32_t chunk);
/* Appends the token of the largest logit of the last computed position. */
void track_add_greedy(track *t);

/* I32 tensor pN.NAME of the reference: its values, and how many. */
const int32_t *golden_ids(const golden *g, uint32_t prompt, const char *name, uint32_t *n);
/* F32 tensor pN.NAME. */
const float *golden_floats(const golden *g, uint32_t prompt, const char *name);

#endif
