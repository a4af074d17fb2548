/* model/tokenizer_bpe.c - see tokenizer_bpe.h. */
#include "model/tokenizer_bpe.h"

#include "base/check.h"
#include "model/unicode.h"

#include <stdlib.h>
#include <string.h>

void tok_bpe_close(tok_bpe *t)
{
    if (t == NULL) return;
    bpe_close(t->vocabulary);
    normalizer_deinit(&t->normalizer);
    pre_tokenizer_deinit(&t->pre_tokenizer);
    added_set_close(t->plain);
    added_set_close(t->normalized);
    for (size_t i = 0; i < t->decoding.n_replaces; i++) {
        free(t->decoding.replace[i].from.bytes);
        free(t->decoding.replace[i].to.bytes);
    }
    free(t->added);
    free(t->added_text.bytes);
    free(t);
}

/* ---- text to ids --------------------------------------------------------------------------------- */

typedef struct encoding {
    const tok_bpe *t;
    const tok_encoding *how;
    id_list ids;
    bpe_scratch bpe;
    pre_scratch pre;
    normalizer_scratch normalizer;
    regex_scratch *regex;
} encoding;

static err_t encode_word(void *ctx, text_view word)
{
    encoding *const e = ctx;
    return bpe_encode(e->t->vocabulary, &e->bpe, word, &e->ids);
}

/* Text between two tokens that were looked for in the text as it came. */
static err_t encode_part(encoding *e, text_view part, bool is_first)
{
    const pre_sink sink = {.word = encode_word, .ctx = e};
    text_view text;
    TRY(normalizer_apply(&e->t->normalizer, &e->normalizer, part, &text));
    added_walk walk;
    added_part found;
    added_walk_init(&walk, e->t->normalized, text, !e->how->parse_special);
    while (added_walk_next(&walk, &found)) {
        const bool is_at_start = is_first && found.text.bytes == text.bytes;
        if (found.id != ADDED_NONE)
            TRY(id_list_push(&e->ids, found.id));
        else
            TRY(pre_tokenizer_apply(&e->t->pre_tokenizer, &e->pre, found.text, is_at_start, &sink));
    }
    return ERR_OK;
}

static err_t encode_text(encoding *e, text_view text)
{
    TRY(regex_scratch_open(&e->regex));
    e->pre.regex = e->regex;
    e->normalizer.regex = e->regex;
    for (size_t i = 0; i < e->how->n_front; i++)
        TRY(id_list_push(&e->ids, 0));
    added_walk walk;
    added_part found;
    added_walk_init(&walk, e->t->plain, text, !e->how->parse_special);
    while (added_walk_next(&walk, &found)) {
        if (found.id != ADDED_NONE)
            TRY(id_list_push(&e->ids, found.id));
        else
            TRY(encode_part(e, found.text, found.text.bytes == text.bytes));
    }
    if (e->ids.id == NULL) { /* callers free an array, be it empty */
        TRY(id_list_push(&e->ids, 0));
        e->ids.n = 0;
    }
    return ERR_OK;
}

err_t tok_bpe_encode(const tok_bpe *t, text_view text, const tok_encoding *how, uint32_t **ids,
                     size_t *n_ids)
{
    encoding e = {.t = t, .how = how};
    const err_t err = encode_text(&e, text);
    bpe_scratch_deinit(&e.bpe);
    pre_scratch_deinit(&e.pre);
    free(e.normalizer.buffer[0].bytes);
    free(e.normalizer.buffer[1].bytes);
    regex_scratch_close(e.regex);
    if (err != ERR_OK) {
        free(e.ids.id);
        return err;
    }
    *ids = e.ids.id;
    *n_ids = e.ids.n;
    return ERR_OK;
}

bool tok_bpe_is_lossless(const tok_bpe *t)
{
    return added_set_is_lossless(t->plain) && added_set_is_lossless(t->normalized) &&
           normalizer_is_lossless(&t->normalizer) && pre_tokenizer_is_lossless(&t->pre_tokenizer) &&
           (t->decoding.is_byte_level || bpe_has_all_bytes(t->vocabulary));
}

/* ---- ids to text --------------------------------------------------------------------------------- */

