/* service/kv_look.h - one look at the cache, asked for by any thread and taken by the engine's.
 *
 * Only the engine may walk the cache, and only between two steps; whoever wants to see it leaves a look with
 * engine_look and is called when it has been taken. From then on the map is constant.
 *
 * Ownership: counted references; the engine and the maker hold one each. */
#ifndef SERVICE_KV_LOOK_H
#define SERVICE_KV_LOOK_H

#include "base/error.h"
#include "kvcache/kv_map.h"

typedef struct kv_look kv_look;

typedef struct kv_look_spec {
    kv_map_query query;
    void (*on_taken)(void *ctx);   /* engine thread; must not block */
    void (*on_release)(void *ctx); /* when the last reference goes */
    void *ctx;
} kv_look_spec;

/* ERR_NO_MEMORY; ERR_BAD_ARGUMENT: there is no such layer. Either way on_release is not called. */
err_t kv_look_open(const kv_cache *cache, const kv_look_spec *spec, kv_look **out) MUST_CHECK;
kv_look *kv_look_retain(kv_look *look);
void kv_look_release(kv_look *look); /* NULL is fine */

const kv_map_query *kv_look_query(const kv_look *look);

/* The engine's thread, once, between steps. */
void kv_look_take(kv_look *look, const kv_cache *cache);

/* NULL until it has been taken. Borrowed until the look is released. */
const kv_map *kv_look_map(const kv_look *look);

#endif
