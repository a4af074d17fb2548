/* tokenizer.json against what the tokenizers library answers, for a tokenizer of each family. */
#include "base/clock.h"
#include "base/utf8.h"
#include "model/tokenizer.h"
#include "tests/model/cases_json.h"
#include "tests/model/temp_dir.h"
#include "tests/test_main.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const fixtures[] = {"olmoe",   "qwen",      "granite",   "phi",
                                       "mixtral", "metaspace", "deepseek2", "deepseek3",
                                       "gpt-oss", "llama3",    "odd",       "lower"};
enum { N_FIXTURES = sizeof fixtures / sizeof fixtures[0], LINE_BYTES_MAX = 1 << 14 };

static const char *folder_of(const char *name)
{
    static char dir[160];
    (void)snprintf(dir, sizeof dir, "tests/golden/tokenizer-json-%s", name);
    return dir;
}

static tokenizer *open_fixture(const char *name)
{
    err_info info = {0};
    tokenizer *t;
    ck_assert_msg(tokenizer_open(folder_of(name), &t, &info) == ERR_OK, "%s: %s", name,
                  info.message);
    return t;
}

static void for_each_fixture(void (*body)(const tokenizer *t, const golden_cases *cases))
{
    for (int i = 0; i < N_FIXTURES; i++) {
        char path[200];
        golden_cases cases;
        tokenizer *const t = open_fixture(fixtures[i]);
        (void)snprintf(path, sizeof path, "%s/cases.json", folder_of(fixtures[i]));
        golden_cases_open(path, &cases);
        body(t, &cases);
        golden_cases_close(&cases);
        tokenizer_close(t);
    }
}

/* ---- against the library ------------------------------------------------------------------------- */

static void check_ids(const tokenizer *t, const golden_case *cases, size_t n, bool parse_special)
{
    for (size_t i = 0; i < n; i++) {
        const golden_case *const c = &cases[i];
        uint32_t *ids;
        size_t n_ids;
        const tok_text text = {
            .bytes = c->text, .n_bytes = c->n_text, .parse_special = parse_special};
        ck_assert(tokenizer_encode(t, &text, &ids, &n_ids) == ERR_OK);
        ck_assert_msg(n_ids == c->n_ids && memcmp(ids, c->ids, n_ids * sizeof *ids) == 0,
                      "\"%s\": other ids", c->text);
        ck_assert(tokenizer_n_ids_min(t, c->n_text) <= n_ids);
        free(ids);
    }
}

static void check_encode(const tokenizer *t, const golden_cases *cases)
{
    check_ids(t, cases->encode, cases->n_encode, true);
}

/* What cannot be spelled: no name of the text's. */
static bool is_unknown(const tokenizer *t, uint32_t id)
{
    const tok_piece shown = tokenizer_piece(t, id, true);
    return shown.n_bytes == 5 && memcmp(shown.bytes, "<unk>", 5) == 0;
}

static void check_plain(const tokenizer *t, const golden_cases *cases)
{
    ck_assert(cases->n_plain > 0);
    check_ids(t, cases->plain, cases->n_plain, false);
    for (size_t i = 0; i < cases->n_plain; i++)
        for (size_t j = 0; j < cases->plain[i].n_ids; j++)
            ck_assert(!tokenizer_piece(t, cases->plain[i].ids[j], false).is_special ||
                      is_unknown(t, cases->plain[i].ids[j]));
}

START_TEST(a_name_becomes_a_control_token_only_where_asked)
{
    for_each_fixture(check_plain);
}
END_TEST

START_TEST(text_becomes_the_ids_of_the_library)
{
    for_each_fixture(check_encode);
}
END_TEST

/* Without runs of U+FFFD: the library writes one for each byte that falls back. */
static size_t squeeze(const char *text, size_t n_bytes, char *out)
{
    static const char replacement[] = "\xef\xbf\xbd";
    size_t n = 0;
    for (size_t i = 0; i < n_bytes;) {
        const bool is_it = n_bytes - i >= 3 && memcmp(text + i, replacement, 3) == 0;
        const bool repeats = is_it && n >= 3 && memcmp(out + n - 3, replacement, 3) == 0;
        const size_t step = is_it ? 3 : 1;
        if (!repeats) {
            memcpy(out + n, text + i, step);
            n += step;
        }
        i += step;
    }
    return n;
}

