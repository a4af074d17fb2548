/* tests/service/eval/test_eval_compare.c - rows over the same inputs.
 *
 * The default model is run, since it is the one with a tokenizer; nothing here says how good it is.
 * Which answers are right is decided here (the linker's --wrap): lookups in the longer context, and
 * nothing else. */
#include "service/eval/eval_compare.h"
#include "tests/service/eval/eval_rig.h"
#include "tests/test_main.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { WINDOW = 24, N_SAMPLES = 3, SHORT_CONTEXT = 128, LONG_CONTEXT = 192 };

static const char text[] = "The old king looked at the sea and said that it was dark. His daughter "
                           "went to the river and found it cold. "
                           "She thought of the hill and the quiet day, and of the white house by "
                           "the road, where a little bird sat in the "
                           "tree. Then she came home from the wood, which was green, and walked "
                           "past the mill on a warm morning. The king "
                           "saw her from the window and went to the gate. So they lived in the "
                           "great house by the sea, and were happy.";

typedef struct fixture {
    eval_rig rig;
    tokenizer *t;
    eval_plan plan;
    eval_inputs *in;
} fixture;

static eval_plan text_plan(void)
{
    return (eval_plan){.text = text, .n_text_bytes = sizeof text - 1, .window = WINDOW};
}

static eval_plan full_plan(void)
{
    eval_plan plan = text_plan();
    plan.tasks[plan.n_tasks++] = eval_task_find("lookup", 6);
    plan.tasks[plan.n_tasks++] = eval_task_find("count", 5);
    plan.contexts[plan.n_contexts++] = SHORT_CONTEXT;
    plan.contexts[plan.n_contexts++] = LONG_CONTEXT;
    plan.n_samples = N_SAMPLES;
    plan.seed = 7;
    return plan;
}

static void open_fixture(eval_plan plan, fixture *f)
{
    err_info info = {0};
    *f = (fixture){.plan = plan};
    eval_rig_open("models/storyteller", &f->rig);
    ck_assert_int_eq(tokenizer_open("models/storyteller", &f->t, &info), ERR_OK);
    ck_assert_msg(eval_inputs_open(f->t, &f->plan, &f->in, &info) == ERR_OK, "%s", info.message);
}

static void close_fixture(fixture *f)
{
    eval_inputs_close(f->in);
    tokenizer_close(f->t);
    eval_rig_close(&f->rig);
}

static eval_row run_row(fixture *f, const eval_row *first)
{
    err_info info = {0};
    eval_row row;
    ck_assert_msg(eval_row_run(&f->rig.options, f->in, first, &row, &info) == ERR_OK, "%s",
                  info.message);
    return row;
}

START_TEST(equal_settings_give_equal_rows)
{
    fixture f;
    open_fixture(full_plan(), &f);
    eval_row a = run_row(&f, NULL), b = run_row(&f, &a);
    const eval_cost cost_a = eval_row_cost(&a), cost_b = eval_row_cost(&b);
    ck_assert_uint_gt(a.text.n_tokens, 0);
    ck_assert(!a.has_difference);
    ck_assert(b.has_difference);
    ck_assert_double_eq(b.difference.mean, 0);
    ck_assert_double_eq(b.difference.half_width, 0);
    ck_assert_double_eq(a.text.nll, b.text.nll);
    ck_assert_int_eq(memcmp(a.accuracy, b.accuracy, sizeof a.accuracy), 0);
    ck_assert_uint_eq(cost_a.resident_bytes, cost_b.resident_bytes);
    ck_assert_uint_eq(cost_a.resident_tokens, cost_b.resident_tokens);
    ck_assert_uint_eq(cost_a.read_bytes, cost_b.read_bytes);
    ck_assert_uint_eq(cost_a.n_decode_tokens, cost_b.n_decode_tokens);
    ck_assert(!a.is_cut_short);
    eval_row_close(&a);
    eval_row_close(&b);
    ck_assert_ptr_null(a.window_nll);
    close_fixture(&f);
}
END_TEST

