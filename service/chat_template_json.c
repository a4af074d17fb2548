/* service/chat_template_json.c - see chat_template.h. */
#include "service/chat_template.h"

#include "base/check.h"
#include "base/clock.h"
#include "model/model_file.h"
#include "service/api_fields_json.h"
#include "service/jinja/jinja.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    TEMPLATE_BYTES_MAX = 1 << 20,
    CONFIG_BYTES_MAX = 16 << 20,
    FAULT_BYTES = 320,
    MEMORY_BYTES_MAX = 64 << 20, /* of one rendering, beside the text */
    MEMORY_PER_BYTE = 4,
    STEPS_MAX = 4 << 20 /* about half a second */
};

struct chat_template {
    jinja *compiled;       /* NULL: fault says why */
    json_t *tokens;        /* {"bos_token": "<s>", ...} */
    jinja_content content; /* how `compiled` takes it */
    int64_t eos;
    char fault[FAULT_BYTES];
};

/* Where a template was found. */
typedef struct template_source {
    char *text; /* [n_bytes], owned; NULL: nowhere */
    size_t n_bytes;
    const char *name; /* for messages */
} template_source;

static const char *const template_file = "chat_template.jinja";
static const char *const config_file = "tokenizer_config.json";
static const char *const map_file = "special_tokens_map.json";

/* ---- files --------------------------------------------------------------------------------------------- */

/* DIR/NAME as an object; *out is NULL without the file. */
static err_t read_object(const char *dir, const char *name, json_t **out, err_info *info)
{
    char *bytes;
    size_t n_bytes;
    json_error_t reason;
    *out = NULL;
    const err_t err = model_file_read(dir, name, CONFIG_BYTES_MAX, &bytes, &n_bytes, info);
    if (err == ERR_NOT_FOUND) return ERR_OK;
    TRY(err);
    json_t *document = json_loadb(bytes, n_bytes, JSON_ALLOW_NUL, &reason);
    free(bytes);
    if (document == NULL && api_json_lacked_memory(&reason))
        return err_set(info, ERR_NO_MEMORY, "out of memory");
    if (!json_is_object(document)) {
        json_decref(document);
        return err_set(info, ERR_BAD_MODEL, "%s: not a JSON object", name);
    }
    *out = document;
    return ERR_OK;
}

/* --chat-template: any path. */
static err_t read_named(const char *file, template_source *out, err_info *info)
{
    const char *slash = strrchr(file, '/');
    char *dir = slash == NULL   ? strdup(".")
                : slash == file ? strdup("/")
                                : strndup(file, (size_t)(slash - file));
    if (dir == NULL) return err_set(info, ERR_NO_MEMORY, "out of memory");
    const char *name = slash != NULL ? slash + 1 : file;
    const err_t err =
        model_file_read(dir, name, TEMPLATE_BYTES_MAX, &out->text, &out->n_bytes, info);
    free(dir);
    if (err == ERR_NOT_FOUND)
        return err_set(info, ERR_IO, "chat-template: %.120s: no such file", file);
    out->name = file;
    return err;
}

static err_t copy_text(const json_t *text, template_source *out, err_info *info)
{
    const size_t n_bytes = json_string_length(text);
    if (n_bytes > TEMPLATE_BYTES_MAX)
        return err_set(info, ERR_BAD_MODEL, "%s: chat_template: longer than %d bytes", config_file,
                       TEMPLATE_BYTES_MAX);
    out->text = malloc(n_bytes + 1);
    if (out->text == NULL) return err_set(info, ERR_NO_MEMORY, "out of memory");
    memcpy(out->text, json_string_value(text), n_bytes + 1);
    out->n_bytes = n_bytes;
    out->name = config_file;
    return ERR_OK;
}

