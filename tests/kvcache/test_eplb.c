/* tests/kvcache/test_eplb.c - the load balancer against results of the published program. */
#include "kvcache/placement/expert_map.h"
#include "tests/test_main.h"

#include "base/random.h"

#include <string.h>

/* The loads of two layers, and where DeepSeek's program puts 16 replicas on 8 GPUs. */
static const float LOADS[2][12] = {{90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86},
                                   {20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27}};
static const uint32_t ON_TWO_NODES[2][16] = {{5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1},
                                             {7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1}};
static const uint32_t ON_ONE_NODE[2][16] = {{10, 6, 10, 7, 0, 2, 11, 4, 5, 9, 5, 4, 8, 3, 1, 1},
                                            {1, 10, 2, 4, 5, 11, 5, 0, 6, 7, 6, 3, 8, 8, 9, 7}};

/* What the GPUs then have to do, on two nodes. */
static const double GPU_LOADS[2][8] = {{121.5, 86.5, 125, 113, 147.5, 131.5, 156, 152},
                                       {173, 179.5, 120.5, 172, 123, 152, 118.5, 117.5}};

/* n_nodes 3 divides no number of groups here: all nodes are one. */
static void check_golden(uint32_t n_nodes, const uint32_t expected[2][16], const double *ratio)
{
    for (int l = 0; l < 2; l++) {
        uint32_t slot_expert[16], n_replicas[12];
        const kv_eplb_args args = {.load = LOADS[l],
                                   .n_experts = 12,
                                   .n_slots = 16,
                                   .n_groups = 4,
                                   .n_nodes = n_nodes,
                                   .n_bins = 8,
                                   .slot_expert = slot_expert,
                                   .n_replicas = n_replicas};
        kv_eplb_place(&args);
        ck_assert_mem_eq(slot_expert, expected[l], sizeof slot_expert);
        double most = 0, sum = 0;
        for (uint32_t bin = 0; bin < 8; bin++) {
            double load = 0;
            for (uint32_t i = 2 * bin; i < 2 * bin + 2; i++)
                load += (double)LOADS[l][slot_expert[i]] / n_replicas[slot_expert[i]];
            if (n_nodes == 2) ck_assert_double_eq(load, GPU_LOADS[l][bin]);
            most = load > most ? load : most;
            sum += load;
        }
        ck_assert_double_eq_tol(most / (sum / 8), ratio[l], 5e-5);
    }
}

START_TEST(replicas_lie_where_the_published_program_puts_them)
{
    check_golden(2, ON_TWO_NODES, (const double[]){1.2081, 1.2422});
    check_golden(1, ON_ONE_NODE, (const double[]){1.0726, 1.1903});
}
END_TEST

/* What holds for any load: all slots are used, every expert has one, and a group's stay on its node. */
START_TEST(every_expert_has_a_slot_on_the_node_of_its_group)
{
    for (uint32_t seed = 0; seed < 50; seed++) {
        float load[64];
        uint32_t slot_expert[96], n_replicas[64], n_found[64] = {0}, group_node[8];
        memset(group_node, 0xff, sizeof group_node);
        for (uint32_t e = 0; e < 64; e++)
            load[e] = (float)(random_at(seed, 1, e).word[0] % 1000);
        const kv_eplb_args args = {.load = load,
                                   .n_experts = 64,
                                   .n_slots = 96,
                                   .n_groups = 8,
                                   .n_nodes = 4,
                                   .n_bins = 16,
                                   .slot_expert = slot_expert,
                                   .n_replicas = n_replicas};
        kv_eplb_place(&args);
        for (uint32_t i = 0; i < 96; i++) {
            const uint32_t e = slot_expert[i], node = i / 24;
            ck_assert_uint_lt(e, 64);
            n_found[e]++;
            if (group_node[e / 8] == UINT32_MAX) group_node[e / 8] = node;
            ck_assert_uint_eq(group_node[e / 8], node);
        }
        for (uint32_t e = 0; e < 64; e++) {
            ck_assert_uint_ge(n_found[e], 1);
            ck_assert_uint_eq(n_found[e], n_replicas[e]);
        }
    }
}
END_TEST

static void pack(const float *weight, uint32_t n, uint32_t n_bins, uint32_t *bin)
{
    uint32_t rank[16], order[16], count[16];
    float load[16];
    const kv_eplb_pack_args args = {weight, n, n_bins, bin, rank, order, load, count};
    kv_eplb_pack(&args);
}

