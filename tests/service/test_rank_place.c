/* tests/service/test_rank_place.c - which rank a process is, by what launchers put into its environment. */
#include "service/rank_place.h"
#include "tests/test_main.h"

#include <string.h>

enum { VARIABLES_MAX = 6 };

typedef struct launch {
    const char *environment[VARIABLES_MAX]; /* ends with NULL */
    uint32_t n_wanted;                      /* --ranks; 0: 1 */
    err_t err;
    const char *message; /* the error's begin */
    const char *transport;
    uint32_t rank, n_ranks, n_here;
    const char *host;
    uint16_t port;
} launch;

static void check(const launch *l)
{
    err_info info = {0};
    rank_place place;
    char *environment[VARIABLES_MAX];
    memcpy(environment, l->environment, sizeof environment);
    const ranks_config config = {.n_ranks = l->n_wanted > 0 ? l->n_wanted : 1};
    ck_assert_int_eq(rank_place_find(&config, environment, &place, &info), l->err);
    if (l->err != ERR_OK) {
        ck_assert_msg(strncmp(info.message, l->message, strlen(l->message)) == 0, "%s",
                      info.message);
        return;
    }
    ck_assert_uint_eq(place.rank, l->rank);
    ck_assert_uint_eq(place.n_ranks, l->n_ranks);
    ck_assert_uint_eq(place.n_here, l->n_here);
    ck_assert_uint_eq(place.master_port, l->port);
    if (l->transport == NULL) {
        ck_assert_ptr_null(place.transport);
    } else {
        ck_assert_str_eq(place.transport->name, l->transport);
    }
    if (l->host != NULL) ck_assert_str_eq(place.master_host, l->host);
}

START_TEST(launchers_are_understood)
{
    static const launch launches[] = {
        {.environment = {"HOME=/"}, .n_ranks = 1, .n_here = 1},
        {.environment = {"WORLD_SIZE=1", "RANK=0"}, .n_ranks = 1, .n_here = 1},
        {.environment = {"WORLD_SIZE=", "RANK=7"}, .n_ranks = 1, .n_here = 1},
        {.n_wanted = 4, .transport = "local", .n_ranks = 4, .n_here = 4},
        {.environment = {"RANK=2", "WORLD_SIZE=3", "MASTER_ADDR=node-0", "MASTER_PORT=1234"},
         .transport = "tcp",
         .rank = 2,
         .n_ranks = 3,
         .n_here = 1,
         .host = "node-0",
         .port = 1234},
        {.environment = {"RANK=0", "WORLD_SIZE=8", "MASTER_ADDR=::1", "LOCAL_WORLD_SIZE=4"},
         .transport = "tcp",
         .n_ranks = 8,
         .n_here = 4,
         .host = "::1",
         .port = 29500},
        {.environment = {"RANK=1", "WORLD_SIZE=2", "MASTER_ADDR=a", "MASTER_PORT=1000",
                         "TORCHELASTIC_USE_AGENT_STORE=True"},
         .transport = "tcp",
         .rank = 1,
         .n_ranks = 2,
         .n_here = 1,
         .host = "a",
         .port = 1001},
        {.environment = {"LWS_WORKER_INDEX=1", "LWS_GROUP_SIZE=2", "LWS_LEADER_ADDRESS=l.svc"},
         .transport = "tcp",
         .rank = 1,
         .n_ranks = 2,
         .n_here = 1,
         .host = "l.svc",
         .port = 29500},
        {.environment = {"OMPI_COMM_WORLD_RANK=3", "OMPI_COMM_WORLD_SIZE=4",
                         "OMPI_COMM_WORLD_LOCAL_SIZE=2"},
         .transport = "mpi",
         .rank = 3,
         .n_ranks = 4,
         .n_here = 2},
    };
    for (size_t i = 0; i < sizeof launches / sizeof *launches; i++)
        check(&launches[i]);
}
END_TEST

START_TEST(contradictions_name_the_variable)
{
    static const launch launches[] = {
        {.environment = {"WORLD_SIZE=2"}, .err = ERR_BAD_CONFIG, .message = "RANK: is not set"},
        {.environment = {"WORLD_SIZE=x"}, .err = ERR_BAD_CONFIG, .message = "WORLD_SIZE: \"x\""},
        {.environment = {"WORLD_SIZE=0"}, .err = ERR_BAD_CONFIG, .message = "WORLD_SIZE: \"0\""},
        {.environment = {"WORLD_SIZE=2000"}, .err = ERR_BAD_CONFIG, .message = "WORLD_SIZE: "},
        {.environment = {"WORLD_SIZE=2", "RANK=2", "MASTER_ADDR=a"},
         .err = ERR_BAD_CONFIG,
         .message = "RANK: \"2\" is no number in [0, 1]"},
        {.environment = {"WORLD_SIZE=2", "RANK=-1", "MASTER_ADDR=a"},
         .err = ERR_BAD_CONFIG,
         .message = "RANK: \"-1\""},
        {.environment = {"WORLD_SIZE=2", "RANK=1"},
         .err = ERR_BAD_CONFIG,
         .message = "MASTER_ADDR: is not set"},
        {.environment = {"WORLD_SIZE=2", "RANK=1", "MASTER_ADDR=a", "MASTER_PORT=65535"},
         .err = ERR_BAD_CONFIG,
         .message = "MASTER_PORT: \"65535\""},
        {.environment = {"WORLD_SIZE=2", "RANK=1", "MASTER_ADDR=a", "LOCAL_WORLD_SIZE=3"},
         .err = ERR_BAD_CONFIG,
         .message = "LOCAL_WORLD_SIZE: \"3\""},
        {.environment = {"WORLD_SIZE=2", "RANK=1", "MASTER_ADDR=a"},
         .n_wanted = 2,
         .err = ERR_BAD_CONFIG,
         .message = "ranks: 2 in one process, and WORLD_SIZE"},
    };
    for (size_t i = 0; i < sizeof launches / sizeof *launches; i++)
        check(&launches[i]);
}
END_TEST

START_TEST(ranks_of_one_machine_share_its_processors)
{
    const rank_place alone = {.n_ranks = 1, .n_here = 1};
    const rank_place many = {.transport = comm_find("local"), .n_ranks = 64, .n_here = 64};
    ck_assert_uint_eq(rank_place_threads(&alone, 0), 0); /* the device's own choice */
    ck_assert_uint_eq(rank_place_threads(&alone, 3), 3);
    ck_assert_uint_eq(rank_place_threads(&many, 3), 3);
    ck_assert_uint_ge(rank_place_threads(&many, 0), 1);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(launchers_are_understood), TEST_CASE(contradictions_name_the_variable),
    TEST_CASE(ranks_of_one_machine_share_its_processors), TEST_CASES_END};
