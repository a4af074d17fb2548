/* model/tokenizer.c - see tokenizer.h.
 *
 * Encoding is the engine's (tok_engine.h). Decoding is ours, from a table made at open: for every id the
 * bytes that it adds to a text. It follows the engine's library and differs in one: bytes that form no
 * character become U+FFFD by the maximal-subpart rule of Unicode instead of one for each byte, so that
 * streamed and whole output agree with every other decoder of UTF-8.
 *
 * A whole text is decoded by the same tok_stream that streams it; they cannot differ. */
#include "model/tokenizer.h"

#include "base/check.h"
#include "base/log.h"
#include "base/utf8.h"
#include "model/special_tokens.h"
#include "model/tok_engine.h"

#include <stdlib.h>
#include <string.h>

enum { REPLACEMENT_BYTES = 3, HELD_BYTES_MAX = 3 };

/* Pieces, one array per field. Text of id: bytes[text_begin[id] .. text_end[id]). A special id's
 * name stands where the next text begins: bytes[text_end[id] .. text_begin[id + 1]). */
struct tokenizer {
    const tok_engine *engine;
    void *model; /* the engine's */
    tok_traits traits;
    uint32_t *text_begin; /* [n_vocab + 1] */
    uint32_t *text_end;   /* [n_vocab] */
    uint8_t *kind;        /* [n_vocab], tok_kind */
    text_buffer text;
    void *block;            /* owns the three arrays */
    special_tokens special; /* names lie in `text`; none if the engine finds them itself */
    size_t piece_bytes_max;
    size_t spelling_bytes_max; /* as the engine spells: SentencePiece, three bytes for a space */
};

/* ---- the piece table ----------------------------------------------------------------------------- */

static bool is_special(tok_kind kind)
{
    return kind == TOK_CONTROL || kind == TOK_UNKNOWN;
}

static err_t alloc_table(tokenizer *t)
{
    const size_t n = t->traits.n_vocab;
    uint8_t *const block = malloc((2 * n + 1) * sizeof(uint32_t) + n);
    if (block == NULL) return ERR_NO_MEMORY;
    t->block = block;
    t->text_begin = (uint32_t *)(void *)block;
    t->text_end = t->text_begin + n + 1;
    t->kind = (uint8_t *)(t->text_end + n);
    return ERR_OK;
}

static err_t fill_table(tokenizer *t)
{
    const tok_engine *const engine = t->engine;
    for (uint32_t id = 0; id < t->traits.n_vocab; id++) {
        const tok_kind kind = engine->kind(t->model, id);
        const size_t begin = t->text.n_bytes;
        t->kind[id] = (uint8_t)kind;
        t->text_begin[id] = (uint32_t)begin;
        TRY(engine->put_text(t->model, id, &t->text));
        const size_t end = t->text.n_bytes;
        t->text_end[id] = (uint32_t)end;
        if (is_special(kind)) TRY(engine->put_name(t->model, id, &t->text));
        if (t->text.n_bytes > UINT32_MAX) return ERR_OVERFLOW;
        t->piece_bytes_max =
            max_size(t->piece_bytes_max, max_size(end - begin, t->text.n_bytes - end));
        t->spelling_bytes_max =
            max_size(t->spelling_bytes_max, engine->spelling(t->model, id).n_bytes);
    }
    t->text_begin[t->traits.n_vocab] = (uint32_t)t->text.n_bytes;
    return text_buffer_reserve(&t->text, 1);
}

/* Of the table, once it is filled. */
static err_t collect_special(tokenizer *t)
{
    size_t n = 0;
    for (uint32_t id = 0; id < t->traits.n_vocab; id++)
        n += is_special(t->kind[id]);
    special_token *const tokens = calloc(n + 1, sizeof *tokens);
    if (tokens == NULL) return ERR_NO_MEMORY;
    n = 0;
    for (uint32_t id = 0; id < t->traits.n_vocab; id++) {
        const uint32_t begin = t->text_end[id], end = t->text_begin[id + 1];
        if (is_special(t->kind[id]) && end > begin)
            tokens[n++] = (special_token){t->text.bytes + begin, end - begin, id};
    }
    special_tokens_init(&t->special, tokens, n);
    return ERR_OK;
}

static err_t build_table(tokenizer *t, err_info *info)
{
    err_t err = alloc_table(t);
    if (err == ERR_OK) err = fill_table(t);
    if (err == ERR_OK && !t->traits.finds_names) err = collect_special(t);
    if (err == ERR_OVERFLOW)
        return err_set(info, ERR_BAD_MODEL, "%s: the pieces are too long", t->engine->file);
    return err == ERR_OK ? err : err_set(info, err, "%s: out of memory", t->engine->file);
}

/* ---- life cycle ---------------------------------------------------------------------------------- */

/* One file, opened by its engine. */
typedef struct opened {
    const tok_engine *engine;
    void *model; /* NULL: there is no such file */
    tok_traits traits;
} opened;

