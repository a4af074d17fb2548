/* kvcache/tier/tier_file.h - a file without a name, for bytes that do not fit in memory.
 *
 * It is made in a folder and unlinked at once, so that it never stays behind, whatever ends the
 * process. It grows as offsets are written for the first time, up to a limit. It is written and read by
 * system calls and never mapped: a disk that fails must be an error here, not a signal somewhere.
 *
 * Threads: reads and hints from any, at the same time as a write to another place. Ownership: the
 * caller of open closes. */
#ifndef KVCACHE_TIER_TIER_FILE_H
#define KVCACHE_TIER_TIER_FILE_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

typedef struct kv_tier_file kv_tier_file;

/* ERR_BAD_CONFIG if no file can be made in `dir`, with the cause; ERR_NO_MEMORY. */
err_t kv_tier_file_open(const char *dir, uint64_t limit_bytes, kv_tier_file **out,
                        err_info *info) MUST_CHECK;
void kv_tier_file_close(kv_tier_file *file); /* NULL is fine */

/* All of the bytes or ERR_IO, and then *system_error says why (errno; EIO for a file that ends). What the
 * place holds after a failed write is unknown. The limit is asserted. */
err_t kv_tier_file_write(const kv_tier_file *file, uint64_t offset, const void *data, size_t bytes,
                         int *system_error) MUST_CHECK;
err_t kv_tier_file_read(const kv_tier_file *file, uint64_t offset, void *out, size_t bytes,
                        int *system_error) MUST_CHECK;

/* These bytes will be read soon. Starts reading and does not wait; may be ignored. */
void kv_tier_file_hint(const kv_tier_file *file, uint64_t offset, uint64_t bytes);

#endif
