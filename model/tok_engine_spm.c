/* model/tok_engine_spm.c - tokenizer.model behind tok_engine.h: SentencePiece encodes, and its rules say
 * what an id adds to a text: the marker U+2581 is a space, one space is dropped at the beginning when
 * the model put it there, control pieces are nothing, the unknown piece is its surface.
 *
 * Where tokenizer_config.json says `legacy: false`, text behind a control token goes on where it is in the
 * middle of one: it gets no marker of its own. As in transformers, a text's beginning then gets one only if it has
 * none (Metaspace with prepend_scheme "first"). */
#include "model/tok_engine.h"

#include "base/check.h"
#include "base/utf8.h"
#include "model/model_file.h"
#include "model/spm_settings.h"
#include "model/tokenizer_spm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MODEL_BYTES_MAX = 256 << 20, VOCAB_MAX = 1 << 22 };

static const char marker[] = "\xe2\x96\x81"; /* U+2581, SentencePiece's space */
enum { MARKER_BYTES = sizeof marker - 1 };

static const char *const model_file = "tokenizer.model";

typedef struct spm_model {
    spm *spm;
    text_buffer unk_surface;
    bool is_bare;     /* SentencePiece puts no marker before a text */
    bool adds_prefix; /* of a bare one: encode does, where a text begins */
} spm_model;

/* ---- pieces -------------------------------------------------------------------------------------- */

static text_view spelling(const void *model, uint32_t id)
{
    const spm_model *const m = model;
    text_view text;
    (void)spm_piece(m->spm, id, &text.bytes, &text.n_bytes);
    return text;
}

static tok_kind kind(const void *model, uint32_t id)
{
    static const tok_kind kinds[] = {[SPM_TEXT] = TOK_TEXT,
                                     [SPM_BYTE] = TOK_BYTE,
                                     [SPM_CONTROL] = TOK_CONTROL,
                                     [SPM_UNKNOWN] = TOK_UNKNOWN};
    const spm_model *const m = model;
    text_view text;
    return kinds[spm_piece(m->spm, id, &text.bytes, &text.n_bytes)];
}

/* The value of "<0x2F>", or -1. */
static int byte_value(text_view piece)
{
    unsigned value;
    char text[7] = {0};
    if (piece.n_bytes != 6) return -1;
    memcpy(text, piece.bytes, 6);
    char close = 0;
    if (sscanf(text, "<0x%2X%c", &value, &close) != 2 || close != '>') return -1;
    return (int)value;
}

/* A spelling with spaces for markers. */
static err_t put_spaced(text_view text, text_buffer *out)
{
    TRY(text_buffer_reserve(out, text.n_bytes));
    for (size_t i = 0; i < text.n_bytes;) {
        if (text.n_bytes - i >= MARKER_BYTES && memcmp(text.bytes + i, marker, MARKER_BYTES) == 0) {
            out->bytes[out->n_bytes++] = ' ';
            i += MARKER_BYTES;
        } else {
            out->bytes[out->n_bytes++] = text.bytes[i++];
        }
    }
    return ERR_OK;
}

static err_t put_text(const void *model, uint32_t id, text_buffer *out)
{
    const spm_model *const m = model;
    const text_view piece = spelling(m, id);
    const char byte = (char)byte_value(piece);
    switch (kind(m, id)) {
    case TOK_BYTE: return text_buffer_append(out, &byte, 1);
    case TOK_CONTROL: return ERR_OK;
    case TOK_UNKNOWN: return text_buffer_append(out, m->unk_surface.bytes, m->unk_surface.n_bytes);
    default: return put_spaced(piece, out);
    }
}

static err_t put_name(const void *model, uint32_t id, text_buffer *out)
{
    const text_view piece = spelling(model, id);
    return text_buffer_append(out, piece.bytes, piece.n_bytes);
}

static err_t check_pieces(const spm_model *m, uint32_t n_vocab, err_info *info)
{
    for (uint32_t id = 0; id < n_vocab; id++) {
        const text_view piece = spelling(m, id);
        if (kind(m, id) == TOK_BYTE && byte_value(piece) < 0)
            return err_set(info, ERR_BAD_MODEL, "%s: piece %u: a byte is not spelled <0xNN>",
                           model_file, id);
        if (!utf8_valid(piece.bytes, piece.n_bytes))
            return err_set(info, ERR_BAD_MODEL, "%s: piece %u: its spelling is not UTF-8",
                           model_file, id);
    }
    return ERR_OK;
}

