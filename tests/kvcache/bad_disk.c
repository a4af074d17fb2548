/* tests/kvcache/bad_disk.c - see bad_disk.h. */
#include "tests/kvcache/bad_disk.h"

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <sys/types.h>

bad_disk the_disk = {.writes_until_failure = BAD_DISK_NEVER, .reads_until_failure = BAD_DISK_NEVER};

ssize_t __real_pwrite(int file, const void *data, size_t bytes, off_t offset);
ssize_t __real_pread(int file, void *out, size_t bytes, off_t offset);
ssize_t __wrap_pwrite(int file, const void *data, size_t bytes, off_t offset);
ssize_t __wrap_pread(int file, void *out, size_t bytes, off_t offset);

void bad_disk_mend(void)
{
    the_disk.writes_until_failure = BAD_DISK_NEVER;
    the_disk.reads_until_failure = BAD_DISK_NEVER;
    the_disk.n_failing = LONG_MAX;
    the_disk.error = 0;
    the_disk.bytes_max = 0;
    the_disk.flips_every = 0;
}

static bool fails_now(_Atomic long *until)
{
    if (*until == BAD_DISK_NEVER) return false;
    if (*until > 0) {
        (*until)--;
        return false;
    }
    if (--the_disk.n_failing <= 0) *until = BAD_DISK_NEVER;
    errno = the_disk.error;
    return true;
}

static size_t cut(size_t bytes)
{
    const size_t most = the_disk.bytes_max;
    return most > 0 && bytes > most ? most : bytes;
}

ssize_t __wrap_pwrite(int file, const void *data, size_t bytes, off_t offset)
{
    the_disk.n_writes++;
    if (fails_now(&the_disk.writes_until_failure)) return the_disk.error != 0 ? -1 : 0;
    return __real_pwrite(file, data, cut(bytes), offset);
}

ssize_t __wrap_pread(int file, void *out, size_t bytes, off_t offset)
{
    const long n = ++the_disk.n_reads;
    if (fails_now(&the_disk.reads_until_failure)) return the_disk.error != 0 ? -1 : 0;
    const ssize_t n_read = __real_pread(file, out, cut(bytes), offset);
    if (n_read > 0 && the_disk.flips_every > 0 && n % the_disk.flips_every == 0)
        ((unsigned char *)out)[n_read / 2] ^= 4;
    return n_read;
}
