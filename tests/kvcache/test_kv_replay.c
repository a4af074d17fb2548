/* tests/kvcache/test_kv_replay.c - prompts that are read again: what is noted, what stays of it, what it
 * takes. That policies with such a scorer keep the promises of all others: tests/conformance. */
#include "tests/kvcache/fake_model.h"
#include "tests/test_main.h"

#include "kvcache/evict.h"
#include "kvcache/kv_replay.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PROMPT = 110, TOKENS = 150, N_LEAD = 3, HEADS_MAX = 2 };

/* Two chunks of a prompt of 110, or one. */
static const uint32_t CHUNK = 64, WHOLE = 2048;

typedef struct setup {
    const char *scheduling, *compression, *placement;
    double budget;
    uint32_t n_shards, n_threads;
    bool is_mixed; /* layers that differ in everything */
    bool has_prefixes;
} setup;

static const setup setups[] = {
    {"kvzip", "none", "block", 0.5, 1, 1, false, false},
    {"kvzip+adakv", "none", "block", 0.4, 2, 1, true, false},
    {"none", "kvzip,int4", "block", 0.5, 1, 1, false, false},
    {"kvzip", "svd", "block", 0.5, 3, 1, false, false},
    {"snapkv", "kvzip,int8", "expert", 0.6, 3, 1, false, false},
    {"kvzip", "none", "expert", 0.5, 4, 1, true, false},
    {"kvzip+pyramid", "think", "hash", 0.5, 2, 1, false, false},
    {"kvzip_plus", "none", "block", 0.5, 1, 1, true, false},
    {"kvzip_plus+adakv", "int8", "expert", 0.4, 2, 1, false, false},
    {"h2o", "kvzip_plus+simlayer,int4", "block", 0.5, 2, 1, false, false},
};
enum { N_SETUPS = sizeof setups / sizeof setups[0] };

static fake *open_fake(const setup *x)
{
    fake_options options = {.no_prefix_caching = !x->has_prefixes, .n_threads = x->n_threads};
    options.config = x->is_mixed ? fake_defaults() : fake_coded("none");
    /* The second frees what its window has passed; the third of the mixed ones has a logit of its own. */
    options.n_layers = x->has_prefixes ? 1 : x->is_mixed ? 3 : 2;
    options.layers =
        fake_projecting(x->is_mixed ? fake_layers : fake_coded_layers, options.n_layers);
    options.config.lazy_threshold = 0.9;
    options.config.scheduling = (char *)(uintptr_t)x->scheduling;
    options.config.compression = (char *)(uintptr_t)x->compression;
    options.config.placement = (char *)(uintptr_t)x->placement;
    options.config.budget = x->budget;
    options.config.n_shards = x->n_shards;
    fake *f = fake_open(&options);
    f->cache->section_tokens = 48;
    f->cache->replay_tokens = CHUNK;
    return f;
}

/* With its prompt in the cache. */
static fake_seq open_seq(fake *f, uint64_t seed, uint32_t chunk)
{
    fake_seq s = fake_seq_open(f, (fake_ids){.seed = seed, .n_prompt = PROMPT});
    s.n_prompt = PROMPT;
    fake_run(f, &s, PROMPT, chunk);
    return s;
}

/* ---- replays ------------------------------------------------------------------------------------- */

/* Ids behind the prompt become those of a chunk's replay. */
static void put_replay(fake_seq *s, const kv_replay_chunk *chunk)
{
    for (uint32_t i = 0; i < N_LEAD; i++)
        s->tokens[PROMPT + i] = 7000 + i;
    for (uint32_t p = chunk->first; p < chunk->end; p++)
        s->tokens[PROMPT + N_LEAD + p - chunk->first] = s->tokens[p];
}

static uint32_t n_left_of(const fake_seq *s, const kv_replay_chunk *chunk)
{
    return N_LEAD + chunk->end - chunk->first - (kv_seq_length(s->seq) - PROMPT);
}

