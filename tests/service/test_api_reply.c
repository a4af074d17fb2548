/* Replies byte for byte, and the way from a session's output to the pieces of a stream. */
#include "service/api_call.h"
#include "service/session_write.h"
#include "tests/test_main.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Tokens of tests/golden/tokenizer-bpe. */
enum { BOS = 1, EOS = 2, A = 290, THE = 263, S = 264, E = 405, L = 415, COMMA = 430 };
enum { BYTE_F0 = 243, BYTE_9F = 162, BYTE_98 = 155, BYTE_80 = 131 }; /* U+1F600 is F0 9F 98 80 */

static tokenizer *open_tokenizer(void)
{
    tokenizer *t;
    err_info info = {0};
    if (tokenizer_open("tests/golden/tokenizer-bpe", &t, &info) != ERR_OK) {
        ck_abort_msg("%s", info.message);
    }
    return t;
}

static api_envelope envelope(const tokenizer *t)
{
    return (api_envelope){.id = "cmpl-1",
                          .created = 7,
                          .model = "m",
                          .fingerprint = "fp_0",
                          .tokenizer = t,
                          .shape = &api_shape_completion};
}

#define HEAD                                                                           \
    "{\"id\":\"cmpl-1\",\"object\":\"text_completion\",\"created\":7,\"model\":\"m\"," \
    "\"system_fingerprint\":\"fp_0\",\"choices\":["

static void check_text(char *text, size_t n_bytes, const char *expected)
{
    ck_assert_ptr_nonnull(text);
    ck_assert_str_eq(text, expected);
    ck_assert_uint_eq(n_bytes, strlen(expected));
    free(text);
}

START_TEST(a_document_has_the_shape_that_clients_know)
{
    const api_envelope e = envelope(NULL);
    const api_usage usage = {.n_prompt = 3, .n_output = 5, .n_cached = 2};
    const api_piece pieces[] = {
        {.index = 0, .text = " b\"\n", .text_bytes = 4, .finish = "length", .stop_token = -1},
        {.index = 1, .text = "", .finish = "stop", .stop_token = 9},
        {.index = 2,
         .echo = "pre",
         .echo_bytes = 3,
         .text = "x",
         .text_bytes = 1,
         .finish = "stop",
         .stop_token = -1,
         .stop_text = "END",
         .stop_text_bytes = 3},
    };
    size_t n_bytes;
    char *text = api_reply_document(&e, pieces, 3, &usage, &n_bytes);
    check_text(text, n_bytes,
               HEAD
               "{\"index\":0,\"text\":\" b\\\"\\n\",\"logprobs\":null,\"finish_reason\":\"length\","
               "\"stop_reason\":null},"
               "{\"index\":1,\"text\":\"\",\"logprobs\":null,\"finish_reason\":\"stop\","
               "\"stop_reason\":9},"
               "{\"index\":2,\"text\":\"prex\",\"logprobs\":null,\"finish_reason\":\"stop\","
               "\"stop_reason\":\"END\"}],"
               "\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":5,\"total_tokens\":8,"
               "\"prompt_tokens_details\":{\"cached_tokens\":2}}}");
}
END_TEST

START_TEST(chunks_say_usage_only_when_it_was_asked_for)
{
    const api_envelope e = envelope(NULL);
    const api_usage usage = {.n_prompt = 3, .n_output = 5};
    const api_piece piece = {.text = "a", .text_bytes = 1, .stop_token = -1};
    size_t n_bytes;
    char *text = api_reply_chunk(&e, &piece, false, &n_bytes);
    check_text(text, n_bytes,
               HEAD "{\"index\":0,\"text\":\"a\",\"logprobs\":null,\"finish_reason\":null,"
                    "\"stop_reason\":null}]}");
    text = api_reply_chunk(&e, &piece, true, &n_bytes);
    check_text(text, n_bytes,
               HEAD "{\"index\":0,\"text\":\"a\",\"logprobs\":null,\"finish_reason\":null,"
                    "\"stop_reason\":null}],\"usage\":null}");
    text = api_reply_usage_chunk(&e, &usage, &n_bytes);
    check_text(text, n_bytes,
               HEAD "],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":5,\"total_tokens\":8,"
                    "\"prompt_tokens_details\":{\"cached_tokens\":0}}}");
}
END_TEST

