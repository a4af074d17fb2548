/* service/signal_watch.c - see signal_watch.h. */
#include "service/signal_watch.h"

#include "base/log.h"

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <unistd.h>

static void fill_signals(sigset_t *signals)
{
    sigemptyset(signals);
    sigaddset(signals, SIGTERM);
    sigaddset(signals, SIGINT);
    sigaddset(signals, SIGHUP);
    sigaddset(signals, SIGUSR2); /* ends the watch itself */
}

void signal_watch_block(void)
{
    sigset_t signals;
    fill_signals(&signals);
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
    signal(SIGPIPE, SIG_IGN);
}

/* Has the group come together? Of the process: who finds out knows no watch. */
static atomic_bool has_met;

void signal_watch_set_met(void)
{
    atomic_store(&has_met, true);
}

static void wait_for_group(const signal_watch *watch)
{
    enum { STEP_US = 10000, N_STEPS = 3000 };
    for (int i = 0; i < N_STEPS && watch->loading_code != 0 && !atomic_load(&has_met); i++)
        usleep(STEP_US);
}

static void ask_to_stop(const signal_watch *watch, bool is_first)
{
    const uint64_t one = 1;
    if (!is_first) {
        log_warn(watch->name, "stopped at once by a second signal");
        _exit(1);
    }
    if (!atomic_load_explicit(&watch->is_busy, memory_order_acquire)) wait_for_group(watch);
    if (!atomic_load_explicit(&watch->is_busy, memory_order_acquire)) {
        log_info(watch->name,
                 "stopped while loading"); /* nothing is running that could be drained */
        _exit(watch->loading_code);
    }
    log_info(watch->name, "stopping: %s", watch->on_stop);
    if (write(watch->stop_event, &one, sizeof one) != (ssize_t)sizeof one) _exit(1);
}

static void *watch_signals(void *ctx)
{
    const signal_watch *watch = ctx;
    sigset_t signals;
    bool is_first = true;
    fill_signals(&signals);
    for (;;) {
        int number = 0;
        if (sigwait(&signals, &number) != 0) continue;
        if (number == SIGUSR2) return NULL;
        if (number == SIGHUP) continue; /* a closed terminal is no reason to stop */
        ask_to_stop(watch, is_first);
        is_first = false;
    }
}

err_t signal_watch_open(signal_watch *watch, const signal_watch_options *options, err_info *info)
{
    *watch = (signal_watch){.stop_event = eventfd(0, EFD_CLOEXEC),
                            .name = options->name,
                            .on_stop = options->on_stop,
                            .loading_code = options->is_under_mpi ? 1 : 0};
    atomic_init(&watch->is_busy, false);
    if (watch->stop_event < 0) return err_set(info, ERR_SYSTEM, "no event for signals");
    if (pthread_create(&watch->thread, NULL, watch_signals, watch) == 0) return ERR_OK;
    close(watch->stop_event);
    return err_set(info, ERR_SYSTEM, "no thread for signals");
}

void signal_watch_set_busy(signal_watch *watch)
{
    atomic_store_explicit(&watch->is_busy, true, memory_order_release);
}

void signal_watch_close(signal_watch *watch)
{
    pthread_kill(watch->thread, SIGUSR2);
    pthread_join(watch->thread, NULL);
    close(watch->stop_event);
}
