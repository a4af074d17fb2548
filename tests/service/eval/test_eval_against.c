/* Promises of service/eval/eval_against.h: the fixtures' references, and files with something wrong in them. */
#include "service/eval/eval_against.h"

#include "model/safetensors.h"
#include "tests/model/temp_dir.h"
#include "tests/service/eval/eval_rig.h"
#include "tests/test_main.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const fixtures[] = {
    "tests/golden/mixtral-base-f32",    "tests/golden/mixtral-gqa-bf16",
    "tests/golden/mixtral-window-f16",  "tests/golden/mixtral-tied-bf16",
    "tests/golden/mixtral-sharded-f16", "tests/golden/mixtral-odd-f32"};
enum { N_FIXTURES = sizeof fixtures / sizeof fixtures[0] };

static eval_against_result must_compare(const eval_rig *rig, const char *path)
{
    eval_against_result result;
    err_info info = {0};
    ck_assert_msg(eval_against(&rig->options, path, &result, &info) == ERR_OK, "%s", info.message);
    return result;
}

static const char *reference_of(const char *fixture)
{
    static char path[256];
    (void)snprintf(path, sizeof path, "%s/reference.safetensors", fixture);
    return path;
}

/* Rows and prompts that the file holds. */
static void count_stored(const char *path, eval_against_result *out)
{
    tensor_files *file;
    ck_assert_int_eq(tensor_file_open(path, &file, NULL), ERR_OK);
    *out = (eval_against_result){0};
    for (;;) {
        char name[32];
        (void)snprintf(name, sizeof name, "p%u.logits", out->n_prompts);
        const tensor *logits = tensor_find(file, name);
        if (logits == NULL) break;
        out->n_prompts++;
        out->n_rows += logits->shape[0];
    }
    tensor_files_close(file);
}

START_TEST(every_fixture_is_within_a_thousandth_and_agrees)
{
    for (uint32_t f = 0; f < N_FIXTURES; f++) {
        eval_rig rig;
        eval_against_result stored;
        eval_rig_open(fixtures[f], &rig);
        rig.kv.dtype = KV_DTYPE_F32;
        const char *path = reference_of(fixtures[f]);
        const eval_against_result r = must_compare(&rig, path);
        count_stored(path, &stored);
        ck_assert_msg(r.relative_error_max < 1e-3, "%s: %g", path, r.relative_error_max);
        ck_assert(r.relative_error_mean > 0);
        ck_assert(r.relative_error_mean <= r.relative_error_max);
        ck_assert(r.top1_agreement == 1);
        ck_assert_uint_eq(r.n_rows, stored.n_rows);
        ck_assert_uint_eq(r.n_prompts, stored.n_prompts);
        eval_rig_close(&rig);
    }
}
END_TEST

START_TEST(the_result_does_not_depend_on_groups_or_a_small_pool)
{
    eval_rig rig;
    eval_rig_open(fixtures[0], &rig);
    const char *path = reference_of(fixtures[0]);
    const eval_against_result first = must_compare(&rig, path);
    for (uint32_t i = 0; i < 3; i++) {
        rig.options.n_seqs_max = i == 0 ? 1 : 3;
        rig.options.n_step_tokens_max = i == 0 ? 7 : 512;
        if (i == 2) rig.kv.memory_bytes = 3 << 16; /* the longest alone: groups are run again */
        const eval_against_result r = must_compare(&rig, path);
        ck_assert_mem_eq(&r, &first, sizeof r);
    }
    eval_rig_close(&rig);
}
END_TEST

START_TEST(a_rounded_cache_is_further_away)
{
    eval_rig rig;
    eval_rig_open(fixtures[0], &rig);
    const eval_against_result exact = must_compare(&rig, reference_of(fixtures[0]));
    rig.kv.dtype = KV_DTYPE_BF16;
    const eval_against_result rounded = must_compare(&rig, reference_of(fixtures[0]));
    ck_assert(rounded.relative_error_mean > 10 * exact.relative_error_mean);
    ck_assert(rounded.relative_error_max < 0.1);
    eval_rig_close(&rig);
}
END_TEST

static bool count_steps(void *ctx, double done)
{
    (void)done;
    ++*(uint32_t *)ctx;
    return false;
}

START_TEST(the_second_half_of_a_prompt_is_one_token_a_step)
{
    uint32_t n_steps = 0;
    eval_rig rig;
    eval_rig_open(fixtures[0], &rig);
    rig.options.n_seqs_max = 1;
    rig.options.on_progress = count_steps;
    rig.options.on_progress_ctx = &n_steps;
    (void)must_compare(&rig, reference_of(fixtures[0]));
    /* Prompts of 1, 7, 33 and 317 tokens; 64 of a first half in a step. */
    ck_assert_uint_eq(n_steps, 1 + (1 + 4) + (1 + 17) + (3 + 159));
    eval_rig_close(&rig);
}
END_TEST

