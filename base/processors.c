/* base/processors.c - how many processors this process may use: threads_available of threads.h.
 *
 * Two limits apply: the affinity mask, and the quota of the control group, which is how containers
 * are limited. A pool larger than the quota is throttled for whole scheduler periods. */
#include "base/threads.h"

#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { N_PROCESSORS_MAX = 1 << 16, PATH_BYTES = 512 };

static uint32_t affinity_count(void)
{
    for (int n = CPU_SETSIZE; n <= N_PROCESSORS_MAX; n *= 2) {
        cpu_set_t *set = CPU_ALLOC((size_t)n);
        if (set == NULL) break;
        const size_t bytes = CPU_ALLOC_SIZE((size_t)n);
        const bool is_read = sched_getaffinity(0, bytes, set) == 0;
        const int count = is_read ? CPU_COUNT_S(bytes, set) : 0;
        CPU_FREE(set);
        if (count > 0) return (uint32_t)count;
    }
    const long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 ? (uint32_t)online : 1;
}

/* First line of a file; false if there is none. */
static bool read_line(const char *path, char *out, int bytes)
{
    FILE *file = fopen(path, "re");
    if (file == NULL) return false;
    const bool is_read = fgets(out, bytes, file) != NULL;
    fclose(file);
    return is_read;
}

/* A begun processor counts as one. */
static uint32_t quota_count(long long quota, long long period)
{
    if (quota <= 0 || period <= 0) return UINT32_MAX;
    const long long n = (quota - 1) / period + 1;
    return n < UINT32_MAX ? (uint32_t)n : UINT32_MAX;
}

/* cpu.max of cgroup v2: "max 100000" or "150000 100000". */
static uint32_t quota_v2(const char *directory)
{
    char path[PATH_BYTES + 32], text[64];
    long long quota, period;
    snprintf(path, sizeof path, "/sys/fs/cgroup%s/cpu.max", directory);
    if (!read_line(path, text, sizeof text)) return UINT32_MAX;
    if (sscanf(text, "%lld %lld", &quota, &period) != 2) return UINT32_MAX;
    return quota_count(quota, period);
}

static uint32_t quota_v1(void)
{
    char quota[64], period[64];
    if (!read_line("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", quota, sizeof quota)) return UINT32_MAX;
    if (!read_line("/sys/fs/cgroup/cpu/cpu.cfs_period_us", period, sizeof period)) {
        return UINT32_MAX;
    }
    return quota_count(atoll(quota), atoll(period));
}

/* The own group and every group above it: the tightest quota counts. */
static uint32_t quota_v2_ancestry(void)
{
    char path[PATH_BYTES];
    uint32_t n = quota_v2("");
    if (!read_line("/proc/self/cgroup", path, sizeof path)) return n;
    if (strncmp(path, "0::/", 4) != 0) return n;
    path[strcspn(path, "\n")] = '\0';
    char *directory = path + 3;
    for (char *slash; (slash = strrchr(directory, '/')) != NULL; *slash = '\0') {
        const uint32_t here = quota_v2(directory);
        if (here < n) n = here;
    }
    return n;
}

uint32_t threads_available(void)
{
    uint32_t n = affinity_count();
    const uint32_t v2 = quota_v2_ancestry(), v1 = quota_v1();
    if (v2 < n) n = v2;
    if (v1 < n) n = v1;
    return n;
}
