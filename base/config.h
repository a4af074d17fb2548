/* base/config.h - a struct of settings described by one table.
 *
 * The module that owns a settings struct owns its table. A row gives name, place, limits, default and
 * help; the command line flag (--kv-page-tokens 32), the environment variable
 * (PIKV_KV_PAGE_TOKENS), the YAML key (kv-page-tokens) and the help text all come from that row.
 * Several structs are set together through an array of cfg_binding.
 *
 * Ownership: string fields are heap copies that the struct owns; cfg_deinit frees them.
 * Threads: none; settings are made in main and read-only afterwards. */
#ifndef BASE_CONFIG_H
#define BASE_CONFIG_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

typedef enum cfg_type {
    CFG_BOOL, /* bool; flag alone means true, --no-NAME means false; true/false/1/0/yes/no/on/off */
    CFG_U32,  /* uint32_t; suffixes as below */
    CFG_U64,  /* uint64_t; decimal suffixes k m g t (1000) and binary Ki Mi Gi Ti (1024): 1.5Gi */
    CFG_F64,  /* double; NaN fails every range */
    CFG_STRING,  /* char *; NULL when the default is NULL */
    CFG_STRINGS, /* cfg_strings; the flag repeats or lists several values, as in `--api-key a b`: all
                  * words up to the next that begins with '-'. Commas in the environment. */
    CFG_CHOICE   /* uint32_t index into choices */
} cfg_type;

typedef struct cfg_strings {
    char **items; /* [n_items], each owned */
    size_t n_items;
} cfg_strings;

typedef struct cfg_field {
    const char *name; /* "kv-page-tokens" */
    cfg_type type;
    size_t offset;   /* of the member in its struct */
    double min, max; /* inclusive; numbers only. Beyond 2^53 the limit is not needed exactly */
    const char *default_text;   /* parsed like any value; NULL for "not set" strings */
    const char *const *choices; /* NULL-terminated; CFG_CHOICE only */
    const char *metavar;        /* "N", "BYTES", "FILE" ...; NULL for booleans */
    const char *help;           /* one line */
} cfg_field;

typedef struct cfg_table {
    const char *title; /* heading in --help */
    const cfg_field *fields;
    size_t n_fields;
} cfg_table;

typedef struct cfg_binding {
    const cfg_table *table;
    void *target; /* of the table's struct; zeroed by the caller before cfg_defaults */
} cfg_binding;

/* Row builders: the member's type is checked at compile time. */
#define CFG_ROW_(s, member, ctype, kind, ...)                                                   \
    .type = (kind),                                                                             \
    .offset = offsetof(s, member) + 0 * sizeof(char[_Generic(&((s *)0)->member, ctype * : 1)]), \
    __VA_ARGS__
#define CFG_FLAG(s, member, flag, def, text)                                                       \
    {                                                                                              \
        .name = (flag), CFG_ROW_(s, member, bool, CFG_BOOL, .default_text = (def), .help = (text)) \
    }
#define CFG_NUM32(s, member, flag, lo, hi, def, text)                                    \
    {                                                                                    \
        .name = (flag), CFG_ROW_(s, member, uint32_t, CFG_U32, .min = (lo), .max = (hi), \
                                 .default_text = (def), .metavar = "N", .help = (text))  \
    }
#define CFG_NUM64(s, member, flag, lo, hi, def, text)                                    \
    {                                                                                    \
        .name = (flag), CFG_ROW_(s, member, uint64_t, CFG_U64, .min = (lo), .max = (hi), \
                                 .default_text = (def), .metavar = "N", .help = (text))  \
    }
#define CFG_REAL(s, member, flag, lo, hi, def, text)                                    \
    {                                                                                   \
        .name = (flag), CFG_ROW_(s, member, double, CFG_F64, .min = (lo), .max = (hi),  \
                                 .default_text = (def), .metavar = "X", .help = (text)) \
    }
