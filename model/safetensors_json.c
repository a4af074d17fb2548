/* model/safetensors_json.c - checked tables from the JSON of .safetensors headers and indexes.
 *
 * Nothing in a header is believed. Numbers arrive as doubles, so they must be integral and small
 * enough to be exact; sizes are multiplied with overflow checks; the data areas, sorted by their
 * beginning, must cover the data without a hole (which could hide content) and without an overlap. */
#include "model/safetensors_header.h"

#include "base/check.h"
#include "model/checked_json.h"

#include <cjson/cJSON.h>
#include <stdlib.h>
#include <string.h>

enum {
    VALUES_PER_TENSOR_MAX = 16, /* name, dtype, shape, offsets: bounds the tree's memory */
    FILE_NAME_BYTES_MAX = 255,
    SHARDS_MAX = 4096
};

static const uint64_t dim_limits[2] = {0, UINT64_C(1) << 48};
static const uint64_t offset_limits[2] = {0, UINT64_C(1) << 53};

static const char *const index_file = "model.safetensors.index.json";

/* ---- one tensor ---------------------------------------------------------------------------------- */

static err_t read_type(const model_json_object *from, tensor *t)
{
    char shown[MODEL_JSON_SHOWN_BYTES];
    const cJSON *const item = model_json_member(from, "dtype");
    if (!cJSON_IsString(item))
        return err_set(from->info, ERR_BAD_MODEL,
                       "%s: tensor %.100s: dtype is missing or no string", from->file, t->name);
    for (tensor_type type = 0; type < TENSOR_TYPE_COUNT; type++) {
        if (strcmp(tensor_type_name(type), item->valuestring) == 0) {
            t->type = type;
            return ERR_OK;
        }
    }
    return err_set(from->info, ERR_BAD_MODEL, "%s: tensor %.100s: unknown dtype %s", from->file,
                   t->name, model_json_show(item, shown));
}

static err_t read_integer(const model_json_object *from, const tensor *t, const cJSON *item,
                          const uint64_t limits[2], uint64_t *out)
{
    char shown[MODEL_JSON_SHOWN_BYTES];
    const model_json_object quiet = {.file = from->file, .object = from->object};
    if (model_json_integer(&quiet, item, limits, out) == ERR_OK) return ERR_OK;
    return err_set(from->info, ERR_BAD_MODEL,
                   "%s: tensor %.100s: %s is not an integer in [%llu, %llu]", from->file, t->name,
                   model_json_show(item, shown), (unsigned long long)limits[0],
                   (unsigned long long)limits[1]);
}

static err_t read_shape(const model_json_object *from, tensor *t)
{
    const cJSON *const shape = model_json_member(from, "shape");
    if (!cJSON_IsArray(shape))
        return err_set(from->info, ERR_BAD_MODEL, "%s: tensor %.100s: shape is missing or no array",
                       from->file, t->name);
    size_t bytes = tensor_type_bytes(t->type);
    t->n_dims = 0;
    for (const cJSON *item = shape->child; item != NULL; item = item->next) {
        if (t->n_dims == TENSOR_DIMS_MAX)
            return err_set(from->info, ERR_BAD_MODEL, "%s: tensor %.100s: more than %d dimensions",
                           from->file, t->name, TENSOR_DIMS_MAX);
        uint64_t *const dim = &t->shape[t->n_dims++];
        TRY(read_integer(from, t, item, dim_limits, dim));
        if (size_mul(bytes, *dim, &bytes) != ERR_OK)
            return err_set(from->info, ERR_BAD_MODEL,
                           "%s: tensor %.100s: the size of its shape overflows", from->file,
                           t->name);
    }
    t->data_bytes = bytes;
    return ERR_OK;
}

static err_t read_offsets(const model_json_object *from, tensor_entry *entry, size_t data_bytes)
{
    const tensor *const t = &entry->view;
    const cJSON *const offsets = model_json_member(from, "data_offsets");
    if (!cJSON_IsArray(offsets) || cJSON_GetArraySize(offsets) != 2)
        return err_set(from->info, ERR_BAD_MODEL, "%s: tensor %.100s: data_offsets is not a pair",
                       from->file, t->name);
    uint64_t end;
    TRY(read_integer(from, t, offsets->child, offset_limits, &entry->begin));
    TRY(read_integer(from, t, offsets->child->next, offset_limits, &end));
    if (entry->begin > end)
        return err_set(from->info, ERR_BAD_MODEL,
                       "%s: tensor %.100s: data_offsets [%llu, %llu] run backwards", from->file,
                       t->name, (unsigned long long)entry->begin, (unsigned long long)end);
    if (end > data_bytes)
        return err_set(from->info, ERR_BAD_MODEL,
                       "%s: tensor %.100s: data ends at %llu of %zu bytes", from->file, t->name,
                       (unsigned long long)end, data_bytes);
    if (end - entry->begin != t->data_bytes)
        return err_set(from->info, ERR_BAD_MODEL,
                       "%s: tensor %.100s: shape and dtype need %zu bytes, data_offsets hold %llu",
                       from->file, t->name, t->data_bytes,
                       (unsigned long long)(end - entry->begin));
    return ERR_OK;
}

