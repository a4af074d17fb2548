/* Fuzz target: text to ids and ids to text, with the tokenizer fixture tests/golden/tokenizer-bpe.
 *
 * The first byte chooses: even, the rest is text; odd, the rest are ids of two bytes. Valid text must
 * survive the round trip up to one leading space; ids, valid or not, must decode to valid UTF-8,
 * the same whole and streamed, whatever was held back in between. */
#include "base/utf8.h"
#include "model/tokenizer.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

/* Opened once, on the first input; the process ends with it. Targets run in the repository's root. */
static tokenizer *fixture(void)
{
    static tokenizer *t = NULL;
    if (t == NULL) {
        const char *const dir = getenv("PIKV_FUZZ_TOKENIZER");
        err_info info = {0};
        const err_t err =
            tokenizer_open(dir != NULL ? dir : "tests/golden/tokenizer-bpe", &t, &info);
        assert(err == ERR_OK);
    }
    return t;
}

static void check_ids(const tokenizer *t, const uint32_t *ids, size_t n_ids)
{
    char *whole;
    size_t n_whole;
    if (tokenizer_decode(t, ids, n_ids, n_ids % 2 == 1, &whole, &n_whole) != ERR_OK) return;
    assert(utf8_valid(whole, n_whole));

    char *const piece = malloc(tok_stream_bytes_max(t));
    assert(piece != NULL);
    tok_stream s;
    size_t at = 0;
    tok_stream_init(&s, t, n_ids % 2 == 1, true);
    for (size_t i = 0; i <= n_ids; i++) {
        const size_t n = i < n_ids ? tok_stream_push(&s, ids[i], piece) : tok_stream_end(&s, piece);
        assert(n <= tok_stream_bytes_max(t));
        assert(at + n <= n_whole);
        assert(memcmp(whole + at, piece, n) == 0);
        assert(utf8_valid(piece, n));
        at += n;
    }
    assert(at == n_whole);
    free(piece);
    free(whole);
}

/* A marker U+2581 in the text becomes a space, so only texts without one come back as they were. */
static void check_round_trip(const tokenizer *t, const char *text, size_t n_bytes,
                             const uint32_t *ids, size_t n_ids)
{
    char *back;
    size_t n_back;
    if (memmem(text, n_bytes, "\xe2\x96\x81", 3) != NULL) return;
    if (tokenizer_decode(t, ids, n_ids, false, &back, &n_back) != ERR_OK) return;
    assert(n_back == n_bytes);
    assert(memcmp(back, text, n_bytes) == 0);
    free(back);
}

static void check_text(const tokenizer *t, const char *text, size_t n_bytes)
{
    uint32_t *ids;
    size_t n_ids;
    const tok_text source = {.bytes = text, .n_bytes = n_bytes};
    const err_t err = tokenizer_encode(t, &source, &ids, &n_ids);
    assert((err == ERR_BAD_REQUEST) == !utf8_valid(text, n_bytes));
    if (err != ERR_OK) return;
    for (size_t i = 0; i < n_ids; i++) {
        assert(ids[i] < tokenizer_n_vocab(t));
        assert(!tokenizer_piece(t, ids[i], false).is_special); /* no text is a control token */
    }
    check_ids(t, ids, n_ids);
    check_round_trip(t, text, n_bytes, ids, n_ids);
    free(ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes)
{
    const tokenizer *const t = fixture();
    if (n_bytes == 0) return 0;
    if (data[0] % 2 == 0) {
        check_text(t, (const char *)data + 1, n_bytes - 1);
        return 0;
    }
    const size_t n_ids = (n_bytes - 1) / 2;
    uint32_t *const ids = calloc(n_ids + 1, sizeof *ids);
    assert(ids != NULL);
    for (size_t i = 0; i < n_ids; i++)
        ids[i] = (uint32_t)data[1 + 2 * i] | (uint32_t)data[2 + 2 * i] % 4 << 8;
    check_ids(t, ids, n_ids);
    free(ids);
    return 0;
}
