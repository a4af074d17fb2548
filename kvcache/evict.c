/* kvcache/evict.c - see evict.h.
 *
 * A layer at a time, its heads in parallel. Tables belong to heads, so their bits are cleared by the
 * head's own job; pages are dropped by the owner afterwards. */
#include "kvcache/evict.h"

#include "kvcache/commit.h"
#include "kvcache/compact.h"
#include "kvcache/distill.h"
#include "kvcache/kv_replay.h"
#include "kvcache/local_mass.h"
#include "kvcache/observed.h"
#include "kvcache/own_pages.h"
#include "kvcache/ranks.h"
#include "kvcache/rewrite.h"
#include "kvcache/run_box.h"
#include "kvcache/scatter.h"
#include "kvcache/score_view.h"
#include "kvcache/scoring/whole_pages.h"

#include "base/clock.h"

#include <math.h>
#include <string.h>

/* Of `random`: the same in every process. */
static const uint64_t SEED = 0x70696b76;

static uint32_t group_of(const kv_layer_shape *shape)
{
    return shape->n_heads / shape->n_kv_heads;
}

/* ---- a layer ------------------------------------------------------------------------------------- */

typedef struct evict_loop {
    kv_seq *seq;
    const kv_policy *policy; /* that chooses now */
    uint32_t layer;
    uint32_t n_keep;    /* entries that a head of this layer keeps on average, */
    uint32_t n_granted; /* candidates among them */
} evict_loop;

static kv_head_view *head_view(const evict_loop *loop, size_t h)
{
    return &loop->seq->cache->evict.heads[h];
}

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

static void list_jobs(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    const evict_loop *loop = ctx;
    (void)worker;
    for (size_t h = begin; h < end; h++)
        kv_view_list(loop->seq, loop->layer, (uint32_t)h, head_view(loop, h));
}

/* Last use and number of uses of every entry's page, by decode queries. Appending is a use. Where routing
 * leaves nothing out, every query behind the prompt uses everything, and nothing had to be noted. */
static void list_uses(const kv_seq *seq, uint32_t layer, uint32_t head, kv_head_view *view)
{
    const uint32_t n_prompt = seq->n_prompt_tokens;
    for (uint32_t i = 0; i < view->n; i++) {
        const uint32_t position = view->positions[i];
        const uint32_t first = position < n_prompt ? n_prompt : position + 1;
        kv_uses uses = {.last_use = position};
        if (seq->methods.reads_all && first < seq->length)
            uses = (kv_uses){.last_use = seq->length - 1, .n_uses = seq->length - first};
        if (view->entry[i] != KV_ENTRY_NONE) {
            const uint32_t list = kv_list(seq->cache, layer, head, view->shard[i]);
            kv_uses_join(&uses, kv_observed_uses(seq, list, view->entry[i]));
        }
        view->last_use[i] = uses.last_use;
        view->n_uses[i] = uses.n_uses;
    }
}

/* The largest share of every entry when the prompt was read again. */
static void list_replay(const kv_seq *seq, uint32_t layer, uint32_t head, kv_head_view *view)
{
    const float *scores = kv_replay_scores(seq, layer, head);
    const uint32_t n = view->n;
    const uint32_t n_rows = kv_replay_has_norms(seq) ? group_of(&seq->cache->layer[layer]) : 1;
    for (uint32_t g = 0; g < n_rows; g++, scores += seq->n_prompt_tokens) {
        for (uint32_t i = 0; i < n; i++) {
            const uint32_t position = view->positions[i];
            view->replay[g * n + i] = position < seq->n_prompt_tokens ? expf(scores[position]) : 0;
        }
    }
}

/* The newest n_wanted, as far as there are so many. */
static kv_score_queries latest_queries(const evict_loop *loop, uint32_t head, uint32_t n_wanted,
                                       const kv_evict_worker *worker)
{
    const size_t n = min_size(kv_observed_n_queries(loop->seq), n_wanted);
    const kv_observed_window window = {.layer = loop->layer, .head = head, .n = (uint32_t)n};
    const kv_observed_rows rows = {.q = worker->queries,
                                   .input_norm = worker->query_norms,
                                   .positions = worker->query_positions};
    kv_observed_queries(loop->seq, &window, &rows);
    return (kv_score_queries){
        .n = window.n, .q = rows.q, .positions = rows.positions, .input_norm = rows.input_norm};
}

