/* kvcache/scoring/selection.c - see selection.h. */
#include "kvcache/scoring/selection.h"

#include "base/check.h"

enum { DIGIT_BITS = 8, N_DIGITS = 1 << DIGIT_BITS };

/* How many keys that begin like `key` - above the digit at `shift` - have which digit there. */
static void count_digits(const kv_cut_source *source, uint32_t key, uint32_t shift,
                         uint64_t count[N_DIGITS])
{
    const uint64_t mask = UINT64_MAX << (shift + DIGIT_BITS);
    for (uint32_t d = 0; d < N_DIGITS; d++)
        count[d] = 0;
    for (uint32_t a = 0; a < source->n_arrays; a++) {
        for (uint32_t i = 0; i < source->n[a]; i++) {
            const uint32_t other = kv_rank_key(source->x[a][i]);
            if (((other ^ key) & mask) == 0) count[other >> shift & (N_DIGITS - 1)]++;
        }
    }
}

kv_cut kv_cut_find(const kv_cut_source *source, uint64_t n_in)
{
    kv_cut cut = {.key = 0, .n_equal = n_in};
    assert(n_in >= 1);
    for (uint32_t shift = 32; shift > 0;) {
        uint64_t count[N_DIGITS];
        uint32_t digit = N_DIGITS - 1;
        shift -= DIGIT_BITS;
        count_digits(source, cut.key, shift, count);
        for (; count[digit] < cut.n_equal; digit--) {
            assert(digit > 0); /* there are fewer than n_in */
            cut.n_equal -= count[digit];
        }
        cut.key |= digit << shift;
    }
    return cut;
}
