/* service/config_yaml.c - settings from a YAML file. See server_config.h.
 *
 * Read as a stream of events: no tree is built, so neither depth nor aliases can cost anything. A list
 * replaces what a weaker source has put there. `key: null` (or nothing after the colon) leaves the
 * default. Quoted text is taken as it is. */
#include "service/server_config.h"

#include "base/check.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

enum { FILE_BYTES_MAX = 1 << 20, KEYS_MAX = 256, KEY_BYTES_MAX = 96 };

typedef struct reader {
    yaml_parser_t parser;
    const config_target *target;
    const char *name; /* of the file, for messages */
    err_info *info;
    const cfg_field *seen[KEYS_MAX]; /* [n_seen] */
    size_t n_seen;
} reader;

static err_t refuse(reader *r, yaml_mark_t at, const char *reason)
{
    return err_set(r->info, ERR_BAD_CONFIG, "%s:%zu: %s", r->name, at.line + 1, reason);
}

static err_t next_event(reader *r, yaml_event_t *event)
{
    if (yaml_parser_parse(&r->parser, event)) return ERR_OK;
    if (r->parser.error == YAML_MEMORY_ERROR) {
        return err_set(r->info, ERR_NO_MEMORY, "%s: out of memory", r->name);
    }
    const char *problem = r->parser.problem != NULL ? r->parser.problem : "is not YAML";
    return refuse(r, r->parser.problem_mark, problem);
}

/* Takes the next event, which must be of this type and, as a scalar, free of NULs and anchors. */
static err_t expect(reader *r, yaml_event_type_t type, const char *otherwise)
{
    yaml_event_t event;
    TRY(next_event(r, &event));
    const bool is_right = event.type == type;
    const yaml_mark_t at = event.start_mark;
    yaml_event_delete(&event);
    return is_right ? ERR_OK : refuse(r, at, otherwise);
}

static bool is_plain_text(const yaml_event_t *scalar)
{
    return strlen((const char *)scalar->data.scalar.value) == scalar->data.scalar.length;
}

static bool is_null(const yaml_event_t *scalar)
{
    const char *text = (const char *)scalar->data.scalar.value;
    if (scalar->data.scalar.style != YAML_PLAIN_SCALAR_STYLE) return false;
    return *text == '\0' || strcmp(text, "~") == 0 || strcmp(text, "null") == 0;
}

/* Sets one field; a failure is told again with file and line in front. */
static err_t set(reader *r, const cfg_field *field, const yaml_event_t *scalar)
{
    err_info inner = {0};
    if (!is_plain_text(scalar)) return refuse(r, scalar->start_mark, "a value holds a NUL");
    const char *value = (const char *)scalar->data.scalar.value;
    /* The length of a context may be "auto" here as on the command line. */
    if (strcmp(field->name, "max-model-len") == 0 && strcmp(value, "auto") == 0) value = "0";
    const config_target *t = r->target;
    const err_t err = cfg_set(t->bindings, t->n_bindings, field->name, value, &inner);
    if (err == ERR_OK) return ERR_OK;
    return err_set(r->info, err, "%s:%zu: %s", r->name, scalar->start_mark.line + 1, inner.message);
}

/* The row that a key means: by its name, or by one of the names known from other servers. */
static const cfg_field *find_field(const config_target *target, const char *key)
{
    char flag[KEY_BYTES_MAX + 3] = "--";
    const cfg_field *field = cfg_find(target->bindings, target->n_bindings, key, NULL);
    if (field != NULL || strlen(key) > KEY_BYTES_MAX) return field;
    strcat(flag, key);
    for (const cfg_alias *a = target->aliases; a != NULL && a->alias != NULL; a++) {
        if (strcmp(a->alias, flag) != 0) continue;
        return cfg_find(target->bindings, target->n_bindings, a->name, NULL);
    }
    return NULL;
}

static err_t read_key(reader *r, const yaml_event_t *event, const cfg_field **field)
{
    if (event->type != YAML_SCALAR_EVENT || event->data.scalar.anchor != NULL ||
        !is_plain_text(event)) {
        return refuse(r, event->start_mark, "a key is not plain text");
    }
    const char *key = (const char *)event->data.scalar.value;
    *field = find_field(r->target, key);
    if (*field == NULL) { /* for the words, which name the nearest known key */
        err_info inner = {0};
        const config_target *t = r->target;
        const err_t err = cfg_set(t->bindings, t->n_bindings, key, "", &inner);
        return err_set(r->info, err, "%s:%zu: %s", r->name, event->start_mark.line + 1,
                       inner.message);
    }
    for (size_t i = 0; i < r->n_seen; i++) {
        if (r->seen[i] != *field) continue;
        return err_set(r->info, ERR_BAD_CONFIG, "%s:%zu: the key \"%s\" appears twice", r->name,
                       event->start_mark.line + 1, (*field)->name);
    }
    if (r->n_seen == KEYS_MAX) return refuse(r, event->start_mark, "there are too many keys");
    r->seen[r->n_seen++] = *field;
    return ERR_OK;
}

