/* base/random.c - Philox4x32-10, see random.h.
 *
 * Ten rounds of two 32 x 32 -> 64 bit products over the counter (index, stream); the key (seed) is
 * bumped by Weyl constants between rounds. */
#include "base/random.h"

enum { N_ROUNDS = 10 };

random_block random_at(uint64_t seed, uint64_t stream, uint64_t index)
{
    uint32_t c0 = (uint32_t)index, c1 = (uint32_t)(index >> 32);
    uint32_t c2 = (uint32_t)stream, c3 = (uint32_t)(stream >> 32);
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < N_ROUNDS; round++) {
        const uint64_t p0 = (uint64_t)0xD2511F53u * c0;
        const uint64_t p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return (random_block){{c0, c1, c2, c3}};
}

float random_uniform(uint64_t seed, uint64_t stream, uint64_t index)
{
    const uint32_t word = random_at(seed, stream, index).word[0];
    return (float)(word >> 8) * 0x1p-24f; /* 24 bits: every value is exact, 1 is never reached */
}
