/* service/plan.h - what expert-parallel decode needs and how fast it can be: arithmetic on counts, nothing
 * else.
 *
 * The scheme (parallel decode over G ranks, activations replicated): every rank computes q, k, v and the
 * router for all tokens of a step. It holds a part of the experts of every layer and a part of the KV
 * cache. Per layer
 *
 *   all_gather   every rank's attention over its own entries, per token n_heads * (head_dim + 1) floats: output and
 *                log-sum-exp, from which every rank merges the whole; one more per head where routing leaves
 *                something unread, of what that may be
 *   all_reduce   the sum over ranks of what their experts give, per token d_model floats, added in rank order
 *
 * Bound: every byte that a step must read is read once, equally by all ranks, at full bandwidth, and
 * collectives are free. Nothing can be faster. Prediction: the rank that is expected to read most, then
 * every collective with its latency and bytes, nothing overlapped; still without arithmetic, launches
 * and uneven routers. */
#ifndef SERVICE_PLAN_H
#define SERVICE_PLAN_H

#include "service/plan_cache.h"
#include "service/plan_device.h"
#include "service/plan_model.h"

typedef struct plan_input {
    uint32_t n_layers, d_model, n_heads, head_dim; /* head_dim: of a value */
    uint32_t n_experts, top_k;
    plan_weights weights;
    plan_cache cache;
    plan_device device;
    uint32_t n_tokens; /* context of each sequence */
    uint32_t n_seqs;   /* decoded together: tokens of a step */
    uint32_t n_ranks;
    uint32_t n_redundant; /* replicas of experts in every layer, beside one of each */
    uint32_t page_tokens;
    double bandwidth;      /* bytes per second that a rank reads of its memory */
    double link_bandwidth; /* bytes per second that a rank receives from the others */
    double link_latency;   /* seconds that a collective takes however small it is */
} plan_input;

/* Bytes of the fullest rank. Activations and the program itself are not counted. */
typedef struct plan_memory {
    uint32_t experts_most,
        experts_least; /* of a layer, on the fullest and on the emptiest rank; replicas count */
    uint64_t replicated_bytes; /* weights that every rank holds */
    uint64_t expert_bytes, expert_bytes_least;
    uint64_t kv_bytes;    /* pages, section, ring, tables, descriptors, staging: as in plan_cache */
    uint64_t total_bytes; /* replicated, experts and KV */
} plan_memory;

/* One kind of collective. */
typedef struct plan_collective {
    uint64_t n_per_step;
    uint64_t bytes_per_token; /* received by a rank in one call, per token of the step */
    double seconds_per_step;
} plan_collective;

/* What one step of n_seqs tokens reads; experts drawn at random (plan_experts.h). */
typedef struct plan_step {
    double experts_read;      /* of a layer, different ones, all ranks */
    double experts_read_most; /* of the rank that reads most; replicas not used */
    double weight_bytes;      /* of a rank if experts were read equally */
    double weight_bytes_most;
    double kv_bytes, kv_bytes_most;
    plan_collective gather, reduce;
    double bound_tokens_per_second;
    double predicted_tokens_per_second;
    double one_rank_tokens_per_second; /* the bound of a single rank that held everything */
} plan_step;

typedef struct plan_result {
    plan_memory memory;
    plan_step step;
} plan_result;

/* ERR_BAD_CONFIG: replicas that the model would refuse (model/experts_config.h); ERR_OVERFLOW; ERR_NO_MEMORY. */
err_t plan_make(const plan_input *in, plan_result *out, err_info *info) MUST_CHECK;

/* The PiKV paper's analysis (arXiv 2508.06526) and what it should be. L tokens, G ranks, E experts, k per
 * token, K pages that the scheduler keeps at hand, S tokens of a page, d channels of a key, rho the
 * compression, b bytes of a token per layer, m bytes of knowledge per page.
 *
 *   tokens on a rank    paper L / G + L / E, against E L      one owner: L / G, against L; one per routed
 *                                                             expert: k L / G
 *   memory              (2 d / rho) (L / (G S) + K S)         b L / G + K S b + m L / (G S)
 *   best page           sqrt(L / (K G))                       sqrt(m L / (G K b))
 *   least memory        (4 d / rho) sqrt(K L / G)             b L / G + 2 sqrt(m L K b / G)
 *   share of KV read    k / E                                 what routing reads; 1 if results are to be exact
 *
 * The paper's memory counts pages, L / S, as if they were tokens, so its best page minimises a sum of
 * unlike things. */
typedef struct plan_paper_input {
    double n_tokens, n_ranks, n_experts, top_k;
    double pages_kept;     /* K */
    double page_tokens;    /* S */
    double channels;       /* d: of all KV heads of a layer */
    double compression;    /* rho */
    double token_bytes;    /* b, compressed */
    double overhead_bytes; /* m */
} plan_paper_input;

enum { PLAN_PAPER_PAGES = 16 }; /* K of the paper's example */

typedef struct plan_paper {
    double paper_tokens, paper_tokens_before; /* on a rank; what the paper compares with */
    double tokens, tokens_before, tokens_replicated;
    double paper_elements, bytes;          /* of a layer on a rank, at the page size given */
    double paper_page_tokens, page_tokens; /* the best */
    double paper_elements_least, bytes_least;
    double paper_share_read;
} plan_paper;

void plan_paper_of(const plan_paper_input *in, plan_paper *out);

#endif
