/* kvcache/evict_score.c - see evict_score.h.
 *
 * Over ranks each scores what it holds. What a score is measured by - the normaliser of a softmax, the scores of
 * other layers - is brought together first, by all ranks at once: so whether there is anything to score follows
 * from lengths alone. */
#include "kvcache/evict_score.h"

#include "kvcache/kv_replay.h"
#include "kvcache/local_mass.h"
#include "kvcache/observed.h"
#include "kvcache/ranks.h"
#include "kvcache/score_view.h"
#include "kvcache/scoring/whole_pages.h"
#include "kvcache/scoring/window_attention.h"

#include <math.h>
#include <string.h>

/* Of `random`: the same in every process. */
static const uint64_t SEED = 0x70696b76;

static uint32_t group_of(const kv_layer_shape *shape)
{
    return shape->n_heads / shape->n_kv_heads;
}

static void list_jobs(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    const kv_evict_layer *loop = ctx;
    (void)worker;
    for (size_t h = begin; h < end; h++)
        kv_view_list(loop->seq, loop->layer, (uint32_t)h, kv_evict_head(loop, h));
}

void kv_list_layer(kv_evict_layer *loop)
{
    kv_cache *cache = loop->seq->cache;
    parallel_for(cache->d->pool, cache->n_kv_heads[loop->layer], 1, list_jobs, loop);
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
kv_score_queries kv_latest_queries(const kv_evict_layer *loop, uint32_t head, uint32_t n_wanted,
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

/* What the scorer asked for of queries. */
static void add_queries(const kv_evict_layer *loop, kv_score_args *args, uint32_t w)
{
    const kv_seq *seq = loop->seq;
    kv_evict_worker *worker = &seq->cache->evict.workers[w];
    const kv_scorer *scorer = loop->policy->scorer;
    const uint32_t needs = scorer->needs;
    if ((needs & KV_SCORE_QUERIES) != 0)
        args->queries = kv_latest_queries(loop, args->head, scorer->n_queries, worker);
    if ((needs & KV_SCORE_STATS) != 0) {
        kv_observed_stats(seq, args->layer, args->head, worker->mean, worker->cov);
        args->stats =
            (kv_query_stats){.n = seq->observed.n_summed, .mean = worker->mean, .cov = worker->cov};
    }
}

/* And what it asked for of entries. */
static void add_observed(const kv_evict_layer *loop, kv_score_args *args)
{
    const kv_seq *seq = loop->seq;
    const uint32_t needs = loop->policy->scorer->needs;
    kv_head_view *view = kv_evict_head(loop, args->head);
    if ((needs & KV_SCORE_MASS) != 0) {
        const float *mass = kv_observed_mass(seq, args->layer, args->head);
        for (uint32_t i = 0; i < view->n; i++)
            view->mass[i] = mass[view->positions[i]];
        args->mass = view->mass;
    }
    if ((needs & KV_SCORE_LOCAL) != 0) {
        const float *local = kv_observed_local(seq, args->layer, args->head);
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
    kv_head_view view;
    uint32_t page;
    attn_span span;
    kv_view_source source;
    kv_score_view entries;
    kv_score_args args; /* without what observers keep */
} head_input;

/* What of the head this rank answers for where ranks are added up: its pages, and at home what is in the ring. */
static kv_head_view own_part(const kv_seq *seq, const kv_head_view *view)
{
    kv_head_view own = *view;
    if (kv_is_home(seq)) return own;
    own.positions += view->first;
    own.entry += view->first;
    own.shard += view->first;
    own.slot += view->first;
    if (own.bias != NULL) own.bias += view->first;
    own.first = own.n = 0;
    while (view->first + own.n < view->n && own.entry[own.n] != KV_ENTRY_NONE)
        own.n++;
    return own;
}

static void begin_view(const kv_evict_layer *loop, uint32_t head, uint32_t w, head_input *in)
{
    kv_seq *seq = loop->seq;
    const kv_cache *cache = seq->cache;
    const kv_layer_shape *shape = &cache->layer[loop->layer];
    const kv_head_view *view = &in->view;
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
                               .n_keep = view->n - view->n_open + loop->n_granted,
                               .n_prompt = seq->n_prompt_tokens,
                               .seed = SEED,
                               .rope = shape->rope,
                               .now = seq->length,
                               .out_proj = shape->out_proj,
                               .work = cache->evict.workers[w].work};
}

static float *lse_of(const kv_evict_layer *loop, uint32_t head)
{
    const kv_evict *evict = &loop->seq->cache->evict;
    return evict->lse + head * evict->lse_stride;
}

static void begin_head(const kv_evict_layer *loop, uint32_t head, uint32_t w, head_input *in)
{
    in->view = *kv_evict_head(loop, head);
    begin_view(loop, head, w, in);
    if (loop->has_lse) in->args.lse = lse_of(loop, head);
}

static void begin_own_part(const kv_evict_layer *loop, uint32_t head, uint32_t w, head_input *in)
{
    in->view = own_part(loop->seq, kv_evict_head(loop, head));
    begin_view(loop, head, w, in);
}

/* ---- what ranks measure by ----------------------------------------------------------------------- */

static void lse_jobs(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    const kv_evict_layer *loop = ctx;
    for (size_t h = begin; h < end; h++) {
        head_input in;
        begin_own_part(loop, (uint32_t)h, worker, &in);
        add_queries(loop, &in.args, worker);
        loop->policy->scorer->lse(&in.args, lse_of(loop, (uint32_t)h));
    }
}

static void lazy_lse_jobs(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    const kv_evict_layer *loop = ctx;
    for (size_t h = begin; h < end; h++) {
        head_input in;
        begin_own_part(loop, (uint32_t)h, worker, &in);
        in.args.queries =
            kv_latest_queries(loop, (uint32_t)h, 1, &loop->seq->cache->evict.workers[worker]);
        kv_window_lse(&in.args, lse_of(loop, (uint32_t)h));
    }
}

/* Normalisers of all heads over what all ranks hold, for n_queries queries of every head of a group. */
static void find_lse(kv_evict_layer *loop, parallel_body *jobs, uint32_t n_queries)
{
    kv_cache *cache = loop->seq->cache;
    const uint32_t n_heads = cache->n_kv_heads[loop->layer];
    const kv_lse_rows rows = {.lse = cache->evict.lse,
                              .stride = cache->evict.lse_stride,
                              .n_rows = n_heads,
                              .n = n_queries * group_of(&cache->layer[loop->layer])};
    assert(rows.n <= rows.stride);
    for (size_t i = 0; i < n_heads * cache->evict.lse_stride; i++)
        cache->evict.lse[i] = -INFINITY;
    parallel_for(cache->d->pool, n_heads, 1, jobs, loop);
    kv_ranks_merge_lse(cache, &rows);
    loop->has_lse = true;
}

/* Before any head of the layer is scored; its entries are listed. */
static void prepare_layer(kv_evict_layer *loop)
{
    const kv_scorer *scorer = loop->policy->scorer;
    loop->has_lse = false;
    if ((scorer->needs & KV_SCORE_LOCAL) != 0) kv_local_finish(loop->seq, loop->layer);
    if (loop->seq->cache->ranks.n > 1 && scorer->lse != NULL)
        find_lse(loop, lse_jobs, scorer->n_queries > 0 ? scorer->n_queries : 1);
}

/* ---- scores ---------------------------------------------------------------------------------------- */

static void score_head(const kv_evict_layer *loop, uint32_t head, uint32_t w)
{
    head_input in;
    begin_head(loop, head, w, &in);
    add_queries(loop, &in.args, w);
    add_observed(loop, &in.args);
    loop->policy->scorer->score(&in.args, kv_evict_head(loop, head)->score);
}

static void score_jobs(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    const kv_evict_layer *loop = ctx;
    for (size_t h = begin; h < end; h++)
        score_head(loop, (uint32_t)h, worker);
}

/* All heads get the mean of their scores. They have the same entries, having kept the same so far. */
static void average_heads(const kv_evict_layer *loop, uint32_t n_heads)
{
    for (uint32_t i = 0; i < kv_evict_head(loop, 0)->n; i++) {
        double sum = 0;
        for (uint32_t h = 0; h < n_heads; h++) {
            assert(kv_evict_head(loop, h)->positions[i] == kv_evict_head(loop, 0)->positions[i]);
            sum += (double)kv_evict_head(loop, h)->score[i];
        }
        for (uint32_t h = 0; h < n_heads; h++)
            kv_evict_head(loop, h)->score[i] = (float)(sum / n_heads);
    }
}

/* The mean of the heads' scores, at their positions. */
static void add_shared(const kv_evict_layer *loop, double *shared)
{
    const uint32_t n_heads = loop->seq->cache->n_kv_heads[loop->layer];
    for (uint32_t h = 0; h < n_heads; h++) {
        const kv_head_view *view = kv_evict_head(loop, h);
        const kv_head_view own = own_part(loop->seq, view);
        const float *score = view->score + (own.positions - view->positions);
        for (uint32_t i = 0; i < own.n; i++)
            shared[own.positions[i]] += (double)score[i] / n_heads;
    }
}

void kv_share_scores(kv_seq *seq, const kv_policy *policy)
{
    kv_cache *cache = seq->cache;
    const bool is_one = policy->scorer->from == KV_FROM_SECOND_LAYER;
    const uint32_t first = is_one && cache->n_layers > 2 ? 1 : 0;
    const uint32_t end = is_one ? first + 1 : cache->n_layers;
    memset(cache->evict.shared, 0, seq->length * sizeof *cache->evict.shared);
    for (uint32_t l = first; l < end; l++) {
        kv_evict_layer loop = {.seq = seq, .policy = policy, .layer = l};
        kv_list_layer(&loop);
        prepare_layer(&loop);
        parallel_for(cache->d->pool, cache->n_kv_heads[l], 1, score_jobs, &loop);
        add_shared(&loop, cache->evict.shared);
    }
    /* An entry that is placed by itself may lie on different ranks in different layers. */
    if (cache->has_scattered) kv_ranks_sum(cache, cache->evict.shared, seq->length);
}

static void take_shared(const kv_evict_layer *loop, uint32_t n_heads)
{
    for (uint32_t h = 0; h < n_heads; h++) {
        kv_head_view *view = kv_evict_head(loop, h);
        for (uint32_t i = 0; i < view->n; i++)
            view->score[i] = (float)loop->seq->cache->evict.shared[view->positions[i]];
    }
}

void kv_score_layer(kv_evict_layer *loop)
{
    const kv_scorer *scorer = loop->policy->scorer;
    const uint32_t n_heads = loop->seq->cache->n_kv_heads[loop->layer];
    if (scorer->from != KV_FROM_OWN_LAYER) {
        take_shared(loop, n_heads);
    } else {
        prepare_layer(loop);
        parallel_for(loop->seq->cache->d->pool, n_heads, 1, score_jobs, loop);
        if (scorer->over_heads) average_heads(loop, n_heads);
    }
    for (uint32_t h = 0; h < n_heads && scorer->by_page; h++) {
        kv_head_view *view = kv_evict_head(loop, h);
        kv_pages_average(&view->pages, view->first, view->n_open, view->score);
    }
}

bool kv_scores_together(const kv_evict_layer *loop)
{
    const kv_scorer *scorer = loop->policy->scorer;
    if (loop->seq->cache->ranks.n == 1 || scorer->from != KV_FROM_OWN_LAYER) return false;
    return scorer->lse != NULL || (scorer->needs & KV_SCORE_LOCAL) != 0;
}

/* ---- how lazy layers are --------------------------------------------------------------------------- */

/* Over ranks, the own part of it: what is asked about is a sum over entries. */
static void lazy_jobs(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    const kv_evict_layer *loop = ctx;
    for (size_t h = begin; h < end; h++) {
        kv_head_view *view = kv_evict_head(loop, h);
        head_input in;
        begin_own_part(loop, (uint32_t)h, worker, &in);
        if (loop->has_lse) in.args.lse = lse_of(loop, (uint32_t)h);
        in.args.queries =
            kv_latest_queries(loop, (uint32_t)h, 1, &loop->seq->cache->evict.workers[worker]);
        view->lazy =
            loop->policy->layers->laziness(&in.args, in.view.first, in.view.first + in.view.n_open);
    }
}

void kv_find_laziness(kv_seq *seq, const kv_policy *policy)
{
    const kv_cache *cache = seq->cache;
    kv_observed *o = &seq->observed;
    if (o->lazy_length == seq->length) return;
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        const uint32_t n_heads = cache->n_kv_heads[l];
        kv_evict_layer loop = {.seq = seq, .policy = policy, .layer = l};
        kv_list_layer(&loop);
        if (cache->ranks.n > 1) find_lse(&loop, lazy_lse_jobs, 1);
        parallel_for(cache->d->pool, n_heads, 1, lazy_jobs, &loop);
        o->lazy[l] = 0;
        for (uint32_t h = 0; h < n_heads; h++)
            o->lazy[l] += kv_evict_head(&loop, h)->lazy / n_heads;
    }
    kv_ranks_sum(cache, o->lazy, cache->n_layers);
    o->lazy_length = seq->length;
}
