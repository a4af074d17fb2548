/* Promises of service/engine.h: what a session gets, whoever runs beside it. Pressure on the queue and
 * the pool is in test_engine_pressure.c.
 *
 * The linker wraps the allocator, so that allocations within a step are counted, and sampler_run, so
 * that one seed meets bad logits. */
#include "tests/service/engine_rig.h"
#include "tests/test_main.h"

#include "base/clock.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { TOKENS_MAX = 512, BAD_SEED = 666 };

/* ---- wrapped functions ---------------------------------------------------------------------------- */

static atomic_bool is_in_step;
static atomic_uint n_allocations;

static void note_allocation(void)
{
    if (atomic_load_explicit(&is_in_step, memory_order_relaxed))
        atomic_fetch_add(&n_allocations, 1);
}

void *__real_malloc(size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__wrap_malloc(size_t bytes)
{
    note_allocation();
    return __real_malloc(bytes);
}

void *__real_calloc(size_t n, size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes)
{
    note_allocation();
    return __real_calloc(n, bytes);
}

void *__real_realloc(void *old, size_t bytes);
void *__wrap_realloc(void *old, size_t bytes);
void *__wrap_realloc(void *old, size_t bytes)
{
    note_allocation();
    return __real_realloc(old, bytes);
}

void *__real_aligned_alloc(size_t alignment, size_t bytes);
void *__wrap_aligned_alloc(size_t alignment, size_t bytes);
void *__wrap_aligned_alloc(size_t alignment, size_t bytes)
{
    note_allocation();
    return __real_aligned_alloc(alignment, bytes);
}

int __real_posix_memalign(void **out, size_t alignment, size_t bytes);
int __wrap_posix_memalign(void **out, size_t alignment, size_t bytes);
int __wrap_posix_memalign(void **out, size_t alignment, size_t bytes)
{
    note_allocation();
    return __real_posix_memalign(out, alignment, bytes);
}

/* What the cache was told of rows: the engine's thread writes, tests read. */
static _Atomic uint32_t shortest_decode = UINT32_MAX, longest_prompt, n_single_chunks;

/* A step begins once its pages are reserved and ends when it is counted. */
err_t __real_kv_step_begin(kv_cache *cache, const kv_row *rows, uint32_t n_rows);
err_t __wrap_kv_step_begin(kv_cache *cache, const kv_row *rows, uint32_t n_rows);
err_t __wrap_kv_step_begin(kv_cache *cache, const kv_row *rows, uint32_t n_rows)
{
    for (uint32_t r = 0; r < n_rows; r++) {
        const uint32_t length = kv_seq_length(rows[r].seq);
        if (rows[r].is_decode && length < shortest_decode) shortest_decode = length;
        if (!rows[r].is_decode && length + rows[r].n_tokens > longest_prompt)
            longest_prompt = length + rows[r].n_tokens;
        if (!rows[r].is_decode && length > 0 && rows[r].n_tokens == 1) n_single_chunks++;
    }
    const err_t err = __real_kv_step_begin(cache, rows, n_rows);
    if (err == ERR_OK) atomic_store(&is_in_step, true);
    return err;
}

void __real_metrics_add(metrics *m, metric_counter counter, uint64_t n);
void __wrap_metrics_add(metrics *m, metric_counter counter, uint64_t n);
void __wrap_metrics_add(metrics *m, metric_counter counter, uint64_t n)
{
    if (counter == METRIC_STEPS) atomic_store(&is_in_step, false);
    __real_metrics_add(m, counter, n);
}

void __real_sampler_run(const sampler_params *params, const sampler_state *state,
                        const sampler_input *in, sampler_result *out);
void __wrap_sampler_run(const sampler_params *params, const sampler_state *state,
                        const sampler_input *in, sampler_result *out);
void __wrap_sampler_run(const sampler_params *params, const sampler_state *state,
                        const sampler_input *in, sampler_result *out)
{
    __real_sampler_run(params, state, in, out);
    if (params->seed == BAD_SEED && in->position == 3) out->is_bad = true;
}

/* ---- results -------------------------------------------------------------------------------------- */

static void expect_tokens(const session *s, const uint32_t *tokens, uint32_t n_tokens)
{
    ck_assert_uint_eq(session_read(s).n_tokens, n_tokens);
    for (uint32_t i = 0; i < n_tokens; i++)
        ck_assert_msg(session_tokens(s)[i] == tokens[i], "token %u is %u, not %u", i,
                      session_tokens(s)[i], tokens[i]);
}

START_TEST(a_session_gets_the_tokens_it_asked_for)
{
    rig r;
    guest g;
    rig_open(&(rig_options){0}, &r);
    guest_make(&r, &(wish){.max_tokens = 7}, &g);
    guest_submit(&r, &g);
    ck_assert_int_eq(guest_wait(&g), FINISH_LENGTH);
    ck_assert_uint_eq(session_read(g.s).n_tokens, 7);
    ck_assert_uint_gt(session_read(g.s).n_text_bytes, 0);
    const session_times times = session_get_times(g.s);
    ck_assert_uint_le(times.arrival_ns, times.scheduled_ns);
    ck_assert_uint_le(times.scheduled_ns, times.first_token_ns);
    ck_assert_uint_le(times.first_token_ns, times.last_token_ns);
    ck_assert_uint_le(times.last_token_ns, times.finish_ns);
    ck_assert_uint_eq(metrics_read(r.counted, METRIC_GENERATION_TOKENS), 7);
    ck_assert_uint_eq(metrics_read(r.counted, METRIC_PROMPT_TOKENS), 20);
    ck_assert(engine_is_alive(r.e));
    guest_leave(&g);
    rig_close(&r);
}
END_TEST

START_TEST(tokens_are_the_same_alone_and_in_a_crowd)
{
    enum { N_GUESTS = 12 };
    rig r;
    static guest guests[N_GUESTS];
    static uint32_t alone[N_GUESTS][TOKENS_MAX];
    wish wishes[N_GUESTS];
    for (uint32_t i = 0; i < N_GUESTS; i++) {
        wishes[i] = (wish){.n_prompt = 1 + i * 17,
                           .max_tokens = 20 + i * 3,
                           .prompt_kind = i,
                           .seed = i % 3 == 0 ? 0 : i,
                           .repetition_penalty = i % 4 == 1 ? 1.3f : 0};
    }
    rig_open(&(rig_options){.no_prefix_caching = true}, &r);
    for (uint32_t i = 0; i < N_GUESTS; i++)
        rig_run(&r, &wishes[i], alone[i]);
    for (uint32_t i = 0; i < N_GUESTS; i++)
        guest_make(&r, &wishes[i], &guests[i]);
    for (uint32_t i = 0; i < N_GUESTS; i++)
        guest_submit(&r, &guests[i]);
    for (uint32_t i = 0; i < N_GUESTS; i++) {
        ck_assert_int_eq(guest_wait(&guests[i]), FINISH_LENGTH);
        expect_tokens(guests[i].s, alone[i], wishes[i].max_tokens);
        guest_leave(&guests[i]);
    }
    rig_close(&r);
}
END_TEST

START_TEST(tokens_do_not_depend_on_how_the_prompt_is_cut)
{
    static const uint32_t budgets[] = {8, 13, 64, 500};
    uint32_t first[TOKENS_MAX], tokens[TOKENS_MAX];
    const wish w = {.n_prompt = 301, .max_tokens = 30, .seed = 5};
    for (int i = 0; i < 4; i++) {
        rig r;
        rig_open(&(rig_options){.n_batched_tokens_max = budgets[i]}, &r);
        const uint32_t n = rig_run(&r, &w, i == 0 ? first : tokens);
        if (i > 0) ck_assert_mem_eq(first, tokens, n * sizeof *tokens);
        rig_close(&r);
    }
}
END_TEST

START_TEST(the_cache_knows_a_prompt_from_a_decode_step)
{
    rig r;
    uint32_t tokens[TOKENS_MAX];
    rig_open(&(rig_options){.n_batched_tokens_max = 8, .no_prefix_caching = true}, &r);
    rig_run(&r, &(wish){.n_prompt = 33, .max_tokens = 5}, tokens); /* its last chunk is one token */
    rig_wait_idle(&r);
    ck_assert_uint_eq(shortest_decode, 33);
    ck_assert_uint_eq(longest_prompt, 33);
    ck_assert_uint_eq(n_single_chunks, 1);
    rig_close(&r);
}
END_TEST

START_TEST(a_cached_prompt_gives_the_same_tokens)
{
    rig r;
    uint32_t fresh[TOKENS_MAX], cached[TOKENS_MAX];
    guest g;
    const wish w = {.n_prompt = 200, .max_tokens = 30, .seed = 9};
    rig_open(&(rig_options){0}, &r);
    rig_run(&r, &w, fresh);
    guest_make(&r, &w, &g);
    guest_submit(&r, &g);
    ck_assert_int_eq(guest_wait(&g), FINISH_LENGTH);
    ck_assert_uint_ge(session_cached_tokens(g.s), 190);
    memcpy(cached, session_tokens(g.s), 30 * sizeof *cached);
    ck_assert_mem_eq(fresh, cached, 30 * sizeof *fresh);
    guest_leave(&g);
    rig_close(&r);
}
END_TEST

START_TEST(siblings_share_their_prompt)
{
    enum { N_GUESTS = 5 };
    rig r;
    static guest guests[N_GUESTS];
    session *sessions[N_GUESTS];
    err_info info = {0};
    rig_open(&(rig_options){.n_batched_tokens_max = 32}, &r);
    for (uint32_t i = 0; i < N_GUESTS; i++) {
        guest_make(&r, &(wish){.n_prompt = 150, .group = 1, .seed = 1 + i}, &guests[i]);
        sessions[i] = guests[i].s;
    }
    ck_assert_int_eq(engine_submit(r.e, sessions, N_GUESTS, &info), ERR_OK);
    for (uint32_t i = 0; i < N_GUESTS; i++) {
        ck_assert_int_eq(guest_wait(&guests[i]), FINISH_LENGTH);
        if (i == 0) {
            ck_assert_uint_eq(session_cached_tokens(guests[i].s), 0);
        } else {
            ck_assert_uint_ge(session_cached_tokens(guests[i].s), 140);
        }
        guest_leave(&guests[i]);
    }
    rig_close(&r);
}
END_TEST

START_TEST(a_scored_prompt_has_the_log_probabilities_of_its_generation)
{
    rig r;
    guest g, scored;
    uint32_t text[TOKENS_MAX];
    rig_open(&(rig_options){.n_batched_tokens_max = 33}, &r);
    guest_make(&r, &(wish){.n_prompt = 50, .max_tokens = 100, .with_logprobs = true}, &g);
    guest_submit(&r, &g);
    ck_assert_int_eq(guest_wait(&g), FINISH_LENGTH);
    memcpy(text, session_get_spec(g.s)->prompt, 50 * sizeof *text);
    memcpy(text + 50, session_tokens(g.s), 100 * sizeof *text);
    guest_make(&r, &(wish){.n_prompt = 150, .prompt = text, .score_only = true}, &scored);
    guest_submit(&r, &scored);
    ck_assert_int_eq(guest_wait(&scored), FINISH_LENGTH);
    ck_assert_uint_eq(session_read(scored.s).n_prompt_scored, 150);
    ck_assert_uint_eq(session_read(scored.s).n_tokens, 0);
    ck_assert_uint_eq(session_cached_tokens(scored.s), 0);
    for (uint32_t i = 0; i < 100; i++) {
        const session_logprob a = session_output_logprob(g.s, i);
        const session_logprob b = session_prompt_logprob(scored.s, 50 + i);
        ck_assert_uint_eq(a.token, b.token);
        ck_assert_msg(a.logprob == b.logprob, "token %u: %.9g, %.9g", i, (double)a.logprob,
                      (double)b.logprob);
        ck_assert_uint_eq(b.n_top, 2);
        ck_assert(b.top[0].logprob == b.logprob); /* greedy: the first is the one */
    }
    guest_leave(&g);
    guest_leave(&scored);
    rig_close(&r);
}
END_TEST

START_TEST(bad_logits_end_their_own_session_only)
{
    rig r;
    guest bad, good;
    uint32_t alone[TOKENS_MAX];
    rig_open(&(rig_options){0}, &r);
    const wish w = {.max_tokens = 40, .seed = 2};
    rig_run(&r, &w, alone);
    guest_make(&r, &(wish){.max_tokens = 40, .seed = BAD_SEED, .prompt_kind = 1}, &bad);
    guest_make(&r, &w, &good);
    guest_submit(&r, &bad);
    guest_submit(&r, &good);
    ck_assert_int_eq(guest_wait(&bad), FINISH_ERROR);
    ck_assert_uint_eq(session_read(bad.s).n_tokens, 3);
    ck_assert_int_eq(guest_wait(&good), FINISH_LENGTH);
    expect_tokens(good.s, alone, 40);
    guest_leave(&bad);
    guest_leave(&good);
    rig_close(&r);
}
END_TEST

START_TEST(nothing_is_allocated_within_a_step)
{
    enum { N_GUESTS = 6 };
    rig r;
    static guest guests[N_GUESTS];
    rig_open(&(rig_options){.n_batched_tokens_max = 40, .request_methods = true}, &r);
    for (uint32_t i = 0; i < N_GUESTS; i++) { /* the prompt of every second one is read again */
        guest_make(&r,
                   &(wish){.scheduling = i % 2 == 0 ? "kvzip" : NULL,
                           .budget = 0.5,
                           .n_prompt = 30 + 40 * i,
                           .max_tokens = 60,
                           .prompt_kind = i,
                           .seed = i,
                           .with_logprobs = true,
                           .repetition_penalty = 1.1f},
                   &guests[i]);
    }
    session *sessions[N_GUESTS];
    for (uint32_t i = 0; i < N_GUESTS; i++)
        sessions[i] = guests[i].s;
    atomic_store(&n_allocations, 0);
    const err_t err = engine_submit(r.e, sessions, N_GUESTS, NULL);
    for (uint32_t i = 0; i < N_GUESTS && err == ERR_OK; i++)
        guest_wait(&guests[i]); /* this thread must not allocate meanwhile, and Check's macros do */
    ck_assert_int_eq(err, ERR_OK);
    ck_assert_uint_eq(atomic_load(&n_allocations), 0);
    for (uint32_t i = 0; i < N_GUESTS; i++)
        guest_leave(&guests[i]);
    ck_assert_uint_gt(metrics_read(r.counted, METRIC_STEPS), 50);
    rig_close(&r);
}
END_TEST

START_TEST(a_prompt_of_one_token_runs)
{
    rig r;
    uint32_t tokens[TOKENS_MAX];
    guest g;
    rig_open(&(rig_options){0}, &r);
    ck_assert_uint_eq(rig_run(&r, &(wish){.n_prompt = 1, .max_tokens = 1}, tokens), 1);
    guest_make(&r, &(wish){.n_prompt = 1, .score_only = true}, &g);
    guest_submit(&r, &g);
    ck_assert_int_eq(guest_wait(&g), FINISH_LENGTH);
    ck_assert_uint_eq(session_read(g.s).n_prompt_scored, 1);
    guest_leave(&g);
    rig_close(&r);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(a_session_gets_the_tokens_it_asked_for),
    TEST_CASE(tokens_are_the_same_alone_and_in_a_crowd),
    TEST_CASE(tokens_do_not_depend_on_how_the_prompt_is_cut),
    TEST_CASE(the_cache_knows_a_prompt_from_a_decode_step),
    TEST_CASE(a_cached_prompt_gives_the_same_tokens),
    TEST_CASE(siblings_share_their_prompt),
    TEST_CASE(a_scored_prompt_has_the_log_probabilities_of_its_generation),
    TEST_CASE(bad_logits_end_their_own_session_only),
    TEST_CASE(nothing_is_allocated_within_a_step),
    TEST_CASE(a_prompt_of_one_token_runs),
    TEST_CASES_END};
