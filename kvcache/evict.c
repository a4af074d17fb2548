/* kvcache/evict.c - see evict.h.
 *
 * A layer at a time, its heads in parallel. Tables belong to heads, so their bits are cleared by the
 * head's own job; pages are dropped by the owner afterwards. */
#include "kvcache/evict.h"

#include "kvcache/commit.h"
#include "kvcache/compact.h"
#include "kvcache/distill.h"
#include "kvcache/evict_score.h"
#include "kvcache/kv_replay.h"
#include "kvcache/observed.h"
#include "kvcache/own_pages.h"
#include "kvcache/ranks.h"
#include "kvcache/rewrite.h"
#include "kvcache/run_box.h"
#include "kvcache/scatter.h"

#include "base/clock.h"

#include <string.h>

static void see_without(kv_seq *seq, uint32_t list, uint32_t entry, uint64_t gone)
{
    const size_t at = kv_table_entry(&seq->table, list, entry);
    kv_table_see(&seq->table, list, entry, seq->table.live[at] & ~gone);
}

/* What the layer's window has passed will not be seen again. */
static void drop_passed(kv_seq *seq, uint32_t layer, uint32_t list)
{
    const kv_cache *cache = seq->cache;
    const uint32_t *positions = kv_pool_pages(cache->pool)->positions;
    const uint32_t window = cache->layer[layer].window;
    if (window == 0 || seq->length < window) return;
    const uint32_t oldest = seq->length - window + 1;
    for (uint32_t b = 0; b < seq->n_blocks; b++) {
        const size_t entry = kv_table_entry(&seq->table, list, b);
        if (seq->table.live[entry] == 0) continue;
        const uint32_t *page = positions + (size_t)seq->table.page[entry] * cache->page_tokens;
        uint64_t gone = 0;
        for (uint64_t live = seq->table.live[entry]; live != 0; live &= live - 1) {
            const uint32_t slot = (uint32_t)__builtin_ctzll(live);
            if (page[slot] < oldest) gone |= UINT64_C(1) << slot;
        }
        if (gone != 0) see_without(seq, list, b, gone);
    }
}

/* ---- what stays ---------------------------------------------------------------------------------- */

/* What is kept is made to stand for all candidates while they are still there. */
static void fit_head(const kv_evict_layer *loop, uint32_t head, uint32_t n_kept, uint32_t worker)
{
    const kv_distill_args args = {.seq = loop->seq,
                                  .layer = loop->layer,
                                  .head = head,
                                  .view = kv_evict_head(loop, head),
                                  .n_kept = n_kept,
                                  .worker = worker,
                                  .queries =
                                      kv_latest_queries(loop, head, loop->policy->scorer->n_queries,
                                                        &loop->seq->cache->evict.workers[worker])};
    kv_distill_head(&args);
}

static bool has_rewritings(const kv_seq *seq)
{
    return seq->methods.rewritings.list[0] != NULL;
}

/* What is kept is written anew, while the others are still there to be read. */
static void rewrite_head(const kv_evict_layer *loop, uint32_t head, uint32_t n_kept,
                         uint32_t worker)
{
    kv_head_view *view = kv_evict_head(loop, head);
    const kv_rewrite_head_args args = {.seq = loop->seq,
                                       .layer = loop->layer,
                                       .head = head,
                                       .view = view,
                                       .n_kept = n_kept,
                                       .worker = worker};
    view->n_rewritten = kv_rewrite_head(&args);
}

/* Which candidates stay of a head. */
static void choose_jobs(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    const kv_evict_layer *loop = ctx;
    (void)worker;
    for (size_t h = begin; h < end; h++) {
        kv_head_view *view = kv_evict_head(loop, h);
        view->n_kept = loop->seq->cache->evict.n_keep[h];
        assert(view->n_kept <= view->n_open);
        for (uint32_t i = 0; i < view->n_kept; i++)
            view->kept[i] = i;
        if (view->n_kept == view->n_open) continue;
        kv_keep_best(view->score + view->first, view->n_open, view->n_kept, view->kept);
        if (!loop->policy->scorer->by_page) continue;
        view->n_kept = kv_pages_keep_whole(&view->pages, view->first, view->kept, view->n_kept);
    }
}

