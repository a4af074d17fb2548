/* model/safetensors.h - tensors by name out of .safetensors files, read in place.
 *
 * One file (model.safetensors) or several named by model.safetensors.index.json. Files are mapped
 * read-only; a tensor's data is a borrowed view that lives until tensor_files_close. Every claim of a
 * header is checked before use: see tensor_files_open. The format: 8 bytes little-endian header
 * length N, N bytes of JSON, data.
 *
 * A file that another process truncates while it is mapped cannot be guarded against by checks; files
 * are opened once, and size and modification time are compared again when loading ends. */
#ifndef MODEL_SAFETENSORS_H
#define MODEL_SAFETENSORS_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

typedef enum tensor_type { /* as the format names them */
                           TENSOR_BOOL,
                           TENSOR_U8,
                           TENSOR_I8,
                           TENSOR_F8_E4M3,
                           TENSOR_F8_E5M2,
                           TENSOR_I16,
                           TENSOR_U16,
                           TENSOR_F16,
                           TENSOR_BF16,
                           TENSOR_I32,
                           TENSOR_U32,
                           TENSOR_F32,
                           TENSOR_I64,
                           TENSOR_U64,
                           TENSOR_F64,
                           TENSOR_TYPE_COUNT
} tensor_type;

enum { TENSOR_DIMS_MAX = 8, TENSOR_HEADER_BYTES_MAX = 16 << 20, TENSORS_MAX = 1 << 17 };

typedef struct tensor {
    const char *name;
    tensor_type type;
    uint32_t n_dims; /* 0: a scalar, one element */
    uint64_t shape[TENSOR_DIMS_MAX];
    const void *data; /* not necessarily aligned to its type */
    size_t data_bytes;
} tensor;

typedef struct tensor_files tensor_files;

/* Opens DIR/model.safetensors, or else the files of DIR/model.safetensors.index.json. Checks, each
 * with a message that names file, tensor and value: header length, JSON, duplicate names, known types,
 * integer shapes, ordered offsets, product of shape times type = bytes, contiguous without holes or
 * overlap up to the end of the file; for an index: plain file names inside DIR, regular files, and
 * that index and files agree on every name. ERR_BAD_MODEL, ERR_IO, ERR_NO_MEMORY. */
err_t tensor_files_open(const char *dir, tensor_files **out, err_info *info) MUST_CHECK;

/* One file by path, the same checks (reference data of tests, calibration files). */
err_t tensor_file_open(const char *path, tensor_files **out, err_info *info) MUST_CHECK;
void tensor_files_close(tensor_files *files); /* NULL is fine */

/* Compares size and modification time with those at open: ERR_IO names a file that was written to
 * meanwhile. Callers ask once more when they have finished loading. */
err_t tensor_files_unchanged(const tensor_files *files, err_info *info) MUST_CHECK;

const tensor *tensor_find(const tensor_files *files, const char *name); /* NULL if absent */
size_t tensor_count(const tensor_files *files);
const tensor *tensor_at(const tensor_files *files, size_t index);
size_t tensor_files_bytes(const tensor_files *files); /* all data, mapped */
uint32_t tensor_type_bytes(tensor_type type);
const char *tensor_type_name(tensor_type type);

/* Parses one header in memory (what the fuzzer drives): `data_bytes` is what follows the header. */
err_t tensor_header_check(const char *header, size_t header_bytes, size_t data_bytes,
                          err_info *info) MUST_CHECK;

#endif
