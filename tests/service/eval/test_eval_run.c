/* Promises of service/eval/eval_run.h, with real models. Settings are exact here, so equal means ==. */
#include "model/safetensors.h"
#include "model/sampler.h"
#include "tests/service/eval/eval_rig.h"
#include "tests/test_main.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The linker sends model_logits through here, so that bad logits can be had from a good model. */
static int n_until_bad = -1; /* calls that are still good; -1: all */
static float bad_value;

void __real_model_logits(model *m, const uint32_t *rows, uint32_t n_rows, float *logits);
void __wrap_model_logits(model *m, const uint32_t *rows, uint32_t n_rows, float *logits);
void __wrap_model_logits(model *m, const uint32_t *rows, uint32_t n_rows, float *logits)
{
    __real_model_logits(m, rows, n_rows, logits);
    if (n_until_bad >= 0 && n_until_bad-- == 0) logits[5] = bad_value;
}

static const char *const fixtures[] = {
    "tests/golden/mixtral-base-f32",    "tests/golden/mixtral-gqa-bf16",
    "tests/golden/mixtral-window-f16",  "tests/golden/mixtral-tied-bf16",
    "tests/golden/mixtral-sharded-f16", "tests/golden/mixtral-odd-f32"};
enum { N_FIXTURES = sizeof fixtures / sizeof fixtures[0] };

/* ---- a set of jobs -------------------------------------------------------------------------------- */

enum { N_JOBS = 7, TOKENS_MAX = 200, NEW_MAX = 24 };

/* Forced and greedy ones of many lengths. */
typedef struct job_set {
    uint32_t tokens[N_JOBS][TOKENS_MAX];
    uint32_t drawn[N_JOBS][NEW_MAX];
    eval_job jobs[N_JOBS];
} job_set;

static void make_jobs(const eval_rig *rig, job_set *s)
{
    static const uint32_t n_tokens[N_JOBS] = {90, 33, 2, 200, 17, 64, 1};
    static const uint32_t n_new[N_JOBS] = {0, 24, 0, 0, 9, 0, 1};
    memset(s, 0, sizeof *s);
    for (uint32_t i = 0; i < N_JOBS; i++) {
        fill_tokens(rig, i, n_tokens[i], s->tokens[i]);
        s->jobs[i] = (eval_job){.tokens = s->tokens[i],
                                .n_tokens = n_tokens[i],
                                .n_prompt = n_new[i] > 0 ? n_tokens[i] : (n_tokens[i] + 1) / 2,
                                .n_new = n_new[i],
                                .drawn = s->drawn[i]};
    }
}

static void same_results(const job_set *a, const job_set *b)
{
    for (uint32_t i = 0; i < N_JOBS; i++) {
        ck_assert(a->jobs[i].is_done);
        ck_assert(b->jobs[i].is_done);
        ck_assert_uint_eq(a->jobs[i].n_scored, b->jobs[i].n_scored);
        ck_assert_msg(a->jobs[i].nll == b->jobs[i].nll, "job %u: %.17g and %.17g", i,
                      a->jobs[i].nll, b->jobs[i].nll);
        ck_assert_uint_eq(a->jobs[i].n_drawn, b->jobs[i].n_drawn);
        ck_assert_mem_eq(a->drawn[i], b->drawn[i], sizeof a->drawn[i]);
    }
}

static eval_cost run_set(const eval_rig *rig, job_set *s)
{
    make_jobs(rig, s);
    eval_run *r = eval_rig_run_open(rig);
    must_run(r, s->jobs, N_JOBS);
    const eval_cost cost = *eval_run_cost(r);
    eval_run_close(r);
    return cost;
}

/* ---- results --------------------------------------------------------------------------------------- */

