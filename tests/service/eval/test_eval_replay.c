/* Promises of service/eval/eval_run.h about prompts that are read again: their results are the engine's,
 * and depend on neither groups nor steps. */
#include "tests/service/engine_rig.h"
#include "tests/service/eval/eval_rig.h"
#include "tests/test_main.h"

#include <stdlib.h>
#include <string.h>

static const char MODEL_DIR[] = "tests/golden/mixtral-gqa-bf16"; /* the engine's rig has it, too */

enum { N_JOBS = 5, TOKENS_MAX = 320, NEW_MAX = 30 };

/* What the cache is to do. */
typedef struct methods {
    const char *scheduling, *compression;
    double budget;
} methods;

static const methods METHODS[] = {{"kvzip+adakv", "none", 0.3}, {"none", "kvzip,int4", 0.5}};

static void set_name(char **name, const char *value)
{
    free(*name);
    *name = strdup(value);
}

static void open_rig(const methods *x, const replay_text *text, eval_rig *er)
{
    eval_rig_open(MODEL_DIR, er);
    er->kv.page_tokens = 8;
    er->kv.window_tokens = 16;
    er->kv.sink_tokens = 4;
    er->kv.budget = x->budget;
    set_name(&er->kv.scheduling, x->scheduling);
    set_name(&er->kv.compression, x->compression);
    er->options.replay = text;
}

/* Greedy and forced ones. */
typedef struct job_set {
    uint32_t tokens[N_JOBS][TOKENS_MAX];
    uint32_t drawn[N_JOBS][NEW_MAX];
    eval_job jobs[N_JOBS];
} job_set;

static uint64_t make_jobs(const eval_rig *er, job_set *s)
{
    static const uint32_t n_tokens[N_JOBS] = {300, 20, 150, 90, 61};
    uint64_t n_prompts = 0;
    memset(s, 0, sizeof *s);
    for (uint32_t i = 0; i < N_JOBS; i++) {
        const bool is_greedy = i % 2 == 0;
        for (uint32_t t = 0; t < n_tokens[i]; t++)
            s->tokens[i][t] = (i * 131 + t * t * 7 + t) % er->n_vocab;
        s->jobs[i] = (eval_job){.tokens = s->tokens[i],
                                .n_tokens = n_tokens[i],
                                .n_prompt = is_greedy ? n_tokens[i] : n_tokens[i] / 2,
                                .n_new = is_greedy ? NEW_MAX : 0,
                                .drawn = s->drawn[i]};
        n_prompts += s->jobs[i].n_prompt;
    }
    return n_prompts;
}

static eval_cost run_set(const eval_rig *er, job_set *s)
{
    err_info info = {0};
    const uint64_t n_prompts = make_jobs(er, s);
    eval_run *r = eval_rig_run_open(er);
    ck_assert_msg(eval_run_jobs(r, s->jobs, N_JOBS, &info) == ERR_OK, "%s", info.message);
    const eval_cost cost = *eval_run_cost(r);
    ck_assert_uint_eq(cost.n_prompt_tokens, n_prompts); /* once */
    eval_run_close(r);
    return cost;
}

START_TEST(results_do_not_depend_on_groups_or_steps)
{
    static const uint32_t n_seqs[] = {1, 3, 50}, n_step[] = {7, 64, 512};
    static job_set first, other;
    for (size_t k = 0; k < 2; k++) {
        eval_rig er;
        open_rig(&METHODS[k], NULL, &er);
        (void)run_set(&er, &first);
        for (uint32_t i = 0; i < 9; i++) {
            er.options.n_seqs_max = n_seqs[i / 3];
            er.options.n_step_tokens_max = n_step[i % 3];
            (void)run_set(&er, &other);
            for (uint32_t j = 0; j < N_JOBS; j++) {
                ck_assert(other.jobs[j].is_done);
                ck_assert(first.jobs[j].nll == other.jobs[j].nll);
                ck_assert_mem_eq(first.drawn[j], other.drawn[j], sizeof first.drawn[j]);
            }
        }
        eval_rig_close(&er);
    }
}
END_TEST

START_TEST(a_greedy_job_draws_what_a_session_gets)
{
    static job_set s;
    for (size_t k = 0; k < 2; k++) {
        rig served;
        eval_rig er;
        replay_text text;
        rig_open(&(rig_options){.request_methods = true, .no_prefix_caching = true}, &served);
        ck_assert_int_eq(replay_text_init(&text, served.t, model_get_config(served.m)->n_vocab),
                         ERR_OK);
        ck_assert_uint_gt(text.n_order, 0);
        open_rig(&METHODS[k], &text, &er);
        (void)run_set(&er, &s);
        for (uint32_t j = 0; j < N_JOBS; j += 2) {
            uint32_t tokens[NEW_MAX];
            const wish w = {.prompt = s.tokens[j],
                            .n_prompt = s.jobs[j].n_prompt,
                            .max_tokens = NEW_MAX,
                            .scheduling = METHODS[k].scheduling,
                            .compression = METHODS[k].compression,
                            .budget = METHODS[k].budget};
            rig_run(&served, &w, tokens);
            ck_assert_uint_gt(s.jobs[j].n_drawn, 5);
            ck_assert_mem_eq(tokens, s.drawn[j], s.jobs[j].n_drawn * sizeof *tokens);
        }
        eval_rig_close(&er);
        rig_close(&served);
    }
}
END_TEST

START_TEST(a_prompt_that_the_model_does_not_hold_twice_is_an_error)
{
    static uint32_t tokens[1000], drawn[2];
    eval_job job = {.tokens = tokens, .n_tokens = 913, .n_prompt = 913, .n_new = 2, .drawn = drawn};
    eval_rig er;
    err_info info = {0};
    open_rig(&METHODS[0], NULL, &er);
    er.options.n_seq_tokens_max = 1000;
    eval_run *r = eval_rig_run_open(&er);
    ck_assert_int_eq(eval_run_jobs(r, &job, 1, &info), ERR_BAD_REQUEST);
    ck_assert_ptr_nonnull(strstr(info.message, "kv-scheduling: kvzip+adakv reads a prompt of 913"));
    job.n_new = 1; /* nothing is decoded, and nothing chosen */
    ck_assert_int_eq(eval_run_jobs(r, &job, 1, NULL), ERR_OK);
    eval_run_close(r);
    eval_rig_close(&er);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(results_do_not_depend_on_groups_or_steps),
    TEST_CASE(a_greedy_job_draws_what_a_session_gets),
    TEST_CASE(a_prompt_that_the_model_does_not_hold_twice_is_an_error),
    TEST_CASES_END,
};