static void evict_head(const kv_evict_layer *loop, uint32_t head, uint32_t worker)
{
    kv_seq *seq = loop->seq;
    kv_head_view *view = kv_evict_head(loop, head);
    const uint32_t n = view->n_kept;
    const bool any_goes = n < view->n_open;
    if (any_goes && loop->policy->scorer->is_fitted) fit_head(loop, head, n, worker);
    if (has_rewritings(seq) && (any_goes || kv_rewrite_is_joint(seq)))
        rewrite_head(loop, head, n, worker);
    view->n_evicted = view->n_open - n;
    for (uint32_t i = 0, next = 0; i < view->n_open;) {
        const uint32_t at = view->first + i, entry = view->entry[at], shard = view->shard[at];
        uint64_t gone = 0; /* of one page, as far as its entries follow each other */
        for (; i < view->n_open; i++) {
            if (view->entry[view->first + i] != entry || view->shard[view->first + i] != shard)
                break;
            const bool is_kept = next < n && view->kept[next] == i;
            if (!is_kept) gone |= UINT64_C(1) << view->slot[view->first + i];
            next += is_kept;
        }
        if (gone == 0) continue;
        see_without(seq, kv_list(seq->cache, loop->layer, head, shard), entry, gone);
    }
}

static void evict_jobs(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    for (size_t h = begin; h < end; h++)
        evict_head(ctx, (uint32_t)h, worker);
}

/* Sinks and newest entries of a head, those that the layer's window shows: they stay. */
static uint32_t count_protected(const kv_seq *seq, uint32_t layer)
{
    const kv_cache *cache = seq->cache;
    const uint32_t length = seq->length, window = cache->layer[layer].window;
    const uint32_t oldest = window != 0 && length >= window ? length - window + 1 : 0;
    const uint32_t n_sinks = (uint32_t)min_size(cache->sink_tokens, length);
    uint32_t recent = kv_blocks_left(cache, length) * cache->page_tokens;
    recent = (uint32_t)max_size(recent, max_size(n_sinks, oldest));
    return (n_sinks > oldest ? n_sinks - oldest : 0) + (length > recent ? length - recent : 0);
}

/* Every rank keeps as large a part of what it has as the others, rounded so that all together keep what one would.
 * Placement need not deal entries evenly. */
static void deal_to_ranks(kv_evict_layer *loop)
{
    const kv_cache *cache = loop->seq->cache;
    uint64_t own = 0, all[KV_SHARDS_MAX], n_before = 0, n_all = 0;
    for (uint32_t h = 0; h < cache->n_kv_heads[loop->layer]; h++)
        own += kv_evict_head(loop, h)->n_open;
    if (!kv_ranks_gather(cache, &own, all, sizeof own)) return;
    for (uint32_t r = 0; r < cache->ranks.n; r++) {
        if (r == cache->ranks.rank) n_before = n_all;
        n_all += all[r];
    }
    const uint64_t n = loop->n_granted, n_heads = cache->n_kv_heads[loop->layer];
    if (n_all == 0 || (loop->policy->heads != NULL && n_all <= n * n_heads)) return;
    loop->n_granted = (uint32_t)(n * (n_before + own) / n_all - n * n_before / n_all);
}

/* What a head of the layer may keep on average, and of that how many candidates on this rank. */
static void deal_layer(kv_evict_layer *loop)
{
    const kv_seq *seq = loop->seq;
    const kv_cache *cache = seq->cache;
    const kv_policy *policy = loop->policy;
    const uint32_t n_recent = seq->length - kv_blocks_left(cache, seq->length) * cache->page_tokens;
    const uint32_t n_protected = count_protected(seq, loop->layer);
    loop->n_keep = kv_policy_n_keep(policy, seq->length);
    if (policy->layers != NULL) {
        const kv_layer_share_args args = {.layer = loop->layer,
                                          .n_layers = cache->n_layers,
                                          .n = seq->length,
                                          .n_window = n_recent,
                                          .n_sinks = cache->sink_tokens,
                                          .n_keep = loop->n_keep,
                                          .lazy = seq->observed.lazy,
                                          .lazy_threshold = policy->lazy_threshold};
        loop->n_keep = policy->layers->layer_share(&args);
    }
    if (loop->n_keep < n_protected) loop->n_keep = n_protected;
    loop->n_granted = loop->n_keep - n_protected;
    if (cache->ranks.n > 1 && loop->n_keep < seq->length) deal_to_ranks(loop);
}

