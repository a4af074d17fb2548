/* tests/model/test_expert_placement.c - which rank computes which expert. What the model makes of it is tested
 * in tests/golden/golden_experts_test.c. */
#include "model/expert_placement.h"
#include "tests/test_main.h"

#include "base/random.h"
#include "kernels/dev.h"

#include <stdlib.h>
#include <string.h>

enum { N_LAYERS = 2, EXPERTS_MAX = 16, RANKS_MAX = 17, TOKENS_MAX = 64, TOP_K = 2 };

static expert_placement *open_placement(experts_config config, uint32_t n_experts, uint32_t n_ranks)
{
    const expert_placement_shape shape = {N_LAYERS, n_experts, n_ranks};
    expert_placement *p;
    err_info info = {0};
    ck_assert_msg(expert_placement_open(&config, &shape, &p, &info) == ERR_OK, "%s", info.message);
    return p;
}

static experts_config linear(uint32_t n_redundant)
{
    return (experts_config){.strategy = EXPERTS_LINEAR,
                            .n_redundant = n_redundant,
                            .step_interval = 1,
                            .imbalance_min = 1};
}

static experts_config eplb(uint32_t n_redundant)
{
    experts_config config = linear(n_redundant);
    config.strategy = EXPERTS_EPLB;
    return config;
}

/* ---- what holds for every placement ---------------------------------------------------------------- */

/* What is wrong with a layer, or NULL: one assertion for a case (Check takes a system call for each). */
static const char *fault_of(const expert_placement *p, uint32_t layer, uint32_t n_experts,
                            uint32_t n_redundant, uint32_t n_ranks)
{
    uint32_t count[RANKS_MAX] = {0}, n_slots = 0;
    for (uint32_t e = 0; e < n_experts; e++) {
        uint32_t n, n_has = 0;
        const uint16_t *const ranks = expert_placement_ranks(p, layer, e, &n);
        if (n == 0) return "an expert is nowhere";
        for (uint32_t i = 0; i < n; i++) {
            if (ranks[i] >= n_ranks) return "there is no such rank";
            if (i > 0 && ranks[i] <= ranks[i - 1]) return "ranks do not rise";
            count[ranks[i]]++;
        }
        for (uint32_t r = 0; r < n_ranks; r++)
            n_has += expert_placement_has(p, layer, e, r);
        if (n_has != n) return "has and ranks differ";
        n_slots += n;
    }
    if (n_slots != n_experts + n_redundant) return "slots are empty";
    for (uint32_t r = 0; r < n_ranks; r++) {
        if (count[r] < n_slots / n_ranks) return "a rank has too few";
        if (count[r] > (n_slots + n_ranks - 1) / n_ranks) return "a rank has too many";
    }
    return NULL;
}

static void check_layers(const expert_placement *p, uint32_t n_experts, uint32_t n_redundant,
                         uint32_t n_ranks)
{
    for (uint32_t l = 0; l < N_LAYERS; l++) {
        const char *const fault = fault_of(p, l, n_experts, n_redundant, n_ranks);
        ck_assert_msg(fault == NULL, "%u experts, %u replicas, %u ranks, layer %u: %s", n_experts,
                      n_redundant, n_ranks, l, fault);
    }
}

/* A step's choices: TOKENS_MAX tokens of a skewed router, the skew another in each layer and each step. */
typedef struct step {
    uint32_t chosen[TOKENS_MAX * TOP_K], positions[TOKENS_MAX], served[TOKENS_MAX * TOP_K];
} step;

static void make_step(step *s, uint32_t n_experts, uint32_t layer, uint64_t seed)
{
    for (uint32_t t = 0; t < TOKENS_MAX; t++) {
        const random_block r = random_at(seed, layer, t);
        const uint32_t a = r.word[0] % n_experts, b = r.word[1] % n_experts;
        const uint32_t e = (a < b ? a : b) + (uint32_t)seed; /* low ones twice as often */
        s->positions[t] = r.word[2] % 1000;
        s->chosen[t * TOP_K] = e % n_experts;
        s->chosen[t * TOP_K + 1] = (e + 1 + r.word[3] % 2) % n_experts;
    }
}

static expert_choices choices_of(const step *s, uint32_t first, uint32_t n_tokens)
{
    return (expert_choices){.chosen = s->chosen + (size_t)first * TOP_K,
                            .positions = s->positions + first,
                            .n_tokens = n_tokens,
                            .top_k = TOP_K};
}

