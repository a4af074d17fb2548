/* model/expert_placement.c - see expert_placement.h. */
#include "model/expert_placement.h"

#include "base/arena.h"
#include "base/check.h"
#include "kernels/comm.h"
#include "kernels/moe.h"
#include "kvcache/placement/eplb.h"

#include <stdlib.h>
#include <string.h>

static_assert((int)EXPERT_SLOTS_MAX <= (int)KV_EPLB_SLOTS_MAX,
              "layers are packed by kv_eplb_spread");
static_assert((int)COMM_RANKS_MAX <= (int)KV_EPLB_SLOTS_MAX, "ranks are its bins");

/* L layers, E experts, S slots of a layer, G ranks. */
struct expert_placement {
    experts_config config;
    uint32_t n_layers, n_experts, n_slots, n_ranks;
    uint32_t *first; /* [L][E + 1]: of an expert's ranks in the layer's `rank` */
    uint16_t *rank;  /* [L][S]: by expert, rising */
    /* The running window. */
    uint32_t n_steps;
    uint64_t *load;  /* [L][E]: choices of an expert */
    uint64_t *dealt; /* [L][G]: choices that a rank computes */
    /* Since start. */
    uint64_t *rank_choices; /* [G] */
    double window_imbalance;
    uint64_t n_windows, n_rebalanced, n_moved;
    /* Work of one layer's packing. */
    float *expert_load;    /* [E] */
    uint32_t *n_replicas;  /* [E] */
    double *rank_load;     /* [G] */
    uint32_t *slot_expert; /* [S] */
    uint32_t *slot_bin;    /* [S] */
    uint32_t *bin_rank;    /* [G] */
    uint32_t *n_common;    /* [G] */
    bool *is_taken;        /* [G] */
    arena memory;          /* everything above */
};

static uint32_t *layer_first(const expert_placement *p, uint32_t layer)
{
    return p->first + (size_t)layer * (p->n_experts + 1);
}

static uint16_t *layer_rank(const expert_placement *p, uint32_t layer)
{
    return p->rank + (size_t)layer * p->n_slots;
}

/* ---- opening ------------------------------------------------------------------------------------- */

static void place(arena *a, expert_placement *p)
{
    const size_t n_layers = p->n_layers, n_experts = p->n_experts, n_slots = p->n_slots,
                 n_ranks = p->n_ranks;
    p->first = arena_take(a, n_layers, (n_experts + 1) * sizeof *p->first);
    p->rank = arena_take(a, n_layers, n_slots * sizeof *p->rank);
    p->load = arena_take(a, n_layers, n_experts * sizeof *p->load);
    p->dealt = arena_take(a, n_layers, n_ranks * sizeof *p->dealt);
    p->rank_choices = arena_take(a, n_ranks, sizeof *p->rank_choices);
    p->expert_load = arena_take(a, n_experts, sizeof *p->expert_load);
    p->n_replicas = arena_take(a, n_experts, sizeof *p->n_replicas);
    p->rank_load = arena_take(a, n_ranks, sizeof *p->rank_load);
    p->slot_expert = arena_take(a, n_slots, sizeof *p->slot_expert);
    p->slot_bin = arena_take(a, n_slots, sizeof *p->slot_bin);
    p->bin_rank = arena_take(a, n_ranks, sizeof *p->bin_rank);
    p->n_common = arena_take(a, n_ranks, sizeof *p->n_common);
    p->is_taken = arena_take(a, n_ranks, sizeof *p->is_taken);
}

/* The layer's table from slot_expert and the rank of each slot, slot_bin[s] mapped by bin_rank. */
static void set_layer(expert_placement *p, uint32_t layer)
{
    uint32_t *const first = layer_first(p, layer);
    uint16_t *const rank = layer_rank(p, layer);
    first[0] = 0;
    for (uint32_t e = 0; e < p->n_experts; e++) {
        uint32_t at = first[e];
        for (uint32_t s = 0; s < p->n_slots; s++) {
            if (p->slot_expert[s] != e) continue;
            const uint16_t r = (uint16_t)p->bin_rank[p->slot_bin[s]];
            uint32_t i = at++;
            for (; i > first[e] && rank[i - 1] > r; i--)
                rank[i] = rank[i - 1];
            rank[i] = r;
        }
        first[e + 1] = at;
    }
}

/* slot_expert, slot_bin and n_replicas by expert_load. */
static void pack(expert_placement *p)
{
    kv_eplb_spread(&(kv_eplb_spread_args){.load = p->expert_load,
                                          .n_experts = p->n_experts,
                                          .n_slots = p->n_slots,
                                          .n_bins = p->n_ranks,
                                          .slot_expert = p->slot_expert,
                                          .slot_bin = p->slot_bin,
                                          .n_replicas = p->n_replicas});
}

