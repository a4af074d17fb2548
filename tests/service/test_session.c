/* Promises of service/session.h: text rules, stop strings, what a reader may rely on while it grows.
 *
 * The tokenizer is the default model's: it has a token for every byte, so any text can be spelled. */
#include "service/session_write.h"
#include "tests/test_main.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static tokenizer *open_tokenizer(void)
{
    tokenizer *t;
    err_info info = {0};
    ck_assert_msg(tokenizer_open("models/storyteller", &t, &info) == ERR_OK, "%s", info.message);
    return t;
}

/* The token whose piece is exactly these bytes. */
static uint32_t token_of(const tokenizer *t, const char *bytes, size_t n_bytes)
{
    for (uint32_t id = 0; id < tokenizer_n_vocab(t); id++) {
        const tok_piece piece = tokenizer_piece(t, id, false);
        if (piece.n_bytes == n_bytes && memcmp(piece.bytes, bytes, n_bytes) == 0) return id;
    }
    ck_abort_msg("no token for '%.*s'", (int)n_bytes, bytes);
    return 0;
}

static uint32_t token(const tokenizer *t, const char *text)
{
    return token_of(t, text, strlen(text));
}

static const uint32_t PROMPT[] = {1, 5, 9};
static const uint32_t EOS[] = {2};

static session_spec plain_spec(void)
{
    return (session_spec){.prompt = PROMPT,
                          .n_prompt = 3,
                          .max_tokens = 64,
                          .sampling = {.top_p = 1, .repetition_penalty = 1, .n_logprobs = -1},
                          .eos = EOS,
                          .n_eos = 1,
                          .skip_special = true,
                          .salt = ""};
}

typedef struct fixture {
    tokenizer *t;
    session *s;
    session_finish finish; /* of the last push */
} fixture;

static fixture fixture_open(session_spec spec, const char *const *stops)
{
    fixture f = {.t = open_tokenizer()};
    size_t stop_bytes[SESSION_STOPS_MAX];
    spec.stops = stops;
    spec.stop_bytes = stop_bytes;
    for (spec.n_stops = 0; stops != NULL && stops[spec.n_stops] != NULL; spec.n_stops++)
        stop_bytes[spec.n_stops] = strlen(stops[spec.n_stops]);
    ck_assert_int_eq(session_open(f.t, &spec, &f.s), ERR_OK);
    session_begin(f.s, 1, 0);
    return f;
}

static void fixture_close(fixture *f)
{
    session_release(f->s);
    tokenizer_close(f->t);
}

/* Pushes one token; on a finish ends the session as the engine would. */
static void push(fixture *f, uint32_t id)
{
    const sampler_result result = {.token = id};
    ck_assert_int_eq(f->finish, FINISH_NONE);
    f->finish = session_push(f->s, &result, 2);
    if (f->finish == FINISH_NONE) {
        session_publish(f->s);
    } else {
        session_end(f->s, f->finish, 3);
    }
}

static void push_text(fixture *f, const char *text)
{
    for (; *text != '\0'; text++)
        push(f, token_of(f->t, text, 1));
}

static uint32_t byte_token(const tokenizer *t, uint8_t byte)
{
    const char bytes[1] = {(char)byte};
    return token_of(t, bytes, 1);
}

static void expect_text(const fixture *f, const char *text)
{
    const session_progress p = session_read(f->s);
    ck_assert_msg(p.n_text_bytes == strlen(text) &&
                      memcmp(session_text(f->s), text, p.n_text_bytes) == 0,
                  "text is '%.*s', not '%s'", (int)p.n_text_bytes, session_text(f->s), text);
}

static void expect_finish(const fixture *f, session_finish finish)
{
    ck_assert_int_eq(session_read(f->s).finish, finish);
}

START_TEST(text_without_stops_is_shown_at_once)
{
    fixture f = fixture_open(plain_spec(), NULL);
    push_text(&f, "ab");
    expect_text(&f, "ab");
    push(&f, token(f.t, " the"));
    expect_text(&f, "ab the");
    ck_assert_uint_eq(session_read(f.s).n_tokens, 3);
    ck_assert_uint_eq(session_read(f.s).n_tokens_text, 3);
    ck_assert_uint_eq(session_token_text_end(f.s, 0), 1);
    ck_assert_uint_eq(session_token_text_end(f.s, 2), 6);
    expect_finish(&f, FINISH_NONE);
    fixture_close(&f);
}
END_TEST

