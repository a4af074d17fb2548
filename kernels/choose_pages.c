/* kernels/choose_pages.c - see choose_pages.h. */
#include "kernels/choose_pages.h"

#include "base/check.h"
#include "kernels/choose_impl.h"
#include "kernels/ops_cpu.h"

#include <float.h>
#include <math.h>

/* Of one entry, in every head of the group; returns the largest. */
static float bound_page(const head_choice *c, uint32_t block)
{
    const choose_pages_args *args = c->args;
    const attend_pages_args *attend = args->attend;
    const uint32_t box = choice_page(c, block)->box;
    const bool has_bias = args->bias_most != NULL && args->bias_most[box] > -INFINITY;
    const float bias = has_bias ? args->bias_most[box] : 0;
    float most = -FLT_MAX; /* above what is no candidate */
    const key_bounds_args bounds = {.q = attend->q + c->row->first_token * attend->q_stride +
                                         (size_t)c->kv_head * attend->group * attend->k_dim,
                                    .group = attend->group,
                                    .k_dim = attend->k_dim,
                                    .scale = attend->scale,
                                    .type = attend->type,
                                    .boxes = args->boxes,
                                    .box_stride_bytes = args->box_stride_bytes,
                                    .index = &box,
                                    .n_boxes = 1,
                                    .out = c->bounds + block,
                                    .out_stride = args->n_blocks_max};
    key_bounds_cpu(&bounds);
    for (uint32_t g = 0; g < attend->group; g++) {
        float *bound = &c->bounds[(size_t)g * args->n_blocks_max + block];
        *bound += bias;
        most = fmaxf(most, *bound);
    }
    return most;
}

/* Returns the number of candidates. */
static uint32_t bound_pages(const head_choice *c)
{
    uint32_t n = 0;
    for (uint32_t b = 0; b < c->row->n_blocks; b++) {
        const bool is_candidate = b >= c->first && b < c->end && choice_page(c, b)->live != 0;
        c->most[b] = is_candidate ? bound_page(c, b) : -INFINITY;
        n += is_candidate;
    }
    return n;
}

/* How many candidates come before this one? */
static uint32_t rank_of(const head_choice *c, uint32_t block)
{
    uint32_t n = 0;
    for (uint32_t b = c->first; b < c->end; b++)
        n += c->most[b] > c->most[block] || (c->most[b] == c->most[block] && b < block);
    return n;
}

/* Gives the candidates of chosen shards 1, others 0; returns how many have 1. */
static uint32_t choose_shards(const head_choice *c)
{
    float bound[ATTN_SHARDS_MAX];
    uint64_t n_live[ATTN_SHARDS_MAX] = {0}, n_live_all = 0;
    uint32_t n_with = 0, n = 0;
    for (uint32_t s = 0; s < c->choice->n_shards; s++)
        bound[s] = -INFINITY;
    for (uint32_t b = c->first; b < c->end; b++) {
        const uint32_t s = b % c->choice->n_shards;
        if (c->most[b] == -INFINITY) continue;
        n_with += n_live[s] == 0;
        n_live[s] += (uint64_t)__builtin_popcountll(choice_page(c, b)->live);
        bound[s] = fmaxf(bound[s], c->most[b]);
    }
    for (uint32_t s = 0; s < c->choice->n_shards; s++)
        n_live_all += n_live[s];
    const float mean = (float)n_live_all / (float)n_with;
    for (uint32_t s = 0; s < c->choice->n_shards; s++) {
        if (n_live[s] > 0 && c->choice->rule == ATTN_RULE_SHARDS_BALANCED)
            bound[s] -= (float)n_live[s] / mean - 1;
    }
    for (uint32_t b = c->first; b < c->end; b++) {
        const uint32_t s = b % c->choice->n_shards;
        uint32_t n_before = 0;
        if (c->most[b] == -INFINITY) continue;
        for (uint32_t other = 0; other < c->choice->n_shards; other++)
            n_before += bound[other] > bound[s] || (bound[other] == bound[s] && other < s);
        c->most[b] = n_before < attn_n_chosen(c->choice->amount, n_with) ? 1 : 0;
        n += c->most[b] > 0;
    }
    return n;
}

