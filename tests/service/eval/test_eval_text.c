/* Promises of service/eval/eval_text.h and eval_encode.h. */
#include "service/eval/eval_text.h"

#include "base/random.h"
#include "service/eval/eval_encode.h"
#include "tests/model/temp_dir.h"
#include "tests/service/eval/eval_rig.h"
#include "tests/test_main.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The linker sends tokenizer_encode through here, to see what is encoded at once. */
static size_t n_bytes_at_once; /* the most since it was last set to 0 */

err_t __real_tokenizer_encode(const tokenizer *t, const tok_text *text, uint32_t **ids,
                              size_t *n_ids);
err_t __wrap_tokenizer_encode(const tokenizer *t, const tok_text *text, uint32_t **ids,
                              size_t *n_ids);
err_t __wrap_tokenizer_encode(const tokenizer *t, const tok_text *text, uint32_t **ids,
                              size_t *n_ids)
{
    if (text->n_bytes > n_bytes_at_once) n_bytes_at_once = text->n_bytes;
    return __real_tokenizer_encode(t, text, ids, n_ids);
}

static const char STORYTELLER[] = "models/storyteller";
static const char *const tokenizers[] = {STORYTELLER, "tests/golden/tokenizer-bpe",
                                         "tests/golden/tokenizer-bpe-symbols",
                                         "tests/golden/tokenizer-unigram"};
enum { N_TOKENIZERS = 4, N_MERGING = 2 }; /* the first two are plain BPE */

static tokenizer *open_tokenizer(const char *dir)
{
    tokenizer *t;
    err_info info = {0};
    ck_assert_msg(tokenizer_open(dir, &t, &info) == ERR_OK, "%s", info.message);
    return t;
}

typedef struct ids_of {
    uint32_t *ids; /* owned */
    size_t n;
} ids_of;

static ids_of encode_whole(const tokenizer *t, const char *text, size_t n_bytes)
{
    ids_of out;
    const tok_text all = {.bytes = text, .n_bytes = n_bytes};
    ck_assert_int_eq(tokenizer_encode(t, &all, &out.ids, &out.n), ERR_OK);
    return out;
}

/* ---- pieces ------------------------------------------------------------------------------------------ */

static const char *const scraps[] = {
    "\n",           "\n",    "\r\n",   "\r",     "\n\n",     " ",     "  ",
    "\t",           "a",     "the",    "The",    " server",  "keeps", "attention",
    "memory",       ".",     "<|im|>", "[INST]", "\xc3\xa9", "7",     "\xf0\x9f\x98\x80",
    "\xe2\x96\x81", "hello", "zzzz",   "\"",     "user",     "cache"};
enum { N_SCRAPS = sizeof scraps / sizeof scraps[0] };

/* Random scraps from `first_scrap` on, a NUL now and then. Returns its bytes. */
static size_t make_text(uint64_t seed, uint32_t first_scrap, size_t n_bytes_max, char *text)
{
    size_t n = 0;
    for (uint64_t i = 0;; i++) {
        const uint32_t pick =
            first_scrap + random_at(seed, 1, i).word[0] % (N_SCRAPS + 1 - first_scrap);
        const char *scrap = pick < N_SCRAPS ? scraps[pick] : "\0";
        const size_t n_scrap = pick < N_SCRAPS ? strlen(scrap) : 1;
        if (n_scrap > n_bytes_max - n) return n;
        memcpy(text + n, scrap, n_scrap);
        n += n_scrap;
    }
}

static void same_as_whole(const tokenizer *t, const char *text, size_t n_bytes, size_t piece_bytes)
{
    ids_of pieces;
    const ids_of whole = encode_whole(t, text, n_bytes);
    const eval_encode_options options = {
        .text = text, .n_bytes = n_bytes, .piece_bytes = piece_bytes};
    ck_assert_int_eq(eval_encode(t, &options, &pieces.ids, &pieces.n), ERR_OK);
    ck_assert_uint_eq(pieces.n, whole.n);
    if (whole.n > 0) ck_assert_mem_eq(pieces.ids, whole.ids, whole.n * sizeof *whole.ids);
    free(pieces.ids);
    free(whole.ids);
}

