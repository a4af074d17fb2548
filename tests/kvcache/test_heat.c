/* tests/kvcache/test_heat.c - a mixed codec through a cache: how many pages have which bits, and which. */
#include "tests/kvcache/fake_model.h"
#include "tests/test_main.h"

#include "kvcache/compression/pikv.h"
#include "kvcache/heat.h"

#include <math.h>

enum { PROMPT = 150, TOKENS = 230, SECTION = 64 };

static fake_options options_of(const char *compression, uint32_t n_shards)
{
    fake_options options = {.layers = fake_coded_layers,
                            .n_layers = 2,
                            .model_type = DTYPE_BF16,
                            .config = fake_coded(compression)};
    options.config.n_shards = n_shards;
    return options;
}

static fake *open_pikv(const fake_options *options)
{
    fake *f = fake_open(options);
    f->cache->section_tokens = SECTION;
    return f;
}

/* Encoded pages of a head. */
typedef struct census {
    uint32_t n, count[KV_HEAT_COUNT];
    float least[KV_HEAT_COUNT], most[KV_HEAT_COUNT]; /* of their importance */
} census;

/* The heat of an encoded page, from the name of its codec. */
static kv_heat heat_of(const fake *f, uint32_t page)
{
    const char *name = kv_codec_of(f->cache, page)->name;
    for (int h = 0; h < KV_HEAT_COUNT; h++) {
        if (strcmp(name, kv_heat_codecs[h]) == 0) return (kv_heat)h;
    }
    ck_abort_msg("%s is none of the codecs", name);
}

/* What the block's entries are worth as the model gave them, rounded as they were stored. */
static double worth(const fake *f, const fake_seq *s, fake_key block)
{
    const uint32_t k_dim = f->layers[block.layer].k_dim, page_tokens = f->cache->page_tokens;
    double sum = 0;
    for (uint32_t c = 0; c < k_dim; c++) {
        double least = INFINITY, most = -INFINITY;
        for (uint32_t p = block.position; p < block.position + page_tokens; p++) {
            float x[64];
            fake_fill(FAKE_KEY, block.layer, block.head, s->tokens[p], p, k_dim, x);
            const double stored = (double)f32_from_bf16(bf16_from_f32(x[c]));
            least = fmin(least, stored);
            most = fmax(most, stored);
        }
        sum += (most - least) * (most - least);
    }
    return sum;
}

static census take(const fake *f, const fake_seq *s, uint32_t layer, uint32_t head)
{
    const kv_cache *cache = f->cache;
    census c = {.n = 0};
    for (int h = 0; h < KV_HEAT_COUNT; h++) {
        c.least[h] = INFINITY;
        c.most[h] = -INFINITY;
    }
    for (uint32_t b = 0; b < s->seq->n_blocks; b++) {
        const uint32_t page = kv_table_page(&s->seq->table, kv_home_list(cache, layer, head, b), b);
        if (page == KV_PAGE_NONE || !kv_is_coded_page(cache, page)) continue;
        const kv_heat heat = heat_of(f, page);
        const float importance = *kv_pool_importance(cache->pool, page);
        const double want = worth(f, s, (fake_key){layer, head, b * cache->page_tokens});
        ck_assert_double_le(fabs((double)importance - want), 1e-5 * want);
        c.n++;
        c.count[heat]++;
        c.least[heat] = fminf(c.least[heat], importance);
        c.most[heat] = fmaxf(c.most[heat], importance);
    }
    return c;
}

static void check_counts(const census *c)
{
    ck_assert_uint_eq(c->count[KV_HEAT_HOT], c->n - c->n / 2);
    ck_assert_uint_eq(c->count[KV_HEAT_COLD], c->n / 2 - c->n / 4);
    ck_assert_uint_eq(c->count[KV_HEAT_COLDEST], c->n / 4);
}

