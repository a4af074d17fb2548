/* model/safetensors.c - see safetensors.h.
 *
 * A shard is one mapped file. All entries of all shards stand in one array, sorted by name; that
 * order finds tensors by binary search and shows names that two files claim. Descriptors stay open,
 * so that tensor_files_unchanged looks at the files that are mapped, whatever their names mean by
 * then. */
#include "model/safetensors_header.h"

#include "base/check.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { LENGTH_BYTES = 8, PATH_BYTES_MAX = 4096 };

typedef struct shard {
    int fd;
    const uint8_t *map; /* NULL until mapped */
    struct stat stat;   /* when it was opened */
    tensor_table table; /* entries are moved out; the names stay here */
    char name[256];     /* for messages */
} shard;

struct tensor_files {
    shard *shard; /* [n_shards] */
    size_t n_shards;
    tensor_entry *entry; /* [n_entries], sorted by name */
    size_t n_entries;
    size_t data_bytes;
};

static const struct {
    const char *name;
    uint32_t bytes;
} types[TENSOR_TYPE_COUNT] = {
    [TENSOR_BOOL] = {"BOOL", 1},       [TENSOR_U8] = {"U8", 1},
    [TENSOR_I8] = {"I8", 1},           [TENSOR_F8_E4M3] = {"F8_E4M3", 1},
    [TENSOR_F8_E5M2] = {"F8_E5M2", 1}, [TENSOR_I16] = {"I16", 2},
    [TENSOR_U16] = {"U16", 2},         [TENSOR_F16] = {"F16", 2},
    [TENSOR_BF16] = {"BF16", 2},       [TENSOR_I32] = {"I32", 4},
    [TENSOR_U32] = {"U32", 4},         [TENSOR_F32] = {"F32", 4},
    [TENSOR_I64] = {"I64", 8},         [TENSOR_U64] = {"U64", 8},
    [TENSOR_F64] = {"F64", 8},
};

uint32_t tensor_type_bytes(tensor_type type)
{
    assert(type < TENSOR_TYPE_COUNT);
    return types[type].bytes;
}

const char *tensor_type_name(tensor_type type)
{
    assert(type < TENSOR_TYPE_COUNT);
    return types[type].name;
}

/* ---- one file ------------------------------------------------------------------------------------ */

static uint64_t read_length(const uint8_t *bytes)
{
    uint64_t n = 0;
    for (int i = LENGTH_BYTES; i-- > 0;)
        n = n << 8 | bytes[i];
    return n;
}

static err_t map_shard(shard *s, err_info *info)
{
    if (fstat(s->fd, &s->stat) != 0)
        return err_set(info, ERR_IO, "%s: %s", s->name, strerror(errno));
    if (!S_ISREG(s->stat.st_mode))
        return err_set(info, ERR_BAD_MODEL, "%s: not a regular file", s->name);
    if (s->stat.st_size < LENGTH_BYTES)
        return err_set(info, ERR_BAD_MODEL, "%s: %lld bytes are too few for a header length",
                       s->name, (long long)s->stat.st_size);
    void *const map = mmap(NULL, (size_t)s->stat.st_size, PROT_READ, MAP_SHARED, s->fd, 0);
    if (map == MAP_FAILED)
        return err_set(info, ERR_IO, "%s: cannot map: %s", s->name, strerror(errno));
    s->map = map;
    return ERR_OK;
}

static err_t parse_shard(shard *s, err_info *info)
{
    const uint64_t rest_bytes = (uint64_t)s->stat.st_size - LENGTH_BYTES;
    const uint64_t header_bytes = read_length(s->map);
    if (header_bytes > TENSOR_HEADER_BYTES_MAX)
        return err_set(info, ERR_BAD_MODEL, "%s: a header length of %llu is more than %d", s->name,
                       (unsigned long long)header_bytes, TENSOR_HEADER_BYTES_MAX);
    if (header_bytes > rest_bytes)
        return err_set(info, ERR_BAD_MODEL,
                       "%s: a header length of %llu reaches beyond the file's %llu bytes", s->name,
                       (unsigned long long)header_bytes, (unsigned long long)s->stat.st_size);
    const tensor_header header = {.file = s->name,
                                  .text = (const char *)s->map + LENGTH_BYTES,
                                  .n_bytes = (size_t)header_bytes,
                                  .data_bytes = (size_t)(rest_bytes - header_bytes)};
    TRY(tensor_table_parse(&header, &s->table, info));
    for (size_t i = 0; i < s->table.n_entries; i++) {
        tensor_entry *const entry = &s->table.entry[i];
        entry->view.data = s->map + LENGTH_BYTES + header_bytes + entry->begin;
    }
    return ERR_OK;
}

