/* model/tokenizer_steps_json.c - normalizer, pre_tokenizer and decoder of a tokenizer.json.
 *
 * Each is an object with a "type", or a "Sequence" of such. A table names the types; what is not in it
 * is refused. Nested sequences become one list. */
#include "model/tokenizer_json.h"

#include "base/check.h"
#include "model/checked_json.h"

#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static err_t no_memory(const model_json_object *from, err_t err)
{
    return err == ERR_OK ? err : err_set(from->info, err, "%s: %s", from->file, err_sentence(err));
}

static err_t too_many(const model_json_object *from)
{
    return err_set(from->info, ERR_UNSUPPORTED, "%s: more than %d steps", from->file,
                   (int)PRE_STEPS_MAX);
}

/* A kind of step, and how its object is read into `out`. */
typedef struct step_type {
    const char *name;
    err_t (*read)(const model_json_object *from, void *out);
} step_type;

/* Calls the reader of the object's type; for a Sequence that of each element. Recursion is as deep as
 * the JSON, which is bounded. */
static err_t read_steps(const model_json_object *from, const char *list_key, const step_type *types,
                        void *out)
{
    text_view type;
    TRY(tokenizer_json_string(from, "type", &type));
    for (const step_type *t = types; t->name != NULL; t++)
        if (strcmp(t->name, type.bytes) == 0) return t->read(from, out);
    if (strcmp(type.bytes, "Sequence") != 0) return tokenizer_json_refuse(from, "type");
    const cJSON *const list = model_json_member(from, list_key);
    if (!cJSON_IsArray(list)) return tokenizer_json_refuse(from, list_key);
    for (const cJSON *item = list->child; item != NULL; item = item->next) {
        if (!cJSON_IsObject(item)) return tokenizer_json_refuse(from, list_key);
        const model_json_object element = {from->file, item, from->info};
        TRY(read_steps(&element, list_key, types, out));
    }
    return ERR_OK;
}

/* "pattern": {"String": ...} or {"Regex": ...}. */
static err_t read_pattern(const model_json_object *from, regex **out)
{
    const cJSON *const item = model_json_member(from, "pattern");
    if (!cJSON_IsObject(item) || item->child == NULL || !cJSON_IsString(item->child))
        return tokenizer_json_refuse(from, "pattern");
    const bool is_regex = strcmp(item->child->string, "Regex") == 0;
    if (!is_regex && strcmp(item->child->string, "String") != 0)
        return tokenizer_json_refuse(from, "pattern");
    const text_view text = tokenizer_json_view(item->child);
    if (text.n_bytes > TOKENIZER_JSON_STRING_MAX)
        return err_set(from->info, ERR_BAD_MODEL, "%s: pattern: too long", from->file);
    const regex_source source = {from->file, text};
    return is_regex ? regex_open(&source, out, from->info)
                    : regex_open_literal(&source, out, from->info);
}

/* ---- normalizers --------------------------------------------------------------------------------- */

static err_t next_normalizer(const model_json_object *from, normalizer *n, normalizer_kind kind,
                             normalizer_step **out)
{
    if (n->n_steps == NORMALIZER_STEPS_MAX) return too_many(from);
    *out = &n->step[n->n_steps++];
    **out = (normalizer_step){.kind = kind};
    return ERR_OK;
}

static err_t read_form(const model_json_object *from, void *out)
{
    static const char *const names[] = {"NFC", "NFD", "NFKC", "NFKD"};
    normalizer_step *step = NULL;
    text_view type;
    TRY(next_normalizer(from, out, NORMALIZE_FORM, &step));
    TRY(tokenizer_json_string(from, "type", &type));
    for (int i = 0; i < 4; i++)
        if (strcmp(names[i], type.bytes) == 0) step->form = (unicode_form)i;
    return ERR_OK;
}

static err_t read_lower(const model_json_object *from, void *out)
{
    normalizer_step *step = NULL;
    return next_normalizer(from, out, NORMALIZE_LOWER, &step);
}

static err_t read_strip(const model_json_object *from, void *out)
{
    normalizer_step *step = NULL;
    TRY(next_normalizer(from, out, NORMALIZE_STRIP, &step));
    TRY(tokenizer_json_bool(from, "strip_left", true, &step->strip_left));
    return tokenizer_json_bool(from, "strip_right", true, &step->strip_right);
}

