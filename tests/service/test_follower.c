/* tests/service/test_follower.c - messages between ranks: long ones arrive whole, and what makes no sense ends the
 * follower with a sentence and never with a crash. */
#include "service/follower.h"
#include "service/rank_wire.h"
#include "tests/test_main.h"

#include <pthread.h>
#include <string.h>

enum { TIMEOUT_MS = 20000, PAGE_TOKENS = 8 };
static const kv_limits limits = {4, 64, 3000};

/* ---- a follower in a thread ----------------------------------------------------------------------- */

typedef struct led {
    comm *comms[2];
    pthread_t thread;
    err_t err;
    err_info info;
    rank_mail mail;
    uint64_t pages_used; /* when it had ended */
} led;

static kv_cache *open_cache(dev *d, const model *m, comm *c)
{
    kv_cache *cache;
    kv_config config = {0};
    const cfg_binding binding = {&kv_config_table, &config};
    err_info info = {0};
    ck_assert_int_eq(cfg_defaults(&binding, 1), ERR_OK);
    config.memory_bytes = 8 << 20;
    config.page_tokens = PAGE_TOKENS;
    config.window_tokens = 16;
    config.comm = c;
    ck_assert_msg(kv_cache_open(d, &config, model_get_kv_shape(m), &limits, &cache, &info) ==
                      ERR_OK,
                  "%s", info.message);
    cfg_deinit(&binding, 1);
    return cache;
}

/* Model and cache alone, without the group's collectives: what is tested here are messages. */
static void *follow(void *ctx)
{
    led *l = ctx;
    dev *d;
    model *m;
    kv_stats stats;
    const dev_config device = {.isa = "ref", .n_threads = 1};
    const model_options options = {.n_step_tokens_max = limits.n_step_tokens_max};
    ck_assert_int_eq(dev_open_cpu(&device, &d, NULL), ERR_OK);
    ck_assert_int_eq(model_open(d, "tests/golden/mixtral-base-f32", &options, &m, NULL), ERR_OK);
    kv_cache *cache = open_cache(d, m, NULL);
    const rank_parts parts = {
        .cache = cache, .m = m, .comm = l->comms[1], .limits = limits, .page_tokens = PAGE_TOKENS};
    l->err = follower_run(&parts, &l->info);
    kv_stats_read(cache, &stats);
    l->pages_used = stats.pages_used;
    kv_cache_close(cache);
    model_close(m);
    dev_close(d);
    comm_close(l->comms[1]);
    return NULL;
}

static void lead(led *l)
{
    *l = (led){.err = ERR_OK};
    ck_assert_int_eq(comm_open_local(2, TIMEOUT_MS, l->comms, NULL), ERR_OK);
    ck_assert_int_eq(rank_mail_init(&l->mail, &limits), ERR_OK);
    ck_assert_int_eq(pthread_create(&l->thread, NULL, follow, l), 0);
}

static void part(led *l)
{
    ck_assert_int_eq(pthread_join(l->thread, NULL), 0);
    ck_assert_uint_eq(l->pages_used, 0);
    comm_close(l->comms[0]);
    rank_mail_deinit(&l->mail);
}

static void say(led *l, const rank_head *head, const void *payload)
{
    *rank_mail_head(&l->mail) = *head;
    if (payload != NULL) memcpy(rank_mail_payload(&l->mail), payload, head->payload_bytes);
    ck_assert_int_eq(rank_mail_send(&l->mail, l->comms[0], NULL), ERR_OK);
}

/* ---- messages -------------------------------------------------------------------------------------- */

/* OPEN with its ids: longer than one broadcast. */
typedef struct opening {
    rank_open open;
    uint32_t tokens[2000];
} opening;

static rank_head open_head(uint32_t slot, uint32_t n_tokens)
{
    return (rank_head){.op = RANK_OPEN,
                       .slot = slot,
                       .n_prompt_tokens = n_tokens,
                       .n_tokens = n_tokens,
                       .payload_bytes = (uint32_t)(sizeof(rank_open) + n_tokens * 4)};
}

typedef struct step {
    rank_row rows[2];
    uint32_t tokens[64];
} step;

static void open_and_step(led *l)
{
    static opening first;
    step s = {.rows = {{0, 40, 0}, {1, 20, 0}}};
    for (uint32_t i = 0; i < 60; i++)
        s.tokens[i] = i;
    const rank_head opens[2] = {open_head(0, 2000), open_head(1, 20)};
    say(l, &opens[0], &first);
    say(l, &opens[1], &first);
    say(l,
        &(rank_head){.op = RANK_STEP,
                     .n_rows = 2,
                     .n_tokens = 60,
                     .payload_bytes = (uint32_t)(sizeof s.rows + 60 * 4)},
        &s);
}

