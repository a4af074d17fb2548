/* tests/kvcache/test_kv_routing.c - what decode queries read, and what they know about the rest. */
#include "tests/kvcache/route_probe.h"
#include "tests/test_main.h"

#include "base/random.h"
#include "kvcache/device_view.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char *const METHODS[] = {"topk", "adaptive", "certified", "hierarchical"};
enum { N_METHODS = sizeof METHODS / sizeof METHODS[0] };

/* ---- the certificate ------------------------------------------------------------------------------- */

START_TEST(no_query_misses_more_than_its_certificate)
{
    static const kv_route_settings settings[] = {
        {0.1, 0.3, 0.3}, {0.5, 0.01, 0.9}, {2, 0.0001, 0.999}, {20, 0.9, 0}};
    for (int method = 0; method < N_METHODS; method++) {
        for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++) {
            for (int kind = 0; kind < N_KEY_KINDS; kind++) {
                const kv_config config = probe_config(METHODS[method], settings[i]);
                probe_check_certificates(&config, 1, (key_kind)kind, DTYPE_F32);
                probe_check_certificates(&config, GROUP_MAX, (key_kind)kind, DTYPE_BF16);
            }
        }
    }
}
END_TEST

/* Boxes know keys alone. The budget covers everything, so that nothing goes. */
START_TEST(certificates_hold_where_slots_have_biases)
{
    static const kv_route_settings settings[] = {{0.1, 0.3, 0.3}, {0.5, 0.01, 0.9}};
    for (int method = 0; method < N_METHODS; method++) {
        for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++) {
            for (int kind = 0; kind < N_KEY_KINDS; kind++) {
                kv_config config = probe_config(METHODS[method], settings[i]);
                config.compression = (char *)(uintptr_t) "distill,none";
                config.budget = N_TOKENS;
                probe_check_certificates(&config, GROUP_MAX, (key_kind)kind, DTYPE_F32);
                probe_check_certificates(&config, 1, (key_kind)kind, DTYPE_BF16);
            }
        }
    }
}
END_TEST

/* Runs the probe's sequence; what its decode steps have counted. */
static kv_stats stats_of(const kv_config *config, key_kind kind)
{
    static probe_step s;
    kv_stats before, stats;
    probe p = probe_open(config, 2, kind, DTYPE_F32);
    probe_run(&p, N_PROMPT, false, &s);
    kv_stats_read(p.cache, &before);
    for (uint32_t t = N_PROMPT; t < N_TOKENS; t++)
        probe_run(&p, 1, true, &s);
    kv_stats_read(p.cache, &stats);
    ck_assert_uint_eq(before.pages_open, 0); /* a prompt does not choose */
    ck_assert_uint_eq(before.certificates, 0);
    stats.bytes_read -= before.bytes_read;
    probe_close(&p);
    return stats;
}

START_TEST(who_reads_more_misses_less)
{
    static const double shares[] = {0.05, 0.1, 0.2, 0.4, 0.7, 1};
    for (int kind = 0; kind < N_KEY_KINDS; kind++) {
        kv_stats before = {.certificate_sum = INFINITY, .certificate_max = INFINITY};
        for (size_t i = 0; i < sizeof shares / sizeof shares[0]; i++) {
            const kv_config config = probe_config("topk", (kv_route_settings){.k = shares[i]});
            const kv_stats stats = stats_of(&config, (key_kind)kind);
            ck_assert_double_le(stats.certificate_sum, before.certificate_sum);
            ck_assert_double_le(stats.certificate_max, before.certificate_max);
            ck_assert_uint_gt(stats.pages_read, before.pages_read);
            ck_assert_uint_gt(stats.bytes_read, before.bytes_read * (shares[i] < 1 ? 1 : 0));
            before = stats;
        }
        ck_assert_double_eq(before.certificate_sum, 0);
        ck_assert_uint_eq(before.pages_read, before.pages_open);
    }
}
END_TEST