/* The template named "default" of [{"name", "template"}], or NULL. */
static const json_t *default_of(const json_t *list)
{
    size_t i;
    json_t *entry;
    json_array_foreach(list, i, entry)
    {
        const json_t *name = json_object_get(entry, "name");
        if (json_is_string(name) && strcmp(json_string_value(name), "default") == 0)
            return json_object_get(entry, "template");
    }
    return NULL;
}

/* The model's own, if it has one; what is there and cannot be used is told in `fault`. */
static err_t read_own(const char *dir, const json_t *config, chat_template *c, template_source *out,
                      err_info *info)
{
    err_t err =
        model_file_read(dir, template_file, TEMPLATE_BYTES_MAX, &out->text, &out->n_bytes, info);
    out->name = template_file;
    if (err != ERR_NOT_FOUND) return err;
    const json_t *text = json_object_get(config, "chat_template");
    if (text == NULL || json_is_null(text)) {
        snprintf(c->fault, sizeof c->fault,
                 "The model has no chat template: there is neither %s nor chat_template in %s. "
                 "--chat-template FILE gives it one.",
                 template_file, config_file);
        return ERR_OK;
    }
    if (json_is_array(text)) text = default_of(text);
    if (json_is_string(text)) return copy_text(text, out, info);
    snprintf(c->fault, sizeof c->fault,
             "chat_template in %s is neither a text nor a list with one named \"default\". "
             "--chat-template FILE gives the model one.",
             config_file);
    return ERR_OK;
}

/* ---- tokens that a template names ------------------------------------------------------------------------ */

/* {"bos_token": "<s>"} or {"bos_token": {"content": "<s>"}}, unless it is known already. */
static bool take_token(chat_template *c, const json_t *from, const char *name)
{
    json_t *value = json_object_get(from, name);
    if (json_is_object(value)) value = json_object_get(value, "content");
    if (!json_is_string(value) || json_object_get(c->tokens, name) != NULL) return true;
    return json_object_set(c->tokens, name, value) == 0;
}

static bool take_piece(chat_template *c, const tokenizer *t, const char *name, int64_t id)
{
    if (id < 0 || json_object_get(c->tokens, name) != NULL) return true;
    const tok_piece piece = tokenizer_piece(t, (uint32_t)id, true);
    return json_object_set_new(c->tokens, name, json_stringn(piece.bytes, piece.n_bytes)) == 0;
}

static err_t read_tokens(chat_template *c, const json_t *config, const json_t *map,
                         const tokenizer *t)
{
    static const char *const names[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                        "pad_token", "cls_token", "mask_token"};
    c->tokens = json_object();
    bool is_ok = c->tokens != NULL;
    for (size_t i = 0; is_ok && i < sizeof names / sizeof names[0]; i++)
        is_ok = take_token(c, config, names[i]) && take_token(c, map, names[i]);
    is_ok = is_ok && take_piece(c, t, "bos_token", tokenizer_bos(t)) &&
            take_piece(c, t, "eos_token", tokenizer_eos(t));
    return is_ok ? ERR_OK : ERR_NO_MEMORY;
}

/* The id that the name of the end token stands for, if it is one token. */
static err_t find_eos(chat_template *c, const tokenizer *t)
{
    uint32_t *ids;
    size_t n_ids;
    c->eos = -1;
    const json_t *name = json_object_get(c->tokens, "eos_token");
    if (name == NULL) return ERR_OK;
    const tok_text text = {.bytes = json_string_value(name),
                           .n_bytes = json_string_length(name),
                           .parse_special = true};
    const err_t err = tokenizer_encode(t, &text, &ids, &n_ids);
    if (err != ERR_OK) return err == ERR_BAD_REQUEST ? ERR_OK : err;
    if (n_ids == 1 && tokenizer_piece(t, ids[0], true).is_special) c->eos = (int64_t)ids[0];
    free(ids);
    return ERR_OK;
}

/* ---- life cycle ------------------------------------------------------------------------------------------ */