/* What the scorer asked for beside the entries. */
static void add_observed(const evict_loop *loop, kv_score_args *args, uint32_t w)
{
    const kv_seq *seq = loop->seq;
    kv_evict_worker *worker = &seq->cache->evict.workers[w];
    const kv_scorer *scorer = loop->policy->scorer;
    const uint32_t needs = scorer->needs;
    kv_head_view *view = head_view(loop, args->head);
    if ((needs & KV_SCORE_QUERIES) != 0)
        args->queries = latest_queries(loop, args->head, scorer->n_queries, worker);
    if ((needs & KV_SCORE_STATS) != 0) {
        kv_observed_stats(seq, args->layer, args->head, worker->mean, worker->cov);
        args->stats =
            (kv_query_stats){.n = seq->observed.n_summed, .mean = worker->mean, .cov = worker->cov};
    }
    if ((needs & KV_SCORE_MASS) != 0) {
        const float *mass = kv_observed_mass(seq, args->layer, args->head);
        for (uint32_t i = 0; i < view->n; i++)
            view->mass[i] = mass[view->positions[i]];
        args->mass = view->mass;
    }
    if ((needs & KV_SCORE_LOCAL) != 0) {
        const kv_local_place at = {args->layer, args->head, w};
        const float *local = kv_local_finish(loop->seq, &at);
        for (uint32_t i = 0; i < view->n; i++)
            view->local[i] = local[view->positions[i]];
        args->local = view->local;
    }
    if ((needs & KV_SCORE_REPLAY) != 0 && kv_replay_is_done(seq)) {
        list_replay(seq, args->layer, args->head, view);
        args->replay = view->replay;
    }
    if ((needs & KV_SCORE_USES) != 0) {
        list_uses(seq, args->layer, args->head, view);
        args->last_use = view->last_use;
        args->n_uses = view->n_uses;
    }
}

/* A head as scorers see it; the parts point at each other, so it must not move. */
typedef struct head_input {
    uint32_t page;
    attn_span span;
    kv_view_source source;
    kv_score_view entries;
    kv_score_args args; /* without what observers keep */
} head_input;

static void begin_head(const evict_loop *loop, uint32_t head, uint32_t w, head_input *in)
{
    kv_seq *seq = loop->seq;
    const kv_cache *cache = seq->cache;
    const kv_layer_shape *shape = &cache->layer[loop->layer];
    const kv_head_view *view = head_view(loop, head);
    in->page = KV_PAGE_NONE;
    in->source = (kv_view_source){.seq = seq,
                                  .layer = loop->layer,
                                  .head = head,
                                  .view = view,
                                  .worker = w,
                                  .page = &in->page,
                                  .span = &in->span};
    in->entries = (kv_score_view){.n = view->n,
                                  .positions = view->positions,
                                  .bias = view->bias,
                                  .load = kv_view_load,
                                  .ctx = &in->source};
    in->args = (kv_score_args){.view = &in->entries,
                               .layer = loop->layer,
                               .head = head,
                               .n_layers = cache->n_layers,
                               .n_kv_heads = shape->n_kv_heads,
                               .group = group_of(shape),
                               .k_dim = shape->k_dim,
                               .v_dim = shape->v_dim,
                               .scale = shape->scale,
                               .length = seq->length,
                               .n_keep = loop->n_keep,
                               .n_prompt = seq->n_prompt_tokens,
                               .seed = SEED,
                               .rope = shape->rope,
                               .now = seq->length,
                               .out_proj = shape->out_proj,
                               .work = cache->evict.workers[w].work};
}

static void score_head(const evict_loop *loop, uint32_t head, uint32_t w)
{
    head_input in;
    begin_head(loop, head, w, &in);
    add_observed(loop, &in.args, w);
    loop->policy->scorer->score(&in.args, head_view(loop, head)->score);
}

static void score_jobs(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    const evict_loop *loop = ctx;
    for (size_t h = begin; h < end; h++)
        score_head(loop, (uint32_t)h, worker);
}

/* All heads get the mean of their scores. They have the same entries, having kept the same so far. */
static void average_heads(const evict_loop *loop, uint32_t n_heads)
{
    for (uint32_t i = 0; i < head_view(loop, 0)->n; i++) {
        double sum = 0;
        for (uint32_t h = 0; h < n_heads; h++) {
            assert(head_view(loop, h)->positions[i] == head_view(loop, 0)->positions[i]);
            sum += (double)head_view(loop, h)->score[i];
        }
        for (uint32_t h = 0; h < n_heads; h++)
            head_view(loop, h)->score[i] = (float)(sum / n_heads);
    }
}

/* Scores that all layers go by, at their positions. */
static void share_scores(kv_seq *seq, const kv_policy *policy)
{
    kv_cache *cache = seq->cache;
    const bool is_one = policy->scorer->from == KV_FROM_SECOND_LAYER;
    const uint32_t first = is_one && cache->n_layers > 2 ? 1 : 0;
    const uint32_t end = is_one ? first + 1 : cache->n_layers;
    memset(cache->evict.shared, 0, seq->length * sizeof *cache->evict.shared);
    for (uint32_t l = first; l < end; l++) {
        const uint32_t n_heads = cache->n_kv_heads[l];
        evict_loop loop = {.seq = seq, .policy = policy, .layer = l};
        parallel_for(cache->d->pool, n_heads, 1, list_jobs, &loop);
        parallel_for(cache->d->pool, n_heads, 1, score_jobs, &loop);
        for (uint32_t h = 0; h < n_heads; h++) {
            const kv_head_view *view = head_view(&loop, h);
            for (uint32_t i = 0; i < view->n; i++)
                cache->evict.shared[view->positions[i]] += (double)view->score[i] / n_heads;
        }
    }
}