/* What `rank` computes of the choices, by the definition, and counts what all do. */
static void deal(expert_placement *p, uint32_t layer, const expert_choices *choices, uint32_t rank,
                 uint32_t *served)
{
    const expert_tables tables = expert_placement_tables(p);
    dev_cpu_tables()[0]->deal_choices(
        NULL, &(deal_choices_args){.chosen = choices->chosen,
                                   .positions = choices->positions,
                                   .n_tokens = choices->n_tokens,
                                   .top_k = choices->top_k,
                                   .experts = expert_tables_layer(&tables, layer),
                                   .rank = rank,
                                   .served = served});
    expert_placement_count(p, layer, choices);
}

static bool run_step(expert_placement *p, uint32_t n_experts, uint64_t seed)
{
    for (uint32_t l = 0; l < N_LAYERS; l++) {
        step s;
        make_step(&s, n_experts, l, seed);
        const expert_choices choices = choices_of(&s, 0, TOKENS_MAX);
        deal(p, l, &choices, 0, s.served);
    }
    return expert_placement_end_step(p);
}

START_TEST(every_expert_has_a_rank_and_its_replicas_share_none)
{
    uint32_t n_moves = 0;
    for (uint32_t n_experts = 2; n_experts <= 9; n_experts++) {
        for (uint32_t n_ranks = 1; n_ranks <= 10; n_ranks++) {
            for (uint32_t n = 0; n <= n_experts * (n_ranks - 1); n += 1 + n / 4) {
                expert_placement *const p = open_placement(eplb(n), n_experts, n_ranks);
                check_layers(p, n_experts, n, n_ranks);
                for (uint64_t seed = 0; seed < 4; seed++) {
                    n_moves += run_step(p, n_experts, seed);
                    check_layers(p, n_experts, n, n_ranks);
                }
                expert_placement_close(p);
            }
        }
    }
    ck_assert_uint_gt(n_moves, 500);
}
END_TEST

static void check_ranks(const expert_placement *p, uint32_t expert, const uint16_t *expected,
                        uint32_t n_expected)
{
    uint32_t n;
    const uint16_t *const ranks = expert_placement_ranks(p, 1, expert, &n);
    ck_assert_uint_eq(n, n_expected);
    ck_assert_mem_eq(ranks, expected, n * sizeof *ranks);
}

/* In order without replicas; with them, as evenly as experts of equal load can be packed. */
START_TEST(linear_deals_experts_in_order_and_replicas_evenly)
{
    expert_placement *p = open_placement(linear(0), 5, 2);
    for (uint32_t e = 0; e < 5; e++)
        check_ranks(p, e, (const uint16_t[]){e < 2 ? 0 : 1}, 1);
    expert_placement_close(p);
    p = open_placement(linear(2), 8, 4); /* 2 6 | 3 7 | 4 0 1 | 5 1 0: a load of two each */
    check_ranks(p, 0, (const uint16_t[]){2, 3}, 2);
    check_ranks(p, 1, (const uint16_t[]){2, 3}, 2);
    for (uint32_t e = 2; e < 8; e++)
        check_ranks(p, e, (const uint16_t[]){(uint16_t)((e - 2) % 4)}, 1);
    expert_placement_close(p);
    p = open_placement(linear(6), 3, 3); /* everything everywhere */
    for (uint32_t e = 0; e < 3; e++)
        check_ranks(p, e, (const uint16_t[]){0, 1, 2}, 3);
    expert_placement_close(p);
    p = open_placement(linear(0), 2, 4); /* . 0 . 1 */
    check_ranks(p, 0, (const uint16_t[]){1}, 1);
    check_ranks(p, 1, (const uint16_t[]){3}, 1);
    ck_assert(!run_step(p, 2, 0));
    expert_placement_close(p);
}
END_TEST

/* ---- dealing --------------------------------------------------------------------------------------- */

/* What each rank serves of a step; [rank][choice]. */
static void deal_all(expert_placement *const *p, uint32_t n_ranks, const expert_choices *choices,
                     uint32_t served[][TOKENS_MAX * TOP_K])
{
    for (uint32_t r = 0; r < n_ranks; r++)
        deal(p[r], 1, choices, r, served[r]);
}

