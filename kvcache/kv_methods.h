/* kvcache/kv_methods.h - the methods that a sequence's entries go through, resolved from their names.
 *
 * A cache has those of its settings; a sequence may bring its own (kv_seq_options), if the cache keeps
 * what they need: see kv_cache_check_methods. Names are looked up once, when a request is validated. */
#ifndef KVCACHE_KV_METHODS_H
#define KVCACHE_KV_METHODS_H

#include "base/error.h"
#include "kvcache/compression/codec.h"
#include "kvcache/kv_config.h"
#include "kvcache/rewriting/rewriting.h"
#include "kvcache/routing/routing.h"
#include "kvcache/scheduling/policy.h"

typedef struct kv_methods {
    const kv_routing *routing;
    kv_route_settings route;
    kv_policy policy;                /* of scheduling; without a selection it also has the prompt */
    kv_policy selection;             /* evicts if there is one: what stays of the prompt */
    kv_rewritings_chosen rewritings; /* of what stays; only where something goes */
    const kv_codec *codec;
    uint32_t codec_index; /* in kv_codecs */
    bool reads_all;       /* routing is exact under its settings: no boxes, no choice */
    bool is_exact;        /* no value differs from a plain cache's */
} kv_methods;

/* May entries go before the sequence ends? */
static inline bool kv_methods_evict(const kv_methods *methods)
{
    return methods->policy.evicts || methods->selection.evicts;
}

/* What both go by; 0 if there is neither. */
static inline double kv_methods_budget(const kv_methods *methods)
{
    return methods->policy.budget > 0 ? methods->policy.budget : methods->selection.budget;
}

/* What both want to know, KV_SCORE_...: */
static inline uint32_t kv_methods_needs(const kv_methods *methods)
{
    return kv_policy_needs(&methods->policy) | kv_policy_needs(&methods->selection);
}

/* Does one of them ask how lazy layers are? Then both have the threshold. */
static inline bool kv_methods_by_laziness(const kv_methods *methods)
{
    return kv_policy_by_laziness(&methods->policy) || kv_policy_by_laziness(&methods->selection);
}

/* What chooses of a prompt; NULL: nothing does. */
static inline const kv_policy *kv_methods_of_prompt(const kv_methods *methods)
{
    if (methods->selection.evicts) return &methods->selection;
    return methods->policy.evicts ? &methods->policy : NULL;
}

/* Is a prompt read again before it is chosen what stays of it? See kv_replay.h. */
static inline bool kv_methods_replay(const kv_methods *methods)
{
    const kv_policy *policy = kv_methods_of_prompt(methods);
    return policy != NULL && (policy->scorer->needs & KV_SCORE_REPLAY) != 0;
}

/* As --kv-compression has it: CODEC, or SELECTION,CODEC. */
enum { KV_COMPRESSION_BYTES = 96 };
void kv_methods_compression(const kv_methods *methods, char text[KV_COMPRESSION_BYTES]);

/* From the names and numbers in `config`, and its page_tokens; its other fields are not read.
 * ERR_BAD_CONFIG names an unknown method or a number out of range. */
err_t kv_methods_resolve(const kv_config *config, kv_methods *out, err_info *info) MUST_CHECK;

/* Methods for another process, whose tables lie elsewhere: names and numbers that resolve to the same. */
typedef struct kv_methods_wire {
    char routing[32], scheduling[KV_POLICY_NAME_BYTES], compression[KV_COMPRESSION_BYTES];
    char rewrite[KV_REWRITING_NAME_BYTES];
    double budget, lazy_threshold, routing_k, routing_eps, routing_tau;
} kv_methods_wire;

void kv_methods_pack(const kv_methods *methods, kv_methods_wire *out);

/* page_tokens: the cache's. ERR_BAD_CONFIG as above, and if a text has no end. */
err_t kv_methods_unpack(const kv_methods_wire *wire, uint32_t page_tokens, kv_methods *out,
                        err_info *info) MUST_CHECK;

#endif
