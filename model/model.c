/* model/model.c - see model.h: opening, closing, queries. The arithmetic is in forward.c. */
#include "model/kv_bases.h"
#include "model/model_internal.h"

#include "base/check.h"

#include <stdlib.h>

/* ---- opening ------------------------------------------------------------------------------------- */

void model_follow_placement(model *m)
{
    const uint32_t n_experts = m->config.n_experts;
    for (uint32_t l = 0; l < m->config.n_layers; l++) {
        for (uint32_t e = 0; e < n_experts; e++)
            m->weights.is_read[(size_t)l * n_experts + e] =
                expert_placement_has(m->placement, l, e, m->rank);
    }
    if (m->d->memory == NULL) model_weights_hold(m->family, &m->config, &m->weights, true);
    atomic_store(&m->weight_bytes, model_weights_read_bytes(&m->config, &m->weights));
}

void model_send_placement(model *m)
{
    const expert_tables from = expert_placement_tables(m->placement);
    const expert_ranks *const to = &m->scratch.experts.first_layer;
    if (m->comm == NULL) return;
    dev_upload(m->d, (uint32_t *)(uintptr_t)to->first, from.first_layer.first,
               from.n_layers * (from.n_experts + (size_t)1) * sizeof *to->first);
    dev_upload(m->d, (uint16_t *)(uintptr_t)to->rank, from.first_layer.rank,
               (size_t)from.n_layers * from.n_slots * sizeof *to->rank);
}

static bool experts_may_move(const model_options *options)
{
    return options->experts != NULL && options->experts->strategy != EXPERTS_LINEAR;
}

/* Experts that move bring values that nobody has looked at here: then all are checked. */
static err_t check_values(model *m, const model_options *options, err_info *info)
{
    if (!options->check_values) return ERR_OK;
    return model_weights_check_values(m->d, m->family, &m->config, &m->weights, info);
}

static err_t load_weights(model *m, const char *dir, const model_options *options, err_info *info)
{
    if (options->load == MODEL_LOAD_DUMMY) {
        TRY(model_weights_dummy(m->d, m->family, &m->config, &m->weights, info));
    } else {
        TRY(model_weights_find(dir, m->family, &m->config, &m->weights, info));
        if (!experts_may_move(options)) model_follow_placement(m);
        TRY(model_weights_copy(m->family, &m->config, &m->weights, info));
        m->config.stored_type = m->weights.main_type;
        TRY(check_values(m, options, info));
        TRY(tensor_files_unchanged(m->weights.files, info));
    }
    model_follow_placement(m);
    return ERR_OK;
}

static err_t send_weights(model *m, const model_options *options, err_info *info)
{
    const device_weights_args args = {.family = m->family,
                                      .config = &m->config,
                                      .host = &m->weights,
                                      .all_experts = experts_may_move(options)};
    TRY(model_weights_to_device(m->d, &args, &m->device, info));
    if (m->d->memory != NULL) model_weights_hold(m->family, &m->config, &m->weights, false);
    return ERR_OK;
}

static err_t open_placement(model *m, const model_options *options, err_info *info)
{
    experts_config config = {0};
    const cfg_binding binding = {&experts_config_table, &config};
    const expert_placement_shape shape = {.n_layers = m->config.n_layers,
                                          .n_experts = m->config.n_experts,
                                          .n_ranks = m->comm != NULL ? comm_n_ranks(m->comm) : 1};
    TRY(cfg_defaults(&binding, 1));
    m->rank = m->comm != NULL ? comm_rank(m->comm) : 0;
    return expert_placement_open(options->experts != NULL ? options->experts : &config, &shape,
                                 &m->placement, info);
}

