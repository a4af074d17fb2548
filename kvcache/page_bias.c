/* kvcache/page_bias.c - see page_bias.h. */
#include "kvcache/page_bias.h"

#include "kvcache/page_pool_state.h"

#include <math.h>
#include <string.h>

static float *biases_of(const kv_pool *pool, uint32_t page)
{
    return pool->pages.biases + (size_t)page * pool->page_tokens;
}

const float *kv_pool_biases(const kv_pool *pool, uint32_t page)
{
    if (!pool->has_biases || pool->pages.bias_most[page] == -INFINITY) return NULL;
    return biases_of(pool, page);
}

float kv_pool_bias_most(const kv_pool *pool, uint32_t page)
{
    if (!pool->has_biases || pool->pages.bias_most[page] == -INFINITY) return 0;
    return pool->pages.bias_most[page];
}

const float *kv_pool_most_biases(const kv_pool *pool)
{
    return pool->has_biases ? pool->pages.bias_most : NULL;
}

static void find_most(kv_pool *pool, uint32_t page)
{
    const float *biases = biases_of(pool, page);
    float most = -INFINITY;
    for (uint32_t i = 0; i < pool->pages.n_slots[page]; i++)
        most = fmaxf(most, biases[i]);
    pool->pages.bias_most[page] = most;
}

void kv_pool_set_biases(kv_pool *pool, uint32_t page, const float *biases)
{
    assert(biases == NULL || pool->has_biases);
    if (biases != NULL) {
        memmove(biases_of(pool, page), biases, pool->pages.n_slots[page] * sizeof *biases);
        find_most(pool, page);
    } else if (pool->has_biases) {
        pool->pages.bias_most[page] = -INFINITY;
    }
}

void kv_pool_set_bias(kv_pool *pool, uint32_t page, uint32_t slot, float bias)
{
    assert(pool->has_biases);
    assert(slot < pool->pages.n_slots[page]);
    if (kv_pool_biases(pool, page) == NULL)
        memset(biases_of(pool, page), 0, pool->pages.n_slots[page] * sizeof bias);
    biases_of(pool, page)[slot] = bias;
    find_most(pool, page);
}
