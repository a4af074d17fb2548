/* Promises of service/plan.h and plan_experts.h. Expected numbers are worked out by hand in the
 * comments, from the shapes that were published with the models; draws of experts are counted one by one
 * where there are few enough. */
#include "service/plan.h"
#include "service/plan_experts.h"
#include "service/plan_model.h"
#include "tests/test_main.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const model_config MIXTRAL = {.family = "mixtral",
                                     .n_layers = 32,
                                     .d_model = 4096,
                                     .n_heads = 32,
                                     .n_kv_heads = 8,
                                     .head_dim = 128,
                                     .v_dim = 128,
                                     .n_vocab = 32000,
                                     .n_experts = 8,
                                     .top_k = 2,
                                     .d_ffn = 14336,
                                     .n_positions = 32768,
                                     .stored_type = DTYPE_BF16};

/* Without its norms of q and k, 2 x 2048 numbers per layer, which are not Mixtral's. */
static const model_config OLMOE = {.family = "mixtral",
                                   .n_layers = 16,
                                   .d_model = 2048,
                                   .n_heads = 16,
                                   .n_kv_heads = 16,
                                   .head_dim = 128,
                                   .v_dim = 128,
                                   .n_vocab = 50304,
                                   .n_experts = 64,
                                   .top_k = 8,
                                   .d_ffn = 1024,
                                   .n_positions = 4096,
                                   .stored_type = DTYPE_BF16};

static kv_config settings(void)
{
    return (kv_config){.page_tokens = 32,
                       .window_tokens = 128,
                       .sink_tokens = 4,
                       .n_shards = 1,
                       .budget = 1,
                       .routing_k = 0.25,
                       .routing = (char *)(uintptr_t) "full",
                       .scheduling = (char *)(uintptr_t) "none",
                       .placement = (char *)(uintptr_t) "block",
                       .compression = (char *)(uintptr_t) "none",
                       .rewrite = (char *)(uintptr_t) "none"};
}

/* Of a published shape. */
typedef struct wish {
    const model_config *about;
    uint32_t n_tokens, n_seqs, n_ranks, n_redundant;
} wish;

static plan_input input_of(const wish *w)
{
    const model_config *about = w->about;
    const kv_config kv = settings();
    plan_kv_shape shape;
    plan_input in = {.n_layers = about->n_layers,
                     .d_model = about->d_model,
                     .n_heads = about->n_heads,
                     .head_dim = about->head_dim,
                     .n_experts = about->n_experts,
                     .top_k = about->top_k,
                     .n_tokens = w->n_tokens,
                     .n_seqs = w->n_seqs,
                     .n_ranks = w->n_ranks,
                     .n_redundant = w->n_redundant,
                     .page_tokens = kv.page_tokens,
                     .bandwidth = 1e12,
                     .link_bandwidth = 1e11,
                     .link_latency = 1e-5};
    ck_assert_int_eq(plan_weights_of(about, &in.weights, NULL), ERR_OK);
    ck_assert_int_eq(plan_kv_shape_init(about, NULL, &shape, NULL), ERR_OK);
    const plan_cache_input cache = {.config = &kv,
                                    .shape = &shape.shape,
                                    .n_tokens = w->n_tokens,
                                    .n_seqs = w->n_seqs,
                                    .n_step_tokens = 512,
                                    .n_ranks = w->n_ranks};
    ck_assert_int_eq(plan_cache_of(&cache, &in.cache, NULL), ERR_OK);
    plan_kv_shape_deinit(&shape);
    return in;
}

static plan_result plan_of(const wish *w)
{
    const plan_input in = input_of(w);
    plan_result out;
    ck_assert_int_eq(plan_make(&in, &out, NULL), ERR_OK);
    return out;
}

/* ---- weights ------------------------------------------------------------------------------------- */