/* Reads one chunk again, `most` tokens a step, and stops before it is taken away. */
static void feed_chunk(fake *f, fake_seq *s, uint32_t most)
{
    kv_replay_chunk chunk;
    ck_assert(kv_seq_wants_replay(s->seq, &chunk));
    put_replay(s, &chunk);
    s->is_replay = true;
    while (n_left_of(s, &chunk) > 0) {
        const uint32_t n = (uint32_t)min_size(most, n_left_of(s, &chunk));
        ck_assert_int_eq(fake_step(f, &(fake_seq *){s}, &n, 1), ERR_OK);
    }
    s->is_replay = false;
}

/* All of it. */
static void replay(fake *f, fake_seq *s, uint32_t most)
{
    kv_replay_chunk chunk;
    uint32_t behind[TOKENS];
    memcpy(behind, s->tokens + PROMPT, sizeof behind);
    while (kv_seq_wants_replay(s->seq, &chunk)) {
        feed_chunk(f, s, most);
        ck_assert_uint_eq(kv_seq_end_replay(s->seq), PROMPT);
        fake_check(f);
    }
    memcpy(s->tokens + PROMPT, behind, sizeof behind);
}

/* ---- scores -------------------------------------------------------------------------------------- */

/* Is position p one of those that a score of the chunk compares, for a query at `position`? */
static bool is_compared(const kv_layer_shape *layer, const kv_replay_chunk *chunk, uint32_t p,
                        uint32_t position)
{
    const bool is_first = p < 4 && p < chunk->first;
    const bool is_own = p >= PROMPT && p <= position;
    if (layer->window != 0 && p + layer->window <= position) return false;
    return is_first || is_own || (p >= chunk->first && p < chunk->end);
}

/* Raises most[] by the shares of one query head at `position`, divided by the norm there if it counts. */
static void raise_naive(const fake *f, const fake_seq *s, const kv_replay_chunk *chunk, fake_key at,
                        double most[TOKENS])
{
    const kv_layer_shape *layer = &f->layers[at.layer];
    const uint32_t kv_head = at.head / (layer->n_heads / layer->n_kv_heads);
    double weight[2 * TOKENS] = {0}, sum = 0;
    float q[64], k[64];
    fake_fill(FAKE_QUERY, at.layer, at.head, s->tokens[at.position], at.position, layer->k_dim, q);
    for (uint32_t p = 0; p <= at.position; p++) {
        double dot = 0;
        if (!is_compared(layer, chunk, p, at.position)) continue;
        fake_fill(FAKE_KEY, at.layer, kv_head, s->tokens[p], p, layer->k_dim, k);
        for (uint32_t c = 0; c < layer->k_dim; c++)
            dot += (double)q[c] * (double)k[c];
        sum += weight[p] = exp(dot * (double)layer->scale);
    }
    if (kv_replay_has_norms(s->seq))
        sum *= (double)fake_input_norm(at.layer, s->tokens[at.position], at.position);
    for (uint32_t p = chunk->first; p < chunk->end; p++)
        most[p] = fmax(most[p], weight[p] / sum);
}

/* One row of scores against the largest shares of n_heads query heads from the first on. */
static void check_row(const fake *f, const fake_seq *s, const kv_replay_chunk *chunk,
                      fake_key first, uint32_t n_heads, const float *got)
{
    const uint32_t end = PROMPT + N_LEAD + chunk->end - chunk->first;
    double want[TOKENS] = {0};
    for (uint32_t i = 0; i < n_heads; i++) {
        for (uint32_t p = PROMPT; p < end; p++)
            raise_naive(f, s, chunk, (fake_key){first.layer, first.head + i, p}, want);
    }
    for (uint32_t p = chunk->first; p < chunk->end; p++)
        ck_assert_msg(fabs(exp((double)got[p]) - want[p]) <= 2e-6,
                      "layer %u head %u position %u: %g is not %g", first.layer, first.head, p,
                      exp((double)got[p]), want[p]);
}