/* The whole sequence in one step of a cache of its own, and the sum of what it says of tokens behind the prompt. */
static double plain_nll(const eval_rig *rig, const eval_job *job)
{
    const uint32_t n = job->n_tokens;
    kv_cache *cache;
    kv_seq *seq;
    uint32_t positions[TOKENS_MAX];
    double nll = 0;
    const kv_limits limits = {1, n, n};
    ck_assert_int_eq(
        kv_cache_open(rig->d, &rig->kv, model_get_kv_shape(rig->m), &limits, &cache, NULL), ERR_OK);
    ck_assert_int_eq(kv_seq_open(cache, &(kv_seq_options){.salt = ""}, &seq), ERR_OK);
    for (uint32_t i = 0; i < n; i++)
        positions[i] = i;
    float *const logits = calloc(rig->n_vocab, sizeof *logits);
    ck_assert_ptr_nonnull(logits);
    const kv_row row = {.seq = seq, .n_tokens = n};
    ck_assert_int_eq(kv_step_begin(cache, &row, 1), ERR_OK);
    model_forward(rig->m, cache,
                  &(model_batch){.tokens = job->tokens, .positions = positions, .n_tokens = n});
    kv_step_end(cache);
    for (uint32_t i = job->n_prompt + 1; i < n; i++) {
        sampler_result score;
        model_logits(rig->m, &(uint32_t){i - 1}, 1, logits);
        sampler_score(logits, rig->n_vocab, job->tokens[i], 0, &score);
        nll -= (double)score.logprob;
    }
    free(logits);
    kv_seq_close(seq, NULL);
    kv_cache_close(cache);
    return nll;
}

START_TEST(forced_nll_is_that_of_one_forward_over_the_whole)
{
    static job_set s;
    for (uint32_t f = 0; f < N_FIXTURES; f++) {
        eval_rig rig;
        eval_rig_open(fixtures[f], &rig);
        (void)run_set(&rig, &s);
        for (uint32_t i = 0; i < N_JOBS; i++) {
            const eval_job *job = &s.jobs[i];
            if (job->n_new > 0) continue;
            ck_assert_uint_eq(job->n_scored, job->n_tokens - job->n_prompt - 1);
            const double plain = plain_nll(&rig, job);
            ck_assert_msg(job->nll == plain, "%s, job %u: %.17g and %.17g", fixtures[f], i,
                          job->nll, plain);
            ck_assert(job->n_scored == 0 || job->nll > 0);
        }
        eval_rig_close(&rig);
    }
}
END_TEST

START_TEST(results_do_not_depend_on_groups_or_steps)
{
    static const uint32_t n_seqs[] = {1, 2, 3, 7, 50}, n_step[] = {1, 5, 64, 512};
    static job_set first, other;
    for (uint32_t f = 0; f < 3; f++) {
        eval_rig rig;
        eval_rig_open(fixtures[f], &rig);
        (void)run_set(&rig, &first);
        for (uint32_t i = 0; i < 5; i++) {
            for (uint32_t j = 0; j < 4; j++) {
                rig.options.n_seqs_max = n_seqs[i];
                rig.options.n_step_tokens_max = n_step[j];
                (void)run_set(&rig, &other);
                same_results(&first, &other);
            }
        }
        eval_rig_close(&rig);
    }
}
END_TEST