/* How many candidates each head keeps; false if all of them. */
static bool plan_layer(kv_evict_layer *loop, uint32_t n_heads)
{
    kv_cache *cache = loop->seq->cache;
    uint64_t n_open = 0;
    bool is_over = false;
    deal_layer(loop);
    for (uint32_t h = 0; h < n_heads; h++) {
        const kv_head_view *view = kv_evict_head(loop, h);
        if (cache->ranks.n == 1) assert(view->n - view->n_open + loop->n_granted == loop->n_keep);
        cache->evict.n_open[h] = view->n_open;
        cache->evict.n_keep[h] = (uint32_t)min_size(view->n_open, loop->n_granted);
        is_over = is_over || view->n_open > loop->n_granted;
        n_open += view->n_open;
    }
    return loop->policy->heads != NULL ? n_open > (uint64_t)loop->n_granted * n_heads : is_over;
}

/* How many candidates each head keeps; all, if the layer has no more than it may. */
static void split_layer(const kv_evict_layer *loop, uint32_t n_heads, bool is_over)
{
    kv_cache *cache = loop->seq->cache;
    const kv_allocator *heads = loop->policy->heads;
    for (uint32_t h = 0; h < n_heads && !is_over; h++)
        cache->evict.n_keep[h] = cache->evict.n_open[h];
    if (heads == NULL || !is_over) return;
    for (uint32_t h = 0; h < n_heads; h++)
        cache->evict.scores[h] = kv_evict_head(loop, h)->score + kv_evict_head(loop, h)->first;
    const kv_split_args args = {.layer = loop->layer,
                                .n_layers = cache->n_layers,
                                .n_heads = n_heads,
                                .length = loop->seq->length,
                                .n = cache->evict.n_open,
                                .score = cache->evict.scores,
                                .n_keep = loop->n_granted,
                                .work = cache->evict.split_work};
    heads->split(&args, cache->evict.n_keep);
}

/* Empty pages go back. */
static void drop_empty(kv_seq *seq, uint32_t list)
{
    kv_cache *cache = seq->cache;
    for (uint32_t b = 0; b < seq->n_blocks; b++) {
        if (seq->table.live[kv_table_entry(&seq->table, list, b)] != 0) continue;
        kv_count_evicted(seq,
                         kv_table_drop_entry(&seq->table, cache->pool, list, b, KV_HELD_BY_SEQ));
    }
}

/* Lists the layer's entries; false if all of them stay. */
static bool begin_layer(kv_evict_layer *loop, uint32_t n_heads)
{
    kv_list_layer(loop);
    return plan_layer(loop, n_heads);
}

/* May something go on another rank that this one must hear of? */
static bool hears_of_others(const kv_evict_layer *loop)
{
    return loop->n_keep < loop->seq->length && kv_rewrite_is_joint(loop->seq);
}

static bool writes_pages(const kv_seq *seq, const kv_policy *policy)
{
    return policy->scorer->is_fitted || has_rewritings(seq);
}

/* The pages of what stays, if it will be written: of all layers before anything goes, since scores of some
 * layers may decide what others keep, and must be the same when room is found later. */
static err_t own_layers(kv_seq *seq, const kv_policy *policy)
{
    const kv_cache *cache = seq->cache;
    err_t err = ERR_OK;
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        kv_evict_layer loop = {.seq = seq, .policy = policy, .layer = l};
        const bool is_over = begin_layer(&loop, cache->n_kv_heads[l]);
        if (err == ERR_OK && (is_over || hears_of_others(&loop))) err = kv_own_pages(seq, l);
    }
    return err;
}

static void evict_layer(kv_seq *seq, const kv_policy *policy, uint32_t layer)
{
    kv_cache *cache = seq->cache;
    const uint32_t n_heads = cache->n_kv_heads[layer];
    kv_evict_layer loop = {.seq = seq, .policy = policy, .layer = layer};
    const bool is_over = begin_layer(&loop, n_heads);
    const bool is_scored = loop.n_keep < seq->length && kv_scores_together(&loop);
    if (is_over || is_scored) kv_score_layer(&loop);
    if (!is_over && !hears_of_others(&loop)) return;
    split_layer(&loop, n_heads, is_over);
    parallel_for(cache->d->pool, n_heads, 1, choose_jobs, &loop);
    if (hears_of_others(&loop)) kv_rewrite_meet(seq, layer);
    parallel_for(cache->d->pool, n_heads, 1, evict_jobs, &loop);
    for (uint32_t h = 0; h < n_heads; h++) {
        cache->stats.entries_evicted += kv_evict_head(&loop, h)->n_evicted;
        cache->stats.entries_rewritten += kv_evict_head(&loop, h)->n_rewritten;
        seq->is_thinned = seq->is_thinned || kv_evict_head(&loop, h)->n_evicted > 0;
    }
}