START_TEST(pieces_have_the_ids_of_the_whole_text)
{
    static const size_t piece_bytes[] = {1, 2, 7, 64, 1000};
    static char text[40000];
    for (uint32_t i = 0; i < N_TOKENIZERS; i++) {
        tokenizer *t = open_tokenizer(tokenizers[i]);
        for (uint64_t seed = 0; seed < 5; seed++) {
            const size_t n_bytes = make_text(seed, 0, seed == 0 ? sizeof text : 2000, text);
            for (size_t p = 0; p < sizeof piece_bytes / sizeof piece_bytes[0]; p++)
                same_as_whole(t, text, n_bytes, piece_bytes[p]);
        }
        tokenizer_close(t);
    }
}
END_TEST

START_TEST(odd_ends_have_the_ids_of_the_whole_text)
{
    static const struct {
        const char *bytes;
        size_t n;
    } texts[] = {{"", 0},         {"\n", 1},         {"\n\n\n", 3},         {"a", 1},
                 {"a\n", 2},      {"\na", 2},        {"a\r\nb\r\n", 6},     {"a\rb\rc", 5},
                 {"a\0\nb\0", 5}, {"\0\n\0\n\0", 5}, {"one two three", 13}, {" \n \n ", 5}};
    for (uint32_t i = 0; i < N_TOKENIZERS; i++) {
        tokenizer *t = open_tokenizer(tokenizers[i]);
        for (size_t k = 0; k < sizeof texts / sizeof texts[0]; k++) {
            for (size_t piece_bytes = 1; piece_bytes < 4; piece_bytes++)
                same_as_whole(t, texts[k].bytes, texts[k].n, piece_bytes);
        }
        tokenizer_close(t);
    }
}
END_TEST

static size_t most_at_once(const tokenizer *t, const char *text, size_t n_bytes)
{
    ids_of pieces;
    const eval_encode_options options = {.text = text, .n_bytes = n_bytes, .piece_bytes = 100};
    n_bytes_at_once = 0;
    ck_assert_int_eq(eval_encode(t, &options, &pieces.ids, &pieces.n), ERR_OK);
    free(pieces.ids);
    return n_bytes_at_once;
}

START_TEST(a_long_text_is_encoded_in_short_pieces)
{
    static char text[20000];
    const size_t n_bytes = make_text(1, 0, sizeof text, text);
    for (uint32_t i = 0; i < N_MERGING; i++) {
        tokenizer *t = open_tokenizer(tokenizers[i]);
        ck_assert_uint_lt(most_at_once(t, text, n_bytes), 1000); /* a piece and a line */
        tokenizer_close(t);
    }
}
END_TEST

START_TEST(a_long_last_line_is_one_piece)
{
    static char text[5000];
    const size_t n_first = make_text(1, 0, 1000, text);
    text[n_first] = '\n';
    const size_t n_line = make_text(2, 5, 3000, text + n_first + 1); /* scraps without a line end */
    tokenizer *t = open_tokenizer(STORYTELLER);
    same_as_whole(t, text, n_first + 1 + n_line, 100);
    ck_assert_uint_ge(most_at_once(t, text, n_first + 1 + n_line), n_line);
    ck_assert_uint_lt(most_at_once(t, text, n_first + 1 + n_line), n_line + 200);
    tokenizer_close(t);
}
END_TEST

/* Sums of scores over a whole text decide between its near ties; nothing shorter can know them. */
START_TEST(a_unigram_text_is_encoded_whole)
{
    static char text[20000];
    const size_t n_bytes = make_text(1, 0, sizeof text, text);
    tokenizer *t = open_tokenizer("tests/golden/tokenizer-unigram");
    ck_assert_uint_eq(most_at_once(t, text, n_bytes), n_bytes);
    tokenizer_close(t);
}
END_TEST

/* A fixture's tokenizer with a piece spelt otherwise. No other piece is made of "ea", so all still are of two. */
static tokenizer *open_respelt(const temp_dir *dir, const char spelling[2])
{
    /* In the protocol buffer: a field, a length, the piece, and the key of its score. */
    static const char ea[] = {0x0a, 0x02, 'e', 'a', 0x15};
    size_t n_bytes, n_found = 0;
    char *const file = temp_read("tests/golden/tokenizer-bpe/tokenizer.model", &n_bytes);
    for (size_t i = 0; i + 5 <= n_bytes; i++) {
        if (memcmp(file + i, ea, 5) != 0) continue;
        memcpy(file + i + 2, spelling, 2);
        n_found++;
    }
    ck_assert_uint_eq(n_found, 1);
    temp_write(dir, "tokenizer.model", file, n_bytes);
    free(file);
    return open_tokenizer(dir->path);
}