/* A row a KV head, or a query head. */
static void check_chunk(const fake *f, const fake_seq *s, const kv_replay_chunk *chunk)
{
    const bool has_norms = kv_replay_has_norms(s->seq);
    for (uint32_t l = 0; l < f->n_layers; l++) {
        const uint32_t group = f->layers[l].n_heads / f->layers[l].n_kv_heads;
        const uint32_t n_rows = has_norms ? group : 1;
        for (uint32_t i = 0; i < f->layers[l].n_kv_heads * n_rows; i++) {
            const uint32_t h = i / n_rows, g = i % n_rows;
            const float *got = kv_replay_scores(s->seq, l, h) + (size_t)g * PROMPT;
            check_row(f, s, chunk, (fake_key){l, h * group + g, 0}, has_norms ? 1 : group, got);
        }
    }
}

START_TEST(scores_are_the_largest_shares_of_a_softmax_over_first_entries_chunk_and_replay)
{
    for (size_t i = 0; i < 2 * N_SETUPS; i++) {
        fake *f = open_fake(&setups[i / 2]);
        fake_seq s = open_seq(f, 3, 64);
        kv_replay_chunk chunk;
        const uint32_t n_want = i % 2 == 0 ? 2 : 1, n_each = PROMPT / n_want;
        uint32_t n_chunks = 0;
        if (n_want == 1) f->cache->replay_tokens = WHOLE;
        for (; kv_seq_wants_replay(s.seq, &chunk); n_chunks++) {
            ck_assert_uint_eq(chunk.first, n_chunks * n_each);
            ck_assert_uint_eq(chunk.end - chunk.first, n_each); /* of one size */
            feed_chunk(f, &s, 20);
            check_chunk(f, &s, &chunk);
            ck_assert_uint_eq(kv_seq_end_replay(s.seq), PROMPT);
        }
        ck_assert_uint_eq(n_chunks, n_want);
        fake_seq_close(f, &s, false);
        fake_close(f);
    }
}
END_TEST

/* ---- bits ---------------------------------------------------------------------------------------- */

/* Where entries are scattered, the cut shows in roundings. */
static bool has_same_scores(const fake_seq *a, const fake_seq *b)
{
    const kv_observed *x = &a->seq->observed, *y = &b->seq->observed;
    ck_assert_uint_gt(x->replay_bytes, 0);
    ck_assert_uint_eq(x->replay_bytes, y->replay_bytes);
    if (!a->seq->cache->has_scattered) return memcmp(x->replay, y->replay, x->replay_bytes) == 0;
    for (size_t i = 0; i < x->replay_bytes / sizeof *x->replay; i++) {
        if (fabs(exp((double)x->replay[i]) - exp((double)y->replay[i])) > 1e-6) return false;
    }
    return true;
}

START_TEST(neither_cuts_nor_neighbours_nor_threads_change_a_bit)
{
    for (size_t i = 0; i < N_SETUPS; i++) {
        setup crowded = setups[i];
        crowded.n_threads = 3;
        fake *f = open_fake(&setups[i]), *crowd = open_fake(&crowded);
        fake_seq want = open_seq(f, 3, 64), cut = open_seq(f, 3, 64);
        replay(f, &want, 64);
        replay(f, &cut, 7);
        ck_assert(has_same_scores(&want, &cut));
        fake_seq s = open_seq(crowd, 3, 64), other = open_seq(crowd, 4, 64);
        kv_replay_chunk chunk;
        uint32_t behind[TOKENS];
        memcpy(behind, s.tokens + PROMPT, sizeof behind);
        for (uint32_t n = 13; kv_seq_wants_replay(s.seq, &chunk);) { /* beside a row that decodes */
            put_replay(&s, &chunk);
            s.is_replay = true;
            n = (uint32_t)min_size(13, n_left_of(&s, &chunk));
            fake_seq *const rows[] = {&other, &s};
            ck_assert_int_eq(fake_step(crowd, rows, (uint32_t[]){1, n}, 2), ERR_OK);
            if (n_left_of(&s, &chunk) == 0) ck_assert_uint_eq(kv_seq_end_replay(s.seq), PROMPT);
        }
        s.is_replay = false;
        memcpy(s.tokens + PROMPT, behind, sizeof behind);
        ck_assert(has_same_scores(&want, &s));
        fake_run(f, &want, TOKENS, 1);
        fake_run(f, &cut, TOKENS, 1);
        fake_run(crowd, &s, TOKENS, 1);
        ck_assert(f->cache->has_scattered || fake_same(f, &want, &cut, 0, TOKENS));
        ck_assert(f->cache->has_scattered || fake_same(f, &want, &s, 0, TOKENS));
        fake_seq_close(f, &want, false);
        fake_seq_close(f, &cut, false);
        fake_seq_close(crowd, &s, false);
        fake_seq_close(crowd, &other, false);
        fake_close(f);
        fake_close(crowd);
    }
}
END_TEST

