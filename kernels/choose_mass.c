/* kernels/choose_mass.c - choices that go by the mass of what is read: see choose_pages.h. */
#include "kernels/choose_impl.h"

#include "base/check.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

/* Of one query head, all in units of exp(scale). */
typedef struct head_mass {
    double scale;
    double base;        /* log Z_g, or scale where that is -inf */
    double in_any_case; /* Z_g */
    double read;        /* and X_g */
} head_mass;

/* ---- what keys say --------------------------------------------------------------------------------- */

/* Maximum and sum of every head over what the row reads: its list, then what is behind n_blocks. */
static void probe(const head_choice *c, const attn_row *row, uint32_t n_sinks, attn_mass *out)
{
    attend_pages_args args = *c->args->attend;
    const uint32_t n_recent = row->length / args.block_tokens + 1 - row->n_blocks;
    const attn_task task = {.n_queries = 1,
                            .n_splits = (row->chosen[0] + n_recent) / ATTN_SPLIT_BLOCKS + 1,
                            .partial = ATTN_NO_PARTIAL};
    float nothing = 0; /* values have no channels */
    args.q += (size_t)c->kv_head * args.group * args.k_dim;
    args.out = &nothing;
    args.out_stride = 0;
    args.n_kv_heads = 1;
    args.v_dim = 0;
    args.sink_logit = NULL;
    args.n_sinks = n_sinks;
    args.first_list += c->kv_head;
    args.strip.k_offset += (size_t)c->kv_head * args.strip.k_head_bytes;
    args.strip.v_offset += (size_t)c->kv_head * args.strip.v_head_bytes;
    args.rows = row;
    args.tasks = &task;
    args.n_tasks = 1;
    args.n_merges = 0;
    args.masses = out;
    attend_pages_cpu(&args);
}

static attn_row row_with(const head_choice *c, uint32_t *list)
{
    attn_row row = *c->row;
    row.choice = 0;
    row.chosen = list;
    return row;
}

static void probe_in_any_case(const head_choice *c, attn_mass *out)
{
    const attn_row row = row_with(c, c->chosen);
    const uint32_t begin = c->first > c->end ? c->first : c->end;
    c->chosen[0] = 0;
    for (uint32_t b = begin; b < row.n_blocks; b++)
        c->chosen[1 + c->chosen[0]++] = b;
    probe(c, &row, c->args->attend->n_sinks, out);
}

/* Nothing lies behind its one page. */
static void probe_page(const head_choice *c, uint32_t block, attn_mass *out)
{
    uint32_t list[] = {1, block};
    attn_row row = row_with(c, list);
    row.n_blocks = row.length / c->args->attend->block_tokens + 1;
    probe(c, &row, 0, out);
}

static double mass_in(const attn_mass *mass, double scale)
{
    return mass->sum > 0 ? (double)mass->sum * exp((double)mass->max - scale) : 0;
}

/* ---- order ----------------------------------------------------------------------------------------- */

static float log_mass(const head_choice *c, uint32_t g, uint32_t block)
{
    return logf((float)__builtin_popcountll(choice_page(c, block)->live)) +
           choice_bound(c, g, block);
}

static void find_scales(const head_choice *c, const attn_mass *in_any_case, head_mass *heads)
{
    for (uint32_t g = 0; g < c->args->attend->group; g++) {
        const attn_mass *mass = &in_any_case[g];
        const double log_read =
            mass->sum > 0 ? (double)mass->max + log((double)mass->sum) : -(double)INFINITY;
        double scale = log_read;
        for (uint32_t b = c->first; b < c->end; b++) {
            if (c->most[b] > -INFINITY) scale = fmax(scale, (double)log_mass(c, g, b));
        }
        const double read = mass_in(mass, scale);
        heads[g] = (head_mass){.scale = scale,
                               .base = mass->sum > 0 ? log_read : scale,
                               .in_any_case = read,
                               .read = read};
    }
}

