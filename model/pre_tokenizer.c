/* model/pre_tokenizer.c - see pre_tokenizer.h. */
#include "model/pre_tokenizer.h"

#include "base/check.h"

#include <stdlib.h>
#include <string.h>

/* ---- bytes as characters ------------------------------------------------------------------------- */

/* Bytes that are printable in Latin-1 stand for themselves, the others follow from U+0100 on. */
static bool is_printable(unsigned byte)
{
    return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte != 0xad);
}

/* The unprintable bytes are 00-20, 7f-a0 and ad. */
static uint32_t character_of(unsigned byte)
{
    if (is_printable(byte)) return byte;
    if (byte <= 0x20) return 0x100 + byte;
    return byte == 0xad ? 0x143 : 0x121 + (byte - 0x7f);
}

text_view byte_level_character(uint8_t byte, char out[2])
{
    const uint32_t c = character_of(byte);
    if (c < 0x80) {
        out[0] = (char)c;
        return (text_view){out, 1};
    }
    out[0] = (char)(0xc0 | c >> 6);
    out[1] = (char)(0x80 | (c & 0x3f));
    return (text_view){out, 2};
}

int byte_level_value(uint32_t c)
{
    if (c < 0x100) return is_printable(c) ? (int)c : -1;
    if (c <= 0x120) return (int)(c - 0x100);
    if (c <= 0x142) return (int)(c - 0x121 + 0x7f);
    return c == 0x143 ? 0xad : -1;
}

static err_t map_bytes(text_view text, text_buffer *out)
{
    out->n_bytes = 0;
    TRY(text_buffer_reserve(out, 2 * text.n_bytes));
    for (size_t i = 0; i < text.n_bytes; i++) {
        char c[2];
        const text_view character = byte_level_character((uint8_t)text.bytes[i], c);
        memcpy(out->bytes + out->n_bytes, character.bytes, character.n_bytes);
        out->n_bytes += character.n_bytes;
    }
    return ERR_OK;
}

/* ---- life cycle ---------------------------------------------------------------------------------- */

void pre_tokenizer_deinit(pre_tokenizer *p)
{
    for (size_t i = 0; i < p->n_steps; i++)
        regex_close(p->step[i].pattern);
    *p = (pre_tokenizer){0};
}

void pre_scratch_deinit(pre_scratch *s)
{
    for (size_t i = 0; i < PRE_STEPS_MAX; i++) {
        free(s->marked[i].bytes);
        free(s->mapped[i].bytes);
    }
    *s = (pre_scratch){0};
}

bool pre_tokenizer_is_lossless(const pre_tokenizer *p)
{
    for (size_t i = 0; i < p->n_steps; i++)
        if (p->step[i].behavior == SPLIT_REMOVED) return false;
    return true;
}

/* ---- cutting ------------------------------------------------------------------------------------- */

typedef struct cutting {
    const pre_tokenizer *p;
    pre_scratch *scratch;
    const pre_sink *sink;
} cutting;

typedef struct cut_piece {
    text_view text;
    size_t step; /* the next one to go through */
    bool is_first;
} cut_piece;

/* Neighbouring pieces of one text that may still become one. */
typedef struct pending {
    bool is_there, is_match;
    size_t begin, end;
} pending;

static bool joins(split_behavior behavior, const pending *before, bool is_match)
{
    switch (behavior) {
    case SPLIT_CONTIGUOUS: return before->is_match == is_match;
    case SPLIT_MERGED_WITH_PREVIOUS: return !before->is_match && is_match;
    case SPLIT_MERGED_WITH_NEXT: return before->is_match && !is_match;
    default: return false;
    }
}

static err_t put_piece(const cutting *c, cut_piece piece);

static err_t flush(const cutting *c, const cut_piece *whole, const pending *p)
{
    const pre_step *const step = &c->p->step[whole->step];
    if (!p->is_there || p->begin == p->end) return ERR_OK;
    if (step->behavior == SPLIT_REMOVED && p->is_match) return ERR_OK;
    cut_piece piece = {.text = {whole->text.bytes + p->begin, p->end - p->begin},
                       .step = whole->step + 1,
                       .is_first = whole->is_first && p->begin == 0};
    if (step->maps_bytes) {
        text_buffer *const mapped = &c->scratch->mapped[whole->step];
        TRY(map_bytes(piece.text, mapped));
        piece.text = (text_view){mapped->bytes, mapped->n_bytes};
    }
    return put_piece(c, piece);
}

