/* service/plan.c - see plan.h. Bytes that must fit somewhere are checked integers; rates are doubles. */
#include "service/plan.h"

#include "base/check.h"
#include "model/experts_config.h"
#include "service/plan_experts.h"

#include <math.h>

/* ---- memory -------------------------------------------------------------------------------------- */

static err_t sum_bytes(const uint64_t *terms, size_t n, uint64_t *out)
{
    size_t total = 0;
    for (size_t i = 0; i < n; i++)
        TRY(size_add(total, terms[i], &total));
    *out = total;
    return ERR_OK;
}

static err_t count_experts(const plan_input *in, plan_memory *out, err_info *info)
{
    const experts_config experts = {.n_redundant = in->n_redundant};
    TRY(experts_config_check(&experts, in->n_experts, in->n_ranks, info));
    const uint32_t n_slots = in->n_experts + in->n_redundant;
    out->experts_least = n_slots / in->n_ranks;
    out->experts_most = (n_slots + in->n_ranks - 1) / in->n_ranks;
    return ERR_OK;
}

static err_t count_memory(const plan_input *in, plan_memory *out, err_info *info)
{
    const plan_cache *c = &in->cache;
    size_t layer_bytes, bytes;
    TRY(count_experts(in, out, info));
    out->replicated_bytes = in->weights.replicated_bytes;
    TRY(size_mul(in->weights.expert_bytes, in->n_layers, &layer_bytes));
    TRY(size_mul(layer_bytes, out->experts_most, &bytes));
    out->expert_bytes = bytes;
    out->expert_bytes_least = layer_bytes * out->experts_least;
    const uint64_t kv[] = {c->page_bytes,  c->section_bytes,    c->ring_bytes,
                           c->table_bytes, c->descriptor_bytes, c->staging_bytes};
    TRY(sum_bytes(kv, sizeof kv / sizeof kv[0], &out->kv_bytes));
    const uint64_t all[] = {out->replicated_bytes, out->expert_bytes, out->kv_bytes};
    return sum_bytes(all, sizeof all / sizeof all[0], &out->total_bytes);
}

/* ---- a step -------------------------------------------------------------------------------------- */

/* Ranks add slices of their own and pass the sums on: a rank receives the slice of every other rank's
 * values, then every other slice's sum. Per token, so that the largest slice is rounded up once. */
static uint64_t reduce_bytes(uint64_t n_values, uint64_t n_ranks)
{
    const uint64_t slice = (n_values + n_ranks - 1) / n_ranks;
    return n_ranks == 1 ? 0 : sizeof(float) * ((n_ranks - 1) * slice + n_values - slice);
}

static void count_collectives(const plan_input *in, plan_step *out)
{
    const uint64_t n_others = in->n_ranks - 1;
    const kv_methods *methods = &in->cache.methods;
    const uint64_t n_bounds =
        methods->routing != NULL && !methods->reads_all; /* of what is unread */
    out->gather.bytes_per_token =
        sizeof(float) * in->n_heads * ((uint64_t)in->head_dim + 1 + n_bounds) * n_others;
    out->reduce.bytes_per_token = reduce_bytes(in->d_model, in->n_ranks);
    plan_collective *const both[] = {&out->gather, &out->reduce};
    for (size_t i = 0; i < 2; i++) {
        const double bytes = (double)both[i]->bytes_per_token * in->n_seqs;
        both[i]->n_per_step = n_others > 0 ? in->n_layers : 0;
        both[i]->seconds_per_step =
            (double)both[i]->n_per_step * (in->link_latency + bytes / in->link_bandwidth);
    }
}

static err_t count_step(const plan_input *in, plan_step *out)
{
    const plan_draw draw = {.n_experts = in->n_experts,
                            .top_k = in->top_k,
                            .n_tokens = in->n_seqs,
                            .n_ranks = in->n_ranks};
    const double n_ranks = in->n_ranks, n_seqs = in->n_seqs, bandwidth = in->bandwidth;
    const double always = (double)in->weights.step_bytes + (double)in->weights.row_bytes * n_seqs;
    const double expert = (double)in->weights.expert_bytes * in->n_layers;
    const double page_bytes = (double)in->cache.read_page_bytes * n_seqs;
    const double recent_bytes = (double)in->cache.read_recent_bytes * n_seqs;
    const double n_at_home = ceil(n_seqs / n_ranks); /* sequences of one home rank */
    out->experts_read = plan_experts_read(&draw);
    TRY(plan_experts_read_most(&draw, &out->experts_read_most));
    out->weight_bytes = always + expert * out->experts_read / n_ranks;
    out->weight_bytes_most = always + expert * out->experts_read_most;
    out->kv_bytes = (page_bytes + recent_bytes) / n_ranks;
    out->kv_bytes_most = (double)in->cache.read_page_bytes_most * n_seqs +
                         (double)in->cache.read_recent_bytes * n_at_home;
    count_collectives(in, out);
    const double seconds_least = (out->weight_bytes + out->kv_bytes) / bandwidth;
    const double seconds = (out->weight_bytes_most + out->kv_bytes_most) / bandwidth +
                           out->gather.seconds_per_step + out->reduce.seconds_per_step;
    const double one_rank_bytes = always + expert * out->experts_read + page_bytes + recent_bytes;
    out->bound_tokens_per_second = n_seqs / seconds_least;
    out->predicted_tokens_per_second = n_seqs / seconds;
    out->one_rank_tokens_per_second = n_seqs * bandwidth / one_rank_bytes;
    return ERR_OK;
}

err_t plan_make(const plan_input *in, plan_result *out, err_info *info)
{
    assert(in->n_ranks >= 1);
    assert(in->n_seqs >= 1);
    assert(in->bandwidth > 0);
    assert(in->link_bandwidth > 0);
    *out = (plan_result){0};
    err_t err = count_memory(in, &out->memory, info);
    if (err == ERR_OK) err = count_step(in, &out->step);
    return err == ERR_OK ? ERR_OK : err_set(info, err, "plan: %s", err_sentence(err));
}

/* ---- the paper ----------------------------------------------------------------------------------- */

void plan_paper_of(const plan_paper_input *in, plan_paper *out)
{
    const double tokens = in->n_tokens / in->n_ranks, kept = in->pages_kept;
    const double b = in->token_bytes, m = in->overhead_bytes;
    *out = (plan_paper){
        .paper_tokens = tokens + in->n_tokens / in->n_experts,
        .paper_tokens_before = in->n_tokens * in->n_experts,
        .tokens = tokens,
        .tokens_before = in->n_tokens,
        .tokens_replicated = tokens * in->top_k,
        .paper_elements = 2 * in->channels / in->compression *
                          (tokens / in->page_tokens + kept * in->page_tokens),
        .bytes = b * tokens + kept * in->page_tokens * b + m * tokens / in->page_tokens,
        .paper_page_tokens = sqrt(tokens / kept),
        .page_tokens = sqrt(m * tokens / (kept * b)),
        .paper_elements_least = 4 * in->channels / in->compression * sqrt(kept * tokens),
        .bytes_least = b * tokens + 2 * sqrt(m * tokens * kept * b),
        .paper_share_read = in->top_k / in->n_experts,
    };
}