static bool stop_at_half(void *ctx, double done)
{
    (void)ctx;
    return done > 0.5;
}

START_TEST(a_stop_leaves_the_finished_prompts)
{
    eval_rig rig;
    eval_rig_open(fixtures[0], &rig);
    rig.options.n_seqs_max = 1;
    rig.options.on_progress = stop_at_half;
    const eval_against_result r = must_compare(&rig, reference_of(fixtures[0]));
    ck_assert_uint_eq(r.n_prompts, 3); /* the fourth is far longer than these */
    ck_assert_uint_eq(r.n_rows, 1 + 7 + 33);
    ck_assert(r.top1_agreement == 1);
    eval_rig_close(&rig);
}
END_TEST

/* ---- files of our own --------------------------------------------------------------------------------- */

enum { N_VOCAB = 96, N_TOKENS = 5, N_ROWS = 3 };

/* What a file says; a test changes one thing of a good one. */
typedef struct sample {
    const char *names[3], *types[3], *shapes[3];
    int32_t prompt[N_TOKENS], positions[N_ROWS];
    float logits[N_ROWS * N_VOCAB];
    uint32_t pad_bytes; /* spaces behind the header: data lies at any address */
} sample;

static void make_sample(sample *s)
{
    *s = (sample){.names = {"p0.prompt", "p0.logits_pos", "p0.logits"},
                  .types = {"I32", "I32", "F32"},
                  .shapes = {"[5]", "[3]", "[3,96]"},
                  .prompt = {3, 1, 4, 1, 5},
                  .positions = {4, 0, 4}};
    for (uint32_t i = 0; i < N_ROWS * N_VOCAB; i++)
        s->logits[i] = (float)(i % 7);
}

static void write_sample(const temp_dir *dir, const sample *s)
{
    static const size_t ends[] = {sizeof s->prompt, sizeof s->prompt + sizeof s->positions,
                                  sizeof s->prompt + sizeof s->positions + sizeof s->logits};
    static char file[8192];
    int n = 1;
    file[8] = '{';
    for (int i = 0; i < 3; i++)
        n += snprintf(file + 8 + n, 1024,
                      "%s\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%zu,%zu]}",
                      i > 0 ? "," : "", s->names[i], s->types[i], s->shapes[i],
                      i > 0 ? ends[i - 1] : 0, ends[i]);
    n += snprintf(file + 8 + n, 64, "}%*s", (int)s->pad_bytes, "");
    const uint64_t header_bytes = (uint64_t)n;
    memcpy(file, &header_bytes, sizeof header_bytes);
    char *data = file + 8 + n;
    memcpy(data, s->prompt, sizeof s->prompt);
    memcpy(data + ends[0], s->positions, sizeof s->positions);
    memcpy(data + ends[1], s->logits, sizeof s->logits);
    temp_write(dir, "r.safetensors", file, (size_t)(data - file) + ends[2]);
}

static void refuse(const eval_rig *rig, const temp_dir *dir, const sample *s, const char *message)
{
    err_info info = {0};
    eval_against_result result;
    write_sample(dir, s);
    const err_t err = eval_against(&rig->options, temp_path(dir, "r.safetensors"), &result, &info);
    ck_assert_msg(err == ERR_BAD_MODEL, "%s: %s", err_name(err), info.message);
    ck_assert_msg(strstr(info.message, message) != NULL, "%s", info.message);
    ck_assert_msg(strstr(info.message, "r.safetensors") != NULL, "%s", info.message);
    ck_assert_uint_eq(result.n_rows, 0);
}

START_TEST(data_may_lie_at_any_address)
{
    eval_rig rig;
    temp_dir dir;
    sample s;
    eval_against_result first = {0};
    temp_dir_open(&dir);
    eval_rig_open(fixtures[0], &rig);
    make_sample(&s);
    for (s.pad_bytes = 1; s.pad_bytes <= 8; s.pad_bytes++) {
        write_sample(&dir, &s);
        const eval_against_result r = must_compare(&rig, temp_path(&dir, "r.safetensors"));
        ck_assert_uint_eq(r.n_rows, 3); /* one of them twice */
        ck_assert(r.relative_error_max > 0.1);
        if (s.pad_bytes == 1) first = r;
        ck_assert_mem_eq(&r, &first, sizeof r);
    }
    eval_rig_close(&rig);
    temp_dir_close(&dir);
}
END_TEST