START_TEST(greedy_jobs_draw_the_tokens_of_the_reference)
{
    enum { N_NEW = 64 };
    static const char *const f32[] = {"tests/golden/mixtral-base-f32",
                                      "tests/golden/mixtral-odd-f32"};
    for (uint32_t f = 0; f < 2; f++) {
        char path[128];
        tensor_files *reference;
        eval_rig rig;
        eval_rig_open(f32[f], &rig);
        (void)snprintf(path, sizeof path, "%s/reference.safetensors", f32[f]);
        ck_assert_int_eq(tensor_file_open(path, &reference, NULL), ERR_OK);
        const tensor *prompt = tensor_find(reference, "p2.prompt");
        const int32_t *greedy = tensor_find(reference, "p2.greedy")->data;
        uint32_t drawn[N_NEW], n_wanted = 0;
        while (n_wanted < N_NEW && greedy[n_wanted++] != 2) /* eos_token_id */
            ;
        eval_job job = {.tokens = prompt->data,
                        .n_tokens = (uint32_t)prompt->shape[0],
                        .n_prompt = (uint32_t)prompt->shape[0],
                        .n_new = N_NEW,
                        .drawn = drawn};
        eval_run *r = eval_rig_run_open(&rig);
        must_run(r, &job, 1);
        ck_assert(job.is_done);
        ck_assert_uint_eq(job.n_drawn, n_wanted);
        ck_assert_mem_eq(drawn, greedy, n_wanted * sizeof *drawn);
        eval_run_close(r);
        tensor_files_close(reference);
        eval_rig_close(&rig);
    }
}
END_TEST

/* The model is the rig's own: its config says what ends a sequence. */
static void set_eos(const eval_rig *rig, uint32_t token)
{
    model_config *const shape = (model_config *)(uintptr_t)model_get_config(rig->m);
    shape->eos[0] = token;
    shape->n_eos = 1;
}

START_TEST(an_end_of_sequence_is_the_last_token_of_its_job)
{
    static job_set plain, cut;
    eval_rig rig;
    eval_rig_open(fixtures[0], &rig);
    const eval_cost whole = run_set(&rig, &plain);
    const eval_job *job = &plain.jobs[1];
    uint32_t at = job->n_drawn / 2, first = 0;
    while (job->drawn[first] != job->drawn[at])
        first++;
    set_eos(&rig, job->drawn[at]);
    const eval_cost cost = run_set(&rig, &cut);
    ck_assert(cut.jobs[1].is_done);
    ck_assert_uint_eq(cut.jobs[1].n_drawn, first + 1);
    ck_assert_mem_eq(cut.drawn[1], plain.drawn[1], (first + 1) * sizeof(uint32_t));
    ck_assert(cut.jobs[0].nll == plain.jobs[0].nll);
    ck_assert_uint_lt(cost.n_decode_tokens, whole.n_decode_tokens);
    eval_rig_close(&rig);
}
END_TEST

START_TEST(a_job_without_a_tail_is_done_and_scores_nothing)
{
    eval_rig rig;
    uint32_t tokens[20];
    eval_rig_open(fixtures[1], &rig);
    fill_tokens(&rig, 0, 20, tokens);
    eval_job jobs[] = {{.tokens = tokens, .n_tokens = 20, .n_prompt = 20},
                       {.tokens = tokens, .n_tokens = 20, .n_prompt = 19}};
    eval_run *r = eval_rig_run_open(&rig);
    must_run(r, jobs, 2);
    for (int i = 0; i < 2; i++) {
        ck_assert(jobs[i].is_done);
        ck_assert_uint_eq(jobs[i].n_scored, 0);
        ck_assert(jobs[i].nll == 0);
    }
    ck_assert_uint_eq(eval_run_cost(r)->n_prompt_tokens, 39);
    ck_assert_uint_eq(eval_run_cost(r)->n_decode_tokens, 0);
    ck_assert_uint_eq(eval_run_cost(r)->resident_tokens, 39);
    must_run(r, jobs, 0);
    eval_run_close(r);
    eval_rig_close(&rig);
}
END_TEST

/* ---- cost -------------------------------------------------------------------------------------------- */

