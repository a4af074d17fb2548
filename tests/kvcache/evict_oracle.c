/* tests/kvcache/evict_oracle.c - see evict_oracle.h. */
#include "tests/kvcache/evict_oracle.h"

#include "kvcache/kv_replay.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { WORK_FLOATS = 1 << 16 };

bool oracle_keeps(const void *ctx, fake_key key, uint32_t position)
{
    const oracle *o = ctx;
    return o->gone[key.layer][key.head][key.position] > position;
}

static bool sees(const oracle *o, fake_key key, uint32_t position)
{
    const uint32_t window = o->f->layers[key.layer].window;
    return key.position <= position && (window == 0 || key.position + window > position) &&
           oracle_keeps(o, key, position);
}

static double dot(const float *a, const float *b, uint32_t n)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += (double)a[i] * (double)b[i];
    return sum;
}

/* Adds what one query head pays to every key of its KV head. */
static void add_head_mass(oracle *o, uint32_t l, uint32_t query_head, uint32_t position)
{
    const kv_layer_shape *layer = &o->f->layers[l];
    const uint32_t group = layer->n_heads / layer->n_kv_heads, head = query_head / group;
    double weight[ORACLE_TOKENS_MAX], sum = 0;
    float q[64], k[64];
    fake_fill(FAKE_QUERY, l, query_head, o->s->tokens[position], position, layer->k_dim, q);
    for (uint32_t p = 0; p <= position; p++) {
        weight[p] = 0;
        if (!sees(o, (fake_key){l, head, p}, position)) continue;
        fake_fill(FAKE_KEY, l, head, o->s->tokens[p], p, layer->k_dim, k);
        weight[p] = exp(dot(q, k, layer->k_dim) * (double)layer->scale);
        sum += weight[p];
    }
    for (uint32_t p = 0; p <= position; p++)
        o->mass[l][head][p] += weight[p] / sum / group;
}

/* What the queries of positions [first, end) give to what there is of them, those before and behind alike. An
 * entry that goes at `end` is still there. */
static void sum_local(oracle *o, uint32_t l, uint32_t query_head, fake_range part)
{
    const kv_layer_shape *layer = &o->f->layers[l];
    const uint32_t group = layer->n_heads / layer->n_kv_heads, head = query_head / group;
    for (uint32_t i = part.first; i < part.end; i++) {
        double weight[ORACLE_TOKENS_MAX] = {0}, sum = 0;
        float q[64], k[64];
        fake_fill(FAKE_QUERY, l, query_head, o->s->tokens[i], i, layer->k_dim, q);
        for (uint32_t p = part.first; p < part.end; p++) {
            if (o->gone[l][head][p] < part.end) continue;
            if (layer->window != 0 && p + layer->window <= part.end) continue;
            fake_fill(FAKE_KEY, l, head, o->s->tokens[p], p, layer->k_dim, k);
            weight[p] = exp(dot(q, k, layer->k_dim));
            sum += weight[p];
        }
        for (uint32_t p = part.first; p < part.end && sum > 0; p++)
            o->local[l][head][p] += weight[p] / sum / group;
    }
}

/* Up to `length`, where the last part may be a beginning. */
static void sum_parts(oracle *o, uint32_t length)
{
    const uint32_t n = o->f->cache->local_tokens;
    for (uint32_t first = o->n_local; first < length; first += n) {
        const fake_range part = {first, first + n < length ? first + n : length};
        for (uint32_t l = 0; l < o->f->n_layers; l++) {
            for (uint32_t h = 0; h < o->f->layers[l].n_kv_heads; h++)
                memset(o->local[l][h] + first, 0, (part.end - first) * sizeof ***o->local);
            for (uint32_t h = 0; h < o->f->layers[l].n_heads; h++)
                sum_local(o, l, h, part);
        }
        if (part.end == first + n) o->n_local = part.end;
    }
}

/* A view of plain arrays. */
typedef struct plain {
    const oracle *o;
    uint32_t layer, head;
    uint32_t positions[ORACLE_TOKENS_MAX];
} plain;

