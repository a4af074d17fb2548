/* kvcache/tier/tier_file.c - see tier_file.h. */
#include "kvcache/tier/tier_file.h"

#include "base/check.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PATH_BYTES = 4096 };

struct kv_tier_file {
    int descriptor;
    uint64_t limit_bytes;
};

/* The descriptor of a new file that has no name any more; -1 and errno. */
static int open_unnamed(const char *dir)
{
    char path[PATH_BYTES];
    const int n = snprintf(path, sizeof path, "%s/pikv-kv-XXXXXX", dir);
    if (n < 0 || n >= PATH_BYTES) {
        errno = ENAMETOOLONG;
        return -1;
    }
    const int descriptor = mkostemp(path, O_CLOEXEC);
    if (descriptor < 0) return -1;
    if (unlink(path) == 0) return descriptor;
    const int cause = errno;
    close(descriptor);
    errno = cause;
    return -1;
}

err_t kv_tier_file_open(const char *dir, uint64_t limit_bytes, kv_tier_file **out, err_info *info)
{
    *out = NULL;
    kv_tier_file *file = calloc(1, sizeof *file);
    if (file == NULL) return err_set(info, ERR_NO_MEMORY, "kv-disk-path: no memory");
    file->limit_bytes = limit_bytes;
    file->descriptor = open_unnamed(dir);
    if (file->descriptor < 0) {
        err_set(info, ERR_BAD_CONFIG, "kv-disk-path: no file can be made in '%s': %s", dir,
                strerror(errno));
        free(file);
        return ERR_BAD_CONFIG;
    }
    /* Pages are read in no order that the kernel could guess; what comes next it is told. */
    (void)posix_fadvise(file->descriptor, 0, 0, POSIX_FADV_RANDOM);
    *out = file;
    return ERR_OK;
}

void kv_tier_file_close(kv_tier_file *file)
{
    if (file == NULL) return;
    close(file->descriptor);
    free(file);
}

err_t kv_tier_file_write(const kv_tier_file *file, uint64_t offset, const void *data, size_t bytes,
                         int *system_error)
{
    const uint8_t *from = data;
    assert(offset <= file->limit_bytes);
    assert(bytes <= file->limit_bytes - offset);
    while (bytes > 0) {
        const ssize_t n = pwrite(file->descriptor, from, bytes, (off_t)offset);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            *system_error = n < 0 ? errno : ENOSPC;
            return ERR_IO;
        }
        from += n;
        bytes -= (size_t)n;
        offset += (uint64_t)n;
    }
    return ERR_OK;
}

err_t kv_tier_file_read(const kv_tier_file *file, uint64_t offset, void *out, size_t bytes,
                        int *system_error)
{
    uint8_t *to = out;
    while (bytes > 0) {
        const ssize_t n = pread(file->descriptor, to, bytes, (off_t)offset);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            *system_error = n < 0 ? errno : EIO;
            return ERR_IO;
        }
        to += n;
        bytes -= (size_t)n;
        offset += (uint64_t)n;
    }
    return ERR_OK;
}

void kv_tier_file_hint(const kv_tier_file *file, uint64_t offset, uint64_t bytes)
{
    (void)posix_fadvise(file->descriptor, (off_t)offset, (off_t)bytes, POSIX_FADV_WILLNEED);
}