START_TEST(the_weights_of_mixtral_are_those_that_were_published)
{
    plan_weights w;
    ck_assert_int_eq(plan_weights_of(&MIXTRAL, &w, NULL), ERR_OK);
    /* 3 x 4096 x 14336 numbers of 2 bytes. */
    ck_assert_uint_eq(w.expert_bytes, 352321536);
    /* Layer: q and o 4096 x 4096 each, k and v 1024 x 4096 each, router 8 x 4096, two norms of 4096:
     * 33554432 + 8388608 + 32768 + 8192 = 41984000; x 32 = 1343488000. Tables 2 x 32000 x 4096 =
     * 262144000; last norm 4096. In all 1605636096 numbers; with 256 experts of 176160768 the published
     * 46.70 thousand million. */
    ck_assert_uint_eq(w.replicated_bytes, 2 * 1605636096UL);
    ck_assert_uint_eq(w.replicated_bytes + 256 * w.expert_bytes, 2 * 46702792704UL);
    /* A step leaves the embedding out: 131072000 numbers. */
    ck_assert_uint_eq(w.step_bytes, 2 * (1605636096UL - 131072000));
    ck_assert_uint_eq(w.row_bytes, 8192);
}
END_TEST

START_TEST(tied_embeddings_are_held_once_and_read_as_the_head)
{
    model_config tied = MIXTRAL;
    plan_weights w;
    tied.tied_embeddings = true;
    ck_assert_int_eq(plan_weights_of(&tied, &w, NULL), ERR_OK);
    ck_assert_uint_eq(w.replicated_bytes, 2 * (1605636096UL - 131072000));
    ck_assert_uint_eq(w.step_bytes, w.replicated_bytes);
}
END_TEST

START_TEST(olmoe_reads_a_sixth_of_its_weights_for_one_token)
{
    plan_weights w;
    ck_assert_int_eq(plan_weights_of(&OLMOE, &w, NULL), ERR_OK);
    /* An expert 3 x 2048 x 1024 = 6291456 numbers. Layer: 4 x 2048 x 2048 + 64 x 2048 + 4096 = 16912384;
     * x 16 = 270598144; tables 2 x 50304 x 2048 = 206045184; norm 2048. */
    ck_assert_uint_eq(w.expert_bytes, 2 * 6291456);
    ck_assert_uint_eq(w.replicated_bytes, 2 * 476645376UL);
    const plan_result r = plan_of(&(wish){&OLMOE, 4096, 1, 1, 0});
    /* 270598144 + 103022592 + 2048 + 2048 (a row) + 16 x 8 x 6291456 numbers. */
    ck_assert_double_eq_tol(r.step.weight_bytes, 2 * 1178931200.0, 1);
}
END_TEST

/* ---- memory -------------------------------------------------------------------------------------- */

START_TEST(mixtral_on_eight_ranks_at_128k_has_an_eighth_of_the_cache_on_each)
{
    const plan_input in = input_of(&(wish){&MIXTRAL, 131072, 1, 8, 0});
    plan_result r;
    ck_assert_int_eq(plan_make(&in, &r, NULL), ERR_OK);
    /* 131072 bytes a token: 2 x 32 layers x 8 heads x 128 channels x 2 bytes. */
    ck_assert_uint_eq(in.cache.token_bytes, 131072);
    /* (131072 - 128) / 32 = 4092 blocks have left the ring, of which the first rank has 512: 512 x 256
     * heads = 131072 pages of 16 KiB, four to a slab. */
    ck_assert_uint_eq(in.cache.n_pages, 131072);
    ck_assert_uint_eq(in.cache.page_bytes, 2147483648UL);
    /* Ring: 5 blocks and 4 sinks of 131072 bytes a token; 2 bytes a layer and slot for experts; the struct, 32. */
    ck_assert_uint_eq(in.cache.ring_bytes, 164 * 131072 + 32 * 160 * 2 + 32);
    /* Staging: 512 tokens of the same, and their experts. */
    ck_assert_uint_eq(in.cache.staging_bytes, 512 * 131072 + 32 * 512 * 2);
    ck_assert_uint_eq(r.memory.experts_most, 1);
    ck_assert_uint_eq(r.memory.expert_bytes, 32 * 352321536UL);
    ck_assert_uint_eq(r.memory.total_bytes,
                      r.memory.replicated_bytes + r.memory.expert_bytes + r.memory.kv_bytes);
}
END_TEST

