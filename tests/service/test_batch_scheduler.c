/* Promises of service/batch_scheduler.h. Items are written as short tables; the last tests draw thousands
 * of random states and check what must hold in all of them. */
#include "service/batch_scheduler.h"
#include "tests/test_main.h"

#include <string.h>

enum { ITEMS_MAX = 64 };

static const sched_limits ROOMY = {.n_seqs_max = 8, .n_tokens_max = 100};

static sched_item running(uint64_t arrival, uint32_t n_pending)
{
    return (sched_item){
        .arrival = arrival, .group = arrival, .n_pending = n_pending, .is_running = true};
}

static sched_item waiting(uint64_t arrival, uint32_t n_pending)
{
    return (sched_item){.arrival = arrival, .group = arrival, .n_pending = n_pending};
}

static sched_item sibling(uint64_t arrival, uint64_t group, uint32_t n_pending, bool is_running)
{
    return (sched_item){.arrival = arrival,
                        .group = group,
                        .n_pending = n_pending,
                        .is_running = is_running,
                        .shares_prompt = true};
}

/* Tokens planned for each item, 0 for those that are not in the plan. */
static size_t plan(const sched_item *items, size_t n_items, const sched_limits *limits,
                   uint32_t n_tokens[ITEMS_MAX])
{
    sched_row rows[ITEMS_MAX];
    const size_t n_rows = sched_plan(items, n_items, limits, rows);
    memset(n_tokens, 0, ITEMS_MAX * sizeof *n_tokens);
    for (size_t r = 0; r < n_rows; r++) {
        ck_assert_uint_lt(rows[r].item, n_items);
        ck_assert_uint_eq(n_tokens[rows[r].item], 0);
        ck_assert_uint_ge(rows[r].n_tokens, 1);
        n_tokens[rows[r].item] = rows[r].n_tokens;
    }
    return n_rows;
}

START_TEST(a_step_takes_no_more_of_a_session_than_it_may)
{
    sched_item items[] = {running(1, 50), running(2, 50), waiting(3, 9)};
    const sched_limits limits = {.n_seqs_max = 4, .n_tokens_max = 64};
    sched_row rows[4];
    items[0].n_step_max = 7;
    ck_assert_uint_eq(sched_plan(items, 3, &limits, rows), 3);
    ck_assert_uint_eq(rows[0].n_tokens, 7);
    ck_assert_uint_eq(rows[1].n_tokens, 50); /* what is left goes on to the others */
    ck_assert_uint_eq(rows[2].n_tokens, 7);
    items[0].n_step_max = 1000;
    ck_assert_uint_eq(sched_plan(items, 3, &limits, rows), 2);
    ck_assert_uint_eq(rows[0].n_tokens, 50);
}
END_TEST

START_TEST(nothing_to_do_gives_no_rows)
{
    uint32_t n[ITEMS_MAX];
    ck_assert_uint_eq(plan(NULL, 0, &ROOMY, n), 0);
    ck_assert_uint_eq(sched_victim(NULL, 0), SIZE_MAX);
}
END_TEST

START_TEST(decode_comes_before_prompts)
{
    const sched_item items[] = {running(1, 50), running(2, 1), running(3, 1)};
    const sched_limits limits = {.n_seqs_max = 8, .n_tokens_max = 10};
    uint32_t n[ITEMS_MAX];
    ck_assert_uint_eq(plan(items, 3, &limits, n), 3);
    ck_assert_uint_eq(n[0], 8);
    ck_assert_uint_eq(n[1], 1);
    ck_assert_uint_eq(n[2], 1);
}
END_TEST

START_TEST(a_prompt_is_cut_to_the_budget)
{
    const sched_item items[] = {waiting(1, 1000)};
    uint32_t n[ITEMS_MAX];
    ck_assert_uint_eq(plan(items, 1, &ROOMY, n), 1);
    ck_assert_uint_eq(n[0], 100);
}
END_TEST

START_TEST(prompts_are_served_in_order_of_arrival)
{
    const sched_item items[] = {running(1, 70), running(2, 70), waiting(3, 5)};
    uint32_t n[ITEMS_MAX];
    ck_assert_uint_eq(plan(items, 3, &ROOMY, n), 2);
    ck_assert_uint_eq(n[0], 70);
    ck_assert_uint_eq(n[1], 30);
}
END_TEST

START_TEST(waiting_sessions_are_admitted_while_places_last)
{
    const sched_item items[] = {running(1, 1), waiting(2, 3), waiting(3, 3), waiting(4, 3)};
    const sched_limits limits = {.n_seqs_max = 3, .n_tokens_max = 100};
    uint32_t n[ITEMS_MAX];
    ck_assert_uint_eq(plan(items, 4, &limits, n), 3);
    ck_assert_uint_eq(n[1], 3);
    ck_assert_uint_eq(n[2], 3);
    ck_assert_uint_eq(n[3], 0);
}
END_TEST

