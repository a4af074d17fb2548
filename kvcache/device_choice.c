/* kvcache/device_choice.c - see device_choice.h. */
#include "kvcache/device_choice.h"

#include "kvcache/blocks.h"
#include "kvcache/device_ranks.h"
#include "kvcache/key_box.h"
#include "kvcache/page_bias.h"
#include "kvcache/page_choice.h"

#include <math.h>

/* May a sequence choose by mass? Then all that takes is there. */
static bool may_weigh(const kv_cache *cache)
{
    if (!cache->has_boxes) return false;
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        if (cache->layer[l].n_heads / cache->layer[l].n_kv_heads > ATTN_GROUP_MAX) return false;
    }
    return cache->request_methods || attn_reads_by_mass(cache->methods.routing->rule);
}

static_assert((int)KV_SHARDS_MAX <= (int)ATTN_SHARDS_MAX, "every placement has a rule");

bool kv_view_can_choose(const kv_cache *cache, const kv_methods *methods)
{
    const attn_rule rule = methods->routing->rule;
    if (!cache->has_boxes || rule == ATTN_RULE_NONE) return false;
    if (cache->ranks.n > 1) return rule == ATTN_RULE_BEST; /* others look at what all ranks have */
    return !attn_reads_by_mass(rule) || may_weigh(cache);
}

/* ---- memory -------------------------------------------------------------------------------------- */

/* What a layer finds: notes, masses, then logs of what was not read, of as many choices as the step has. */
static size_t layer_bytes(const kv_cache *cache, const kv_view *view, size_t n_choices)
{
    const size_t per_choice = cache->n_kv_heads_max * sizeof(attn_choice_note) +
                              view->n_heads_max * (sizeof(attn_mass) + sizeof(double));
    return round_up(n_choices * per_choice, sizeof(uint64_t));
}

static attn_choice_note *notes_in(const kv_cache *cache, uint8_t *found, uint32_t layer)
{
    return (attn_choice_note *)(void *)(found + layer * layer_bytes(cache, cache->view,
                                                                    cache->view->choice.n));
}

static attn_mass *masses_in(const kv_cache *cache, uint8_t *found, uint32_t layer)
{
    const size_t n = (size_t)cache->view->choice.n * cache->n_kv_heads_max;
    return (attn_mass *)(void *)(notes_in(cache, found, layer) + n);
}

static double *unread_in(const kv_cache *cache, uint8_t *found, uint32_t layer)
{
    const size_t n = (size_t)cache->view->choice.n * cache->view->n_heads_max;
    return (double *)(void *)(masses_in(cache, found, layer) + n);
}

/* Entries of a sequence, at most. */
static uint32_t n_blocks_max(const kv_cache *cache)
{
    return cache->limits.n_seq_tokens_max / cache->page_tokens + 1;
}

void kv_view_place_choice(const kv_cache *cache, arena *a, kv_view *view)
{
    const size_t n = cache->limits.n_seqs_max;
    if (!cache->has_boxes) return;
    view->choice.choices = arena_take(a, n, sizeof *view->choice.choices);
    view->choice.found = arena_take(a, cache->n_layers, layer_bytes(cache, view, n));
}

void kv_view_place_choice_there(const kv_cache *cache, arena *a, kv_view *view)
{
    const size_t n = cache->limits.n_seqs_max, n_pages = view->pool.n_pages;
    const size_t n_blocks = n_blocks_max(cache), n_heads = cache->n_kv_heads_max;
    if (!cache->has_boxes) return;
    view->choice.boxes = arena_take(a, n_pages, view->pool.box_bytes);
    if (view->pool.has_biases)
        view->choice.bias_most = arena_take(a, n_pages, sizeof *view->choice.bias_most);
    view->choice.tasks = arena_take(a, n, sizeof *view->choice.tasks);
    view->choice.bounds =
        arena_take(a, n * (n_heads + view->n_heads_max), n_blocks * sizeof *view->choice.bounds);
    if (may_weigh(cache)) {
        view->choice.order = arena_take(
            a, n * n_heads, attn_n_order((uint32_t)n_blocks) * sizeof *view->choice.order);
        view->choice.rest = arena_take(a, n * view->n_heads_max,
                                       attn_n_rest((uint32_t)n_blocks) * sizeof *view->choice.rest);
    }
    view->choice.chosen = arena_take(a, n * n_heads, (1 + n_blocks) * sizeof *view->choice.chosen);
    view->choice.found_there = arena_take(a, cache->n_layers, layer_bytes(cache, view, n));
}

/* ---- a step -------------------------------------------------------------------------------------- */

/* What a rule is told of its settings. */
static double amount_of(attn_rule rule, const kv_route_settings *settings)
{
    if (rule == ATTN_RULE_NUCLEUS) return settings->tau;
    return rule == ATTN_RULE_CERTIFIED ? kv_route_share(settings->eps * (1 - KV_ROUTE_MARGIN))
                                       : settings->k;
}