/* ---- settling ------------------------------------------------------------------------------------ */

/* The last length at which something was due, up to the present one; 0: none so far. */
static uint32_t last_due(const kv_seq *seq)
{
    const kv_cache *cache = seq->cache;
    const uint32_t length = seq->length, n_prompt = seq->n_prompt_tokens;
    if (length < n_prompt && kv_replay_is_due(cache, &seq->methods, n_prompt)) return 0;
    if (length < n_prompt) return length - length % cache->section_tokens;
    const uint32_t n_left = kv_blocks_left(cache, length);
    const uint32_t left = n_left > 0 ? cache->window_tokens + n_left * cache->page_tokens : 0;
    return left > n_prompt ? left : n_prompt;
}

/* What chooses at the present length: a selection up to the end of the prompt, scheduling behind it, or in
 * both without a selection. NULL: everything stays. */
static const kv_policy *policy_now(const kv_seq *seq)
{
    const kv_methods *methods = &seq->methods;
    const uint32_t n_prompt = seq->n_prompt_tokens;
    const bool is_prompt = seq->length <= n_prompt || seq->chosen_length < n_prompt;
    if (methods->selection.evicts && is_prompt) return &methods->selection;
    return methods->policy.evicts ? &methods->policy : NULL;
}

static bool asks_replay(const kv_policy *policy)
{
    return policy->evicts && (policy->scorer->needs & KV_SCORE_REPLAY) != 0;
}

/* ERR_KV_FULL: nothing has gone, on no rank. */
static err_t choose(kv_seq *seq)
{
    kv_cache *cache = seq->cache;
    const kv_policy *policy = policy_now(seq);
    const uint64_t start_ns = clock_mono_ns();
    if (policy != NULL && kv_policy_by_laziness(policy)) kv_find_laziness(seq, policy);
    if (policy != NULL && writes_pages(seq, policy))
        TRY(kv_ranks_agree(cache, own_layers(seq, policy), NULL));
    if (policy != NULL && policy->scorer->from != KV_FROM_OWN_LAYER) kv_share_scores(seq, policy);
    for (uint32_t l = 0; l < cache->n_layers && policy != NULL; l++)
        evict_layer(seq, policy, l);
    for (uint32_t l = 0; l < cache->n_layers && seq->is_thinned; l++) {
        for (uint32_t i = 0; i < cache->n_kv_heads[l] * cache->n_shards; i++) {
            drop_passed(seq, l, kv_list(cache, l, 0, 0) + i);
            drop_empty(seq, kv_list(cache, l, 0, 0) + i);
        }
        kv_scatter_find_ends(seq, l);
    }
    cache->stats.score_seconds += clock_seconds_since(start_ns);
    seq->chosen_length = seq->length;
    if (seq->length < seq->n_prompt_tokens) return ERR_OK;
    if (!asks_replay(&seq->methods.policy)) kv_replay_drop(seq);
    if (!seq->methods.policy.evicts) kv_observed_rest(seq);
    return ERR_OK;
}

/* Encodes what is due; room is found as the pages are, one after the other. */
static err_t encode(kv_seq *seq)
{
    kv_cache *cache = seq->cache;
    const kv_goal goal = kv_goal_at(seq, seq->length);
    memset(cache->need, 0, cache->n_classes * sizeof *cache->need);
    kv_encode_need(seq, &goal);
    if (!kv_make_room(cache)) return ERR_KV_FULL;
    kv_encode(seq, (uint32_t)min_size(goal.n_coded, seq->n_blocks));
    return ERR_OK;
}

err_t kv_seq_choose(kv_seq *seq)
{
    const bool is_due = kv_methods_evict(&seq->methods) && seq->chosen_length < last_due(seq);
    return is_due ? choose(seq) : ERR_OK;
}

err_t kv_seq_settle(kv_seq *seq)
{
    if (!kv_methods_evict(&seq->methods) || seq->settled_length >= last_due(seq)) return ERR_OK;
    err_t err = kv_seq_choose(seq);
    if (err == ERR_OK && seq->is_thinned) err = kv_compact(seq);
    if (err == ERR_OK && !seq->methods.codec->is_exact) err = encode(seq);
    /* Also of what was packed before room ran out: pages have changed places between runs. */
    for (uint32_t l = 0; l < seq->cache->n_layers && seq->is_thinned; l++)
        kv_runs_write(seq, l, 0, seq->n_blocks);
    TRY(err);
    seq->settled_length = seq->length;
    return ERR_OK;
}
