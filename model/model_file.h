/* model/model_file.h - a small file of a model's folder, read whole. Weights are mapped instead: safetensors.h. */
#ifndef MODEL_MODEL_FILE_H
#define MODEL_MODEL_FILE_H

#include "base/error.h"

#include <stddef.h>

/* DIR/NAME into a fresh heap block with a NUL behind it; free(*out). ERR_NOT_FOUND, without a message,
 * if there is none: the caller knows whether it is needed. ERR_BAD_MODEL: not a regular file, or over
 * bytes_max; ERR_IO, ERR_NO_MEMORY. */
err_t model_file_read(const char *dir, const char *name, size_t bytes_max, char **out,
                      size_t *n_bytes, err_info *info) MUST_CHECK;

#endif
