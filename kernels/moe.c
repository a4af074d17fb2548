/* kernels/moe.c - scratch and work list of the experts, see moe.h and moe_plan.h. */
#include "kernels/moe.h"

#include "base/check.h"
#include "kernels/moe_plan.h"

enum { ALIGN = 64 };

/* Byte offsets of the plan's arrays in the scratch, in the order of moe_plan. */
typedef struct layout {
    size_t active, pairs, hidden, total;
} layout;

static err_t add_array(size_t *total, size_t n, size_t each_bytes)
{
    size_t bytes;
    TRY(size_mul(n, each_bytes, &bytes));
    TRY(size_add(bytes, ALIGN - 1, &bytes));
    return size_add(*total, bytes / ALIGN * ALIGN, total);
}

static err_t measure(size_t n_pairs, size_t n_experts, size_t ffn, layout *out)
{
    size_t total = 0, row_bytes;
    TRY(add_array(&total, n_experts + 1, sizeof(uint32_t)));
    out->active = total;
    TRY(add_array(&total, n_experts, sizeof(uint32_t)));
    out->pairs = total;
    TRY(add_array(&total, n_pairs, sizeof(uint32_t)));
    out->hidden = total;
    TRY(size_mul(ffn, sizeof(float), &row_bytes));
    TRY(add_array(&total, n_pairs, row_bytes));
    out->total = total;
    return ERR_OK;
}

size_t moe_scratch_bytes(uint32_t n_tokens, uint32_t dim, uint32_t ffn, uint32_t n_experts,
                         uint32_t top_k)
{
    (void)dim; /* the sum over experts is made in `out` itself */
    layout l;
    size_t n_pairs;
    if (size_mul(n_tokens, top_k, &n_pairs) != ERR_OK) return 0;
    return measure(n_pairs, n_experts, ffn, &l) == ERR_OK ? l.total : 0;
}

static bool is_here(const moe_args *args, uint32_t expert)
{
    assert(expert < args->n_experts || expert == MOE_ELSEWHERE);
    return expert != MOE_ELSEWHERE;
}

moe_plan moe_plan_make(const moe_args *args)
{
    const uint32_t n_pairs = args->n_tokens * args->top_k;
    layout l;
    const err_t err = measure(n_pairs, args->n_experts, args->ffn, &l);
    assert(err == ERR_OK);
    uint8_t *base = args->scratch;
    moe_plan plan = {.first = (uint32_t *)base,
                     .active = (uint32_t *)(base + l.active),
                     .pairs = (uint32_t *)(base + l.pairs),
                     .hidden = (float *)(base + l.hidden)};
    memset(plan.first, 0, (args->n_experts + (size_t)1) * sizeof *plan.first);
    for (uint32_t i = 0; i < n_pairs; i++) {
        if (is_here(args, args->chosen[i])) plan.first[args->chosen[i] + 1]++;
    }
    for (uint32_t e = 0; e < args->n_experts; e++) {
        if (plan.first[e + 1] > 0) plan.active[plan.n_active++] = e;
        plan.first[e + 1] += plan.first[e];
    }
    /* first[e] serves as cursor and ends as the beginning of e + 1; the loop after moves it back. */
    for (uint32_t i = 0; i < n_pairs; i++) {
        if (is_here(args, args->chosen[i])) plan.pairs[plan.first[args->chosen[i]]++] = i;
    }
    for (uint32_t e = args->n_experts; e > 0; e--)
        plan.first[e] = plan.first[e - 1];
    plan.first[0] = 0;
    return plan;
}