static void check_text(const tokenizer *t, const golden_case *c, bool show_special)
{
    char *text, a[LINE_BYTES_MAX], b[LINE_BYTES_MAX];
    const char *const expected = show_special ? c->shown : c->decoded;
    const size_t n_expected = show_special ? c->n_shown : c->n_decoded;
    size_t n_bytes;
    ck_assert(tokenizer_decode(t, c->ids, c->n_ids, show_special, &text, &n_bytes) == ERR_OK);
    ck_assert(n_bytes < sizeof a);
    ck_assert(n_expected < sizeof b);
    ck_assert(utf8_valid(text, n_bytes));
    const size_t n_a = squeeze(text, n_bytes, a), n_b = squeeze(expected, n_expected, b);
    ck_assert_msg(n_a == n_b && memcmp(a, b, n_a) == 0, "\"%.*s\" is not \"%s\"", (int)n_bytes,
                  text, expected);
    free(text);
}

static void check_decode(const tokenizer *t, const golden_cases *cases)
{
    for (int shown = 0; shown < 2; shown++) {
        for (size_t i = 0; i < cases->n_encode; i++)
            check_text(t, &cases->encode[i], shown == 1);
        for (size_t i = 0; i < cases->n_decode; i++)
            check_text(t, &cases->decode[i], shown == 1);
    }
}

START_TEST(ids_become_the_text_of_the_library)
{
    for_each_fixture(check_decode);
}
END_TEST

static void check_stream(const tokenizer *t, const golden_case *c, bool show_special)
{
    char *whole, *const piece = malloc(tok_stream_bytes_max(t));
    size_t n_whole, at = 0;
    tok_stream s;
    ck_assert_ptr_nonnull(piece);
    ck_assert(tokenizer_decode(t, c->ids, c->n_ids, show_special, &whole, &n_whole) == ERR_OK);
    tok_stream_init(&s, t, show_special, true);
    for (size_t i = 0; i <= c->n_ids; i++) {
        const size_t n =
            i < c->n_ids ? tok_stream_push(&s, c->ids[i], piece) : tok_stream_end(&s, piece);
        ck_assert(n <= tok_stream_bytes_max(t));
        ck_assert_msg(utf8_valid(piece, n), "a push gave half a character");
        ck_assert(at + n <= n_whole);
        ck_assert(memcmp(whole + at, piece, n) == 0);
        at += n;
    }
    ck_assert(at == n_whole);
    free(piece);
    free(whole);
}

static void check_streams(const tokenizer *t, const golden_cases *cases)
{
    for (size_t i = 0; i < cases->n_encode; i++)
        check_stream(t, &cases->encode[i], i % 2 == 1);
    for (size_t i = 0; i < cases->n_decode; i++)
        check_stream(t, &cases->decode[i], i % 2 == 1);
}

START_TEST(streamed_and_whole_text_are_equal)
{
    for_each_fixture(check_streams);
}
END_TEST

/* ---- many generated lines ------------------------------------------------------------------------ */

/* SplitMix64, as in tools/make_tokenizer_json_goldens.py. */
static uint64_t below(uint64_t *state, uint64_t n)
{
    *state += UINT64_C(0x9e3779b97f4a7c15);
    uint64_t z = *state;
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return (z ^ z >> 31) % n;
}

static size_t put_character(uint32_t c, char *out)
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    const size_t n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const uint8_t lead[] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (size_t i = n - 1; i > 0; i--, c >>= 6)
        out[i] = (char)(0x80 | (c & 0x3f));
    out[0] = (char)(lead[n] | c);
    return n;
}

static size_t make_line(const golden_lines *g, uint64_t *state, char *out)
{
    size_t n = 0;
    for (uint64_t n_parts = 1 + below(state, 12); n_parts > 0; n_parts--) {
        if (below(state, 3) > 0) {
            const size_t i = (size_t)below(state, g->n_fragments);
            memcpy(out + n, g->fragment[i], g->n_fragment_bytes[i]);
            n += g->n_fragment_bytes[i];
            continue;
        }
        const uint32_t *const block = g->block[below(state, g->n_blocks)];
        for (uint64_t left = 1 + below(state, 4); left > 0; left--)
            n += put_character(block[0] + (uint32_t)below(state, block[1] - block[0] + 1), out + n);
        ck_assert(n < LINE_BYTES_MAX / 2);
    }
    return n;
}

static void add(uint64_t *digest, const void *data, size_t n_bytes)
{
    for (size_t i = 0; i < n_bytes; i++)
        *digest = (*digest ^ ((const uint8_t *)data)[i]) * UINT64_C(0x100000001b3);
}