START_TEST(pieces_of_a_newline_and_more_forbid_cuts)
{
    static const char text[] = "one\nthe\n\nend\ne\r\nten\n\n\nx";
    static const char *const spellings[] = {"\ne", "e\n", "\n\n"};
    static char many[20000];
    temp_dir dir;
    temp_dir_open(&dir);
    for (int i = 0; i < 3; i++) {
        tokenizer *t = open_respelt(&dir, spellings[i]);
        for (size_t piece_bytes = 1; piece_bytes < 12; piece_bytes++)
            same_as_whole(t, text, sizeof text - 1, piece_bytes);
        const size_t n_bytes = make_text(1, 0, sizeof many, many);
        ck_assert_uint_eq(most_at_once(t, many, n_bytes), n_bytes);
        tokenizer_close(t);
    }
    temp_dir_close(&dir);
}
END_TEST

/* ---- windows ----------------------------------------------------------------------------------------- */

/* Plain words, so that every prefix of its ids is a prefix of it in whole characters. */
static size_t make_words(size_t n_bytes_max, char *text)
{
    static const char *const words[] = {"the", " old", " house", " was", ".\n", " and", " Anna "};
    size_t n = 0;
    for (uint64_t i = 0;; i++) {
        const char *word = words[random_at(3, 3, i).word[0] % 7];
        if (strlen(word) > n_bytes_max - n) return n;
        memcpy(text + n, word, strlen(word));
        n += strlen(word);
    }
}

static size_t decoded_bytes(const tokenizer *t, const uint32_t *ids, size_t n)
{
    char *text;
    size_t n_bytes;
    ck_assert_int_eq(tokenizer_decode(t, ids, n, false, &text, &n_bytes), ERR_OK);
    free(text);
    return n_bytes;
}

/* One window of the text's tokens [begin, begin + n), as the protocol has it. */
static void check_window(const tokenizer *t, const ids_of *all, size_t begin, uint32_t n,
                         const eval_windows *w, uint32_t index)
{
    const eval_job *job = &w->jobs[index];
    const uint32_t n_front = tokenizer_adds_bos(t) ? 1 : 0;
    ck_assert_uint_eq(job->n_tokens, n + n_front);
    if (n_front > 0) ck_assert_int_eq(job->tokens[0], tokenizer_bos(t));
    ck_assert_mem_eq(job->tokens + n_front, all->ids + begin, n * sizeof *all->ids);
    const uint32_t n_input = n + n_front - 1;
    ck_assert_uint_eq(job->n_prompt, n_input / 2);
    ck_assert_uint_eq(job->n_new, 0);
    const size_t first_scored = begin + job->n_prompt + 1 - n_front;
    ck_assert_uint_eq(w->scored_bytes[index], decoded_bytes(t, all->ids, begin + n) -
                                                  decoded_bytes(t, all->ids, first_scored));
}

static eval_windows open_windows(const tokenizer *t, const eval_text_options *options)
{
    eval_windows w;
    err_info info = {0};
    ck_assert_msg(eval_windows_open(t, options, &w, &info) == ERR_OK, "%s", info.message);
    return w;
}

static void check_windows(const tokenizer *t, uint32_t window)
{
    char text[4000];
    const size_t n_bytes = make_words(sizeof text, text);
    const ids_of all = encode_whole(t, text, n_bytes);
    const eval_text_options options = {.text = text, .n_bytes = n_bytes, .window = window};
    eval_windows w = open_windows(t, &options);
    const size_t n_rest = all.n % window;
    ck_assert_uint_eq(w.n_windows, all.n / window + (n_rest >= EVAL_WINDOW_MIN));
    ck_assert_uint_eq(w.n_window_tokens, window);
    for (uint32_t i = 0; i < w.n_windows; i++) {
        const size_t begin = (size_t)i * window;
        const uint32_t n = (uint32_t)(all.n - begin < window ? all.n - begin : window);
        check_window(t, &all, begin, n, &w, i);
        ck_assert_uint_le(w.jobs[i].n_tokens, w.n_seq_tokens_max);
    }
    ck_assert_uint_eq(w.n_seq_tokens_max, w.jobs[0].n_tokens);
    eval_windows_close(&w);
    ck_assert_ptr_null(w.jobs);
    eval_windows_close(&w); /* a zeroed one */
    free(all.ids);
}