/* A forced job by hand, a chunk a step and then a token a step; what the cache counts meanwhile. */
static void replay(kv_cache *cache, const eval_rig *rig, const eval_job *job, eval_cost *sum)
{
    kv_stats before, after;
    kv_seq *seq;
    ck_assert_int_eq(kv_seq_open(cache, &(kv_seq_options){.salt = ""}, &seq), ERR_OK);
    for (uint32_t at = 0, n; at < job->n_tokens - 1; at += n) {
        uint32_t positions[RIG_STEP_TOKENS_MAX];
        const uint32_t n_left = job->n_prompt > at ? job->n_prompt - at : 1;
        n = n_left < rig->options.n_step_tokens_max ? n_left : rig->options.n_step_tokens_max;
        for (uint32_t i = 0; i < n; i++)
            positions[i] = at + i;
        const bool is_decode = at >= job->n_prompt;
        const kv_row row = {.seq = seq, .n_tokens = n, .is_decode = is_decode};
        kv_stats_read(cache, &before);
        ck_assert_int_eq(kv_step_begin(cache, &row, 1), ERR_OK);
        model_forward(
            rig->m, cache,
            &(model_batch){.tokens = job->tokens + at, .positions = positions, .n_tokens = n});
        kv_step_end(cache);
        kv_stats_read(cache, &after);
        if (!is_decode) continue;
        sum->read_bytes += after.bytes_read - before.bytes_read;
        sum->pages_open += after.pages_open - before.pages_open;
        sum->pages_read += after.pages_read - before.pages_read;
        sum->n_certificates += after.certificates - before.certificates;
        sum->certificate_sum += after.certificate_sum - before.certificate_sum;
    }
    sum->resident_bytes +=
        after.slab_bytes + after.table_bytes + after.ring_bytes + after.staging_bytes;
    sum->resident_tokens += kv_seq_length(seq);
    kv_seq_close(seq, NULL);
}

static void check_cost(const char *routing)
{
    eval_rig rig;
    uint32_t tokens[2][300];
    eval_rig_open(fixtures[1], &rig);
    const cfg_binding binding = {&kv_config_table, &rig.kv};
    ck_assert_int_eq(cfg_set(&binding, 1, "kv-routing", routing, NULL), ERR_OK);
    rig.options.n_seqs_max = 1;
    fill_tokens(&rig, 0, 300, tokens[0]);
    fill_tokens(&rig, 1, 100, tokens[1]);
    eval_job jobs[] = {{.tokens = tokens[0], .n_tokens = 300, .n_prompt = 150},
                       {.tokens = tokens[1], .n_tokens = 100, .n_prompt = 70}};
    eval_run *r = eval_rig_run_open(&rig);
    must_run(r, &jobs[0], 1);
    must_run(r, &jobs[1], 1); /* sums over calls */
    const eval_cost *cost = eval_run_cost(r);

    eval_cost wanted = {0};
    kv_cache *cache;
    kv_config kv = rig.kv;
    kv.prefix_caching = false;
    const kv_limits limits = {1, 64, 400};
    ck_assert_int_eq(kv_cache_open(rig.d, &kv, model_get_kv_shape(rig.m), &limits, &cache, NULL),
                     ERR_OK);
    replay(cache, &rig, &jobs[0], &wanted);
    replay(cache, &rig, &jobs[1], &wanted);
    kv_cache_close(cache);

    ck_assert_uint_gt(cost->read_bytes, 0);
    ck_assert_uint_eq(cost->read_bytes, wanted.read_bytes);
    ck_assert_uint_eq(cost->resident_bytes, wanted.resident_bytes);
    ck_assert_uint_eq(cost->resident_tokens, wanted.resident_tokens);
    ck_assert_uint_eq(cost->n_prompt_tokens, 220);
    ck_assert_uint_eq(cost->n_decode_tokens, 149 + 29);
    ck_assert_uint_eq(cost->n_decode_steps, 149 + 29);
    ck_assert(cost->decode_seconds > 0);
    ck_assert(cost->prompt_seconds > 0);
    ck_assert(eval_cost_read_bytes_per_step(cost) == (double)wanted.read_bytes / 178);
    ck_assert_uint_gt(cost->pages_open, 0);
    ck_assert_uint_eq(cost->pages_open, wanted.pages_open);
    ck_assert_uint_eq(cost->pages_read, wanted.pages_read);
    ck_assert_uint_eq(cost->n_certificates, wanted.n_certificates);
    ck_assert_double_eq_tol(cost->certificate_sum, wanted.certificate_sum, 1e-6);
    const bool is_whole = strcmp(routing, "full") == 0;
    ck_assert_int_eq(eval_cost_share_of_pages_read(cost) == 1, is_whole);
    ck_assert_int_eq(eval_cost_certificate_mean(cost) == 0, is_whole);
    eval_run_close(r);
    eval_rig_close(&rig);
}

