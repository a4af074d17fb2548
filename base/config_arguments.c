/* base/config_arguments.c - flags and environment variables of config.h.
 *
 * A flag that takes a value takes the next word, unless that word begins with "--" (then the value
 * was forgotten; `--name=--text` passes such a value). A list flag takes every word up to the next
 * that begins with '-', as `--api-key a b` does elsewhere; a positional word must therefore not
 * follow one directly. A list given by flags replaces the list of a weaker source, so lists are
 * emptied in a first pass over the flags and filled in the second. */
#include "base/check.h"
#include "base/config.h"

#include <stdlib.h>
#include <string.h>

enum { NAME_BYTES = 96 };
static const char ENVIRONMENT_PREFIX[] = "PIKV_";

/* One word that is a flag. */
typedef struct flag {
    char name[NAME_BYTES];  /* without dashes, alias resolved */
    const char *value;      /* behind '=', or NULL */
    const cfg_field *field; /* NULL: unknown */
    bool is_negated;        /* --no-NAME of a CFG_BOOL */
} flag;

typedef struct source {
    const cfg_binding *bindings;
    size_t n_bindings;
    cfg_args *args;
    err_info *info;
} source;

static bool is_flag(const char *word)
{
    return word[0] == '-' && word[1] != '\0';
}

static const char *resolve_alias(const cfg_alias *aliases, const char *dashed_name)
{
    for (const cfg_alias *a = aliases; a != NULL && a->alias != NULL; a++) {
        if (strcmp(a->alias, dashed_name) == 0) return a->name;
    }
    return NULL;
}

/* False if the word cannot be the name of anything. */
static bool read_flag(const source *s, const char *word, flag *out)
{
    *out = (flag){0};
    const char *equals = strchr(word, '=');
    const size_t bytes = equals != NULL ? (size_t)(equals - word) : strlen(word);
    if (bytes >= NAME_BYTES) return false;
    memcpy(out->name, word, bytes);
    out->value = equals != NULL ? equals + 1 : NULL;
    const char *name = resolve_alias(s->args->aliases, out->name);
    if (name == NULL) {
        if (strncmp(out->name, "--", 2) != 0) return false;
        name = out->name + 2;
    }
    memmove(out->name, name, strlen(name) + 1);
    out->field = cfg_find(s->bindings, s->n_bindings, out->name, NULL);
    if (out->field == NULL && strncmp(out->name, "no-", 3) == 0) {
        out->field = cfg_find(s->bindings, s->n_bindings, out->name + 3, NULL);
        if (out->field != NULL && out->field->type != CFG_BOOL) out->field = NULL;
        out->is_negated = out->field != NULL;
    }
    return true;
}

static void clear_lists(const source *s)
{
    for (int i = 0; i < s->args->argc && strcmp(s->args->argv[i], "--") != 0; i++) {
        flag f;
        if (!is_flag(s->args->argv[i]) || !read_flag(s, s->args->argv[i], &f)) continue;
        if (f.field == NULL || f.field->type != CFG_STRINGS) continue;
        cfg_clear_list(s->bindings, s->n_bindings, f.field->name);
    }
}

static err_t set(const source *s, const flag *f, const char *value)
{
    return cfg_set(s->bindings, s->n_bindings, f->field->name, value, s->info);
}

static err_t set_flag_bool(const source *s, const flag *f)
{
    if (!f->is_negated) return set(s, f, f->value != NULL ? f->value : "true");
    if (f->value == NULL) return set(s, f, "false");
    return err_set(s->info, ERR_BAD_CONFIG, "--%s takes no value", f->name);
}

/* Sets the flag at argv[*at]; *at moves to its last word. */
static err_t set_flag(const source *s, int *at)
{
    char **argv = s->args->argv;
    flag f;
    if (!read_flag(s, argv[*at], &f)) {
        return err_set(s->info, ERR_NOT_FOUND, "unknown flag %.*s", NAME_BYTES, argv[*at]);
    }
    if (f.field == NULL) return cfg_set(s->bindings, s->n_bindings, f.name, "", s->info);
    if (f.field->type == CFG_BOOL) return set_flag_bool(s, &f);
    if (f.value != NULL) return set(s, &f, f.value);
    if (*at + 1 == s->args->argc || strncmp(argv[*at + 1], "--", 2) == 0) {
        return err_set(s->info, ERR_BAD_CONFIG, "--%s needs a value (%s)", f.field->name,
                       f.field->metavar != NULL ? f.field->metavar : "VALUE");
    }
    ++*at;
    TRY(set(s, &f, argv[*at]));
    while (f.field->type == CFG_STRINGS && *at + 1 < s->args->argc && argv[*at + 1][0] != '-') {
        ++*at;
        TRY(set(s, &f, argv[*at]));
    }
    return ERR_OK;
}