START_TEST(each_choice_is_computed_by_one_rank_that_has_the_expert_whatever_the_batch)
{
    enum { N_EXPERTS = 5, N_RANKS = 3 };
    expert_placement *p[N_RANKS];
    uint32_t whole[N_RANKS][TOKENS_MAX * TOP_K], part[N_RANKS][TOKENS_MAX * TOP_K];
    step s;
    for (uint32_t r = 0; r < N_RANKS; r++) {
        p[r] = open_placement(eplb(4), N_EXPERTS, N_RANKS);
        ck_assert(run_step(p[r], N_EXPERTS, 3));
    }
    make_step(&s, N_EXPERTS, 1, 9);
    const expert_choices all = choices_of(&s, 0, TOKENS_MAX);
    deal_all(p, N_RANKS, &all, whole);
    for (uint32_t i = 0; i < TOKENS_MAX * TOP_K; i++) {
        uint32_t n = 0;
        for (uint32_t r = 0; r < N_RANKS; r++) {
            if (whole[r][i] == MOE_ELSEWHERE) continue;
            ck_assert_uint_eq(whole[r][i], s.chosen[i]);
            ck_assert(expert_placement_has(p[r], 1, s.chosen[i], r));
            n++;
        }
        ck_assert_uint_eq(n, 1);
    }
    for (uint32_t first = 0; first < TOKENS_MAX; first += 7) {
        const uint32_t n = TOKENS_MAX - first < 7 ? TOKENS_MAX - first : 7;
        const expert_choices some = choices_of(&s, first, n);
        deal_all(p, N_RANKS, &some, part);
        for (uint32_t r = 0; r < N_RANKS; r++)
            ck_assert_mem_eq(part[r], whole[r] + first * TOP_K, n * TOP_K * sizeof(uint32_t));
    }
    for (uint32_t r = 0; r < N_RANKS; r++)
        expert_placement_close(p[r]);
}
END_TEST

/* Both experts lie on both ranks: each token has one on each, and positions take turns. */
START_TEST(replicas_take_the_tokens_of_a_sequence_in_turn)
{
    expert_placement *const p = open_placement(linear(2), 2, 2);
    const uint32_t chosen[] = {0, 1, 0, 1, 1, 0}, positions[] = {10, 11, 12};
    const expert_choices choices = {chosen, positions, 3, 2};
    uint32_t served[6];
    deal(p, 0, &choices, 0, served);
    ck_assert_mem_eq(
        served, ((const uint32_t[]){0, MOE_ELSEWHERE, MOE_ELSEWHERE, 1, MOE_ELSEWHERE, 0}), 24);
    ck_assert_mem_eq(expert_placement_dealt(p, 0), ((const uint64_t[]){3, 3}), 16);
    expert_placement_close(p);
}
END_TEST

/* ---- moving ---------------------------------------------------------------------------------------- */

/* A step in which expert e of layer 0 is chosen load[e] times, at positions 0, 1, 2 ...; layer 1 is even. */
static bool load_step(expert_placement *p, const uint32_t *load, uint32_t n_experts)
{
    uint32_t served[1];
    for (uint32_t e = 0; e < n_experts; e++) {
        for (uint32_t i = 0; i < load[e]; i++)
            deal(p, 0, &(expert_choices){&e, &i, 1, 1}, 0, served);
        for (uint32_t i = 0; i < 10; i++)
            deal(p, 1, &(expert_choices){&e, &i, 1, 1}, 0, served);
    }
    return expert_placement_end_step(p);
}

/* Four experts, two ranks: 0 1 | 2 3. A layer moves when a window ends with 1.3 times the mean on a rank, not
 * before, not with less, and never if packing would not help. */
