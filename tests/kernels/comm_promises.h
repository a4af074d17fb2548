/* tests/kernels/comm_promises.h - what every transport promises, as functions that each rank runs.
 *
 * They know a `comm` and nothing of its ranks: threads, processes or mpirun's. Results are compared
 * bit for bit with plain loops over the inputs of all ranks, which every rank can compute; so two
 * transports that keep these promises agree with each other. */
#ifndef TESTS_KERNELS_COMM_PROMISES_H
#define TESTS_KERNELS_COMM_PROMISES_H

#include "kernels/comm.h"

#include <stdio.h>

/* Returns whether this rank saw the promise kept; if not, says why on stderr. */
typedef bool comm_promise_fn(comm *c);

typedef struct comm_promise {
    const char *name;
    comm_promise_fn *is_kept;
} comm_promise;

/* Both end with {NULL, NULL}. */
extern const comm_promise comm_promises[]; /* one after another over one group; all transports */
extern const comm_promise comm_endings[];  /* each ends its group, of at least two ranks */

enum { COMM_ENDING_TIMEOUT_MS = 700 }; /* of a call, in groups of comm_endings */

#define EXPECT(condition)                                                                          \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: rank %u: %s\n", __FILE__, __LINE__, comm_rank(c), #condition); \
            return false;                                                                          \
        }                                                                                          \
    } while (0)

/* For calls that must succeed: says their message. */
#define EXPECT_OK(call)                                                                          \
    do {                                                                                         \
        err_info failure_ = {.code = ERR_OK};                                                    \
        err_info *info = &failure_;                                                              \
        if ((call) != ERR_OK) {                                                                  \
            fprintf(stderr, "%s:%d: rank %u: %s: %s\n", __FILE__, __LINE__, comm_rank(c), #call, \
                    failure_.message);                                                           \
            return false;                                                                        \
        }                                                                                        \
    } while (0)

#endif
