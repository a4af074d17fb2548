/* base/log.c - see log.h.
 *
 * A line is built on the stack and handed to stdio in one call, so that lines of several threads do
 * not mix and a log call costs no allocation. What does not fit is cut and marked by "...". */
#include "base/log.h"

#include "base/utf8.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

enum { MESSAGE_BYTES = 2048, LINE_BYTES = 3 * MESSAGE_BYTES };

/* The one mutable file-scope object of the program: written before threads start, then read. */
static struct {
    bool is_set;
    log_config config;
} sink;

typedef struct line {
    char text[LINE_BYTES];
    size_t used_bytes;
    bool is_full;
} line;

static log_config current(void)
{
    return sink.is_set ? sink.config : (log_config){.stream = stderr, .level = LOG_WARN};
}

void log_init(const log_config *config)
{
    sink.config = *config;
    sink.is_set = true;
}

int log_enabled(log_level level)
{
    const log_config config = current();
    return config.stream != NULL && level <= config.level;
}

/* Room is left for the end mark, the closing of a JSON object and the newline. */
static void put(line *l, const char *bytes, size_t n)
{
    enum { RESERVED = 16 };
    if (l->is_full || n > LINE_BYTES - RESERVED - l->used_bytes) {
        l->is_full = true;
        return;
    }
    memcpy(l->text + l->used_bytes, bytes, n);
    l->used_bytes += n;
}

static void put_text(line *l, const char *text)
{
    put(l, text, strlen(text));
}

static void put_end(line *l, const char *text)
{
    const size_t n = strlen(text);
    memcpy(l->text + l->used_bytes, text, n);
    l->used_bytes += n;
}

/* One code point that may not appear as it is. Both forms are valid JSON or plainly readable. */
static void put_escaped(line *l, unsigned code, log_format format)
{
    char escape[8];
    if (code == '\n') {
        put_text(l, "\\n");
    } else if (code == '\t') {
        put_text(l, "\\t");
    } else {
        snprintf(escape, sizeof escape, format == LOG_JSON ? "\\u%04x" : "\\x%02x", code & 0xffffu);
        put_text(l, escape);
    }
}

static void put_message(line *l, const char *message, log_format format)
{
    for (size_t rest = strlen(message); rest > 0;) {
        const utf8_step step = utf8_next(message, rest);
        const unsigned char first = (unsigned char)message[0];
        if (step.status != UTF8_COMPLETE) {
            put_text(l, "\xef\xbf\xbd");
        } else if (first < 0x20 || first == 0x7f) {
            put_escaped(l, first, format);
        } else if (first == 0xc2 && (unsigned char)message[1] < 0xa0) { /* C1 controls */
            put_escaped(l, (unsigned char)message[1], format);
        } else if (format == LOG_JSON && (first == '"' || first == '\\')) {
            put(l, first == '"' ? "\\\"" : "\\\\", 2);
        } else {
            put(l, message, step.bytes);
        }
        message += step.bytes;
        rest -= step.bytes;
    }
}

static void put_time(line *l)
{
    struct timespec now = {0};
    struct tm parts = {0};
    char text[48];
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &parts);
    const size_t n = strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &parts);
    snprintf(text + n, sizeof text - n, ".%03dZ", (int)(now.tv_nsec / 1000000));
    put_text(l, text);
}

static void put_line(line *l, log_level level, const char *module, const char *message)
{
    static const char *const names[] = {"error", "warn", "info", "debug"};
    static const char *const padded[] = {" error ", " warn  ", " info  ", " debug "};
    const log_format format = current().format;
    put_text(l, format == LOG_JSON ? "{\"time\":\"" : "");
    put_time(l);
    put_text(l, format == LOG_JSON ? "\",\"level\":\"" : padded[level]);
    put_text(l, format == LOG_JSON ? names[level] : "");
    put_text(l, format == LOG_JSON ? "\",\"module\":\"" : "");
    put_message(l, module, format);
    put_text(l, format == LOG_JSON ? "\",\"message\":\"" : ": ");
    put_message(l, message, format);
    if (l->is_full) put_end(l, "...");
    put_end(l, format == LOG_JSON ? "\"}\n" : "\n");
}

void log_write(log_level level, const char *module, const char *format, ...)
{
    if (!log_enabled(level)) return;
    char message[MESSAGE_BYTES];
    va_list values;
    va_start(values, format);
    const int n_wanted = vsnprintf(message, sizeof message, format, values);
    va_end(values);
    if (n_wanted < 0) return;
    if ((size_t)n_wanted >= sizeof message) memcpy(message + sizeof message - 4, "...", 4);
    line l;
    l.used_bytes = 0;
    l.is_full = false;
    put_line(&l, level, module, message);
    FILE *stream = current().stream;
    fwrite(l.text, 1, l.used_bytes, stream);
    fflush(stream);
}
