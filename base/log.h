/* base/log.h - one line per event: level, module, event, key=value.
 *
 * 2026-11-21T10:11:12.345Z info  engine: step requests=4 tokens=132
 *
 * The sink (level, format, stream) is set once in main, before other threads start; it is the only
 * mutable file-scope state of the program. Values from outside are escaped by the writer: control
 * characters never reach the terminal. Never called inside a kernel loop; never prints prompt text.
 * Threads: any. */
#ifndef BASE_LOG_H
#define BASE_LOG_H

#include "base/error.h"

#include <stdio.h>

typedef enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG } log_level;
typedef enum log_format { LOG_TEXT, LOG_JSON } log_format;

typedef struct log_config {
    FILE *stream; /* borrowed; NULL silences the log */
    log_level level;
    log_format format;
} log_config;

void log_init(const log_config *config); /* without it: warnings and errors, as text, to stderr */
int log_enabled(log_level level);
void log_write(log_level level, const char *module, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#define log_error(...) log_write(LOG_ERROR, __VA_ARGS__)
#define log_warn(...)  log_write(LOG_WARN, __VA_ARGS__)
#define log_info(...)  log_write(LOG_INFO, __VA_ARGS__)
#define log_debug(...) log_write(LOG_DEBUG, __VA_ARGS__)

#endif
