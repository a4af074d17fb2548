/* kvcache/page_bias.c - see page_bias.h. */
#include "kvcache/page_bias.h"

#include "kvcache/page_pool_state.h"

#include <math.h>
#include <string.h>

const float *kv_pool_biases(const kv_pool *pool, uint32_t page)
{
    if (!pool->has_biases || pool->pages.bias_most[page] == -INFINITY) return NULL;
    return pool->pages.biases + (size_t)page * pool->page_tokens;
}

float kv_pool_bias_most(const kv_pool *pool, uint32_t page)
{
    if (!pool->has_biases || pool->pages.bias_most[page] == -INFINITY) return 0;
    return pool->pages.bias_most[page];
}

void kv_pool_set_biases(kv_pool *pool, uint32_t page, const float *biases)
{
    const uint32_t n_slots = pool->pages.n_slots[page];
    float most = -INFINITY;
    if (!pool->has_biases) {
        assert(biases == NULL);
        return;
    }
    if (biases != NULL)
        memmove(pool->pages.biases + (size_t)page * pool->page_tokens, biases,
                n_slots * sizeof *biases);
    for (uint32_t i = 0; i < n_slots && biases != NULL; i++)
        most = fmaxf(most, biases[i]);
    pool->pages.bias_most[page] = most;
}
