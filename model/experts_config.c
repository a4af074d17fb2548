/* model/experts_config.c - see experts_config.h. */
#include "model/experts_config.h"

#include "kernels/comm.h"

static const char *const strategies[] = {
    [EXPERTS_LINEAR] = "linear", [EXPERTS_EPLB] = "eplb", NULL};

static const cfg_field fields[] = {
    CFG_PICK(experts_config, strategy, "expert-placement-strategy", strategies, "linear",
             "which rank has which experts: linear (in order) or eplb (by measured load)"),
    CFG_NUM32(experts_config, n_redundant, "num-redundant-experts", 0, EXPERT_SLOTS_MAX, "0",
              "replicas of experts in every layer; under eplb the busiest get them"),
    CFG_NUM32(experts_config, step_interval, "eplb-step-interval", 1, 1 << 24, "3000",
              "steps over which the load of experts is measured before they may move"),
    CFG_REAL(experts_config, imbalance_min, "eplb-min-imbalance", 1, COMM_RANKS_MAX, "1.1",
             "eplb: load of a layer's busiest rank over the mean above which its experts move"),
};

const cfg_table experts_config_table = {
    .title = "Experts", .fields = fields, .n_fields = sizeof fields / sizeof fields[0]};

err_t experts_config_check(const experts_config *config, uint32_t n_experts, uint32_t n_ranks,
                           err_info *info)
{
    const uint64_t n_useful = (uint64_t)n_experts * (n_ranks - 1);
    if (config->n_redundant > n_useful)
        return err_set(info, ERR_BAD_CONFIG,
                       "num-redundant-experts: %u is more than %llu, with which every rank (of %u) "
                       "has all %u experts of a layer",
                       config->n_redundant, (unsigned long long)n_useful, n_ranks, n_experts);
    if (config->n_redundant > EXPERT_SLOTS_MAX - n_experts)
        return err_set(info, ERR_BAD_CONFIG,
                       "num-redundant-experts: %u is more than %u: a layer has at most %u experts "
                       "and replicas",
                       config->n_redundant, EXPERT_SLOTS_MAX - n_experts, EXPERT_SLOTS_MAX);
    return ERR_OK;
}
