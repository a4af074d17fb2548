/* model/experts_config.h - settings of where experts lie (model/expert_placement.h).
 *
 * All ranks must have the same: what they compute follows from them. */
#ifndef MODEL_EXPERTS_CONFIG_H
#define MODEL_EXPERTS_CONFIG_H

#include "base/config.h"

enum { EXPERT_SLOTS_MAX = 4096 }; /* of a layer: experts and replicas */

typedef enum experts_strategy { EXPERTS_LINEAR, EXPERTS_EPLB } experts_strategy;

typedef struct experts_config {
    uint32_t strategy;    /* --expert-placement-strategy, an experts_strategy */
    uint32_t n_redundant; /* --num-redundant-experts: slots of a layer beyond one for each expert */
    uint32_t step_interval; /* --eplb-step-interval: steps of a window of measured load */
    double imbalance_min; /* --eplb-min-imbalance: busiest rank over mean that lets experts move */
} experts_config;

extern const cfg_table experts_config_table;

/* ERR_BAD_CONFIG: more replicas than n_ranks ranks can hold without holding one expert twice (none, on one
 * rank), or than EXPERT_SLOTS_MAX leaves. */
err_t experts_config_check(const experts_config *config, uint32_t n_experts, uint32_t n_ranks,
                           err_info *info) MUST_CHECK;

#endif