static err_t read_prepend(const model_json_object *from, void *out)
{
    normalizer_step *step = NULL;
    text_view text;
    TRY(next_normalizer(from, out, NORMALIZE_PREPEND, &step));
    TRY(tokenizer_json_string(from, "prepend", &text));
    return no_memory(from, text_buffer_append(&step->content, text.bytes, text.n_bytes));
}

static err_t read_replace(const model_json_object *from, void *out)
{
    normalizer_step *step = NULL;
    text_view text;
    TRY(next_normalizer(from, out, NORMALIZE_REPLACE, &step));
    TRY(tokenizer_json_string(from, "content", &text));
    TRY(no_memory(from, text_buffer_append(&step->content, text.bytes, text.n_bytes)));
    return read_pattern(from, &step->pattern);
}

err_t tokenizer_json_normalizer(const model_json_object *from, normalizer *out)
{
    static const step_type types[] = {
        {"NFC", read_form},        {"NFD", read_form},        {"NFKC", read_form},
        {"NFKD", read_form},       {"Lowercase", read_lower}, {"Strip", read_strip},
        {"Prepend", read_prepend}, {"Replace", read_replace}, {NULL, NULL}};
    return read_steps(from, "normalizers", types, out);
}

/* ---- pre-tokenizers ------------------------------------------------------------------------------ */

static err_t next_pre(const model_json_object *from, pre_tokenizer *p, pre_step **out)
{
    if (p->n_steps == PRE_STEPS_MAX) return too_many(from);
    *out = &p->step[p->n_steps++];
    **out = (pre_step){0};
    return ERR_OK;
}

static err_t open_regex(const model_json_object *from, const char *pattern, regex **out)
{
    const regex_source source = {from->file, {pattern, strlen(pattern)}};
    return regex_open(&source, out, from->info);
}

static err_t read_behavior(const model_json_object *from, split_behavior *out)
{
    static const char *const names[] = {"Isolated", "Removed", "Contiguous", "MergedWithPrevious",
                                        "MergedWithNext"};
    text_view name;
    TRY(tokenizer_json_string(from, "behavior", &name));
    for (int i = 0; i < 5; i++) {
        if (strcmp(names[i], name.bytes) != 0) continue;
        *out = (split_behavior)i;
        return ERR_OK;
    }
    return tokenizer_json_refuse(from, "behavior");
}

static err_t read_split(const model_json_object *from, void *out)
{
    pre_step *step = NULL;
    TRY(next_pre(from, out, &step));
    TRY(read_behavior(from, &step->behavior));
    TRY(tokenizer_json_bool(from, "invert", false, &step->invert));
    return read_pattern(from, &step->pattern);
}