START_TEST(certified_reads_what_its_eps_asks_for)
{
    static const double eps[] = {0.9, 0.1, 0.01, 0.001, 1e-6, 0};
    uint64_t before = 0;
    for (size_t i = 0; i < sizeof eps / sizeof eps[0]; i++) {
        const kv_config config = probe_config("certified", (kv_route_settings){.eps = eps[i]});
        const kv_stats stats = stats_of(&config, NEEDLES);
        ck_assert_uint_ge(stats.pages_read, before);
        ck_assert_double_le(stats.certificate_max, eps[i]);
        before = stats.pages_read;
    }
    const kv_config config = probe_config("certified", (kv_route_settings){.eps = 0.01});
    const kv_stats needles = stats_of(&config, NEEDLES);
    ck_assert_uint_lt(needles.pages_read * 10, needles.pages_open * 9); /* it can tell them */
}
END_TEST

START_TEST(sinks_are_known_before_pages)
{
    const kv_config config = probe_config("certified", (kv_route_settings){.eps = 0.01});
    const kv_stats stats = stats_of(&config, SINKS);
    ck_assert_uint_lt(stats.pages_read * 5, stats.pages_open); /* without them: all, always */
}
END_TEST

START_TEST(sinks_are_not_in_the_box_of_their_page)
{
    static probe_step s;
    const kv_config config = probe_config("topk", (kv_route_settings){.k = 0.5});
    probe p = probe_open(&config, 1, SINKS, DTYPE_F32);
    probe_run(&p, N_PROMPT, false, &s);
    float box[2][K_DIM];
    memcpy(box, kv_pool_box(p.cache->pool, kv_table_page(&p.seq->table, 0, 0)), sizeof box);
    for (uint32_t c = 0; c < K_DIM; c++) {
        ck_assert_float_eq(box[0][c], fminf(p.keys[2][c], p.keys[3][c]));
        ck_assert_float_eq(box[1][c], fmaxf(p.keys[2][c], p.keys[3][c]));
    }
    probe_close(&p);
}
END_TEST

START_TEST(topk_reads_as_many_pages_as_it_may)
{
    const uint32_t n_steps = N_TOKENS - N_PROMPT;
    uint64_t n_open = 0, n_quarter = 0, n_five = 0;
    for (uint32_t t = N_PROMPT; t < N_TOKENS; t++) {
        const uint32_t n = (t - 8) / PAGE; /* what has left the window of 8 */
        n_open += n;
        n_quarter += (n + 3) / 4;
        n_five += n < 5 ? n : 5;
    }
    const kv_config quarter = probe_config("topk", (kv_route_settings){.k = 0.25});
    const kv_stats stats = stats_of(&quarter, RANDOM);
    ck_assert_uint_eq(stats.pages_open, n_open);
    ck_assert_uint_eq(stats.pages_read, n_quarter);
    const kv_config five = probe_config("topk", (kv_route_settings){.k = 5});
    ck_assert_uint_eq(stats_of(&five, RANDOM).pages_read, n_five);
    const kv_config all = probe_config("full", (kv_route_settings){0});
    const kv_stats full = stats_of(&all, RANDOM);
    ck_assert_uint_eq(full.pages_read, n_open);
    ck_assert_uint_eq(full.certificates, 2 * n_steps);
    /* A box is 2 keys, a page PAGE keys and values. */
    const uint64_t box = 2 * K_DIM * 4, page = PAGE * (K_DIM + V_DIM) * 4;
    const uint64_t spared = (n_open - n_quarter) * page, boxes = n_open * box;
    const uint64_t block0 = 2 * (K_DIM + V_DIM) * 4; /* its sinks are read in any case */
    ck_assert_uint_le(stats.bytes_read, full.bytes_read - spared + boxes + n_steps * block0);
    ck_assert_uint_ge(stats.bytes_read, full.bytes_read - spared + boxes);
}
END_TEST

/* As many pages as topk, and fewer boxes; the certificate is of runs then, and looser. */
START_TEST(hierarchical_looks_at_fewer_boxes_and_reads_no_more_pages)
{
    static const double shares[] = {0.02, 0.05, 0.1, 0.3, 7};
    for (size_t i = 0; i < sizeof shares / sizeof shares[0]; i++) {
        const kv_config one = probe_config("topk", (kv_route_settings){.k = shares[i]});
        const kv_config two = probe_config("hierarchical", (kv_route_settings){.k = shares[i]});
        const kv_stats pages = stats_of(&one, RANDOM), runs = stats_of(&two, RANDOM);
        ck_assert_uint_eq(runs.pages_open, pages.pages_open);
        ck_assert_uint_eq(runs.pages_read, pages.pages_read);
        if (i < 3) ck_assert_uint_lt(runs.bytes_read, pages.bytes_read);
        ck_assert_uint_gt(runs.table_bytes, pages.table_bytes);
    }
}
END_TEST