START_TEST(windows_are_the_text_cut_as_the_protocol_has_it)
{
    tokenizer *t = open_tokenizer(STORYTELLER);
    ck_assert(tokenizer_adds_bos(t));
    for (uint32_t window = EVAL_WINDOW_MIN; window < 40; window++) /* rests of all kinds */
        check_windows(t, window);
    check_windows(t, 1000000); /* the text is one shorter window */
    tokenizer_close(t);
}
END_TEST

START_TEST(without_bos_the_first_token_is_context_only)
{
    temp_dir dir;
    size_t n_bytes;
    temp_dir_open(&dir);
    char *const file = temp_read("models/storyteller/tokenizer.model", &n_bytes);
    temp_write(&dir, "tokenizer.model", file, n_bytes);
    temp_write_text(&dir, "tokenizer_config.json", "{\"add_bos_token\": false}");
    tokenizer *t = open_tokenizer(dir.path);
    ck_assert(!tokenizer_adds_bos(t));
    check_windows(t, EVAL_WINDOW_MIN);
    check_windows(t, 33);
    tokenizer_close(t);
    free(file);
    temp_dir_close(&dir);
}
END_TEST

START_TEST(a_few_windows_are_spread_evenly)
{
    char text[4000];
    tokenizer *t = open_tokenizer(STORYTELLER);
    const size_t n_bytes = make_words(sizeof text, text);
    const ids_of all = encode_whole(t, text, n_bytes);
    eval_text_options options = {.text = text, .n_bytes = n_bytes, .window = 16};
    eval_windows w = open_windows(t, &options);
    const uint32_t n_all = w.n_windows;
    eval_windows_close(&w);
    options.n_windows_max = 5;
    w = open_windows(t, &options);
    ck_assert_uint_eq(w.n_windows, 5);
    for (uint32_t i = 0; i < 5; i++)
        check_window(t, &all, (size_t)(i * n_all / 5) * 16, 16, &w, i);
    eval_windows_close(&w);
    options.n_windows_max = n_all + 1; /* more than there are: all */
    w = open_windows(t, &options);
    ck_assert_uint_eq(w.n_windows, n_all);
    eval_windows_close(&w);
    free(all.ids);
    tokenizer_close(t);
}
END_TEST

static void refuse(const tokenizer *t, const char *text, size_t n_bytes, const char *message)
{
    eval_windows w;
    err_info info = {0};
    const eval_text_options options = {.text = text, .n_bytes = n_bytes, .window = 64};
    ck_assert_int_eq(eval_windows_open(t, &options, &w, &info), ERR_BAD_REQUEST);
    ck_assert_msg(strstr(info.message, message) != NULL, "%s", info.message);
    ck_assert_ptr_null(w.jobs);
}

START_TEST(a_text_that_cannot_be_scored_is_refused)
{
    tokenizer *t = open_tokenizer(STORYTELLER);
    refuse(t, "", 0, "0 tokens");
    refuse(t, "the old", 7, "8 or more");
    refuse(t, "the \xff house", 11, "UTF-8");
    tokenizer_close(t);
}
END_TEST

/* ---- figures ------------------------------------------------------------------------------------------ */

START_TEST(figures_are_those_of_finished_windows)
{
    eval_job jobs[] = {{.nll = 6, .n_scored = 4, .is_done = true},
                       {.nll = 99, .n_scored = 7},
                       {.nll = 4, .n_scored = 1, .is_done = true}};
    uint64_t bytes[] = {10, 1000, 6};
    const eval_windows w = {.jobs = jobs, .scored_bytes = bytes, .n_windows = 3};
    const eval_text_score s = eval_text_score_of(&w);
    ck_assert_uint_eq(s.n_tokens, 5);
    ck_assert_uint_eq(s.n_bytes, 16);
    ck_assert_uint_eq(s.n_windows, 2);
    ck_assert(s.nll == 2);
    ck_assert_double_eq_tol(s.perplexity, 7.38905609893065, 1e-12);
    ck_assert_double_eq_tol(s.bits_per_byte, 0.9016844005556022, 1e-12); /* 10 / ln 2 / 16 */
    jobs[0].is_done = jobs[2].is_done = false;
    ck_assert_uint_eq(eval_text_score_of(&w).n_tokens, 0);
}
END_TEST