static void set_linear(expert_placement *p)
{
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        const uint64_t begin = (uint64_t)p->n_experts * r / p->n_ranks;
        const uint64_t end = (uint64_t)p->n_experts * (r + 1) / p->n_ranks;
        p->bin_rank[r] = r;
        for (uint64_t e = begin; e < end; e++) {
            p->slot_expert[e] = (uint32_t)e;
            p->slot_bin[e] = r;
            p->expert_load[e] = 1;
        }
    }
    if (p->n_slots > p->n_experts) pack(p);
    for (uint32_t l = 0; l < p->n_layers; l++)
        set_layer(p, l);
}

err_t expert_placement_open(const experts_config *config, const expert_placement_shape *shape,
                            expert_placement **out, err_info *info)
{
    assert(shape->n_experts >= 1 && shape->n_experts <= MOE_EXPERTS_MAX);
    assert(shape->n_ranks >= 1 && shape->n_ranks <= COMM_RANKS_MAX);
    *out = NULL;
    TRY(experts_config_check(config, shape->n_experts, shape->n_ranks, info));
    expert_placement *const p = calloc(1, sizeof *p);
    if (p == NULL) return err_set(info, ERR_NO_MEMORY, "experts: out of memory");
    p->config = *config;
    p->n_layers = shape->n_layers;
    p->n_experts = shape->n_experts;
    p->n_slots = shape->n_experts + config->n_redundant;
    p->n_ranks = shape->n_ranks;
    arena measure;
    arena_init_measure(&measure);
    place(&measure, p);
    err_t err = measure.err;
    if (err == ERR_OK) err = arena_init(&p->memory, measure.used_bytes);
    if (err != ERR_OK) {
        free(p);
        return err_set(info, err, "experts: no memory for the placement of %u layers",
                       shape->n_layers);
    }
    place(&p->memory, p);
    assert(p->memory.err == ERR_OK);
    set_linear(p);
    *out = p;
    return ERR_OK;
}

void expert_placement_close(expert_placement *p)
{
    if (p == NULL) return;
    arena_deinit(&p->memory);
    free(p);
}

/* ---- counting ------------------------------------------------------------------------------------ */

void expert_placement_count(expert_placement *p, uint32_t layer, const expert_choices *choices)
{
    const expert_tables tables = expert_placement_tables(p);
    const expert_ranks experts = expert_tables_layer(&tables, layer);
    uint64_t *const load = p->load + (size_t)layer * p->n_experts;
    uint64_t *const dealt = p->dealt + (size_t)layer * p->n_ranks;
    assert(layer < p->n_layers);
    for (uint32_t i = 0; i < choices->n_tokens * choices->top_k; i++) {
        const uint32_t e = choices->chosen[i];
        assert(e < p->n_experts);
        const uint16_t r = deal_rank(&experts, e, choices->positions[i / choices->top_k]);
        load[e]++;
        dealt[r]++;
        p->rank_choices[r]++;
    }
}

/* ---- the end of a window --------------------------------------------------------------------------- */

static double measured_imbalance(const expert_placement *p)
{
    double sum_most = 0, sum_mean = 0;
    for (uint32_t l = 0; l < p->n_layers; l++) {
        const uint64_t *const dealt = p->dealt + (size_t)l * p->n_ranks;
        uint64_t most = 0, sum = 0;
        for (uint32_t r = 0; r < p->n_ranks; r++) {
            sum += dealt[r];
            if (dealt[r] > most) most = dealt[r];
        }
        sum_most += (double)most;
        sum_mean += (double)sum / p->n_ranks;
    }
    return sum_mean > 0 ? sum_most / sum_mean : 0;
}

/* Busiest of rank_load over the mean. */
static double imbalance_of(const expert_placement *p)
{
    double most = 0, sum = 0;
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        sum += p->rank_load[r];
        if (p->rank_load[r] > most) most = p->rank_load[r];
    }
    return sum > 0 ? most * p->n_ranks / sum : 1;
}

/* Both by the window's loads, replicas sharing alike: what happened to be dealt is not compared with what
 * would be expected. */
static double present_imbalance(expert_placement *p, uint32_t layer)
{
    const uint32_t *const first = layer_first(p, layer);
    memset(p->rank_load, 0, p->n_ranks * sizeof *p->rank_load);
    for (uint32_t e = 0; e < p->n_experts; e++) {
        const double share = (double)p->expert_load[e] / (first[e + 1] - first[e]);
        for (uint32_t i = first[e]; i < first[e + 1]; i++)
            p->rank_load[layer_rank(p, layer)[i]] += share;
    }
    return imbalance_of(p);
}

