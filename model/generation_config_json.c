/* model/generation_config_json.c - see generation_config.h. */
#include "model/generation_config.h"

#include "model/checked_json.h"

#include <cjson/cJSON.h>
#include <stdio.h>
#include <string.h>

static const char *const generation_file = "generation_config.json";

void generation_config_default(generation_config *out)
{
    *out = (generation_config){
        .temperature = 1, .top_p = 1, .repetition_penalty = 1, .n_output_max = UINT32_MAX};
}

/* Limits are those of a request's fields. */
static err_t read_numbers(const model_json_object *from, generation_config *out)
{
    const struct {
        const char *key;
        double limits[2];
        float *value;
    } reals[] = {{"temperature", {0, 2}, &out->temperature},
                 {"top_p", {0, 1}, &out->top_p},
                 {"min_p", {0, 1}, &out->min_p},
                 {"repetition_penalty", {1e-6, 100}, &out->repetition_penalty}};
    for (size_t i = 0; i < sizeof reals / sizeof reals[0]; i++) {
        if (model_json_member(from, reals[i].key) == NULL) continue;
        TRY(model_json_real(from, reals[i].key, reals[i].limits, reals[i].value));
        out->has_any = true;
    }
    const struct {
        const char *key;
        uint32_t limits[2];
        uint32_t *value;
    } counts[] = {{"top_k", {0, INT32_MAX}, &out->top_k},
                  {"max_new_tokens", {1, INT32_MAX}, &out->n_output_max}};
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        const cJSON *const value = model_json_member(from, counts[i].key);
        if (value == NULL) continue;
        if (i == 0 && cJSON_IsNumber(value) && value->valuedouble == -1.0) continue; /* off */
        TRY(model_json_u32(from, counts[i].key, counts[i].limits, counts[i].value));
        out->has_any = true;
    }
    return ERR_OK;
}

/* The value that changes nothing, by key; absent, null, false and empty lists never do. */
static const struct {
    const char *key;
    double neutral;
} inert[] = {{"num_beams", 1},
             {"num_beam_groups", 1},
             {"penalty_alpha", 0},
             {"typical_p", 1},
             {"epsilon_cutoff", 0},
             {"eta_cutoff", 0},
             {"top_h", 0},
             {"diversity_penalty", 0},
             {"length_penalty", 1},
             {"no_repeat_ngram_size", 0},
             {"min_length", 0},
             {"min_new_tokens", 0},
             {"bad_words_ids", 0},
             {"force_words_ids", 0},
             {"forced_bos_token_id", -1},
             {"forced_eos_token_id", -1},
             {"suppress_tokens", 0},
             {"begin_suppress_tokens", 0},
             {"sequence_bias", 0},
             {"stop_strings", 0},
             {"guidance_scale", 1},
             {"exponential_decay_length_penalty", 0},
             {"encoder_repetition_penalty", 1},
             {"dola_layers", 0},
             {"watermarking_config", 0}};

static bool changes_output(const cJSON *value, double neutral)
{
    if (value == NULL || cJSON_IsNull(value) || cJSON_IsFalse(value)) return false;
    if (cJSON_IsNumber(value)) return value->valuedouble != neutral;
    if (cJSON_IsArray(value) || cJSON_IsObject(value)) return value->child != NULL;
    return true;
}

static void note(generation_config *out, const char *key)
{
    const size_t n = strlen(out->ignored);
    (void)snprintf(out->ignored + n, sizeof out->ignored - n, "%s%s", n > 0 ? ", " : "", key);
}

static void note_ignored(const model_json_object *from, generation_config *out)
{
    for (size_t i = 0; i < sizeof inert / sizeof inert[0]; i++) {
        const cJSON *const value = model_json_member(from, inert[i].key);
        if (changes_output(value, inert[i].neutral)) note(out, inert[i].key);
    }
    const cJSON *const samples = model_json_member(from, "do_sample");
    const bool is_greedy = cJSON_IsFalse(samples) && out->temperature > 0;
    if (is_greedy) note(out, "do_sample=false");
}

err_t generation_config_read(const char *dir, generation_config *out, err_info *info)
{
    cJSON *root;
    generation_config_default(out);
    err_t err = model_json_read(dir, generation_file, &root, info);
    if (err == ERR_NOT_FOUND) return ERR_OK;
    TRY(err);
    const model_json_object from = {.file = generation_file, .object = root, .info = info};
    err = read_numbers(&from, out);
    if (err == ERR_OK) note_ignored(&from, out);
    cJSON_Delete(root);
    return err;
}