START_TEST(the_first_word_of_a_continuation_keeps_its_space)
{
    fixture f = fixture_open(plain_spec(), NULL);
    push(&f, token(f.t, " the"));
    expect_text(&f, " the");
    fixture_close(&f);
}
END_TEST

START_TEST(a_stop_string_within_a_token_cuts_it)
{
    fixture f = fixture_open(plain_spec(), (const char *const[]){"th", NULL});
    push_text(&f, "x");
    push(&f, token(f.t, " the"));
    expect_text(&f, "x ");
    expect_finish(&f, FINISH_STOP);
    const session_stop_reason reason = session_get_stop_reason(f.s);
    ck_assert(reason.is_string);
    ck_assert_uint_eq(reason.stop, 0);
    ck_assert_uint_eq(session_token_text_end(f.s, 1), 2);
    ck_assert_uint_eq(session_read(f.s).n_tokens, 2);
    fixture_close(&f);
}
END_TEST

START_TEST(a_stop_string_across_tokens_never_leaks_its_head)
{
    fixture f = fixture_open(plain_spec(), (const char *const[]){"END", NULL});
    push_text(&f, "aE");
    expect_text(&f, "a");
    ck_assert_uint_eq(session_read(f.s).n_tokens, 2);
    ck_assert_uint_eq(session_read(f.s).n_tokens_text, 1);
    push_text(&f, "N");
    expect_text(&f, "a");
    push_text(&f, "D");
    expect_text(&f, "a");
    expect_finish(&f, FINISH_STOP);
    ck_assert_uint_eq(session_read(f.s).n_tokens, 4);
    ck_assert_uint_eq(session_read(f.s).n_tokens_text, 4);
    fixture_close(&f);
}
END_TEST

START_TEST(only_what_may_become_a_stop_string_is_held_back)
{
    fixture f = fixture_open(plain_spec(), (const char *const[]){"ababc", "zzzzzzzz", NULL});
    push_text(&f, "ab");
    expect_text(&f, "");
    push_text(&f, "ab");
    expect_text(&f, "");
    push_text(&f, "a"); /* ab|aba: the longest suffix that begins "ababc" is "aba" */
    expect_text(&f, "ab");
    push_text(&f, "x");
    expect_text(&f, "ababax");
    push_text(&f, "ababc");
    expect_text(&f, "ababax");
    expect_finish(&f, FINISH_STOP);
    fixture_close(&f);
}
END_TEST

START_TEST(of_overlapping_stop_strings_the_first_to_end_cuts)
{
    fixture f = fixture_open(plain_spec(), (const char *const[]){"bcd", "abc", "c", NULL});
    push_text(&f, "xab");
    expect_text(&f, "x");
    push_text(&f, "c");
    expect_text(&f, "x"); /* "abc" and "c" end at one byte: the longer one */
    ck_assert_uint_eq(session_get_stop_reason(f.s).stop, 1);
    fixture_close(&f);
}
END_TEST

START_TEST(include_stop_keeps_the_stop_string_and_holds_nothing)
{
    session_spec spec = plain_spec();
    spec.include_stop = true;
    fixture f = fixture_open(spec, (const char *const[]){"th", NULL});
    push_text(&f, "t");
    expect_text(&f, "t");
    push(&f, token(f.t, " the"));
    expect_text(&f, "t th");
    expect_finish(&f, FINISH_STOP);
    fixture_close(&f);
}
END_TEST

START_TEST(eos_lets_out_what_was_held)
{
    fixture f = fixture_open(plain_spec(), (const char *const[]){"END", NULL});
    push_text(&f, "xEN");
    expect_text(&f, "x");
    push(&f, 2);
    expect_text(&f, "xEN");
    expect_finish(&f, FINISH_STOP);
    const session_stop_reason reason = session_get_stop_reason(f.s);
    ck_assert(!reason.is_string && !reason.is_token);
    ck_assert_uint_eq(session_read(f.s).n_tokens, 4); /* EOS counts */
    fixture_close(&f);
}
END_TEST

START_TEST(the_length_limit_lets_out_what_was_held)
{
    session_spec spec = plain_spec();
    spec.max_tokens = 3;
    fixture f = fixture_open(spec, (const char *const[]){"ENDING", NULL});
    push_text(&f, "END");
    expect_text(&f, "END");
    expect_finish(&f, FINISH_LENGTH);
    fixture_close(&f);
}
END_TEST