static void load_plain(const kv_score_view *view, uint32_t first, uint32_t count, float *k,
                       float *v)
{
    const plain *from = view->ctx;
    const kv_layer_shape *layer = &from->o->f->layers[from->layer];
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t p = from->positions[first + i], id = from->o->s->tokens[p];
        if (k != NULL)
            fake_fill(FAKE_KEY, from->layer, from->head, id, p, layer->k_dim, k + i * layer->k_dim);
        if (v != NULL)
            fake_fill(FAKE_VALUE, from->layer, from->head, id, p, layer->v_dim,
                      v + i * layer->v_dim);
    }
}

/* The last n queries of a group. */
static void list_queries(const oracle *o, kv_score_args *args, uint32_t n, float *q,
                         uint32_t *positions)
{
    static float input_norm[64];
    for (uint32_t i = 0; i < n; i++) {
        positions[i] = args->length - n + i;
        input_norm[i] = fake_input_norm(args->layer, o->s->tokens[positions[i]], positions[i]);
        for (uint32_t g = 0; g < args->group; g++)
            fake_fill(FAKE_QUERY, args->layer, args->head * args->group + g,
                      o->s->tokens[positions[i]], positions[i], args->k_dim,
                      q + (i * args->group + g) * args->k_dim);
    }
    args->queries =
        (kv_score_queries){.n = n, .q = q, .positions = positions, .input_norm = input_norm};
}

/* Mean and covariance of the prompt's queries, in two passes. */
static void find_stats(const oracle *o, kv_score_args *args, float *mean, float *cov)
{
    const uint32_t dim = args->k_dim, end = args->length < o->n_prompt ? args->length : o->n_prompt;
    float q[64];
    for (uint32_t g = 0; g < args->group; g++) {
        double m[64] = {0}, c[64 * 64] = {0};
        for (uint32_t pass = 0; pass < 2; pass++) {
            for (uint32_t p = 4; p < end; p++) {
                fake_fill(FAKE_QUERY, args->layer, args->head * args->group + g, o->s->tokens[p], p,
                          dim, q);
                for (uint32_t r = 0; r < dim && pass == 0; r++)
                    m[r] += (double)q[r] / (end - 4);
                for (uint32_t r = 0; r < dim * dim && pass == 1; r++)
                    c[r] += ((double)q[r / dim] - m[r / dim]) * ((double)q[r % dim] - m[r % dim]) /
                            (end - 4);
            }
        }
        for (uint32_t r = 0; r < dim; r++)
            mean[g * dim + r] = (float)m[r];
        for (uint32_t r = 0; r < dim * dim; r++)
            cov[g * dim * dim + r] = (float)c[r];
    }
    args->stats = (kv_query_stats){end - 4, mean, cov};
}

/* Candidates of the head: indices [*first, *first + *n_open) of the view. */
static uint32_t list_entries(const oracle *o, plain *view, uint32_t length, uint32_t *first,
                             uint32_t *n_open)
{
    const uint32_t recent = kv_blocks_left(o->f->cache, length) * o->f->cache->page_tokens;
    uint32_t n = 0;
    *first = *n_open = 0;
    for (uint32_t p = 0; p < length; p++) {
        if (!sees(o, (fake_key){view->layer, view->head, p}, length)) continue;
        *first += p < o->f->cache->sink_tokens;
        *n_open += p >= o->f->cache->sink_tokens && p < recent;
        view->positions[n++] = p;
    }
    return n;
}

/* Of the candidates of one head. */
typedef struct head {
    plain source;
    uint32_t n, first, n_open;
    float score[ORACLE_TOKENS_MAX];
} head;

static bool stay_together(const oracle *o, const kv_scorer *scorer, uint32_t a, uint32_t b)
{
    const uint32_t page_tokens = o->f->cache->page_tokens;
    return a == b || (scorer->by_page && a / page_tokens == b / page_tokens);
}

