/* tests/kernels/test_comm.c - the promises of comm_promises.h for the transports that need nothing but
 * this machine; `mpi` keeps the same ones under mpirun (comm_mpi.sh), `nccl` over a stand-in of its
 * library (test_comm_nccl.c). */
#include "tests/kernels/comm_ranks.h"
#include "tests/test_main.h"

static const uint32_t GROUPS[] = {1, 2, 3, 4, 8};
enum { N_GROUPS = sizeof GROUPS / sizeof GROUPS[0], TIMEOUT_MS = 120000 };

static void keep_for_groups(const char *transport)
{
    for (int g = 0; g < N_GROUPS; g++) {
        keep_on_threads(transport, GROUPS[g], comm_promises, count_promises(comm_promises),
                        TIMEOUT_MS);
    }
}

START_TEST(local_keeps_what_all_promise)
{
    keep_for_groups("local");
}
END_TEST

START_TEST(tcp_keeps_what_all_promise)
{
    keep_for_groups("tcp");
}
END_TEST

START_TEST(tcp_keeps_it_between_processes)
{
    for (int g = 0; g < N_GROUPS; g++)
        keep_on_processes(GROUPS[g], comm_promises, count_promises(comm_promises));
}
END_TEST

static void end_in_every_way(const char *transport)
{
    for (int g = 1; g < N_GROUPS; g++) {
        for (const comm_promise *p = comm_endings; p->name != NULL; p++)
            keep_on_threads(transport, GROUPS[g], p, 1, COMM_ENDING_TIMEOUT_MS);
    }
}

START_TEST(a_failure_of_one_rank_of_local_ends_all)
{
    end_in_every_way("local");
}
END_TEST

START_TEST(a_failure_of_one_rank_of_tcp_ends_all)
{
    end_in_every_way("tcp");
}
END_TEST

START_TEST(every_transport_is_found_by_its_name)
{
    static const char *const names[] = {"local", "tcp", "mpi", "nccl"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        ck_assert_str_eq(comm_transports[i]->name, names[i]);
        ck_assert_ptr_eq(comm_find(names[i]), comm_transports[i]);
    }
    ck_assert_ptr_null(comm_transports[sizeof names / sizeof names[0]]);
    ck_assert_ptr_null(comm_find("carrier-pigeon"));
}
END_TEST

START_TEST(a_bad_configuration_is_named)
{
    static const struct {
        const char *transport;
        comm_config config;
        const char *part;
    } cases[] = {
        {"local", {.rank = 0, .n_ranks = 2}, "opened together"},
        {"tcp", {.rank = 0, .n_ranks = 0, .master_host = "127.0.0.1", .master_port = 1}, "0 ranks"},
        {"tcp", {.rank = 2, .n_ranks = 2, .master_host = "127.0.0.1", .master_port = 1}, "rank 2"},
        {"tcp", {.rank = 0, .n_ranks = 2, .master_port = 1}, "address"},
        {"tcp", {.rank = 0, .n_ranks = 2, .master_host = "127.0.0.1"}, "port"},
        {"tcp", {.rank = 0, .n_ranks = 1, .peer_timeout_ms = 1}, "1 ms"},
        /* TEST-NET-3: nobody's, so not rank 0's own */
        {"tcp", {.n_ranks = 2, .master_host = "203.0.113.7", .master_port = 9}, "203.0.113.7"},
        {"tcp",
         {.n_ranks = 2, .master_host = "a.invalid", .master_port = 9, .open_timeout_ms = 200},
         "a.invalid"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        comm *c = NULL;
        err_info info = {.code = ERR_OK};
        ck_assert_int_eq(comm_open(comm_find(cases[i].transport), &cases[i].config, &c, &info),
                         ERR_BAD_CONFIG);
        ck_assert_ptr_null(c);
        ck_assert_msg(strstr(info.message, cases[i].part) != NULL, "%s", info.message);
    }
    comm *none[1];
    ck_assert_int_eq(comm_open_local(0, 0, none, NULL), ERR_BAD_CONFIG);
    ck_assert_int_eq(comm_open_local(COMM_RANKS_MAX + 1, 0, none, NULL), ERR_BAD_CONFIG);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE_SECONDS(local_keeps_what_all_promise, 1200),
    TEST_CASE_SECONDS(tcp_keeps_what_all_promise, 1200),
    TEST_CASE_SECONDS(tcp_keeps_it_between_processes, 1200),
    TEST_CASE(a_failure_of_one_rank_of_local_ends_all),
    TEST_CASE(a_failure_of_one_rank_of_tcp_ends_all),
    TEST_CASE(every_transport_is_found_by_its_name),
    TEST_CASE(a_bad_configuration_is_named),
    TEST_CASES_END,
};
