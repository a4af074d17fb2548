/* model/model_fingerprint.c - see model_fingerprint.h. */
#include "model/model_fingerprint.h"

#include "base/hash.h"
#include "model/safetensors.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { PATH_BYTES = 4096, SAMPLE_BYTES = 4096 };

static void add(uint64_t *mark, const void *data, size_t bytes)
{
    static const hash_key key = {{0}}; /* public: nobody gains by a collision */
    const uint64_t parts[2] = {*mark, hash_bytes(&key, data, bytes).lo};
    *mark = hash_bytes(&key, parts, sizeof parts).lo;
}

static void add_tensor(uint64_t *mark, const tensor *t)
{
    const uint64_t facts[] = {t->type, t->n_dims, t->data_bytes};
    const uint8_t *data = t->data;
    const size_t n = t->data_bytes < SAMPLE_BYTES ? t->data_bytes : SAMPLE_BYTES;
    add(mark, t->name, strlen(t->name));
    add(mark, facts, sizeof facts);
    add(mark, t->shape, t->n_dims * sizeof t->shape[0]);
    if (n == 0) return;
    add(mark, data, n);
    add(mark, data + t->data_bytes - n, n);
}

static void add_tensors(uint64_t *mark, const tensor_files *files)
{
    for (size_t i = 0; i < tensor_count(files); i++)
        add_tensor(mark, tensor_at(files, i));
}

static void add_rope(uint64_t *mark, const rope_config *r)
{
    const uint64_t counts[] = {r->kind, r->n_rotated, r->n_original, r->is_range_exact};
    const float numbers[] = {r->theta,      r->factor,      r->low_freq,  r->high_freq,
                             r->beta_fast,  r->beta_slow,   r->cos_scale, r->mscale,
                             r->mscale_all, r->short_scale, r->long_scale};
    add(mark, counts, sizeof counts);
    add(mark, numbers, sizeof numbers);
    add(mark, r->short_factor, sizeof r->short_factor);
    add(mark, r->long_factor, sizeof r->long_factor);
}

/* Field by field: between the fields of a struct lies anything. */
static void add_config(uint64_t *mark, const model_config *c)
{
    const uint64_t counts[] = {c->n_layers,
                               c->d_model,
                               c->n_heads,
                               c->n_kv_heads,
                               c->head_dim,
                               c->v_dim,
                               c->n_vocab,
                               c->has_qkv_bias,
                               c->has_o_bias,
                               c->qk_norm,
                               c->window,
                               c->n_experts,
                               c->top_k,
                               c->d_ffn,
                               c->router,
                               c->renormalise_top_k,
                               c->d_shared_ffn,
                               c->is_shared_gated,
                               c->d_dense_ffn,
                               c->norm,
                               c->n_positions,
                               c->has_head_bias,
                               c->tied_embeddings,
                               c->stored_type,
                               c->quantisation.method,
                               c->quantisation.block_rows,
                               c->quantisation.block_cols};
    const uint64_t more[] = {c->is_rope_interleaved, c->latent.q_rank,   c->latent.kv_rank,
                             c->latent.nope_dim,     c->router_groups,   c->router_top_groups,
                             c->router_group_best,   c->has_choice_bias, c->activation};
    const float numbers[] = {c->qkv_limit,       c->attention_scale, c->router_scale,
                             c->router_jitter,   c->norm_eps,        c->embedding_scale,
                             c->residual_scale,  c->logits_divisor,  c->activation_alpha,
                             c->activation_limit};
    add(mark, c->family, strlen(c->family));
    add(mark, counts, sizeof counts);
    add(mark, more, sizeof more);
    add(mark, numbers, sizeof numbers);
    add(mark, &c->full_layers, sizeof c->full_layers);
    add(mark, &c->dense_layers, sizeof c->dense_layers);
    add_rope(mark, &c->rope);
}

static err_t add_bases(uint64_t *mark, const char *dir, err_info *info)
{
    char path[PATH_BYTES];
    tensor_files *files;
    if (snprintf(path, sizeof path, "%s/kv_bases.safetensors", dir) >= (int)sizeof path)
        return err_set(info, ERR_BAD_CONFIG, "model: the folder's name is too long");
    if (access(path, F_OK) != 0) return ERR_OK;
    TRY(tensor_file_open(path, &files, info));
    add_tensors(mark, files);
    tensor_files_close(files);
    return ERR_OK;
}

err_t model_fingerprint(const char *dir, model_load load, uint64_t *out, err_info *info)
{
    model_config config;
    tensor_files *files;
    uint64_t mark = 0;
    TRY(model_config_read(dir, &config, info));
    add_config(&mark, &config);
    TRY(add_bases(&mark, dir, info));
    if (load != MODEL_LOAD_DUMMY) {
        TRY(tensor_files_open(dir, &files, info));
        add_tensors(&mark, files);
        tensor_files_close(files);
    }
    *out = mark;
    return ERR_OK;
}