START_TEST(a_page_without_live_slots_is_never_chosen)
{
    for (int method = 0; method < N_METHODS; method++) {
        kv_config config =
            probe_config(METHODS[method], (kv_route_settings){1e6, 1e-300, 1 - 1e-15});
        config.sink_tokens = PAGE; /* so block 0 has no slot of its own */
        const kv_stats stats = stats_of(&config, RANDOM);
        uint64_t n_open = 0;
        for (uint32_t t = N_PROMPT; t < N_TOKENS; t++)
            n_open += (t - 8) / PAGE - 1;
        ck_assert_uint_eq(stats.pages_open, n_open);
        ck_assert_uint_eq(stats.pages_read, n_open);
    }
}
END_TEST

/* ---- selection ------------------------------------------------------------------------------------- */

/* Bounds of the golden layer (tests/kernels/test_key_bounds.c); the last page of six is read anyway. */
START_TEST(topk_selects_what_quest_selects)
{
    static const float bounds[4][5] = {{31.7276f, 35.1209f, 28.4338f, 18.4340f, 36.2516f},
                                       {22.1358f, 19.2776f, 14.5873f, 14.0479f, 21.7067f},
                                       {20.6262f, 25.4405f, 20.7808f, 27.3753f, 23.6657f},
                                       {21.8554f, 25.6167f, 28.1058f, 35.9283f, 29.7058f}};
    static const uint32_t want[4][2] = {{1, 4}, {0, 4}, {1, 3}, {3, 4}};
    static const uint16_t n_live[5] = {8, 8, 8, 8, 8};
    const kv_route_settings settings = {.k = 2};
    for (int head = 0; head < 4; head++) {
        float priority[5];
        uint32_t order[5], chosen[5];
        bool is_chosen[5];
        const kv_route_args args = {
            .settings = &settings,
            .n_pages = 5,
            .n_open = 5,
            .group = 1,
            .n_ranks = 1,
            .n_live = n_live,
            .bound = bounds[head],
            .work = {.priority = priority, .order = order, .is_chosen = is_chosen}};
        ck_assert_uint_eq(kv_routing_find("topk")->select(&args, chosen), 2);
        ck_assert_mem_eq(chosen, want[head], sizeof want[head]);
    }
}
END_TEST

/* ---- what must not show ---------------------------------------------------------------------------- */

static const kv_route_settings LOSSY = {.k = 0.2, .eps = 0.6, .tau = 0.4};

/* A rank that does not read the ring (ranks.h): what it may read is ranked among itself. */
START_TEST(where_nothing_is_read_before_the_largest_mass_comes_first)
{
    const uint16_t n_live[5] = {4, 4, 4, 4, 4};
    const float bound[5] = {0, 1, 9, 2, 8};
    float priority[5];
    uint32_t order[5], chosen[5];
    double rest[6], scale[1], log_read[1] = {-INFINITY};
    bool is_chosen[5];
    const kv_route_settings settings = {.tau = 0.9};
    const kv_route_args args = {.settings = &settings,
                                .n_pages = 5,
                                .n_open = 5,
                                .group = 1,
                                .n_ranks = 2,
                                .n_live = n_live,
                                .bound = bound,
                                .log_read = log_read,
                                .work = {.priority = priority,
                                         .order = order,
                                         .rest = rest,
                                         .scale = scale,
                                         .is_chosen = is_chosen}};
    ck_assert_uint_eq(kv_routing_find("adaptive")->select(&args, chosen), 2);
    ck_assert_uint_eq(chosen[0], 2);
    ck_assert_uint_eq(chosen[1], 4);
}
END_TEST

