/* tests/kernels/comm_ranks.h - groups for tests: ranks as threads or as processes of this test. */
#ifndef TESTS_KERNELS_COMM_RANKS_H
#define TESTS_KERNELS_COMM_RANKS_H

#include "tests/kernels/comm_promises.h"

/* A port of 127.0.0.1 at which nobody listens. */
uint16_t free_port(void);

/* A tcp rank on 127.0.0.1. */
comm_config tcp_config(uint32_t rank, uint32_t n_ranks, uint16_t port);

/* Runs promises, one after another, on every rank of one group whose ranks are threads; checks. */
void keep_on_threads(const char *transport, uint32_t n_ranks, const comm_promise *promises,
                     size_t n_promises, uint32_t timeout_ms);

/* The same; ranks are processes of a tcp group. */
void keep_on_processes(uint32_t n_ranks, const comm_promise *promises, size_t n_promises);

size_t count_promises(const comm_promise *promises);

#endif