START_TEST(packing_fills_the_lightest_bin_and_keeps_the_order_of_single_items)
{
    uint32_t bin[8];
    pack((const float[]){1, 9, 3, 3, 8, 2}, 6, 2, bin);
    /* 9 | 8, 3 to the lighter: 9 | 8 3; then 3 to 9: 9 3 | 8 3; 2 to the lighter: 9 3 | 8 3 2; 1 left. */
    ck_assert_mem_eq(bin, ((const uint32_t[]){0, 0, 1, 0, 1, 1}), 6 * sizeof *bin);
    pack((const float[]){1, 9, 3}, 3, 3, bin);
    ck_assert_mem_eq(bin, ((const uint32_t[]){0, 1, 2}), 3 * sizeof *bin);
    pack((const float[]){1, 9, 3}, 3, 8, bin);
    ck_assert_mem_eq(bin, ((const uint32_t[]){0, 1, 2}), 3 * sizeof *bin);
    /* Eight items in three bins: three at most in each. */
    pack((const float[]){8, 1, 1, 1, 1, 1, 1, 1}, 8, 3, bin);
    ck_assert_mem_eq(bin, ((const uint32_t[]){0, 1, 2, 1, 2, 1, 2, 0}), 8 * sizeof *bin);
}
END_TEST

/* ---- spreading ----------------------------------------------------------------------------------- */

typedef struct spread {
    uint32_t slot_expert[256], slot_bin[256], n_replicas[64];
} spread;

static spread spread_over(const float *load, uint32_t n_experts, uint32_t n_slots, uint32_t n_bins)
{
    spread s;
    memset(&s, 0, sizeof s);
    kv_eplb_spread(&(kv_eplb_spread_args){.load = load,
                                          .n_experts = n_experts,
                                          .n_slots = n_slots,
                                          .n_bins = n_bins,
                                          .slot_expert = s.slot_expert,
                                          .slot_bin = s.slot_bin,
                                          .n_replicas = s.n_replicas});
    return s;
}

/* What is wrong, or NULL. One assertion for a case: Check takes a system call for each. */
static const char *fault_of(const spread *s, uint32_t n_experts, uint32_t n_slots, uint32_t n_bins)
{
    bool has[64][64] = {{false}};
    uint32_t count[64] = {0}, n_found[64] = {0};
    for (uint32_t i = 0; i < n_slots; i++) {
        const uint32_t e = s->slot_expert[i], b = s->slot_bin[i];
        if (e >= n_experts || b >= n_bins) return "there is no such expert or bin";
        if (has[b][e]) return "a bin has an expert twice";
        has[b][e] = true;
        count[b]++;
        n_found[e]++;
    }
    for (uint32_t b = 0; b < n_bins; b++) {
        if (count[b] < n_slots / n_bins) return "a bin has too few";
        if (count[b] > (n_slots + n_bins - 1) / n_bins) return "a bin has too many";
    }
    for (uint32_t e = 0; e < n_experts; e++) {
        if (n_found[e] == 0) return "an expert has no slot";
        if (n_found[e] != s->n_replicas[e]) return "replicas are miscounted";
    }
    return NULL;
}

/* Sums of a spread in double. */
typedef struct bins {
    const spread *s;
    uint32_t n_slots, n_bins;
    bool has[64][64];
    uint32_t count[64];
    double weight[257]; /* of a slot; the last, of none, is 0 */
    double load[64];
} bins;

/* Does it make the heavier of two bins lighter that `from` gives replica `i` for `j` of `to`? By more than the
 * rounding of sums, that is. */
static bool is_better(const bins *b, uint32_t i, uint32_t j, uint32_t to)
{
    const uint32_t from = b->s->slot_bin[i];
    const double moved = b->weight[i] - b->weight[j];
    const double left = b->load[from] - moved, there = b->load[to] + moved;
    return (left > there ? left : there) < b->load[from] * (1 - 1e-5);
}