START_TEST(running_ones_without_tokens_still_hold_their_place)
{
    const sched_item items[] = {running(1, 200), running(2, 200), waiting(3, 3)};
    const sched_limits limits = {.n_seqs_max = 2, .n_tokens_max = 100};
    uint32_t n[ITEMS_MAX];
    ck_assert_uint_eq(plan(items, 3, &limits, n), 1);
    ck_assert_uint_eq(n[0], 100);
}
END_TEST

START_TEST(a_sibling_waits_while_the_prompt_is_computed)
{
    const sched_item items[] = {sibling(1, 1, 40, true), sibling(2, 1, 40, false), waiting(3, 5)};
    uint32_t n[ITEMS_MAX];
    ck_assert_uint_eq(plan(items, 3, &ROOMY, n), 2);
    ck_assert_uint_eq(n[0], 40);
    ck_assert_uint_eq(n[1], 0);
    ck_assert_uint_eq(n[2], 5); /* others pass it */
}
END_TEST

START_TEST(the_first_of_waiting_siblings_leads)
{
    const sched_item items[] = {sibling(1, 1, 4, false), sibling(2, 1, 4, false),
                                sibling(3, 3, 4, false), sibling(4, 3, 4, false)};
    uint32_t n[ITEMS_MAX];
    ck_assert_uint_eq(plan(items, 4, &ROOMY, n), 2);
    ck_assert_uint_eq(n[0], 4);
    ck_assert_uint_eq(n[2], 4);
}
END_TEST

START_TEST(siblings_of_a_shared_prompt_come_together)
{
    sched_item items[] = {running(1, 1), sibling(2, 1, 4, false), sibling(3, 1, 4, false)};
    items[1].shares_prompt = items[2].shares_prompt = false; /* the prompt is there by now */
    uint32_t n[ITEMS_MAX];
    ck_assert_uint_eq(plan(items, 3, &ROOMY, n), 3);
}
END_TEST

START_TEST(the_newest_running_session_is_the_victim)
{
    const sched_item items[] = {running(1, 1), running(2, 1), waiting(3, 1)};
    ck_assert_uint_eq(sched_victim(items, 3), 1);
    ck_assert_uint_eq(sched_victim(items + 2, 1), SIZE_MAX);
}
END_TEST

static uint32_t draw(uint64_t *state, uint32_t n)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33) % n;
}

static size_t random_items(uint64_t *state, const sched_limits *limits, sched_item *items)
{
    const size_t n_items = draw(state, ITEMS_MAX + 1);
    uint32_t n_running = 0;
    uint64_t arrival = 0;
    for (size_t i = 0; i < n_items; i++) {
        arrival += 1 + draw(state, 3);
        const bool is_running = n_running < limits->n_seqs_max && draw(state, 3) == 0;
        n_running += is_running;
        items[i] = (sched_item){.arrival = arrival,
                                .group = draw(state, 4) == 0 ? 7 : 100 + i,
                                .n_pending = draw(state, 2) == 0 ? 1 : 1 + draw(state, 300),
                                .is_running = is_running,
                                .shares_prompt = draw(state, 2) == 0};
    }
    return n_items;
}

/* What holds in every plan. */
static void check_plan(const sched_item *items, size_t n_items, const sched_limits *limits,
                       const uint32_t *n)
{
    uint32_t n_tokens = 0, n_places = 0, n_rows = 0;
    bool all_decode = true, is_cut = false;
    for (size_t i = 0; i < n_items; i++) {
        n_tokens += n[i];
        n_rows += n[i] > 0;
        n_places += items[i].is_running || n[i] > 0;
        ck_assert_uint_le(n[i], items[i].n_pending);
        if (items[i].is_running && items[i].n_pending == 1 && n[i] == 0) all_decode = false;
        is_cut = is_cut || (n[i] > 0 && n[i] < items[i].n_pending);
    }
    ck_assert_uint_le(n_tokens, limits->n_tokens_max);
    ck_assert_uint_le(n_places, limits->n_seqs_max);
    ck_assert_uint_le(n_rows, limits->n_seqs_max);
    /* Somebody was cut or left out of decoding only because the budget is used up. */
    if (!all_decode || is_cut) ck_assert_uint_eq(n_tokens, limits->n_tokens_max);
    if (n_items > 0) ck_assert_uint_gt(n_tokens, 0);
}

/* In a plan nobody overtakes: who is served less than he wants is older than nobody of his kind who is
 * served, siblings apart. */