START_TEST(a_cancelled_session_keeps_its_text)
{
    fixture f = fixture_open(plain_spec(), (const char *const[]){"END", NULL});
    push_text(&f, "xEN");
    session_cancel(f.s);
    session_cancel(f.s);
    ck_assert(session_is_cancelled(f.s));
    session_end(f.s, FINISH_ABORT, 3);
    expect_text(&f, "xEN");
    expect_finish(&f, FINISH_ABORT);
    fixture_close(&f);
}
END_TEST

START_TEST(a_character_is_never_broken)
{
    fixture f = fixture_open(plain_spec(), NULL);
    static const uint8_t smile[] = {0xf0, 0x9f, 0x98, 0x80};
    for (int i = 0; i < 4; i++) {
        expect_text(&f, "");
        push(&f, byte_token(f.t, smile[i]));
    }
    expect_text(&f, "\xf0\x9f\x98\x80");
    fixture_close(&f);
}
END_TEST

START_TEST(an_unfinished_character_comes_out_replaced_at_the_end)
{
    session_spec spec = plain_spec();
    spec.max_tokens = 2;
    fixture f = fixture_open(spec, NULL);
    push(&f, byte_token(f.t, 0xf0));
    push(&f, byte_token(f.t, 0x9f));
    expect_text(&f, "\xef\xbf\xbd");
    ck_assert_uint_eq(session_token_text_end(f.s, 1), 3);
    expect_finish(&f, FINISH_LENGTH);
    fixture_close(&f);
}
END_TEST

START_TEST(a_stop_string_of_several_bytes_a_character_is_found)
{
    fixture f = fixture_open(plain_spec(), (const char *const[]){"\xc3\xa9!", NULL});
    push_text(&f, "caf");
    push(&f, byte_token(f.t, 0xc3));
    push(&f, byte_token(f.t, 0xa9));
    expect_text(&f, "caf");
    push_text(&f, "!");
    expect_text(&f, "caf");
    expect_finish(&f, FINISH_STOP);
    fixture_close(&f);
}
END_TEST

START_TEST(a_stop_id_ends_and_keeps_its_text)
{
    session_spec spec = plain_spec();
    fixture probe = fixture_open(spec, NULL);
    const uint32_t stop_id = token(probe.t, " the");
    fixture_close(&probe);
    spec.stop_ids = &stop_id;
    spec.n_stop_ids = 1;
    fixture f = fixture_open(spec, NULL);
    push_text(&f, "x");
    push(&f, stop_id);
    expect_text(&f, "x the");
    expect_finish(&f, FINISH_STOP);
    ck_assert(session_get_stop_reason(f.s).is_token);
    ck_assert_uint_eq(session_get_stop_reason(f.s).token, stop_id);
    fixture_close(&f);
}
END_TEST

START_TEST(special_tokens_are_shown_only_when_asked)
{
    session_spec spec = plain_spec();
    spec.skip_special = false;
    fixture f = fixture_open(spec, NULL);
    push_text(&f, "x");
    push(&f, 2);
    expect_text(&f, "x</s>");
    fixture_close(&f);
    spec.ignore_eos = true;
    spec.skip_special = true;
    f = fixture_open(spec, NULL);
    push_text(&f, "x");
    push(&f, 2);
    push_text(&f, "y");
    expect_text(&f, "xy");
    expect_finish(&f, FINISH_NONE);
    fixture_close(&f);
}
END_TEST

START_TEST(min_tokens_bans_ends_and_ignores_stop_strings)
{
    static const uint32_t stop_id = 77;
    session_spec spec = plain_spec();
    spec.min_tokens = 4;
    spec.stop_ids = &stop_id;
    spec.n_stop_ids = 1;
    fixture f = fixture_open(spec, (const char *const[]){"ab", NULL});
    for (int i = 0; i < 4; i++) {
        uint32_t n_banned;
        const uint32_t *banned = session_banned(f.s, &n_banned);
        ck_assert_uint_eq(n_banned, 2);
        ck_assert_uint_eq(banned[0], 2);
        ck_assert_uint_eq(banned[1], 77);
        push_text(&f, i % 2 == 0 ? "a" : "b");
    }
    expect_text(&f, "abab");
    uint32_t n_banned;
    session_banned(f.s, &n_banned);
    ck_assert_uint_eq(n_banned, 0);
    push_text(&f, "ab");
    expect_text(&f, "abab");
    expect_finish(&f, FINISH_STOP);
    fixture_close(&f);
}
END_TEST

