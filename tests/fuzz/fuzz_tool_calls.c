/* What models write, through every parser of calls: whole and byte by byte it means the same, and a text without a call
 * is its own content. Texts are UTF-8 here as the engine's are, but the parsers need not know. */
#include "base/check.h"
#include "base/hash.h"
#include "service/tools/tool_reader.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void read_all(tool_reader *r, const tool_parser *parser, const char *text, size_t n_bytes,
                     size_t step)
{
    tool_reader_init(r, parser);
    for (size_t n = 0; n < n_bytes; n += step)
        assert(tool_reader_read(r, text, n, false) == ERR_OK);
    assert(tool_reader_read(r, text, n_bytes, true) == ERR_OK);
}

static void check_same(const char *a, size_t n_a, const char *b, size_t n_b)
{
    assert(n_a == n_b);
    assert(n_a == 0 || memcmp(a, b, n_a) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    const char *text = (const char *)data;
    if (hash_init() != ERR_OK || bytes > 4096) return 0;
    for (size_t p = 0; tool_parsers[p] != NULL; p++) {
        tool_reader whole, cut;
        read_all(&whole, tool_parsers[p], text, bytes, bytes + 1);
        read_all(&cut, tool_parsers[p], text, bytes, 1);
        check_same(whole.content.bytes, whole.content.n_bytes, cut.content.bytes,
                   cut.content.n_bytes);
        assert(whole.n_calls == cut.n_calls);
        if (whole.n_calls == 0) check_same(whole.content.bytes, whole.content.n_bytes, text, bytes);
        for (size_t i = 0; i < whole.n_calls; i++) {
            const text_view a = tool_arguments(&whole.calls[i], text);
            const text_view b = tool_arguments(&cut.calls[i], text);
            check_same(a.bytes, a.n_bytes, b.bytes, b.n_bytes);
            check_same(whole.calls[i].name, whole.calls[i].name_bytes, cut.calls[i].name,
                       cut.calls[i].name_bytes);
        }
        tool_reader_deinit(&whole);
        tool_reader_deinit(&cut);
    }
    return 0;
}
