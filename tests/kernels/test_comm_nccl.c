/* tests/kernels/test_comm_nccl.c - comm_nccl.c over a stand-in for its library (nccl_stub.c), since what
 * matters most in it happens when a peer dies: the deadline, the watch thread, the abort. One rank;
 * buffers are host memory. What the real library does is not tested here. */
#include "tests/kernels/comm_promises.h"
#include "tests/kernels/nccl_stub.h"
#include "tests/test_main.h"

#include <dlfcn.h>
#include <time.h>

static nccl_stub_trouble *stub(void)
{
    void *handle = dlopen(NCCL_STUB_PATH, RTLD_NOW | RTLD_LOCAL);
    ck_assert_msg(handle != NULL, "%s", NCCL_STUB_PATH);
    return dlsym(handle, "nccl_stub");
}

/* What a device would say of its stream. */
static int ask_stream(void *ctx)
{
    nccl_stub_trouble *s = ctx;
    int once_more = 1;
    if (atomic_load(&s->is_busy) == 0) return 0;
    if (atomic_compare_exchange_strong(&s->is_busy, &once_more, 0)) return 1;
    return atomic_load(&s->is_busy) != 0;
}

static int ask_broken_stream(void *ctx)
{
    (void)ctx;
    return -1;
}

/* A bootstrap of one rank. */
static comm *open_bootstrap(void)
{
    comm *bootstrap = NULL;
    ck_assert_int_eq(comm_open(comm_find("local"), &(comm_config){.n_ranks = 1}, &bootstrap, NULL),
                     ERR_OK);
    return bootstrap;
}

static comm_config config_of(comm *bootstrap, nccl_stub_trouble *trouble)
{
    return (comm_config){.timeout_ms = 60000,
                         .open_timeout_ms = 60000,
                         .bootstrap = bootstrap,
                         .nccl_library = NCCL_STUB_PATH,
                         .query = ask_stream,
                         .stream_ctx = trouble};
}

static comm *open_nccl(const comm_config *config)
{
    comm *c = NULL;
    err_info info = {.code = ERR_OK};
    const err_t err = comm_open(comm_find("nccl"), config, &c, &info);
    ck_assert_msg(err == ERR_OK, "%s", info.message);
    return c;
}

static void keep_all(comm *c)
{
    for (const comm_promise *p = comm_promises; p->name != NULL; p++)
        ck_assert_msg(p->is_kept(c), "%s", p->name);
}

START_TEST(it_keeps_what_all_promise)
{
    for (int is_slow = 0; is_slow < 2; is_slow++) {
        nccl_stub_trouble *s = stub();
        s->is_slow_to_queue = is_slow != 0;
        comm *bootstrap = open_bootstrap();
        const comm_config config = config_of(bootstrap, s);
        comm *c = open_nccl(&config);
        ck_assert_int_eq(atomic_load(&s->n_open), 1);
        keep_all(c);
        comm_close(c);
        ck_assert_int_eq(atomic_load(&s->n_open), 0);
        ck_assert_int_eq(atomic_load(&s->n_aborts), 0);
        ck_assert_int_eq(comm_status(bootstrap, NULL), ERR_OK);
        comm_close(bootstrap);
    }
}
END_TEST

/* Does not open, says why, leaves no communicator, and tells the other ranks over the bootstrap. */
static void refuse(const comm_config *config, nccl_stub_trouble *s, err_t code, const char *part)
{
    comm *c = NULL;
    err_info info = {.code = ERR_OK};
    ck_assert_int_eq(comm_open(comm_find("nccl"), config, &c, &info), code);
    ck_assert_ptr_null(c);
    ck_assert_msg(strstr(info.message, part) != NULL, "%s", info.message);
    ck_assert_int_eq(atomic_load(&s->n_open), 0);
    ck_assert_int_eq(comm_status(config->bootstrap, NULL), ERR_PEER_LOST);
}

START_TEST(a_library_that_is_not_there_is_named)
{
    comm *bootstrap = open_bootstrap();
    comm_config config = config_of(bootstrap, stub());
    config.nccl_library = "libnccl-of-nowhere.so.2";
    refuse(&config, stub(), ERR_UNSUPPORTED, "libnccl-of-nowhere.so.2");
    comm_close(bootstrap);
}
END_TEST

START_TEST(a_library_that_is_something_else_is_named)
{
    comm *bootstrap = open_bootstrap();
    comm_config config = config_of(bootstrap, stub());
    config.nccl_library = "libm.so.6";
    refuse(&config, stub(), ERR_UNSUPPORTED, "libm.so.6 has no nccl");
    comm_close(bootstrap);
}
END_TEST

START_TEST(a_library_that_is_too_old_is_named)
{
    nccl_stub_trouble *s = stub();
    comm *bootstrap = open_bootstrap();
    const comm_config config = config_of(bootstrap, s);
    s->is_old = true;
    refuse(&config, s, ERR_UNSUPPORTED, "version 21000");
    comm_close(bootstrap);
}
END_TEST

