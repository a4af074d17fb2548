/* base/random.h - random numbers as a pure function.
 *
 * Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): the value
 * depends on (seed, stream, index) alone, so a request draws the same numbers alone, in a crowd,
 * and after a preemption. */
#ifndef BASE_RANDOM_H
#define BASE_RANDOM_H

#include <stdint.h>

typedef struct random_block {
    uint32_t word[4];
} random_block;

random_block random_at(uint64_t seed, uint64_t stream, uint64_t index);

/* Uniform in [0, 1), 24 bits from the block's first word. */
float random_uniform(uint64_t seed, uint64_t stream, uint64_t index);

#endif
