/* The tokenizer against what the sentencepiece package answers, and streaming against whole. */
#include "base/random.h"
#include "base/utf8.h"
#include "model/tokenizer.h"
#include "tests/model/cases_json.h"
#include "tests/model/temp_dir.h"
#include "tests/test_main.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const fixtures[] = {"bpe", "unigram", "bpe-symbols"};
enum { N_FIXTURES = sizeof fixtures / sizeof fixtures[0], N_RANDOM = 2000, IDS_MAX = 24 };

static void for_each_fixture(void (*body)(const tokenizer *t, const golden_cases *cases))
{
    for (int i = 0; i < N_FIXTURES; i++) {
        char dir[128], path[160];
        err_info info = {0};
        tokenizer *t;
        golden_cases cases;
        (void)snprintf(dir, sizeof dir, "tests/golden/tokenizer-%s", fixtures[i]);
        (void)snprintf(path, sizeof path, "%s/cases.json", dir);
        ck_assert_msg(tokenizer_open(dir, &t, &info) == ERR_OK, "%s", info.message);
        golden_cases_open(path, &cases);
        body(t, &cases);
        golden_cases_close(&cases);
        tokenizer_close(t);
    }
}

/* ---- against SentencePiece ----------------------------------------------------------------------- */

static void check_encode(const tokenizer *t, const golden_cases *cases)
{
    for (size_t i = 0; i < cases->n_encode; i++) {
        const golden_case *const c = &cases->encode[i];
        uint32_t *ids;
        size_t n_ids;
        const tok_text text = {.bytes = c->text, .n_bytes = c->n_text};
        ck_assert(tokenizer_encode(t, &text, &ids, &n_ids) == ERR_OK);
        ck_assert(tokenizer_n_ids_min(t, c->n_text) <= n_ids);
        ck_assert_msg(n_ids == c->n_ids, "\"%s\": %zu ids instead of %zu", c->text, n_ids,
                      c->n_ids);
        ck_assert_msg(memcmp(ids, c->ids, n_ids * sizeof *ids) == 0, "\"%s\": other ids", c->text);
        free(ids);
        const tok_text with_bos = {.bytes = c->text, .n_bytes = c->n_text, .add_bos = true};
        ck_assert(tokenizer_encode(t, &with_bos, &ids, &n_ids) == ERR_OK);
        ck_assert(n_ids == c->n_ids + 1);
        ck_assert(ids[0] == (uint32_t)tokenizer_bos(t));
        ck_assert(memcmp(ids + 1, c->ids, c->n_ids * sizeof *ids) == 0);
        free(ids);
    }
}

START_TEST(text_becomes_the_ids_of_sentencepiece)
{
    for_each_fixture(check_encode);
}
END_TEST

/* Appends what `text` alone gives. */
static size_t append_ids(const tokenizer *t, const char *text, uint32_t *out, size_t n)
{
    uint32_t *ids;
    size_t n_ids;
    const tok_text source = {.bytes = text, .n_bytes = strlen(text)};
    ck_assert(tokenizer_encode(t, &source, &ids, &n_ids) == ERR_OK);
    memcpy(out + n, ids, n_ids * sizeof *ids);
    free(ids);
    return n + n_ids;
}