START_TEST(a_prompt_from_the_prefix_cache_has_the_same_scores)
{
    const setup x = {"kvzip", "int8", "block", 0.5, 2, 1, false, true};
    fake *f = open_fake(&x);
    fake_seq first = open_seq(f, 3, 64);
    replay(f, &first, 64);
    kv_seq_share_prompt(first.seq, first.tokens, PROMPT);
    fake_seq again = fake_seq_open(f, (fake_ids){.seed = 3, .n_prompt = PROMPT});
    again.n_prompt = PROMPT;
    ck_assert_uint_ge(kv_seq_take_prefix(again.seq, again.tokens, PROMPT), 88);
    fake_run(f, &again, PROMPT, 64);
    replay(f, &again, 11);
    ck_assert(has_same_scores(&first, &again));
    fake_run(f, &first, TOKENS, 1);
    fake_run(f, &again, TOKENS, 1);
    ck_assert(fake_same(f, &first, &again, PROMPT, TOKENS));
    fake_seq_close(f, &first, false);
    fake_seq_close(f, &again, false);
    fake_close(f);
}
END_TEST

/* A prompt of `n_prompt` tokens, `n_taken` of which it takes. Reads it again if it is to be, and decodes. */
static void run_taken(fake *f, uint32_t n_prompt, uint32_t n_taken)
{
    kv_replay_chunk chunk;
    fake_seq s = fake_seq_open(f, (fake_ids){.seed = 3, .n_prompt = n_prompt});
    s.n_prompt = n_prompt;
    ck_assert_uint_eq(kv_seq_take_prefix(s.seq, s.tokens, n_prompt), n_taken);
    fake_run(f, &s, n_prompt, 64);
    ck_assert_int_eq(kv_seq_wants_replay(s.seq, &chunk), n_prompt == PROMPT);
    if (n_prompt == PROMPT) replay(f, &s, 64);
    kv_seq_share_prompt(s.seq, s.tokens, n_prompt);
    fake_run(f, &s, n_prompt + 9, 1);
    fake_check(f);
    fake_seq_close(f, &s, false);
}

START_TEST(a_prefix_of_raw_pages_is_read_again_under_bases)
{
    const setup x = {"kvzip", "svd", "block", 50, 1, 1, false, true};
    fake *f = open_fake(&x);
    run_taken(f, 24, 0);
    run_taken(f, PROMPT, 8); /* one block: the sinks', which is never encoded */
    fake_close(f);
}
END_TEST

START_TEST(a_prefix_of_coefficients_is_not_taken_by_what_is_read_again)
{
    const setup x = {"kvzip", "svd", "block", 105, 1, 1, false, true};
    fake *f = open_fake(&x);
    run_taken(f, 104, 0); /* all of it stays, and is encoded as it arrives */
    ck_assert_uint_gt(fake_stats(f).pages_encoded, 3);
    run_taken(f, PROMPT, 0);
    run_taken(f, 104, 96); /* the second has left raw pages behind */
    fake_close(f);
}
END_TEST

/* ---- what stays ---------------------------------------------------------------------------------- */

/* By layer, head and position: is the entry live in a page? Those of the ring are. */
typedef struct live_set {
    bool is_live[FAKE_LAYERS_MAX][HEADS_MAX][TOKENS];
} live_set;

