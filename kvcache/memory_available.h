/* kvcache/memory_available.h - how much memory this process could still take. */
#ifndef KVCACHE_MEMORY_AVAILABLE_H
#define KVCACHE_MEMORY_AVAILABLE_H

#include <stdint.h>

/* What the kernel says is available, and no more than a control group leaves. */
uint64_t kv_memory_available(void);

#endif