START_TEST(the_difference_is_that_of_the_rows_and_bytes_follow_the_type)
{
    fixture f;
    open_fixture(full_plan(), &f);
    f.rig.kv.dtype = KV_DTYPE_BF16;
    eval_row narrow = run_row(&f, NULL);
    f.rig.kv.dtype = KV_DTYPE_F32;
    eval_row wide = run_row(&f, &narrow);
    ck_assert(wide.has_difference);
    ck_assert_double_ne(wide.difference.mean, 0);
    ck_assert_double_eq_tol(wide.difference.mean, wide.text.nll - narrow.text.nll, 1e-9);
    ck_assert_double_gt(wide.difference.half_width, 0);
    ck_assert_uint_eq(wide.text_cost.read_bytes, 2 * narrow.text_cost.read_bytes);
    const eval_cost a = eval_row_cost(&narrow), b = eval_row_cost(&wide);
    ck_assert_double_gt(eval_cost_resident_bytes_per_token(&b),
                        eval_cost_resident_bytes_per_token(&a));
    eval_row_close(&narrow);
    eval_row_close(&wide);
    close_fixture(&f);
}
END_TEST

bool __real_eval_sample_is_answered(const tokenizer *t, const eval_sample *s, const uint32_t *drawn,
                                    uint32_t n_drawn);
bool __wrap_eval_sample_is_answered(const tokenizer *t, const eval_sample *s, const uint32_t *drawn,
                                    uint32_t n_drawn);
bool __wrap_eval_sample_is_answered(const tokenizer *t, const eval_sample *s, const uint32_t *drawn,
                                    uint32_t n_drawn)
{
    if (drawn == s->ids + s->n_ids) /* a sample looks at its own answer when it is made */
        return __real_eval_sample_is_answered(t, s, drawn, n_drawn);
    ck_assert_uint_ge(n_drawn, 1);
    ck_assert_uint_le(n_drawn, s->n_answer_ids);
    for (uint32_t i = 0; i < n_drawn; i++)
        ck_assert_uint_lt(drawn[i], tokenizer_n_vocab(t));
    return s->n_distance_tokens > 0 && s->n_ids > SHORT_CONTEXT;
}

START_TEST(every_sample_of_every_cell_is_counted_once)
{
    fixture f;
    open_fixture(full_plan(), &f);
    eval_row row = run_row(&f, NULL);
    for (uint32_t k = 0; k < f.plan.n_tasks; k++) {
        for (uint32_t c = 0; c < f.plan.n_contexts; c++) {
            const eval_accuracy *a = &row.accuracy[k][c];
            ck_assert_uint_eq(a->n_done, N_SAMPLES);
            ck_assert_uint_eq(a->n_right, k == 0 && c == 1 ? N_SAMPLES : 0);
            ck_assert_int_eq(a->n_distance_tokens > 0, eval_task_takes_distance(f.plan.tasks[k]));
        }
    }
    ck_assert_double_eq(eval_row_accuracy(&row, &f.plan), 0.25);
    ck_assert_uint_gt(row.text_cost.n_decode_tokens, 0);
    ck_assert_uint_gt(row.task_cost.n_decode_tokens, 0);
    ck_assert_uint_eq(eval_row_cost(&row).n_decode_tokens,
                      row.text_cost.n_decode_tokens + row.task_cost.n_decode_tokens);
    eval_row_close(&row);
    close_fixture(&f);
}
END_TEST

START_TEST(inputs_say_how_long_they_are)
{
    fixture f;
    open_fixture(full_plan(), &f);
    ck_assert_uint_gt(eval_inputs_n_windows(f.in), 2);
    ck_assert_uint_gt(eval_inputs_n_seq_tokens_max(f.in), SHORT_CONTEXT);
    ck_assert_uint_le(eval_inputs_n_seq_tokens_max(f.in), LONG_CONTEXT);
    close_fixture(&f);
    open_fixture(text_plan(), &f);
    ck_assert_uint_le(eval_inputs_n_seq_tokens_max(f.in), WINDOW + 1);
    close_fixture(&f);
}
END_TEST

/* What a progress callback has seen, and where it says stop. */
typedef struct watcher {
    double last, stop_at;
    bool has_fallen;
} watcher;

static bool watch(void *ctx, double done)
{
    watcher *w = ctx;
    if (done < w->last) w->has_fallen = true;
    w->last = done;
    return done >= w->stop_at;
}

START_TEST(progress_rises_from_0_to_1_over_all_parts)
{
    fixture f;
    watcher w = {.stop_at = 2};
    open_fixture(full_plan(), &f);
    f.rig.options.on_progress = watch;
    f.rig.options.on_progress_ctx = &w;
    eval_row row = run_row(&f, NULL);
    ck_assert(!w.has_fallen);
    ck_assert_double_eq_tol(w.last, 1, 1e-9);
    eval_row_close(&row);
    close_fixture(&f);
}
END_TEST