uint32_t kv_view_add_choice(kv_cache *cache, uint32_t r)
{
    kv_view *view = cache->view;
    const kv_seq *seq = cache->step.rows[r].seq;
    const attn_rule rule = seq->methods.routing->rule;
    const double amount = kv_view_own_k(cache, amount_of(rule, &seq->methods.route));
    const uint32_t n_blocks = seq->n_blocks, at = view->choice.n++;
    const uint32_t n_left = kv_blocks_left(cache, seq->length);
    const uint32_t n_candidates = n_left < n_blocks ? n_left : n_blocks;
    assert(cache->step.rows[r].n_tokens == 1);
    view->choice.choices[at] = (attn_choice){.row = r,
                                             .n_candidates = n_candidates,
                                             .rule = rule,
                                             .n_shards = cache->n_shards,
                                             .amount = amount};
    view->rows[r].choice = at;
    view->rows[r].chosen =
        view->choice.chosen + (size_t)at * cache->n_kv_heads_max * kv_view_chosen_stride(cache);
    const uint32_t n_chosen =
        rule == ATTN_RULE_BEST ? attn_n_chosen(amount, n_candidates) : n_candidates;
    return seq->length / cache->page_tokens + 1 - n_candidates + n_chosen;
}

void kv_view_send_choices(kv_cache *cache)
{
    const kv_view *view = cache->view;
    if (view->choice.n > 0)
        dev_upload(cache->d, view->choice.tasks, view->choice.choices,
                   view->choice.n * sizeof *view->choice.choices);
}

uint32_t kv_view_chosen_stride(const kv_cache *cache)
{
    return 1 + n_blocks_max(cache);
}

attn_mass *kv_view_masses(const kv_cache *cache, uint32_t layer)
{
    return cache->view->choice.n > 0 ? masses_in(cache, cache->view->choice.found_there, layer)
                                     : NULL;
}

void kv_view_choose(const kv_cache *cache, uint32_t layer, const attend_pages_args *attend)
{
    const kv_view *view = cache->view;
    if (view->choice.n == 0) return;
    const choose_pages_args args = {
        .attend = attend,
        .boxes = view->choice.boxes,
        .box_stride_bytes = kv_pool_pages(cache->pool)->box_bytes,
        .bias_most = view->choice.bias_most,
        .choices = view->choice.tasks,
        .n_choices = view->choice.n,
        .n_blocks_max = n_blocks_max(cache),
        .bounds = view->choice.bounds,
        .order = view->choice.order,
        .rest = view->choice.rest,
        .log_unread = unread_in(cache, view->choice.found_there, layer),
        .notes = notes_in(cache, view->choice.found_there, layer),
    };
    cache->d->ops->choose_pages(cache->d, &args);
}

static void count_note(kv_cache *cache, uint32_t layer, const attn_choice_note *note)
{
    kv_view *view = cache->view;
    view->bytes_read += note->read_bytes + note->n_open * kv_box_bytes(&cache->heads[layer]);
    view->blocks_read += note->n_read;
    view->pages_open += note->n_open;
    view->pages_read += note->n_chosen;
}

static kv_misses misses_of(const kv_cache *cache, uint32_t layer, size_t first_head)
{
    const kv_layer_shape *shape = &cache->layer[layer];
    const uint32_t group = shape->n_heads / shape->n_kv_heads;
    const attn_mass *masses = masses_in(cache, cache->view->choice.found, layer) + first_head;
    const double *unread = unread_in(cache, cache->view->choice.found, layer) + first_head;
    kv_misses out = {0};
    for (uint32_t g = 0; g < group; g++) {
        const float *sink = shape->sink_logit;
        const kv_certified heads = {
            .read =
                masses[g].sum > 0 ? (double)masses[g].max + log((double)masses[g].sum) : -INFINITY,
            .unread = unread[g],
            .sink = sink != NULL ? (double)sink[first_head % shape->n_heads + g] : -INFINITY};
        const double certificate = kv_certificate(&heads);
        kv_misses_add(&out, &(kv_misses){.n = 1, .sum = certificate, .max = certificate});
    }
    return out;
}

/* In the order of layers, rows and heads, as the host adds its own. */
void kv_view_count_choices(kv_cache *cache)
{
    const kv_view *view = cache->view;
    if (view->choice.n == 0) return;
    dev_download(cache->d, view->choice.found, view->choice.found_there,
                 cache->n_layers * layer_bytes(cache, view, view->choice.n));
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        const uint32_t n_heads = cache->n_kv_heads[l], group = cache->layer[l].n_heads / n_heads;
        if (!kv_view_merge_masses(cache, masses_in(cache, view->choice.found, l),
                                  unread_in(cache, view->choice.found, l),
                                  (size_t)view->choice.n * n_heads * group))
            return;
        for (size_t i = 0; i < (size_t)view->choice.n * n_heads; i++) {
            kv_seq *seq = cache->step.rows[view->choice.choices[i / n_heads].row].seq;
            const kv_misses misses = misses_of(cache, l, i * group);
            count_note(cache, l, notes_in(cache, view->choice.found, l) + i);
            kv_misses_add(&seq->step_misses, &misses);
            kv_misses_add(&cache->reader.step_misses, &misses);
            kv_misses_add(&cache->reader.misses, &misses);
        }
    }
}