/* A template that the user named must compile; one of the model need not. */
static err_t compile(chat_template *c, const template_source *source, bool is_named, err_info *info)
{
    err_info reason = {0};
    const err_t err = jinja_compile(source->text, source->n_bytes, &c->compiled, &reason);
    if (err == ERR_OK) return jinja_find_content(c->compiled, &c->content);
    if (err == ERR_NO_MEMORY) return err;
    if (is_named)
        return err_set(info, err, "chat-template: %.60s: %s", source->name, reason.message);
    snprintf(c->fault, sizeof c->fault, "The model's chat template is not supported: %s: %s",
             source->name, reason.message);
    return ERR_OK;
}

static err_t fill(chat_template *c, const char *dir, const char *file, const tokenizer *t,
                  err_info *info)
{
    json_t *config = NULL, *map = NULL;
    template_source source = {0};
    err_t err = read_object(dir, config_file, &config, info);
    if (err == ERR_OK) err = read_object(dir, map_file, &map, info);
    if (err == ERR_OK) err = read_tokens(c, config, map, t);
    if (err == ERR_OK) err = find_eos(c, t);
    if (err == ERR_OK) {
        err = file != NULL ? read_named(file, &source, info)
                           : read_own(dir, config, c, &source, info);
    }
    if (err == ERR_OK && source.text != NULL) err = compile(c, &source, file != NULL, info);
    free(source.text);
    json_decref(map);
    json_decref(config);
    return err;
}

err_t chat_template_open(const char *model_dir, const char *file, const tokenizer *t,
                         chat_template **out, err_info *info)
{
    *out = NULL;
    chat_template *c = calloc(1, sizeof *c);
    if (c == NULL) return err_set(info, ERR_NO_MEMORY, "out of memory");
    const err_t err = fill(c, model_dir, file, t, info);
    if (err != ERR_OK) {
        chat_template_close(c);
        return err;
    }
    assert((c->compiled == NULL) == (c->fault[0] != '\0'));
    *out = c;
    return ERR_OK;
}

void chat_template_close(chat_template *c)
{
    if (c == NULL) return;
    jinja_free(c->compiled);
    json_decref(c->tokens);
    free(c);
}

/* ---- use ------------------------------------------------------------------------------------------------- */

const char *chat_template_fault(const chat_template *c)
{
    return c->compiled == NULL ? c->fault : NULL;
}

int64_t chat_template_eos(const chat_template *c)
{
    return c->eos;
}

chat_content chat_template_content(const chat_template *c, chat_content_format format)
{
    if (format == CHAT_FORMAT_STRING) return CHAT_CONTENT_TEXTS;
    if (format == CHAT_FORMAT_OPENAI) return CHAT_CONTENT_PARTS;
    if (!c->content.reads_parts) return CHAT_CONTENT_TEXTS;
    return c->content.asks_type ? CHAT_CONTENT_AS_SENT : CHAT_CONTENT_PARTS;
}

bool chat_template_shows_tools(const chat_template *c)
{
    return c->content.names_tools;
}

err_t chat_template_render(const chat_template *c, const struct json_t *variables,
                           size_t output_bytes_max, char **text, size_t *n_bytes, err_info *info)
{
    assert(c->compiled != NULL);
    const jinja_limits limits = {.output_bytes = output_bytes_max,
                                 .memory_bytes =
                                     MEMORY_BYTES_MAX + MEMORY_PER_BYTE * output_bytes_max,
                                 .steps = STEPS_MAX,
                                 .now = clock_unix_seconds()};
    /* jansson counts references without locks, and every rendering reads the same tokens. */
    json_t *context = json_deep_copy(c->tokens);
    const bool is_ok =
        context != NULL && json_object_update(context, (json_t *)(uintptr_t)variables) == 0;
    const err_t err =
        is_ok ? jinja_render(c->compiled, context, &limits, text, n_bytes, info) : ERR_NO_MEMORY;
    json_decref(context);
    return err;
}
