/* service/signal_watch.h - SIGTERM, SIGINT and SIGHUP, taken by one thread with sigwait.
 *
 * Never by a handler: the thread may lock, log and end the process. Until signal_watch_set_busy nothing runs
 * that could be finished, and a signal ends the process at once: with 0, or with 1 under mpirun, which takes a process
 * that leaves early with 0 for one that will still come, and lets the others wait for it. Later the first one is a request to
 * stop, which whoever waits on stop_event sees, and a second one ends the process with 1. */
#ifndef SERVICE_SIGNAL_WATCH_H
#define SERVICE_SIGNAL_WATCH_H

#include "base/error.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

/* Opaque but for stop_event. */
typedef struct signal_watch {
    int stop_event; /* eventfd: becomes readable, once, when the process shall stop */
    pthread_t thread;
    const char *name,
        *on_stop;     /* of the log's line, and what it says at the first request; borrowed */
    int loading_code; /* of the exit while it loads */
    atomic_bool is_busy;
} signal_watch;

/* Blocks the signals for this thread and those that it will start; before anything slow: the kernel gives
 * process 1 no default action for them. SIGPIPE is ignored. */
void signal_watch_block(void);

typedef struct signal_watch_options {
    const char *name, *on_stop;
    bool is_under_mpi;
} signal_watch_options;
err_t signal_watch_open(signal_watch *watch, const signal_watch_options *options,
                        err_info *info) MUST_CHECK;
void signal_watch_set_busy(signal_watch *watch);

/* Under mpirun a signal waits for this, half a minute at most, before it ends a process that loads: mpirun itself may
 * hang when a process leaves while another still comes. The one watch of the process. */
void signal_watch_set_met(void);
void signal_watch_close(signal_watch *watch);

#endif
