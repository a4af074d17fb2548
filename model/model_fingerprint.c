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

/* Field by field: between the fields of a struct lies anything. */
static void add_config(uint64_t *mark, const model_config *c)
{
    const uint64_t counts[] = {c->n_layers,        c->d_model,
                               c->n_heads,         c->n_kv_heads,
                               c->head_dim,        c->n_vocab,
                               c->n_experts,       c->top_k,
                               c->d_ffn,           c->renormalise_top_k,
                               c->window,          c->n_positions,
                               c->tied_embeddings, (uint64_t)c->stored_type};
    const float numbers[] = {c->rope_theta, c->norm_eps};
    add(mark, c->family, strlen(c->family));
    add(mark, counts, sizeof counts);
    add(mark, numbers, sizeof numbers);
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
