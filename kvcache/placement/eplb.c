/* kvcache/placement/eplb.c - see eplb.h. */
#include "kvcache/placement/eplb.h"

#include "base/check.h"

#include <stdbool.h>
#include <stddef.h>

/* ---- packing ------------------------------------------------------------------------------------- */

/* order = items by falling weight; equal ones by index. Few hundred items: an insertion sort. */
static void sort_items(const kv_eplb_pack_args *args)
{
    for (uint32_t i = 0; i < args->n; i++) {
        uint32_t at = i;
        for (; at > 0 && args->weight[args->order[at - 1]] < args->weight[i]; at--)
            args->order[at] = args->order[at - 1];
        args->order[at] = i;
    }
}

static uint32_t lightest_bin(const kv_eplb_pack_args *args, uint32_t n_each)
{
    uint32_t best = args->n_bins;
    for (uint32_t b = 0; b < args->n_bins; b++) {
        if (args->count[b] == n_each) continue;
        if (best == args->n_bins || args->load[b] < args->load[best]) best = b;
    }
    assert(best < args->n_bins);
    return best;
}

void kv_eplb_pack(const kv_eplb_pack_args *args)
{
    const uint32_t n_each = (args->n + args->n_bins - 1) / args->n_bins;
    if (n_each <= 1) { /* in order of index, not of weight, as in the original */
        for (uint32_t i = 0; i < args->n; i++) {
            args->bin[i] = i;
            args->rank[i] = 0;
        }
        return;
    }
    for (uint32_t b = 0; b < args->n_bins; b++) {
        args->load[b] = 0;
        args->count[b] = 0;
    }
    sort_items(args);
    for (uint32_t i = 0; i < args->n; i++) {
        const uint32_t item = args->order[i], b = lightest_bin(args, n_each);
        args->bin[item] = b;
        args->rank[item] = args->count[b]++;
        args->load[b] += args->weight[item];
    }
}

/* ---- placing ------------------------------------------------------------------------------------- */

typedef struct packing {
    uint32_t bin[KV_EPLB_SLOTS_MAX], rank[KV_EPLB_SLOTS_MAX], order[KV_EPLB_SLOTS_MAX];
    uint32_t count[KV_EPLB_SLOTS_MAX];
    float load[KV_EPLB_SLOTS_MAX];
} packing;

static void pack(const float *weight, uint32_t n, uint32_t n_bins, packing *out)
{
    kv_eplb_pack(&(kv_eplb_pack_args){weight, n, n_bins, out->bin, out->rank, out->order, out->load,
                                      out->count});
}

/* expert_at[i] = the expert at place i when groups are packed onto nodes: a node's places follow each
 * other. */
static void order_experts(const kv_eplb_args *args, uint32_t n_groups, uint32_t n_nodes,
                          uint32_t *expert_at)
{
    float weight[KV_EPLB_SLOTS_MAX];
    packing groups;
    const uint32_t group_size = args->n_experts / n_groups, n_each = n_groups / n_nodes;
    for (uint32_t g = 0; g < n_groups; g++) {
        weight[g] = 0;
        for (uint32_t i = 0; i < group_size; i++)
            weight[g] += args->load[g * group_size + i];
    }
    pack(weight, n_groups, n_nodes, &groups);
    for (uint32_t g = 0; g < n_groups; g++) {
        const uint32_t first = (groups.bin[g] * n_each + groups.rank[g]) * group_size;
        for (uint32_t i = 0; i < group_size; i++)
            expert_at[first + i] = g * group_size + i;
    }
}

/* What replicate deals, and to whom. */
typedef struct replication {
    const float *load;       /* [all experts] */
    const uint32_t *experts; /* [n_experts]: of them, those of one node */
    uint32_t n_experts, n_slots;
    uint32_t n_replicas_max; /* of one expert */
    uint32_t *n_replicas;    /* out [all experts] */
} replication;

/* Slots of one node in order of replication: first each expert once, then always the one whose replicas
 * carry most. */
static void replicate(const replication *r, uint32_t *slot)
{
    for (uint32_t i = 0; i < r->n_experts; i++) {
        slot[i] = r->experts[i];
        r->n_replicas[r->experts[i]] = 1;
    }
    for (uint32_t i = r->n_experts; i < r->n_slots; i++) {
        uint32_t best = r->n_experts;
        float most = 0;
        for (uint32_t j = 0; j < r->n_experts; j++) {
            const uint32_t e = r->experts[j], n = r->n_replicas[e];
            if (n == r->n_replicas_max) continue;
            const float share = r->load[e] / (float)n;
            if (best < r->n_experts && !(share > most)) continue;
            best = j;
            most = share;
        }
        assert(best < r->n_experts);
        slot[i] = r->experts[best];
        r->n_replicas[r->experts[best]]++;
    }
}

