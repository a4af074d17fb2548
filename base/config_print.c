/* base/config_print.c - --help and --print-config of config.h. */
#include "base/config.h"

#include <inttypes.h>
#include <string.h>

enum { HELP_COLUMN = 36 };

static bool is_secret(const char *name)
{
    static const char suffix[] = "api-key";
    const size_t bytes = strlen(name), suffix_bytes = sizeof suffix - 1;
    return bytes >= suffix_bytes && strcmp(name + bytes - suffix_bytes, suffix) == 0;
}

static bool has_limits(const cfg_field *field)
{
    return field->type == CFG_U32 || field->type == CFG_U64 || field->type == CFG_F64;
}

static void print_facts(const cfg_field *field, FILE *out)
{
    char lo[CFG_F64_TEXT_BYTES], hi[CFG_F64_TEXT_BYTES];
    if (has_limits(field)) {
        fprintf(out, " [%s, %s]", cfg_format_f64(field->min, lo), cfg_format_f64(field->max, hi));
    }
    for (size_t i = 0; field->type == CFG_CHOICE && field->choices[i] != NULL; i++)
        fprintf(out, "%s%s", i == 0 ? ": " : ", ", field->choices[i]);
    if (field->default_text != NULL) fprintf(out, " (default %s)", field->default_text);
}

static void print_help_row(const cfg_field *field, FILE *out)
{
    const bool is_on = field->type == CFG_BOOL && strcmp(field->default_text, "true") == 0;
    int column = fprintf(out, "  --%s%s", is_on ? "[no-]" : "", field->name);
    if (field->metavar != NULL) column += fprintf(out, " %s", field->metavar);
    if (field->type == CFG_STRINGS) column += fprintf(out, " ...");
    if (column >= HELP_COLUMN) {
        fputc('\n', out);
        column = 0;
    }
    fprintf(out, "%*s%s", HELP_COLUMN - column, "", field->help);
    print_facts(field, out);
    fputc('\n', out);
}

void cfg_print_help(const cfg_binding *bindings, size_t n_bindings, FILE *out)
{
    for (size_t b = 0; b < n_bindings; b++) {
        fprintf(out, "%s%s\n", b > 0 ? "\n" : "", bindings[b].table->title);
        for (size_t i = 0; i < bindings[b].table->n_fields; i++)
            print_help_row(&bindings[b].table->fields[i], out);
    }
    fputs(
        "\nA flag marked ... may be repeated and takes every word up to the next that begins with"
        " '-';\n`--` ends the flags. --NAME is also the variable PIKV_NAME (capitals, _ for -) and"
        " the key\nNAME of a configuration file; flags win over variables, variables over the"
        " file.\nSizes may end in k m g t (1000) or Ki Mi Gi Ti (1024).\n",
        out);
}

/* A double-quoted YAML scalar. */
static void print_quoted(const char *text, FILE *out)
{
    fputc('"', out);
    for (; *text != '\0'; text++) {
        const unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\') {
            fprintf(out, "\\%c", c);
        } else if (c < 0x20 || c == 0x7f) {
            fprintf(out, "\\x%02x", c);
        } else {
            fputc(c, out);
        }
    }
    fputc('"', out);
}

static void print_list(const cfg_field *field, const cfg_strings *list, FILE *out)
{
    fputc('[', out);
    for (size_t i = 0; i < list->n_items; i++) {
        if (i > 0) fputs(", ", out);
        print_quoted(is_secret(field->name) ? "***" : list->items[i], out);
    }
    fputc(']', out);
}

static void print_string(const cfg_field *field, const char *text, FILE *out)
{
    if (text == NULL) {
        fputs("null", out);
    } else {
        print_quoted(is_secret(field->name) ? "***" : text, out);
    }
}

static void print_value(const cfg_field *field, const void *member, FILE *out)
{
    char number[CFG_F64_TEXT_BYTES];
    switch (field->type) {
    case CFG_BOOL: fputs(*(const bool *)member ? "true" : "false", out); break;
    case CFG_U32: fprintf(out, "%" PRIu32, *(const uint32_t *)member); break;
    case CFG_U64: fprintf(out, "%" PRIu64, *(const uint64_t *)member); break;
    case CFG_F64: fputs(cfg_format_f64(*(const double *)member, number), out); break;
    case CFG_CHOICE: print_quoted(field->choices[*(const uint32_t *)member], out); break;
    case CFG_STRING: print_string(field, *(char *const *)member, out); break;
    case CFG_STRINGS: print_list(field, member, out); break;
    }
}

void cfg_print_yaml(const cfg_binding *bindings, size_t n_bindings, FILE *out)
{
    for (size_t b = 0; b < n_bindings; b++) {
        const cfg_table *table = bindings[b].table;
        fprintf(out, "# %s\n", table->title);
        for (size_t i = 0; i < table->n_fields; i++) {
            fprintf(out, "%s: ", table->fields[i].name);
            print_value(&table->fields[i], (char *)bindings[b].target + table->fields[i].offset,
                        out);
            fputc('\n', out);
        }
    }
}