static void find_live(const fake *f, const kv_seq *seq, live_set *out)
{
    const kv_cache *cache = f->cache;
    const uint32_t *positions = kv_pool_pages(cache->pool)->positions;
    memset(out, 0, sizeof *out);
    for (uint32_t l = 0; l < f->n_layers; l++) {
        for (uint32_t h = 0; h < cache->n_kv_heads[l]; h++) {
            for (uint32_t i = 0; i < seq->n_blocks * cache->n_shards; i++) {
                const uint32_t list = kv_list(cache, l, h, i % cache->n_shards);
                const size_t entry = kv_table_entry(&seq->table, list, i / cache->n_shards);
                for (uint64_t live = seq->table.live[entry]; live != 0; live &= live - 1)
                    out->is_live[l][h]
                                [positions[(size_t)seq->table.page[entry] * cache->page_tokens +
                                           (uint32_t)__builtin_ctzll(live)]] = true;
            }
            for (uint32_t p = 0; p < TOKENS; p++)
                out->is_live[l][h][p] |=
                    p < cache->sink_tokens || p >= seq->n_blocks * cache->page_tokens;
        }
    }
}

static bool keeps(const void *ctx, fake_key key, uint32_t position)
{
    (void)position;
    return ((const live_set *)ctx)->is_live[key.layer][key.head][key.position];
}

/* No entry of a page that goes has a better score than one that stays. */
static void check_best(const fake *f, const fake_seq *s, const live_set *live)
{
    const uint32_t end = kv_blocks_left(f->cache, PROMPT) * f->cache->page_tokens;
    for (uint32_t l = 0; l < f->n_layers; l++) {
        const uint32_t window = f->layers[l].window;
        const uint32_t first = window != 0 && window < PROMPT ? PROMPT - window + 1 : 4;
        for (uint32_t h = 0; h < f->layers[l].n_kv_heads; h++) {
            const float *scores = kv_replay_scores(s->seq, l, h);
            float worst = INFINITY;
            for (uint32_t p = first; p < end; p++) {
                if (live->is_live[l][h][p]) worst = fminf(worst, scores[p]);
            }
            for (uint32_t p = first; p < end; p++) {
                if (!live->is_live[l][h][p]) ck_assert_float_le(scores[p], worst);
            }
        }
    }
}

START_TEST(the_best_stay_and_all_that_stays_is_what_it_was)
{
    for (size_t i = 0; i < N_SETUPS; i++) {
        fake *f = open_fake(&setups[i]);
        fake_seq s = open_seq(f, 3, 64);
        static live_set before, after;
        const kv_stats held = fake_stats(f);
        find_live(f, s.seq, &before);
        replay(f, &s, 64);
        ck_assert_uint_eq(fake_stats(f).slots_live, held.slots_live);
        ck_assert_uint_eq(fake_stats(f).pages_used, held.pages_used);
        ck_assert_uint_eq(fake_stats(f).entries_evicted, 0);
        find_live(f, s.seq, &after);
        ck_assert(memcmp(&before, &after, sizeof before) == 0);
        const bool stays = strncmp(setups[i].scheduling, "kvzip", 5) == 0;
        const bool is_plain = !kv_replay_has_norms(s.seq);
        ck_assert_int_eq(kv_seq_settle(s.seq), ERR_OK);
        find_live(f, s.seq, &after);
        ck_assert_int_eq(kv_replay_scores(s.seq, 0, 0) != NULL, stays);
        if (stays && is_plain) check_best(f, &s, &after);
        ck_assert_uint_gt(f->cache->stats.entries_evicted, 20);
        fake_run(f, &s, PROMPT + 1, 1);
        if (s.seq->methods.codec->is_exact)
            ck_assert_double_le(
                fake_error_of_kept(f, &s, &(fake_range){PROMPT, PROMPT + 1}, keeps, &after), 1);
        fake_run(f, &s, TOKENS, 1);
        fake_seq_close(f, &s, true);
        ck_assert_uint_eq(fake_stats(f).slab_bytes, 0);
        ck_assert_uint_eq(fake_stats(f).observed_bytes, 0);
        fake_close(f);
    }
}
END_TEST