void kv_eplb_place(const kv_eplb_args *args)
{
    assert(args->n_slots <= KV_EPLB_SLOTS_MAX);
    assert(args->n_experts <= args->n_slots);
    assert(args->n_slots % args->n_bins == 0);
    assert(args->n_bins % args->n_nodes == 0);
    assert(args->n_experts % args->n_groups == 0);
    const bool has_nodes = args->n_groups % args->n_nodes == 0;
    const uint32_t n_nodes = has_nodes ? args->n_nodes : 1;
    const uint32_t n_experts = args->n_experts / n_nodes, n_slots = args->n_slots / n_nodes;
    const uint32_t n_bins = args->n_bins / n_nodes, n_each = args->n_slots / args->n_bins;
    uint32_t expert_at[KV_EPLB_SLOTS_MAX], slot[KV_EPLB_SLOTS_MAX];
    float weight[KV_EPLB_SLOTS_MAX];
    packing replicas;
    order_experts(args, has_nodes ? args->n_groups : 1, n_nodes, expert_at);
    for (uint32_t node = 0; node < n_nodes; node++) {
        const replication r = {.load = args->load,
                               .experts = expert_at + (size_t)node * n_experts,
                               .n_experts = n_experts,
                               .n_slots = n_slots,
                               .n_replicas_max = n_slots,
                               .n_replicas = args->n_replicas};
        replicate(&r, slot);
        for (uint32_t i = 0; i < n_slots; i++)
            weight[i] = args->load[slot[i]] / (float)args->n_replicas[slot[i]];
        pack(weight, n_slots, n_bins, &replicas);
        for (uint32_t i = 0; i < n_slots; i++)
            args->slot_expert[node * n_slots + replicas.bin[i] * n_each + replicas.rank[i]] =
                slot[i];
    }
}

/* ---- spreading ----------------------------------------------------------------------------------- */

enum { NO_BIN = UINT32_MAX, NO_SLOT = UINT32_MAX, EXCHANGES_MAX = 256 };

typedef struct spreading {
    const kv_eplb_spread_args *args;
    float weight[KV_EPLB_SLOTS_MAX]; /* [n_slots] */
    uint32_t order[KV_EPLB_SLOTS_MAX];
    float load[KV_EPLB_SLOTS_MAX]; /* [n_bins] */
    uint32_t count[KV_EPLB_SLOTS_MAX];
    bool has[KV_EPLB_SLOTS_MAX]; /* [n_bins]: the expert of find_holders */
    uint32_t n_each;             /* floor(n_slots / n_bins) */
    uint32_t n_larger_left;      /* bins that may still come to have one more */
} spreading;

static bool has_room(const spreading *s, uint32_t bin)
{
    return s->count[bin] < s->n_each || (s->count[bin] == s->n_each && s->n_larger_left > 0);
}

static void put(spreading *s, uint32_t slot, uint32_t bin)
{
    assert(has_room(s, bin));
    if (s->count[bin]++ == s->n_each) s->n_larger_left--;
    s->load[bin] += s->weight[slot];
    s->args->slot_bin[slot] = bin;
}

static void take(spreading *s, uint32_t slot)
{
    const uint32_t bin = s->args->slot_bin[slot];
    if (--s->count[bin] == s->n_each) s->n_larger_left++;
    s->load[bin] -= s->weight[slot];
    s->args->slot_bin[slot] = NO_BIN;
}

static bool bin_has(const spreading *s, uint32_t bin, uint32_t expert)
{
    for (uint32_t i = 0; i < s->args->n_slots; i++) {
        if (s->args->slot_bin[i] == bin && s->args->slot_expert[i] == expert) return true;
    }
    return false;
}

static void find_holders(spreading *s, uint32_t expert)
{
    for (uint32_t b = 0; b < s->args->n_bins; b++)
        s->has[b] = false;
    for (uint32_t i = 0; i < s->args->n_slots; i++) {
        if (s->args->slot_expert[i] == expert && s->args->slot_bin[i] != NO_BIN)
            s->has[s->args->slot_bin[i]] = true;
    }
}

/* The lightest with or without room, with or without the expert of find_holders. NO_BIN: none. */
static uint32_t lightest(const spreading *s, bool with_room, bool with_expert)
{
    uint32_t best = NO_BIN;
    for (uint32_t b = 0; b < s->args->n_bins; b++) {
        if (has_room(s, b) != with_room || s->has[b] != with_expert) continue;
        if (best == NO_BIN || s->load[b] < s->load[best]) best = b;
    }
    return best;
}

/* All bins without the expert are full, and those with room have it. So a full one has more replicas than
 * one with room, all of different experts, the one that is to come not among them: one at least can go
 * over. Returns the bin that has room then. */
static uint32_t make_room(spreading *s)
{
    const kv_eplb_spread_args *args = s->args;
    const uint32_t from = lightest(s, false, false), to = lightest(s, true, true);
    assert(from != NO_BIN);
    assert(to != NO_BIN);
    uint32_t i = args->n_slots, slot;
    do { /* from the lightest on */
        assert(i > 0);
        slot = s->order[--i];
    } while (args->slot_bin[slot] != from || bin_has(s, to, args->slot_expert[slot]));
    take(s, slot);
    put(s, slot, to);
    return from;
}

