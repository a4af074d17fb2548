/* model/tokenizer.c - see tokenizer.h.
 *
 * Encoding is SentencePiece's. Decoding is ours, from a table made at open: for every id the bytes
 * that it adds to a text. It follows SentencePiece's rules - the marker U+2581 is a space, one space
 * is dropped at the beginning when the model put it there, control pieces are nothing, the unknown
 * piece is its surface - and differs in one: bytes that form no character become U+FFFD by the
 * maximal-subpart rule of Unicode instead of one for each byte, so that streamed and whole output
 * agree with every other decoder of UTF-8.
 *
 * A whole text is decoded by the same tok_stream that streams it; they cannot differ. */
#include "model/tokenizer.h"

#include "base/check.h"
#include "base/utf8.h"
#include "model/model_file.h"
#include "model/special_tokens.h"
#include "model/spm_settings.h"
#include "model/tokenizer_settings.h"
#include "model/tokenizer_spm.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MODEL_BYTES_MAX = 256 << 20,
    VOCAB_MAX = 1 << 22,
    REPLACEMENT_BYTES = 3,
    HELD_BYTES_MAX = 3
};

static const char marker[] = "\xe2\x96\x81"; /* U+2581, SentencePiece's space */
enum { MARKER_BYTES = sizeof marker - 1 };

static const char *const model_file = "tokenizer.model";

/* Pieces, one array per field. Text of id: bytes[text_begin[id] .. text_end[id]). A special id's
 * name stands where the next text begins: bytes[text_end[id] .. text_begin[id + 1]). */
struct tokenizer {
    spm *model;
    uint32_t n_vocab;
    uint32_t *text_begin; /* [n_vocab + 1] */
    uint32_t *text_end;   /* [n_vocab] */
    uint8_t *kind;        /* [n_vocab], spm_kind */
    char *bytes;
    void *block;            /* owns the four arrays */
    special_tokens special; /* names lie in `bytes` */
    size_t piece_bytes_max;
    size_t spelling_bytes_max; /* as SentencePiece spells: three bytes for a space or a U+2581 */
    int64_t bos, eos;
    bool adds_bos;
    bool drops_first_space;  /* one leading space of the text is the model's, not the author's */
    bool drops_first_spaces; /* all of them */
    bool is_lossless;        /* every byte of a text is in one of its pieces */
};

/* ---- the piece table ----------------------------------------------------------------------------- */

typedef struct piece_text {
    const char *bytes; /* SentencePiece's spelling */
    size_t n_bytes;
    spm_kind kind;
} piece_text;

static piece_text piece_of(const spm *model, uint32_t id)
{
    piece_text p;
    p.kind = spm_piece(model, id, &p.bytes, &p.n_bytes);
    return p;
}

/* The value of "<0x2F>", or -1. */
static int byte_value(const piece_text *p)
{
    unsigned value;
    char text[7] = {0};
    if (p->n_bytes != 6) return -1;
    memcpy(text, p->bytes, 6);
    char close = 0;
    if (sscanf(text, "<0x%2X%c", &value, &close) != 2 || close != '>') return -1;
    return (int)value;
}

/* Copies a spelling with spaces for markers; returns the bytes written, at most n_bytes. */
static size_t write_text(const char *bytes, size_t n_bytes, char *out)
{
    char *end = out;
    for (size_t i = 0; i < n_bytes;) {
        if (n_bytes - i >= MARKER_BYTES && memcmp(bytes + i, marker, MARKER_BYTES) == 0) {
            *end++ = ' ';
            i += MARKER_BYTES;
        } else {
            *end++ = bytes[i++];
        }
    }
    return (size_t)(end - out);
}

static size_t write_piece(const piece_text *p, const spm_settings *settings, char *out)
{
    switch (p->kind) {
    case SPM_BYTE: *out = (char)byte_value(p); return 1;
    case SPM_CONTROL: return 0;
    case SPM_UNKNOWN:
        memcpy(out, settings->unk_surface, settings->unk_surface_bytes);
        return settings->unk_surface_bytes;
    default: return write_text(p->bytes, p->n_bytes, out);
    }
}

