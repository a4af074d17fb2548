/* Fuzz target: a tokenizer.json and a text, with a NUL between them.
 *
 * A file that is refused says why. One that is taken must turn any valid text into ids of its own, and
 * every id into text, without a fault. */
#include "base/utf8.h"
#include "model/tokenizer_json.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static void check_text(const tok_bpe *t, text_view text)
{
    const tok_encoding how = {.n_front = 1, .parse_special = text.n_bytes % 2 == 0};
    uint32_t *ids;
    size_t n_ids;
    if (!utf8_valid(text.bytes, text.n_bytes)) return;
    const err_t err = tok_bpe_encode(t, text, &how, &ids, &n_ids);
    assert(err == ERR_OK || err == ERR_BAD_REQUEST);
    if (err != ERR_OK) return;
    assert(n_ids > 0);
    for (size_t i = 1; i < n_ids; i++)
        assert(ids[i] < t->n_ids);
    free(ids);
}

static void check_ids(const tok_bpe *t)
{
    text_buffer out = {0};
    const uint32_t n = t->n_ids < 4096 ? t->n_ids : 4096;
    for (uint32_t id = 0; id < n; id++) {
        const err_t err = tok_bpe_decode(t, id, &out);
        assert(err == ERR_OK);
        if (tok_bpe_is_byte(t, id)) assert(out.n_bytes > 0);
    }
    free(out.bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes)
{
    const char *const text = (const char *)data;
    const size_t n_json = n_bytes > 0 ? strnlen(text, n_bytes) : 0;
    tok_bpe *t;
    err_info info = {0};
    const err_t err = tokenizer_json_parse((text_view){text, n_json}, &t, &info);
    assert((err == ERR_OK) == (t != NULL));
    if (err != ERR_OK) {
        assert(info.code == err);
        assert(info.message[0] != '\0');
        return 0;
    }
    if (n_json < n_bytes) check_text(t, (text_view){text + n_json + 1, n_bytes - n_json - 1});
    check_ids(t);
    tok_bpe_close(t);
    return 0;
}
