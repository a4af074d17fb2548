/* kernels/choose_pages.c - see choose_pages.h. */
#include "kernels/choose_pages.h"

#include "base/check.h"
#include "kernels/ops_cpu.h"

#include <float.h>
#include <math.h>

/* One KV head of a choice. */
typedef struct head_choice {
    const choose_pages_args *args;
    const attn_choice *choice;
    const attn_row *row;
    uint32_t kv_head;
    uint32_t first, end;  /* entries that may be candidates */
    float *bounds, *most; /* [group][n_blocks_max]; [n_blocks_max] */
} head_choice;

static const attn_page *page_at(const head_choice *c, uint32_t block)
{
    const attend_pages_args *attend = c->args->attend;
    return &c->row->pages[(size_t)block * attend->n_lists + attend->first_list + c->kv_head];
}

/* Of one entry, in every head of the group; returns the largest. */
static float bound_page(const head_choice *c, uint32_t block)
{
    const choose_pages_args *args = c->args;
    const attend_pages_args *attend = args->attend;
    const uint32_t box = page_at(c, block)->box;
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
        const bool is_candidate = b >= c->first && b < c->end && page_at(c, b)->live != 0;
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

/* Writes what is read, rising. */
static void list_chosen(const head_choice *c, uint32_t n, uint32_t *chosen, attn_choice_note *note)
{
    chosen[0] = 0;
    for (uint32_t b = c->first; b < c->row->n_blocks; b++) {
        const attn_page *page = page_at(c, b);
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
static float log_unread(const head_choice *c, uint32_t g)
{
    const float *bound = c->bounds + (size_t)g * c->args->n_blocks_max;
    double top = -INFINITY, sum = 0;
    for (uint32_t b = c->first; b < c->end; b++) {
        if (c->most[b] > -INFINITY) top = fmax(top, (double)bound[b]);
    }
    for (uint32_t b = c->first; b < c->end; b++) {
        if (c->most[b] > -INFINITY)
            sum += __builtin_popcountll(page_at(c, b)->live) * exp((double)bound[b] - top);
    }
    return sum > 0 ? (float)(top + log(sum)) : -INFINITY;
}

static void choose(const choose_pages_args *args, uint32_t choice, uint32_t kv_head)
{
    const attend_pages_args *attend = args->attend;
    const size_t at = (size_t)choice * attend->n_kv_heads + kv_head;
    const attn_row *row = &attend->rows[args->choices[choice].row];
    uint32_t *chosen = row->chosen + (size_t)kv_head * attend->chosen_stride;
    head_choice c = {.args = args,
                     .choice = &args->choices[choice],
                     .row = row,
                     .kv_head = kv_head,
                     .end = args->choices[choice].n_candidates,
                     .bounds = args->bounds + at * (attend->group + 1) * args->n_blocks_max};
    c.most = c.bounds + (size_t)attend->group * args->n_blocks_max;
    c.first = (uint32_t)min_size(
        attn_first_block(row->length, attend->window, attend->block_tokens), row->n_blocks);
    attn_choice_note note = {.n_open = bound_pages(&c)};
    list_chosen(&c, attn_n_chosen(c.choice->k, note.n_open), chosen, &note);
    drop_chosen(&c, chosen);
    for (uint32_t g = 0; g < attend->group; g++)
        args->log_unread[at * attend->group + g] = log_unread(&c, g);
    args->notes[at] = note;
}

void choose_pages_cpu(const choose_pages_args *args)
{
    for (uint32_t i = 0; i < args->n_choices; i++) {
        assert(args->attend->rows[args->choices[i].row].n_tokens == 1);
        assert(args->attend->rows[args->choices[i].row].n_blocks <= args->n_blocks_max);
        assert(args->attend->rows[args->choices[i].row].n_blocks < args->attend->chosen_stride);
        assert(args->choices[i].n_candidates <= args->attend->rows[args->choices[i].row].n_blocks);
        for (uint32_t h = 0; h < args->attend->n_kv_heads; h++)
            choose(args, i, h);
    }
}