static void check_order(const sched_item *items, size_t n_items, const uint32_t *n)
{
    for (size_t i = 0; i < n_items; i++) {
        for (size_t k = i + 1; k < n_items; k++) {
            const bool same_kind = items[i].is_running == items[k].is_running &&
                                   (items[i].n_pending == 1) == (items[k].n_pending == 1);
            if (!same_kind || items[i].shares_prompt || n[k] == 0) continue;
            ck_assert_uint_eq(n[i], items[i].n_pending);
        }
    }
}

START_TEST(every_plan_keeps_its_budgets_and_its_order)
{
    uint64_t state = 7;
    for (int round = 0; round < 4000; round++) {
        sched_item items[ITEMS_MAX];
        uint32_t n[ITEMS_MAX];
        const uint32_t n_seqs_max = 1 + draw(&state, 40);
        const sched_limits limits = {.n_seqs_max = n_seqs_max,
                                     .n_tokens_max = n_seqs_max + draw(&state, 500)};
        const size_t n_items = random_items(&state, &limits, items);
        plan(items, n_items, &limits, n);
        check_plan(items, n_items, &limits, n);
        check_order(items, n_items, n);
    }
}
END_TEST

/* A small engine over the scheduler: sessions come, compute their prompt, decode and leave; now and
 * then the newest is preempted. Everybody must come to an end. */
typedef struct life {
    uint32_t n_left; /* tokens to decode */
    uint32_t n_known;
} life;

static size_t remove_finished(sched_item *items, life *lives, size_t n_items)
{
    size_t n_kept = 0;
    for (size_t i = 0; i < n_items; i++) {
        if (lives[i].n_left == 0) continue;
        items[n_kept] = items[i];
        lives[n_kept++] = lives[i];
    }
    return n_kept;
}

static void run_plan(sched_item *items, life *lives, size_t n_items, const uint32_t *n)
{
    for (size_t i = 0; i < n_items; i++) {
        if (n[i] == 0) continue;
        items[i].is_running = true;
        items[i].n_pending -= n[i];
        if (items[i].n_pending > 0) continue;
        items[i].n_pending = 1;
        lives[i].n_known++;
        lives[i].n_left--;
        for (size_t k = 0; k < n_items; k++)
            items[k].shares_prompt = items[k].shares_prompt && items[k].group != items[i].group;
    }
}

START_TEST(nobody_starves)
{
    uint64_t state = 3;
    for (int round = 0; round < 300; round++) {
        sched_item items[ITEMS_MAX];
        life lives[ITEMS_MAX];
        uint32_t n[ITEMS_MAX];
        const sched_limits limits = {.n_seqs_max = 1 + draw(&state, 6), .n_tokens_max = 32};
        size_t n_items = 0;
        uint64_t arrival = 0;
        for (int step = 0; step < 20000 && (step < 200 || n_items > 0); step++) {
            if (step < 200 && n_items < ITEMS_MAX && draw(&state, 3) == 0) {
                const uint32_t n_prompt = 1 + draw(&state, 200);
                items[n_items] = waiting(++arrival, n_prompt);
                items[n_items].group = arrival / 3;
                items[n_items].shares_prompt = draw(&state, 2) == 0;
                lives[n_items++] = (life){.n_left = 1 + draw(&state, 20), .n_known = n_prompt};
            }
            plan(items, n_items, &limits, n);
            run_plan(items, lives, n_items, n);
            n_items = remove_finished(items, lives, n_items);
            const size_t victim = draw(&state, 50) == 0 ? sched_victim(items, n_items) : SIZE_MAX;
            if (victim == SIZE_MAX || victim == 0) continue; /* the oldest is not preempted */
            items[victim].is_running = false;
            items[victim].n_pending = lives[victim].n_known;
        }
        ck_assert_uint_eq(n_items, 0);
    }
}
END_TEST

const test_case test_cases[] = {TEST_CASE(a_step_takes_no_more_of_a_session_than_it_may),
                                TEST_CASE(nothing_to_do_gives_no_rows),
                                TEST_CASE(decode_comes_before_prompts),
                                TEST_CASE(a_prompt_is_cut_to_the_budget),
                                TEST_CASE(prompts_are_served_in_order_of_arrival),
                                TEST_CASE(waiting_sessions_are_admitted_while_places_last),
                                TEST_CASE(running_ones_without_tokens_still_hold_their_place),
                                TEST_CASE(a_sibling_waits_while_the_prompt_is_computed),
                                TEST_CASE(the_first_of_waiting_siblings_leads),
                                TEST_CASE(siblings_of_a_shared_prompt_come_together),
                                TEST_CASE(the_newest_running_session_is_the_victim),
                                TEST_CASE(every_plan_keeps_its_budgets_and_its_order),
                                TEST_CASE(nobody_starves),
                                TEST_CASES_END};
