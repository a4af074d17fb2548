/* service/batch_scheduler.c - see batch_scheduler.h.
 *
 * Nobody starves: places and tokens go out in order of arrival within each of the three passes, the
 * passes only ever prefer sessions that are nearer to their end, and a session that waits for a
 * sibling waits for one that runs. */
#include "service/batch_scheduler.h"

#include "base/check.h"

typedef struct plan {
    const sched_limits *limits;
    sched_row *rows;
    size_t n_rows;
    uint32_t n_tokens_left;
    uint32_t n_seqs; /* running ones and those admitted now */
} plan;

static void add_row(plan *p, const sched_item *items, size_t item)
{
    assert(p->n_rows < p->limits->n_seqs_max);
    const uint32_t n_step_max = items[item].n_step_max;
    uint32_t n_tokens = items[item].n_pending;
    if (n_step_max > 0 && n_tokens > n_step_max) n_tokens = n_step_max;
    if (n_tokens > p->n_tokens_left) n_tokens = p->n_tokens_left;
    p->rows[p->n_rows++] = (sched_row){.item = (uint32_t)item, .n_tokens = n_tokens};
    p->n_tokens_left -= n_tokens;
}

static void plan_running(plan *p, const sched_item *items, size_t n_items, bool is_decode)
{
    for (size_t i = 0; i < n_items && p->n_tokens_left > 0; i++) {
        if (!items[i].is_running || items[i].n_pending == 0) continue;
        if ((items[i].n_pending == 1) == is_decode) add_row(p, items, i);
    }
}

/* True if a sibling of items[i] is in the prompt that both have: a running one, or one admitted in
 * this plan (the rows from first_row on). */
static bool has_leader(const plan *p, const sched_item *items, size_t n_items, size_t i,
                       size_t first_row)
{
    for (size_t k = 0; k < n_items; k++) {
        const bool may_lead = items[k].is_running && items[k].shares_prompt;
        if (may_lead && items[k].group == items[i].group) return true;
    }
    for (size_t r = first_row; r < p->n_rows; r++) {
        const sched_item *other = &items[p->rows[r].item];
        if (other->shares_prompt && other->group == items[i].group) return true;
    }
    return false;
}

static void plan_waiting(plan *p, const sched_item *items, size_t n_items)
{
    const size_t first_row = p->n_rows;
    for (size_t i = 0; i < n_items; i++) {
        if (p->n_tokens_left == 0 || p->n_seqs >= p->limits->n_seqs_max) return;
        if (items[i].is_running || items[i].n_pending == 0) continue;
        if (items[i].shares_prompt && has_leader(p, items, n_items, i, first_row)) continue;
        add_row(p, items, i);
        p->n_seqs++;
    }
}

size_t sched_plan(const sched_item *items, size_t n_items, const sched_limits *limits,
                  sched_row *rows)
{
    plan p = {.limits = limits, .rows = rows, .n_tokens_left = limits->n_tokens_max};
    for (size_t i = 0; i < n_items; i++) {
        assert(i == 0 || items[i - 1].arrival < items[i].arrival);
        if (items[i].is_running) p.n_seqs++;
    }
    assert(p.n_seqs <= limits->n_seqs_max);
    plan_running(&p, items, n_items, true);
    plan_running(&p, items, n_items, false);
    plan_waiting(&p, items, n_items);
    return p.n_rows;
}

size_t sched_victim(const sched_item *items, size_t n_items)
{
    for (size_t i = n_items; i > 0; i--) {
        if (items[i - 1].is_running) return i - 1;
    }
    return SIZE_MAX;
}
