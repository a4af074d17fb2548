/* service/server.h - the serving program put together: routes, authentication, readiness, shutdown.
 *
 * Phases: bind (so that /live answers within a second), load, warm up, ready, drain. */
#ifndef SERVICE_SERVER_H
#define SERVICE_SERVER_H

#include "service/server_config.h"

/* Runs until SIGTERM or SIGINT; returns the exit code: 0 drained, 1 failed, 2 a mistake in the settings
 * that shows only beside the model. The caller has blocked the signals (signal_watch_block) before it
 * started any thread; a thread of the server waits for them. */
int server_run(const server_settings *settings);

/* --check: reads the model and every value of it; prints one line. 0 if it is sound, 2 for a
 * mistake in the settings, else 1. */
int server_check(const server_settings *settings);

/* GET /ready of the server that these settings describe: 0 if it answers 200, else 1. */
int server_healthcheck(const server_settings *settings);

#endif
