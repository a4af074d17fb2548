/* tests/kvcache/bad_disk.h - a disk that fails when it is told to.
 *
 * The linker sends pwrite and pread of a test binary through the wrappers of bad_disk.c (link it with
 * --wrap=pwrite,--wrap=pread). Everything is off at first; any thread may read while a test changes it. */
#ifndef TESTS_KVCACHE_BAD_DISK_H
#define TESTS_KVCACHE_BAD_DISK_H

#include <stdatomic.h>
#include <stddef.h>

enum { BAD_DISK_NEVER = -1 };

typedef struct bad_disk {
    _Atomic long writes_until_failure; /* calls that still work; BAD_DISK_NEVER: all */
    _Atomic long reads_until_failure;
    _Atomic long n_failing;         /* calls that fail then, before all is well again */
    _Atomic int error;              /* errno of a failure; 0: nothing is transferred */
    _Atomic size_t bytes_max;       /* of one call; 0: any number */
    _Atomic long flips_every;       /* every so many reads one bit comes back wrong; 0: none does */
    _Atomic long n_writes, n_reads; /* calls so far */
} bad_disk;

extern bad_disk the_disk;

void bad_disk_mend(void); /* everything off again */

#endif