/* All but U+FFFD. */
static void add_text(uint64_t *digest, const char *text, size_t n_bytes)
{
    for (size_t i = 0; i < n_bytes;) {
        const bool is_it = n_bytes - i >= 3 && memcmp(text + i, "\xef\xbf\xbd", 3) == 0;
        if (!is_it) add(digest, text + i, 1);
        i += is_it ? 3 : 1;
    }
    add(digest, "\n", 1);
}

static void check_digest(const tokenizer *t, const golden_cases *cases)
{
    uint64_t state = 1, digest = UINT64_C(0xcbf29ce484222325);
    ck_assert(cases->lines.n_lines > 0);
    for (size_t i = 0; i < cases->lines.n_lines; i++) {
        char line[LINE_BYTES_MAX], *decoded;
        uint32_t *ids;
        size_t n_ids, n_decoded;
        const tok_text text = {.bytes = line,
                               .n_bytes = make_line(&cases->lines, &state, line),
                               .parse_special = true};
        ck_assert(tokenizer_encode(t, &text, &ids, &n_ids) == ERR_OK);
        ck_assert(tokenizer_decode(t, ids, n_ids, false, &decoded, &n_decoded) == ERR_OK);
        add(&digest, ids, n_ids * sizeof *ids);
        add_text(&digest, decoded, n_decoded);
        free(ids);
        free(decoded);
    }
    ck_assert_msg(digest == cases->lines.digest, "%s: another digest", tokenizer_kind(t));
}

START_TEST(generated_lines_give_the_librarys_digest)
{
    for_each_fixture(check_digest);
}
END_TEST

/* ---- beginnings and ends ------------------------------------------------------------------------- */

/* A copy of a fixture's tokenizer.json, with other files beside it. */
static err_t open_beside(const char *name, const char *config, const char *model, tokenizer **out,
                         err_info *info)
{
    temp_dir dir;
    char path[200];
    size_t n_bytes;
    temp_dir_open(&dir);
    (void)snprintf(path, sizeof path, "%s/tokenizer.json", folder_of(name));
    char *const file = temp_read(path, &n_bytes);
    temp_write(&dir, "tokenizer.json", file, n_bytes);
    free(file);
    if (config != NULL) temp_write_text(&dir, "tokenizer_config.json", config);
    if (model != NULL) {
        char *const bytes = temp_read(model, &n_bytes);
        temp_write(&dir, "tokenizer.model", bytes, n_bytes);
        free(bytes);
    }
    const err_t err = tokenizer_open(dir.path, out, info);
    temp_dir_close(&dir);
    return err;
}

START_TEST(the_template_or_the_config_decides_about_bos)
{
    static const struct {
        const char *fixture, *config;
        int64_t bos, eos;
        bool adds;
    } cases[] = {
        {"qwen", NULL, -1, -1, false},
        {"llama3", NULL, 700, -1, true},
        {"deepseek2", NULL, 700, -1, true},
        {"mixtral", NULL, 1, -1, true},
        {"mixtral", "{\"add_bos_token\":false,\"bos_token\":\"<s>\"}", 1, -1, false},
        {"phi", "{\"add_bos_token\":true,\"bos_token\":\"<s>\",\"eos_token\":\"</s>\"}", 1, 2,
         true},
        {"phi", "{\"bos_token\":{\"content\":\"<s>\"},\"eos_token\":{\"content\":\"<|end|>\"}}", 1,
         704, false},
        {"qwen", "{\"add_bos_token\":true,\"bos_token\":null,\"eos_token\":\"<|im_end|>\"}", -1,
         702, false}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        tokenizer *t;
        err_info info = {0};
        ck_assert(open_beside(cases[i].fixture, cases[i].config, NULL, &t, &info) == ERR_OK);
        ck_assert_int_eq(tokenizer_bos(t), cases[i].bos);
        ck_assert_int_eq(tokenizer_eos(t), cases[i].eos);
        ck_assert(tokenizer_adds_bos(t) == cases[i].adds);
        uint32_t *ids;
        size_t n_ids;
        const tok_text text = {.bytes = "x", .n_bytes = 1, .add_bos = true};
        ck_assert(tokenizer_encode(t, &text, &ids, &n_ids) == ERR_OK);
        if (cases[i].bos >= 0) ck_assert(ids[0] == (uint32_t)cases[i].bos);
        free(ids);
        tokenizer_close(t);
    }
}
END_TEST