START_TEST(bytes_that_are_no_text_become_replacement_characters)
{
    const api_envelope e = envelope(NULL);
    const api_piece piece = {.text = "a\xf0\x9f", .text_bytes = 3, .stop_token = -1};
    size_t n_bytes;
    char *text = api_reply_chunk(&e, &piece, false, &n_bytes);
    ck_assert_ptr_nonnull(strstr(text, "\"text\":\"a\xef\xbf\xbd\""));
    free(text);
}
END_TEST

/* One choice with these scores; the logprobs object of the reply. */
static void check_scores(const api_envelope *e, const api_token_score *scores, size_t n,
                         const char *expected)
{
    const api_piece piece = {.text = "", .scores = scores, .n_scores = n, .stop_token = -1};
    size_t n_bytes;
    char whole[4096];
    snprintf(whole, sizeof whole,
             HEAD "{\"index\":0,\"text\":\"\",\"logprobs\":%s,\"finish_reason\":null,"
                  "\"stop_reason\":null}]}",
             expected);
    char *text = api_reply_chunk(e, &piece, false, &n_bytes);
    check_text(text, n_bytes, whole);
}

START_TEST(a_token_is_in_its_own_map_with_the_same_number)
{
    tokenizer *t = open_tokenizer();
    const api_envelope e = envelope(t);
    const sampler_entry top[] = {{E, -0.1f}, {L, -2.5f}};
    const api_token_score scores[] = {
        {.token = BOS, .is_unscored = true},
        {.token = COMMA, .logprob = -7.25f, .top = top, .n_top = 2, .text_offset = 4},
        {.token = L, .logprob = -2.5f, .top = top, .n_top = 2, .text_offset = 5}};
    check_scores(&e, scores, 3,
                 "{\"tokens\":[\"<s>\",\",\",\"l\"],"
                 "\"token_logprobs\":[null,-7.25,-2.5],"
                 "\"top_logprobs\":[null,{\"e\":-0.100000001,\"l\":-2.5,\",\":-7.25},"
                 "{\"e\":-0.100000001,\"l\":-2.5}],"
                 "\"text_offset\":[0,4,5]}");
    tokenizer_close(t);
}
END_TEST

START_TEST(a_k_of_0_still_returns_the_token)
{
    tokenizer *t = open_tokenizer();
    const api_envelope e = envelope(t);
    const api_token_score scores[] = {{.token = E, .logprob = -INFINITY}};
    check_scores(
        &e, scores, 1,
        "{\"tokens\":[\"e\"],\"token_logprobs\":[-9999.0],\"top_logprobs\":[{\"e\":-9999.0}],"
        "\"text_offset\":[0]}");
    check_scores(&e, scores, 0,
                 "{\"tokens\":[],\"token_logprobs\":[],\"top_logprobs\":[],\"text_offset\":[]}");
    tokenizer_close(t);
}
END_TEST

START_TEST(tokens_that_look_alike_do_not_hide_each_other)
{
    tokenizer *t = open_tokenizer();
    api_envelope e = envelope(t);
    const sampler_entry top[] = {{BYTE_F0, -1.0f}, {BYTE_9F, -2.0f}};
    const api_token_score scores[] = {{.token = BYTE_98, .logprob = -3.0f, .top = top, .n_top = 2}};
    check_scores(&e, scores, 1,
                 "{\"tokens\":[\"\xef\xbf\xbd\"],\"token_logprobs\":[-3.0],\"top_logprobs\":[{"
                 "\"\xef\xbf\xbd\":-1.0,\"token_id:162\":-2.0,\"token_id:155\":-3.0}],"
                 "\"text_offset\":[0]}");
    e.tokens_as_ids = true;
    check_scores(&e, scores, 1,
                 "{\"tokens\":[\"token_id:155\"],\"token_logprobs\":[-3.0],\"top_logprobs\":[{"
                 "\"token_id:243\":-1.0,\"token_id:162\":-2.0,\"token_id:155\":-3.0}],"
                 "\"text_offset\":[0]}");
    tokenizer_close(t);
}
END_TEST