/* Opens and checks one file. ERR_NOT_FOUND, without a message, if there is none. */
static err_t open_shard(const char *path, shard *s, err_info *info)
{
    const char *const slash = strrchr(path, '/');
    (void)snprintf(s->name, sizeof s->name, "%.255s", slash != NULL ? slash + 1 : path);
    s->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not block us */
    if (s->fd < 0 && (errno == ENOENT || errno == ENOTDIR)) return ERR_NOT_FOUND;
    if (s->fd < 0) return err_set(info, ERR_IO, "%s: %s", s->name, strerror(errno));
    TRY(map_shard(s, info));
    return parse_shard(s, info);
}

static void close_shard(shard *s)
{
    tensor_table_deinit(&s->table);
    if (s->map != NULL) munmap((void *)(uintptr_t)s->map, (size_t)s->stat.st_size);
    if (s->fd >= 0) close(s->fd);
}

/* ---- all files ----------------------------------------------------------------------------------- */

static err_t alloc_files(size_t n_shards, tensor_files **out, err_info *info)
{
    tensor_files *const files = calloc(1, sizeof *files);
    if (files != NULL) files->shard = calloc(n_shards, sizeof *files->shard);
    if (files == NULL || files->shard == NULL) {
        free(files);
        return err_set(info, ERR_NO_MEMORY, "safetensors: out of memory");
    }
    files->n_shards = n_shards;
    for (size_t i = 0; i < n_shards; i++)
        files->shard[i].fd = -1;
    *out = files;
    return ERR_OK;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(((const tensor_entry *)a)->view.name, ((const tensor_entry *)b)->view.name);
}

/* Moves the entries of all shards into one sorted array. */
static err_t merge_shards(tensor_files *files, err_info *info)
{
    size_t n_entries = 0;
    for (size_t i = 0; i < files->n_shards; i++)
        n_entries += files->shard[i].table.n_entries;
    files->entry = calloc(n_entries + 1, sizeof *files->entry);
    if (files->entry == NULL) return err_set(info, ERR_NO_MEMORY, "safetensors: out of memory");
    for (size_t i = 0; i < files->n_shards; i++) {
        tensor_table *const table = &files->shard[i].table;
        for (size_t j = 0; j < table->n_entries; j++) {
            table->entry[j].shard = (uint32_t)i;
            files->data_bytes += table->entry[j].view.data_bytes;
            files->entry[files->n_entries++] = table->entry[j];
        }
        free(table->entry);
        table->entry = NULL;
        table->n_entries = 0;
    }
    qsort(files->entry, files->n_entries, sizeof *files->entry, compare_names);
    return ERR_OK;
}

err_t tensor_files_unchanged(const tensor_files *files, err_info *info)
{
    for (size_t i = 0; i < files->n_shards; i++) {
        const shard *const s = &files->shard[i];
        struct stat now;
        if (fstat(s->fd, &now) != 0)
            return err_set(info, ERR_IO, "%s: %s", s->name, strerror(errno));
        if (now.st_size != s->stat.st_size || now.st_mtim.tv_sec != s->stat.st_mtim.tv_sec ||
            now.st_mtim.tv_nsec != s->stat.st_mtim.tv_nsec)
            return err_set(info, ERR_IO, "%s: the file has changed while it was read", s->name);
    }
    return ERR_OK;
}

/* One walk over both sorted lists: they must name the same tensors in the same files. */
static err_t compare_with_index(const tensor_files *files, const tensor_index *index,
                                err_info *info)
{
    size_t i = 0, j = 0;
    while (i < files->n_entries || j < index->n_rows) {
        const tensor_entry *const entry = i < files->n_entries ? &files->entry[i] : NULL;
        const tensor_index_row *const row = j < index->n_rows ? &index->row[j] : NULL;
        const int order = entry == NULL ? 1
                          : row == NULL ? -1
                                        : strcmp(entry->view.name, row->tensor);
        if (order < 0)
            return err_set(info, ERR_BAD_MODEL,
                           "%s: tensor %.100s is not where the index has it, or twice there",
                           files->shard[entry->shard].name, entry->view.name);
        if (order > 0)
            return err_set(info, ERR_BAD_MODEL,
                           "%s: tensor %.100s, which the index names, is missing",
                           index->shard[row->shard], row->tensor);
        if (entry->shard != row->shard)
            return err_set(info, ERR_BAD_MODEL, "%s: tensor %.100s: the index places it in %.80s",
                           files->shard[entry->shard].name, entry->view.name,
                           index->shard[row->shard]);
        i++;
        j++;
    }
    return ERR_OK;
}

