/* kvcache/scoring/allocator.c - the list of allocators, and what they have in common. */
#include "kvcache/scoring/allocator.h"

#include "kvcache/scoring/selection.h"

#include "base/check.h"

#include <string.h>

#define X(name) extern const kv_allocator kv_allocator_##name;
KV_ALLOCATOR_LIST(X)
#undef X

const kv_allocator *const kv_allocators[] = {
#define X(name) &kv_allocator_##name,
    KV_ALLOCATOR_LIST(X) NULL
#undef X
};

#define X(name) " " #name
const char kv_allocator_names[] = KV_ALLOCATOR_LIST(X);
#undef X

const kv_allocator *kv_allocator_find(const char *name)
{
    for (size_t i = 0; kv_allocators[i] != NULL; i++) {
        if (strcmp(kv_allocators[i]->name, name) == 0) return kv_allocators[i];
    }
    return NULL;
}

uint64_t kv_split_total(const kv_split_args *args)
{
    const uint64_t n_wanted = (uint64_t)args->n_heads * args->n_keep;
    uint64_t n_there = 0;
    for (uint32_t h = 0; h < args->n_heads; h++)
        n_there += args->n[h];
    return n_there < n_wanted ? n_there : n_wanted;
}

void kv_keep_best(const float *score, uint32_t n, uint32_t n_keep, uint32_t *index)
{
    uint32_t n_written = 0;
    assert(n_keep <= n);
    if (n_keep == 0) return;
    kv_cut cut = kv_cut_find(&(kv_cut_source){.x = &score, .n = &n, .n_arrays = 1}, n_keep);
    for (uint32_t i = 0; n_written < n_keep; i++) {
        const uint32_t key = kv_rank_key(score[i]);
        if (key < cut.key || (key == cut.key && cut.n_equal == 0)) continue;
        cut.n_equal -= key == cut.key;
        index[n_written++] = i;
    }
}