START_TEST(a_follower_does_what_it_is_told_until_it_may_leave)
{
    led l;
    lead(&l);
    open_and_step(&l);
    say(&l, &(rank_head){.op = RANK_SHARE, .slot = 1, .n_tokens = 20}, NULL);
    say(&l, &(rank_head){.op = RANK_CLOSE, .slot = 1, .flags = RANK_KEEPS}, NULL);
    say(&l, &(rank_head){.op = RANK_LOOK, .payload_bytes = sizeof(rank_look)},
        &(rank_look){.seq = 1});
    say(&l, &(rank_head){.op = RANK_LEAVE}, NULL); /* with a sequence open */
    part(&l);
    ck_assert_msg(l.err == ERR_OK, "%s", l.info.message);
}
END_TEST

/* Sends a good beginning and then `head`; the follower must end by itself. */
static void check_refused(const rank_head *head, const void *payload)
{
    led l;
    lead(&l);
    open_and_step(&l);
    say(&l, head, payload);
    part(&l);
    ck_assert_int_eq(l.err, ERR_PEER_LOST);
    ck_assert_msg(strstr(l.info.message, "makes no sense") != NULL ||
                      strstr(l.info.message, "was expected") != NULL,
                  "%s", l.info.message);
}

START_TEST(messages_that_make_no_sense_end_the_follower)
{
    static opening any;
    const uint32_t rows_bytes = sizeof(rank_row);
    const rank_head heads[] = {
        {.op = RANK_OP_COUNT},
        {.op = 12345678},
        {.op = RANK_CLOSE, .slot = 2},
        {.op = RANK_CLOSE, .slot = 4},
        {.op = RANK_CLOSE, .slot = UINT32_MAX},
        {.op = RANK_END_REPLAY, .slot = 3},
        {.op = RANK_END_REPLAY, .slot = 0}, /* nothing was to be read again */
        {.op = RANK_SHARE, .slot = 0, .n_tokens = 41},
        {.op = RANK_LOOK, .payload_bytes = 1},
        open_head(0, 5), /* it is open */
        {.op = RANK_OPEN, .slot = 2, .n_tokens = 9, .payload_bytes = sizeof(rank_open)},
        {.op = RANK_STEP},
        {.op = RANK_STEP, .n_rows = 5, .n_tokens = 5, .payload_bytes = 5 * rows_bytes + 20},
        {.op = RANK_STEP, .n_rows = 1, .n_tokens = 65, .payload_bytes = rows_bytes + 65 * 4},
        {.op = RANK_STEP, .n_rows = 1, .n_tokens = 1, .payload_bytes = rows_bytes},
    };
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++)
        check_refused(&heads[i], &any);
}
END_TEST

START_TEST(rows_that_make_no_sense_end_the_follower)
{
    const rank_row rows[] = {
        {2, 1, 0},                /* not open */
        {9, 1, 0},                /* no slot */
        {0, 0, 0},                /* nothing */
        {0, 1, RANK_ROW_REPLAYS}, /* nothing is to be read again */
        {0, 2, 0},                /* more than the step's tokens */
        {UINT32_MAX, 1, 0},       /* no slot */
        {0, UINT32_MAX - 1, 0},   /* would wrap */
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        step s = {.rows = {rows[i]}};
        const rank_head head = {
            .op = RANK_STEP, .n_rows = 1, .n_tokens = 1, .payload_bytes = sizeof(rank_row) + 4};
        check_refused(&head, &s);
    }
}
END_TEST

START_TEST(a_missed_message_is_noticed)
{
    led l;
    lead(&l);
    l.mail.n_sent = 7;
    say(&l, &(rank_head){.op = RANK_LEAVE}, NULL);
    part(&l);
    ck_assert_int_eq(l.err, ERR_PEER_LOST);
    ck_assert_msg(strstr(l.info.message, "message 0 was expected") != NULL, "%s", l.info.message);
}
END_TEST

const test_case test_cases[] = {TEST_CASE(a_follower_does_what_it_is_told_until_it_may_leave),
                                TEST_CASE(messages_that_make_no_sense_end_the_follower),
                                TEST_CASE(rows_that_make_no_sense_end_the_follower),
                                TEST_CASE(a_missed_message_is_noticed), TEST_CASES_END};