START_TEST(experts_move_at_the_end_of_a_window_that_was_out_of_balance)
{
    experts_config config = eplb(0);
    config.step_interval = 3;
    config.imbalance_min = 1.3;
    expert_placement *const p = open_placement(config, 4, 2);
    expert_stats stats;
    const uint32_t even[] = {60, 70, 60, 10}, uneven[] = {60, 80, 50, 10}, one[] = {200, 0, 0, 0};
    for (int i = 0; i < 3; i++)
        ck_assert(!load_step(p, even, 4)); /* 130 of 200: 1.3 times the mean, not more */
    ck_assert(!load_step(p, uneven, 4));   /* 140 */
    ck_assert(!load_step(p, uneven, 4));
    expert_placement_stats(p, &stats);
    ck_assert_uint_eq(stats.n_rebalanced, 0);
    ck_assert_double_eq_tol(stats.imbalance, (130. + 20) / (100 + 20), 1e-12);
    ck_assert(load_step(p, uneven, 4)); /* 80 10 | 60 50 */
    expert_placement_stats(p, &stats);
    ck_assert_uint_eq(stats.n_rebalanced, 1);
    ck_assert_uint_eq(stats.n_moved, 2); /* 3 for 0, or 1 for 2 */
    ck_assert_double_eq_tol(stats.imbalance, (140. + 20) / (100 + 20), 1e-12);
    ck_assert(expert_placement_has(p, 0, 1, 0));
    ck_assert(expert_placement_has(p, 0, 3, 0));
    check_ranks(p, 1, (const uint16_t[]){0}, 1); /* layer 1 has stayed */
    for (int i = 0; i < 3; i++)
        ck_assert(!load_step(p, one, 4)); /* as bad wherever it lies */
    expert_placement_stats(p, &stats);
    ck_assert_uint_eq(stats.n_rebalanced, 1);
    ck_assert_double_eq_tol(stats.imbalance, (200. + 20) / (100 + 20), 1e-12);
    expert_placement_close(p);
}
END_TEST

/* At first 0 | 1 2 | 3 0 | 1 2, so two ranks share expert 2, and one has 15 of 40 in the even layer. In the end
 * all four share it; the even layer stays: the greedy packing would be no better. */
START_TEST(replicas_go_to_the_expert_that_all_tokens_choose)
{
    expert_placement *const p = open_placement(eplb(3), 4, 4);
    const uint32_t one[] = {0, 0, 400, 0};
    uint32_t n;
    expert_stats stats;
    ck_assert(load_step(p, one, 4));
    (void)expert_placement_ranks(p, 0, 2, &n);
    ck_assert_uint_eq(n, 4);
    expert_placement_stats(p, &stats);
    ck_assert_double_eq_tol(stats.imbalance, (200. + 15) / (100 + 10), 1e-12);
    ck_assert(!load_step(p, one, 4));
    expert_placement_stats(p, &stats);
    ck_assert_double_eq_tol(stats.imbalance, (100. + 15) / (100 + 10), 1e-12);
    ck_assert_uint_eq(stats.n_rebalanced, 1);
    expert_placement_close(p);
}
END_TEST

/* Eight experts, four ranks: 0 1 | 2 3 | 4 5 | 6 7, of which the first two trade one: whatever the bins of the
 * packing are called, the others keep what they have. */
START_TEST(ranks_keep_the_experts_they_have_where_they_can)
{
    expert_placement *const p = open_placement(eplb(0), 8, 4);
    expert_stats stats;
    const uint32_t load[] = {90, 80, 12, 10, 53, 48, 51, 50};
    ck_assert(load_step(p, load, 8));
    expert_placement_stats(p, &stats);
    ck_assert_uint_eq(stats.n_moved, 2);
    for (uint32_t e = 4; e < 8; e++)
        ck_assert(expert_placement_has(p, 0, e, e / 2));
    ck_assert(expert_placement_has(p, 0, 0, 0));
    ck_assert(expert_placement_has(p, 0, 3, 0) || expert_placement_has(p, 0, 3, 1));
    expert_placement_close(p);
}
END_TEST