/* The candidates but for the n_keep best go, the worst first and of equal ones the newest. */
static void drop_worst(oracle *o, const kv_scorer *scorer, const head *x, uint32_t n_keep,
                       uint32_t length)
{
    bool is_gone[ORACLE_TOKENS_MAX] = {false};
    const uint32_t end = x->first + x->n_open;
    for (uint32_t n = x->n_open; n > n_keep;) {
        uint32_t worst = ORACLE_TOKENS_MAX;
        for (uint32_t i = x->first; i < end; i++) {
            if (!is_gone[i] && (worst == ORACLE_TOKENS_MAX || x->score[i] <= x->score[worst]))
                worst = i;
        }
        for (uint32_t i = x->first; i < end; i++) {
            const uint32_t p = x->source.positions[i];
            if (!stay_together(o, scorer, p, x->source.positions[worst])) continue;
            is_gone[i] = true;
            o->gone[x->source.layer][x->source.head][p] = length;
            n--;
        }
    }
}

/* Lists and scores the entries of a head. */
static void score_head(const oracle *o, const kv_scorer *scorer, uint32_t length, head *x)
{
    static float q[64 * 2 * 64], mean[2 * 64], cov[2 * 64 * 64], mass[ORACLE_TOKENS_MAX],
        local[ORACLE_TOKENS_MAX];
    uint32_t positions[64];
    const uint32_t l = x->source.layer, h = x->source.head;
    const kv_layer_shape *layer = &o->f->layers[l];
    x->n = list_entries(o, &x->source, length, &x->first, &x->n_open);
    const kv_score_view view = {
        .n = x->n, .positions = x->source.positions, .load = load_plain, .ctx = &x->source};
    kv_score_args args = {.view = &view,
                          .layer = l,
                          .head = h,
                          .n_layers = o->f->n_layers,
                          .n_kv_heads = layer->n_kv_heads,
                          .group = layer->n_heads / layer->n_kv_heads,
                          .k_dim = layer->k_dim,
                          .v_dim = layer->v_dim,
                          .scale = layer->scale,
                          .length = length,
                          .seed = 0x70696b76,
                          .mass = mass,
                          .local = local,
                          .n_prompt = o->n_prompt,
                          .out_proj = layer->out_proj,
                          .now = length};
    args.work = malloc(WORK_FLOATS * sizeof *args.work);
    list_queries(o, &args, scorer->n_queries < length ? scorer->n_queries : length, q, positions);
    find_stats(o, &args, mean, cov);
    for (uint32_t i = 0; i < x->n; i++)
        mass[i] = (float)o->mass[l][h][x->source.positions[i]];
    for (uint32_t i = 0; i < x->n; i++)
        local[i] = (float)o->local[l][h][x->source.positions[i]];
    scorer->score(&args, x->score);
    free(args.work);
}

/* shared[p]: the mean over the heads, summed over the layers that the scorer looks at. */
static void share_scores(const oracle *o, const kv_scorer *scorer, uint32_t length, double *shared)
{
    const uint32_t second = o->f->n_layers > 2 ? 1 : 0;
    for (uint32_t p = 0; p < length; p++)
        shared[p] = 0;
    for (uint32_t l = 0; l < o->f->n_layers; l++) {
        if (scorer->from == KV_FROM_SECOND_LAYER && l != second) continue;
        const uint32_t n_heads = o->f->layers[l].n_kv_heads;
        for (uint32_t h = 0; h < n_heads; h++) {
            head x = {.source = {.o = o, .layer = l, .head = h}};
            score_head(o, scorer, length, &x);
            for (uint32_t i = 0; i < x.n; i++)
                shared[x.source.positions[i]] += (double)x.score[i] / n_heads;
        }
    }
}

/* All heads of a layer get the scores of the scorer's layers, or of its own heads together, and pages
 * their mean. */