static err_t check_metadata(const model_json_object *from)
{
    if (!cJSON_IsObject(from->object))
        return err_set(from->info, ERR_BAD_MODEL, "%s: __metadata__ is not an object", from->file);
    for (const cJSON *item = from->object->child; item != NULL; item = item->next) {
        if (!cJSON_IsString(item))
            return err_set(from->info, ERR_BAD_MODEL, "%s: __metadata__: %.80s is not a string",
                           from->file, item->string);
    }
    return ERR_OK;
}

/* ---- the header ---------------------------------------------------------------------------------- */

static bool is_metadata(const cJSON *item)
{
    return strcmp(item->string, "__metadata__") == 0;
}

/* Room for the entries and their names. */
static err_t alloc_table(const tensor_header *header, const cJSON *root, tensor_table *table,
                         err_info *info)
{
    size_t n_entries = 0, name_bytes = 0;
    for (const cJSON *item = root->child; item != NULL; item = item->next) {
        if (is_metadata(item)) continue;
        n_entries++;
        name_bytes += strlen(item->string) + 1;
    }
    if (n_entries > TENSORS_MAX)
        return err_set(info, ERR_BAD_MODEL, "%s: %zu tensors are more than %d", header->file,
                       n_entries, TENSORS_MAX);
    table->entry = calloc(n_entries + 1, sizeof *table->entry); /* + 1: calloc(0) may answer NULL */
    table->names = malloc(name_bytes + 1);
    if (table->entry == NULL || table->names == NULL)
        return err_set(info, ERR_NO_MEMORY, "%s: out of memory", header->file);
    table->n_entries = n_entries;
    return ERR_OK;
}

static err_t fill_table(const tensor_header *header, const cJSON *root, tensor_table *table,
                        err_info *info)
{
    char *name = table->names;
    tensor_entry *entry = table->entry;
    for (const cJSON *item = root->child; item != NULL; item = item->next) {
        const model_json_object from = {.file = header->file, .object = item, .info = info};
        if (is_metadata(item)) {
            TRY(check_metadata(&from));
            continue;
        }
        entry->view.name = strcpy(name, item->string);
        name += strlen(name) + 1;
        if (!cJSON_IsObject(item))
            return err_set(info, ERR_BAD_MODEL, "%s: tensor %.100s: not an object", header->file,
                           entry->view.name);
        TRY(read_type(&from, &entry->view));
        TRY(read_shape(&from, &entry->view));
        TRY(read_offsets(&from, entry, header->data_bytes));
        entry++;
    }
    return ERR_OK;
}

/* By beginning, then by end, so that empty tensors stand before the one that begins where they lie. */
static int compare_entries(const void *a, const void *b)
{
    const tensor_entry *const x = a, *const y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    if (x->view.data_bytes != y->view.data_bytes)
        return x->view.data_bytes < y->view.data_bytes ? -1 : 1;
    return strcmp(x->view.name, y->view.name);
}

static err_t check_cover(const tensor_header *header, const tensor_table *table, err_info *info)
{
    uint64_t end = 0;
    for (size_t i = 0; i < table->n_entries; i++) {
        const tensor_entry *const entry = &table->entry[i];
        if (entry->begin != end)
            return err_set(info, ERR_BAD_MODEL,
                           "%s: tensor %.100s: data begins at %llu, which leaves %s at %llu",
                           header->file, entry->view.name, (unsigned long long)entry->begin,
                           entry->begin > end ? "a hole" : "an overlap", (unsigned long long)end);
        end += entry->view.data_bytes;
    }
    if (end != header->data_bytes)
        return err_set(info, ERR_BAD_MODEL,
                       "%s: tensors end at %llu, the data at %zu: a hole at the end", header->file,
                       (unsigned long long)end, header->data_bytes);
    return ERR_OK;
}

/* cJSON takes any white space after the object; the format allows spaces alone. */
static err_t check_frame(const tensor_header *header, err_info *info)
{
    if (header->n_bytes > TENSOR_HEADER_BYTES_MAX)
        return err_set(info, ERR_BAD_MODEL, "%s: a header of %zu bytes is longer than %d",
                       header->file, header->n_bytes, TENSOR_HEADER_BYTES_MAX);
    if (header->n_bytes == 0 || header->text[0] != '{')
        return err_set(info, ERR_BAD_MODEL, "%s: the header does not begin with '{'", header->file);
    size_t n = header->n_bytes;
    while (n > 0 && header->text[n - 1] == ' ')
        n--;
    if (header->text[n - 1] != '}')
        return err_set(info, ERR_BAD_MODEL, "%s: the header does not end with '}' and spaces",
                       header->file);
    return ERR_OK;
}