START_TEST(the_same_tokens_lead_to_the_same_placement_however_they_were_cut)
{
    enum { N_EXPERTS = 7, N_RANKS = 3, N_STEPS = 12 };
    expert_placement *const whole = open_placement(eplb(4), N_EXPERTS, N_RANKS);
    experts_config config = eplb(4);
    config.step_interval = 2;
    expert_placement *const halves = open_placement(config, N_EXPERTS, N_RANKS);
    step s;
    expert_stats a, b;
    for (uint64_t seed = 0; seed < N_STEPS; seed++) {
        bool has_moved = false;
        (void)run_step(whole, N_EXPERTS, seed);
        for (uint32_t half = 0; half < 2; half++) {
            for (uint32_t l = 0; l < N_LAYERS; l++) {
                make_step(&s, N_EXPERTS, l, seed);
                const expert_choices choices =
                    choices_of(&s, half * TOKENS_MAX / 2, TOKENS_MAX / 2);
                deal(halves, l, &choices, N_RANKS - 1, s.served);
            }
            has_moved = expert_placement_end_step(halves);
            ck_assert(half == 1 || !has_moved);
        }
        for (uint32_t e = 0; e < N_EXPERTS; e++) {
            uint32_t n, n_other;
            const uint16_t *const x = expert_placement_ranks(whole, 1, e, &n);
            const uint16_t *const y = expert_placement_ranks(halves, 1, e, &n_other);
            ck_assert_uint_eq(n, n_other);
            ck_assert_mem_eq(x, y, n * sizeof *x);
        }
    }
    expert_placement_stats(whole, &a);
    expert_placement_stats(halves, &b);
    ck_assert_uint_gt(a.n_rebalanced, 2);
    ck_assert_uint_eq(a.n_rebalanced, b.n_rebalanced);
    ck_assert_uint_eq(a.n_moved, b.n_moved);
    ck_assert_double_eq(a.imbalance, b.imbalance);
    uint64_t n_choices = 0;
    for (uint32_t r = 0; r < N_RANKS; r++) {
        ck_assert_uint_eq(a.rank_choices[r], b.rank_choices[r]);
        n_choices += a.rank_choices[r];
    }
    ck_assert_uint_eq(n_choices, (uint64_t)N_STEPS * N_LAYERS * TOKENS_MAX * TOP_K);
    expert_placement_close(whole);
    expert_placement_close(halves);
}
END_TEST

/* ---- settings -------------------------------------------------------------------------------------- */

static void expect_refusal(uint32_t n_redundant, uint32_t n_experts, uint32_t n_ranks,
                           const char *message)
{
    const experts_config config = eplb(n_redundant);
    const expert_placement_shape shape = {N_LAYERS, n_experts, n_ranks};
    expert_placement *p;
    err_info info = {0};
    ck_assert_int_eq(expert_placement_open(&config, &shape, &p, &info), ERR_BAD_CONFIG);
    ck_assert_ptr_null(p);
    ck_assert_str_eq(info.message, message);
}

START_TEST(replicas_that_no_rank_has_a_use_for_are_refused)
{
    expect_refusal(1, 8, 1,
                   "num-redundant-experts: 1 is more than 0, with which every rank (of 1) has all "
                   "8 experts of a layer");
    expect_refusal(9, 8, 2,
                   "num-redundant-experts: 9 is more than 8, with which every rank (of 2) has all "
                   "8 experts of a layer");
    expect_refusal(3073, 1024, 8,
                   "num-redundant-experts: 3073 is more than 3072: a layer has at most 4096 "
                   "experts and replicas");
}
END_TEST

START_TEST(settings_are_read_by_name)
{
    experts_config config = {0};
    const cfg_binding binding = {&experts_config_table, &config};
    err_info info = {0};
    ck_assert_int_eq(cfg_defaults(&binding, 1), ERR_OK);
    ck_assert_uint_eq(config.strategy, EXPERTS_LINEAR);
    ck_assert_uint_eq(config.n_redundant, 0);
    ck_assert_uint_eq(config.step_interval, 3000);
    ck_assert_double_eq(config.imbalance_min, 1.1);
    ck_assert_int_eq(cfg_set(&binding, 1, "expert-placement-strategy", "eplb", &info), ERR_OK);
    ck_assert_uint_eq(config.strategy, EXPERTS_EPLB);
    ck_assert_int_eq(cfg_set(&binding, 1, "eplb-step-interval", "0", &info), ERR_BAD_CONFIG);
    ck_assert_str_eq(info.message, "eplb-step-interval: 0 is outside [1, 16777216]");
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(every_expert_has_a_rank_and_its_replicas_share_none),
    TEST_CASE(linear_deals_experts_in_order_and_replicas_evenly),
    TEST_CASE(each_choice_is_computed_by_one_rank_that_has_the_expert_whatever_the_batch),
    TEST_CASE(replicas_take_the_tokens_of_a_sequence_in_turn),
    TEST_CASE(experts_move_at_the_end_of_a_window_that_was_out_of_balance),
    TEST_CASE(replicas_go_to_the_expert_that_all_tokens_choose),
    TEST_CASE(ranks_keep_the_experts_they_have_where_they_can),
    TEST_CASE(the_same_tokens_lead_to_the_same_placement_however_they_were_cut),
    TEST_CASE(replicas_that_no_rank_has_a_use_for_are_refused),
    TEST_CASE(settings_are_read_by_name),
    TEST_CASES_END,
};