static void join_scores(const oracle *o, const kv_scorer *scorer, const double *shared, head *heads,
                        uint32_t n_heads)
{
    for (uint32_t h = 0; h < n_heads; h++) {
        head *x = &heads[h];
        float own[ORACLE_TOKENS_MAX];
        for (uint32_t i = 0; i < x->n; i++) {
            double sum = 0;
            for (uint32_t other = 0; other < n_heads && h == 0; other++)
                sum += (double)heads[other].score[i];
            if (scorer->over_heads)
                x->score[i] = h == 0 ? (float)(sum / n_heads) : heads[0].score[i];
            if (scorer->from != KV_FROM_OWN_LAYER)
                x->score[i] = (float)shared[x->source.positions[i]];
        }
        memcpy(own, x->score, sizeof own);
        for (uint32_t i = x->first; i < x->first + x->n_open; i++) {
            double sum = 0;
            uint32_t n = 0;
            for (uint32_t k = x->first; k < x->first + x->n_open; k++) {
                if (!stay_together(o, scorer, x->source.positions[i], x->source.positions[k]))
                    continue;
                sum += (double)own[k];
                n++;
            }
            x->score[i] = (float)(sum / n);
        }
    }
}

/* What the newest query of one query head gives to the entries of its KV head that are no candidates, its own
 * left out. */
static double find_kept_mass(const oracle *o, const head *x, uint32_t query_head, uint32_t length)
{
    const kv_layer_shape *layer = &o->f->layers[x->source.layer];
    const uint32_t l = x->source.layer, dim = layer->k_dim;
    double sum = 0, mass = 0;
    float q[64], k[64];
    fake_fill(FAKE_QUERY, l, query_head, o->s->tokens[length - 1], length - 1, dim, q);
    for (uint32_t i = 0; i < x->n; i++) {
        const uint32_t p = x->source.positions[i];
        fake_fill(FAKE_KEY, l, x->source.head, o->s->tokens[p], p, dim, k);
        const double weight = exp(dot(q, k, dim) * (double)layer->scale);
        const bool is_candidate = i >= x->first && i < x->first + x->n_open;
        sum += weight;
        if (!is_candidate && p + 1 < length) mass += weight;
    }
    return mass / sum;
}

/* Of every layer, if it is asked. */
static void find_laziness(oracle *o, const kv_policy *policy, uint32_t length, double *lazy)
{
    for (uint32_t l = 0; l < o->f->n_layers && kv_policy_by_laziness(policy); l++) {
        const kv_layer_shape *layer = &o->f->layers[l];
        lazy[l] = 0;
        for (uint32_t h = 0; h < layer->n_heads; h++) {
            head x = {
                .source = {.o = o, .layer = l, .head = h / (layer->n_heads / layer->n_kv_heads)}};
            x.n = list_entries(o, &x.source, length, &x.first, &x.n_open);
            lazy[l] += find_kept_mass(o, &x, h, length) / layer->n_heads;
        }
        o->n_lazy += lazy[l] > policy->lazy_threshold;
    }
}

/* What all layers show, found before anything goes. */
typedef struct shown {
    double shared[ORACLE_TOKENS_MAX], lazy[FAKE_LAYERS_MAX];
} shown;

static void evict_layer(oracle *o, const kv_policy *policy, uint32_t l, const shown *all,
                        uint32_t length)
{
    const kv_scorer *scorer = policy->scorer;
    const kv_cache *cache = o->f->cache;
    const uint32_t n_heads = o->f->layers[l].n_kv_heads;
    const uint32_t n_recent = length - kv_blocks_left(cache, length) * cache->page_tokens;
    static head heads[ORACLE_HEADS_MAX];
    uint32_t n_keep = kv_policy_n_keep(policy, length);
    const kv_layer_share_args share = {.layer = l,
                                       .n_layers = o->f->n_layers,
                                       .n = length,
                                       .n_window = n_recent,
                                       .n_sinks = cache->sink_tokens,
                                       .n_keep = n_keep,
                                       .lazy = all->lazy,
                                       .lazy_threshold = policy->lazy_threshold};
    if (policy->layers != NULL) n_keep = policy->layers->layer_share(&share);
    for (uint32_t h = 0; h < n_heads; h++) {
        heads[h] = (head){.source = {.o = o, .layer = l, .head = h}};
        score_head(o, scorer, length, &heads[h]);
    }
    join_scores(o, scorer, all->shared, heads, n_heads);
    for (uint32_t h = 0; h < n_heads; h++) {
        const uint32_t n_protected = heads[h].n - heads[h].n_open;
        drop_worst(o, scorer, &heads[h], n_keep > n_protected ? n_keep - n_protected : 0, length);
    }
}