static bool is_special(spm_kind kind)
{
    return kind == SPM_CONTROL || kind == SPM_UNKNOWN;
}

/* Checks every piece; the bytes that the table needs at most. */
static err_t measure_pieces(const tokenizer *t, const spm_settings *settings, size_t *n_bytes,
                            err_info *info)
{
    *n_bytes = 0;
    for (uint32_t id = 0; id < t->n_vocab; id++) {
        const piece_text p = piece_of(t->model, id);
        if (p.kind == SPM_BYTE && byte_value(&p) < 0)
            return err_set(info, ERR_BAD_MODEL, "%s: piece %u: a byte is not spelled <0xNN>",
                           model_file, id);
        if (!utf8_valid(p.bytes, p.n_bytes))
            return err_set(info, ERR_BAD_MODEL, "%s: piece %u: its spelling is not UTF-8",
                           model_file, id);
        *n_bytes += p.n_bytes;
        if (p.kind == SPM_UNKNOWN) *n_bytes += settings->unk_surface_bytes;
    }
    if (*n_bytes > UINT32_MAX)
        return err_set(info, ERR_BAD_MODEL, "%s: pieces of %zu bytes are too long", model_file,
                       *n_bytes);
    return ERR_OK;
}

static err_t alloc_table(tokenizer *t, size_t n_bytes, err_info *info)
{
    const size_t n = t->n_vocab;
    uint8_t *const block = malloc((2 * n + 1) * sizeof(uint32_t) + n + n_bytes + 1);
    if (block == NULL) return err_set(info, ERR_NO_MEMORY, "%s: out of memory", model_file);
    t->block = block;
    t->text_begin = (uint32_t *)(void *)block;
    t->text_end = t->text_begin + n + 1;
    t->kind = (uint8_t *)(t->text_end + n);
    t->bytes = (char *)(t->kind + n);
    return ERR_OK;
}

static void fill_table(tokenizer *t, const spm_settings *settings)
{
    size_t at = 0;
    for (uint32_t id = 0; id < t->n_vocab; id++) {
        const piece_text p = piece_of(t->model, id);
        t->kind[id] = (uint8_t)p.kind;
        t->text_begin[id] = (uint32_t)at;
        at += write_piece(&p, settings, t->bytes + at);
        t->text_end[id] = (uint32_t)at;
        size_t piece_bytes = at - t->text_begin[id];
        if (is_special(p.kind)) {
            memcpy(t->bytes + at, p.bytes, p.n_bytes);
            at += p.n_bytes;
            piece_bytes = max_size(piece_bytes, p.n_bytes);
        }
        t->piece_bytes_max = max_size(t->piece_bytes_max, piece_bytes);
        t->spelling_bytes_max = max_size(t->spelling_bytes_max, p.n_bytes);
    }
    t->text_begin[t->n_vocab] = (uint32_t)at;
}

/* Of the table, once it is filled. */
static err_t collect_special(tokenizer *t, err_info *info)
{
    size_t n = 0;
    for (uint32_t id = 0; id < t->n_vocab; id++)
        n += is_special(t->kind[id]);
    special_token *const tokens = calloc(n + 1, sizeof *tokens);
    if (tokens == NULL) return err_set(info, ERR_NO_MEMORY, "%s: out of memory", model_file);
    n = 0;
    for (uint32_t id = 0; id < t->n_vocab; id++) {
        const uint32_t begin = t->text_end[id], end = t->text_begin[id + 1];
        if (is_special(t->kind[id]) && end > begin)
            tokens[n++] = (special_token){t->bytes + begin, end - begin, id};
    }
    special_tokens_init(&t->special, tokens, n);
    return ERR_OK;
}

/* ---- life cycle ---------------------------------------------------------------------------------- */

static err_t read_model(const char *dir, uint8_t **out, size_t *n_bytes, err_info *info)
{
    char *bytes;
    *out = NULL;
    const err_t err = model_file_read(dir, model_file, MODEL_BYTES_MAX, &bytes, n_bytes, info);
    if (err == ERR_NOT_FOUND)
        return err_set(info, ERR_IO, "%.180s/%s: %s", dir, model_file, strerror(ENOENT));
    if (err != ERR_OK) return err;
    if (*n_bytes == 0) {
        free(bytes);
        return err_set(info, ERR_BAD_MODEL, "%s: empty", model_file);
    }
    *out = (uint8_t *)bytes;
    return ERR_OK;
}