/* At every length, in the head of every layer without a window: there pages only come. */
START_TEST(the_counts_are_the_rules_at_every_length)
{
    const fake_options options = options_of("pikv", 1);
    fake *f = open_pikv(&options);
    fake_seq s = fake_seq_open(f, (fake_ids){.seed = 1, .n_prompt = PROMPT});
    for (uint32_t n = SECTION; n <= TOKENS; n++) {
        fake_run(f, &s, n, 64);
        for (uint32_t l = 0; l < f->n_layers; l++) {
            for (uint32_t h = 0; h < f->layers[l].n_kv_heads && f->layers[l].window == 0; h++) {
                const census c = take(f, &s, l, h);
                ck_assert_uint_eq(c.n, s.seq->n_coded - 1); /* block 0 has sinks */
                check_counts(&c);
            }
        }
    }
    fake_seq_close(f, &s, false);
    fake_close(f);
}
END_TEST

/* Those that are encoded at once are ranked by what they are worth: here, the prompt's. */
START_TEST(hotter_pages_have_the_finer_codec)
{
    for (uint64_t seed = 1; seed < 6; seed++) {
        const fake_options options = options_of("pikv", 1);
        fake *f = fake_open(&options); /* a section is longer than the prompt */
        fake_seq s = fake_seq_open(f, (fake_ids){.seed = seed, .n_prompt = PROMPT});
        fake_run(f, &s, PROMPT, 64);
        for (uint32_t l = 0; l < f->n_layers; l++) {
            for (uint32_t h = 0; h < f->layers[l].n_kv_heads; h++) {
                const census c = take(f, &s, l, h);
                check_counts(&c);
                ck_assert_uint_ge(c.n, 4); /* some of each */
                ck_assert(c.least[KV_HEAT_HOT] > c.most[KV_HEAT_COLD]);
                ck_assert(c.least[KV_HEAT_COLD] > c.most[KV_HEAT_COLDEST]);
            }
        }
        fake_seq_close(f, &s, false);
        fake_close(f);
    }
}
END_TEST

/* Behind the prompt pages cool down, and none becomes hotter; a sequence that sees a page, too, keeps it. */
START_TEST(pages_cool_down_and_others_keep_theirs)
{
    enum { BLOCKS_MAX = 64 };
    const fake_options options = options_of("pikv", 1);
    fake *f = open_pikv(&options);
    const fake_ids ids = {.seed = 3, .n_prompt = PROMPT};
    fake_seq a = fake_seq_open(f, ids);
    fake_run(f, &a, PROMPT, 64);
    kv_seq_share_prompt(a.seq, a.tokens, PROMPT);
    fake_seq b = fake_seq_open(f, ids);
    ck_assert_uint_gt(kv_seq_take_prefix(b.seq, b.tokens, PROMPT), 0);
    const uint32_t n_taken = b.seq->n_blocks;
    uint32_t n_cooler = 0, pages[BLOCKS_MAX];
    kv_heat heats[BLOCKS_MAX];
    ck_assert_uint_ge(n_taken, 10);
    for (uint32_t i = 1; i < n_taken; i++) {
        pages[i] = kv_table_page(&b.seq->table, kv_list(f->cache, 0, 0, 0), i);
        heats[i] = heat_of(f, pages[i]);
    }
    fake_run(f, &a, TOKENS, 1);
    fake_check(f);
    for (uint32_t i = 1; i < n_taken; i++) {
        const uint32_t page = kv_table_page(&a.seq->table, kv_list(f->cache, 0, 0, 0), i);
        ck_assert_int_ge(heat_of(f, page), heats[i]);
        ck_assert(page == pages[i] || heat_of(f, page) > heats[i]);
        n_cooler += page != pages[i];
        ck_assert_uint_eq(kv_table_page(&b.seq->table, kv_list(f->cache, 0, 0, 0), i), pages[i]);
        ck_assert_int_eq(heat_of(f, pages[i]), heats[i]);
    }
    ck_assert_uint_gt(n_cooler, 0);
    fake_seq_close(f, &a, false);
    fake_seq_close(f, &b, false);
    kv_cache_drop_prefixes(f->cache);
    ck_assert_uint_eq(fake_stats(f).slab_bytes, 0);
    fake_close(f);
}
END_TEST