START_TEST(experts_that_ranks_do_not_divide_leave_one_rank_with_more)
{
    model_config five = MIXTRAL;
    five.n_experts = 5;
    const plan_result r = plan_of(&(wish){&five, 4096, 1, 3, 0});
    ck_assert_uint_eq(r.memory.experts_most, 2);
    ck_assert_uint_eq(r.memory.experts_least, 1);
    ck_assert_uint_eq(r.memory.expert_bytes, 2 * 32 * 352321536UL);
    ck_assert_uint_eq(r.memory.expert_bytes_least, 32 * 352321536UL);
    /* 2, 2 and 1 experts; of the 10 pairs two lie on one rank and are 2 there, the others 1 at most: 1.2. */
    ck_assert_double_eq_tol(r.step.experts_read_most, 1.2, 1e-12);
    const plan_result seven = plan_of(&(wish){&five, 4096, 1, 3, 2});
    ck_assert_uint_eq(seven.memory.experts_most, 3);
    ck_assert_uint_eq(seven.memory.experts_least, 2);
    const plan_result many = plan_of(&(wish){&five, 4096, 1, 7, 0});
    ck_assert_uint_eq(many.memory.experts_most, 1);
    ck_assert_uint_eq(many.memory.experts_least, 0);
}
END_TEST

START_TEST(replicas_that_no_rank_has_a_use_for_are_refused)
{
    err_info info = {0};
    plan_result r;
    plan_input in = input_of(&(wish){&MIXTRAL, 4096, 1, 2, 8});
    ck_assert_int_eq(plan_make(&in, &r, &info), ERR_OK);
    ck_assert_uint_eq(r.memory.experts_most, 8);
    in.n_redundant = 9;
    ck_assert_int_eq(plan_make(&in, &r, &info), ERR_BAD_CONFIG);
    ck_assert_ptr_nonnull(strstr(info.message, "num-redundant-experts: 9 is more than 8"));
    info = (err_info){0};
    in = input_of(&(wish){&MIXTRAL, 4096, 1, 1, 1});
    ck_assert_int_eq(plan_make(&in, &r, &info), ERR_BAD_CONFIG);
    ck_assert_ptr_nonnull(strstr(info.message, "num-redundant-experts: 1 is more than 0"));
}
END_TEST

START_TEST(sizes_that_overflow_are_an_error)
{
    plan_result r;
    plan_input in = input_of(&(wish){&MIXTRAL, 4096, 1, 2, 0});
    in.weights.expert_bytes = UINT64_MAX / 64;
    ck_assert_int_eq(plan_make(&in, &r, NULL), ERR_OVERFLOW);
    in.weights.expert_bytes = 1;
    in.cache.page_bytes = UINT64_MAX - 100;
    ck_assert_int_eq(plan_make(&in, &r, NULL), ERR_OVERFLOW);
}
END_TEST

START_TEST(the_papers_example_needs_24_gb_with_heads_of_its_own_for_every_query)
{
    /* A 7B-class model: 32 layers of 32 heads of 128 channels; 16 experts, 128K tokens, bf16. Experts do
     * not enter: 2 x 32 x 32 x 128 x 2 bytes x 131072 = 64 GiB. */
    model_config seven = MIXTRAL;
    seven.n_experts = 16;
    seven.n_kv_heads = 32;
    const plan_input all = input_of(&(wish){&seven, 131072, 1, 1, 0});
    ck_assert_uint_eq(all.cache.token_bytes * 131072, 68719476736UL);
    ck_assert_uint_gt(all.cache.page_bytes, 24000000000UL);
    /* Of four heads to one of the cache, 16 GiB: less than it says. */
    seven.n_kv_heads = 8;
    const plan_input grouped = input_of(&(wish){&seven, 131072, 1, 1, 0});
    ck_assert_uint_eq(grouped.cache.token_bytes * 131072, 17179869184UL);
    ck_assert_uint_lt(grouped.cache.page_bytes, 24000000000UL);
}
END_TEST

/* ---- experts ------------------------------------------------------------------------------------- */

typedef struct tally {
    uint32_t n_sets, n_read, n_read_most; /* sums over all ways to draw */
} tally;