static err_t add_part(const cutting *c, const cut_piece *whole, pending *p, const pending *part)
{
    const pre_step *const step = &c->p->step[whole->step];
    const bool is_match = part->is_match != step->invert;
    if (p->is_there && joins(step->behavior, p, is_match)) {
        p->end = part->end;
        p->is_match = is_match;
        return ERR_OK;
    }
    TRY(flush(c, whole, p));
    *p = (pending){true, is_match, part->begin, part->end};
    return ERR_OK;
}

static err_t cut(const cutting *c, const cut_piece *whole)
{
    const pre_step *const step = &c->p->step[whole->step];
    pending p = {.is_there = step->pattern == NULL, .end = whole->text.n_bytes};
    if (step->pattern == NULL) return flush(c, whole, &p);
    regex_walk walk;
    regex_match match;
    size_t handed = 0;
    err_t err;
    regex_walk_init(&walk, step->pattern, c->scratch->regex, whole->text);
    while ((err = regex_walk_next(&walk, &match)) == ERR_OK) {
        if (handed != match.begin)
            TRY(add_part(c, whole, &p, &(pending){.begin = handed, .end = match.begin}));
        TRY(add_part(c, whole, &p,
                     &(pending){.is_match = true, .begin = match.begin, .end = match.end}));
        handed = match.end;
    }
    if (err != ERR_NOT_FOUND) return err;
    if (handed != whole->text.n_bytes)
        TRY(add_part(c, whole, &p, &(pending){.begin = handed, .end = whole->text.n_bytes}));
    return flush(c, whole, &p);
}

static bool begins_with(text_view text, const char *with)
{
    const size_t n = strlen(with);
    return text.n_bytes >= n && memcmp(text.bytes, with, n) == 0;
}

/* Spaces become markers, and the prefix comes before. */
static err_t mark(const cutting *c, cut_piece *piece)
{
    const pre_step *const step = &c->p->step[piece->step];
    text_buffer *const out = &c->scratch->marked[piece->step];
    const size_t n_prefix = strlen(step->prefix_text);
    const text_view text = piece->text;
    const bool has_prefix =
        begins_with(text, step->prefix_text) || (step->marks_spaces && begins_with(text, " "));
    const bool wants_prefix =
        step->prefix == PREFIX_ALWAYS || (step->prefix == PREFIX_FIRST && piece->is_first);
    if (!step->marks_spaces && (has_prefix || !wants_prefix)) return ERR_OK;
    out->n_bytes = 0;
    if (wants_prefix && !has_prefix) TRY(text_buffer_append(out, step->prefix_text, n_prefix));
    for (size_t i = 0; step->marks_spaces && i < text.n_bytes; i++) {
        if (text.bytes[i] == ' ')
            TRY(text_buffer_append(out, step->prefix_text, n_prefix));
        else
            TRY(text_buffer_append(out, text.bytes + i, 1));
    }
    if (!step->marks_spaces) TRY(text_buffer_append(out, text.bytes, text.n_bytes));
    piece->text = (text_view){out->bytes, out->n_bytes};
    return ERR_OK;
}

/* Recursion is at most PRE_STEPS_MAX deep. */
static err_t put_piece(const cutting *c, cut_piece piece)
{
    if (piece.text.n_bytes == 0) return ERR_OK;
    if (piece.step == c->p->n_steps) return c->sink->word(c->sink->ctx, piece.text);
    TRY(mark(c, &piece));
    return cut(c, &piece);
}

err_t pre_tokenizer_apply(const pre_tokenizer *p, pre_scratch *scratch, text_view text,
                          bool is_first, const pre_sink *sink)
{
    const cutting c = {.p = p, .scratch = scratch, .sink = sink};
    return put_piece(&c, (cut_piece){.text = text, .is_first = is_first});
}