static err_t check_settings(const spm_settings *settings, err_info *info)
{
    if (settings->suffix_whitespace)
        return err_set(info, ERR_UNSUPPORTED, "%s: treat_whitespace_as_suffix is not supported",
                       model_file);
    if (settings->has_denormalizer)
        return err_set(info, ERR_UNSUPPORTED, "%s: a denormalizer is not supported", model_file);
    if (!utf8_valid(settings->unk_surface, settings->unk_surface_bytes))
        return err_set(info, ERR_BAD_MODEL, "%s: unk_surface is not UTF-8", model_file);
    return ERR_OK;
}

/* Else what no piece spells becomes an unknown piece, and any run of those becomes one. */
static bool has_all_bytes(const spm *model)
{
    size_t n_byte_pieces = 0;
    for (uint32_t id = 0; id < spm_n_vocab(model); id++)
        n_byte_pieces += piece_of(model, id).kind == SPM_BYTE;
    return n_byte_pieces == 256;
}

static err_t build(tokenizer *t, const uint8_t *model, size_t n_bytes, err_info *info)
{
    spm_settings settings;
    if (spm_settings_read(model, n_bytes, &settings) != ERR_OK)
        return err_set(info, ERR_BAD_MODEL, "%s: not a SentencePiece model", model_file);
    TRY(check_settings(&settings, info));
    const err_t err = spm_open(model, n_bytes, &t->model);
    if (err != ERR_OK)
        return err_set(info, err, "%s: %s", model_file,
                       err == ERR_NO_MEMORY ? "out of memory" : "not a SentencePiece model");
    t->n_vocab = spm_n_vocab(t->model);
    if (t->n_vocab > VOCAB_MAX)
        return err_set(info, ERR_BAD_MODEL, "%s: %u pieces are more than %d", model_file,
                       t->n_vocab, VOCAB_MAX);
    t->bos = spm_bos(t->model);
    t->eos = spm_eos(t->model);
    t->drops_first_spaces = settings.remove_extra_whitespaces;
    t->drops_first_space = settings.add_dummy_prefix || settings.remove_extra_whitespaces;
    t->is_lossless =
        !settings.has_normalizer && !settings.remove_extra_whitespaces && has_all_bytes(t->model);
    size_t table_bytes;
    TRY(measure_pieces(t, &settings, &table_bytes, info));
    TRY(alloc_table(t, table_bytes, info));
    fill_table(t, &settings);
    return collect_special(t, info);
}

err_t tokenizer_open(const char *dir, tokenizer **out, err_info *info)
{
    *out = NULL;
    tokenizer_settings settings;
    TRY(tokenizer_settings_read(dir, &settings, info));
    uint8_t *model;
    size_t n_bytes;
    TRY(read_model(dir, &model, &n_bytes, info));
    err_t err = ERR_OK;
    tokenizer *const t = calloc(1, sizeof *t);
    if (t == NULL)
        err = err_set(info, ERR_NO_MEMORY, "%s: out of memory", model_file);
    else
        err = build(t, model, n_bytes, info);
    free(model); /* the unknown piece's surface was in it, and is in the table now */
    if (err != ERR_OK) {
        tokenizer_close(t);
        return err;
    }
    t->adds_bos = settings.add_bos && t->bos >= 0;
    *out = t;
    return ERR_OK;
}

void tokenizer_close(tokenizer *t)
{
    if (t == NULL) return;
    spm_close(t->model);
    free(t->special.sorted);
    free(t->block);
    free(t);
}

err_t tokenizer_check_vocab(const tokenizer *t, uint32_t n_vocab, err_info *info)
{
    if (t->n_vocab <= n_vocab) return ERR_OK;
    return err_set(info, ERR_BAD_MODEL, "%s: %u pieces are more than the model's vocab_size %u",
                   model_file, t->n_vocab, n_vocab);
}

/* ---- queries ------------------------------------------------------------------------------------- */