START_TEST(a_stop_string_may_begin_before_min_tokens)
{
    session_spec spec = plain_spec();
    spec.min_tokens = 1;
    fixture f = fixture_open(spec, (const char *const[]){"ab", NULL});
    push_text(&f, "ab");
    expect_text(&f, "");
    expect_finish(&f, FINISH_STOP);
    fixture_close(&f);
}
END_TEST

START_TEST(log_probabilities_are_kept_for_prompt_and_output)
{
    session_spec spec = plain_spec();
    spec.sampling.n_logprobs = 2;
    spec.score_prompt = true;
    fixture f = fixture_open(spec, NULL);
    ck_assert_uint_eq(session_n_scored(f.s), 1);
    for (uint32_t p = 1; p < 3; p++) {
        session_push_score(f.s, p,
                           &(sampler_result){.token = PROMPT[p],
                                             .logprob = -(float)p,
                                             .n_top = 2,
                                             .top = {{7, -0.5f}, {8, -0.75f}}});
    }
    session_push(f.s, &(sampler_result){.token = 40, .logprob = -3, .n_top = 1, .top = {{9, -1}}},
                 2);
    session_publish(f.s);
    const session_progress p = session_read(f.s);
    ck_assert_uint_eq(p.n_prompt_scored, 3);
    ck_assert_uint_eq(p.n_tokens, 1);
    const session_logprob second = session_prompt_logprob(f.s, 2);
    ck_assert_uint_eq(second.token, 9);
    ck_assert_float_eq(second.logprob, -2);
    ck_assert_uint_eq(second.n_top, 2);
    ck_assert_uint_eq(second.top[1].token, 8);
    const session_logprob out = session_output_logprob(f.s, 0);
    ck_assert_uint_eq(out.token, 40);
    ck_assert_uint_eq(out.n_top, 1);
    ck_assert_float_eq(out.top[0].logprob, -1);
    fixture_close(&f);
}
END_TEST

START_TEST(the_spec_is_copied_deeply)
{
    session_spec spec = plain_spec();
    char stop[] = "END", salt[] = "tenant";
    uint32_t prompt[] = {4, 5}, eos[] = {2}, ids[] = {9};
    uint64_t allowed[] = {UINT64_MAX};
    sampler_bias bias[] = {{3, 1.5f}};
    spec.prompt = prompt;
    spec.n_prompt = 2;
    spec.eos = eos;
    spec.stop_ids = ids;
    spec.n_stop_ids = 1;
    spec.salt = salt;
    spec.salt_bytes = 6;
    spec.sampling.bias = bias;
    spec.sampling.n_bias = 1;
    spec.sampling.allowed = allowed;
    spec.n_allowed_words = 1;
    fixture f = fixture_open(spec, (const char *const[]){stop, NULL});
    memset(stop, 'x', 3);
    memset(salt, 'x', 6);
    prompt[0] = eos[0] = ids[0] = bias[0].token = 1000;
    allowed[0] = 0;
    const session_spec *copy = session_get_spec(f.s);
    ck_assert_int_eq(memcmp(copy->stops[0], "END", 3), 0);
    ck_assert_int_eq(memcmp(copy->salt, "tenant", 6), 0);
    ck_assert_uint_eq(copy->prompt[0], 4);
    ck_assert_uint_eq(copy->eos[0], 2);
    ck_assert_uint_eq(copy->stop_ids[0], 9);
    ck_assert_uint_eq(copy->sampling.bias[0].token, 3);
    ck_assert_uint_eq(copy->sampling.allowed[0], UINT64_MAX);
    fixture_close(&f);
}
END_TEST

static void count_call(void *ctx)
{
    ++*(int *)ctx;
}

START_TEST(the_last_reference_releases)
{
    int n_calls = 0;
    session_spec spec = plain_spec();
    spec.on_release = count_call;
    spec.progress_ctx = &n_calls;
    fixture f = fixture_open(spec, NULL);
    session_retain(f.s);
    session_release(f.s);
    ck_assert_int_eq(n_calls, 0);
    fixture_close(&f);
    ck_assert_int_eq(n_calls, 1);
}
END_TEST

START_TEST(output_as_long_as_allowed_fits_whatever_its_tokens)
{
    session_spec spec = plain_spec();
    spec.max_tokens = 3000;
    fixture f = fixture_open(spec, NULL);
    uint32_t longest = 0;
    for (uint32_t id = 0; id < tokenizer_n_vocab(f.t); id++) {
        if (tokenizer_piece(f.t, id, false).n_bytes > tokenizer_piece(f.t, longest, false).n_bytes)
            longest = id;
    }
    for (uint32_t i = 0; i < spec.max_tokens; i++) {
        const bool is_broken = i % 3 == 0 || i + 1 == spec.max_tokens;
        push(&f, is_broken ? byte_token(f.t, 0xf0) : longest);
    }
    expect_finish(&f, FINISH_LENGTH);
    fixture_close(&f);
}
END_TEST

