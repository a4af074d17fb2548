/* service/eval/eval_file.c - see eval_file.h. */
#include "service/eval/eval_file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { READ_BYTES = 1 << 16 };

/* Where a report goes: links are followed, so that renaming replaces the file and not the link. */
typedef struct target {
    char path[PATH_MAX];
    char temporary[PATH_MAX];
    mode_t mode;
    bool is_direct; /* a device or a pipe: nothing to replace */
} target;

static err_t refuse(const char *path, err_info *info)
{
    return err_set(info, ERR_IO, "%s: %s", path, strerror(errno));
}

static err_t grow(char **bytes, size_t *capacity)
{
    char *grown = realloc(*bytes, *capacity * 2);
    if (grown == NULL) return ERR_NO_MEMORY;
    *bytes = grown;
    *capacity *= 2;
    return ERR_OK;
}

static err_t read_stream(FILE *file, char **bytes, size_t *n_bytes)
{
    size_t capacity = READ_BYTES;
    *n_bytes = 0;
    *bytes = malloc(capacity);
    if (*bytes == NULL) return ERR_NO_MEMORY;
    for (;;) {
        const size_t n = fread(*bytes + *n_bytes, 1, capacity - *n_bytes, file);
        *n_bytes += n;
        if (n == 0) return ferror(file) ? ERR_IO : ERR_OK;
        if (*n_bytes > EVAL_FILE_BYTES_MAX) return ERR_BAD_ARGUMENT;
        if (*n_bytes == capacity) TRY(grow(bytes, &capacity));
    }
}

err_t eval_file_read(const char *path, char **bytes, size_t *n_bytes, err_info *info)
{
    *bytes = NULL;
    FILE *file = fopen(path, "rbe");
    if (file == NULL) return refuse(path, info);
    err_t err = read_stream(file, bytes, n_bytes);
    if (err == ERR_IO) err = refuse(path, info);
    if (err == ERR_BAD_ARGUMENT) {
        err = err_set(info, err, "%s: more than %d bytes", path, EVAL_FILE_BYTES_MAX);
    }
    fclose(file);
    if (err == ERR_OK) return ERR_OK;
    free(*bytes);
    *bytes = NULL;
    return err_set(info, err, "%s: %s", path, err_sentence(err));
}

/* The umask can only be read by setting it. */
static mode_t default_mode(void)
{
    const mode_t mask = umask(0);
    umask(mask);
    return 0666 & ~mask;
}

static err_t find_target(const char *path, target *out, err_info *info)
{
    struct stat facts;
    *out = (target){.mode = default_mode()};
    const bool exists = stat(path, &facts) == 0;
    if (!exists && errno != ENOENT) return refuse(path, info);
    if (exists && S_ISDIR(facts.st_mode)) {
        errno = EISDIR;
        return refuse(path, info);
    }
    if (exists && S_ISREG(facts.st_mode)) {
        out->mode = facts.st_mode & 07777;
        if (realpath(path, out->path) == NULL) return refuse(path, info);
    } else {
        out->is_direct = exists;
        const int n = snprintf(out->path, sizeof out->path, "%s", path);
        if (n >= PATH_MAX) errno = ENAMETOOLONG;
        if (n >= PATH_MAX) return refuse(path, info);
    }
    const int n = snprintf(out->temporary, sizeof out->temporary, "%s.XXXXXX", out->path);
    if (n < PATH_MAX) return ERR_OK;
    errno = ENAMETOOLONG;
    return refuse(path, info);
}

static int open_target(target *t)
{
    return t->is_direct ? open(t->path, O_WRONLY | O_CLOEXEC | O_NOCTTY)
                        : mkostemp(t->temporary, O_CLOEXEC);
}

err_t eval_file_check(const char *path, err_info *info)
{
    target t;
    TRY(find_target(path, &t, info));
    if (t.is_direct) return access(t.path, W_OK) == 0 ? ERR_OK : refuse(path, info);
    const int fd = open_target(&t);
    if (fd < 0) return refuse(path, info);
    close(fd);
    unlink(t.temporary);
    return ERR_OK;
}

static bool write_all(int fd, const char *bytes, size_t n_bytes)
{
    while (n_bytes > 0) {
        const ssize_t n = write(fd, bytes, n_bytes);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return false;
        bytes += n;
        n_bytes -= (size_t)n;
    }
    return true;
}

err_t eval_file_write(const char *path, const char *bytes, size_t n_bytes, err_info *info)
{
    target t;
    TRY(find_target(path, &t, info));
    const int fd = open_target(&t);
    if (fd < 0) return refuse(path, info);
    err_t err = ERR_OK;
    /* Some file systems report a full disk only at fsync. */
    bool is_written = write_all(fd, bytes, n_bytes);
    if (is_written && !t.is_direct) is_written = fchmod(fd, t.mode) == 0 && fsync(fd) == 0;
    if (!is_written) err = refuse(path, info);
    if (close(fd) != 0 && err == ERR_OK) err = refuse(path, info);
    if (t.is_direct) return err;
    if (err == ERR_OK && rename(t.temporary, t.path) != 0) err = refuse(path, info);
    if (err != ERR_OK) unlink(t.temporary);
    return err;
}