static err_t open_file(const tok_engine *engine, const char *dir,
                       const tokenizer_settings *settings, opened *out, err_info *info)
{
    *out = (opened){.engine = engine};
    const err_t err = engine->open(dir, settings, &out->model, &out->traits, info);
    return err == ERR_NOT_FOUND ? ERR_OK : err;
}

/* tokenizer.json where both are there, for that is what transformers reads: it says more about where texts
 * begin and which names are tokens. tokenizer.model where that is none of ours. */
static err_t choose(const char *dir, const tokenizer_settings *settings, opened *out,
                    err_info *info)
{
    err_info json_info = {0};
    const err_t err = open_file(&tok_engine_bpe, dir, settings, out, &json_info);
    if (err == ERR_OK && out->model != NULL) return ERR_OK;
    if (err != ERR_OK && err != ERR_UNSUPPORTED) return err_set(info, err, "%s", json_info.message);
    TRY(open_file(&tok_engine_spm, dir, settings, out, info));
    if (out->model == NULL && err != ERR_OK) return err_set(info, err, "%s", json_info.message);
    if (out->model == NULL)
        return err_set(info, ERR_IO, "%.180s: neither tokenizer.model nor tokenizer.json", dir);
    if (err != ERR_OK)
        log_warn("tokenizer", "tokenizer.model is used, tokenizer.json is not: %s",
                 json_info.message);
    return ERR_OK;
}

err_t tokenizer_open(const char *dir, tokenizer **out, err_info *info)
{
    *out = NULL;
    tokenizer_settings settings;
    opened chosen;
    TRY(tokenizer_settings_read(dir, &settings, info));
    err_t err = choose(dir, &settings, &chosen, info);
    tokenizer_settings_deinit(&settings);
    TRY(err);
    tokenizer *const t = calloc(1, sizeof *t);
    if (t == NULL) {
        chosen.engine->close(chosen.model);
        return err_set(info, ERR_NO_MEMORY, "%s: out of memory", chosen.engine->file);
    }
    t->engine = chosen.engine;
    t->model = chosen.model;
    t->traits = chosen.traits;
    err = build_table(t, info);
    if (err != ERR_OK) {
        tokenizer_close(t);
        return err;
    }
    *out = t;
    return ERR_OK;
}

void tokenizer_close(tokenizer *t)
{
    if (t == NULL) return;
    t->engine->close(t->model);
    free(t->special.sorted);
    free(t->text.bytes);
    free(t->block);
    free(t);
}

err_t tokenizer_check_vocab(const tokenizer *t, uint32_t n_vocab, err_info *info)
{
    if (t->traits.n_vocab <= n_vocab) return ERR_OK;
    return err_set(info, ERR_BAD_MODEL, "%s: %u pieces are more than the model's vocab_size %u",
                   t->engine->file, t->traits.n_vocab, n_vocab);
}

/* ---- queries ------------------------------------------------------------------------------------- */

uint32_t tokenizer_n_vocab(const tokenizer *t)
{
    return t->traits.n_vocab;
}

int64_t tokenizer_bos(const tokenizer *t)
{
    return t->traits.bos;
}

int64_t tokenizer_eos(const tokenizer *t)
{
    return t->traits.eos;
}

const char *tokenizer_kind(const tokenizer *t)
{
    return t->engine->name;
}

bool tokenizer_adds_bos(const tokenizer *t)
{
    return t->traits.adds_bos;
}

size_t tokenizer_piece_bytes_max(const tokenizer *t)
{
    return t->piece_bytes_max;
}

size_t tokenizer_n_ids_min(const tokenizer *t, size_t n_bytes)
{
    if (!t->traits.is_lossless) return 0;
    return n_bytes / t->spelling_bytes_max + (n_bytes % t->spelling_bytes_max != 0);
}

tok_piece tokenizer_piece(const tokenizer *t, uint32_t id, bool show_special)
{
    if (id >= t->traits.n_vocab) return (tok_piece){.bytes = "", .n_bytes = 0, .is_special = false};
    const bool special = is_special(t->kind[id]);
    const uint32_t begin = special && show_special ? t->text_end[id] : t->text_begin[id];
    const uint32_t end = special && show_special ? t->text_begin[id + 1] : t->text_end[id];
    return (tok_piece){
        .bytes = t->text.bytes + begin, .n_bytes = end - begin, .is_special = special};
}

/* ---- text to ids --------------------------------------------------------------------------------- */

/* text[from .. end), which lies between two names. */
static err_t append_text(const tokenizer *t, const tok_text *text, size_t from, size_t end,
                         id_list *list)
{
    const text_view view = {text->bytes + from, end - from};
    const tok_encoding how = {.is_inside = from > 0};
    uint32_t *ids;
    size_t n_ids;
    if (view.n_bytes == 0) return ERR_OK;
    TRY(t->engine->encode(t->model, view, &how, &ids, &n_ids));
    err_t err = ERR_OK;
    for (size_t i = 0; i < n_ids && err == ERR_OK; i++)
        err = id_list_push(list, ids[i]);
    free(ids);
    return err;
}