static void take_shared(const evict_loop *loop, uint32_t n_heads)
{
    for (uint32_t h = 0; h < n_heads; h++) {
        kv_head_view *view = head_view(loop, h);
        for (uint32_t i = 0; i < view->n; i++)
            view->score[i] = (float)loop->seq->cache->evict.shared[view->positions[i]];
    }
}

/* Of all heads of the layer, whose entries are listed. */
static void score_layer(evict_loop *loop, uint32_t n_heads)
{
    const kv_scorer *scorer = loop->policy->scorer;
    if (scorer->from != KV_FROM_OWN_LAYER) {
        take_shared(loop, n_heads);
    } else {
        parallel_for(loop->seq->cache->d->pool, n_heads, 1, score_jobs, loop);
        if (scorer->over_heads) average_heads(loop, n_heads);
    }
    for (uint32_t h = 0; h < n_heads && scorer->by_page; h++) {
        kv_head_view *view = head_view(loop, h);
        kv_pages_average(&view->pages, view->first, view->n_open, view->score);
    }
}

/* ---- how lazy layers are --------------------------------------------------------------------------- */

static void lazy_jobs(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    const evict_loop *loop = ctx;
    for (size_t h = begin; h < end; h++) {
        kv_head_view *view = head_view(loop, h);
        head_input in;
        begin_head(loop, (uint32_t)h, worker, &in);
        in.args.queries =
            latest_queries(loop, (uint32_t)h, 1, &loop->seq->cache->evict.workers[worker]);
        view->lazy =
            loop->policy->layers->laziness(&in.args, view->first, view->first + view->n_open);
    }
}

/* Of all layers, before anything goes: what has gone at this length already would show. */
static void find_laziness(kv_seq *seq, const kv_policy *policy)
{
    const kv_cache *cache = seq->cache;
    kv_observed *o = &seq->observed;
    if (o->lazy_length == seq->length) return;
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        const uint32_t n_heads = cache->n_kv_heads[l];
        evict_loop loop = {.seq = seq, .policy = policy, .layer = l};
        parallel_for(cache->d->pool, n_heads, 1, list_jobs, &loop);
        parallel_for(cache->d->pool, n_heads, 1, lazy_jobs, &loop);
        o->lazy[l] = 0;
        for (uint32_t h = 0; h < n_heads; h++)
            o->lazy[l] += head_view(&loop, h)->lazy / n_heads;
    }
    o->lazy_length = seq->length;
}

/* ---- what stays ---------------------------------------------------------------------------------- */

/* What is kept is made to stand for all candidates while they are still there. */
static void fit_head(const evict_loop *loop, uint32_t head, uint32_t n_kept, uint32_t worker)
{
    const kv_distill_args args = {.seq = loop->seq,
                                  .layer = loop->layer,
                                  .head = head,
                                  .view = head_view(loop, head),
                                  .n_kept = n_kept,
                                  .worker = worker,
                                  .queries =
                                      latest_queries(loop, head, loop->policy->scorer->n_queries,
                                                     &loop->seq->cache->evict.workers[worker])};
    kv_distill_head(&args);
}

static bool has_rewritings(const kv_seq *seq)
{
    return seq->methods.rewritings.list[0] != NULL;
}

/* What is kept is written anew, while the others are still there to be read. */
static void rewrite_head(const evict_loop *loop, uint32_t head, uint32_t n_kept, uint32_t worker)
{
    kv_head_view *view = head_view(loop, head);
    const kv_rewrite_head_args args = {.seq = loop->seq,
                                       .layer = loop->layer,
                                       .head = head,
                                       .view = view,
                                       .n_kept = n_kept,
                                       .worker = worker};
    view->n_rewritten = kv_rewrite_head(&args);
}