/* The elements of a list, up to its end. */
static err_t read_list(reader *r, const cfg_field *field)
{
    for (;;) {
        yaml_event_t event;
        TRY(next_event(r, &event));
        err_t err = ERR_OK;
        const bool is_end = event.type == YAML_SEQUENCE_END_EVENT;
        if (!is_end) {
            err = event.type == YAML_SCALAR_EVENT && event.data.scalar.anchor == NULL
                      ? set(r, field, &event)
                      : refuse(r, event.start_mark, "a list may only hold plain values");
        }
        yaml_event_delete(&event);
        if (err != ERR_OK || is_end) return err;
    }
}

static err_t read_value(reader *r, const cfg_field *field)
{
    yaml_event_t event;
    TRY(next_event(r, &event));
    const yaml_mark_t at = event.start_mark;
    err_t err = ERR_OK;
    bool is_list = false;
    if (event.type == YAML_SCALAR_EVENT && event.data.scalar.anchor == NULL) {
        if (field->type == CFG_STRINGS) {
            cfg_clear_list(r->target->bindings, r->target->n_bindings, field->name);
        }
        if (!is_null(&event)) err = set(r, field, &event);
    } else if (event.type == YAML_SEQUENCE_START_EVENT &&
               event.data.sequence_start.anchor == NULL) {
        is_list = true;
    } else {
        err = refuse(r, at,
                     "a value is neither a scalar nor a list (no nesting, anchors or aliases)");
    }
    yaml_event_delete(&event);
    if (!is_list) return err;
    if (field->type != CFG_STRINGS) return refuse(r, at, "this key takes one value, not a list");
    cfg_clear_list(r->target->bindings, r->target->n_bindings, field->name);
    return read_list(r, field);
}

static err_t read_mapping(reader *r)
{
    for (;;) {
        yaml_event_t event;
        const cfg_field *field = NULL;
        TRY(next_event(r, &event));
        const bool is_end = event.type == YAML_MAPPING_END_EVENT;
        const err_t err = is_end ? ERR_OK : read_key(r, &event, &field);
        yaml_event_delete(&event);
        if (err != ERR_OK || is_end) return err;
        TRY(read_value(r, field));
    }
}

static err_t read_document(reader *r)
{
    yaml_event_t event;
    TRY(expect(r, YAML_STREAM_START_EVENT, "is not YAML"));
    TRY(next_event(r, &event));
    const yaml_event_type_t first = event.type;
    yaml_event_delete(&event);
    if (first == YAML_STREAM_END_EVENT) return ERR_OK; /* nothing but comments */
    TRY(next_event(r, &event));
    const yaml_mark_t at = event.start_mark;
    const bool is_mapping =
        event.type == YAML_MAPPING_START_EVENT && event.data.mapping_start.anchor == NULL;
    yaml_event_delete(&event);
    if (!is_mapping) return refuse(r, at, "the file is not a mapping of keys to values");
    TRY(read_mapping(r));
    TRY(expect(r, YAML_DOCUMENT_END_EVENT, "the document does not end"));
    return expect(r, YAML_STREAM_END_EVENT, "there is a second document");
}

err_t config_yaml_parse(const config_target *target, const char *name, const char *text,
                        size_t text_bytes, err_info *info)
{
    reader r = {.target = target, .name = name, .info = info};
    if (!yaml_parser_initialize(&r.parser)) {
        return err_set(info, ERR_NO_MEMORY, "%s: out of memory", name);
    }
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)text, text_bytes);
    yaml_parser_set_encoding(&r.parser, YAML_UTF8_ENCODING);
    const err_t err = read_document(&r);
    yaml_parser_delete(&r.parser);
    return err;
}

err_t config_yaml_load(const config_target *target, const char *path, err_info *info)
{
    FILE *file = fopen(path, "re");
    if (file == NULL) return err_set(info, ERR_IO, "config: %s: %s", path, strerror(errno));
    char *text = malloc(FILE_BYTES_MAX + 1);
    if (text == NULL) {
        fclose(file);
        return err_set(info, ERR_NO_MEMORY, "%s: out of memory", path);
    }
    err_t err;
    const size_t n_bytes = fread(text, 1, FILE_BYTES_MAX + 1, file);
    if (ferror(file)) {
        err = err_set(info, ERR_IO, "config: %s cannot be read", path);
    } else if (n_bytes > FILE_BYTES_MAX) {
        err = err_set(info, ERR_BAD_CONFIG, "config: %s is larger than %d bytes", path,
                      FILE_BYTES_MAX);
    } else {
        err = config_yaml_parse(target, path, text, n_bytes, info);
    }
    fclose(file);
    free(text);
    return err;
}