static err_t read_byte_level(const model_json_object *from, void *out)
{
    static const char gpt2[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|"
                               "\\s+(?!\\S)|\\s+";
    pre_step *step = NULL;
    bool has_prefix, has_regex;
    TRY(next_pre(from, out, &step));
    TRY(tokenizer_json_bool(from, "add_prefix_space", true, &has_prefix));
    TRY(tokenizer_json_bool(from, "use_regex", true, &has_regex));
    step->maps_bytes = true;
    step->prefix = has_prefix ? PREFIX_ALWAYS : PREFIX_NEVER;
    step->prefix_text[0] = ' ';
    return has_regex ? open_regex(from, gpt2, &step->pattern) : ERR_OK;
}

static err_t read_digits(const model_json_object *from, void *out)
{
    pre_step *step = NULL;
    bool is_individual;
    TRY(next_pre(from, out, &step));
    TRY(tokenizer_json_bool(from, "individual_digits", false, &is_individual));
    step->behavior = is_individual ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS;
    return open_regex(from, "\\p{N}", &step->pattern);
}

/* The library counts as punctuation what was so in Unicode 8; what came later is none to it. */
static const char punctuation[] =
    "(?!["
    "\\x{61d}\\x{9fd}\\x{a76}\\x{c77}\\x{c84}\\x{1b4e}-\\x{1b4f}\\x{1b7d}-\\x{1b7e}"
    "\\x{1b7f}\\x{2e43}-\\x{2e4f}\\x{2e52}-\\x{2e5d}\\x{10d6e}\\x{10ead}"
    "\\x{10f55}-\\x{10f59}\\x{10f86}-\\x{10f89}\\x{113d4}-\\x{113d5}"
    "\\x{113d7}-\\x{113d8}\\x{1144b}-\\x{1144f}\\x{1145a}-\\x{1145b}\\x{1145d}"
    "\\x{11660}-\\x{1166c}\\x{116b9}\\x{1183b}\\x{11944}-\\x{11946}\\x{119e2}"
    "\\x{11a3f}-\\x{11a46}\\x{11a9a}-\\x{11a9c}\\x{11a9e}-\\x{11aa2}"
    "\\x{11b00}-\\x{11b09}\\x{11be1}\\x{11c41}-\\x{11c45}\\x{11c70}-\\x{11c71}"
    "\\x{11ef7}-\\x{11ef8}\\x{11f43}-\\x{11f4f}\\x{11fff}\\x{12ff1}-\\x{12ff2}"
    "\\x{16d6d}-\\x{16d6f}\\x{16e97}-\\x{16e9a}\\x{16fe2}\\x{1e5ff}"
    "\\x{1e95e}-\\x{1e95f}"
    "])[\\p{P}!-\\/:-@\\[-`{-~\\x{166d}\\x{111c9}]";

static err_t read_punctuation(const model_json_object *from, void *out)
{
    pre_step *step = NULL;
    TRY(next_pre(from, out, &step));
    if (model_json_member(from, "behavior") != NULL) TRY(read_behavior(from, &step->behavior));
    return open_regex(from, punctuation, &step->pattern);
}

static err_t read_whitespace_split(const model_json_object *from, void *out)
{
    pre_step *step = NULL;
    TRY(next_pre(from, out, &step));
    step->behavior = SPLIT_REMOVED;
    return open_regex(from, "\\s", &step->pattern);
}

/* One character, as its UTF-8 with a NUL. */
static err_t read_marker(const model_json_object *from, char out[5])
{
    text_view text;
    size_t n = 0;
    TRY(tokenizer_json_string(from, "replacement", &text));
    if (text.n_bytes > 0) (void)unicode_first(text, &n);
    if (n == 0 || n != text.n_bytes) return tokenizer_json_refuse(from, "replacement");
    memcpy(out, text.bytes, n);
    out[n] = '\0';
    return ERR_OK;
}

static err_t read_scheme(const model_json_object *from, pre_prefix *out)
{
    static const char *const names[] = {"never", "first", "always"};
    text_view name;
    bool has_prefix;
    *out = PREFIX_ALWAYS;
    if (model_json_member(from, "prepend_scheme") != NULL) {
        TRY(tokenizer_json_string(from, "prepend_scheme", &name));
        int i = 0;
        while (i < 3 && strcmp(names[i], name.bytes) != 0)
            i++;
        if (i == 3) return tokenizer_json_refuse(from, "prepend_scheme");
        *out = (pre_prefix)i;
    }
    TRY(tokenizer_json_bool(from, "add_prefix_space", true, &has_prefix));
    if (has_prefix || *out == PREFIX_NEVER) return ERR_OK;
    return err_set(from->info, ERR_BAD_MODEL,
                   "%s: add_prefix_space: false contradicts prepend_scheme", from->file);
}

static err_t read_metaspace(const model_json_object *from, void *out)
{
    pre_step *step = NULL;
    bool splits;
    TRY(next_pre(from, out, &step));
    TRY(read_marker(from, step->prefix_text));
    TRY(read_scheme(from, &step->prefix));
    TRY(tokenizer_json_bool(from, "split", true, &splits));
    step->marks_spaces = true;
    step->behavior = SPLIT_MERGED_WITH_NEXT;
    const regex_source source = {from->file, {step->prefix_text, strlen(step->prefix_text)}};
    return splits ? regex_open_literal(&source, &step->pattern, from->info) : ERR_OK;
}

err_t tokenizer_json_pre_tokenizer(const model_json_object *from, pre_tokenizer *out)
{
    static const step_type types[] = {{"Split", read_split},
                                      {"ByteLevel", read_byte_level},
                                      {"Digits", read_digits},
                                      {"Punctuation", read_punctuation},
                                      {"WhitespaceSplit", read_whitespace_split},
                                      {"Metaspace", read_metaspace},
                                      {NULL, NULL}};
    return read_steps(from, "pretokenizers", types, out);
}

/* ---- decoders ------------------------------------------------------------------------------------ */

/* A decoder is a chain over the list of tokens. What we take is what a table of spellings and one cut at
 * the beginning can say: steps in the order of this enum, ByteLevel and Metaspace on their own. */
typedef enum chain_place {
    CHAIN_REPLACE,
    CHAIN_BYTES,
    CHAIN_FUSE,
    CHAIN_STRIP,
    CHAIN_END
} chain_place;

typedef struct decoder_chain {
    tok_decoding *out;
    chain_place place;
    size_t n_steps;
    bool is_fused;
} decoder_chain;

static err_t next_in_chain(const model_json_object *from, decoder_chain *chain, chain_place place)
{
    const bool is_last = place == CHAIN_END;
    if (chain->place > place || (is_last && chain->n_steps > 0))
        return err_set(from->info, ERR_UNSUPPORTED, "%s: this order of steps is not supported",
                       from->file);
    chain->place = place;
    chain->n_steps++;
    return ERR_OK;
}

static err_t add_replacement(const model_json_object *from, tok_decoding *d, text_view old,
                             text_view new)
{
    if (d->n_replaces == TOK_REPLACES_MAX) return too_many(from);
    if (old.n_bytes == 0) return tokenizer_json_refuse(from, "pattern");
    const size_t i = d->n_replaces++;
    TRY(no_memory(from, text_buffer_append(&d->replace[i].from, old.bytes, old.n_bytes)));
    return no_memory(from, text_buffer_append(&d->replace[i].to, new.bytes, new.n_bytes));
}

static err_t decode_replace(const model_json_object *from, void *out)
{
    decoder_chain *const chain = out;
    text_view content;
    TRY(next_in_chain(from, chain, CHAIN_REPLACE));
    const cJSON *const pattern = model_json_member(from, "pattern");
    const model_json_object inner = {from->file, pattern, from->info};
    text_view text;
    if (!cJSON_IsObject(pattern)) return tokenizer_json_refuse(from, "pattern");
    TRY(tokenizer_json_string(&inner, "String", &text));
    TRY(tokenizer_json_string(from, "content", &content));
    return add_replacement(from, chain->out, text, content);
}

static err_t decode_byte_fallback(const model_json_object *from, void *out)
{
    decoder_chain *const chain = out;
    TRY(next_in_chain(from, chain, CHAIN_BYTES));
    chain->out->byte_fallback = true;
    return ERR_OK;
}

static err_t decode_fuse(const model_json_object *from, void *out)
{
    decoder_chain *const chain = out;
    TRY(next_in_chain(from, chain, CHAIN_FUSE));
    chain->is_fused = true;
    return ERR_OK;
}

/* One space at the beginning of the whole text. */
static err_t decode_strip(const model_json_object *from, void *out)
{
    decoder_chain *const chain = out;
    text_view content;
    uint32_t start, stop;
    TRY(next_in_chain(from, chain, CHAIN_STRIP));
    TRY(tokenizer_json_string(from, "content", &content));
    TRY(model_json_u32(from, "start", (const uint32_t[2]){0, UINT32_MAX}, &start));
    TRY(model_json_u32(from, "stop", (const uint32_t[2]){0, UINT32_MAX}, &stop));
    if (strcmp(content.bytes, " ") != 0) return tokenizer_json_refuse(from, "content");
    if (start > 1) return tokenizer_json_refuse(from, "start");
    if (stop > 0) return tokenizer_json_refuse(from, "stop");
    if (!chain->is_fused)
        return err_set(from->info, ERR_UNSUPPORTED, "%s: Strip before Fuse is not supported",
                       from->file);
    chain->out->drops_first_space |= start == 1;
    return ERR_OK;
}

static err_t decode_byte_level(const model_json_object *from, void *out)
{
    decoder_chain *const chain = out;
    TRY(next_in_chain(from, chain, CHAIN_END));
    chain->out->is_byte_level = true;
    return ERR_OK;
}

static err_t decode_metaspace(const model_json_object *from, void *out)
{
    decoder_chain *const chain = out;
    char marker[5];
    pre_prefix scheme;
    TRY(next_in_chain(from, chain, CHAIN_END));
    TRY(read_marker(from, marker));
    TRY(read_scheme(from, &scheme));
    chain->out->drops_first_markers = scheme != PREFIX_NEVER;
    return add_replacement(from, chain->out, (text_view){marker, strlen(marker)},
                           (text_view){" ", 1});
}

err_t tokenizer_json_decoder(const model_json_object *from, tok_decoding *out)
{
    static const step_type types[] = {{"Replace", decode_replace},
                                      {"ByteFallback", decode_byte_fallback},
                                      {"Fuse", decode_fuse},
                                      {"Strip", decode_strip},
                                      {"ByteLevel", decode_byte_level},
                                      {"Metaspace", decode_metaspace},
                                      {NULL, NULL}};
    decoder_chain chain = {.out = out};
    return read_steps(from, "decoders", types, &chain);
}