static void spread_init(spreading *s, const kv_eplb_spread_args *args)
{
    uint32_t experts[KV_EPLB_SLOTS_MAX];
    s->args = args;
    s->n_each = args->n_slots / args->n_bins;
    s->n_larger_left = args->n_slots % args->n_bins;
    for (uint32_t e = 0; e < args->n_experts; e++)
        experts[e] = e;
    const replication r = {.load = args->load,
                           .experts = experts,
                           .n_experts = args->n_experts,
                           .n_slots = args->n_slots,
                           .n_replicas_max = args->n_bins,
                           .n_replicas = args->n_replicas};
    replicate(&r, args->slot_expert);
    for (uint32_t b = 0; b < args->n_bins; b++) {
        s->load[b] = 0;
        s->count[b] = 0;
    }
    for (uint32_t i = 0; i < args->n_slots; i++) {
        const uint32_t e = args->slot_expert[i];
        s->weight[i] = args->load[e] / (float)args->n_replicas[e];
        args->slot_bin[i] = NO_BIN;
    }
    sort_items(&(kv_eplb_pack_args){.weight = s->weight, .n = args->n_slots, .order = s->order});
}

static uint32_t heaviest(const spreading *s)
{
    uint32_t best = 0;
    for (uint32_t b = 1; b < s->args->n_bins; b++) {
        if (s->load[b] > s->load[best]) best = b;
    }
    return best;
}

/* What a bin holds. */
typedef struct contents {
    uint32_t slot[KV_EPLB_SLOTS_MAX]; /* [n] */
    uint32_t n;
    bool has[KV_EPLB_SLOTS_MAX]; /* [n_experts] */
} contents;

static void find_contents(const spreading *s, uint32_t bin, contents *out)
{
    out->n = 0;
    for (uint32_t e = 0; e < s->args->n_experts; e++)
        out->has[e] = false;
    for (uint32_t i = 0; i < s->args->n_slots; i++) {
        if (s->args->slot_bin[i] != bin) continue;
        out->slot[out->n++] = i;
        out->has[s->args->slot_expert[i]] = true;
    }
}

typedef struct exchange {
    uint32_t give, get; /* slots; get: NO_SLOT for nothing */
    float most;         /* load of the heavier of the two bins afterwards */
} exchange;

static void consider(const spreading *s, uint32_t give, uint32_t get, uint32_t to, exchange *best)
{
    const float moved = s->weight[give] - (get != NO_SLOT ? s->weight[get] : 0);
    const float left = s->load[s->args->slot_bin[give]] - moved, there = s->load[to] + moved;
    const float most = left > there ? left : there;
    if (most < best->most) *best = (exchange){give, get, most};
}

/* Between the heaviest bin and `to`: a replica for another, or, if sizes allow, for nothing. */
static void consider_bin(const spreading *s, const contents *from, uint32_t to,
                         const contents *there, exchange *best)
{
    const uint32_t *const expert = s->args->slot_expert;
    for (uint32_t i = 0; i < from->n; i++) {
        const uint32_t give = from->slot[i];
        if (there->has[expert[give]]) continue;
        if (from->n > there->n) consider(s, give, NO_SLOT, to, best);
        for (uint32_t j = 0; j < there->n; j++) {
            if (!from->has[expert[there->slot[j]]]) consider(s, give, there->slot[j], to, best);
        }
    }
}

/* The exchange that leaves the heavier of its two bins lightest; false if none is better than nothing. */
static bool exchange_best(spreading *s)
{
    const uint32_t from = heaviest(s);
    contents here, there;
    exchange best = {NO_SLOT, NO_SLOT, s->load[from]};
    uint32_t best_bin = NO_BIN;
    find_contents(s, from, &here);
    for (uint32_t b = 0; b < s->args->n_bins; b++) {
        const uint32_t give = best.give, get = best.get;
        if (b == from) continue;
        find_contents(s, b, &there);
        consider_bin(s, &here, b, &there, &best);
        if (best.give != give || best.get != get) best_bin = b;
    }
    if (best_bin == NO_BIN) return false;
    take(s, best.give);
    if (best.get != NO_SLOT) {
        take(s, best.get);
        put(s, best.get, from);
    }
    put(s, best.give, best_bin);
    return true;
}

void kv_eplb_spread(const kv_eplb_spread_args *args)
{
    assert(args->n_slots <= KV_EPLB_SLOTS_MAX);
    assert(args->n_bins <= KV_EPLB_SLOTS_MAX);
    assert(args->n_experts <= args->n_slots);
    assert(args->n_slots <= (uint64_t)args->n_experts * args->n_bins);
    spreading s;
    spread_init(&s, args);
    for (uint32_t i = 0; i < args->n_slots; i++) {
        const uint32_t slot = s.order[i];
        find_holders(&s, args->slot_expert[slot]);
        const uint32_t bin = lightest(&s, true, false);
        put(&s, slot, bin != NO_BIN ? bin : make_room(&s));
    }
    for (uint32_t i = 0; i < EXCHANGES_MAX && exchange_best(&s); i++) {
    }
}