static bool can_exchange(const bins *b, uint32_t from)
{
    const uint32_t *const bin = b->s->slot_bin, *const expert = b->s->slot_expert;
    for (uint32_t i = 0; i < b->n_slots; i++) {
        if (bin[i] != from) continue;
        for (uint32_t to = 0; to < b->n_bins; to++) {
            if (to == from || b->has[to][expert[i]] || b->count[to] >= b->count[from]) continue;
            if (is_better(b, i, b->n_slots, to)) return true;
        }
        for (uint32_t j = 0; j < b->n_slots; j++) {
            if (bin[j] == from || b->has[bin[j]][expert[i]] || b->has[from][expert[j]]) continue;
            if (is_better(b, i, j, bin[j])) return true;
        }
    }
    return false;
}

/* Of the heaviest bins, one at least has no exchange left that helps it. */
static const char *missed_exchange(const spread *s, const float *load, uint32_t n_slots,
                                   uint32_t n_bins)
{
    bins b = {.s = s, .n_slots = n_slots, .n_bins = n_bins};
    double most = 0;
    for (uint32_t i = 0; i < n_slots; i++) {
        const uint32_t e = s->slot_expert[i], bin = s->slot_bin[i];
        b.weight[i] = (double)load[e] / s->n_replicas[e];
        b.has[bin][e] = true;
        b.load[bin] += b.weight[i];
        b.count[bin]++;
        most = b.load[bin] > most ? b.load[bin] : most;
    }
    for (uint32_t bin = 0; bin < n_bins; bin++) {
        if (b.load[bin] >= most * (1 - 1e-5) && !can_exchange(&b, bin)) return NULL;
    }
    return "the heaviest bin should have exchanged a replica";
}

static void check_spread(const float *load, uint32_t n_experts, uint32_t n_slots, uint32_t n_bins)
{
    const spread s = spread_over(load, n_experts, n_slots, n_bins);
    const spread again = spread_over(load, n_experts, n_slots, n_bins);
    const char *fault = fault_of(&s, n_experts, n_slots, n_bins);
    if (fault == NULL) fault = missed_exchange(&s, load, n_slots, n_bins);
    if (memcmp(&s, &again, sizeof s) != 0) fault = "the second answer is another";
    ck_assert_msg(fault == NULL, "%u experts, %u slots, %u bins: %s", n_experts, n_slots, n_bins,
                  fault);
}

/* Loads of all kinds: random, heavy-tailed, one for all, zeros, equal. */
static float load_of_kind(uint32_t kind, uint64_t seed, uint32_t e)
{
    const uint32_t word = random_at(seed, kind, e).word[0];
    switch (kind) {
    case 0: return (float)(word % 1000);
    case 1: return word % 4 == 0 ? 0.0f : 1e6f / (float)(word % 997 + 1);
    case 2: return e == seed % 7 ? 100.0f : 0.0f;
    case 3: return 0.0f;
    default: return 5.0f;
    }
}

START_TEST(spread_replicas_share_no_bin_and_no_exchange_makes_the_heaviest_lighter)
{
    for (uint32_t n_experts = 1; n_experts <= 12; n_experts++) {
        for (uint32_t n_bins = 1; n_bins <= 13; n_bins++) {
            for (uint32_t n_slots = n_experts; n_slots <= n_experts * n_bins; n_slots++) {
                for (uint32_t kind = 0; kind < 5; kind++) {
                    float load[12];
                    for (uint32_t e = 0; e < n_experts; e++)
                        load[e] = load_of_kind(kind, n_slots, e);
                    check_spread(load, n_experts, n_slots, n_bins);
                }
            }
        }
    }
}
END_TEST

/* Worked out by hand. The four experts weigh 9, 7, 2, 0; the fifth and sixth slot go to 9 and 7, whose halves
 * 4.5 4.5 3.5 3.5 2 0 are dealt to three bins of two in falling order: 4.5 | 4.5 | 3.5, then the second 3.5
 * may not lie beside the first and goes to the first bin, 2 to the third, 0 to what is left. */
START_TEST(spread_replicas_go_to_the_lightest_bin_that_lacks_them)
{
    const spread s = spread_over((const float[]){9, 7, 2, 0}, 4, 6, 3);
    ck_assert_mem_eq(s.slot_expert, ((const uint32_t[]){0, 1, 2, 3, 0, 1}), 6 * sizeof(uint32_t));
    ck_assert_mem_eq(s.slot_bin, ((const uint32_t[]){0, 2, 2, 1, 1, 0}), 6 * sizeof(uint32_t));
}
END_TEST

