/* model/kv_bases.c - see kv_bases.h. Two walks over the file: the first checks and counts, the second copies. */
#include "model/kv_bases.h"

#include "base/check.h"
#include "model/safetensors.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PATH_BYTES = 4096 };
static const char *const FILE_NAME = "kv_bases.safetensors";

typedef struct walk {
    const tensor_files *files;
    err_info *info;
    float *values;   /* NULL while counting */
    size_t n_values; /* counted, or copied */
} walk;

typedef struct place {
    const char *codec;
    uint32_t layer;
    char side; /* 'k' or 'v' */
    uint32_t n_kv_heads, dim;
} place;

/* One matrix of a side; what is in the file was compared with its shape by the reader. */
static err_t find_matrix(const walk *w, const place *at, const char *which, const tensor **out)
{
    char name[64];
    (void)snprintf(name, sizeof name, "%s.%u.%c_%s", at->codec, at->layer, at->side, which);
    const tensor *t = *out = tensor_find(w->files, name);
    if (t == NULL) return err_set(w->info, ERR_BAD_MODEL, "%s: %s is missing", FILE_NAME, name);
    if (t->type != TENSOR_F32)
        return err_set(w->info, ERR_BAD_MODEL, "%s: %s is %s, not F32", FILE_NAME, name,
                       tensor_type_name(t->type));
    if (t->n_dims != 3 || t->shape[0] != at->n_kv_heads || t->shape[2] != at->dim)
        return err_set(w->info, ERR_BAD_MODEL, "%s: %s is not [%u][rank][%u]", FILE_NAME, name,
                       at->n_kv_heads, at->dim);
    if (t->shape[1] < 1 || t->shape[1] > at->dim)
        return err_set(w->info, ERR_BAD_MODEL, "%s: %s has rank %llu, outside [1, %u]", FILE_NAME,
                       name, (unsigned long long)t->shape[1], at->dim);
    for (size_t i = 0; i < t->data_bytes / sizeof(float); i++) {
        float x;
        memcpy(&x, (const char *)t->data + i * sizeof x, sizeof x);
        if (!isfinite(x))
            return err_set(w->info, ERR_BAD_MODEL, "%s: %s: element %zu is not finite", FILE_NAME,
                           name, i);
    }
    return ERR_OK;
}

static const float *take_values(walk *w, const tensor *t)
{
    float *to = w->values != NULL ? w->values + w->n_values : NULL;
    if (to != NULL) memcpy(to, t->data, t->data_bytes);
    w->n_values += t->data_bytes / sizeof(float);
    return to;
}

static err_t read_side(walk *w, const place *at, kv_basis *out)
{
    const tensor *down, *up;
    TRY(find_matrix(w, at, "down", &down));
    TRY(find_matrix(w, at, "up", &up));
    if (down->shape[1] != up->shape[1])
        return err_set(w->info, ERR_BAD_MODEL, "%s: %s.%u.%c_down has rank %llu, %c_up %llu",
                       FILE_NAME, at->codec, at->layer, at->side,
                       (unsigned long long)down->shape[1], at->side,
                       (unsigned long long)up->shape[1]);
    out->rank = (uint32_t)down->shape[1];
    out->down = take_values(w, down);
    out->up = take_values(w, up);
    return ERR_OK;
}

static err_t read_bases(walk *w, const char *codec, uint32_t layer, const kv_layer_shape *shape,
                        kv_bases *out)
{
    const place k = {codec, layer, 'k', shape->n_kv_heads, shape->k_dim};
    const place v = {codec, layer, 'v', shape->n_kv_heads, shape->v_dim};
    TRY(read_side(w, &k, &out->k));
    return read_side(w, &v, &out->v);
}

static bool has_codec(const tensor_files *files, const char *codec)
{
    const size_t n = strlen(codec);
    for (size_t i = 0; i < tensor_count(files); i++) {
        const char *name = tensor_at(files, i)->name;
        if (strncmp(name, codec, n) == 0 && name[n] == '.') return true;
    }
    return false;
}

static err_t read_all(walk *w, kv_layer_shape *layers, uint32_t n_layers)
{
    const bool has_lora = has_codec(w->files, "lora"), has_plus = has_codec(w->files, "lora_plus");
    w->n_values = 0;
    for (uint32_t l = 0; l < n_layers; l++) {
        if (has_lora) TRY(read_bases(w, "lora", l, &layers[l], &layers[l].lora));
        if (has_plus) TRY(read_bases(w, "lora_plus", l, &layers[l], &layers[l].lora_plus));
    }
    return ERR_OK;
}

static err_t copy_all(walk *w, kv_layer_shape *layers, uint32_t n_layers)
{
    TRY(read_all(w, layers, n_layers));
    size_t bytes;
    TRY(size_mul(w->n_values, sizeof *w->values, &bytes));
    w->values = malloc(bytes);
    if (bytes > 0 && w->values == NULL)
        return err_set(w->info, ERR_NO_MEMORY, "%s: no memory for %zu bytes", FILE_NAME, bytes);
    TRY(read_all(w, layers, n_layers));
    return tensor_files_unchanged(w->files, w->info);
}

err_t model_kv_bases_load(const char *dir, kv_layer_shape *layers, uint32_t n_layers,
                          float **values, err_info *info)
{
    char path[PATH_BYTES];
    tensor_files *files;
    *values = NULL;
    const int n = snprintf(path, sizeof path, "%s/%s", dir, FILE_NAME);
    if (n < 0 || (size_t)n >= sizeof path)
        return err_set(info, ERR_BAD_ARGUMENT, "%s: the path is too long", FILE_NAME);
    if (access(path, F_OK) != 0) return ERR_OK;
    TRY(tensor_file_open(path, &files, info));
    walk w = {.files = files, .info = info};
    const err_t err = copy_all(&w, layers, n_layers);
    tensor_files_close(files);
    *values = w.values;
    return err;
}