START_TEST(a_prompt_reads_everything_however_it_is_cut)
{
    enum { N = 120 };
    fake *full = fake_open(&(fake_options){0});
    fake_seq want = fake_seq_open(full, (fake_ids){.seed = 5});
    fake_run(full, &want, N, 64);
    for (int method = 0; method < N_METHODS; method++) {
        fake *f = fake_open(&(fake_options){.config = probe_config(METHODS[method], LOSSY)});
        for (uint32_t chunk = 1; chunk <= 64; chunk = chunk * 4 + 3) {
            fake_seq s = fake_seq_open(f, (fake_ids){.seed = 5});
            s.n_prompt = N;
            fake_run(f, &s, N, chunk);
            ck_assert(fake_same(f, &want, &s, 0, N));
            fake_seq_close(f, &s, false);
        }
        ck_assert_uint_eq(fake_stats(f).pages_open, 0);
        fake_close(f);
    }
    fake_seq_close(full, &want, false);
    fake_close(full);
}
END_TEST

/* Blocks of a cached prefix, and those that a cut leaves, lie in pages before their time: here such that
 * a run of 16 is whole before its time, too. A window passes some pages of a run before the others. */
START_TEST(where_a_block_lies_does_not_show_in_decode_steps)
{
    enum { N_OWN = 194, N = 328 };
    const kv_layer_shape layers[2] = {
        fake_layers[0],
        {.n_heads = 4, .n_kv_heads = 1, .k_dim = 12, .v_dim = 5, .scale = 0.3f, .window = 150}};
    for (int method = 0; method < N_METHODS; method++) {
        fake *f = fake_open(&(fake_options){
            .layers = layers, .n_layers = 2, .config = probe_config(METHODS[method], LOSSY)});
        fake_seq first = fake_seq_open(f, (fake_ids){.seed = 6});
        first.n_prompt = N_OWN;
        fake_run(f, &first, N_OWN, 64);
        fake_run(f, &first, N, 1);

        fake_seq left = fake_seq_open(f, (fake_ids){.seed = 6});
        fake_run(f, &left, N_OWN, 64);
        fake_seq_close(f, &left, true);
        fake_seq taken = fake_seq_open(f, (fake_ids){.seed = 6});
        taken.n_prompt = N_OWN;
        ck_assert_uint_eq(kv_seq_take_prefix(taken.seq, taken.tokens, N_OWN), N_OWN - 1);
        fake_run(f, &taken, N, 1);
        ck_assert(fake_same(f, &first, &taken, N_OWN - 1, N));

        fake_seq cut = fake_seq_open(f, (fake_ids){.seed = 6});
        cut.n_prompt = N_OWN;
        fake_run(f, &cut, N_OWN, 64);
        fake_run(f, &cut, N, 1);
        if (kv_seq_truncate(cut.seq, N - 7) == 0) fake_run(f, &cut, N_OWN, 64);
        fake_run(f, &cut, N, 1);
        ck_assert(fake_same(f, &first, &cut, 0, N));
        fake_seq_close(f, &first, false);
        fake_seq_close(f, &taken, false);
        fake_seq_close(f, &cut, false);
        fake_close(f);
    }
}
END_TEST

/* ---- a device that chooses ------------------------------------------------------------------------ */

enum { N_MIXED = 7, N_MIXED_PROMPT = 90, N_MIXED_TOKENS = 240 };

/* Decode steps of several routings in one batch, on a device of its own memory or on the host. */
typedef struct mixed_run {
    fake *f;
    fake_seq seqs[N_MIXED];
    kv_usage usage[N_MIXED];
    kv_stats stats;
} mixed_run;

