/* model/expert_placement.h - which ranks compute which experts of a layer, and how evenly.
 *
 * A layer has S = E + N slots, each with one expert; of G ranks each has floor(S / G) slots or one more.
 * Every expert has a slot, and may have several: replicas, always on different ranks.
 *
 *   linear  rank r has experts [E r / G, E (r + 1) / G); with replicas, which break that order, they are
 *           packed (kv_eplb_spread) as if all had the same load. Stays so
 *   eplb    begins as linear. Load is measured over windows of step_interval steps; at the end of one, the
 *           layers whose busiest rank had more than imbalance_min times the mean are packed anew by
 *           it, if that would have been better for the window. Which bin becomes which rank is free:
 *           ranks keep as many of their experts as they can
 *
 * Of an expert's n replicas, in order of ranks, number (position + expert) mod n computes a token: every
 * choice is computed by exactly one rank, neighbours in the batch change no bit, the tokens of a sequence
 * go to the replicas in turn, and those of two experts with replicas on the same ranks not together.
 *
 * Devices deal by tables (kernels/rank_ops.h); what they have dealt is counted when a step ends.
 *
 * The router runs on every rank for all tokens. So loads are the same numbers everywhere, what follows from
 * them is, too, and all ranks change over between the same two steps without a word. Results depend on
 * the placement, to rounding; under eplb, therefore, on what was computed before.
 *
 * Threads: the model's owner. Allocates in open only. Its caller opens and closes it. */
#ifndef MODEL_EXPERT_PLACEMENT_H
#define MODEL_EXPERT_PLACEMENT_H

#include "kernels/rank_ops.h"
#include "model/experts_config.h"

typedef struct expert_placement expert_placement;

typedef struct expert_placement_shape {
    uint32_t n_layers, n_experts, n_ranks;
} expert_placement_shape;

/* ERR_BAD_CONFIG as experts_config_check; ERR_NO_MEMORY; ERR_OVERFLOW. */
err_t expert_placement_open(const experts_config *config, const expert_placement_shape *shape,
                            expert_placement **out, err_info *info) MUST_CHECK;
void expert_placement_close(expert_placement *p); /* NULL is fine */

/* ---- a step: each layer's choices are counted once, then the step ends ----------------------------- */

typedef struct expert_choices {
    const uint32_t *chosen;    /* [n_tokens][top_k], from the router */
    const uint32_t *positions; /* [n_tokens] */
    uint32_t n_tokens, top_k;
} expert_choices;

/* What all ranks compute. */
void expert_placement_count(expert_placement *p, uint32_t layer, const expert_choices *choices);

/* True: experts have moved. */
bool expert_placement_end_step(expert_placement *p);

/* ---- queries -------------------------------------------------------------------------------------- */

/* Of all layers, one behind the other: [n_layers][n_experts + 1] of `first`, [n_layers][n_slots] of `rank`. */
typedef struct expert_tables {
    expert_ranks first_layer;
    uint32_t n_layers, n_experts, n_slots;
} expert_tables;
expert_tables expert_placement_tables(const expert_placement *p);

static inline expert_ranks expert_tables_layer(const expert_tables *t, uint32_t layer)
{
    return (expert_ranks){.first = t->first_layer.first + (size_t)layer * (t->n_experts + 1),
                          .rank = t->first_layer.rank + (size_t)layer * t->n_slots};
}

/* Ranks that have the expert, [*n], rising. Valid until a step ends. */
const uint16_t *expert_placement_ranks(const expert_placement *p, uint32_t layer, uint32_t expert,
                                       uint32_t *n);
bool expert_placement_has(const expert_placement *p, uint32_t layer, uint32_t expert,
                          uint32_t rank);

/* Choices of the running window that were dealt to each rank, [n_ranks]. */
const uint64_t *expert_placement_dealt(const expert_placement *p, uint32_t layer);

/* Choices are token and expert: a token counts top_k times. */
typedef struct expert_stats {
    uint32_t n_ranks;
    const uint64_t
        *rank_choices; /* [n_ranks]: computed since start; borrowed, valid until the next step */
    /* Of the latest window that is over (of the running one while none is): what the busiest rank of
     * each layer computed, over the mean of the ranks, summed over layers before they are divided, since
     * layers wait for their busiest rank one by one. 1 is balance; 0: nothing was computed. */
    double imbalance;
    uint64_t n_rebalanced; /* windows after which experts moved */
    uint64_t n_moved; /* replicas that came to a rank, which reads their weights from then on */
} expert_stats;

void expert_placement_stats(const expert_placement *p, expert_stats *out);

#endif