START_TEST(opening_fails_with_what_nccl_says)
{
    nccl_stub_trouble *s = stub();
    comm *bootstrap = open_bootstrap();
    const comm_config config = config_of(bootstrap, s);
    s->has_no_id = true;
    refuse(&config, s, ERR_SYSTEM, "no unique id: stub error");
    comm_close(bootstrap);
}
END_TEST

START_TEST(opening_has_a_deadline)
{
    nccl_stub_trouble *s = stub();
    comm *bootstrap = open_bootstrap();
    comm_config config = config_of(bootstrap, s);
    config.open_timeout_ms = 200;
    s->never_gets_ready = true;
    refuse(&config, s, ERR_PEER_LOST, "in time");
    ck_assert_int_eq(atomic_load(&s->n_aborts), 1);
    comm_close(bootstrap);
}
END_TEST

static void sleep_ms(long ms)
{
    nanosleep(&(struct timespec){.tv_nsec = ms * 1000000}, NULL);
}

/* Queues one call under the trouble that the stub was told of. The communicator must be aborted,
 * whether this thread waits for it or not. */
static void end_by(nccl_stub_trouble *s, comm_config config, bool is_waited_for, const char *part)
{
    float x[4] = {1, 2, 3, 4};
    err_info info = {.code = ERR_OK};
    config.timeout_ms = 300;
    comm *c = open_nccl(&config);
    err_t err = comm_all_reduce(c, x, x, 4, DTYPE_F32, &info);
    if (err == ERR_OK && is_waited_for) err = comm_wait(c, &info);
    while (!is_waited_for && (err = comm_status(c, &info)) == ERR_OK)
        sleep_ms(5);
    ck_assert_int_ne(err, ERR_OK);
    ck_assert_msg(strstr(info.message, part) != NULL, "%s", info.message);
    for (int k = 0; k < 2000 && atomic_load(&s->n_open) > 0; k++) /* just behind the failure */
        sleep_ms(5);
    ck_assert_int_eq(atomic_load(&s->n_open), 0);
    ck_assert_int_eq(atomic_load(&s->n_aborts), 1);
    ck_assert_int_ne(comm_status(config.bootstrap, NULL), ERR_OK); /* the others know */
    ck_assert_int_eq(comm_all_gather(c, x, x, 4, NULL), err);
    ck_assert_int_eq(comm_wait(c, NULL), err);
    comm_close(c);
}

START_TEST(a_dead_peer_ends_who_waits)
{
    nccl_stub_trouble *s = stub();
    comm *bootstrap = open_bootstrap();
    s->never_ends = true;
    end_by(s, config_of(bootstrap, s), true, "did not come to all_reduce");
    comm_close(bootstrap);
}
END_TEST

START_TEST(a_dead_peer_ends_who_waits_elsewhere)
{
    nccl_stub_trouble *s = stub();
    comm *bootstrap = open_bootstrap();
    s->never_ends = true;
    end_by(s, config_of(bootstrap, s), false, "did not come to all_reduce");
    comm_close(bootstrap);
}
END_TEST

START_TEST(what_nccl_notices_ends_who_waits)
{
    for (int is_waited_for = 0; is_waited_for < 2; is_waited_for++) {
        nccl_stub_trouble *s = stub();
        comm *bootstrap = open_bootstrap();
        *s = (nccl_stub_trouble){.peer_exits = true};
        end_by(s, config_of(bootstrap, s), is_waited_for != 0, "remote process exited");
        comm_close(bootstrap);
    }
}
END_TEST

START_TEST(a_call_that_fails_ends_the_group)
{
    nccl_stub_trouble *s = stub();
    comm *bootstrap = open_bootstrap();
    s->call_fails = true;
    end_by(s, config_of(bootstrap, s), true, "nccl failed on rank 0: stub error");
    comm_close(bootstrap);
}
END_TEST

START_TEST(a_device_that_fails_ends_the_group)
{
    nccl_stub_trouble *s = stub();
    comm *bootstrap = open_bootstrap();
    comm_config config = config_of(bootstrap, s);
    config.query = ask_broken_stream;
    end_by(s, config, false, "the device of rank 0 failed");
    comm_close(bootstrap);
}
END_TEST

START_TEST(bad_news_of_the_bootstrap_end_who_waits)
{
    nccl_stub_trouble *s = stub();
    float x = 1;
    err_info info = {.code = ERR_OK};
    comm *bootstrap = open_bootstrap();
    comm_config config = config_of(bootstrap, s);
    config.timeout_ms = 0; /* nothing else would */
    s->never_ends = true;
    comm *c = open_nccl(&config);
    ck_assert_int_eq(comm_broadcast(c, &x, sizeof x, 0, NULL), ERR_OK);
    comm_abort(bootstrap, "no tea");
    ck_assert_int_eq(comm_wait(c, &info), ERR_PEER_LOST);
    ck_assert_str_eq(info.message, "rank 0 gave up: no tea");
    comm_close(c);
    ck_assert_int_eq(atomic_load(&s->n_open), 0);
    comm_close(bootstrap);
}
END_TEST