static uint64_t order_key(float priority, uint32_t block)
{
    union {
        float x;
        uint32_t bits;
    } as = {priority == 0 ? 0 : priority};
    const uint32_t rising = (as.bits >> 31) != 0 ? ~as.bits : as.bits | 0x80000000u;
    return (uint64_t)~rising << 32 | block;
}

static int compare_keys(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void find_order(const head_choice *c, const head_mass *heads)
{
    uint32_t n = 0;
    for (uint32_t b = c->first; b < c->end; b++) {
        if (c->most[b] == -INFINITY) continue;
        float priority = -FLT_MAX;
        for (uint32_t g = 0; g < c->args->attend->group; g++)
            priority = fmaxf(priority, log_mass(c, g, b) - (float)heads[g].base);
        c->most[b] = priority;
        c->order[n++] = order_key(priority, b);
    }
    assert(n == c->n_open);
    qsort(c->order, n, sizeof *c->order, compare_keys);
}

/* ---- sums ------------------------------------------------------------------------------------------ */

static double bound_mass(const head_choice *c, uint32_t g, uint32_t rank, double scale)
{
    return exp((double)log_mass(c, g, (uint32_t)c->order[rank]) - scale);
}

/* From some rank on to the next whose sum is kept, and what that is. */
static double rest_from(const head_choice *c, uint32_t g, uint32_t rank, double scale)
{
    const uint32_t next = (rank + ATTN_RANKS_AT_ONCE - 1) / ATTN_RANKS_AT_ONCE;
    double sum = c->rest[g * attn_n_rest(c->args->n_blocks_max) + next];
    for (uint32_t r = next * ATTN_RANKS_AT_ONCE; r-- > rank;)
        sum += r < c->n_open ? bound_mass(c, g, r, scale) : 0;
    return sum;
}

static void sum_rests(const head_choice *c, const head_mass *heads)
{
    const uint32_t n = (c->n_open + ATTN_RANKS_AT_ONCE - 1) / ATTN_RANKS_AT_ONCE;
    for (uint32_t g = 0; g < c->args->attend->group; g++) {
        double *rest = c->rest + g * attn_n_rest(c->args->n_blocks_max);
        rest[n] = 0;
        for (uint32_t i = n; i-- > 0;)
            rest[i] = rest_from(c, g, i * ATTN_RANKS_AT_ONCE + 1, heads[g].scale) +
                      bound_mass(c, g, i * ATTN_RANKS_AT_ONCE, heads[g].scale);
    }
}

/* May reading stop before this rank? */
static bool is_enough(const head_choice *c, const head_mass *heads, uint32_t rank)
{
    const double amount = c->choice->amount;
    for (uint32_t g = 0; g < c->args->attend->group; g++) {
        const double rest = rest_from(c, g, rank, heads[g].scale);
        const double all = heads[g].in_any_case + c->rest[g * attn_n_rest(c->args->n_blocks_max)];
        const double most = c->choice->rule == ATTN_RULE_NUCLEUS ? (1 - amount) * all
                                                                 : amount * (heads[g].read + rest);
        if (!(rest <= most)) return false;
    }
    return true;
}

uint32_t choose_by_mass(const head_choice *c)
{
    attn_mass masses[ATTN_GROUP_MAX];
    head_mass heads[ATTN_GROUP_MAX];
    const uint32_t group = c->args->attend->group;
    uint32_t n = 0;
    assert(group <= ATTN_GROUP_MAX);
    probe_in_any_case(c, masses);
    find_scales(c, masses, heads);
    find_order(c, heads);
    sum_rests(c, heads);
    for (; n < c->n_open && !is_enough(c, heads, n); n++) {
        if (c->choice->rule == ATTN_RULE_NUCLEUS) continue;
        probe_page(c, (uint32_t)c->order[n], masses);
        for (uint32_t g = 0; g < group; g++)
            heads[g].read += mass_in(&masses[g], heads[g].scale);
    }
    return n;
}
