/* kvcache/kv_step_work.h - what a step has for the device to do; for whoever queues the same work again as one. */
#ifndef KVCACHE_KV_STEP_WORK_H
#define KVCACHE_KV_STEP_WORK_H

#include "kvcache/kv_cache.h"

/* Inside a step: steps of as many tokens with the same number queue the same ops with the same arguments in kv_append
 * and kv_attend. 0: the host takes part, so there is memory to move in between. */
uint64_t kv_step_work(const kv_cache *cache);

#endif