uint32_t tokenizer_n_vocab(const tokenizer *t)
{
    return t->n_vocab;
}

int64_t tokenizer_bos(const tokenizer *t)
{
    return t->bos;
}

int64_t tokenizer_eos(const tokenizer *t)
{
    return t->eos;
}

bool tokenizer_adds_bos(const tokenizer *t)
{
    return t->adds_bos;
}

size_t tokenizer_piece_bytes_max(const tokenizer *t)
{
    return t->piece_bytes_max;
}

size_t tokenizer_n_ids_min(const tokenizer *t, size_t n_bytes)
{
    if (!t->is_lossless) return 0;
    return n_bytes / t->spelling_bytes_max + (n_bytes % t->spelling_bytes_max != 0);
}

tok_piece tokenizer_piece(const tokenizer *t, uint32_t id, bool show_special)
{
    if (id >= t->n_vocab) return (tok_piece){.bytes = "", .n_bytes = 0, .is_special = false};
    const bool special = is_special(t->kind[id]);
    const uint32_t begin = special && show_special ? t->text_end[id] : t->text_begin[id];
    const uint32_t end = special && show_special ? t->text_begin[id + 1] : t->text_end[id];
    return (tok_piece){.bytes = t->bytes + begin, .n_bytes = end - begin, .is_special = special};
}

/* ---- text to ids --------------------------------------------------------------------------------- */

/* Ids of one text, as they are found. */
typedef struct id_list {
    uint32_t *ids; /* [n_ids] */
    size_t n_ids, n_room;
} id_list;

static err_t reserve(id_list *list, size_t n_more)
{
    size_t n_wanted, n_bytes;
    TRY(size_add(list->n_ids, n_more, &n_wanted));
    if (n_wanted <= list->n_room) return ERR_OK;
    n_wanted = max_size(n_wanted, 2 * list->n_room);
    TRY(size_mul(n_wanted, sizeof *list->ids, &n_bytes));
    uint32_t *const ids = realloc(list->ids, n_bytes);
    if (ids == NULL) return ERR_NO_MEMORY;
    list->ids = ids;
    list->n_room = n_wanted;
    return ERR_OK;
}

static err_t append_text(const tokenizer *t, const char *bytes, size_t n_bytes, id_list *list)
{
    uint32_t *ids;
    size_t n_ids;
    if (n_bytes == 0) return ERR_OK;
    TRY(spm_encode(t->model, bytes, n_bytes, 0, &ids, &n_ids));
    const err_t err = reserve(list, n_ids);
    if (err == ERR_OK) memcpy(list->ids + list->n_ids, ids, n_ids * sizeof *ids);
    if (err == ERR_OK) list->n_ids += n_ids;
    free(ids);
    return err;
}

static err_t append_all(const tokenizer *t, const tok_text *text, id_list *list)
{
    TRY(reserve(list, 1)); /* also an empty list is an array */
    if (text->add_bos && t->bos >= 0) list->ids[list->n_ids++] = (uint32_t)t->bos;
    for (size_t from = 0, at = 0; from < text->n_bytes;) {
        const special_token *const found =
            special_tokens_find(&t->special, text->bytes, text->n_bytes, from, &at);
        if (found == NULL) return append_text(t, text->bytes + from, text->n_bytes - from, list);
        TRY(append_text(t, text->bytes + from, at - from, list));
        TRY(reserve(list, 1));
        list->ids[list->n_ids++] = found->id;
        from = at + found->n_bytes;
    }
    return ERR_OK;
}

static err_t encode_with_special(const tokenizer *t, const tok_text *text, uint32_t **ids,
                                 size_t *n_ids)
{
    id_list list = {0};
    const err_t err = append_all(t, text, &list);
    if (err != ERR_OK) {
        free(list.ids);
        return err;
    }
    *ids = list.ids;
    *n_ids = list.n_ids;
    return ERR_OK;
}