/* The rule counts a head's pages, however many shards they lie on. */
START_TEST(shards_change_no_bit)
{
    const fake_options one = options_of("pikv", 1), four = options_of("pikv", 4);
    fake *f = open_pikv(&one), *g = open_pikv(&four);
    fake_seq a = fake_seq_open(f, (fake_ids){.seed = 1, .n_prompt = PROMPT});
    fake_seq b = fake_seq_open(g, (fake_ids){.seed = 1, .n_prompt = PROMPT});
    fake_run(f, &a, TOKENS, 64);
    fake_run(g, &b, TOKENS, 9);
    ck_assert(fake_same(f, &a, &b, 0, TOKENS));
    fake_seq_close(f, &a, false);
    fake_seq_close(g, &b, false);
    fake_close(f);
    fake_close(g);
}
END_TEST

/* Between int8 and int2, in what pages hold and what attention reads of them; and as the shares say. */
START_TEST(bytes_are_those_of_its_pages)
{
    uint64_t used[3], read[3];
    static const char *const codecs[] = {"int8", "pikv", "int2"};
    for (int i = 0; i < 3; i++) {
        const fake_options options = options_of(codecs[i], 1);
        fake *f = open_pikv(&options);
        fake_seq s = fake_seq_open(f, (fake_ids){.seed = 1, .n_prompt = PROMPT});
        fake_run(f, &s, TOKENS, 64);
        uint64_t pages = 0;
        for (uint32_t list = 0; list < f->cache->n_lists; list++) {
            for (uint32_t b = 0; b < s.seq->n_blocks; b++) {
                const uint32_t page = kv_table_page(&s.seq->table, list, b);
                if (page != KV_PAGE_NONE) pages += kv_pool_page_bytes(f->cache->pool, page);
            }
        }
        used[i] = pages;
        read[i] = fake_stats(f).bytes_read;
        fake_seq_close(f, &s, false);
        fake_close(f);
    }
    ck_assert(used[0] > used[1] && used[1] > used[2]);
    ck_assert(read[0] > read[1] && read[1] > read[2]);
}
END_TEST

/* A cache for pikv alone keeps pages of its codecs; one whose heads they cannot make smaller has none. */
START_TEST(its_codecs_have_classes_of_their_own)
{
    fake_options options = options_of("pikv", 1);
    fake *f = open_pikv(&options);
    uint64_t bytes = 0;
    for (int h = 0; h < KV_HEAT_COUNT; h++) {
        const uint32_t page_class = kv_heat_class(f->cache, 0, (kv_heat)h);
        ck_assert_str_eq(f->cache->class_codec[page_class]->name, kv_heat_codecs[h]);
        ck_assert_ptr_eq(kv_layout_of_coding(f->cache, &f->cache->methods, 0,
                                             f->cache->layout[page_class].coding),
                         &f->cache->layout[page_class]);
        bytes += (h == KV_HEAT_HOT ? 4 : 2) * f->cache->layout[page_class].page_bytes;
    }
    ck_assert_uint_eq(kv_coded_bytes(f->cache, &f->cache->methods, 0, 8), bytes);
    fake_close(f);
}
END_TEST

START_TEST(what_is_not_finite_is_worth_most)
{
    const kv_head_shape shape = {.k_dim = 3, .v_dim = 3, .type = DTYPE_F32};
    float keys[2][3] = {{1, -2, 0}, {4, -2, 2}};
    const attn_span span = {.k = keys, .k_stride_bytes = sizeof keys[0], .n_slots = 2};
    ck_assert_float_eq(kv_page_importance(&shape, &span), 13);
    keys[1][1] = INFINITY;
    keys[0][1] = INFINITY;
    const float most = kv_page_importance(&shape, &span);
    ck_assert(isfinite(most) && most > 1e38f);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(the_counts_are_the_rules_at_every_length),
    TEST_CASE(hotter_pages_have_the_finer_codec),
    TEST_CASE(pages_cool_down_and_others_keep_theirs),
    TEST_CASE(shards_change_no_bit),
    TEST_CASE(bytes_are_those_of_its_pages),
    TEST_CASE(its_codecs_have_classes_of_their_own),
    TEST_CASE(what_is_not_finite_is_worth_most),
    TEST_CASES_END,
};
