/* tests/kvcache/test_kv_evict.c - which entries stay, against a slow reference that knows nothing of pages;
 * prefixes, full pools and cuts of sequences that evict. All policies: tests/conformance. */
#include "tests/kvcache/fake_model.h"
#include "tests/test_main.h"

#include "kvcache/evict.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { PROMPT = 150, TOKENS = 230, SECTION = 64, N_MAX = 256, HEADS_MAX = 2, KEPT = UINT32_MAX };

static const fake_ids IDS = {.seed = 3, .n_prompt = PROMPT};

static char *text(const char *name)
{
    return (char *)(uintptr_t)name;
}

static fake_options options_of(const char *policy, double budget, const char *codec)
{
    fake_options options = {
        .layers = fake_coded_layers, .n_layers = 2, .config = fake_coded(codec)};
    options.config.scheduling = text(policy);
    options.config.budget = budget;
    return options;
}

static fake *open_evicting(const fake_options *options)
{
    fake *f = fake_open(options);
    f->cache->section_tokens = SECTION;
    return f;
}

/* ---- the reference ------------------------------------------------------------------------------- */

/* Every entry of a sequence: when it went, and what is known of it. */
typedef struct oracle {
    const fake *f;
    const fake_seq *s;
    const kv_policy *policy;
    uint32_t gone[2][HEADS_MAX][N_MAX]; /* length at which it went, or KEPT */
    double mass[2][HEADS_MAX][N_MAX];
    uint32_t n_massed; /* queries that have been added */
} oracle;

static bool keeps(const void *ctx, fake_key key, uint32_t position)
{
    const oracle *o = ctx;
    return o->gone[key.layer][key.head][key.position] > position;
}