/* All pairs of sets of two of `n` experts for two tokens. */
static tally count_draws(uint32_t n, uint32_t n_ranks)
{
    tally t = {0};
    for (uint32_t a = 0; a < 1U << n; a++) {
        for (uint32_t b = 0; b < 1U << n; b++) {
            if (__builtin_popcount(a) != 2 || __builtin_popcount(b) != 2) continue;
            uint32_t most = 0, first = 0;
            for (uint32_t r = 0; r < n_ranks; r++) {
                const uint32_t n_own = n / n_ranks + (r < n % n_ranks);
                const uint32_t own = ((1U << n_own) - 1) << first;
                const uint32_t n_read = (uint32_t)__builtin_popcount((a | b) & own);
                if (n_read > most) most = n_read;
                first += n_own;
            }
            t.n_sets++;
            t.n_read += (uint32_t)__builtin_popcount(a | b);
            t.n_read_most += most;
        }
    }
    return t;
}

START_TEST(expected_experts_are_the_mean_over_all_draws)
{
    for (uint32_t n = 2; n <= 7; n++) {
        for (uint32_t n_ranks = 1; n_ranks <= n + 1; n_ranks++) {
            const plan_draw draw = {.n_experts = n, .top_k = 2, .n_tokens = 2, .n_ranks = n_ranks};
            const tally t = count_draws(n, n_ranks);
            double most;
            ck_assert_int_eq(plan_experts_read_most(&draw, &most), ERR_OK);
            ck_assert_double_eq_tol(plan_experts_read(&draw), (double)t.n_read / t.n_sets, 1e-9);
            ck_assert_double_eq_tol(most, (double)t.n_read_most / t.n_sets, 1e-9);
        }
    }
}
END_TEST

START_TEST(published_shapes_read_what_is_known_of_them)
{
    double most;
    /* Two of eight, four to a rank: both on one rank in 2 x C(4, 2) of C(8, 2) draws, 12 / 28; 1 + 3 / 7. */
    const plan_draw mixtral = {.n_experts = 8, .top_k = 2, .n_tokens = 1, .n_ranks = 2};
    ck_assert_int_eq(plan_experts_read_most(&mixtral, &most), ERR_OK);
    ck_assert_double_eq_tol(most, 10.0 / 7, 1e-12);
    /* 64 (1 - (7 / 8)^8) = 42.0 */
    const plan_draw olmoe = {.n_experts = 64, .top_k = 8, .n_tokens = 8, .n_ranks = 8};
    ck_assert_double_eq_tol(plan_experts_read(&olmoe), 42.0, 0.05);
    /* Of one token, eight of 64 over eight ranks: 2.5 on the fullest. */
    const plan_draw one = {.n_experts = 64, .top_k = 8, .n_tokens = 1, .n_ranks = 8};
    ck_assert_int_eq(plan_experts_read_most(&one, &most), ERR_OK);
    ck_assert_double_eq_tol(most, 2.5, 0.05);
    /* Everything, sooner or later. */
    const plan_draw many = {.n_experts = 1024, .top_k = 16, .n_tokens = 4096, .n_ranks = 3};
    ck_assert_int_eq(plan_experts_read_most(&many, &most), ERR_OK);
    ck_assert_double_eq_tol(most, 342, 1e-6);
}
END_TEST

/* ---- a step -------------------------------------------------------------------------------------- */

START_TEST(collectives_receive_what_the_scheme_says)
{
    /* 4 bytes x 32 heads x 129 x 7 others; of 4096 sums, 7 slices of 512 twice, 4 bytes each. */
    const plan_result r = plan_of(&(wish){&MIXTRAL, 4096, 3, 8, 0});
    ck_assert_uint_eq(r.step.gather.bytes_per_token, 115584);
    ck_assert_uint_eq(r.step.gather.n_per_step, 32);
    ck_assert_uint_eq(r.step.reduce.bytes_per_token, 28672);
    ck_assert_uint_eq(r.step.reduce.n_per_step, 32);
    /* 32 calls of 10 us, and 3 tokens' bytes at 1e11 a second. */
    ck_assert_double_eq_tol(r.step.gather.seconds_per_step, 32 * (1e-5 + 3 * 115584e-11), 1e-12);
    /* Three ranks: slices of 1366, 1365 and 1365. The first receives 2 x 1366 and 2730. */
    const plan_result three = plan_of(&(wish){&MIXTRAL, 4096, 1, 3, 0});
    ck_assert_uint_eq(three.step.reduce.bytes_per_token, 4 * (2 * 1366 + 2730));
    const plan_result one = plan_of(&(wish){&MIXTRAL, 4096, 1, 1, 0});
    ck_assert_uint_eq(one.step.gather.n_per_step + one.step.reduce.n_per_step, 0);
    ck_assert_uint_eq(one.step.gather.bytes_per_token + one.step.reduce.bytes_per_token, 0);
}
END_TEST