err_t cfg_set_arguments(const cfg_binding *bindings, size_t n_bindings, cfg_args *args,
                        err_info *info)
{
    const source s = {bindings, n_bindings, args, info};
    bool flags_ended = false;
    args->n_positional = 0;
    clear_lists(&s);
    for (int i = 0; i < args->argc; i++) {
        char *word = args->argv[i];
        if (!flags_ended && strcmp(word, "--") == 0) {
            flags_ended = true;
        } else if (!flags_ended && is_flag(word)) {
            TRY(set_flag(&s, &i));
        } else { /* never ahead of i: only words that were read are overwritten */
            args->argv[args->n_positional++] = word;
        }
    }
    return ERR_OK;
}

/* Commas separate, empty parts are dropped: NAME= empties the list. */
static err_t set_list(const source *s, const char *name, const char *value)
{
    cfg_clear_list(s->bindings, s->n_bindings, name);
    char *parts = strdup(value);
    if (parts == NULL) return err_set(s->info, ERR_NO_MEMORY, "%s: out of memory", name);
    err_t err = ERR_OK;
    char *rest = parts;
    for (char *part; err == ERR_OK && (part = strsep(&rest, ",")) != NULL;) {
        if (*part != '\0') err = cfg_set(s->bindings, s->n_bindings, name, part, s->info);
    }
    free(parts);
    return err;
}

static err_t set_variable(const source *s, const char *variable)
{
    char name[NAME_BYTES];
    const char *begin = variable + sizeof ENVIRONMENT_PREFIX - 1;
    const char *equals = strchr(begin, '=');
    if (equals == NULL) return ERR_OK; /* not a variable: nothing was set */
    const size_t bytes = (size_t)(equals - begin);
    if (bytes >= NAME_BYTES) {
        return err_set(s->info, ERR_NOT_FOUND, "unknown environment variable %.*s", NAME_BYTES,
                       variable);
    }
    for (size_t i = 0; i < bytes; i++) {
        const char c = begin[i];
        name[i] = c == '_' ? '-' : c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
    }
    name[bytes] = '\0';
    const cfg_field *field = cfg_find(s->bindings, s->n_bindings, name, NULL);
    if (field != NULL && field->type == CFG_STRINGS) return set_list(s, name, equals + 1);
    return cfg_set(s->bindings, s->n_bindings, name, equals + 1, s->info);
}

static bool begins(const char *text, const char *with)
{
    return strncmp(text, with, strlen(with)) == 0;
}

/* `tail` is what stands behind the name of a Service. */
static bool is_link_tail(const char *tail)
{
    static const char *const protocols[] = {"_TCP", "_UDP", "_SCTP"}, *const schemes[] = {
                                                                          "=tcp://", "=udp://",
                                                                          "=sctp://"};
    if (begins(tail, "_SERVICE_HOST=") || begins(tail, "_SERVICE_PORT=")) return true;
    if (begins(tail, "_SERVICE_PORT_")) return true;
    if (!begins(tail, "_PORT")) return false;
    const char *rest = tail + strlen("_PORT");
    for (int i = 0; i < 3; i++) {
        if (begins(rest, schemes[i])) return true;
    }
    const size_t n_digits = *rest == '_' ? strspn(rest + 1, "0123456789") : 0;
    for (int i = 0; n_digits > 0 && i < 3; i++) {
        if (begins(rest + 1 + n_digits, protocols[i])) return true;
    }
    return false;
}

/* For a Service `pikv` on port 8000 these are PIKV_SERVICE_HOST, PIKV_SERVICE_PORT, PIKV_SERVICE_PORT_<name>,
 * PIKV_PORT=tcp://10.0.0.1:8000, PIKV_PORT_8000_TCP=... and that with _PROTO, _PORT and _ADDR. Told by their shape,
 * since PIKV_PORT is a setting of ours too; PIKV_PORT=8000 stays one. */
bool cfg_is_service_link(const char *variable)
{
    if (!begins(variable, ENVIRONMENT_PREFIX)) return false;
    const char *equals = strchr(variable, '=');
    for (const char *at = variable; at != NULL && at < equals; at = strchr(at + 1, '_')) {
        if (is_link_tail(at)) return true;
    }
    return false;
}

err_t cfg_set_environment(const cfg_binding *bindings, size_t n_bindings, char *const *environment,
                          err_info *info)
{
    const source s = {.bindings = bindings, .n_bindings = n_bindings, .info = info};
    for (char *const *variable = environment; *variable != NULL; variable++) {
        if (!begins(*variable, ENVIRONMENT_PREFIX) || cfg_is_service_link(*variable)) continue;
        TRY(set_variable(&s, *variable));
    }
    return ERR_OK;
}