START_TEST(the_cost_is_what_the_cache_counts)
{
    check_cost("full");
    check_cost("topk");
}
END_TEST

START_TEST(steps_of_a_group_are_counted_once_and_its_tokens_each)
{
    eval_rig rig;
    uint32_t tokens[60];
    eval_rig_open(fixtures[0], &rig);
    fill_tokens(&rig, 0, 60, tokens);
    eval_job jobs[3];
    for (uint32_t i = 0; i < 3; i++)
        jobs[i] = (eval_job){.tokens = tokens, .n_tokens = 60 - 10 * i, .n_prompt = 20};
    eval_run *r = eval_rig_run_open(&rig);
    must_run(r, jobs, 3);
    const eval_cost *cost = eval_run_cost(r);
    ck_assert_uint_eq(cost->n_prompt_tokens, 60);
    ck_assert_uint_eq(cost->n_decode_tokens, 39 + 29 + 19);
    ck_assert_uint_eq(cost->n_decode_steps, 39);
    ck_assert_uint_eq(cost->resident_tokens, 59 + 49 + 39); /* the short ones stay to the end */
    eval_run_close(r);
    eval_rig_close(&rig);
}
END_TEST

START_TEST(what_is_read_does_not_depend_on_groups)
{
    static job_set s;
    eval_rig rig;
    eval_rig_open(fixtures[0], &rig);
    const eval_cost many = run_set(&rig, &s);
    rig.options.n_seqs_max = 1;
    const eval_cost one = run_set(&rig, &s);
    ck_assert_uint_eq(many.read_bytes, one.read_bytes);
    ck_assert_uint_eq(many.n_decode_tokens, one.n_decode_tokens);
    ck_assert_uint_lt(many.n_decode_steps, one.n_decode_steps);
    ck_assert_uint_eq(many.resident_tokens, one.resident_tokens);
    eval_rig_close(&rig);
}
END_TEST

/* ---- a small pool ------------------------------------------------------------------------------------ */

/* The pool deals in slabs of this. One holds 128 tokens of the first fixture: some jobs, but not the
 * longest, which fits in two. */
enum { SLAB_BYTES = 1 << 16 };

START_TEST(a_group_that_does_not_fit_runs_in_halves_with_the_same_results)
{
    static job_set roomy, tight;
    eval_rig rig;
    eval_rig_open(fixtures[0], &rig);
    rig.options.n_seqs_max = N_JOBS;
    rig.options.n_step_tokens_max = 16;
    const eval_cost wanted = run_set(&rig, &roomy);
    rig.kv.memory_bytes = 2 * SLAB_BYTES;
    const eval_cost cost = run_set(&rig, &tight);
    same_results(&roomy, &tight);
    ck_assert_uint_eq(cost.n_decode_tokens, wanted.n_decode_tokens); /* nothing counts twice */
    ck_assert_uint_eq(cost.n_prompt_tokens, wanted.n_prompt_tokens);
    ck_assert_uint_eq(cost.read_bytes, wanted.read_bytes);
    ck_assert_uint_eq(cost.resident_tokens, wanted.resident_tokens);
    ck_assert_uint_gt(cost.n_decode_steps, wanted.n_decode_steps); /* it was halved */
    eval_rig_close(&rig);
}
END_TEST

