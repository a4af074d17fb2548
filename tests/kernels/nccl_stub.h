/* tests/kernels/nccl_stub.h - what tests ask of the stand-in for NCCL, by its symbol "nccl_stub". */
#ifndef TESTS_KERNELS_NCCL_STUB_H
#define TESTS_KERNELS_NCCL_STUB_H

#include <stdatomic.h>
#include <stdbool.h>

typedef struct nccl_stub_trouble {
    /* Set before a comm is opened. */
    bool is_old;           /* a version that is too old */
    bool has_no_id;        /* no unique id to be had */
    bool never_gets_ready; /* opening never ends */
    bool is_slow_to_queue; /* calls return ncclInProgress */
    bool call_fails;       /* calls return an error */
    bool never_ends;       /* what is queued is never done */
    bool peer_exits;       /* the same, and NCCL notices */
    /* What happened. */
    atomic_int is_busy;  /* 0: the stream is done, 1: done when asked once more, 2: not done */
    atomic_int n_open;   /* communicators */
    atomic_int n_aborts; /* of communicators */
} nccl_stub_trouble;

extern nccl_stub_trouble nccl_stub;

#endif
