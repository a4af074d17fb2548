/* model/model.h - a mixture-of-experts transformer: files in, logits out.
 *
 * The forward pass of a batch is ragged: rows of several sequences, each with any number of tokens
 * (one while decoding, a chunk of the prompt before). Results do not depend on the batch or the cut: every
 * op is batch-invariant, and attention has a canonical order (kvcache/kv_cache.h). What differs between
 * families is data from config.json plus one family_*.c (model/family.h).
 *
 * Over ranks (a comm in model_options, the same one in the cache's kv_config) every rank runs the same
 * batch. Each rank has some of a layer's experts, perhaps none (model/expert_placement.h); the sums of all
 * are added in rank order. The rest is computed by every rank, to the same bits if they have the same
 * instruction set. A failure of the comm leaves hidden states that are worthless: see comm_status after a
 * step. So does one of the device: see model_status.
 *
 * On a device with memory of its own (kernels/dev.h) weights are copied there once, and the cache has a copy of what
 * attention reads (kvcache/device_view.h); the routers' choices come to the host behind the last layer, over ranks in
 * every one.
 *
 * Threads: one owner calls forward and logits; the const queries may be called by any thread.
 * Memory: weights are mapped and used in place; scratch is allocated in model_open for
 * n_step_tokens_max tokens and never grows. */
#ifndef MODEL_MODEL_H
#define MODEL_MODEL_H

#include "base/error.h"
#include "kernels/comm.h"
#include "kernels/dev.h"
#include "kvcache/kv_cache.h"
#include "model/expert_placement.h"
#include "model/model_config.h"
#include "model/sampler.h"

typedef struct model model;

typedef enum model_load { MODEL_LOAD_AUTO, MODEL_LOAD_SAFETENSORS, MODEL_LOAD_DUMMY } model_load;

typedef struct model_options {
    model_load load; /* dummy: fixed pseudo-random weights of config.json's shape and type */
    uint32_t n_step_tokens_max; /* tokens of one forward pass */
    uint32_t n_positions_max;   /* 0: the config's; larger than it is ERR_BAD_CONFIG */
    bool check_values;          /* read every tensor once and refuse NaN and Inf (--check) */
    comm *comm; /* ranks that share the experts; host memory; NULL: alone. Borrowed */
    const experts_config *experts; /* the same on all ranks; NULL: the defaults. Copied */
} model_options;

enum {
    MODEL_LOGIT_ROWS_MAX = 64, /* rows of one model_logits call: bounds its memory */
    MODEL_ROW_EDITS_MAX =
        4096 /* biased, banned and penalized tokens of a row drawn by the device */
};

err_t model_open(dev *d, const char *dir, const model_options *options, model **out,
                 err_info *info) MUST_CHECK;
void model_close(model *m); /* NULL is fine */

const model_config *model_get_config(const model *m);
const kv_shape *model_get_kv_shape(const model *m); /* borrowed; what kv_cache_open takes */
size_t model_weight_bytes(const model *m);          /* that this rank reads, as experts lie now */
size_t model_scratch_bytes(const model *m);
void model_touch_weights(model *m); /* reads every page of these once: warm-up before ready */

/* What the experts of all ranks have computed. For the owner, between forwards. */
void model_expert_stats(const model *m, expert_stats *out);

typedef struct model_batch {
    const uint32_t *tokens;    /* [n_tokens], each < n_vocab */
    const uint32_t *positions; /* [n_tokens] */
    uint32_t n_tokens;         /* <= n_step_tokens_max */
    /* May be NULL. Router's choices of every layer and token, in batch order, for the counters. */
    void (*on_experts)(void *ctx, uint32_t layer, const uint32_t *chosen, uint32_t n_tokens,
                       uint32_t top_k);
    void *on_experts_ctx;
} model_batch;

/* Runs all layers between kv_step_begin and kv_step_end; leaves the hidden states inside,
 * where model_logits finds them until the next forward. */
void model_forward(model *m, kv_cache *cache, const model_batch *batch);

/* The first failure of the device; all that was computed since is worthless. Over ranks model_forward aborts the
 * comm then, so that none goes on. */
err_t model_status(const model *m, err_info *info) MUST_CHECK;

/* Logits of chosen tokens of the last forward: rows[i] is a token's index in the batch. n_rows <=
 * MODEL_LOGIT_ROWS_MAX; logits [n_rows][n_vocab]. */
void model_logits(model *m, const uint32_t *rows, uint32_t n_rows, float *logits);

/* What is wanted of a row: a draw, or its logits. */
typedef struct model_draw {
    const sampler_params *params; /* NULL: the logits */
    const sampler_state *state;
    sampler_input in; /* but for its memory */
    bool is_drawn;    /* out: there is a result; else there are logits, to draw from or to read */
} model_draw;

/* The same, but rows that the device can draw from stay there: their results come instead. Which they are is nobody
 * else's matter: the device, and the draw itself. results [n_rows] */
void model_sample(model *m, const uint32_t *rows, uint32_t n_rows, model_draw *draws, float *logits,
                  sampler_result *results);

#endif