static void evict_head(const evict_loop *loop, uint32_t head, uint32_t worker)
{
    kv_seq *seq = loop->seq;
    kv_head_view *view = head_view(loop, head);
    uint32_t n = seq->cache->evict.n_keep[head];
    assert(n <= view->n_open);
    if (n == view->n_open) return;
    kv_keep_best(view->score + view->first, view->n_open, n, view->kept);
    if (loop->policy->scorer->by_page)
        n = kv_pages_keep_whole(&view->pages, view->first, view->kept, n);
    if (loop->policy->scorer->is_fitted) fit_head(loop, head, n, worker);
    if (has_rewritings(seq) && n < view->n_open) rewrite_head(loop, head, n, worker);
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

/* How many candidates each head keeps; false if all of them. Sets what the layer may keep. */
static bool plan_layer(evict_loop *loop, uint32_t n_heads)
{
    const kv_seq *seq = loop->seq;
    kv_cache *cache = seq->cache;
    const kv_policy *policy = loop->policy;
    const uint32_t n_recent = seq->length - kv_blocks_left(cache, seq->length) * cache->page_tokens;
    uint32_t n_protected = 0;
    uint64_t n_open = 0;
    bool is_over = false;
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
    for (uint32_t h = 0; h < n_heads; h++)
        n_protected = head_view(loop, h)->n - head_view(loop, h)->n_open; /* the same for all */
    if (loop->n_keep < n_protected) loop->n_keep = n_protected;
    loop->n_granted = kv_ranks_share(cache, loop->n_keep - n_protected);
    for (uint32_t h = 0; h < n_heads; h++) {
        cache->evict.n_open[h] = head_view(loop, h)->n_open;
        cache->evict.n_keep[h] = (uint32_t)min_size(cache->evict.n_open[h], loop->n_granted);
        is_over = is_over || cache->evict.n_open[h] > loop->n_granted;
        n_open += cache->evict.n_open[h];
    }
    return policy->heads != NULL ? n_open > (uint64_t)loop->n_granted * n_heads : is_over;
}

static void split_layer(const evict_loop *loop, uint32_t n_heads)
{
    kv_cache *cache = loop->seq->cache;
    const kv_allocator *heads = loop->policy->heads;
    if (heads == NULL) return;
    for (uint32_t h = 0; h < n_heads; h++)
        cache->evict.scores[h] = head_view(loop, h)->score + head_view(loop, h)->first;
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
static bool begin_layer(evict_loop *loop, uint32_t n_heads)
{
    parallel_for(loop->seq->cache->d->pool, n_heads, 1, list_jobs, loop);
    return plan_layer(loop, n_heads);
}

/* The pages of what stays, if it will be written: of all layers before anything goes, since scores of some
 * layers may decide what others keep, and must be the same when room is found later. */
static err_t own_layers(kv_seq *seq, const kv_policy *policy)
{
    const kv_cache *cache = seq->cache;
    if (!policy->scorer->is_fitted && !has_rewritings(seq)) return ERR_OK;
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        evict_loop loop = {.seq = seq, .policy = policy, .layer = l};
        if (begin_layer(&loop, cache->n_kv_heads[l])) TRY(kv_own_pages(seq, l));
    }
    return ERR_OK;
}

static void evict_layer(kv_seq *seq, const kv_policy *policy, uint32_t layer)
{
    kv_cache *cache = seq->cache;
    const uint32_t n_heads = cache->n_kv_heads[layer];
    evict_loop loop = {.seq = seq, .policy = policy, .layer = layer};
    if (!begin_layer(&loop, n_heads)) return;
    score_layer(&loop, n_heads);
    split_layer(&loop, n_heads);
    parallel_for(cache->d->pool, n_heads, 1, evict_jobs, &loop);
    for (uint32_t h = 0; h < n_heads; h++) {
        cache->stats.entries_evicted += head_view(&loop, h)->n_evicted;
        cache->stats.entries_rewritten += head_view(&loop, h)->n_rewritten;
        seq->is_thinned = seq->is_thinned || head_view(&loop, h)->n_evicted > 0;
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

/* ERR_KV_FULL: nothing has gone. */
static err_t choose(kv_seq *seq)
{
    kv_cache *cache = seq->cache;
    const kv_policy *policy = policy_now(seq);
    const uint64_t start_ns = clock_mono_ns();
    if (policy != NULL && kv_policy_by_laziness(policy)) find_laziness(seq, policy);
    if (policy != NULL) TRY(own_layers(seq, policy));
    if (policy != NULL && policy->scorer->from != KV_FROM_OWN_LAYER) share_scores(seq, policy);
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

err_t kv_seq_settle(kv_seq *seq)
{
    const uint32_t due = last_due(seq);
    if (!kv_methods_evict(&seq->methods) || seq->settled_length >= due) return ERR_OK;
    err_t err = seq->chosen_length < due ? choose(seq) : ERR_OK;
    if (err == ERR_OK && seq->is_thinned) err = kv_compact(seq);
    if (err == ERR_OK && !seq->methods.codec->is_exact) err = encode(seq);
    /* Also of what was packed before room ran out: pages have changed places between runs. */
    for (uint32_t l = 0; l < seq->cache->n_layers && seq->is_thinned; l++)
        kv_runs_write(seq, l, 0, seq->n_blocks);
    TRY(err);
    seq->settled_length = seq->length;
    return ERR_OK;
}
