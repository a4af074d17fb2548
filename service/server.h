/* service/server.h - the serving program put together: routes, authentication, readiness, shutdown.
 *
 * Phases: bind (so that /live answers within a second), load, warm up, ready, drain. */
#ifndef SERVICE_SERVER_H
#define SERVICE_SERVER_H

#include "service/server_config.h"

/* Runs until SIGTERM or SIGINT; returns the exit code: 0 drained, 1 failed, 2 usage. Called by main,
 * which has blocked the signals; a thread of its own waits for them with sigwait. */
int server_run(const server_settings *settings);

#endif