static bool sees(const oracle *o, fake_key key, uint32_t position)
{
    const uint32_t window = o->f->layers[key.layer].window;
    return key.position <= position && (window == 0 || key.position + window > position) &&
           keeps(o, key, position);
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
    double weight[N_MAX], sum = 0;
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

/* A view of plain arrays. */
typedef struct plain {
    const oracle *o;
    uint32_t layer, head;
    uint32_t positions[N_MAX];
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
    for (uint32_t i = 0; i < n; i++) {
        positions[i] = args->length - n + i;
        for (uint32_t g = 0; g < args->group; g++)
            fake_fill(FAKE_QUERY, args->layer, args->head * args->group + g,
                      o->s->tokens[positions[i]], positions[i], args->k_dim,
                      q + (i * args->group + g) * args->k_dim);
    }
    args->queries = (kv_score_queries){n, q, positions};
}

/* Mean and covariance of the prompt's queries, in two passes. */
static void find_stats(const oracle *o, kv_score_args *args, float *mean, float *cov)
{
    const uint32_t dim = args->k_dim, end = args->length < PROMPT ? args->length : PROMPT;
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

/* The candidates but for the n_keep best go, the worst first and of equal ones the newest. */
static void drop_worst(oracle *o, const plain *view, const float *score, uint32_t first,
                       uint32_t n_open, uint32_t n_keep, uint32_t length)
{
    bool is_gone[N_MAX] = {false};
    for (uint32_t n = n_open; n > n_keep; n--) {
        uint32_t worst = N_MAX;
        for (uint32_t i = first; i < first + n_open; i++) {
            if (!is_gone[i] && (worst == N_MAX || score[i] <= score[worst])) worst = i;
        }
        is_gone[worst] = true;
        o->gone[view->layer][view->head][view->positions[worst]] = length;
    }
}

static void evict_head(oracle *o, uint32_t l, uint32_t h, uint32_t length)
{
    static float q[64 * 2 * 64], mean[2 * 64], cov[2 * 64 * 64], score[N_MAX], mass[N_MAX],
        work[1 << 16];
    uint32_t positions[64], first, n_open;
    const kv_layer_shape *layer = &o->f->layers[l];
    const kv_scorer *scorer = o->policy->scorer;
    plain source = {.o = o, .layer = l, .head = h};
    const uint32_t n = list_entries(o, &source, length, &first, &n_open);
    const uint32_t n_protected = n - n_open;
    uint32_t n_keep = kv_policy_n_keep(o->policy, length);
    if (n_keep < n_protected) n_keep = n_protected;
    const kv_score_view view = {
        .n = n, .positions = source.positions, .load = load_plain, .ctx = &source};
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
                          .n_keep = n_keep,
                          .seed = 0x70696b76,
                          .mass = mass,
                          .now = length,
                          .work = work};
    const uint32_t window = scorer->n_queries < length ? scorer->n_queries : length;
    list_queries(o, &args, window, q, positions);
    find_stats(o, &args, mean, cov);
    for (uint32_t i = 0; i < n; i++)
        mass[i] = (float)o->mass[l][h][source.positions[i]];
    scorer->score(&args, score);
    drop_worst(o, &source, score, first, n_open, n_keep - n_protected, length);
}

/* Everything that has happened when `length` tokens are held and the next step begins. */
static void settle(oracle *o, uint32_t length)
{
    for (uint32_t l = 0; l < o->f->n_layers; l++) {
        for (uint32_t p = o->n_massed; p < length; p++) {
            for (uint32_t h = 0; h < o->f->layers[l].n_heads; h++)
                add_head_mass(o, l, h, p);
        }
    }
    o->n_massed = length;
    for (uint32_t l = 0; l < o->f->n_layers; l++) {
        for (uint32_t h = 0; h < o->f->layers[l].n_kv_heads; h++)
            evict_head(o, l, h, length);
    }
}

static bool is_due(const oracle *o, uint32_t length)
{
    if (length <= PROMPT) return length == PROMPT || length % SECTION == 0;
    const uint32_t window = o->f->cache->window_tokens, page = o->f->cache->page_tokens;
    return length > window && (length - window) % page == 0;
}

/* The table's live entries are those that the reference has kept. */
static void compare_entries(const oracle *o)
{
    const kv_cache *cache = o->f->cache;
    const kv_seq *seq = o->s->seq;
    const kv_pages *pages = kv_pool_pages(cache->pool);
    for (uint32_t l = 0; l < o->f->n_layers; l++) {
        for (uint32_t h = 0; h < cache->n_kv_heads[l]; h++) {
            bool is_live[N_MAX] = {false};
            for (uint32_t b = 0; b < seq->n_blocks; b++) {
                const size_t entry = kv_table_entry(&seq->table, kv_list(cache, l, h, 0), b);
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
                if (is_live[p] && !keeps(o, key, seq->length))
                    ck_abort_msg("layer %u head %u position %u is left at %u", l, h, p,
                                 seq->length);
            }
        }
    }
}

static void follow(const char *policy, double budget)
{
    const fake_options options = options_of(policy, budget, "none");
    fake *f = open_evicting(&options);
    fake_seq s = fake_seq_open(f, IDS);
    oracle *o = calloc(1, sizeof *o);
    s.n_prompt = PROMPT;
    *o = (oracle){.f = f, .s = &s, .policy = &s.seq->methods.policy};
    memset(o->gone, 0xff, sizeof o->gone);
    while (kv_seq_length(s.seq) < TOKENS) {
        const uint32_t length = kv_seq_length(s.seq);
        if (length > 0 && is_due(o, length)) settle(o, length);
        const uint32_t most = length < PROMPT ? 11 : 1, until = kv_seq_step_tokens_max(s.seq);
        fake_run(f, &s, length + (most < until ? most : until), 11);
        compare_entries(o);
    }
    const fake_range all = {0, TOKENS};
    ck_assert_double_le(fake_error_of_kept(f, &s, &all, keeps, o), 1);
    ck_assert_double_gt(fake_error(f, &s, PROMPT + 1, TOKENS), 1); /* and something was missed */
    if (budget < 1 && strcmp(policy, "streaming_llm") != 0) /* which leaves no holes but one */
        ck_assert_msg(fake_stats(f).pages_compacted > 0, "%s %g", policy, budget);
    free(o);
    fake_seq_close(f, &s, false);
    fake_close(f);
}

START_TEST(what_stays_is_what_a_slow_reference_keeps)
{
    static const char *const policies[] = {
        "streaming_llm",     "random", "knorm", "snapkv", "h2o", "expected_attention", "keydiff",
        "observed_attention"};
    for (size_t i = 0; i < sizeof policies / sizeof *policies; i++) {
        follow(policies[i], 0.4);
        follow(policies[i], 48);
    }
}
END_TEST

/* ---- prefixes ------------------------------------------------------------------------------------ */

static uint32_t take(fake_seq *s, uint32_t n_tokens)
{
    return kv_seq_take_prefix(s->seq, s->tokens, n_tokens);
}

/* A prompt of 56: no multiple of the section in it, and no window has passed a block. */
START_TEST(a_prompt_is_shared_as_it_was_before_anything_was_evicted)
{
    const fake_options options = options_of("knorm", 0.3, "none");
    fake_options alone = options;
    alone.no_prefix_caching = true;
    fake *f = open_evicting(&options), *fresh = open_evicting(&alone);
    const fake_ids ids = {.seed = 9, .shared_seed = 1, .n_shared = 56, .n_prompt = 70};
    fake_seq want = fake_seq_open(fresh, ids);
    fake_run(fresh, &want, 120, 64);
    fake_seq source = fake_seq_open(f, (fake_ids){.seed = 1, .n_prompt = 56});
    fake_run(f, &source, 56, 64);
    kv_seq_share_prompt(source.seq, source.tokens, 56);
    fake_check(f);
    ck_assert_uint_eq(fake_stats(f).prefix_objects, 1);
    fake_run(f, &source, 100, 64); /* evicts, while the object holds its pages */
    ck_assert_uint_gt(fake_stats(f).entries_evicted, 0);
    fake_seq taker = fake_seq_open(f, ids);
    ck_assert_uint_eq(take(&taker, 70), 40); /* the blocks that had left the ring */
    fake_run(f, &taker, 120, 5);
    ck_assert(fake_same(f, &want, &taker, 40, 120)); /* keys alone count: the bits of a fresh one */
    kv_seq_share_prompt(source.seq, source.tokens, 56);
    fake_seq_close(f, &source, true);
    fake_seq_close(f, &taker, true);
    ck_assert_uint_eq(fake_stats(f).prefix_objects, 1); /* nobody left anything else */
    kv_cache_drop_prefixes(f->cache);
    ck_assert_uint_eq(fake_stats(f).slab_bytes, 0);
    fake_seq_close(fresh, &want, false);
    fake_close(f);
    fake_close(fresh);
}
END_TEST

START_TEST(nothing_is_shared_once_entries_are_gone)
{
    const fake_options options = options_of("knorm", 0.3, "none");
    fake *f = open_evicting(&options);
    fake_seq s = fake_seq_open(f, IDS);
    fake_run(f, &s, PROMPT, 64); /* evicted at 64 and 128 */
    kv_seq_share_prompt(s.seq, s.tokens, PROMPT);
    ck_assert_uint_eq(fake_stats(f).prefix_objects, 0);
    fake_seq_close(f, &s, true);
    ck_assert_uint_eq(fake_stats(f).prefix_objects, 0);
    ck_assert_uint_eq(fake_stats(f).slab_bytes, 0);
    fake_close(f);
}
END_TEST

/* Fingerprints differ by policy and by budget. */
START_TEST(policies_do_not_share_prefixes)
{
    fake_options options = options_of("knorm", 0.3, "none");
    options.config.request_methods = true;
    fake *f = open_evicting(&options);
    kv_methods others[3];
    const struct {
        const char *name;
        double budget;
    } wanted[3] = {{"knorm", 0.3}, {"knorm", 0.4}, {"keydiff", 0.3}};
    for (uint32_t i = 0; i < 3; i++) {
        kv_config config = options.config;
        config.scheduling = text(wanted[i].name);
        config.budget = wanted[i].budget;
        ck_assert_int_eq(kv_methods_resolve(&config, &others[i], NULL), ERR_OK);
    }
    fake_seq source = fake_seq_open(f, (fake_ids){.seed = 1, .n_prompt = 56});
    fake_run(f, &source, 56, 64);
    kv_seq_share_prompt(source.seq, source.tokens, 56);
    for (uint32_t i = 0; i < 3; i++) {
        kv_seq *seq;
        const kv_seq_options seq_options = {
            .methods = &others[i], .salt = "", .n_prompt_tokens = 56};
        ck_assert_int_eq(kv_seq_open(f->cache, &seq_options, &seq), ERR_OK);
        ck_assert_uint_eq(kv_seq_take_prefix(seq, source.tokens, 56), i == 0 ? 40 : 0);
        kv_seq_close(seq, NULL);
    }
    fake_seq_close(f, &source, false);
    fake_close(f);
}
END_TEST

/* ---- room ---------------------------------------------------------------------------------------- */

/* Raw pages of 64 keys of 64 channels in f32 are half a slab; a slab has seven of int8. */
static const kv_layer_shape wide = {
    .n_heads = 1, .n_kv_heads = 1, .k_dim = 64, .v_dim = 64, .scale = 0.1f};

static fake *open_wide(const char *codec, uint32_t n_slabs, bool no_prefix_caching)
{
    fake_options options = options_of("streaming_llm", 0.75, codec);
    options.layers = &wide;
    options.n_layers = 1;
    options.limits = (kv_limits){8, 64, 512};
    options.no_prefix_caching = no_prefix_caching;
    options.config.page_tokens = 64;
    options.config.window_tokens = 0;
    options.config.sink_tokens = 0;
    options.config.memory_bytes = n_slabs * KV_SLAB_BYTES;
    fake *f = fake_open(&options);
    f->cache->section_tokens = 128;
    return f;
}

START_TEST(a_full_pool_refuses_the_step_whose_settling_finds_no_room)
{
    fake *f = open_wide("int8", 2, true);
    fake_seq seqs[3], *row = &seqs[0];
    for (uint32_t i = 0; i < 3; i++) {
        seqs[i] = fake_seq_open(f, (fake_ids){.seed = i, .n_prompt = 256});
        fake_run(f, &seqs[i], i == 0 ? 128 : 64, 64); /* four raw pages: both slabs are raw */
    }
    ck_assert_uint_eq(fake_stats(f).pages_used, 4);
    for (uint32_t i = 0; i < 2; i++) { /* the second time nothing is evicted once more */
        ck_assert_int_eq(fake_step(f, &row, (uint32_t[]){1}, 1), ERR_KV_FULL);
        ck_assert_uint_eq(fake_stats(f).entries_evicted, 32);
        ck_assert_uint_eq(kv_seq_length(seqs[0].seq), 128);
        fake_check(f);
    }
    fake_seq_close(f, &seqs[1], false);
    fake_seq_close(f, &seqs[2], false);
    fake *free_pool = open_wide("int8", 20, true);
    fake_seq want = fake_seq_open(free_pool, (fake_ids){.seed = 0, .n_prompt = 256});
    fake_run(free_pool, &want, 190, 64);
    fake_run(f, &seqs[0], 190, 64);
    ck_assert(fake_same(f, &want, &seqs[0], 0, 190));
    ck_assert_uint_eq(fake_stats(f).entries_evicted, 32);
    fake_seq_close(f, &seqs[0], false);
    ck_assert_uint_eq(fake_stats(f).slab_bytes, 0);
    fake_seq_close(free_pool, &want, false);
    fake_close(free_pool);
    fake_close(f);
}
END_TEST

/* Packing pages that a cached prompt holds, too, asks for new ones: the prompt is given up for them. */
START_TEST(a_cached_prompt_gives_way_to_the_sequence_that_left_it)
{
    fake_options options = options_of("random", 0.5, "none");
    options.layers = &wide;
    options.n_layers = 1;
    options.config.page_tokens = 64;
    options.config.window_tokens = 0;
    options.config.sink_tokens = 0;
    options.config.memory_bytes = 3 * KV_SLAB_BYTES; /* six pages */
    fake *f = fake_open(&options);
    fake_seq s = fake_seq_open(f, (fake_ids){.seed = 1, .n_prompt = 320});
    fake_run(f, &s, 320, 64);
    kv_seq_share_prompt(s.seq, s.tokens, 320);
    ck_assert_uint_eq(fake_stats(f).pages_used, 5);
    fake_run(f, &s, 321, 64); /* three pages from five that are shared, and room for one only */
    ck_assert_uint_eq(fake_stats(f).pages_used, 3);
    ck_assert_uint_eq(fake_stats(f).prefix_objects, 0);
    fake_run(f, &s, 500, 64);
    fake_seq_close(f, &s, false);
    ck_assert_uint_eq(fake_stats(f).slab_bytes, 0);
    fake_close(f);
}
END_TEST

START_TEST(what_could_fit_does_fit)
{
    static const char *const names[] = {"none", "int8"};
    for (uint32_t i = 0; i < 2; i++) {
        fake *f = open_wide(names[i], 3, false);
        uint32_t n = 1;
        while (n < 512 && kv_cache_could_fit(f->cache, NULL, n + 1))
            n++;
        ck_assert_uint_ge(n, 128);
        for (uint32_t n_prompt = 0; n_prompt <= n; n_prompt += 61) {
            fake_seq s = fake_seq_open(f, (fake_ids){.seed = 1, .n_prompt = n_prompt});
            while (kv_seq_length(s.seq) < n) {
                fake_run(f, &s, kv_seq_length(s.seq) + 1, 1);
                kv_seq_share_prompt(s.seq, s.tokens, kv_seq_length(s.seq));
            }
            fake_seq_close(f, &s, false);
        }
        fake_close(f);
    }
}
END_TEST

/* ---- steps --------------------------------------------------------------------------------------- */

START_TEST(an_aborted_step_leaves_no_trace)
{
    static const char *const policies[] = {"h2o", "snapkv", "expected_attention"};
    for (uint32_t i = 0; i < 3; i++) {
        const fake_options options = options_of(policies[i], 0.5, "int8");
        fake *f = open_evicting(&options);
        const size_t n_floats = 64 * 4 * 32; /* a step of the widest layer */
        fake_seq want = fake_seq_open(f, IDS), s = fake_seq_open(f, IDS);
        fake_run(f, &want, TOKENS, 64);
        while (kv_seq_length(s.seq) < TOKENS) {
            const uint32_t left = TOKENS - kv_seq_length(s.seq);
            const uint32_t most = (uint32_t)min_size(kv_seq_step_tokens_max(s.seq), left);
            const kv_row row = {.seq = s.seq, .n_tokens = most < 64 ? most : 64};
            ck_assert_int_eq(kv_step_begin(f->cache, &row, 1), ERR_OK);
            for (uint32_t l = 0; l < f->n_layers; l++) { /* all that a step can leave behind */
                for (size_t k = 0; k < n_floats; k++)
                    f->q[k] = f->k[k] = f->v[k] = (float)(k % 7) - 3;
                kv_append(f->cache, &(kv_append_args){.layer = l, .k = f->k, .v = f->v});
                kv_attend(f->cache,
                          &(kv_attend_args){.layer = l, .q = f->q, .q_nope = f->q, .out = f->out});
            }
            kv_step_abort(f->cache);
            fake_check(f);
            fake_run(f, &s, kv_seq_length(s.seq) + (most < 5 ? most : 5), 5);
        }
        ck_assert(fake_same(f, &want, &s, 0, TOKENS));
        fake_seq_close(f, &want, false);
        fake_seq_close(f, &s, false);
        fake_close(f);
    }
}
END_TEST

/* Entries of a page have one fate under scorers of pages. */
START_TEST(scorers_of_pages_evict_whole_pages)
{
    fake_options options = options_of("lru_plus", 0.5, "none");
    options.config.routing = text("topk");
    options.config.routing_k = 0.3;
    fake *f = open_evicting(&options);
    fake_seq s = fake_seq_open(f, IDS);
    s.n_prompt = PROMPT;
    fake_run(f, &s, PROMPT, 64);
    fake_run(f, &s, TOKENS, 1);
    const uint32_t page_tokens = f->cache->page_tokens;
    uint32_t n_gone = 0;
    for (uint32_t h = 0; h < 2; h++) {
        for (uint32_t b = 0; b < s.seq->n_blocks; b++) {
            const size_t entry = kv_table_entry(&s.seq->table, kv_list(f->cache, 0, h, 0), b);
            const uint64_t live = s.seq->table.live[entry];
            const uint64_t all =
                kv_slot_mask(page_tokens) & ~kv_slot_mask(b == 0 ? f->cache->sink_tokens : 0);
            ck_assert(live == 0 || live == all);
            n_gone += live == 0;
        }
    }
    ck_assert_uint_gt(n_gone, 10);
    fake_seq_close(f, &s, false);
    fake_close(f);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE_SECONDS(what_stays_is_what_a_slow_reference_keeps, 250),
    TEST_CASE(a_prompt_is_shared_as_it_was_before_anything_was_evicted),
    TEST_CASE(nothing_is_shared_once_entries_are_gone),
    TEST_CASE(policies_do_not_share_prefixes),
    TEST_CASE(a_full_pool_refuses_the_step_whose_settling_finds_no_room),
    TEST_CASE(a_cached_prompt_gives_way_to_the_sequence_that_left_it),
    TEST_CASE_SECONDS(what_could_fit_does_fit, 250),
    TEST_CASE_SECONDS(an_aborted_step_leaves_no_trace, 250),
    TEST_CASE(scorers_of_pages_evict_whole_pages),
    TEST_CASES_END,
};