/* ---- from sessions to pieces ------------------------------------------------------------------------- */

/* A call with one choice whose session is moved by hand. */
typedef struct rig {
    api_context api;
    api_call call;
    api_prompt prompt;
    api_choice choice;
    session *s;
} rig;

static void ignore(void *ctx)
{
    (void)ctx;
}

static void rig_init(rig *r, const session_spec *spec)
{
    *r = (rig){0};
    tokenizer *t = open_tokenizer();
    session_spec own = *spec;
    own.sampling.top_p = 1;
    own.sampling.repetition_penalty = 1;
    own.salt = "";
    own.skip_special = true;
    own.on_progress = ignore;
    own.on_release = ignore;
    ck_assert_int_eq(session_open(t, &own, &r->s), ERR_OK);
    r->api.t = t;
    r->call.api = &r->api;
    r->call.request = (completion_request){.n = 1,
                                           .prompts = &r->prompt,
                                           .n_prompts = 1,
                                           .skip_special = true,
                                           .echo = own.score_prompt,
                                           .sampling = own.sampling};
    r->prompt = (api_prompt){.ids = (uint32_t *)(uintptr_t)own.prompt, .n_ids = own.n_prompt};
    ck_assert_int_eq(tokenizer_decode(t, own.prompt, own.n_prompt, false, &r->prompt.text,
                                      &r->prompt.text_bytes),
                     ERR_OK);
    r->choice.session = r->s;
    r->call.choices = &r->choice;
    r->call.n_choices = 1;
    session_begin(r->s, 1, 0);
}

static void rig_deinit(rig *r)
{
    session_release(r->s);
    free(r->prompt.text);
    tokenizer_close((tokenizer *)(uintptr_t)r->api.t);
}

static void push(rig *r, uint32_t token, session_finish expected)
{
    const sampler_result result = {
        .token = token, .logprob = -1.5f, .n_top = 1, .top = {{E, -0.5f}}};
    const session_finish finish = session_push(r->s, &result, 2);
    ck_assert_int_eq(finish, expected);
    if (finish == FINISH_NONE) {
        session_publish(r->s);
    } else {
        session_end(r->s, finish, 3);
    }
}

/* True if a chunk is due; then takes it. */
static bool take(rig *r, api_piece *piece)
{
    const session_progress progress = api_choice_read(&r->choice);
    if (!api_choice_has_news(&r->call, &r->choice, &progress)) return false;
    ck_assert(api_choice_take_piece(&r->call, 0, &progress, piece));
    return true;
}

START_TEST(a_stream_has_no_empty_chunks_and_ends_once)
{
    static const uint32_t prompt[] = {BOS, A};
    rig r;
    api_piece piece;
    rig_init(&r,
             &(session_spec){
                 .prompt = prompt, .n_prompt = 2, .max_tokens = 6, .sampling = {.n_logprobs = -1}});
    ck_assert(!take(&r, &piece));
    push(&r, S, FINISH_NONE);
    ck_assert(take(&r, &piece));
    ck_assert_uint_eq(piece.text_bytes, 2);
    ck_assert_mem_eq(piece.text, " s", 2);
    ck_assert_ptr_null(piece.finish);
    ck_assert_ptr_null(piece.scores);
    ck_assert(!take(&r, &piece));
    static const uint32_t emoji[] = {BYTE_F0, BYTE_9F, BYTE_98};
    for (int i = 0; i < 3; i++) {
        push(&r, emoji[i], FINISH_NONE);
        ck_assert(!take(&r, &piece)); /* a part of a character is no text yet */
    }
    push(&r, BYTE_80, FINISH_NONE);
    ck_assert(take(&r, &piece));
    ck_assert_uint_eq(piece.text_bytes, 4);
    push(&r, E, FINISH_LENGTH);
    ck_assert(take(&r, &piece));
    ck_assert_mem_eq(piece.text, "e", 1);
    ck_assert_str_eq(piece.finish, "length");
    ck_assert(!take(&r, &piece));
    rig_deinit(&r);
}
END_TEST

