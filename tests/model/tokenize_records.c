/* Text to ids and back, for tools/compare_tokenizers.py: `tokenize_records DIR` answers every record of
 * its input (bytes, uint32, and as many bytes of text) with one of its output: n_ids (UINT32_MAX: an
 * error), the ids, n_bytes, the decoded text, n_bytes, the same with special tokens shown. With a third
 * argument the tokenizer only reads, and says how many bytes a second. */
#include "base/clock.h"
#include "model/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void put(const void *bytes, size_t n_bytes)
{
    if (n_bytes > 0 && fwrite(bytes, 1, n_bytes, stdout) != n_bytes) exit(1);
}

static void put_decoded(const tokenizer *t, const uint32_t *ids, size_t n_ids, bool show_special)
{
    char *text;
    size_t n_bytes;
    if (tokenizer_decode(t, ids, n_ids, show_special, &text, &n_bytes) != ERR_OK) exit(1);
    const uint32_t n = (uint32_t)n_bytes;
    put(&n, sizeof n);
    put(text, n_bytes);
    free(text);
}

static void answer(const tokenizer *t, const char *bytes, size_t n_bytes, bool is_quiet)
{
    uint32_t *ids;
    size_t n_ids;
    const tok_text text = {.bytes = bytes, .n_bytes = n_bytes, .parse_special = true};
    const bool is_good = tokenizer_encode(t, &text, &ids, &n_ids) == ERR_OK;
    const uint32_t n = is_good ? (uint32_t)n_ids : UINT32_MAX;
    if (!is_quiet) put(&n, sizeof n);
    if (!is_good) return;
    if (!is_quiet) {
        put(ids, n_ids * sizeof *ids);
        put_decoded(t, ids, n_ids, false);
        put_decoded(t, ids, n_ids, true);
    }
    free(ids);
}

int main(int argc, char **argv)
{
    tokenizer *t;
    err_info info = {0};
    if (argc < 2) return 2;
    if (tokenizer_open(argv[1], &t, &info) != ERR_OK) {
        fprintf(stderr, "%s\n", info.message);
        return 1;
    }
    uint32_t n_bytes;
    size_t n_all = 0;
    uint64_t n_ns = 0;
    while (fread(&n_bytes, sizeof n_bytes, 1, stdin) == 1) {
        char *const text = malloc((size_t)n_bytes + 1);
        if (text == NULL || fread(text, 1, n_bytes, stdin) != n_bytes) return 1;
        const uint64_t begin = clock_mono_ns();
        answer(t, text, n_bytes, argc > 2);
        n_ns += clock_mono_ns() - begin;
        n_all += n_bytes;
        free(text);
    }
    if (argc > 2) printf("%.2f MB/s\n", (double)n_all * 1e3 / (double)n_ns);
    tokenizer_close(t);
    return 0;
}
