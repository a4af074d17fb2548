/* service/process_words.h - the words that another process was started with.
 *
 * A container's health check is a process of its own: it has the variables of the server but not the words that
 * were given to it. /proc has them. */
#ifndef SERVICE_PROCESS_WORDS_H
#define SERVICE_PROCESS_WORDS_H

#include "base/error.h"

typedef struct process_words {
    int argc;
    char **argv; /* [argc], into text */
    char *text;  /* as in /proc/PID/cmdline: words with a NUL behind each */
} process_words;

/* `pid` is text, which must be a number. ERR_BAD_CONFIG: it is none; ERR_IO: there is no such process, or it may not be
 * looked at. Close with process_words_deinit only after ERR_OK. */
err_t process_words_init(process_words *out, const char *pid, err_info *info) MUST_CHECK;
void process_words_deinit(process_words *words);

#endif