START_TEST(one_rank_is_as_fast_as_its_bytes)
{
    const plan_result r = plan_of(&(wish){&MIXTRAL, 4096, 1, 1, 0});
    /* Dense 1474564096 + a row of 4096 + 64 experts of 176160768, in numbers of 2 bytes; 4097 entries of 131072 bytes. */
    const double bytes = 2 * (1474564096.0 + 4096 + 64 * 176160768.0) + 4097 * 131072.0;
    ck_assert_double_eq_tol(r.step.weight_bytes + r.step.kv_bytes, bytes, 1);
    ck_assert_double_eq_tol(r.step.bound_tokens_per_second, 1e12 / bytes, 1e-9);
    ck_assert_double_eq_tol(r.step.predicted_tokens_per_second, 1e12 / bytes, 1e-9);
    ck_assert_double_eq_tol(r.step.one_rank_tokens_per_second, 1e12 / bytes, 1e-9);
}
END_TEST

START_TEST(the_prediction_is_the_fullest_rank_and_its_collectives)
{
    const plan_result r = plan_of(&(wish){&MIXTRAL, 4096, 1, 2, 0});
    const plan_step *s = &r.step;
    const double dense = 2 * (1474564096.0 + 4096), expert = 352321536;
    ck_assert_double_eq_tol(s->weight_bytes, dense + 32 * expert, 1);
    ck_assert_double_eq_tol(s->weight_bytes_most, dense + 32 * expert * 10 / 7, 1);
    /* 124 blocks have left the ring, 62 for each rank; the first one's has the 4 sinks, which are read
     * with 129 recent ones at home. */
    ck_assert_double_eq_tol(s->kv_bytes, 4097 * 131072.0 / 2, 1);
    ck_assert_double_eq_tol(s->kv_bytes_most, (62 * 32 - 4 + 133) * 131072.0, 131072);
    const double seconds = (s->weight_bytes_most + s->kv_bytes_most) / 1e12 +
                           s->gather.seconds_per_step + s->reduce.seconds_per_step;
    ck_assert_double_eq_tol(s->predicted_tokens_per_second, 1 / seconds, 1e-9);
    ck_assert_double_lt(s->predicted_tokens_per_second, s->bound_tokens_per_second);
}
END_TEST

/* ---- the paper ----------------------------------------------------------------------------------- */

START_TEST(the_papers_best_page_is_32_and_the_corrected_one_4)
{
    const plan_paper_input in = {.n_tokens = 131072,
                                 .n_ranks = 8,
                                 .n_experts = 16,
                                 .top_k = 2,
                                 .pages_kept = 16,
                                 .page_tokens = 32,
                                 .channels = 1024,
                                 .compression = 1,
                                 .token_bytes = 4096,
                                 .overhead_bytes = 64};
    plan_paper p;
    plan_paper_of(&in, &p);
    ck_assert_double_eq(p.paper_page_tokens, 32);
    ck_assert_double_eq(p.page_tokens, 4);
    /* 16384 + 8192 tokens, against 16 x 131072; one owner 16384, copies with both experts 32768. */
    ck_assert_double_eq(p.paper_tokens, 24576);
    ck_assert_double_eq(p.paper_tokens_before, 2097152);
    ck_assert_double_eq(p.tokens, 16384);
    ck_assert_double_eq(p.tokens_before, 131072);
    ck_assert_double_eq(p.tokens_replicated, 32768);
    /* 2048 x (512 + 512), and at its best page 4096 x sqrt(16 x 16384): the same. */
    ck_assert_double_eq(p.paper_elements, 2097152);
    ck_assert_double_eq(p.paper_elements_least, 2097152);
    /* 4096 x 16384 + 16 x 32 x 4096 + 64 x 512; least 4096 x 16384 + 2 x sqrt(64 x 16384 x 16 x 4096). */
    ck_assert_double_eq(p.bytes, 67108864.0 + 2097152 + 32768);
    ck_assert_double_eq(p.bytes_least, 67108864.0 + 524288);
    ck_assert_double_eq(p.paper_share_read, 0.125);
}
END_TEST