START_TEST(nothing_is_chosen_or_encoded_before_the_prompt_ends)
{
    const setup x = {"kvzip", "int4", "block", 0.3, 1, 1, false, false};
    fake *f = open_fake(&x);
    fake_seq s = fake_seq_open(f, (fake_ids){.seed = 3, .n_prompt = PROMPT});
    kv_replay_chunk chunk;
    s.n_prompt = PROMPT;
    for (uint32_t length = 0; length < PROMPT; length += 10) {
        fake_run(f, &s, length, 64);
        ck_assert_uint_eq(kv_seq_step_tokens_max(s.seq), PROMPT - length);
        ck_assert(!kv_seq_wants_replay(s.seq, &chunk));
        ck_assert_int_eq(kv_seq_settle(s.seq), ERR_OK);
    }
    ck_assert_uint_eq(fake_stats(f).entries_evicted, 0);
    ck_assert_uint_eq(fake_stats(f).pages_encoded, 0);
    fake_seq_close(f, &s, false);
    fake_close(f);
}
END_TEST

START_TEST(what_has_nothing_to_choose_is_not_read_again)
{
    setup x = setups[0];
    kv_replay_chunk chunk;
    static const double budgets[] = {1, 110, 4000};
    for (size_t i = 0; i < sizeof budgets / sizeof budgets[0]; i++) {
        x.budget = budgets[i];
        fake *f = open_fake(&x);
        fake_seq s = open_seq(f, 3, 64);
        ck_assert(!kv_seq_wants_replay(s.seq, &chunk));
        ck_assert_uint_eq(kv_cache_replay_tokens(f->cache, &f->cache->methods, PROMPT), 0);
        fake_seq_close(f, &s, false);
        fake_close(f);
    }
    fake *f = open_fake(&setups[0]);
    ck_assert_uint_eq(kv_cache_replay_tokens(f->cache, &f->cache->methods, 15), 0); /* the ring */
    ck_assert_uint_eq(kv_cache_replay_tokens(f->cache, &f->cache->methods, PROMPT),
                      55 + KV_REPLAY_LEAD);
    fake_seq s = open_seq(f, 3, 64);
    ck_assert(kv_seq_wants_replay(s.seq, &chunk));
    fake_run(f, &s, PROMPT + 1, 1); /* nobody fed it: the stand-in has chosen */
    ck_assert(!kv_seq_wants_replay(s.seq, &chunk));
    ck_assert_uint_gt(fake_stats(f).entries_evicted, 20);
    fake_seq_close(f, &s, false);
    fake_close(f);
}
END_TEST

/* ---- going back ---------------------------------------------------------------------------------- */

START_TEST(an_aborted_step_and_a_cut_leave_no_trace)
{
    fake *f = open_fake(&setups[0]);
    fake_seq want = open_seq(f, 3, 64), s = open_seq(f, 3, 64);
    const kv_row row = {.seq = s.seq, .n_tokens = 5, .is_replay = true};
    kv_replay_chunk chunk;
    replay(f, &want, 64);
    ck_assert_int_eq(kv_step_begin(f->cache, &row, 1), ERR_OK);
    kv_step_abort(f->cache);
    fake_check(f);
    ck_assert_uint_eq(kv_seq_length(s.seq), PROMPT);
    uint32_t behind[TOKENS];
    memcpy(behind, s.tokens + PROMPT, sizeof behind);
    feed_chunk(f, &s, 9); /* and is cut off */
    ck_assert_uint_eq(kv_seq_truncate(s.seq, PROMPT), 0);
    memcpy(s.tokens + PROMPT, behind, sizeof behind);
    fake_check(f);
    ck_assert(!kv_seq_wants_replay(s.seq, &chunk));
    fake_run(f, &s, PROMPT, 40);
    replay(f, &s, 40);
    ck_assert(has_same_scores(&want, &s));
    fake_run(f, &want, TOKENS, 1);
    fake_run(f, &s, TOKENS, 1);
    ck_assert(fake_same(f, &want, &s, 0, TOKENS));
    fake_seq_close(f, &want, false);
    fake_seq_close(f, &s, false);
    fake_close(f);
}
END_TEST