static void check_special(const tokenizer *t, const golden_cases *cases)
{
    static const char text[] = "<s>one </s></s>two <s <unk>";
    uint32_t expected[64], *ids;
    size_t n = 0, n_ids;
    (void)cases;
    expected[n++] = (uint32_t)tokenizer_bos(t);
    n = append_ids(t, "one ", expected, n);
    expected[n++] = (uint32_t)tokenizer_eos(t);
    expected[n++] = (uint32_t)tokenizer_eos(t);
    n = append_ids(t, "two <s ", expected, n);
    expected[n++] = 0; /* the fixtures' unknown piece */
    const tok_text source = {.bytes = text, .n_bytes = sizeof text - 1, .parse_special = true};
    ck_assert(tokenizer_encode(t, &source, &ids, &n_ids) == ERR_OK);
    ck_assert_uint_eq(n_ids, n);
    ck_assert(memcmp(ids, expected, n * sizeof *ids) == 0);
    free(ids);
    const tok_text with_bos = {
        .bytes = text, .n_bytes = sizeof text - 1, .parse_special = true, .add_bos = true};
    ck_assert(tokenizer_encode(t, &with_bos, &ids, &n_ids) == ERR_OK);
    ck_assert_uint_eq(n_ids, n + 1);
    ck_assert(ids[0] == (uint32_t)tokenizer_bos(t) && ids[1] == ids[0]);
    free(ids);
    const tok_text nothing = {.bytes = "", .n_bytes = 0, .parse_special = true};
    ck_assert(tokenizer_encode(t, &nothing, &ids, &n_ids) == ERR_OK);
    ck_assert_uint_eq(n_ids, 0);
    ck_assert_ptr_nonnull(ids);
    free(ids);
}

START_TEST(names_of_control_tokens_are_those_tokens_when_asked_for)
{
    for_each_fixture(check_special);
}
END_TEST

/* Runs of U+FFFD become one: SentencePiece writes one for each byte, we one for each maximal part. */
static size_t squeeze(const char *text, size_t n_bytes, char *out)
{
    static const char replacement[] = "\xef\xbf\xbd";
    size_t n = 0;
    for (size_t i = 0; i < n_bytes;) {
        const bool is_replacement = n_bytes - i >= 3 && memcmp(text + i, replacement, 3) == 0;
        const bool repeats = is_replacement && n >= 3 && memcmp(out + n - 3, replacement, 3) == 0;
        const size_t step = is_replacement ? 3 : 1;
        if (!repeats) {
            memcpy(out + n, text + i, step);
            n += step;
        }
        i += step;
    }
    return n;
}

static void check_decoded(const tokenizer *t, const golden_case *c)
{
    char *text, a[8192], b[8192];
    size_t n_bytes;
    ck_assert(tokenizer_decode(t, c->ids, c->n_ids, false, &text, &n_bytes) == ERR_OK);
    ck_assert(n_bytes < sizeof a);
    ck_assert(c->n_decoded < sizeof b);
    ck_assert(text[n_bytes] == '\0');
    ck_assert(utf8_valid(text, n_bytes));
    const size_t n_a = squeeze(text, n_bytes, a), n_b = squeeze(c->decoded, c->n_decoded, b);
    ck_assert_msg(n_a == n_b && memcmp(a, b, n_a) == 0, "\"%.*s\" is not \"%s\"", (int)n_bytes,
                  text, c->decoded);
    free(text);
}

static void check_decode(const tokenizer *t, const golden_cases *cases)
{
    for (size_t i = 0; i < cases->n_encode; i++)
        check_decoded(t, &cases->encode[i]);
    for (size_t i = 0; i < cases->n_decode; i++)
        check_decoded(t, &cases->decode[i]);
}

START_TEST(ids_become_the_text_of_sentencepiece)
{
    for_each_fixture(check_decode);
}
END_TEST

static void check_pieces(const tokenizer *t, const golden_cases *cases)
{
    ck_assert_uint_eq(tokenizer_n_vocab(t), cases->n_pieces);
    for (uint32_t id = 0; id < cases->n_pieces; id++) {
        const golden_piece *const p = &cases->piece[id];
        const tok_piece shown = tokenizer_piece(t, id, true), piece = tokenizer_piece(t, id, false);
        const bool is_control = strcmp(p->type, "control") == 0,
                   is_unknown = strcmp(p->type, "unknown") == 0;
        ck_assert(piece.is_special == (is_control || is_unknown));
        ck_assert(piece.n_bytes <= tokenizer_piece_bytes_max(t));
        ck_assert(shown.n_bytes <= tokenizer_piece_bytes_max(t));
        if (is_control) ck_assert(piece.n_bytes == 0);
        if (is_control || is_unknown) {
            ck_assert(shown.n_bytes == strlen(p->piece));
            ck_assert(memcmp(shown.bytes, p->piece, shown.n_bytes) == 0);
        } else if (strcmp(p->type, "byte") == 0) {
            ck_assert(piece.n_bytes == 1);
            ck_assert((uint8_t)piece.bytes[0] == (uint8_t)strtoul(p->piece + 1, NULL, 16));
        } else if (strstr(p->piece, "\xe2\x96\x81") == NULL) {
            ck_assert(piece.n_bytes == strlen(p->piece));
            ck_assert(memcmp(piece.bytes, p->piece, piece.n_bytes) == 0);
        } else if (strncmp(p->piece, "\xe2\x96\x81", 3) == 0) {
            ck_assert(piece.bytes[0] == ' ');
        }
    }
    ck_assert(tokenizer_piece(t, UINT32_MAX, true).n_bytes == 0);
}

