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
static bool draws; /* the device attends and draws by itself */

static err_t open_apart(const dev_config *config, dev **out, err_info *info)
{
    const err_t err = draws ? dev_apart_open_attending(config, (size_t)256 << 20, out, info)
                            : dev_apart_open(config, (size_t)64 << 20, out, info);
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

static void check_failure_after(uint32_t n_ranks, uint32_t which, uint32_t n_ops)
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
    dev_apart_fail_after(atomic_load(&opened[which]), n_ops);
    ck_assert_int_eq(guest_wait(&running), FINISH_ERROR);
    ck_assert_int_ne(engine_status(r.e, &info), ERR_OK);
    ck_assert_msg(strstr(info.message, "the device failed") != NULL, "%s", info.message);
    if (engine_submit(r.e, &late.s, 1, NULL) == ERR_OK)
        ck_assert_int_eq(guest_wait(&late), FINISH_ERROR);
    guest_leave(&running);
    guest_leave(&late);
    rig_close(&r);
}

static void check_failure(uint32_t n_ranks, uint32_t which)
{
    check_failure_after(n_ranks, which, 100);
}

START_TEST(a_device_that_fails_ends_every_session_and_every_rank)
{
    check_failure(1, 0);
    check_failure(N_RANKS, 0);
    check_failure(N_RANKS, 1);
    draws = true;
    for (uint32_t n_ops = 90; n_ops < 110; n_ops++) /* a step is fewer: the draw is among them */
        check_failure_after(1, 0, n_ops);
}
END_TEST

/* ---- draws on the device ------------------------------------------------------------------------- */

static atomic_uint n_drawn; /* rows that the device has drawn */
static const dev_ops *apart_ops;
static dev_ops test_ops;

static void count_sample(dev *d, const sample_args *args)
{
    atomic_fetch_add(&n_drawn, args->n_rows);
    apart_ops->sample(d, args);
}

/* The same device twice: one that draws, and counts; one whose logits come to the host. */
static err_t open_with(const dev_config *config, dev **out, err_info *info,
                       void (*sample)(dev *d, const sample_args *args))
{
    const err_t err = dev_apart_open_attending(config, (size_t)256 << 20, out, info);
    if (err != ERR_OK) return err;
    apart_ops = (*out)->ops;
    test_ops = *apart_ops;
    test_ops.sample = sample;
    (*out)->ops = &test_ops;
    return ERR_OK;
}

static err_t open_drawing(const dev_config *config, dev **out, err_info *info)
{
    return open_with(config, out, info, count_sample);
}

static err_t open_not_drawing(const dev_config *config, dev **out, err_info *info)
{
    return open_with(config, out, info, NULL);
}

enum { N_GUESTS = 5, N_OUTPUT = 24 };

static const wish draw_wishes[N_GUESTS] = {
    {.max_tokens = N_OUTPUT, .prompt_kind = 1},
    {.max_tokens = N_OUTPUT, .prompt_kind = 2, .with_logprobs = true, .repetition_penalty = 1.5f},
    {.max_tokens = N_OUTPUT, .prompt_kind = 3, .seed = 5},
    {.max_tokens = N_OUTPUT, .prompt_kind = 4, .seed = 6, .with_logprobs = true},
    {.n_prompt = 50, .prompt_kind = 5, .score_only = true},
};

/* One token, and its list where that was asked for. */
typedef struct shown {
    uint32_t token;
    float logprob;
    uint32_t n_top;
    sampler_entry top[SAMPLER_LOGPROBS_MAX];
} shown;

typedef struct drawn {
    shown output[N_GUESTS][N_OUTPUT];
} drawn;

static void show(const session *s, uint32_t i, bool with_logprobs, shown *out)
{
    *out = (shown){.token = session_tokens(s)[i]};
    if (!with_logprobs) return;
    const session_logprob given = session_output_logprob(s, i);
    ck_assert_uint_eq(given.token, out->token);
    ck_assert_uint_eq(given.n_top, 2);
    out->logprob = given.logprob;
    out->n_top = given.n_top;
    memcpy(out->top, given.top, given.n_top * sizeof *given.top);
}

/* All wishes at once, so that rows that are drawn, scored and listed meet in a batch. */
static void run_guests(err_t (*open_dev)(const dev_config *, dev **, err_info *), drawn *out)
{
    rig r;
    guest guests[N_GUESTS];
    memset(out, 0, sizeof *out);
    rig_open(&(rig_options){.n_ranks = 1, .open_dev = open_dev}, &r);
    for (uint32_t i = 0; i < N_GUESTS; i++)
        guest_make(&r, &draw_wishes[i], &guests[i]);
    for (uint32_t i = 0; i < N_GUESTS; i++)
        guest_submit(&r, &guests[i]);
    for (uint32_t i = 0; i < N_GUESTS; i++) {
        const session *s = guests[i].s;
        ck_assert_int_eq(guest_wait(&guests[i]), FINISH_LENGTH);
        const uint32_t n = draw_wishes[i].score_only ? 0 : N_OUTPUT;
        ck_assert_uint_eq(session_read(s).n_tokens, n);
        for (uint32_t t = 0; t < n; t++)
            show(s, t, draw_wishes[i].with_logprobs, &out->output[i][t]);
    }
    rig_wait_idle(&r);
    for (uint32_t i = 0; i < N_GUESTS; i++)
        guest_leave(&guests[i]);
    rig_close(&r);
}

START_TEST(a_device_that_draws_gives_tokens_and_logprobs_of_the_hosts_path)
{
    static drawn here, there;
    run_guests(open_not_drawing, &here);
    ck_assert_uint_eq(atomic_load(&n_drawn), 0);
    run_guests(open_drawing, &there);
    ck_assert_uint_eq(atomic_load(&n_drawn), (N_GUESTS - 1) * N_OUTPUT);
    ck_assert_mem_eq(there.output, here.output, sizeof here.output);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(tokens_are_those_of_the_host),
    TEST_CASE(a_device_that_fails_ends_every_session_and_every_rank),
    TEST_CASE(a_device_that_draws_gives_tokens_and_logprobs_of_the_hosts_path),
    TEST_CASES_END,
};
