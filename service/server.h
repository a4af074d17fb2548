/* service/server.h - the serving program put together: routes, authentication, readiness, shutdown.
 *
 * Phases: bind (so that /live answers within a second), load, warm up, ready, drain. */
#ifndef SERVICE_SERVER_H
#define SERVICE_SERVER_H

#include "service/server_config.h"

/* Runs until SIGTERM or SIGINT; returns the exit code: 0 drained, 1 failed, 2 a mistake in the settings
 * that shows only beside the model. The caller has blocked the signals (server_block_signals) before it
 * started any thread; a thread of the server waits for them. */
int server_run(const server_settings *settings);

/* --check: reads the model and every value of it; prints one line. 0 if it is sound, 2 for a
 * mistake in the settings, else 1. */
int server_check(const server_settings *settings);

/* GET /ready of the server that these settings describe: 0 if it answers 200, else 1. */
int server_healthcheck(const server_settings *settings);

/* SIGTERM, SIGINT and SIGHUP for sigwait; SIGPIPE is ignored. Before anything slow: the kernel gives
 * process 1 no default action for them, so an unready program could not be stopped. */
void server_block_signals(void);

#endif