static double packed_imbalance(expert_placement *p)
{
    memset(p->rank_load, 0, p->n_ranks * sizeof *p->rank_load);
    for (uint32_t s = 0; s < p->n_slots; s++) {
        const uint32_t e = p->slot_expert[s];
        p->rank_load[p->slot_bin[s]] += (double)p->expert_load[e] / p->n_replicas[e];
    }
    return imbalance_of(p);
}

/* bin_rank: each bin becomes the rank, of those that are left, that has most of its experts already; of
 * equal ones the lowest. Counts what has to move. */
static void name_bins(expert_placement *p, uint32_t layer)
{
    const uint32_t *const first = layer_first(p, layer);
    memset(p->is_taken, 0, p->n_ranks * sizeof *p->is_taken);
    for (uint32_t b = 0; b < p->n_ranks; b++) {
        uint32_t best = p->n_ranks, n = 0;
        memset(p->n_common, 0, p->n_ranks * sizeof *p->n_common);
        for (uint32_t s = 0; s < p->n_slots; s++) {
            const uint32_t e = p->slot_expert[s];
            if (p->slot_bin[s] != b) continue;
            n++;
            for (uint32_t i = first[e]; i < first[e + 1]; i++)
                p->n_common[layer_rank(p, layer)[i]]++;
        }
        for (uint32_t r = 0; r < p->n_ranks; r++) {
            if (p->is_taken[r]) continue;
            if (best == p->n_ranks || p->n_common[r] > p->n_common[best]) best = r;
        }
        p->bin_rank[b] = best;
        p->is_taken[best] = true;
        p->n_moved += n - p->n_common[best];
    }
}

static bool pack_layer(expert_placement *p, uint32_t layer)
{
    for (uint32_t e = 0; e < p->n_experts; e++)
        p->expert_load[e] = (float)p->load[(size_t)layer * p->n_experts + e];
    const double present = present_imbalance(p, layer);
    if (!(present > p->config.imbalance_min)) return false;
    pack(p);
    if (!(packed_imbalance(p) < present)) return false;
    name_bins(p, layer);
    set_layer(p, layer);
    return true;
}

static bool pack_layers(expert_placement *p)
{
    bool has_moved = false;
    for (uint32_t l = 0; l < p->n_layers; l++)
        has_moved = pack_layer(p, l) || has_moved;
    return has_moved;
}

bool expert_placement_end_step(expert_placement *p)
{
    if (++p->n_steps < p->config.step_interval) return false;
    const bool has_moved = p->config.strategy == EXPERTS_EPLB && pack_layers(p);
    p->window_imbalance = measured_imbalance(p);
    p->n_windows++;
    p->n_rebalanced += has_moved;
    p->n_steps = 0;
    memset(p->load, 0, (size_t)p->n_layers * p->n_experts * sizeof *p->load);
    memset(p->dealt, 0, (size_t)p->n_layers * p->n_ranks * sizeof *p->dealt);
    return has_moved;
}

/* ---- queries ------------------------------------------------------------------------------------- */

expert_tables expert_placement_tables(const expert_placement *p)
{
    return (expert_tables){.first_layer = {p->first, p->rank},
                           .n_layers = p->n_layers,
                           .n_experts = p->n_experts,
                           .n_slots = p->n_slots};
}

const uint16_t *expert_placement_ranks(const expert_placement *p, uint32_t layer, uint32_t expert,
                                       uint32_t *n)
{
    assert(layer < p->n_layers);
    assert(expert < p->n_experts);
    const uint32_t *const first = layer_first(p, layer) + expert;
    *n = first[1] - first[0];
    return layer_rank(p, layer) + first[0];
}

bool expert_placement_has(const expert_placement *p, uint32_t layer, uint32_t expert, uint32_t rank)
{
    uint32_t n;
    const uint16_t *const ranks = expert_placement_ranks(p, layer, expert, &n);
    for (uint32_t i = 0; i < n; i++) {
        if (ranks[i] == rank) return true;
    }
    return false;
}

const uint64_t *expert_placement_dealt(const expert_placement *p, uint32_t layer)
{
    assert(layer < p->n_layers);
    return p->dealt + (size_t)layer * p->n_ranks;
}

void expert_placement_stats(const expert_placement *p, expert_stats *out)
{
    *out =
        (expert_stats){.n_ranks = p->n_ranks,
                       .rank_choices = p->rank_choices,
                       .imbalance = p->n_windows > 0 ? p->window_imbalance : measured_imbalance(p),
                       .n_rebalanced = p->n_rebalanced,
                       .n_moved = p->n_moved};
}