/* One of each kind of layer that a family may have. */
START_TEST(weights_of_every_family_add_up_to_its_parameters)
{
    static const char *const fixtures[] = {
        "mixtral-gqa-bf16",         "olmoe-clip-f32",      "qwen2_moe-dense-f32",
        "qwen2_moe-window-bf16",    "qwen3_moe-dense-f32", "granitemoe-tied-f16",
        "granitemoeshared-odd-f32", "phimoe-base-bf16",    "gpt_oss-base-bf16"};
    for (size_t i = 0; i < sizeof fixtures / sizeof fixtures[0]; i++) {
        char dir[128];
        model_config c;
        plan_weights weights;
        plan_kv_shape kv;
        err_info info = {0};
        uint64_t n_experts = 0;
        (void)snprintf(dir, sizeof dir, "tests/golden/%s", fixtures[i]);
        ck_assert_msg(model_config_read(dir, &c, &info) == ERR_OK, "%s", info.message);
        ck_assert(plan_weights_of(&c, &weights, &info) == ERR_OK);
        ck_assert(plan_kv_shape_init(&c, dir, &kv, &info) == ERR_OK);
        for (uint32_t l = 0; l < c.n_layers; l++)
            n_experts += kv.shape.layer[l].has_router ? c.n_experts : 0;
        for (uint32_t l = 0; l < c.n_layers; l++)
            ck_assert_ptr_eq(kv.shape.layer[l].sink_logit, kv.sinks); /* there are no weights */
        ck_assert((kv.sinks != NULL) == (strcmp(c.family, "gpt_oss") == 0));
        const uint64_t biases = c.activation == MOE_CLAMPED ? 2 * c.d_ffn + c.d_model : 0;
        ck_assert_uint_eq(weights.expert_bytes, (3 * (uint64_t)c.d_ffn * c.d_model + biases) *
                                                    dtype_bytes(c.stored_type));
        ck_assert_uint_eq(weights.replicated_bytes + n_experts * weights.expert_bytes,
                          c.n_params * dtype_bytes(c.stored_type));
        plan_kv_shape_deinit(&kv);
    }
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(the_weights_of_mixtral_are_those_that_were_published),
    TEST_CASE(tied_embeddings_are_held_once_and_read_as_the_head),
    TEST_CASE(olmoe_reads_a_sixth_of_its_weights_for_one_token),
    TEST_CASE(mixtral_on_eight_ranks_at_128k_has_an_eighth_of_the_cache_on_each),
    TEST_CASE(experts_that_ranks_do_not_divide_leave_one_rank_with_more),
    TEST_CASE(replicas_that_no_rank_has_a_use_for_are_refused),
    TEST_CASE(sizes_that_overflow_are_an_error),
    TEST_CASE(the_papers_example_needs_24_gb_with_heads_of_its_own_for_every_query),
    TEST_CASE(expected_experts_are_the_mean_over_all_draws),
    TEST_CASE(published_shapes_read_what_is_known_of_them),
    TEST_CASE(collectives_receive_what_the_scheme_says),
    TEST_CASE(one_rank_is_as_fast_as_its_bytes),
    TEST_CASE(the_prediction_is_the_fullest_rank_and_its_collectives),
    TEST_CASE(the_papers_best_page_is_32_and_the_corrected_one_4),
    TEST_CASE(weights_of_every_family_add_up_to_its_parameters),
    TEST_CASES_END,
};
