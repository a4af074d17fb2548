/* model/safetensors_header.h - what the two halves of the safetensors reader share.
 *
 * safetensors_json.c turns the JSON of a header or of an index into checked tables and knows no file;
 * safetensors.c maps files and knows no JSON. */
#ifndef MODEL_SAFETENSORS_HEADER_H
#define MODEL_SAFETENSORS_HEADER_H

#include "model/safetensors.h"

typedef struct tensor_entry {
    tensor view;    /* name points into the table's names; data is set when the file is known */
    uint64_t begin; /* of the data, counted from the end of the header */
    uint32_t shard; /* index of the file */
} tensor_entry;

typedef struct tensor_table {
    tensor_entry *entry; /* [n_entries], in the order of their data */
    size_t n_entries;
    char *names; /* all names, each with its NUL */
} tensor_table;

typedef struct tensor_header {
    const char *file; /* how messages call it */
    const char *text;
    size_t n_bytes;
    size_t data_bytes; /* what follows the header */
} tensor_header;

/* All checks of tensor_files_open that concern one header. */
err_t tensor_table_parse(const tensor_header *header, tensor_table *out, err_info *info) MUST_CHECK;
void tensor_table_deinit(tensor_table *table); /* a zeroed one is fine */

typedef struct tensor_index_row {
    const char *tensor;
    uint32_t shard;
} tensor_index_row;

typedef struct tensor_index {
    tensor_index_row *row; /* [n_rows], sorted by tensor */
    size_t n_rows;
    const char **shard; /* [n_shards], plain file names, sorted */
    size_t n_shards;
    void *tree; /* owns the strings */
} tensor_index;

/* ERR_NOT_FOUND, without a message, when DIR has no index. */
err_t tensor_index_read(const char *dir, tensor_index *out, err_info *info) MUST_CHECK;
void tensor_index_deinit(tensor_index *index);

#endif