static const tok_added *find_added(const tok_bpe *t, uint32_t id)
{
    size_t low = 0, high = t->n_added;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if (t->added[middle].id < id)
            low = middle + 1;
        else
            high = middle;
    }
    return low < t->n_added && t->added[low].id == id ? &t->added[low] : NULL;
}

text_view tok_bpe_spelling(const tok_bpe *t, uint32_t id)
{
    const tok_added *const added = find_added(t, id);
    if (added != NULL) return (text_view){t->added_text.bytes + added->begin, added->n_bytes};
    return bpe_piece(t->vocabulary, id);
}

uint32_t tok_bpe_find(const tok_bpe *t, text_view spelling)
{
    for (size_t i = 0; i < t->n_added; i++) {
        const tok_added *const a = &t->added[i];
        if (a->n_bytes == spelling.n_bytes &&
            memcmp(t->added_text.bytes + a->begin, spelling.bytes, a->n_bytes) == 0)
            return a->id;
    }
    return bpe_find(t->vocabulary, spelling);
}

bool tok_bpe_is_special(const tok_bpe *t, uint32_t id)
{
    const tok_added *const added = find_added(t, id);
    return added != NULL && added->is_special;
}

/* The value of "<0x2F>", or -1. */
static int byte_value(text_view spelling)
{
    if (spelling.n_bytes != 6 || memcmp(spelling.bytes, "<0x", 3) != 0 || spelling.bytes[5] != '>')
        return -1;
    int value = 0;
    for (int i = 3; i < 5; i++) {
        const char c = spelling.bytes[i];
        if (c >= '0' && c <= '9')
            value = value * 16 + c - '0';
        else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f')
            value = value * 16 + (c | 0x20) - 'a' + 10;
        else
            return -1;
    }
    return value;
}

bool tok_bpe_is_byte(const tok_bpe *t, uint32_t id)
{
    return t->decoding.byte_fallback && byte_value(tok_bpe_spelling(t, id)) >= 0;
}

/* A spelling with a character that stands for no byte is its own bytes, all of it. */
static err_t decode_byte_level(text_view spelling, text_buffer *out)
{
    const size_t n_before = out->n_bytes;
    TRY(text_buffer_reserve(out, spelling.n_bytes));
    for (size_t i = 0, n; i < spelling.n_bytes; i += n) {
        const uint32_t c = unicode_first((text_view){spelling.bytes + i, spelling.n_bytes - i}, &n);
        const int value = byte_level_value(c);
        if (value < 0) {
            out->n_bytes = n_before;
            return text_buffer_append(out, spelling.bytes, spelling.n_bytes);
        }
        out->bytes[out->n_bytes++] = (char)value;
    }
    return ERR_OK;
}

static err_t replace_all(text_view text, const text_buffer *from, const text_buffer *to,
                         text_buffer *out)
{
    size_t handed = 0;
    while (handed < text.n_bytes) {
        const char *const found =
            memmem(text.bytes + handed, text.n_bytes - handed, from->bytes, from->n_bytes);
        if (found == NULL) break;
        const size_t begin = (size_t)(found - text.bytes);
        TRY(text_buffer_append(out, text.bytes + handed, begin - handed));
        TRY(text_buffer_append(out, to->bytes, to->n_bytes));
        handed = begin + from->n_bytes;
    }
    return text_buffer_append(out, text.bytes + handed, text.n_bytes - handed);
}

err_t tok_bpe_decode(const tok_bpe *t, uint32_t id, text_buffer *out)
{
    const tok_decoding *const d = &t->decoding;
    text_view text = tok_bpe_spelling(t, id);
    if (d->is_byte_level) return decode_byte_level(text, out);
    if (tok_bpe_is_byte(t, id)) {
        const char byte = (char)byte_value(text);
        return text_buffer_append(out, &byte, 1);
    }
    text_buffer buffer[2] = {{0}, {0}};
    err_t err = ERR_OK;
    for (size_t i = 0; i < d->n_replaces && err == ERR_OK; i++) {
        text_buffer *const next = &buffer[i % 2];
        next->n_bytes = 0;
        err = replace_all(text, &d->replace[i].from, &d->replace[i].to, next);
        text = (text_view){next->n_bytes > 0 ? next->bytes : "", next->n_bytes};
    }
    if (err == ERR_OK) err = text_buffer_append(out, text.bytes, text.n_bytes);
    free(buffer[0].bytes);
    free(buffer[1].bytes);
    return err;
}