START_TEST(the_pieces_are_those_of_the_model)
{
    for_each_fixture(check_pieces);
}
END_TEST

static void check_literals(const tokenizer *t, const golden_cases *cases)
{
    for (size_t i = 0; i < cases->n_encode; i++) {
        const golden_case *const c = &cases->encode[i];
        for (size_t j = 0; j < c->n_ids; j++)
            ck_assert(!tokenizer_piece(t, c->ids[j], false).is_special);
    }
    uint32_t *ids;
    size_t n_ids;
    ck_assert(tokenizer_encode(t, &(tok_text){.bytes = "<s>", .n_bytes = 3}, &ids, &n_ids) ==
              ERR_OK);
    for (size_t j = 0; j < n_ids; j++)
        ck_assert(ids[j] != (uint32_t)tokenizer_bos(t));
    free(ids);
}

START_TEST(no_text_becomes_a_control_token)
{
    for_each_fixture(check_literals);
}
END_TEST

/* ---- streaming ----------------------------------------------------------------------------------- */

/* Pushes ids [0, n) into `out`; returns its length. */
static size_t stream(tok_stream *s, const uint32_t *ids, size_t n, char *out)
{
    size_t at = 0;
    for (size_t i = 0; i < n; i++) {
        const size_t n_new = tok_stream_push(s, ids[i], out + at);
        ck_assert(n_new <= tok_stream_bytes_max(s->tokenizer));
        ck_assert(s->n_held <= 3);
        ck_assert_msg(utf8_valid(out + at, n_new), "a push gave half a character");
        at += n_new;
    }
    return at;
}

static void check_stream(const tokenizer *t, const uint32_t *ids, size_t n_ids, bool show_special)
{
    char *whole, *out = malloc((n_ids + 2) * tok_stream_bytes_max(t));
    size_t n_whole;
    ck_assert_ptr_nonnull(out);
    ck_assert(tokenizer_decode(t, ids, n_ids, show_special, &whole, &n_whole) == ERR_OK);
    tok_stream s;
    tok_stream_init(&s, t, show_special, true);
    size_t n = stream(&s, ids, n_ids, out);
    n += tok_stream_end(&s, out + n);
    ck_assert(n == n_whole);
    ck_assert(memcmp(out, whole, n) == 0);
    ck_assert(utf8_valid(whole, n_whole));
    free(out);
    free(whole);
}

/* Ids of all kinds, bytes often: half of them in the byte pieces' range. */
static size_t random_ids(const tokenizer *t, uint64_t seed, uint32_t *ids)
{
    const size_t n = random_at(seed, 1, 0).word[0] % (IDS_MAX + 1);
    for (size_t i = 0; i < n; i++) {
        const random_block r = random_at(seed, 2, i);
        ids[i] = r.word[0] % 2 == 0 ? 3 + r.word[1] % 256 : r.word[1] % (tokenizer_n_vocab(t) + 2);
    }
    return n;
}

