/* model/tok_engine_bpe.c - tokenizer.json behind tok_engine.h. */
#include "model/tok_engine.h"

#include "base/log.h"
#include "model/tokenizer_bpe.h"
#include "model/tokenizer_json.h"

#include <string.h>

static const char *const model_file = "tokenizer.json";

/* The id of a token that tokenizer_config.json names; -1: it names none. */
static int64_t id_of(const tok_bpe *t, const char *key, const char *name)
{
    if (name == NULL) return -1;
    const uint32_t id = tok_bpe_find(t, (text_view){name, strlen(name)});
    if (id != BPE_NO_ID) return id;
    log_warn("tokenizer", "%s=%s is not in %s: there is none", key, name, model_file);
    return -1;
}

/* add_bos_token decides; without it the post-processor, and which token comes first is its to say. */
static void set_ends(const tok_bpe *t, const tokenizer_settings *settings, tok_traits *traits)
{
    traits->eos = id_of(t, "eos_token", settings->eos);
    traits->bos = t->template_bos >= 0 ? t->template_bos : id_of(t, "bos_token", settings->bos);
    traits->adds_bos = settings->says_add_bos ? settings->add_bos : t->template_bos >= 0;
    if (traits->bos < 0) traits->adds_bos = false;
}

static err_t open_model(const char *dir, const tokenizer_settings *settings, void **out,
                        tok_traits *traits, err_info *info)
{
    tok_bpe *t;
    *out = NULL;
    TRY(tokenizer_json_open(dir, &t, info));
    *traits = (tok_traits){.n_vocab = t->n_ids,
                           .is_byte_level = t->decoding.is_byte_level,
                           .drops_first_space = t->decoding.drops_first_space,
                           .drops_first_byte = true,
                           .drops_first_markers = t->decoding.drops_first_markers,
                           .finds_names = true,
                           .is_lossless = tok_bpe_is_lossless(t)};
    set_ends(t, settings, traits);
    *out = t;
    return ERR_OK;
}

static void close_model(void *model)
{
    tok_bpe_close(model);
}

static err_t encode(const void *model, text_view text, const tok_encoding *how, uint32_t **ids,
                    size_t *n_ids)
{
    return tok_bpe_encode(model, text, how, ids, n_ids);
}

static tok_kind kind(const void *model, uint32_t id)
{
    if (tok_bpe_is_special(model, id)) return TOK_CONTROL;
    return tok_bpe_is_byte(model, id) ? TOK_BYTE : TOK_TEXT;
}

static text_view spelling(const void *model, uint32_t id)
{
    return tok_bpe_spelling(model, id);
}

static err_t put_text(const void *model, uint32_t id, text_buffer *out)
{
    return tok_bpe_is_special(model, id) ? ERR_OK : tok_bpe_decode(model, id, out);
}

static err_t put_name(const void *model, uint32_t id, text_buffer *out)
{
    return tok_bpe_decode(model, id, out);
}

const tok_engine tok_engine_bpe = {.name = "bpe",
                                   .file = "tokenizer.json",
                                   .open = open_model,
                                   .close = close_model,
                                   .encode = encode,
                                   .kind = kind,
                                   .spelling = spelling,
                                   .put_text = put_text,
                                   .put_name = put_name};