/* A graph with calls in it, which is launched again: nobody calls NCCL, and it has a deadline all the same. */
START_TEST(what_a_graph_queues_again_is_watched)
{
    nccl_stub_trouble *s = stub();
    err_info info = {.code = ERR_OK};
    comm *bootstrap = open_bootstrap();
    comm_config config = config_of(bootstrap, s);
    config.timeout_ms = 300;
    comm *c = open_nccl(&config);
    atomic_store(&s->is_busy, 1);
    ck_assert_int_eq(comm_note_queued(c, COMM_ALL_REDUCE, 16), ERR_OK);
    ck_assert_int_eq(comm_wait(c, NULL), ERR_OK);
    ck_assert_uint_eq(comm_get_stats(c, COMM_ALL_REDUCE).n_calls, 1);
    atomic_store(&s->is_busy, 2);
    ck_assert_int_eq(comm_note_queued(c, COMM_ALL_GATHER, 16), ERR_OK);
    ck_assert_int_eq(comm_wait(c, &info), ERR_PEER_LOST);
    ck_assert_msg(strstr(info.message, "did not come to all_gather") != NULL, "%s", info.message);
    ck_assert_int_eq(comm_note_queued(c, COMM_ALL_GATHER, 16), ERR_PEER_LOST);
    comm_close(c);
    comm_close(bootstrap);
}
END_TEST

START_TEST(a_comm_of_devices_ends_with_its_group)
{
    nccl_stub_trouble *s = stub();
    float x[2] = {1, 2};
    comm *bootstrap = open_bootstrap();
    comm_config config = config_of(bootstrap, s);
    config.timeout_ms = 0;
    s->never_ends = true;
    comm *c = open_nccl(&config);
    comm_take_device(bootstrap, c);
    ck_assert_ptr_eq(comm_on_device(bootstrap), c);
    comm_set_timeout_ms(bootstrap, 100); /* of both */
    ck_assert_int_eq(comm_all_reduce(c, x, x, 2, DTYPE_F32, NULL), ERR_OK);
    ck_assert_uint_eq(comm_get_stats(bootstrap, COMM_ALL_REDUCE).n_calls, 1);
    ck_assert_int_eq(comm_wait(c, NULL), ERR_PEER_LOST);
    ck_assert_int_eq(comm_status(bootstrap, NULL), ERR_PEER_LOST);
    comm_close(bootstrap);
    ck_assert_int_eq(atomic_load(&s->n_open), 0);
}
END_TEST

START_TEST(an_abort_ends_the_communicator)
{
    nccl_stub_trouble *s = stub();
    float x = 1;
    err_info info = {.code = ERR_OK};
    comm *bootstrap = open_bootstrap();
    const comm_config config = config_of(bootstrap, s);
    s->never_ends = true;
    comm *c = open_nccl(&config);
    ck_assert_int_eq(comm_broadcast(c, &x, sizeof x, 0, NULL), ERR_OK);
    comm_abort(c, "no tea");
    ck_assert_int_eq(atomic_load(&s->n_aborts), 1);
    ck_assert_int_eq(comm_status(bootstrap, NULL), ERR_PEER_LOST);
    ck_assert_int_eq(comm_barrier(c, &info), ERR_PEER_LOST);
    ck_assert_str_eq(info.message, "rank 0 gave up: no tea");
    comm_close(c);
    comm_close(bootstrap);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(it_keeps_what_all_promise),
    TEST_CASE(a_library_that_is_not_there_is_named),
    TEST_CASE(a_library_that_is_something_else_is_named),
    TEST_CASE(a_library_that_is_too_old_is_named),
    TEST_CASE(opening_fails_with_what_nccl_says),
    TEST_CASE(opening_has_a_deadline),
    TEST_CASE(a_dead_peer_ends_who_waits),
    TEST_CASE(a_dead_peer_ends_who_waits_elsewhere),
    TEST_CASE(what_nccl_notices_ends_who_waits),
    TEST_CASE(a_call_that_fails_ends_the_group),
    TEST_CASE(a_device_that_fails_ends_the_group),
    TEST_CASE(bad_news_of_the_bootstrap_end_who_waits),
    TEST_CASE(what_a_graph_queues_again_is_watched),
    TEST_CASE(a_comm_of_devices_ends_with_its_group),
    TEST_CASE(an_abort_ends_the_communicator),
    TEST_CASES_END,
};