static void check_random_streams(const tokenizer *t, const golden_cases *cases)
{
    uint32_t ids[IDS_MAX];
    for (uint64_t seed = 0; seed < N_RANDOM; seed++) {
        const size_t n = random_ids(t, seed, ids);
        check_stream(t, ids, n, seed % 2 == 1);
    }
    for (size_t i = 0; i < cases->n_encode; i++)
        check_stream(t, cases->encode[i].ids, cases->encode[i].n_ids, false);
    for (size_t i = 0; i < cases->n_decode; i++)
        check_stream(t, cases->decode[i].ids, cases->decode[i].n_ids, true);
}

START_TEST(streamed_and_whole_text_are_equal)
{
    for_each_fixture(check_random_streams);
}
END_TEST

/* The bytes of all pieces in order, repaired once: what a lossless decoder must give, except that a
 * held beginning ends where a piece of text follows. */
static void check_nothing_lost(const tokenizer *t, const golden_cases *cases)
{
    (void)cases;
    uint32_t ids[IDS_MAX];
    for (uint64_t seed = 0; seed < N_RANDOM; seed++) {
        const size_t n_ids = random_ids(t, seed, ids);
        char raw[IDS_MAX * 64], repaired[3 * sizeof raw], out[3 * sizeof raw];
        size_t n_raw = 0;
        bool has_control = false;
        for (size_t i = 0; i < n_ids; i++) {
            const tok_piece piece = tokenizer_piece(t, ids[i], false);
            has_control |= piece.n_bytes == 0; /* it parts bytes that would else be one character */
            memcpy(raw + n_raw, piece.bytes, piece.n_bytes);
            n_raw += piece.n_bytes;
        }
        if (has_control) continue;
        tok_stream s;
        tok_stream_init(&s, t, false, false);
        size_t n = stream(&s, ids, n_ids, out);
        n += tok_stream_end(&s, out + n);
        ck_assert(n == utf8_repair_into(raw, n_raw, repaired));
        ck_assert(memcmp(out, repaired, n) == 0);
    }
}

START_TEST(no_byte_is_lost_in_a_stream)
{
    for_each_fixture(check_nothing_lost);
}
END_TEST

/* A prompt's ids decoded by one stream and the rest by a second that continues it. */
static void check_split(const tokenizer *t, const golden_case *c)
{
    char whole[8192], parts[8192];
    for (size_t cut = 1; cut < c->n_ids && cut < 40; cut++) {
        tok_stream a, b, w;
        tok_stream_init(&w, t, false, true);
        tok_stream_init(&a, t, false, true);
        tok_stream_init(&b, t, false, false);
        const size_t n_whole = stream(&w, c->ids, c->n_ids, whole);
        size_t n = stream(&a, c->ids, cut, parts);
        if (a.n_held > 0) continue; /* the cut is inside a character: two texts, not one */
        if (a.at_start) continue;   /* nothing has come out yet */
        n += stream(&b, c->ids + cut, c->n_ids - cut, parts + n);
        ck_assert(n == n_whole);
        ck_assert(memcmp(parts, whole, n) == 0);
    }
}

static void check_splits(const tokenizer *t, const golden_cases *cases)
{
    for (size_t i = 0; i < cases->n_encode; i++)
        check_split(t, &cases->encode[i]);
}

START_TEST(a_continuation_keeps_its_leading_space)
{
    for_each_fixture(check_splits);
}
END_TEST

/* ---- refusals ------------------------------------------------------------------------------------ */

START_TEST(invalid_utf8_is_refused)
{
    tokenizer *t;
    err_info info = {0};
    ck_assert(tokenizer_open("tests/golden/tokenizer-bpe", &t, &info) == ERR_OK);
    uint32_t *ids;
    size_t n_ids;
    ck_assert(tokenizer_encode(t, &(tok_text){.bytes = "a\xff", .n_bytes = 2}, &ids, &n_ids) ==
              ERR_BAD_REQUEST);
    ck_assert_ptr_null(ids);
    tokenizer_close(t);
}
END_TEST