START_TEST(an_end_without_text_is_still_a_chunk)
{
    static const uint32_t prompt[] = {BOS, A}, eos[] = {EOS};
    rig r;
    api_piece piece;
    rig_init(&r, &(session_spec){.prompt = prompt,
                                 .n_prompt = 2,
                                 .max_tokens = 6,
                                 .eos = eos,
                                 .n_eos = 1,
                                 .sampling = {.n_logprobs = -1}});
    push(&r, S, FINISH_NONE);
    ck_assert(take(&r, &piece));
    push(&r, EOS, FINISH_STOP);
    ck_assert(take(&r, &piece));
    ck_assert_uint_eq(piece.text_bytes, 0);
    ck_assert_str_eq(piece.finish, "stop");
    ck_assert_int_eq(piece.stop_token, -1);
    ck_assert_ptr_null(piece.stop_text);
    rig_deinit(&r);
}
END_TEST

START_TEST(a_stop_string_is_named_and_cut)
{
    static const uint32_t prompt[] = {BOS, A};
    static const char *const stops[] = {"zz", "el"};
    static const size_t stop_bytes[] = {2, 2};
    rig r;
    api_piece piece;
    rig_init(&r, &(session_spec){.prompt = prompt,
                                 .n_prompt = 2,
                                 .max_tokens = 6,
                                 .stops = stops,
                                 .stop_bytes = stop_bytes,
                                 .n_stops = 2,
                                 .sampling = {.n_logprobs = -1}});
    push(&r, S, FINISH_NONE);
    push(&r, E, FINISH_NONE);
    ck_assert(take(&r, &piece));
    ck_assert_uint_eq(piece.text_bytes, 2); /* the e may begin the stop string */
    push(&r, L, FINISH_STOP);
    ck_assert(take(&r, &piece));
    ck_assert_uint_eq(piece.text_bytes, 0);
    ck_assert_str_eq(piece.finish, "stop");
    ck_assert_uint_eq(piece.stop_text_bytes, 2);
    ck_assert_mem_eq(piece.stop_text, "el", 2);
    rig_deinit(&r);
}
END_TEST

/* As lm-eval asks: token ids, echo, logprobs 1, max_tokens 1. */
START_TEST(echo_with_logprobs_scores_every_prompt_token_but_the_first)
{
    static const uint32_t prompt[] = {A, THE, COMMA};
    static const size_t offsets[] = {0, 1, 5, 6};
    rig r;
    api_piece piece;
    rig_init(&r, &(session_spec){.prompt = prompt,
                                 .n_prompt = 3,
                                 .max_tokens = 1,
                                 .score_prompt = true,
                                 .sampling = {.n_logprobs = 1}});
    for (uint32_t i = 1; i < 3; i++) {
        const sampler_result score = {
            .token = prompt[i], .logprob = -(float)i, .n_top = 1, .top = {{E, -0.5f}}};
        session_push_score(r.s, i, &score);
    }
    push(&r, E, FINISH_LENGTH);
    ck_assert(take(&r, &piece));
    ck_assert_uint_eq(piece.n_scores, 4);
    ck_assert_uint_eq(piece.echo_bytes, 6);
    ck_assert_mem_eq(piece.echo, "A the,", 6);
    ck_assert_uint_eq(piece.text_bytes, 1);
    ck_assert(piece.scores[0].is_unscored && piece.scores[0].drops_space);
    for (size_t i = 0; i < 4; i++)
        ck_assert_uint_eq(piece.scores[i].text_offset, offsets[i]);
    for (uint32_t i = 1; i < 3; i++) {
        ck_assert(!piece.scores[i].is_unscored);
        ck_assert_uint_eq(piece.scores[i].token, prompt[i]);
        ck_assert(piece.scores[i].logprob == -(float)i);
        ck_assert(!piece.scores[i].drops_space);
    }
    ck_assert_uint_eq(piece.scores[3].token, E);
    ck_assert(piece.scores[3].logprob == -1.5f);
    api_piece_deinit(&piece);
    rig_deinit(&r);
}
END_TEST