START_TEST(a_tensor_of_the_wrong_form_is_named)
{
    eval_rig rig;
    temp_dir dir;
    sample s;
    temp_dir_open(&dir);
    eval_rig_open(fixtures[0], &rig);
    make_sample(&s);
    s.names[0] = "p1.prompt";
    refuse(&rig, &dir, &s, "p0.prompt: missing");
    make_sample(&s);
    s.names[1] = "p0.positions";
    refuse(&rig, &dir, &s, "p0.logits_pos: missing");
    make_sample(&s);
    s.names[2] = "p0.logit";
    refuse(&rig, &dir, &s, "p0.logits: missing");
    make_sample(&s);
    s.types[0] = "F32";
    refuse(&rig, &dir, &s, "p0.prompt: is not I32 with 1 dimension");
    make_sample(&s);
    s.types[2] = "I32";
    refuse(&rig, &dir, &s, "p0.logits: is not F32 with 2 dimensions");
    make_sample(&s);
    s.shapes[0] = "[5,1]";
    refuse(&rig, &dir, &s, "p0.prompt: is not I32 with 1 dimension");
    make_sample(&s);
    s.shapes[2] = "[288]";
    refuse(&rig, &dir, &s, "p0.logits: is not F32 with 2 dimensions");
    make_sample(&s);
    s.shapes[2] = "[6,48]";
    refuse(&rig, &dir, &s, "p0.logits: its shape is not [3][96]");
    eval_rig_close(&rig);
    temp_dir_close(&dir);
}
END_TEST

START_TEST(a_value_out_of_range_is_named)
{
    eval_rig rig;
    temp_dir dir;
    sample s;
    temp_dir_open(&dir);
    eval_rig_open(fixtures[0], &rig);
    make_sample(&s);
    s.prompt[2] = N_VOCAB;
    refuse(&rig, &dir, &s, "p0.prompt: 96 at 2 is outside [0, 96)");
    make_sample(&s);
    s.prompt[4] = -1;
    refuse(&rig, &dir, &s, "p0.prompt: -1 at 4 is outside [0, 96)");
    make_sample(&s);
    s.positions[1] = N_TOKENS;
    refuse(&rig, &dir, &s, "p0.logits_pos: 5 at 1 is outside [0, 5)");
    make_sample(&s);
    s.logits[N_VOCAB + 3] = NAN;
    refuse(&rig, &dir, &s, "p0.logits: row 1 is not finite");
    make_sample(&s);
    s.logits[2 * N_VOCAB] = -INFINITY;
    refuse(&rig, &dir, &s, "p0.logits: row 2 is not finite");
    make_sample(&s);
    memset(s.logits, 0, N_VOCAB * sizeof s.logits[0]);
    refuse(&rig, &dir, &s, "p0.logits: row 0 is all zero");
    eval_rig_close(&rig);
    temp_dir_close(&dir);
}
END_TEST

START_TEST(a_file_that_is_cut_short_or_absent_is_an_error)
{
    eval_rig rig;
    temp_dir dir;
    size_t n_bytes;
    eval_against_result result;
    err_info info = {0};
    temp_dir_open(&dir);
    eval_rig_open(fixtures[0], &rig);
    char *const bytes = temp_read(reference_of(fixtures[0]), &n_bytes);
    temp_write(&dir, "cut.safetensors", bytes, n_bytes - 1);
    free(bytes);
    const char *path = temp_path(&dir, "cut.safetensors");
    ck_assert_int_eq(eval_against(&rig.options, path, &result, &info), ERR_BAD_MODEL);
    ck_assert_ptr_nonnull(strstr(info.message, "cut.safetensors"));
    info = (err_info){0};
    path = temp_path(&dir, "absent.safetensors");
    ck_assert_int_eq(eval_against(&rig.options, path, &result, &info), ERR_IO);
    ck_assert_ptr_nonnull(strstr(info.message, "absent.safetensors"));
    eval_rig_close(&rig);
    temp_dir_close(&dir);
}
END_TEST

START_TEST(a_prompt_beyond_the_models_positions_is_refused)
{
    eval_rig rig;
    temp_dir dir;
    sample s;
    temp_dir_open(&dir);
    eval_rig_open(fixtures[0], &rig);
    dev *const d = rig.d;
    model *small;
    const model_options options = {.n_step_tokens_max = RIG_STEP_TOKENS_MAX, .n_positions_max = 4};
    ck_assert_int_eq(model_open(d, fixtures[0], &options, &small, NULL), ERR_OK);
    model *const whole = rig.options.m;
    rig.options.m = small;
    make_sample(&s);
    refuse(&rig, &dir, &s, "p0.prompt: is longer than the model's positions");
    rig.options.m = whole;
    model_close(small);
    eval_rig_close(&rig);
    temp_dir_close(&dir);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(every_fixture_is_within_a_thousandth_and_agrees),
    TEST_CASE(the_result_does_not_depend_on_groups_or_a_small_pool),
    TEST_CASE(a_rounded_cache_is_further_away),
    TEST_CASE(the_second_half_of_a_prompt_is_one_token_a_step),
    TEST_CASE(a_stop_leaves_the_finished_prompts),
    TEST_CASE(data_may_lie_at_any_address),
    TEST_CASE(a_tensor_of_the_wrong_form_is_named),
    TEST_CASE(a_value_out_of_range_is_named),
    TEST_CASE(a_file_that_is_cut_short_or_absent_is_an_error),
    TEST_CASE(a_prompt_beyond_the_models_positions_is_refused),
    TEST_CASES_END,
};
