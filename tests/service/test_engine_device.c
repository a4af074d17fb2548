/* tests/service/test_engine_device.c - an engine on a device with memory of its own: the tokens of the host, and one
 * clear end for all when the device fails. */
#include "tests/kernels/dev_apart.h"
#include "tests/service/engine_rig.h"
#include "tests/test_main.h"

#include <stdatomic.h>
#include <string.h>

enum { TOKENS_MAX = 64, N_RANKS = 2 };

/* Those of the present rig, as they were opened: of ranks in any order. */
static dev *_Atomic opened[N_RANKS];
static atomic_uint n_opened;

static err_t open_apart(const dev_config *config, dev **out, err_info *info)
{
    const err_t err = dev_apart_open(config, (size_t)64 << 20, out, info);
    if (err == ERR_OK) atomic_store(&opened[atomic_fetch_add(&n_opened, 1) % N_RANKS], *out);
    return err;
}

START_TEST(tokens_are_those_of_the_host)
{
    const wish w = {.n_prompt = 70, .max_tokens = 40, .seed = 3};
    for (uint32_t n_ranks = 1; n_ranks <= N_RANKS; n_ranks++) {
        uint32_t expected[TOKENS_MAX], tokens[TOKENS_MAX], n = 0;
        for (int is_apart = 0; is_apart < 2; is_apart++) {
            rig r;
            rig_open(&(rig_options){.n_ranks = n_ranks, .open_dev = is_apart ? open_apart : NULL},
                     &r);
            n = rig_run(&r, &w, is_apart ? tokens : expected);
            rig_close(&r);
        }
        ck_assert_uint_eq(n, 40);
        ck_assert_mem_eq(tokens, expected, n * sizeof *tokens);
    }
}
END_TEST

static void check_failure(uint32_t n_ranks, uint32_t which)
{
    rig r;
    guest running, late;
    err_info info = {0};
    atomic_store(&n_opened, 0);
    rig_open(&(rig_options){.n_ranks = n_ranks, .open_dev = open_apart, .no_prefix_caching = true},
             &r);
    r.may_fail = true;
    guest_make(&r, &(wish){.max_tokens = 900}, &running);
    guest_make(&r, &(wish){.prompt_kind = 2}, &late);
    guest_submit(&r, &running);
    guest_wait_tokens(&running, 3);
    ck_assert_uint_eq(atomic_load(&n_opened), n_ranks);
    dev_apart_fail_after(atomic_load(&opened[which]), 100);
    ck_assert_int_eq(guest_wait(&running), FINISH_ERROR);
    ck_assert_int_ne(engine_status(r.e, &info), ERR_OK);
    ck_assert_msg(strstr(info.message, "the device failed") != NULL, "%s", info.message);
    if (engine_submit(r.e, &late.s, 1, NULL) == ERR_OK)
        ck_assert_int_eq(guest_wait(&late), FINISH_ERROR);
    guest_leave(&running);
    guest_leave(&late);
    rig_close(&r);
}

START_TEST(a_device_that_fails_ends_every_session_and_every_rank)
{
    check_failure(1, 0);
    check_failure(N_RANKS, 0);
    check_failure(N_RANKS, 1);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(tokens_are_those_of_the_host),
    TEST_CASE(a_device_that_fails_ends_every_session_and_every_rank),
    TEST_CASES_END,
};
