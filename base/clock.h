/* base/clock.h - time. Monotonic for durations and deadlines, wall clock for dates only. */
#ifndef BASE_CLOCK_H
#define BASE_CLOCK_H

#include <stdint.h>

uint64_t clock_mono_ns(void); /* never goes back; origin unspecified */
int64_t clock_unix_seconds(void);

static inline double clock_seconds_since(uint64_t start_ns)
{
    return (double)(clock_mono_ns() - start_ns) * 1e-9;
}

#endif