START_TEST(closing_within_a_replay_gives_everything_back)
{
    for (size_t i = 0; i < N_SETUPS; i++) {
        setup x = setups[i];
        x.has_prefixes = true;
        fake *f = open_fake(&x);
        fake_seq s = open_seq(f, 3, 64);
        feed_chunk(f, &s, 50);
        ck_assert_uint_gt(fake_stats(f).observed_bytes, 0);
        fake_seq_close(f, &s, true);
        ck_assert_uint_eq(fake_stats(f).slab_bytes, 0);
        ck_assert_uint_eq(fake_stats(f).observed_bytes, 0);
        fake_close(f);
    }
}
END_TEST

/* ---- room ---------------------------------------------------------------------------------------- */

/* A cache of few bytes, without others. */
static fake *open_small(const setup *x, uint64_t memory_bytes)
{
    fake_options options = {.no_prefix_caching = true, .config = fake_coded(x->compression)};
    options.layers = fake_coded_layers;
    options.n_layers = 2;
    options.config.scheduling = (char *)(uintptr_t)x->scheduling;
    options.config.budget = x->budget;
    options.config.memory_bytes = memory_bytes;
    fake *f = fake_open(&options);
    f->cache->replay_tokens = CHUNK;
    return f;
}

START_TEST(what_could_fit_finds_room_for_its_replay)
{
    for (size_t i = 0; i < 2; i++) {
        const setup *x = &setups[i * 2]; /* without and with a codec */
        for (uint64_t slabs = 6; slabs < 16; slabs++) {
            fake *f = open_small(x, slabs << 16);
            if (kv_cache_could_fit(f->cache, NULL, PROMPT + 1)) {
                fake_seq s = open_seq(f, 3, 64);
                replay(f, &s, 64);
                fake_run(f, &s, PROMPT + 1, 1);
                ck_assert_uint_gt(fake_stats(f).entries_evicted, 20);
                fake_seq_close(f, &s, false);
            } else {
                ck_assert_uint_lt(slabs, 15);
            }
            fake_close(f);
        }
    }
}
END_TEST

START_TEST(a_prompt_whose_replay_has_no_positions_is_refused)
{
    fake *f = open_fake(&setups[0]); /* of 512 positions */
    err_info info = {0};
    ck_assert_int_eq(kv_cache_check_prompt(f->cache, NULL, 512 - 48 - 64, &info), ERR_OK);
    ck_assert_int_eq(kv_cache_check_prompt(f->cache, NULL, 512 - 48 - 63, &info), ERR_BAD_REQUEST);
    ck_assert_str_eq(info.message, "kv-scheduling: kvzip reads a prompt of 401 tokens again behind "
                                   "it, and a context of 512 tokens leaves less than 112 for it");
    fake_close(f);
    f = open_fake(&setups[2]);
    info = (err_info){0};
    ck_assert_int_eq(kv_cache_check_prompt(f->cache, NULL, 490, &info), ERR_BAD_REQUEST);
    ck_assert_ptr_nonnull(strstr(info.message, "kv-compression: kvzip reads a prompt of 490"));
    fake_close(f);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(scores_are_the_largest_shares_of_a_softmax_over_first_entries_chunk_and_replay),
    TEST_CASE(neither_cuts_nor_neighbours_nor_threads_change_a_bit),
    TEST_CASE(a_prompt_from_the_prefix_cache_has_the_same_scores),
    TEST_CASE(a_prefix_of_raw_pages_is_read_again_under_bases),
    TEST_CASE(a_prefix_of_coefficients_is_not_taken_by_what_is_read_again),
    TEST_CASE(the_best_stay_and_all_that_stays_is_what_it_was),
    TEST_CASE(nothing_is_chosen_or_encoded_before_the_prompt_ends),
    TEST_CASE(what_has_nothing_to_choose_is_not_read_again),
    TEST_CASE(an_aborted_step_and_a_cut_leave_no_trace),
    TEST_CASE(closing_within_a_replay_gives_everything_back),
    TEST_CASE(what_could_fit_finds_room_for_its_replay),
    TEST_CASE(a_prompt_whose_replay_has_no_positions_is_refused),
    TEST_CASES_END,
};