static err_t append_all(const tokenizer *t, const tok_text *text, id_list *list)
{
    if (text->add_bos && t->traits.bos >= 0) TRY(id_list_push(list, (uint32_t)t->traits.bos));
    for (size_t from = 0, at = 0; from < text->n_bytes;) {
        const special_token *const found =
            special_tokens_find(&t->special, text->bytes, text->n_bytes, from, &at);
        if (found == NULL) return append_text(t, text, from, text->n_bytes, list);
        TRY(append_text(t, text, from, at, list));
        TRY(id_list_push(list, found->id));
        from = at + found->n_bytes;
    }
    return ERR_OK;
}

static err_t encode_with_special(const tokenizer *t, const tok_text *text, uint32_t **ids,
                                 size_t *n_ids)
{
    id_list list = {0};
    err_t err = append_all(t, text, &list);
    if (err == ERR_OK && list.id == NULL) { /* an empty list is an array, too */
        list.id = malloc(sizeof *list.id);
        if (list.id == NULL) err = ERR_NO_MEMORY;
    }
    if (err != ERR_OK) {
        free(list.id);
        return err;
    }
    *ids = list.id;
    *n_ids = list.n;
    return ERR_OK;
}

err_t tokenizer_encode(const tokenizer *t, const tok_text *text, uint32_t **ids, size_t *n_ids)
{
    *ids = NULL;
    *n_ids = 0;
    if (!utf8_valid(text->bytes, text->n_bytes)) return ERR_BAD_REQUEST;
    if (text->parse_special && !t->traits.finds_names)
        return encode_with_special(t, text, ids, n_ids);
    const bool has_bos = text->add_bos && t->traits.bos >= 0;
    const text_view view = {text->bytes, text->n_bytes};
    const tok_encoding how = {.n_front = has_bos ? 1 : 0, .parse_special = text->parse_special};
    TRY(t->engine->encode(t->model, view, &how, ids, n_ids));
    if (has_bos) (*ids)[0] = (uint32_t)t->traits.bos;
    return ERR_OK;
}

/* ---- ids to text --------------------------------------------------------------------------------- */

void tok_stream_init(tok_stream *s, const tokenizer *t, bool show_special, bool at_start)
{
    *s = (tok_stream){.tokenizer = t, .show_special = show_special, .at_start = at_start};
}

/* A byte that is not part of a character becomes a U+FFFD of three. */
static size_t output_bytes_max(const tokenizer *t, size_t piece_bytes)
{
    return t->traits.is_byte_level ? REPLACEMENT_BYTES * piece_bytes
                                   : max_size(piece_bytes, REPLACEMENT_BYTES);
}

size_t tok_stream_bytes_max(const tokenizer *t)
{
    return output_bytes_max(t, t->piece_bytes_max) + REPLACEMENT_BYTES * (HELD_BYTES_MAX + 1);
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
    const tok_traits *const traits = &s->tokenizer->traits;
    if (traits->drops_first_space && piece.n_bytes > 0 && piece.bytes[0] == ' ') {
        piece.bytes++;
        piece.n_bytes--;
        if (!traits->drops_first_spaces) s->at_start = false;
    }
    return piece;
}

/* The first token without its markers: they are all the tokenizer's, not the author's. */
static size_t push_unmarked(tok_stream *s, uint32_t id, char *out)
{
    static const char marker[] = "\xe2\x96\x81";
    const tokenizer *const t = s->tokenizer;
    const text_view text = t->engine->spelling(t->model, id);
    size_t n = 0;
    for (size_t i = 0; i < text.n_bytes;) {
        const bool is_marker = text.n_bytes - i >= 3 && memcmp(text.bytes + i, marker, 3) == 0;
        if (!is_marker) out[n++] = text.bytes[i];
        i += is_marker ? 3 : 1;
    }
    s->at_start = false;
    return n;
}

static size_t push_bytes(tok_stream *s, tok_piece piece, char *out)
{
    size_t n = 0;
    for (size_t i = 0; i < piece.n_bytes; i++)
        n += push_byte(s, (uint8_t)piece.bytes[i], out + n);
    s->at_start = false;
    return n;
}

size_t tok_stream_push(tok_stream *s, uint32_t id, char *out)
{
    const tokenizer *const t = s->tokenizer;
    const tok_traits *const traits = &t->traits;
    tok_piece piece = tokenizer_piece(t, id, s->show_special);
    const bool is_byte = id < traits->n_vocab && t->kind[id] == TOK_BYTE;
    if (piece.n_bytes == 0 && !traits->parts_at_nothing) return 0;
    if (s->at_start && is_byte && traits->drops_first_byte) piece = drop_first_space(s, piece);
    if (is_byte || traits->is_byte_level) return push_bytes(s, piece, out);
    size_t n = tok_stream_end(s, out); /* other pieces hold whole characters */
    if (s->at_start && traits->drops_first_markers) return n + push_unmarked(s, id, out + n);
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
    for (size_t i = 0; i < n_ids; i++) {
        const size_t piece_bytes = tokenizer_piece(t, ids[i], show_special).n_bytes;
        TRY(size_add(room, output_bytes_max(t, piece_bytes), &room));
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
