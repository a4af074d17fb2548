/* service/eval/eval_encode.c - see eval_encode.h. */
#include "service/eval/eval_encode.h"

#include "base/check.h"

#include <stdlib.h>
#include <string.h>

/* ---- may the text be cut? -------------------------------------------------------------------------- */

static int compare_pieces(const void *a, const void *b)
{
    const tok_piece *const p = a, *const q = b;
    const int order = memcmp(p->bytes, q->bytes, min_size(p->n_bytes, q->n_bytes));
    if (order != 0) return order;
    return (p->n_bytes > q->n_bytes) - (p->n_bytes < q->n_bytes);
}

/* A vocabulary's texts, in order. */
typedef struct piece_set {
    tok_piece *pieces; /* owned */
    size_t n_pieces;
} piece_set;

static err_t open_pieces(const tokenizer *t, piece_set *out)
{
    const uint32_t n_vocab = tokenizer_n_vocab(t);
    *out = (piece_set){.pieces = calloc(n_vocab, sizeof *out->pieces)};
    if (out->pieces == NULL) return ERR_NO_MEMORY;
    for (uint32_t id = 0; id < n_vocab; id++) {
        const tok_piece piece = tokenizer_piece(t, id, false);
        if (!piece.is_special && piece.n_bytes > 0) out->pieces[out->n_pieces++] = piece;
    }
    qsort(out->pieces, out->n_pieces, sizeof *out->pieces, compare_pieces);
    return ERR_OK;
}

static bool has_piece(const piece_set *set, const char *bytes, size_t n_bytes)
{
    const tok_piece wanted = {.bytes = bytes, .n_bytes = n_bytes};
    return bsearch(&wanted, set->pieces, set->n_pieces, sizeof wanted, compare_pieces) != NULL;
}

static bool is_one_character(const tok_piece *p)
{
    size_t n_characters = 0;
    for (size_t i = 0; i < p->n_bytes; i++)
        n_characters += ((uint8_t)p->bytes[i] & 0xc0) != 0x80; /* not a continuation */
    return n_characters <= 1;
}

static bool is_merged(const piece_set *set, const tok_piece *p)
{
    for (size_t i = 1; i < p->n_bytes; i++) {
        if (has_piece(set, p->bytes, i) && has_piece(set, p->bytes + i, p->n_bytes - i))
            return true;
    }
    return false;
}

static bool holds_newline_and_more(const tok_piece *p)
{
    return p->n_bytes > 1 && memchr(p->bytes, '\n', p->n_bytes) != NULL;
}

/* tokenizer_n_ids_min knows a bound only where every byte of a text is in one of its pieces: no normaliser. */
static err_t find_if_cuttable(const tokenizer *t, bool *out)
{
    piece_set set;
    *out = tokenizer_n_ids_min(t, 1) > 0;
    if (!*out) return ERR_OK;
    TRY(open_pieces(t, &set));
    for (size_t i = 0; i < set.n_pieces && *out; i++) {
        const tok_piece *p = &set.pieces[i];
        *out = !holds_newline_and_more(p) && (is_one_character(p) || is_merged(&set, p));
    }
    free(set.pieces);
    return ERR_OK;
}

/* ---- pieces of the text ------------------------------------------------------------------------------ */

typedef struct id_list {
    uint32_t *ids; /* owned */
    size_t n_ids, n_room;
} id_list;

static err_t append(id_list *list, const uint32_t *ids, size_t n_ids)
{
    if (n_ids > list->n_room - list->n_ids) {
        size_t n_room, bytes;
        TRY(size_add(max_size(2 * list->n_room, 1024), n_ids, &n_room));
        TRY(size_mul(n_room, sizeof *ids, &bytes));
        uint32_t *const grown = realloc(list->ids, bytes);
        if (grown == NULL) return ERR_NO_MEMORY;
        list->ids = grown;
        list->n_room = n_room;
    }
    if (n_ids > 0) memcpy(list->ids + list->n_ids, ids, n_ids * sizeof *ids);
    list->n_ids += n_ids;
    return ERR_OK;
}

static err_t encode(const tokenizer *t, const char *text, size_t n_bytes, id_list *out)
{
    const tok_text all = {.bytes = text, .n_bytes = n_bytes};
    *out = (id_list){0};
    TRY(tokenizer_encode(t, &all, &out->ids, &out->n_ids));
    out->n_room = out->n_ids;
    return ERR_OK;
}

/* End of the piece that begins at `begin`: behind a line end, or the end of the text. */
static size_t find_cut(const eval_encode_options *o, size_t begin)
{
    if (o->n_bytes - begin <= o->piece_bytes) return o->n_bytes;
    const size_t from = begin + o->piece_bytes - 1;
    const char *newline = memchr(o->text + from, '\n', o->n_bytes - from);
    return newline != NULL ? (size_t)(newline - o->text) + 1 : o->n_bytes;
}

/* Appends the ids of text[begin .. end), where a newline stands before begin. */
static err_t append_piece(const tokenizer *t, const char *text, size_t n_bytes,
                          const id_list *newline, id_list *out)
{
    id_list piece;
    TRY(encode(t, text - 1, n_bytes + 1, &piece));
    err_t err = ERR_UNSUPPORTED; /* not begun by a newline: the caller knows another way */
    if (piece.n_ids >= newline->n_ids &&
        memcmp(piece.ids, newline->ids, newline->n_ids * sizeof *piece.ids) == 0)
        err = append(out, piece.ids + newline->n_ids, piece.n_ids - newline->n_ids);
    free(piece.ids);
    return err;
}

/* ERR_UNSUPPORTED if a piece does not begin as it should. */
static err_t encode_pieces(const tokenizer *t, const eval_encode_options *o, id_list *out)
{
    id_list newline;
    size_t begin = find_cut(o, 0);
    TRY(encode(t, "\n", 1, &newline));
    err_t err = encode(t, o->text, begin, out);
    while (err == ERR_OK && begin < o->n_bytes) {
        const size_t end = find_cut(o, begin);
        err = append_piece(t, o->text + begin, end - begin, &newline, out);
        begin = end;
    }
    free(newline.ids);
    if (err == ERR_OK) return ERR_OK;
    free(out->ids);
    *out = (id_list){0};
    return err;
}

err_t eval_encode(const tokenizer *t, const eval_encode_options *options, uint32_t **ids,
                  size_t *n_ids)
{
    id_list list = {0};
    bool is_cuttable = false;
    assert(options->piece_bytes >= 1);
    *ids = NULL;
    *n_ids = 0;
    if (find_cut(options, 0) < options->n_bytes) TRY(find_if_cuttable(t, &is_cuttable));
    err_t err = ERR_UNSUPPORTED;
    if (is_cuttable) err = encode_pieces(t, options, &list);
    if (err == ERR_UNSUPPORTED) err = encode(t, options->text, options->n_bytes, &list);
    TRY(err);
    *ids = list.ids;
    *n_ids = list.n_ids;
    return ERR_OK;
}