err_t tokenizer_encode(const tokenizer *t, const tok_text *text, uint32_t **ids, size_t *n_ids)
{
    *ids = NULL;
    *n_ids = 0;
    if (!utf8_valid(text->bytes, text->n_bytes)) return ERR_BAD_REQUEST;
    if (text->parse_special) return encode_with_special(t, text, ids, n_ids);
    const bool has_bos = text->add_bos && t->bos >= 0;
    TRY(spm_encode(t->model, text->bytes, text->n_bytes, has_bos ? 1 : 0, ids, n_ids));
    if (has_bos) (*ids)[0] = (uint32_t)t->bos;
    return ERR_OK;
}

/* ---- ids to text --------------------------------------------------------------------------------- */

void tok_stream_init(tok_stream *s, const tokenizer *t, bool show_special, bool at_start)
{
    *s = (tok_stream){.tokenizer = t, .show_special = show_special, .at_start = at_start};
}

size_t tok_stream_bytes_max(const tokenizer *t)
{
    return t->piece_bytes_max + REPLACEMENT_BYTES * (HELD_BYTES_MAX + 1);
}

/* What is held can begin a character but has no more to come: one U+FFFD (maximal subpart). */
size_t tok_stream_end(tok_stream *s, char *out)
{
    const size_t n = utf8_repair_into((const char *)s->held, s->n_held, out);
    s->n_held = 0;
    return n;
}

/* Adds one byte to those held, and writes what is now complete or hopeless. */
static size_t push_byte(tok_stream *s, uint8_t byte, char *out)
{
    size_t n = 0;
    s->held[s->n_held++] = byte;
    while (s->n_held > 0) {
        const utf8_step step = utf8_next((const char *)s->held, s->n_held);
        if (step.status == UTF8_INCOMPLETE) break;
        n += utf8_repair_into((const char *)s->held, step.bytes, out + n);
        s->n_held = (uint8_t)(s->n_held - step.bytes);
        memmove(s->held, s->held + step.bytes, s->n_held);
    }
    assert(s->n_held <= HELD_BYTES_MAX);
    return n;
}

/* SentencePiece drops the space of the first piece that has one, before any other text. */
static tok_piece drop_first_space(tok_stream *s, tok_piece piece)
{
    const tokenizer *const t = s->tokenizer;
    if (t->drops_first_space && piece.n_bytes > 0 && piece.bytes[0] == ' ') {
        piece.bytes++;
        piece.n_bytes--;
        if (!t->drops_first_spaces) s->at_start = false;
    }
    return piece;
}

size_t tok_stream_push(tok_stream *s, uint32_t id, char *out)
{
    const tokenizer *const t = s->tokenizer;
    tok_piece piece = tokenizer_piece(t, id, s->show_special);
    if (id < t->n_vocab && t->kind[id] == SPM_BYTE) {
        const size_t n = push_byte(s, (uint8_t)piece.bytes[0], out);
        s->at_start = false;
        return n;
    }
    size_t n = tok_stream_end(s, out); /* other pieces hold whole characters */
    if (s->at_start && !piece.is_special) piece = drop_first_space(s, piece);
    memcpy(out + n, piece.bytes, piece.n_bytes);
    n += piece.n_bytes;
    if (n > 0) s->at_start = false;
    return n;
}

err_t tokenizer_decode(const tokenizer *t, const uint32_t *ids, size_t n_ids, bool show_special,
                       char **text, size_t *n_bytes)
{
    *text = NULL;
    *n_bytes = 0;
    size_t room = REPLACEMENT_BYTES * (HELD_BYTES_MAX + 1) + 1;
    for (size_t i = 0; i < n_ids; i++) { /* a lone byte may become a U+FFFD of three */
        const size_t piece_bytes = tokenizer_piece(t, ids[i], show_special).n_bytes;
        TRY(size_add(room, max_size(piece_bytes, REPLACEMENT_BYTES), &room));
    }
    char *const out = malloc(room);
    if (out == NULL) return ERR_NO_MEMORY;
    tok_stream s;
    tok_stream_init(&s, t, show_special, true);
    size_t n = 0;
    for (size_t i = 0; i < n_ids; i++)
        n += tok_stream_push(&s, ids[i], out + n);
    n += tok_stream_end(&s, out + n);
    assert(n < room);
    out[n] = '\0';
    *text = out;
    *n_bytes = n;
    return ERR_OK;
}