static err_t open_with(const char *model, size_t n_bytes, const char *config, err_info *info,
                       bool *adds_bos)
{
    temp_dir dir;
    tokenizer *t = NULL;
    temp_dir_open(&dir);
    if (model != NULL) temp_write(&dir, "tokenizer.model", model, n_bytes);
    if (config != NULL) temp_write_text(&dir, "tokenizer_config.json", config);
    const err_t err = tokenizer_open(dir.path, &t, info);
    if (adds_bos != NULL) *adds_bos = t != NULL && tokenizer_adds_bos(t);
    tokenizer_close(t);
    temp_dir_close(&dir);
    return err;
}

START_TEST(broken_models_are_refused_and_nothing_is_printed)
{
    size_t n_bytes;
    char *const model = temp_read("tests/golden/tokenizer-bpe/tokenizer.model", &n_bytes);
    temp_dir dir;
    temp_dir_open(&dir);
    ck_assert_ptr_nonnull(freopen(temp_path(&dir, "stderr"), "w+", stderr));
    err_info info = {0};
    ck_assert(open_with(NULL, 0, NULL, &info, NULL) == ERR_IO);
    info = (err_info){0};
    ck_assert(open_with("", 0, NULL, &info, NULL) == ERR_BAD_MODEL);
    info = (err_info){0};
    ck_assert(open_with("hello", 5, NULL, &info, NULL) == ERR_BAD_MODEL);
    ck_assert_str_eq(info.message, "tokenizer.model: not a SentencePiece model");
    for (size_t n = 1; n < n_bytes; n += 97) /* a cut between two pieces leaves a smaller model */
        (void)open_with(model, n, NULL, NULL, NULL);
    ck_assert(open_with(model, n_bytes, "{\"add_bos_token\":", NULL, NULL) == ERR_BAD_MODEL);
    fflush(stderr);
    ck_assert_msg(ftell(stderr) == 0, "something was printed");
    temp_dir_close(&dir);
    free(model);
}
END_TEST

START_TEST(the_tokenizer_config_decides_about_bos)
{
    size_t n_bytes;
    char *const model = temp_read("tests/golden/tokenizer-bpe/tokenizer.model", &n_bytes);
    bool adds_bos;
    err_info info = {0};
    ck_assert(open_with(model, n_bytes, NULL, &info, &adds_bos) == ERR_OK);
    ck_assert(adds_bos);
    ck_assert(open_with(model, n_bytes, "{\"add_bos_token\":false}", &info, &adds_bos) == ERR_OK);
    ck_assert(!adds_bos);
    free(model);
}
END_TEST

START_TEST(a_vocabulary_larger_than_the_models_is_refused)
{
    tokenizer *t;
    err_info info = {0};
    ck_assert(tokenizer_open("tests/golden/tokenizer-bpe", &t, &info) == ERR_OK);
    const uint32_t n = tokenizer_n_vocab(t);
    ck_assert(tokenizer_check_vocab(t, n, &info) == ERR_OK);
    ck_assert(tokenizer_check_vocab(t, n - 1, &info) == ERR_BAD_MODEL);
    ck_assert_msg(strstr(info.message, "vocab_size") != NULL, "%s", info.message);
    tokenizer_close(t);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(text_becomes_the_ids_of_sentencepiece),
    TEST_CASE(ids_become_the_text_of_sentencepiece),
    TEST_CASE(the_pieces_are_those_of_the_model),
    TEST_CASE(no_text_becomes_a_control_token),
    TEST_CASE(names_of_control_tokens_are_those_tokens_when_asked_for),
    TEST_CASE(streamed_and_whole_text_are_equal),
    TEST_CASE(no_byte_is_lost_in_a_stream),
    TEST_CASE(a_continuation_keeps_its_leading_space),
    TEST_CASE(invalid_utf8_is_refused),
    TEST_CASE(broken_models_are_refused_and_nothing_is_printed),
    TEST_CASE(the_tokenizer_config_decides_about_bos),
    TEST_CASE(a_vocabulary_larger_than_the_models_is_refused),
    TEST_CASES_END,
};
