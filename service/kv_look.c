/* service/kv_look.c - see kv_look.h. */
#include "service/kv_look.h"

#include "base/check.h"

#include <stdatomic.h>
#include <stdlib.h>

struct kv_look {
    _Atomic uint32_t n_references;
    atomic_bool is_taken; /* a release store: the map is constant from then on */
    kv_look_spec spec;
    kv_map *map;
};

err_t kv_look_open(const kv_cache *cache, const kv_look_spec *spec, kv_look **out)
{
    *out = NULL;
    kv_look *look = calloc(1, sizeof *look);
    if (look == NULL) return ERR_NO_MEMORY;
    atomic_init(&look->n_references, 1);
    atomic_init(&look->is_taken, false);
    look->spec = *spec;
    const err_t err = kv_map_open(cache, &spec->query, &look->map);
    if (err != ERR_OK) {
        free(look);
        return err;
    }
    *out = look;
    return ERR_OK;
}

kv_look *kv_look_retain(kv_look *look)
{
    atomic_fetch_add_explicit(&look->n_references, 1, memory_order_relaxed);
    return look;
}

void kv_look_release(kv_look *look)
{
    if (look == NULL) return;
    const uint32_t before = atomic_fetch_sub_explicit(&look->n_references, 1, memory_order_acq_rel);
    assert(before >= 1);
    if (before > 1) return;
    look->spec.on_release(look->spec.ctx);
    kv_map_close(look->map);
    free(look);
}

const kv_map_query *kv_look_query(const kv_look *look)
{
    return &look->spec.query;
}

void kv_look_take(kv_look *look, const kv_cache *cache)
{
    kv_map_take(cache, look->map);
    atomic_store_explicit(&look->is_taken, true, memory_order_release);
    look->spec.on_taken(look->spec.ctx);
}

const kv_map *kv_look_map(const kv_look *look)
{
    return atomic_load_explicit(&look->is_taken, memory_order_acquire) ? look->map : NULL;
}