/* Stops a row at `share`, and checks it against the whole row. */
static void check_stopped(fixture *f, const eval_row *whole, double share)
{
    const uint32_t n_windows = eval_inputs_n_windows(f->in);
    watcher w = {.stop_at = share};
    f->rig.options.on_progress = watch;
    f->rig.options.on_progress_ctx = &w;
    eval_row cut = run_row(f, whole);
    f->rig.options.on_progress = NULL;
    ck_assert(cut.is_cut_short);
    uint32_t n_finished = 0;
    for (uint32_t i = 0; i < n_windows; i++) {
        if (isnan(cut.window_nll[i])) continue;
        ck_assert_double_eq(cut.window_nll[i], whole->window_nll[i]);
        n_finished++;
    }
    ck_assert_uint_eq(cut.text.n_windows, n_finished);
    ck_assert_int_eq(cut.has_difference, n_finished > 0);
    ck_assert_double_eq(cut.difference.mean, 0);
    eval_row_close(&cut);
}

START_TEST(a_stopped_row_holds_what_is_finished_and_the_next_one_is_whole)
{
    fixture f;
    open_fixture(full_plan(), &f);
    eval_row whole = run_row(&f, NULL);
    check_stopped(&f, &whole, 0); /* at the first step */
    check_stopped(&f, &whole, 0.1);
    check_stopped(&f, &whole, 0.5); /* among the tasks */
    eval_row again = run_row(&f, &whole);
    ck_assert(!again.is_cut_short);
    ck_assert_double_eq(again.text.nll, whole.text.nll);
    ck_assert_int_eq(memcmp(again.accuracy, whole.accuracy, sizeof whole.accuracy), 0);
    eval_row_close(&again);
    eval_row_close(&whole);
    close_fixture(&f);
}
END_TEST

START_TEST(accuracy_is_the_mean_over_cells_that_have_samples)
{
    const eval_plan plan = full_plan();
    eval_row row = {0};
    ck_assert(isnan(eval_row_accuracy(&row, &plan)));
    row.accuracy[0][0] = (eval_accuracy){.n_right = 1, .n_done = 1};
    row.accuracy[1][1] = (eval_accuracy){.n_right = 1, .n_done = 4};
    ck_assert_double_eq(eval_row_accuracy(&row, &plan), 0.625);
    row.accuracy[7][7] = (eval_accuracy){.n_right = 1, .n_done = 1}; /* not in the plan */
    ck_assert_double_eq(eval_row_accuracy(&row, &plan), 0.625);
}
END_TEST

static void check_refused(eval_plan plan, err_t expected)
{
    tokenizer *t;
    eval_inputs *in;
    err_info info = {0};
    ck_assert_int_eq(tokenizer_open("models/storyteller", &t, &info), ERR_OK);
    ck_assert_int_eq(eval_inputs_open(t, &plan, &in, &info), expected);
    ck_assert_int_eq(info.code, expected);
    ck_assert_ptr_null(in);
    tokenizer_close(t);
}

START_TEST(inputs_that_cannot_be_made_are_refused)
{
    eval_plan plan = text_plan();
    plan.n_text_bytes = 8;
    check_refused(plan, ERR_BAD_REQUEST);
    plan = full_plan();
    plan.contexts[1] = EVAL_CONTEXT_MIN - 1; /* the samples of the first are there by then */
    check_refused(plan, ERR_BAD_CONFIG);
    plan = full_plan();
    plan.n_distance_tokens = 1000;
    check_refused(plan, ERR_BAD_CONFIG);
}
END_TEST

START_TEST(settings_that_no_cache_takes_are_refused)
{
    fixture f;
    err_info info = {0};
    eval_row row;
    open_fixture(text_plan(), &f);
    f.rig.kv.sink_tokens = 64;
    ck_assert_int_eq(eval_row_run(&f.rig.options, f.in, NULL, &row, &info), ERR_BAD_CONFIG);
    ck_assert_ptr_nonnull(strstr(info.message, "kv-sink"));
    ck_assert_ptr_null(row.window_nll);
    close_fixture(&f);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(equal_settings_give_equal_rows),
    TEST_CASE(the_difference_is_that_of_the_rows_and_bytes_follow_the_type),
    TEST_CASE(every_sample_of_every_cell_is_counted_once),
    TEST_CASE(inputs_say_how_long_they_are),
    TEST_CASE(progress_rises_from_0_to_1_over_all_parts),
    TEST_CASE(a_stopped_row_holds_what_is_finished_and_the_next_one_is_whole),
    TEST_CASE(accuracy_is_the_mean_over_cells_that_have_samples),
    TEST_CASE(inputs_that_cannot_be_made_are_refused),
    TEST_CASE(settings_that_no_cache_takes_are_refused),
    TEST_CASES_END,
};