static err_t fill_tables(model *m, err_info *info)
{
    const model_config *const c = &m->config;
    m->inv_freq = malloc(c->rope.n_rotated / 2 * sizeof *m->inv_freq);
    m->kv_layer = calloc(c->n_layers, sizeof *m->kv_layer);
    if (m->inv_freq == NULL || m->kv_layer == NULL)
        return err_set(info, ERR_NO_MEMORY, "model: out of memory");
    m->rope = (kv_rope){.freq = m->inv_freq,
                        .n = c->rope.n_rotated,
                        .first = c->latent.kv_rank,
                        .is_interleaved = c->is_rope_interleaved,
                        .scale = rope_fill(&c->rope, c->n_positions, m->inv_freq)};
    for (uint32_t l = 0; l < c->n_layers; l++) {
        m->family->kv_layer(c, &m->weights, l, &m->kv_layer[l]);
        m->kv_layer[l].rope = &m->rope;
    }
    m->kv = (kv_shape){.n_layers = c->n_layers,
                       .layer = m->kv_layer,
                       .n_experts = c->n_experts,
                       .model_type = c->stored_type};
    return ERR_OK;
}

static err_t read_options(model *m, const model_options *options, err_info *info)
{
    assert(options->n_step_tokens_max > 0);
    m->n_step_tokens_max = options->n_step_tokens_max;
    m->comm = options->comm != NULL && comm_n_ranks(options->comm) > 1 ? options->comm : NULL;
    if (options->n_positions_max > m->config.n_positions)
        return err_set(info, ERR_BAD_CONFIG,
                       "%u positions are more than the model's max_position_embeddings %u",
                       options->n_positions_max, m->config.n_positions);
    if (options->n_positions_max > 0) m->config.n_positions = options->n_positions_max;
    return ERR_OK;
}

err_t model_open(dev *d, const char *dir, const model_options *options, model **out, err_info *info)
{
    *out = NULL;
    model *const m = calloc(1, sizeof *m);
    if (m == NULL) return err_set(info, ERR_NO_MEMORY, "model: out of memory");
    m->d = d;
    err_t err = model_config_read(dir, &m->config, info);
    if (err != ERR_OK) goto fail;
    m->family = model_family_find(m->config.family);
    assert(m->family != NULL); /* model_config_read knows no others */
    err = read_options(m, options, info);
    if (err != ERR_OK) goto fail;
    err = open_placement(m, options, info);
    if (err != ERR_OK) goto fail;
    err = load_weights(m, dir, options, info);
    if (err != ERR_OK) goto fail;
    assert(m->weights.n_params == m->config.n_params);
    err = fill_tables(m, info);
    if (err != ERR_OK) goto fail;
    err = model_kv_bases_load(dir, m->kv_layer, m->config.n_layers, &m->kv_bases, info);
    if (err != ERR_OK) goto fail;
    err = send_weights(m, options, info);
    if (err != ERR_OK) goto fail;
    err = model_scratch_alloc(m, info);
    if (err != ERR_OK) goto fail;
    *out = m;
    return ERR_OK;
fail:
    model_close(m);
    return err;
}

void model_close(model *m)
{
    if (m == NULL) return;
    model_scratch_free(m);
    model_weights_leave_device(m->d, &m->device);
    expert_placement_close(m->placement);
    model_weights_deinit(&m->weights);
    free(m->kv_layer);
    free(m->kv_bases);
    free(m->inv_freq);
    free(m);
}

/* ---- queries ------------------------------------------------------------------------------------- */

err_t model_status(const model *m, err_info *info)
{
    return dev_status(m->d, info);
}

const model_config *model_get_config(const model *m)
{
    return &m->config;
}

const kv_shape *model_get_kv_shape(const model *m)
{
    return &m->kv;
}

size_t model_weight_bytes(const model *m)
{
    return atomic_load(&m->weight_bytes);
}

size_t model_scratch_bytes(const model *m)
{
    return m->scratch_bytes;
}

void model_expert_stats(const model *m, expert_stats *out)
{
    expert_placement_stats(m->placement, out);
}

void model_touch_weights(model *m)
{
    model_weights_touch(m->d, m->family, &m->config, &m->weights);
}
