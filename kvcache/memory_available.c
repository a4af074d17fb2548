/* kvcache/memory_available.c - see memory_available.h.
 *
 * MemAvailable counts caches that the kernel would give up, which the free page count of sysconf
 * does not. In a container the limit of the control group is often the smaller number. */
#include "kvcache/memory_available.h"

#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

/* The first number of a one-line file; UINT64_MAX for "max" or no file. */
static uint64_t read_number(const char *path)
{
    uint64_t value = UINT64_MAX;
    FILE *file = fopen(path, "re");
    if (file == NULL) return value;
    if (fscanf(file, "%" SCNu64, &value) != 1) value = UINT64_MAX;
    fclose(file);
    return value;
}

static uint64_t read_meminfo(void)
{
    char line[128];
    uint64_t kib = 0;
    FILE *file = fopen("/proc/meminfo", "re");
    if (file == NULL) return 0;
    while (kib == 0 && fgets(line, sizeof line, file) != NULL) {
        if (sscanf(line, "MemAvailable: %" SCNu64, &kib) != 1) kib = 0;
    }
    fclose(file);
    return kib * 1024;
}

uint64_t kv_memory_available(void)
{
    uint64_t bytes = read_meminfo();
    if (bytes == 0) {
        const long n_pages = sysconf(_SC_AVPHYS_PAGES), page_bytes = sysconf(_SC_PAGESIZE);
        bytes = n_pages > 0 && page_bytes > 0 ? (uint64_t)n_pages * (uint64_t)page_bytes : 0;
    }
    const uint64_t limit = read_number("/sys/fs/cgroup/memory.max");
    const uint64_t used = read_number("/sys/fs/cgroup/memory.current");
    if (limit != UINT64_MAX && used != UINT64_MAX) {
        const uint64_t left = limit > used ? limit - used : 0;
        if (left < bytes) bytes = left;
    }
    return bytes;
}
