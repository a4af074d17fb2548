/* model/generation_config.h - how a model's makers sample: generation_config.json.
 *
 * The defaults of fields that a request leaves out, as vLLM takes them from there: temperature, top_p, top_k,
 * min_p and repetition_penalty; max_new_tokens bounds every output. do_sample is not looked at, as there: a
 * model with do_sample false and no temperature is sampled at 1, unless the request says 0. End tokens of the file
 * are read by model_config.h, always. */
#ifndef MODEL_GENERATION_CONFIG_H
#define MODEL_GENERATION_CONFIG_H

#include "base/error.h"

#include <stdbool.h>
#include <stdint.h>

enum { GENERATION_IGNORED_BYTES = 160 };

typedef struct generation_config {
    float temperature, top_p, min_p, repetition_penalty; /* 1, 1, 0, 1 unless the file says */
    uint32_t top_k;                                      /* 0: off */
    uint32_t n_output_max;                               /* max_new_tokens; UINT32_MAX: no bound */
    bool has_any;                                        /* the file says one of them */
    char ignored
        [GENERATION_IGNORED_BYTES]; /* keys that would change the output and are not applied: "a, b" */
} generation_config;

void generation_config_default(generation_config *out);

/* DIR/generation_config.json; the defaults without the file. ERR_BAD_MODEL: a value outside what a request may
 * say. */
err_t generation_config_read(const char *dir, generation_config *out, err_info *info) MUST_CHECK;

#endif
