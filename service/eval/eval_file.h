/* service/eval/eval_file.h - a text read whole, and a report that is there whole or not at all. */
#ifndef SERVICE_EVAL_EVAL_FILE_H
#define SERVICE_EVAL_EVAL_FILE_H

#include "base/error.h"

enum { EVAL_FILE_BYTES_MAX = 1 << 30 };

/* The whole file into a heap string. ERR_IO names it. A pipe will do. ERR_BAD_ARGUMENT beyond EVAL_FILE_BYTES_MAX. */
err_t eval_file_read(const char *path, char **bytes, size_t *n_bytes, err_info *info) MUST_CHECK;

/* Whether eval_file_write has a chance, asked before hours of work: ERR_IO if the folder is missing or read-only. */
err_t eval_file_check(const char *path, err_info *info) MUST_CHECK;

/* Through a temporary file beside it, which is renamed: a reader finds the old contents or the new,
 * never half. Devices and pipes are written as they are. ERR_IO names the file; a full disk leaves the
 * old contents. */
err_t eval_file_write(const char *path, const char *bytes, size_t n_bytes,
                      err_info *info) MUST_CHECK;

#endif