/* Greedily 12 9 8 and 11 10 4 come together, 29 and 25. Exchanged, 12 and 10 leave 27 and 27. */
START_TEST(the_heaviest_bin_exchanges_what_greedy_packing_gave_it)
{
    const spread s = spread_over((const float[]){12, 11, 10, 9, 8, 4}, 6, 6, 2);
    ck_assert_mem_eq(s.slot_expert, ((const uint32_t[]){0, 1, 2, 3, 4, 5}), 6 * sizeof(uint32_t));
    ck_assert_mem_eq(s.slot_bin, ((const uint32_t[]){1, 1, 0, 0, 0, 1}), 6 * sizeof(uint32_t));
}
END_TEST

START_TEST(an_expert_with_all_the_load_has_a_replica_in_every_bin_and_no_more)
{
    const spread s = spread_over((const float[]){0, 0, 1000, 0}, 4, 8, 3);
    ck_assert_uint_eq(s.n_replicas[2], 3);
    ck_assert_uint_eq(s.n_replicas[0] + s.n_replicas[1] + s.n_replicas[3], 5);
}
END_TEST

/* ---- the map of a cache's shards ----------------------------------------------------------------- */

static void count_entries(kv_expert_map *map, uint32_t layer, const uint32_t n[4])
{
    for (uint32_t e = 0; e < 4; e++) {
        for (uint32_t i = 0; i < n[e]; i++)
            kv_expert_map_count(map, layer, e);
    }
}

/* At first experts 0 and 1 lie on shard 0, 2 and 3 on shard 1. A layer whose busier shard has 1.05 of the
 * mean could be balanced and is left alone; one with 1.21 is packed, once enough entries have been
 * counted. */
START_TEST(experts_move_when_the_busiest_shard_has_too_much)
{
    kv_expert_map map = {.n_layers = 2, .n_experts = 4, .n_shards = 2, .is_packed = true};
    arena memory;
    ck_assert_int_eq(arena_init(&memory, 1 << 16), ERR_OK);
    kv_expert_map_place(&memory, &map);
    ck_assert_int_eq(memory.err, ERR_OK);
    kv_expert_map_init(&map);
    count_entries(&map, 0, (const uint32_t[]){270, 270, 242, 242});
    count_entries(&map, 1, (const uint32_t[]){310, 310, 201, 201});
    kv_expert_map_update(&map); /* of layer 1 there are 1022 */
    ck_assert_uint_eq(map.n_packed, 0);
    count_entries(&map, 1, (const uint32_t[]){0, 0, 1, 1});
    kv_expert_map_update(&map);
    ck_assert_uint_eq(map.n_packed, 1);
    ck_assert_mem_eq(kv_expert_shards(&map, 0), ((const uint16_t[]){0, 0, 1, 1}), 8);
    ck_assert_mem_eq(kv_expert_shards(&map, 1), ((const uint16_t[]){0, 1, 0, 1}), 8);
    /* What is older counts for less, and for something: now shard 0 has 512 * 0.9 + 1024. */
    count_entries(&map, 0, (const uint32_t[]){512, 0, 512, 0});
    count_entries(&map, 1, (const uint32_t[]){512, 0, 512, 0});
    kv_expert_map_update(&map);
    ck_assert_uint_eq(map.n_packed, 2);
    ck_assert_mem_eq(kv_expert_shards(&map, 0), ((const uint16_t[]){0, 0, 1, 1}), 8);
    ck_assert_uint_ne(kv_expert_shards(&map, 1)[0], kv_expert_shards(&map, 1)[2]);
    arena_deinit(&memory);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(experts_move_when_the_busiest_shard_has_too_much),
    TEST_CASE(replicas_lie_where_the_published_program_puts_them),
    TEST_CASE(every_expert_has_a_slot_on_the_node_of_its_group),
    TEST_CASE(spread_replicas_share_no_bin_and_no_exchange_makes_the_heaviest_lighter),
    TEST_CASE(spread_replicas_go_to_the_lightest_bin_that_lacks_them),
    TEST_CASE(the_heaviest_bin_exchanges_what_greedy_packing_gave_it),
    TEST_CASE(an_expert_with_all_the_load_has_a_replica_in_every_bin_and_no_more),
    TEST_CASE(packing_fills_the_lightest_bin_and_keeps_the_order_of_single_items),
    TEST_CASES_END,
};