START_TEST(a_sequence_that_does_not_fit_alone_is_an_error_with_numbers)
{
    static job_set s;
    eval_rig rig;
    err_info info = {0};
    eval_rig_open(fixtures[0], &rig);
    rig.kv.memory_bytes = SLAB_BYTES;
    make_jobs(&rig, &s);
    eval_run *r = eval_rig_run_open(&rig);
    ck_assert_int_eq(eval_run_jobs(r, s.jobs, N_JOBS, &info), ERR_KV_FULL);
    ck_assert_ptr_nonnull(strstr(info.message, "kv-cache-memory-bytes"));
    ck_assert_ptr_nonnull(strstr(info.message, "199 tokens"));
    ck_assert(s.jobs[0].is_done); /* those before it are */
    ck_assert(!s.jobs[3].is_done);
    must_run(r, &s.jobs[4], 1); /* and the run can go on */
    eval_run_close(r);
    eval_rig_close(&rig);
}
END_TEST

/* ---- progress ---------------------------------------------------------------------------------------- */

typedef struct watcher {
    uint32_t n_calls, n_calls_max; /* stops at the last */
    double last;
    bool has_fallen;
} watcher;

static bool watch(void *ctx, double done)
{
    watcher *w = ctx;
    w->has_fallen |= !(done >= w->last && done <= 1);
    w->last = done;
    return ++w->n_calls == w->n_calls_max;
}

START_TEST(progress_rises_to_one)
{
    static job_set s;
    eval_rig rig;
    watcher w = {0};
    eval_rig_open(fixtures[0], &rig);
    rig.options.on_progress = watch;
    rig.options.on_progress_ctx = &w;
    (void)run_set(&rig, &s);
    ck_assert(!w.has_fallen);
    ck_assert(w.last == 1);
    rig.kv.memory_bytes = 2 * SLAB_BYTES; /* groups are run again */
    w = (watcher){0};
    (void)run_set(&rig, &s);
    ck_assert(!w.has_fallen);
    ck_assert(w.last == 1);
    set_eos(&rig, s.drawn[1][3]); /* a job ends early */
    w = (watcher){0};
    (void)run_set(&rig, &s);
    ck_assert(!w.has_fallen);
    ck_assert(w.last == 1);
    eval_rig_close(&rig);
}
END_TEST

START_TEST(a_stop_leaves_unfinished_jobs_undone_and_no_sequence_open)
{
    static job_set whole, cut;
    eval_rig rig;
    watcher w = {0};
    eval_rig_open(fixtures[0], &rig);
    rig.options.n_seqs_max = 2;
    rig.options.on_progress = watch;
    rig.options.on_progress_ctx = &w;
    (void)run_set(&rig, &whole);
    const uint32_t n_calls = w.n_calls;
    for (uint32_t stop = 1; stop < n_calls; stop += 13) {
        w = (watcher){.n_calls_max = stop};
        const eval_cost cost = run_set(&rig, &cut);
        ck_assert_uint_eq(w.n_calls, stop);
        ck_assert_uint_gt(cost.resident_tokens, 0);
        ck_assert(!cut.jobs[3].is_done || !cut.jobs[5].is_done || stop + 13 > n_calls);
        for (uint32_t i = 0; i < N_JOBS; i++) {
            if (cut.jobs[i].is_done) ck_assert(cut.jobs[i].nll == whole.jobs[i].nll);
            if (!cut.jobs[i].is_done) ck_assert_uint_eq(cut.jobs[i].n_scored, 0);
        }
    }
    eval_rig_close(&rig);
}
END_TEST

/* ---- errors ------------------------------------------------------------------------------------------- */

START_TEST(a_job_that_is_too_long_is_named)
{
    static job_set s;
    eval_rig rig;
    err_info info = {0};
    eval_rig_open(fixtures[0], &rig);
    rig.options.n_seq_tokens_max = 100;
    make_jobs(&rig, &s);
    eval_run *r = eval_rig_run_open(&rig);
    ck_assert_int_eq(eval_run_jobs(r, s.jobs, N_JOBS, &info), ERR_BAD_ARGUMENT);
    ck_assert_str_eq(info.message, "job 3: 200 tokens are more than 100");
    eval_run_close(r);
    eval_rig_close(&rig);
}
END_TEST

