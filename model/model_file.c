/* model/model_file.c - see model_file.h. */
#include "model/model_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static size_t read_up_to(int fd, char *out, size_t wanted)
{
    size_t n = 0;
    while (n < wanted) {
        const ssize_t got = read(fd, out + n, wanted - n);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) break;
        n += (size_t)got;
    }
    return n;
}

static err_t read_whole(int fd, const char *name, size_t bytes_max, char **out, size_t *n_bytes,
                        err_info *info)
{
    struct stat st;
    if (fstat(fd, &st) != 0) return err_set(info, ERR_IO, "%s: %s", name, strerror(errno));
    if (!S_ISREG(st.st_mode)) return err_set(info, ERR_BAD_MODEL, "%s: not a regular file", name);
    const size_t wanted = (size_t)st.st_size;
    if (wanted > bytes_max)
        return err_set(info, ERR_BAD_MODEL, "%s: %zu bytes are more than %zu", name, wanted,
                       bytes_max);
    char *const buffer = malloc(wanted + 1);
    if (buffer == NULL) return err_set(info, ERR_NO_MEMORY, "%s: out of memory", name);
    const size_t n = read_up_to(fd, buffer, wanted);
    if (n < wanted) {
        free(buffer);
        return err_set(info, ERR_IO, "%s: read %zu of %zu bytes", name, n, wanted);
    }
    buffer[wanted] = '\0';
    *out = buffer;
    *n_bytes = wanted;
    return ERR_OK;
}

err_t model_file_read(const char *dir, const char *name, size_t bytes_max, char **out,
                      size_t *n_bytes, err_info *info)
{
    char path[4096];
    *out = NULL;
    const int n = snprintf(path, sizeof path, "%s/%s", dir, name);
    if (n < 0 || (size_t)n >= sizeof path)
        return err_set(info, ERR_IO, "%s: the path of the model is too long", name);
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not block us */
    if (fd < 0 && (errno == ENOENT || errno == ENOTDIR)) return ERR_NOT_FOUND;
    if (fd < 0) return err_set(info, ERR_IO, "%.180s: %s", path, strerror(errno));
    const err_t err = read_whole(fd, name, bytes_max, out, n_bytes, info);
    close(fd);
    return err;
}