/* Else what no piece spells becomes an unknown piece, and any run of those becomes one. */
static bool has_all_bytes(const spm_model *m, uint32_t n_vocab)
{
    size_t n_byte_pieces = 0;
    for (uint32_t id = 0; id < n_vocab; id++)
        n_byte_pieces += kind(m, id) == TOK_BYTE;
    return n_byte_pieces == 256;
}

/* ---- life cycle ---------------------------------------------------------------------------------- */

static void close_model(void *model)
{
    spm_model *const m = model;
    if (m == NULL) return;
    spm_close(m->spm);
    free(m->unk_surface.bytes);
    free(m);
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

static err_t build(spm_model *m, text_view file, const tokenizer_settings *config, tok_traits *out,
                   err_info *info)
{
    spm_settings settings;
    if (spm_settings_read((const uint8_t *)file.bytes, file.n_bytes, &settings) != ERR_OK)
        return err_set(info, ERR_BAD_MODEL, "%s: not a SentencePiece model", model_file);
    TRY(check_settings(&settings, info));
    m->is_bare = !config->is_legacy && settings.add_dummy_prefix;
    m->adds_prefix = config->adds_prefix;
    err_t err = spm_open(file.bytes, file.n_bytes, m->is_bare, &m->spm);
    if (err != ERR_OK)
        return err_set(info, err, "%s: %s", model_file,
                       err == ERR_NO_MEMORY ? "out of memory" : "not a SentencePiece model");
    const uint32_t n_vocab = spm_n_vocab(m->spm);
    if (n_vocab > VOCAB_MAX)
        return err_set(info, ERR_BAD_MODEL, "%s: %u pieces are more than %d", model_file, n_vocab,
                       VOCAB_MAX);
    TRY(check_pieces(m, n_vocab, info));
    err = text_buffer_append(&m->unk_surface, settings.unk_surface, settings.unk_surface_bytes);
    if (err != ERR_OK) return err_set(info, err, "%s: out of memory", model_file);
    const bool drops_spaces = settings.remove_extra_whitespaces;
    *out = (tok_traits){.n_vocab = n_vocab,
                        .bos = spm_bos(m->spm),
                        .eos = spm_eos(m->spm),
                        .drops_first_spaces = drops_spaces,
                        .drops_first_space = settings.add_dummy_prefix || drops_spaces,
                        .parts_at_nothing = true,
                        .is_lossless =
                            !settings.has_normalizer && !drops_spaces && has_all_bytes(m, n_vocab)};
    return ERR_OK;
}

static err_t open_model(const char *dir, const tokenizer_settings *settings, void **out,
                        tok_traits *traits, err_info *info)
{
    text_view file;
    char *bytes;
    *out = NULL;
    TRY(model_file_read(dir, model_file, MODEL_BYTES_MAX, &bytes, &file.n_bytes, info));
    file.bytes = bytes;
    err_t err = ERR_OK;
    spm_model *m = NULL;
    if (file.n_bytes == 0) err = err_set(info, ERR_BAD_MODEL, "%s: empty", model_file);
    if (err == ERR_OK && (m = calloc(1, sizeof *m)) == NULL)
        err = err_set(info, ERR_NO_MEMORY, "%s: out of memory", model_file);
    if (err == ERR_OK) err = build(m, file, settings, traits, info);
    free(bytes);
    if (err != ERR_OK) {
        close_model(m);
        return err;
    }
    traits->adds_bos = settings->add_bos && traits->bos >= 0;
    *out = m;
    return ERR_OK;
}

static bool has_marker(text_view text)
{
    return text.bytes[0] == ' ' ||
           (text.n_bytes >= MARKER_BYTES && memcmp(text.bytes, marker, MARKER_BYTES) == 0);
}

static err_t encode(const void *model, text_view text, const tok_encoding *how, uint32_t **ids,
                    size_t *n_ids)
{
    const spm_model *const m = model;
    if (!m->is_bare || !m->adds_prefix || how->is_inside || text.n_bytes == 0 || has_marker(text))
        return spm_encode(m->spm, text.bytes, text.n_bytes, how->n_front, ids, n_ids);
    text_buffer marked = {0};
    err_t err = text_buffer_append(&marked, marker, MARKER_BYTES);
    if (err == ERR_OK) err = text_buffer_append(&marked, text.bytes, text.n_bytes);
    if (err == ERR_OK)
        err = spm_encode(m->spm, marked.bytes, marked.n_bytes, how->n_front, ids, n_ids);
    free(marked.bytes);
    return err;
}

const tok_engine tok_engine_spm = {.name = "sentencepiece",
                                   .file = "tokenizer.model",
                                   .open = open_model,
                                   .close = close_model,
                                   .encode = encode,
                                   .kind = kind,
                                   .spelling = spelling,
                                   .put_text = put_text,
                                   .put_name = put_name};
