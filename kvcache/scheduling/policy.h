/* kvcache/scheduling/policy.h - which entries stay: a scorer, budget allocators and a budget.
 *
 * A policy is written NAME[+ALLOCATOR]...: NAME one of kv_scorers (scoring/scorer.h), and at most one
 * allocator that deals the budget to layers and one that deals it to the heads of a layer
 * (scoring/allocator.h). Some have a name of their own:
 *
 *   none            everything stays
 *   adakv           expected_attention+adakv
 *   duo_attention   streaming_llm+duo_attention
 *   pyramidkv       snapkv+pyramid
 *   fastv           fastv+deep
 *   simlayerkv      streaming_llm+simlayer
 *   quest           everything stays, and decode queries read only as much as the budget says: routing
 *                   `topk` (Tang et al., Quest, 2024)
 *   flexgen         everything stays, and only as much of it as the budget says in the pool; the rest of a
 *                   sequence's full pages moves to the lower tiers, oldest positions first, and is read from
 *                   there: fixed shares by tier (Sheng et al., FlexGen, arXiv 2303.06865). See demote.h
 *
 * The budget is a share of the entries seen so far in (0, 1], sinks and ring included, averaged over layers
 * and heads, or above 1 their whole number. With a budget of 1 nothing is evicted, and no method that
 * a policy needs runs: results have the bits of `none`. When and how entries go: evict.h.
 *
 * A selection (--kv-compression SELECTION,CODEC) is written in the same way, but for `none`, `quest` and
 * `flexgen`. It chooses in the prompt and at its end, to the same budget, and decode then keeps
 * everything new. Beside a policy of --kv-scheduling the selection has the prompt and the policy what
 * comes behind it. */
#ifndef KVCACHE_SCHEDULING_POLICY_H
#define KVCACHE_SCHEDULING_POLICY_H

#include "base/error.h"
#include "kvcache/scoring/allocator.h"
#include "kvcache/scoring/scorer.h"

enum { KV_POLICY_NAME_BYTES = 64 };

typedef struct kv_policy {
    const kv_scorer *scorer;         /* NULL: nothing is evicted */
    const kv_allocator *layers;      /* NULL: all layers keep the same */
    const kv_allocator *heads;       /* NULL: all heads of a layer keep the same */
    double budget;                   /* valid if evicts, limits_reads or limits_pool */
    double lazy_threshold;           /* valid if kv_policy_by_laziness */
    bool evicts;                     /* false under a budget of 1, whatever the names say */
    bool limits_reads;               /* `quest` */
    bool limits_pool;                /* `flexgen` */
    char name[KV_POLICY_NAME_BYTES]; /* without short names: "snapkv+pyramid" */
} kv_policy;

extern const char kv_policy_names[]; /* " none adakv ... random" for messages */

/* ERR_BAD_CONFIG names an unknown part, two of one kind, a combination that makes no sense, or a budget
 * out of range. `none` asks for no budget. */
err_t kv_policy_parse(const char *text, double budget, kv_policy *out, err_info *info) MUST_CHECK;

extern const char kv_selection_names[]; /* " adakv ... random" for messages */

/* The same for a selection; errors name kv-compression. */
err_t kv_selection_parse(const char *text, double budget, kv_policy *out,
                         err_info *info) MUST_CHECK;

/* Do layers' shares go by how lazy they are? Whatever the budget. */
static inline bool kv_policy_by_laziness(const kv_policy *policy)
{
    return policy->layers != NULL && policy->layers->laziness != NULL;
}

/* What its scorer and its allocators want to know, KV_SCORE_...; 0 if nothing is evicted. */
uint32_t kv_policy_needs(const kv_policy *policy);
uint32_t kv_policy_n_queries(const kv_policy *policy); /* under KV_SCORE_QUERIES */

/* Entries of `length` that a head keeps on average over layers and heads: trunc(length * (1 - r)) with
 * r = 1 - budget in double arithmetic, as published methods round; at most `length`. */
uint32_t kv_policy_n_keep(const kv_policy *policy, uint32_t length);

#endif