static void run_mixed(const char *device, mixed_run *out)
{
    static const char *const routings[N_MIXED] = {
        "topk", "full", "adaptive", "certified", "pikv", "topk_balanced", "hierarchical"};
    static const kv_route_settings settings[N_MIXED] = {
        {.k = 0.2}, {.k = 1}, {.tau = 0.5}, {.eps = 0.4}, {.k = 0.4}, {.k = 2}, {.k = 3}};
    static const uint32_t one_each[N_MIXED] = {1, 1, 1, 1, 1, 1, 1};
    fake_seq *rows[N_MIXED];
    ck_assert_int_eq(setenv("PIKV_TEST_DEVICE", device, 1), 0);
    kv_config config = fake_defaults();
    config.request_methods = true;
    config.n_shards = 3;
    out->f = fake_open(&(fake_options){.config = config});
    for (uint32_t i = 0; i < N_MIXED; i++) {
        kv_methods methods;
        const kv_config own = probe_config(routings[i], settings[i]);
        ck_assert_int_eq(kv_methods_resolve(&own, &methods, NULL), ERR_OK);
        out->seqs[i] = fake_seq_open(out->f, (fake_ids){.seed = 20 + i, .methods = &methods});
        out->seqs[i].n_prompt = N_MIXED_PROMPT + 7 * i;
        fake_run(out->f, &out->seqs[i], N_MIXED_PROMPT + 7 * i, 64);
        rows[i] = &out->seqs[i];
    }
    const uint64_t before = fake_stats(out->f).bytes_read; /* prompts are cut in another way */
    for (uint32_t t = 0; t < N_MIXED_TOKENS - N_MIXED_PROMPT; t++)
        ck_assert_int_eq(fake_step(out->f, rows, one_each, N_MIXED), ERR_OK);
    for (uint32_t i = 0; i < N_MIXED; i++)
        kv_seq_usage(out->seqs[i].seq, &out->usage[i]);
    out->stats = fake_stats(out->f);
    out->stats.bytes_read -= before;
}

static void close_mixed(mixed_run *run)
{
    for (uint32_t i = 0; i < N_MIXED; i++)
        fake_seq_close(run->f, &run->seqs[i], false);
    fake_close(run->f);
}

START_TEST(a_device_chooses_what_the_host_does)
{
    static mixed_run host, apart;
    run_mixed("cpu", &host);
    run_mixed("apart", &apart);
    ck_assert_ptr_null(host.f->cache->view);
    ck_assert_uint_eq(apart.f->cache->view->n_hosts, 1); /* hierarchical asks for runs */
    for (uint32_t i = 0; i < N_MIXED; i++) {
        const size_t n = (size_t)N_MIXED_TOKENS * host.f->n_out;
        for (size_t x = 0; x < n; x++)
            ck_assert_float_eq_tol(apart.seqs[i].out[x], host.seqs[i].out[x], 2e-6f);
        ck_assert_uint_eq(apart.usage[i].certificates, host.usage[i].certificates);
        ck_assert_double_eq_tol(apart.usage[i].certificate_sum, host.usage[i].certificate_sum,
                                1e-9 + 1e-5 * host.usage[i].certificate_sum);
    }
    ck_assert_double_gt(host.usage[0].certificate_sum, 0);
    ck_assert_uint_eq(apart.stats.pages_open, host.stats.pages_open);
    ck_assert_uint_eq(apart.stats.pages_read, host.stats.pages_read);
    ck_assert_uint_lt(apart.stats.pages_read, apart.stats.pages_open);
    /* Of a block that a layer's window cuts the host counts all. */
    ck_assert_double_eq_tol((double)apart.stats.bytes_read, (double)host.stats.bytes_read,
                            0.005 * (double)host.stats.bytes_read);
    ck_assert_double_eq_tol(apart.stats.certificate_max, host.stats.certificate_max, 1e-5);
    close_mixed(&host);
    close_mixed(&apart);
}
END_TEST

/* ---- settings and memory --------------------------------------------------------------------------- */

static void expect_refusal(const char *method, kv_route_settings settings, const char *message)
{
    dev *d;
    kv_cache *cache;
    err_info info = {0};
    const kv_config config = probe_config(method, settings);
    const kv_shape shape = {.n_layers = 3, .layer = fake_layers, .n_experts = 8};
    const kv_limits limits = {4, 64, 512};
    ck_assert_int_eq(dev_open_cpu(&(dev_config){.isa = "ref", .n_threads = 1}, &d, NULL), ERR_OK);
    ck_assert_int_eq(kv_cache_open(d, &config, &shape, &limits, &cache, &info), ERR_BAD_CONFIG);
    ck_assert_str_eq(info.message, message);
    dev_close(d);
}

START_TEST(a_setting_out_of_range_is_named)
{
    expect_refusal("topk", (kv_route_settings){.k = 0},
                   "kv-routing-k: 0 is neither a share in (0, 1] nor a whole number");
    expect_refusal("topk", (kv_route_settings){.k = 2.5},
                   "kv-routing-k: 2.5 is neither a share in (0, 1] nor a whole number");
    expect_refusal("topk", (kv_route_settings){.k = NAN},
                   "kv-routing-k: nan is neither a share in (0, 1] nor a whole number");
    expect_refusal("certified", (kv_route_settings){.eps = -0.1},
                   "kv-routing-eps: -0.1 is outside [0, 1]");
    expect_refusal("adaptive", (kv_route_settings){.tau = 1.5},
                   "kv-routing-tau: 1.5 is outside [0, 1]");
}
END_TEST