/* Copies a file of tests/golden/FIXTURE. */
static void copy_golden(const temp_dir *dir, const char *fixture, const char *name)
{
    char path[160];
    size_t n_bytes;
    (void)snprintf(path, sizeof path, "tests/golden/%s/%s", fixture, name);
    char *const bytes = temp_read(path, &n_bytes);
    temp_write(dir, name, bytes, n_bytes);
    free(bytes);
}

/* What transformers reads; also where the files name other tokens. */
START_TEST(of_two_files_the_json_counts)
{
    tokenizer *t;
    err_info info = {0};
    ck_assert(open_beside("qwen", NULL, "tests/golden/tokenizer-bpe/tokenizer.model", &t, &info) ==
              ERR_OK);
    ck_assert_str_eq(tokenizer_kind(t), "bpe");
    tokenizer_close(t);
}
END_TEST

START_TEST(beside_a_json_that_is_none_of_ours_the_model_counts)
{
    temp_dir dir;
    tokenizer *t;
    err_info info = {0};
    temp_dir_open(&dir);
    copy_golden(&dir, "tokenizer-bpe", "tokenizer.model");
    temp_write_text(&dir, "tokenizer.json", "{\"model\":{\"type\":\"Unigram\",\"vocab\":[]}}");
    ck_assert_msg(tokenizer_open(dir.path, &t, &info) == ERR_OK, "%s", info.message);
    ck_assert_str_eq(tokenizer_kind(t), "sentencepiece");
    tokenizer_close(t);
    temp_write_text(&dir, "tokenizer.json", "{\"model\":");
    ck_assert(tokenizer_open(dir.path, &t, &info) == ERR_BAD_MODEL); /* broken is not other */
    temp_dir_close(&dir);
}
END_TEST

/* ---- whole chats: where text between control tokens begins -------------------------------------- */

START_TEST(chats_become_the_ids_of_transformers)
{
    static const char *const names[] = {"tokenizer-chat-legacy", "tokenizer-chat-new"};
    for (int i = 0; i < 2; i++) {
        char path[160];
        golden_cases cases;
        tokenizer *t;
        err_info info = {0};
        temp_dir dir;
        (void)snprintf(path, sizeof path, "tests/golden/%s/cases.json", names[i]);
        golden_chats_open(path, &cases);
        temp_dir_open(&dir);
        copy_golden(&dir, names[i], "tokenizer_config.json");
        copy_golden(&dir, names[i], "tokenizer.model");
        ck_assert_msg(tokenizer_open(dir.path, &t, &info) == ERR_OK, "%s", info.message);
        ck_assert_str_eq(tokenizer_kind(t), "sentencepiece");
        check_ids(t, cases.plain, cases.n_plain, true);
        tokenizer_close(t);
        copy_golden(&dir, names[i], "tokenizer.json");
        ck_assert_msg(tokenizer_open(dir.path, &t, &info) == ERR_OK, "%s", info.message);
        ck_assert_str_eq(tokenizer_kind(t), "bpe");
        check_ids(t, cases.encode, cases.n_encode, true);
        tokenizer_close(t);
        temp_dir_close(&dir);
        golden_cases_close(&cases);
    }
}
END_TEST

/* add_prefix_space: false takes the marker from a text's beginning, too. */
START_TEST(a_text_may_begin_without_a_marker)
{
    static const char text[] = "the server";
    static const char *const configs[] = {"{\"legacy\":false}",
                                          "{\"legacy\":false,\"add_prefix_space\":false}"};
    uint32_t *ids[2];
    size_t n_ids[2];
    for (int i = 0; i < 2; i++) {
        temp_dir dir;
        tokenizer *t;
        err_info info = {0};
        temp_dir_open(&dir);
        copy_golden(&dir, "tokenizer-bpe", "tokenizer.model");
        temp_write_text(&dir, "tokenizer_config.json", configs[i]);
        ck_assert_msg(tokenizer_open(dir.path, &t, &info) == ERR_OK, "%s", info.message);
        const tok_text source = {.bytes = text, .n_bytes = sizeof text - 1};
        ck_assert(tokenizer_encode(t, &source, &ids[i], &n_ids[i]) == ERR_OK);
        const tok_piece first = tokenizer_piece(t, ids[i][0], false);
        ck_assert(first.bytes[0] == (i == 0 ? ' ' : 't'));
        tokenizer_close(t);
        temp_dir_close(&dir);
        free(ids[i]);
    }
}
END_TEST

/* ---- refusals ------------------------------------------------------------------------------------ */