START_TEST(offsets_of_a_stream_count_characters_from_its_beginning)
{
    static const uint32_t prompt[] = {BOS, A};
    static const uint32_t output[] = {S, BYTE_F0, BYTE_9F, BYTE_98, BYTE_80, E, L};
    static const size_t offsets[] = {0, 2, 2, 2, 2, 3, 4};
    rig r;
    size_t n_seen = 0;
    rig_init(&r,
             &(session_spec){
                 .prompt = prompt, .n_prompt = 2, .max_tokens = 7, .sampling = {.n_logprobs = 0}});
    for (size_t i = 0; i < 7; i++) {
        api_piece piece;
        push(&r, output[i], i < 6 ? FINISH_NONE : FINISH_LENGTH);
        if (!take(&r, &piece)) continue;
        for (size_t k = 0; k < piece.n_scores; k++, n_seen++) {
            ck_assert_uint_eq(piece.scores[k].token, output[n_seen]);
            ck_assert_uint_eq(piece.scores[k].text_offset, offsets[n_seen]);
        }
        api_piece_deinit(&piece);
    }
    ck_assert_uint_eq(n_seen, 7);
    rig_deinit(&r);
}
END_TEST

START_TEST(a_choice_that_needs_no_engine_is_finished)
{
    api_context api = {0};
    api_prompt prompt = {.text = (char *)(uintptr_t) "abc", .text_bytes = 3};
    api_choice choice = {0};
    api_call call = {.api = &api, .choices = &choice, .n_choices = 1};
    api_piece piece;
    call.request = (completion_request){
        .n = 1, .prompts = &prompt, .n_prompts = 1, .echo = true, .sampling = {.n_logprobs = -1}};
    const session_progress progress = api_choice_read(&choice);
    ck_assert(api_choice_has_news(&call, &choice, &progress));
    ck_assert(api_choice_take_piece(&call, 0, &progress, &piece));
    ck_assert_mem_eq(piece.echo, "abc", 3);
    ck_assert_uint_eq(piece.text_bytes, 0);
    ck_assert_str_eq(piece.finish, "length");
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(a_document_has_the_shape_that_clients_know),
    TEST_CASE(chunks_say_usage_only_when_it_was_asked_for),
    TEST_CASE(bytes_that_are_no_text_become_replacement_characters),
    TEST_CASE(a_token_is_in_its_own_map_with_the_same_number),
    TEST_CASE(a_k_of_0_still_returns_the_token),
    TEST_CASE(tokens_that_look_alike_do_not_hide_each_other),
    TEST_CASE(a_stream_has_no_empty_chunks_and_ends_once),
    TEST_CASE(an_end_without_text_is_still_a_chunk),
    TEST_CASE(a_stop_string_is_named_and_cut),
    TEST_CASE(echo_with_logprobs_scores_every_prompt_token_but_the_first),
    TEST_CASE(offsets_of_a_stream_count_characters_from_its_beginning),
    TEST_CASE(a_choice_that_needs_no_engine_is_finished),
    TEST_CASES_END};