err_t tensor_table_parse(const tensor_header *header, tensor_table *out, err_info *info)
{
    *out = (tensor_table){0};
    TRY(check_frame(header, info));
    const model_json_text source = {.file = header->file,
                                    .text = header->text,
                                    .n_bytes = header->n_bytes,
                                    .n_values_max = (size_t)TENSORS_MAX * VALUES_PER_TENSOR_MAX};
    cJSON *root;
    TRY(model_json_parse(&source, &root, info));
    err_t err = alloc_table(header, root, out, info);
    if (err == ERR_OK) err = fill_table(header, root, out, info);
    cJSON_Delete(root);
    if (err == ERR_OK) {
        qsort(out->entry, out->n_entries, sizeof *out->entry, compare_entries);
        err = check_cover(header, out, info);
    }
    if (err != ERR_OK) tensor_table_deinit(out);
    return err;
}

void tensor_table_deinit(tensor_table *table)
{
    free(table->entry);
    free(table->names);
    *table = (tensor_table){0};
}

err_t tensor_header_check(const char *header, size_t header_bytes, size_t data_bytes,
                          err_info *info)
{
    const tensor_header h = {
        .file = "header", .text = header, .n_bytes = header_bytes, .data_bytes = data_bytes};
    tensor_table table;
    const err_t err = tensor_table_parse(&h, &table, info);
    tensor_table_deinit(&table);
    return err;
}

/* ---- the index ----------------------------------------------------------------------------------- */

/* A name inside the model's folder: no separator, no "." or "..", nothing hidden. */
static bool is_plain_file_name(const char *name)
{
    return name[0] != '\0' && name[0] != '.' && strchr(name, '/') == NULL &&
           strchr(name, '\\') == NULL && strlen(name) <= FILE_NAME_BYTES_MAX;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int compare_rows(const void *a, const void *b)
{
    return strcmp(((const tensor_index_row *)a)->tensor, ((const tensor_index_row *)b)->tensor);
}

/* The distinct file names, sorted, into index->shard. */
static err_t collect_shards(const cJSON *map, tensor_index *index, err_info *info)
{
    size_t n = 0;
    for (const cJSON *item = map->child; item != NULL; item = item->next) {
        char shown[MODEL_JSON_SHOWN_BYTES];
        if (!cJSON_IsString(item) || !is_plain_file_name(item->valuestring))
            return err_set(info, ERR_BAD_MODEL, "%s: tensor %.80s: %s is not a plain file name",
                           index_file, item->string, model_json_show(item, shown));
        index->shard[n++] = item->valuestring;
    }
    qsort(index->shard, n, sizeof *index->shard, compare_names);
    for (size_t i = 0; i < n; i++) {
        if (index->n_shards > 0 && strcmp(index->shard[index->n_shards - 1], index->shard[i]) == 0)
            continue;
        index->shard[index->n_shards++] = index->shard[i];
    }
    if (index->n_shards > SHARDS_MAX)
        return err_set(info, ERR_BAD_MODEL, "%s: %zu files are more than %d", index_file,
                       index->n_shards, SHARDS_MAX);
    return ERR_OK;
}

static err_t fill_index(const cJSON *map, tensor_index *index, err_info *info)
{
    const size_t n_rows = (size_t)cJSON_GetArraySize(map);
    if (n_rows == 0 || n_rows > TENSORS_MAX)
        return err_set(info, ERR_BAD_MODEL, "%s: weight_map has %zu tensors, outside [1, %d]",
                       index_file, n_rows, TENSORS_MAX);
    index->row = malloc(n_rows * sizeof *index->row);
    index->shard = malloc(n_rows * sizeof *index->shard);
    if (index->row == NULL || index->shard == NULL)
        return err_set(info, ERR_NO_MEMORY, "%s: out of memory", index_file);
    TRY(collect_shards(map, index, info));
    for (const cJSON *item = map->child; item != NULL; item = item->next) {
        const char *const name = item->valuestring;
        const char **const at =
            bsearch(&name, index->shard, index->n_shards, sizeof *index->shard, compare_names);
        assert(at != NULL);
        index->row[index->n_rows++] =
            (tensor_index_row){.tensor = item->string, .shard = (uint32_t)(at - index->shard)};
    }
    qsort(index->row, index->n_rows, sizeof *index->row, compare_rows);
    return ERR_OK;
}

err_t tensor_index_read(const char *dir, tensor_index *out, err_info *info)
{
    *out = (tensor_index){0};
    cJSON *root;
    TRY(model_json_read(dir, index_file, &root, info));
    out->tree = root;
    const cJSON *const map = cJSON_GetObjectItemCaseSensitive(root, "weight_map");
    err_t err = ERR_OK;
    if (!cJSON_IsObject(map))
        err = err_set(info, ERR_BAD_MODEL, "%s: weight_map is missing or no object", index_file);
    if (err == ERR_OK) err = fill_index(map, out, info);
    if (err != ERR_OK) tensor_index_deinit(out);
    return err;
}

void tensor_index_deinit(tensor_index *index)
{
    free(index->row);
    free(index->shard);
    cJSON_Delete(index->tree);
    *index = (tensor_index){0};
}