static err_t open_text(const char *json, err_info *info)
{
    temp_dir dir;
    tokenizer *t;
    temp_dir_open(&dir);
    temp_write_text(&dir, "tokenizer.json", json);
    const err_t err = tokenizer_open(dir.path, &t, info);
    tokenizer_close(t);
    temp_dir_close(&dir);
    return err;
}

#define MODEL(inside) "\"model\":{\"type\":\"BPE\"," inside "}"
#define SMALL         MODEL("\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]")
#define DECODER       "\"decoder\":{\"type\":\"ByteLevel\"}"

START_TEST(what_is_not_supported_is_named)
{
    static const struct {
        const char *json;
        err_t err;
        const char *named;
    } cases[] = {
        {"{" SMALL "," DECODER "}", ERR_OK, NULL},
        {"{" SMALL "}", ERR_UNSUPPORTED, "decoder"},
        {"{" DECODER "}", ERR_BAD_MODEL, "model is missing"},
        {"[]", ERR_BAD_MODEL, "tokenizer.json"},
        {"{\"model\":{\"type\":\"WordPiece\"}," DECODER "}", ERR_UNSUPPORTED,
         "model: type: \"WordPiece\""},
        {"{" MODEL("\"vocab\":{},\"merges\":[]") "," DECODER "}", ERR_BAD_MODEL, "no token"},
        {"{" MODEL("\"vocab\":{\"a\":0},\"merges\":[],\"dropout\":0.1") "," DECODER "}",
         ERR_UNSUPPORTED, "dropout: 0.1"},
        {"{" MODEL("\"vocab\":{\"a\":0},\"merges\":[],\"end_of_word_suffix\":\"</w>\"") "," DECODER
                                                                                        "}",
         ERR_UNSUPPORTED, "end_of_word_suffix: \"</w>\""},
        {"{" MODEL("\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]") "," DECODER "}", ERR_BAD_MODEL,
         "id 0 is there twice"},
        {"{" MODEL("\"vocab\":{\"a\":-1},\"merges\":[]") "," DECODER "}", ERR_BAD_MODEL,
         "-1 is outside"},
        {"{" MODEL("\"vocab\":{\"a\":1e9},\"merges\":[]") "," DECODER "}", ERR_BAD_MODEL,
         "1000000000 is outside"},
        {"{" MODEL("\"vocab\":{\"a\":0},\"merges\":[\"a b\"]") "," DECODER "}", ERR_BAD_MODEL,
         "merges: element 0 has a token that is not in vocab"},
        {"{" MODEL("\"vocab\":{\"a\":0},\"merges\":[[\"a\"]]") "," DECODER "}", ERR_BAD_MODEL,
         "merges: element 0 is not a pair"},
        {"{" MODEL("\"vocab\":{\"a\":0},\"merges\":[],\"unk_token\":\"u\"") "," DECODER "}",
         ERR_BAD_MODEL, "unk_token: \"u\" is not in vocab"},
        {"{" SMALL "," DECODER ",\"normalizer\":{\"type\":\"Precompiled\"}}", ERR_UNSUPPORTED,
         "normalizer: type: \"Precompiled\""},
        {"{" SMALL "," DECODER ",\"pre_tokenizer\":{\"type\":\"BertPreTokenizer\"}}",
         ERR_UNSUPPORTED, "pre_tokenizer: type: \"BertPreTokenizer\""},
        {"{" SMALL "," DECODER ",\"pre_tokenizer\":{\"type\":\"Split\",\"behavior\":\"Isolated\","
         "\"pattern\":{\"Regex\":\"(a+)+b\"}}}",
         ERR_UNSUPPORTED, "a repeated group"},
        {"{" SMALL "," DECODER ",\"pre_tokenizer\":{\"type\":\"Split\",\"behavior\":\"Isolated\","
         "\"pattern\":{\"Regex\":\"[a-\"}}}",
         ERR_BAD_MODEL, "malformed"},
        {"{" SMALL "," DECODER ",\"pre_tokenizer\":{\"type\":\"Split\",\"behavior\":\"Sideways\","
         "\"pattern\":{\"String\":\"x\"}}}",
         ERR_UNSUPPORTED, "behavior: \"Sideways\""},
        {"{" SMALL ",\"decoder\":{\"type\":\"WordPiece\"}}", ERR_UNSUPPORTED,
         "decoder: type: \"WordPiece\""},
        {"{" SMALL "," DECODER ",\"post_processor\":{\"type\":\"BertProcessing\"}}",
         ERR_UNSUPPORTED, "post_processor: type: \"BertProcessing\""},
        {"{" SMALL "," DECODER ",\"added_tokens\":[{\"id\":7,\"content\":\"<x>\"}]}", ERR_BAD_MODEL,
         "id 7 does not follow from the vocabulary: 3"},
        {"{" SMALL "," DECODER
         ",\"added_tokens\":[{\"id\":3,\"content\":\"<x>\"},{\"id\":4,\"content\":\"<x>\"}]}",
         ERR_BAD_MODEL, "<x>"},
        {"{" SMALL "," DECODER ",\"added_tokens\":[{\"id\":3,\"content\":5}]}", ERR_BAD_MODEL,
         "content: 5 is not a string"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        err_info info = {0};
        const err_t err = open_text(cases[i].json, &info);
        ck_assert_msg(err == cases[i].err, "%s: %s: %s", cases[i].json, err_name(err),
                      info.message);
        if (cases[i].named != NULL)
            ck_assert_msg(strstr(info.message, cases[i].named) != NULL, "%s", info.message);
    }
}
END_TEST

START_TEST(cut_and_broken_files_are_refused)
{
    char path[200];
    size_t n_bytes;
    (void)snprintf(path, sizeof path, "%s/tokenizer.json", folder_of("phi"));
    char *const file = temp_read(path, &n_bytes);
    for (size_t n = 1; n + 2 < n_bytes; n += 211) {
        const char kept = file[n];
        file[n] = '\0';
        err_info info = {0};
        ck_assert(open_text(file, &info) == ERR_BAD_MODEL);
        ck_assert(strstr(info.message, "tokenizer.json") != NULL);
        file[n] = kept;
    }
    free(file);
}
END_TEST

/* ---- time ---------------------------------------------------------------------------------------- */

static double seconds_for(const tokenizer *t, const char *unit, size_t n_bytes)
{
    const size_t n_unit = strlen(unit);
    char *const text = malloc(n_bytes);
    ck_assert_ptr_nonnull(text);
    const size_t n_text = n_bytes / n_unit * n_unit;
    for (size_t i = 0; i < n_text; i++)
        text[i] = unit[i % n_unit];
    uint32_t *ids;
    size_t n_ids;
    const uint64_t start = clock_mono_ns();
    const err_t err =
        tokenizer_encode(t, &(tok_text){.bytes = text, .n_bytes = n_text}, &ids, &n_ids);
    const double seconds = clock_seconds_since(start);
    ck_assert_msg(err == ERR_OK || err == ERR_BAD_REQUEST, "%s", err_name(err));
    if (err == ERR_OK) free(ids);
    free(text);
    return seconds;
}

/* A text of one long word, of spaces, of marks or of names: never n^2. 2^17 bytes would
 * then take 2^34 steps; the limit is wide because sanitizers and busy machines are slow. */
START_TEST(no_text_takes_long)
{
    static const char *const units[] = {
        "a",  "ab",           " ",     "\n ", "\t", "A",   "'",  "1",      "-",           "aA", "é",
        "漢", "\u0316\u0301", "<|im_", "\r",  " x", "!a ", "<s", "\u0301", "\u05d0\u0345"};
    enum { N_BYTES = 1 << 17 };
    for (int i = 0; i < N_FIXTURES; i++) {
        tokenizer *const t = open_fixture(fixtures[i]);
        for (size_t u = 0; u < sizeof units / sizeof units[0]; u++) {
            const double seconds = seconds_for(t, units[u], N_BYTES);
            ck_assert_msg(seconds < 10, "%s, \"%s\": %.1f s", fixtures[i], units[u], seconds);
        }
        tokenizer_close(t);
    }
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(text_becomes_the_ids_of_the_library),
    TEST_CASE(a_name_becomes_a_control_token_only_where_asked),
    TEST_CASE(ids_become_the_text_of_the_library),
    TEST_CASE(streamed_and_whole_text_are_equal),
    TEST_CASE_SECONDS(generated_lines_give_the_librarys_digest, 250),
    TEST_CASE(the_template_or_the_config_decides_about_bos),
    TEST_CASE(of_two_files_the_json_counts),
    TEST_CASE(beside_a_json_that_is_none_of_ours_the_model_counts),
    TEST_CASE(chats_become_the_ids_of_transformers),
    TEST_CASE(a_text_may_begin_without_a_marker),
    TEST_CASE(what_is_not_supported_is_named),
    TEST_CASE(cut_and_broken_files_are_refused),
    TEST_CASE_SECONDS(no_text_takes_long, 250),
    TEST_CASES_END,
};
