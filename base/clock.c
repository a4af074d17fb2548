/* base/clock.c - see clock.h. */
#include "base/clock.h"

#include "base/check.h"

#include <time.h>

uint64_t clock_mono_ns(void)
{
    struct timespec now;
    const int failed = clock_gettime(CLOCK_MONOTONIC, &now);
    assert(!failed);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

int64_t clock_unix_seconds(void)
{
    return (int64_t)time(NULL);
}