START_TEST(more_tokens_than_positions_are_refused)
{
    eval_rig rig;
    eval_run *r;
    err_info info = {0};
    eval_rig_open(fixtures[0], &rig);
    rig.options.n_seq_tokens_max = 1025; /* the last one is scored, not fed */
    ck_assert_int_eq(eval_run_open(&rig.options, &r, &info), ERR_OK);
    eval_run_close(r);
    rig.options.n_seq_tokens_max = 1026;
    ck_assert_int_eq(eval_run_open(&rig.options, &r, &info), ERR_BAD_CONFIG);
    ck_assert_ptr_null(r);
    ck_assert_ptr_nonnull(strstr(info.message, "1024"));
    eval_rig_close(&rig);
}
END_TEST

START_TEST(an_unknown_method_is_the_caches_error)
{
    eval_rig rig;
    eval_run *r;
    err_info info = {0};
    static char name[] = "nonsense";
    eval_rig_open(fixtures[0], &rig);
    char *const kept = rig.kv.scheduling;
    rig.kv.scheduling = name;
    ck_assert_int_eq(eval_run_open(&rig.options, &r, &info), ERR_BAD_CONFIG);
    ck_assert_ptr_null(r);
    ck_assert_ptr_nonnull(strstr(info.message, "nonsense"));
    rig.kv.scheduling = kept;
    eval_rig_close(&rig);
}
END_TEST

START_TEST(logits_that_are_not_finite_are_a_bad_model)
{
    static job_set s;
    static const float values[] = {NAN, INFINITY};
    eval_rig rig;
    eval_rig_open(fixtures[0], &rig);
    for (int i = 0; i < 4; i++) { /* at a draw behind the prompt, and in a decode step */
        err_info info = {0};
        make_jobs(&rig, &s);
        eval_run *r = eval_rig_run_open(&rig);
        n_until_bad = i < 2 ? 0 : 10;
        bad_value = values[i % 2];
        ck_assert_int_eq(eval_run_jobs(r, s.jobs, N_JOBS, &info), ERR_BAD_MODEL);
        ck_assert_ptr_nonnull(strstr(info.message, "not finite"));
        ck_assert_int_eq(n_until_bad, -1);
        eval_run_close(r);
    }
    eval_rig_close(&rig);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(forced_nll_is_that_of_one_forward_over_the_whole),
    TEST_CASE_SECONDS(results_do_not_depend_on_groups_or_steps, 250),
    TEST_CASE(greedy_jobs_draw_the_tokens_of_the_reference),
    TEST_CASE(an_end_of_sequence_is_the_last_token_of_its_job),
    TEST_CASE(a_job_without_a_tail_is_done_and_scores_nothing),
    TEST_CASE(the_cost_is_what_the_cache_counts),
    TEST_CASE(steps_of_a_group_are_counted_once_and_its_tokens_each),
    TEST_CASE(what_is_read_does_not_depend_on_groups),
    TEST_CASE(a_group_that_does_not_fit_runs_in_halves_with_the_same_results),
    TEST_CASE(a_sequence_that_does_not_fit_alone_is_an_error_with_numbers),
    TEST_CASE(progress_rises_to_one),
    TEST_CASE(a_stop_leaves_unfinished_jobs_undone_and_no_sequence_open),
    TEST_CASE(a_job_that_is_too_long_is_named),
    TEST_CASE(more_tokens_than_positions_are_refused),
    TEST_CASE(an_unknown_method_is_the_caches_error),
    TEST_CASE(logits_that_are_not_finite_are_a_bad_model),
    TEST_CASES_END,
};
