/* tests/service/test_engine_ranks.c - an engine over several ranks: one result, and one end for all. What
 * test_engine_pressure.c promises is asked of two ranks too (test_engine_pressure_ranks). */
#include "tests/service/engine_rig.h"
#include "tests/test_main.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { TOKENS_MAX = 512, N_WISHES = 4 };

static const wish wishes[N_WISHES] = {{.n_prompt = 1, .max_tokens = 90},
                                      {.n_prompt = 200, .prompt_kind = 1, .max_tokens = 64},
                                      {.n_prompt = 77, .prompt_kind = 2, .seed = 5},
                                      {.n_prompt = 40, .prompt_kind = 3, .max_tokens = 30}};

START_TEST(tokens_are_those_of_one_rank)
{
    static uint32_t expected[N_WISHES][TOKENS_MAX], tokens[TOKENS_MAX];
    static const uint32_t n_ranks[] = {1, 2, 3, 8};
    for (int g = 0; g < 4; g++) {
        rig r;
        guest guests[N_WISHES];
        rig_open(&(rig_options){.n_ranks = n_ranks[g], .no_prefix_caching = true}, &r);
        for (int w = 0; w < N_WISHES; w++) {
            const uint32_t n = rig_run(&r, &wishes[w], g == 0 ? expected[w] : tokens);
            ck_assert(g == 0 || memcmp(tokens, expected[w], n * sizeof *tokens) == 0);
        }
        for (int w = 0; w < N_WISHES; w++) { /* and all at once */
            guest_make(&r, &wishes[w], &guests[w]);
            guest_submit(&r, &guests[w]);
        }
        for (int w = 0; w < N_WISHES; w++) {
            ck_assert_int_eq(guest_wait(&guests[w]), FINISH_LENGTH);
            ck_assert(memcmp(session_tokens(guests[w].s), expected[w],
                             session_read(guests[w].s).n_tokens * sizeof *tokens) == 0);
            guest_leave(&guests[w]);
        }
        rig_close(&r);
    }
}
END_TEST

START_TEST(a_lost_group_ends_every_session_and_takes_no_more)
{
    for (uint32_t lost = 0; lost < 3; lost++) {
        rig r;
        guest running, waiting, late;
        err_info info = {0};
        rig_open(&(rig_options){.n_ranks = 3, .n_seqs_max = 1, .no_prefix_caching = true}, &r);
        r.may_fail = true;
        guest_make(&r, &(wish){.max_tokens = 900}, &running);
        guest_make(&r, &(wish){.max_tokens = 900, .prompt_kind = 1}, &waiting);
        guest_make(&r, &(wish){.prompt_kind = 2}, &late);
        guest_submit(&r, &running);
        guest_submit(&r, &waiting);
        guest_wait_tokens(&running, 3);
        comm_abort(lost == 0 ? r.comm : r.others[lost - 1].comm, "it is tired");
        ck_assert_int_eq(guest_wait(&running), FINISH_ERROR);
        ck_assert_int_eq(guest_wait(&waiting), FINISH_ERROR);
        ck_assert(!engine_is_alive(r.e));
        ck_assert_int_eq(engine_status(r.e, &info), ERR_PEER_LOST);
        ck_assert_msg(strstr(info.message, "it is tired") != NULL, "%s", info.message);
        guest_submit(&r, &late); /* who comes now is told soon */
        ck_assert_int_eq(guest_wait(&late), FINISH_ERROR);
        guest_leave(&running);
        guest_leave(&waiting);
        guest_leave(&late);
        rig_close(&r);
    }
}
END_TEST

START_TEST(every_rank_reports_itself)
{
    rig r;
    uint32_t tokens[TOKENS_MAX];
    rank_report reports[RIG_RANKS_MAX];
    rig_open(&(rig_options){.n_ranks = 3, .no_prefix_caching = true}, &r);
    (void)rig_run(&r, &wishes[1], tokens);
    for (int i = 0; i < 100; i++) { /* once a second */
        ck_assert_uint_eq(engine_get_reports(r.e, reports, RIG_RANKS_MAX), 3);
        if (reports[2].comm[COMM_ALL_REDUCE].n_calls > 0) break;
        nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
    }
    ck_assert_uint_eq(engine_get_reports(r.e, reports, 1), 1);
    ck_assert_uint_eq(engine_get_reports(r.e, reports, RIG_RANKS_MAX), 3);
    for (int i = 0; i < 3; i++) {
        ck_assert_uint_gt(reports[i].weight_bytes, 0);
        ck_assert_uint_gt(reports[i].kv_budget_bytes, 0);
        ck_assert_uint_eq(reports[i].comm[COMM_ALL_REDUCE].n_calls,
                          reports[0].comm[COMM_ALL_REDUCE].n_calls);
        ck_assert_uint_gt(reports[i].comm[COMM_ALL_GATHER].n_calls, 0);
    }
    rig_close(&r);
}
END_TEST

const test_case test_cases[] = {TEST_CASE(tokens_are_those_of_one_rank),
                                TEST_CASE(a_lost_group_ends_every_session_and_takes_no_more),
                                TEST_CASE(every_rank_reports_itself), TEST_CASES_END};