/* How many candidates are read: those that have the largest `most` then. */
static uint32_t find_number(const head_choice *c)
{
    if (c->n_open == 0) return 0;
    if (attn_reads_by_mass(c->choice->rule)) return choose_by_mass(c);
    if (c->choice->rule != ATTN_RULE_BEST) return choose_shards(c);
    return attn_n_chosen(c->choice->amount, c->n_open);
}

/* Writes what is read, rising. */
static void list_chosen(const head_choice *c, uint32_t n, uint32_t *chosen, attn_choice_note *note)
{
    chosen[0] = 0;
    for (uint32_t b = c->first; b < c->row->n_blocks; b++) {
        const attn_page *page = choice_page(c, b);
        const bool is_candidate = b < c->end && page->live != 0;
        if (b < c->end && (!is_candidate || rank_of(c, b) >= n)) continue;
        chosen[1 + chosen[0]++] = b;
        note->n_chosen += is_candidate;
        note->n_read += page->live != 0;
        note->read_bytes += page->live != 0 ? page->read_bytes : 0;
    }
}

static void drop_chosen(const head_choice *c, const uint32_t *chosen)
{
    for (uint32_t i = 0; i < chosen[0]; i++)
        c->most[chosen[1 + i]] = -INFINITY;
}

/* Of head g: log of sum n exp(bound) over the candidates that are left. */
static double log_unread(const head_choice *c, uint32_t g)
{
    const float *bound = c->bounds + (size_t)g * c->args->n_blocks_max;
    double top = -INFINITY, sum = 0;
    for (uint32_t b = c->first; b < c->end; b++) {
        if (c->most[b] > -INFINITY) top = fmax(top, (double)bound[b]);
    }
    for (uint32_t b = c->first; b < c->end; b++) {
        if (c->most[b] > -INFINITY)
            sum += __builtin_popcountll(choice_page(c, b)->live) * exp((double)bound[b] - top);
    }
    return sum > 0 ? top + log(sum) : -(double)INFINITY;
}

static void choose(const choose_pages_args *args, uint32_t choice, uint32_t kv_head)
{
    const attend_pages_args *attend = args->attend;
    const size_t at = (size_t)choice * attend->n_kv_heads + kv_head;
    const attn_row *row = &attend->rows[args->choices[choice].row];
    head_choice c = {.args = args,
                     .choice = &args->choices[choice],
                     .row = row,
                     .kv_head = kv_head,
                     .end = args->choices[choice].n_candidates,
                     .chosen = row->chosen + (size_t)kv_head * attend->chosen_stride,
                     .bounds = args->bounds + at * (attend->group + 1) * args->n_blocks_max};
    c.most = c.bounds + (size_t)attend->group * args->n_blocks_max;
    c.first = (uint32_t)min_size(
        attn_first_block(row->length, attend->window, attend->block_tokens), row->n_blocks);
    if (attn_reads_by_mass(c.choice->rule)) {
        c.order = args->order + at * attn_n_order(args->n_blocks_max);
        c.rest = args->rest + at * attend->group * attn_n_rest(args->n_blocks_max);
    }
    c.n_open = bound_pages(&c);
    attn_choice_note note = {.n_open = c.n_open};
    list_chosen(&c, find_number(&c), c.chosen, &note);
    drop_chosen(&c, c.chosen);
    for (uint32_t g = 0; g < attend->group; g++)
        args->log_unread[at * attend->group + g] = log_unread(&c, g);
    args->notes[at] = note;
}

static void check_choice(const choose_pages_args *args, const attn_choice *choice)
{
    const attn_row *row = &args->attend->rows[choice->row];
    assert(row->n_tokens == 1);
    assert(row->n_blocks <= args->n_blocks_max);
    assert(row->n_blocks < args->attend->chosen_stride);
    assert(choice->n_candidates <= row->n_blocks);
    assert(choice->n_shards >= 1);
    assert(choice->n_shards <= ATTN_SHARDS_MAX);
    if (attn_reads_by_mass(choice->rule)) assert(args->order != NULL);
}

void choose_pages_cpu(const choose_pages_args *args)
{
    for (uint32_t i = 0; i < args->n_choices; i++) {
        check_choice(args, &args->choices[i]);
        for (uint32_t h = 0; h < args->attend->n_kv_heads; h++)
            choose(args, i, h);
    }
}