#define CFG_TEXT(s, member, flag, def, meta, text)                                     \
    {                                                                                  \
        .name = (flag), CFG_ROW_(s, member, char *, CFG_STRING, .default_text = (def), \
                                 .metavar = (meta), .help = (text))                    \
    }
#define CFG_LIST(s, member, flag, def, meta, text)                                           \
    {                                                                                        \
        .name = (flag), CFG_ROW_(s, member, cfg_strings, CFG_STRINGS, .default_text = (def), \
                                 .metavar = (meta), .help = (text))                          \
    }
#define CFG_PICK(s, member, flag, names, def, text)                                      \
    {                                                                                    \
        .name = (flag), CFG_ROW_(s, member, uint32_t, CFG_CHOICE, .default_text = (def), \
                                 .choices = (names), .metavar = "NAME", .help = (text))  \
    }

/* A default that its own limits refuse is a bug (asserted). */
err_t cfg_defaults(const cfg_binding *bindings, size_t n_bindings) MUST_CHECK;

/* Sets one field by name from text. ERR_NOT_FOUND names an unknown key (with the nearest known one);
 * ERR_BAD_CONFIG key, value and limit. A CFG_STRINGS value is appended; cfg_clear_list empties it. */
err_t cfg_set(const cfg_binding *bindings, size_t n_bindings, const char *name, const char *value,
              err_info *info) MUST_CHECK;
void cfg_clear_list(const cfg_binding *bindings, size_t n_bindings, const char *name);

/* The row called `name` and, through `target` (NULL allowed), its struct; NULL if there is none.
 * `_` in a name counts as `-`. */
const cfg_field *cfg_find(const cfg_binding *bindings, size_t n_bindings, const char *name,
                          void **target);

/* Every PIKV_* variable of `environment` ("NAME=value", NULL-terminated); unknown ones fail. Not what
 * Kubernetes says of a Service called pikv or pikv-*: cfg_is_service_link, of "NAME=value". */
err_t cfg_set_environment(const cfg_binding *bindings, size_t n_bindings, char *const *environment,
                          err_info *info) MUST_CHECK;
bool cfg_is_service_link(const char *variable);

/* --name value, --name=value, --flag, --no-flag, aliases; `--` ends the flags. Other words are
 * positional: moved to the front of argv, counted in *n_positional. */
typedef struct cfg_alias {
    const char *alias; /* "-p", "--model" */
    const char *name;  /* "prompt" */
} cfg_alias;
typedef struct cfg_args {
    int argc;
    char **argv;              /* after the subcommand; reordered */
    const cfg_alias *aliases; /* ends with {NULL, NULL}; NULL allowed */
    size_t n_positional;      /* out */
} cfg_args;
err_t cfg_set_arguments(const cfg_binding *bindings, size_t n_bindings, cfg_args *args,
                        err_info *info) MUST_CHECK;

/* --help: one block per table. */
void cfg_print_help(const cfg_binding *bindings, size_t n_bindings, FILE *out);
/* --print-config: YAML, one `name: value` line per field, secrets (names ending in "api-key") masked. */
void cfg_print_yaml(const cfg_binding *bindings, size_t n_bindings, FILE *out);
/* Every field to another struct of the table, strings as copies. On ERR_NO_MEMORY `to` is in parts. */
err_t cfg_copy(const cfg_table *table, const void *from, void *to) MUST_CHECK;

void cfg_deinit(const cfg_binding *bindings, size_t n_bindings); /* frees strings, zeroes them */

/* Checked number readers, also used for requests and files. The whole text must be the number. */
err_t cfg_parse_u64(const char *text, uint64_t *out) MUST_CHECK;
err_t cfg_parse_f64(const char *text, double *out) MUST_CHECK; /* finite only, "C" locale */

/* The shortest decimal text that reads back as x: 0.1, 64, 1e-05. Returns `out`. */
enum { CFG_F64_TEXT_BYTES = 32 };
const char *cfg_format_f64(double x, char out[CFG_F64_TEXT_BYTES]);

#endif