/* ---- one writer, one reader ------------------------------------------------------------------------ */

static void *read_to_the_end(void *arg)
{
    session *s = arg;
    session_progress last = {0};
    for (;;) {
        const session_progress p = session_read(s);
        ck_assert_uint_ge(p.n_tokens, last.n_tokens);
        ck_assert_uint_ge(p.n_text_bytes, last.n_text_bytes);
        ck_assert_uint_le(p.n_tokens_text, p.n_tokens);
        for (size_t i = last.n_text_bytes; i < p.n_text_bytes; i++)
            ck_assert_int_eq(session_text(s)[i], "abc"[i % 3]);
        for (uint32_t i = last.n_tokens_text; i < p.n_tokens_text; i++)
            ck_assert_uint_le(session_token_text_end(s, i), p.n_text_bytes);
        for (uint32_t i = last.n_tokens; i < p.n_tokens; i++) {
            ck_assert_uint_eq(session_output_logprob(s, i).token, session_tokens(s)[i]);
            ck_assert_uint_eq(session_output_logprob(s, i).top[0].token, i);
        }
        last = p;
        if (p.finish != FINISH_NONE) break;
    }
    ck_assert_uint_eq(last.n_tokens, 999);
    ck_assert_uint_eq(last.n_text_bytes, 999);
    ck_assert_uint_eq(session_get_times(s).finish_ns, 3);
    return NULL;
}

START_TEST(a_reader_sees_only_what_is_complete)
{
    for (int round = 0; round < 20; round++) {
        session_spec spec = plain_spec();
        spec.max_tokens = 999;
        spec.sampling.n_logprobs = 1;
        fixture f = fixture_open(spec, (const char *const[]){"cab!", NULL});
        const uint32_t ids[] = {token(f.t, "a"), token(f.t, "b"), token(f.t, "c")};
        pthread_t reader;
        ck_assert_int_eq(pthread_create(&reader, NULL, read_to_the_end, f.s), 0);
        for (uint32_t i = 0; i < 999; i++) {
            const sampler_result r = {
                .token = ids[i % 3], .logprob = -1, .n_top = 1, .top = {{i, -1}}};
            const session_finish finish = session_push(f.s, &r, 2);
            if (finish == FINISH_NONE) {
                session_publish(f.s);
            } else {
                session_end(f.s, finish, 3);
            }
        }
        pthread_join(reader, NULL);
        fixture_close(&f);
    }
}
END_TEST

const test_case test_cases[] = {TEST_CASE(text_without_stops_is_shown_at_once),
                                TEST_CASE(the_first_word_of_a_continuation_keeps_its_space),
                                TEST_CASE(a_stop_string_within_a_token_cuts_it),
                                TEST_CASE(a_stop_string_across_tokens_never_leaks_its_head),
                                TEST_CASE(only_what_may_become_a_stop_string_is_held_back),
                                TEST_CASE(of_overlapping_stop_strings_the_first_to_end_cuts),
                                TEST_CASE(include_stop_keeps_the_stop_string_and_holds_nothing),
                                TEST_CASE(eos_lets_out_what_was_held),
                                TEST_CASE(the_length_limit_lets_out_what_was_held),
                                TEST_CASE(a_cancelled_session_keeps_its_text),
                                TEST_CASE(a_character_is_never_broken),
                                TEST_CASE(an_unfinished_character_comes_out_replaced_at_the_end),
                                TEST_CASE(a_stop_string_of_several_bytes_a_character_is_found),
                                TEST_CASE(a_stop_id_ends_and_keeps_its_text),
                                TEST_CASE(special_tokens_are_shown_only_when_asked),
                                TEST_CASE(min_tokens_bans_ends_and_ignores_stop_strings),
                                TEST_CASE(a_stop_string_may_begin_before_min_tokens),
                                TEST_CASE(log_probabilities_are_kept_for_prompt_and_output),
                                TEST_CASE(the_spec_is_copied_deeply),
                                TEST_CASE(the_last_reference_releases),
                                TEST_CASE(output_as_long_as_allowed_fits_whatever_its_tokens),
                                TEST_CASE(a_reader_sees_only_what_is_complete),
                                TEST_CASES_END};