/* A prompt that would be read again is chosen from at its end alone, though nobody does here. */
static bool is_due(const oracle *o, uint32_t length)
{
    const bool is_replayed = kv_replay_is_due(o->f->cache, &o->s->seq->methods, o->n_prompt);
    if (length < o->n_prompt && is_replayed) return false;
    if (length <= o->n_prompt) return length == o->n_prompt || length % o->section == 0;
    const uint32_t window = o->f->cache->window_tokens, page = o->f->cache->page_tokens;
    return length > window && (length - window) % page == 0;
}

void oracle_settle(oracle *o, uint32_t length)
{
    const kv_methods *methods = &o->s->seq->methods;
    shown all;
    const kv_policy *policy = methods->policy.evicts ? &methods->policy : NULL;
    if (methods->selection.evicts && length <= o->n_prompt) policy = &methods->selection;
    if (policy == NULL || length == 0 || !is_due(o, length)) return;
    for (uint32_t l = 0; l < o->f->n_layers; l++) {
        for (uint32_t p = o->n_massed; p < length; p++) {
            for (uint32_t h = 0; h < o->f->layers[l].n_heads; h++)
                add_head_mass(o, l, h, p);
        }
    }
    o->n_massed = length;
    sum_parts(o, length);
    share_scores(o, policy->scorer, length, all.shared);
    find_laziness(o, policy, length, all.lazy);
    for (uint32_t l = 0; l < o->f->n_layers; l++)
        evict_layer(o, policy, l, &all, length);
}

oracle *oracle_new(const fake *f, const fake_seq *s, uint32_t n_prompt)
{
    oracle *o = calloc(1, sizeof *o);
    *o = (oracle){.f = f, .s = s, .n_prompt = n_prompt, .section = f->cache->section_tokens};
    memset(o->gone, 0xff, sizeof o->gone);
    return o;
}

void oracle_compare(const oracle *o)
{
    const kv_cache *cache = o->f->cache;
    const kv_seq *seq = o->s->seq;
    const kv_pages *pages = kv_pool_pages(cache->pool);
    for (uint32_t l = 0; l < o->f->n_layers; l++) {
        for (uint32_t h = 0; h < cache->n_kv_heads[l]; h++) {
            bool is_live[ORACLE_TOKENS_MAX] = {false};
            for (uint32_t i = 0; i < seq->n_blocks * cache->n_shards; i++) {
                const uint32_t list = kv_list(cache, l, h, i % cache->n_shards);
                const size_t entry = kv_table_entry(&seq->table, list, i / cache->n_shards);
                for (uint64_t live = seq->table.live[entry]; live != 0; live &= live - 1)
                    is_live[pages->positions[(size_t)seq->table.page[entry] * cache->page_tokens +
                                             (uint32_t)__builtin_ctzll(live)]] = true;
            }
            const uint32_t end = seq->n_blocks * cache->page_tokens;
            for (uint32_t p = cache->sink_tokens; p < end; p++) {
                const fake_key key = {l, h, p};
                if (sees(o, key, seq->length) != is_live[p] && sees(o, key, seq->length))
                    ck_abort_msg("layer %u head %u position %u is missing at %u", l, h, p,
                                 seq->length);
                if (is_live[p] && !oracle_keeps(o, key, seq->length))
                    ck_abort_msg("layer %u head %u position %u is left at %u", l, h, p,
                                 seq->length);
            }
        }
    }
}