static void settings_text(const char *method, kv_route_settings settings,
                          char text[KV_SETTINGS_BYTES])
{
    fake *f = fake_open(&(fake_options){.config = probe_config(method, settings)});
    kv_prefix_settings(f->cache, &f->cache->methods, text);
    fake_close(f);
}

START_TEST(prefixes_are_shared_under_settings_that_give_the_same_values)
{
    char full[KV_SETTINGS_BYTES], a[KV_SETTINGS_BYTES], b[KV_SETTINGS_BYTES];
    settings_text("full", LOSSY, full);
    settings_text("topk", (kv_route_settings){.k = 1}, a);
    ck_assert_str_eq(full, a);
    settings_text("certified", (kv_route_settings){.eps = 0}, a);
    ck_assert_str_eq(full, a);
    settings_text("adaptive", (kv_route_settings){.tau = 1}, a);
    ck_assert_str_eq(full, a);
    for (int method = 0; method < N_METHODS; method++) {
        settings_text(METHODS[method], LOSSY, a);
        ck_assert_str_ne(full, a);
        settings_text(METHODS[(method + 1) % N_METHODS], LOSSY, b);
        ck_assert_str_ne(a, b);
        settings_text(METHODS[method], (kv_route_settings){0.3, 0.3, 0.3}, b);
        ck_assert_str_ne(a, b);
    }
    settings_text("topk", LOSSY, a);
    settings_text("topk", (kv_route_settings){LOSSY.k, 0.1, 0.2}, b); /* it obeys k alone */
    ck_assert_str_eq(a, b);
}
END_TEST

START_TEST(boxes_are_counted_and_there_only_if_needed)
{
    uint64_t table_bytes[2];
    for (int lossy = 0; lossy < 2; lossy++) {
        const kv_route_settings settings = {.k = lossy == 1 ? 0.5 : 1};
        fake *f = fake_open(&(fake_options){.config = probe_config("topk", settings)});
        fake_seq s = fake_seq_open(f, (fake_ids){.seed = 1});
        fake_run(f, &s, 200, 50);
        const kv_pages *pages = kv_pool_pages(f->cache->pool);
        ck_assert_int_eq(pages->boxes != NULL, lossy);
        ck_assert_uint_eq(pages->box_bytes, lossy == 1 ? 2 * 16 * 4 : 0); /* of the widest keys */
        table_bytes[lossy] = fake_stats(f).table_bytes;
        ck_assert_uint_ge(table_bytes[lossy], fake_stats(f).pages_used * pages->box_bytes);
        fake_seq_close(f, &s, false);
        fake_close(f);
    }
    ck_assert_uint_gt(table_bytes[1], table_bytes[0]);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(no_query_misses_more_than_its_certificate),
    TEST_CASE(certificates_hold_where_slots_have_biases),
    TEST_CASE(who_reads_more_misses_less),
    TEST_CASE(certified_reads_what_its_eps_asks_for),
    TEST_CASE(sinks_are_known_before_pages),
    TEST_CASE(sinks_are_not_in_the_box_of_their_page),
    TEST_CASE(topk_reads_as_many_pages_as_it_may),
    TEST_CASE(hierarchical_looks_at_fewer_boxes_and_reads_no_more_pages),
    TEST_CASE(a_page_without_live_slots_is_never_chosen),
    TEST_CASE(topk_selects_what_quest_selects),
    TEST_CASE(where_nothing_is_read_before_the_largest_mass_comes_first),
    TEST_CASE(a_prompt_reads_everything_however_it_is_cut),
    TEST_CASE(where_a_block_lies_does_not_show_in_decode_steps),
    TEST_CASE(a_device_chooses_what_the_host_does),
    TEST_CASE(a_setting_out_of_range_is_named),
    TEST_CASE(prefixes_are_shared_under_settings_that_give_the_same_values),
    TEST_CASE(boxes_are_counted_and_there_only_if_needed),
    TEST_CASES_END,
};