static err_t open_indexed(const char *dir, const tensor_index *index, tensor_files *files,
                          err_info *info)
{
    for (size_t i = 0; i < index->n_shards; i++) {
        char path[PATH_BYTES_MAX];
        const int n = snprintf(path, sizeof path, "%s/%s", dir, index->shard[i]);
        if (n < 0 || (size_t)n >= sizeof path)
            return err_set(info, ERR_IO, "%s: the path is too long", index->shard[i]);
        const err_t err = open_shard(path, &files->shard[i], info);
        if (err == ERR_NOT_FOUND)
            return err_set(info, ERR_IO, "%s: the index names this file, but it is missing",
                           index->shard[i]);
        TRY(err);
    }
    TRY(merge_shards(files, info));
    TRY(compare_with_index(files, index, info));
    return tensor_files_unchanged(files, info);
}

static err_t open_by_index(const char *dir, tensor_files **out, err_info *info)
{
    tensor_index index;
    err_t err = tensor_index_read(dir, &index, info);
    if (err == ERR_NOT_FOUND)
        return err_set(info, ERR_IO,
                       "%.150s: neither model.safetensors nor an index of shards is there", dir);
    TRY(err);
    tensor_files *files = NULL;
    err = alloc_files(index.n_shards, &files, info);
    if (err == ERR_OK) err = open_indexed(dir, &index, files, info);
    tensor_index_deinit(&index);
    if (err != ERR_OK) {
        tensor_files_close(files);
        return err;
    }
    *out = files;
    return ERR_OK;
}

/* ERR_NOT_FOUND, without a message, if there is no such file. */
static err_t open_single(const char *path, tensor_files **out, err_info *info)
{
    tensor_files *files = NULL;
    TRY(alloc_files(1, &files, info));
    err_t err = open_shard(path, &files->shard[0], info);
    if (err == ERR_OK) err = merge_shards(files, info);
    if (err == ERR_OK) err = tensor_files_unchanged(files, info);
    if (err != ERR_OK) {
        tensor_files_close(files);
        return err;
    }
    *out = files;
    return ERR_OK;
}

err_t tensor_files_open(const char *dir, tensor_files **out, err_info *info)
{
    *out = NULL;
    char path[PATH_BYTES_MAX];
    const int n = snprintf(path, sizeof path, "%s/model.safetensors", dir);
    if (n < 0 || (size_t)n >= sizeof path)
        return err_set(info, ERR_IO, "the path of the model is too long");
    const err_t err = open_single(path, out, info);
    return err == ERR_NOT_FOUND ? open_by_index(dir, out, info) : err;
}

err_t tensor_file_open(const char *path, tensor_files **out, err_info *info)
{
    *out = NULL;
    const err_t err = open_single(path, out, info);
    if (err == ERR_NOT_FOUND) return err_set(info, ERR_IO, "%.200s: no such file", path);
    return err;
}

void tensor_files_close(tensor_files *files)
{
    if (files == NULL) return;
    for (size_t i = 0; i < files->n_shards; i++)
        close_shard(&files->shard[i]);
    free(files->shard);
    free(files->entry);
    free(files);
}

/* ---- queries ------------------------------------------------------------------------------------- */

const tensor *tensor_find(const tensor_files *files, const char *name)
{
    const tensor_entry key = {.view = {.name = name}};
    const tensor_entry *const entry =
        bsearch(&key, files->entry, files->n_entries, sizeof *files->entry, compare_names);
    return entry != NULL ? &entry->view : NULL;
}

size_t tensor_count(const tensor_files *files)
{
    return files->n_entries;
}

const tensor *tensor_at(const tensor_files *files, size_t index)
{
    assert(index < files->n_entries);
    return &files->entry[index].view;
}

size_t tensor_files_bytes(const tensor_files *files)
{
    return files->data_bytes;
}
