/* service/metrics_text_process.c - process_*, as every Prometheus client exports them: see metrics_page.h. */
#include "service/metrics_page.h"

#include "base/config.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

static void write_process_value(page *p, const char *name, const char *type, double value,
                                const char *help)
{
    char text[CFG_F64_TEXT_BYTES];
    fprintf(p->out, "# HELP %s %s\n# TYPE %s %s\n%s %s\n", name, help, name, type, name,
            cfg_format_f64(value, text));
}

/* Seconds since the epoch at which the process began, from its age: clock ticks since boot in
 * /proc/self/stat, field 22. 0 if it cannot be read. */
double metrics_process_start_seconds(void)
{
    char text[1024];
    FILE *file = fopen("/proc/self/stat", "r");
    if (file == NULL) return 0;
    const size_t n_bytes = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[n_bytes] = '\0';
    const char *at = strrchr(text, ')'); /* the name may hold spaces; field 3 follows it */
    for (int field = 2; at != NULL && field < 22; field++)
        at = strchr(at + 1, ' ');
    struct timespec now, since_boot;
    if (at == NULL || clock_gettime(CLOCK_REALTIME, &now) != 0) return 0;
    if (clock_gettime(CLOCK_BOOTTIME, &since_boot) != 0) return 0;
    const double started = strtod(at, NULL) / (double)sysconf(_SC_CLK_TCK);
    const double uptime = (double)since_boot.tv_sec + (double)since_boot.tv_nsec * 1e-9;
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9 - (uptime - started);
}

static double open_descriptors(void)
{
    DIR *dir = opendir("/proc/self/fd");
    if (dir == NULL) return 0;
    double n = -3; /* `.`, `..` and the directory's own descriptor */
    while (readdir(dir) != NULL)
        n++;
    closedir(dir);
    return n;
}

void metrics_text_process(page *p)
{
    struct rusage usage;
    struct rlimit limit = {0};
    double virtual_pages = 0, resident_pages = 0;
    getrusage(RUSAGE_SELF, &usage);
    getrlimit(RLIMIT_NOFILE, &limit);
    FILE *file = fopen("/proc/self/statm", "r");
    if (file != NULL) {
        if (fscanf(file, "%lf %lf", &virtual_pages, &resident_pages) != 2) resident_pages = 0;
        fclose(file);
    }
    const double page_bytes = (double)sysconf(_SC_PAGESIZE);
    const double cpu_seconds = (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
                               (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
    write_process_value(p, "process_cpu_seconds_total", "counter", cpu_seconds,
                        "Processor time of user and system");
    write_process_value(p, "process_resident_memory_bytes", "gauge", resident_pages * page_bytes,
                        "Resident memory, mapped weights included");
    write_process_value(p, "process_virtual_memory_bytes", "gauge", virtual_pages * page_bytes,
                        "Virtual memory");
    write_process_value(p, "process_start_time_seconds", "gauge", p->m->start_seconds,
                        "Start of the process, since the epoch");
    write_process_value(p, "process_open_fds", "gauge", open_descriptors(), "Open descriptors");
    write_process_value(p, "process_max_fds", "gauge", (double)limit.rlim_cur,
                        "Limit of open descriptors");
}