/* d = 2, 1, 6 over 4, 4, 8 tokens: the mean is 9/16, the residuals -1/4, -5/4, 3/2, their squares sum to
 * 31/8; sqrt(31/8 / 2 * 3) / 16 = 0.15068204, times 1.95996398. */
START_TEST(a_paired_difference_is_what_a_hand_computes)
{
    const double a[] = {10, 20, 30, NAN}, b[] = {8, 19, 24, 5};
    const uint32_t n[] = {4, 4, 8, 100};
    eval_difference d = eval_paired_difference(a, b, n, 3);
    ck_assert(d.mean == 0.5625);
    ck_assert_double_eq_tol(d.half_width, 0.29533138, 2e-8);
    d = eval_paired_difference(a, b, n, 4); /* a NaN is left out */
    ck_assert(d.mean == 0.5625);
    ck_assert_double_eq_tol(d.half_width, 0.29533138, 2e-8);
    d = eval_paired_difference(b, a, n, 3);
    ck_assert(d.mean == -0.5625);
    d = eval_paired_difference(a, b, n, 1);
    ck_assert(d.mean == 0.5);
    ck_assert(d.half_width == 0);
    d = eval_paired_difference(a, a, n, 3);
    ck_assert(d.mean == 0);
    ck_assert(d.half_width == 0);
    d = eval_paired_difference(a, b, n, 0);
    ck_assert(d.mean == 0);
}
END_TEST

START_TEST(the_default_model_reads_words_better_than_noise)
{
    char text[4000], noise[4000];
    eval_text_score words, letters;
    tokenizer *t = open_tokenizer(STORYTELLER);
    eval_rig rig;
    eval_rig_open(STORYTELLER, &rig);
    eval_text_options options = {
        .text = text, .n_bytes = make_words(sizeof text, text), .window = 100, .n_windows_max = 4};
    for (size_t i = 0; i < sizeof noise; i++)
        noise[i] = (char)(' ' + random_at(5, 5, i).word[0] % 95);
    eval_run *r = eval_rig_run_open(&rig);
    eval_windows w = open_windows(t, &options);
    must_run(r, w.jobs, w.n_windows);
    words = eval_text_score_of(&w);
    eval_windows_close(&w);
    options.text = noise;
    options.n_bytes = sizeof noise;
    w = open_windows(t, &options);
    must_run(r, w.jobs, w.n_windows);
    letters = eval_text_score_of(&w);
    eval_windows_close(&w);
    ck_assert_uint_eq(words.n_windows, 4);
    ck_assert_uint_eq(words.n_tokens, 4 * 50);
    ck_assert(words.nll > 0);
    ck_assert(words.nll < letters.nll);
    ck_assert(words.bits_per_byte < letters.bits_per_byte);
    eval_run_close(r);
    eval_rig_close(&rig);
    tokenizer_close(t);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(pieces_have_the_ids_of_the_whole_text),
    TEST_CASE(odd_ends_have_the_ids_of_the_whole_text),
    TEST_CASE(a_long_text_is_encoded_in_short_pieces),
    TEST_CASE(a_long_last_line_is_one_piece),
    TEST_CASE(a_unigram_text_is_encoded_whole),
    TEST_CASE(pieces_of_a_newline_and_more_forbid_cuts),
    TEST_CASE(windows_are_the_text_cut_as_the_protocol_has_it),
    TEST_CASE(without_bos_the_first_token_is_context_only),
    TEST_CASE(a_few_windows_are_spread_evenly),
    TEST_CASE(a_text_that_cannot_be_scored_is_refused),
    TEST_CASE(figures_are_those_of_finished_windows),
    TEST_CASE(a_paired_difference_is_what_a_hand_computes),
    TEST_CASE(the_default_model_reads_words_better_than_noise),
    TEST_CASES_END,
};
