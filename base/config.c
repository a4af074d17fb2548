/* base/config.c - see config.h: values by name, with limits.
 *
 * Everything a user can type arrives here as (name, text), whether it came from a flag, a variable
 * or a file, so the checks and the words of a refusal exist once. */
#include "base/config.h"

#include "base/check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    NAME_BYTES_MAX = 64,  /* longer names match nothing */
    SHOWN_BYTES_MAX = 48, /* of a refused value */
    MESSAGE_BYTES = 200,
};

static char dashed(char c)
{
    return c == '_' ? '-' : c;
}

static bool same_name(const char *a, const char *b)
{
    while (*a != '\0' && dashed(*a) == dashed(*b)) {
        a++;
        b++;
    }
    return dashed(*a) == dashed(*b);
}

const cfg_field *cfg_find(const cfg_binding *bindings, size_t n_bindings, const char *name,
                          void **target)
{
    for (size_t b = 0; b < n_bindings; b++) {
        const cfg_table *table = bindings[b].table;
        for (size_t i = 0; i < table->n_fields; i++) {
            if (!same_name(table->fields[i].name, name)) continue;
            if (target != NULL) *target = bindings[b].target;
            return &table->fields[i];
        }
    }
    return NULL;
}

/* Edits (insert, delete, replace) that turn a into b. (Levenshtein 1966.) */
static size_t edit_distance(const char *a, const char *b)
{
    size_t row[NAME_BYTES_MAX + 1]; /* distances of the prefix of a to each prefix of b */
    const size_t a_bytes = strlen(a), b_bytes = strlen(b);
    if (a_bytes > NAME_BYTES_MAX || b_bytes > NAME_BYTES_MAX) return SIZE_MAX;
    for (size_t j = 0; j <= b_bytes; j++)
        row[j] = j;
    for (size_t i = 1; i <= a_bytes; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= b_bytes; j++) {
            const size_t replaced = diagonal + (dashed(a[i - 1]) != dashed(b[j - 1]));
            diagonal = row[j];
            row[j] = min_size(replaced, min_size(row[j], row[j - 1]) + 1);
        }
    }
    return row[b_bytes];
}

/* The known name that is near enough to be what was meant, or NULL. */
static const char *nearest_name(const cfg_binding *bindings, size_t n_bindings, const char *name)
{
    const char *nearest = NULL;
    size_t least = max_size(2, strlen(name) / 3) + 1;
    for (size_t b = 0; b < n_bindings; b++) {
        for (size_t i = 0; i < bindings[b].table->n_fields; i++) {
            const char *candidate = bindings[b].table->fields[i].name;
            const size_t distance = edit_distance(name, candidate);
            if (distance >= least) continue;
            least = distance;
            nearest = candidate;
        }
    }
    return nearest;
}

static err_t refuse_unknown(const cfg_binding *bindings, size_t n_bindings, const char *name,
                            err_info *info)
{
    const char *nearest = nearest_name(bindings, n_bindings, name);
    if (nearest == NULL) {
        return err_set(info, ERR_NOT_FOUND, "unknown setting \"%.*s\"", NAME_BYTES_MAX, name);
    }
    return err_set(info, ERR_NOT_FOUND, "unknown setting \"%.*s\"; did you mean \"%s\"?",
                   NAME_BYTES_MAX, name, nearest);
}

static err_t refuse_value(const cfg_field *field, const char *value, const char *reason,
                          err_info *info)
{
    return err_set(info, ERR_BAD_CONFIG, "%s: \"%.*s\" %s", field->name, SHOWN_BYTES_MAX, value,
                   reason);
}

static err_t refuse_range(const cfg_field *field, const char *value, err_info *info)
{
    char lo[CFG_F64_TEXT_BYTES], hi[CFG_F64_TEXT_BYTES];
    return err_set(info, ERR_BAD_CONFIG, "%s: %.*s is outside [%s, %s]", field->name,
                   SHOWN_BYTES_MAX, value, cfg_format_f64(field->min, lo),
                   cfg_format_f64(field->max, hi));
}

/* The factor of a suffix; 0 if there is no such suffix. */
static uint64_t suffix_factor(const char *suffix)
{
    static const struct {
        const char *text;
        uint64_t factor;
    } suffixes[] = {
        {"", 1},
        {"k", 1000u},
        {"m", 1000000u},
        {"g", 1000000000u},
        {"t", 1000000000000u},
        {"Ki", UINT64_C(1) << 10},
        {"Mi", UINT64_C(1) << 20},
        {"Gi", UINT64_C(1) << 30},
        {"Ti", UINT64_C(1) << 40},
    };
    for (size_t i = 0; i < sizeof suffixes / sizeof suffixes[0]; i++) {
        if (strcmp(suffixes[i].text, suffix) == 0) return suffixes[i].factor;
    }
    return 0;
}

/* whole[.fraction][suffix], which must come out as a whole number. NULL, or why it is refused. */
static const char *parse_amount(const char *text, uint64_t *out)
{
    uint64_t digits = 0, divisor = 1, product;
    bool is_fraction = false, any = false;
    for (; (*text >= '0' && *text <= '9') || (*text == '.' && !is_fraction); text++) {
        if (*text == '.') {
            is_fraction = true;
            continue;
        }
        any = true;
        if (__builtin_mul_overflow(digits, 10u, &digits)) return "is too large";
        if (__builtin_add_overflow(digits, (uint64_t)(*text - '0'), &digits)) return "is too large";
        if (is_fraction && __builtin_mul_overflow(divisor, 10u, &divisor)) return "is too long";
    }
    if (!any) return "is not a number";
    if (strlen(text) == 1 && strchr("KMGT", *text) != NULL) {
        return "is ambiguous: small k m g t mean 1000, Ki Mi Gi Ti mean 1024";
    }
    const uint64_t factor = suffix_factor(text);
    if (factor == 0) return "is not a number";
    if (__builtin_mul_overflow(digits, factor, &product)) return "is too large";
    if (product % divisor != 0) return "is not a whole number";
    *out = product / divisor;
    return NULL;
}

static err_t set_whole(const cfg_field *field, void *member, const char *value, err_info *info)
{
    uint64_t x;
    const char *reason = parse_amount(value, &x);
    if (reason != NULL) return refuse_value(field, value, reason, info);
    const bool is_inside = (double)x >= field->min && (double)x <= field->max;
    if (!is_inside) return refuse_range(field, value, info);
    if (field->type == CFG_U64) {
        *(uint64_t *)member = x;
        return ERR_OK;
    }
    if (x > UINT32_MAX) return refuse_value(field, value, "does not fit in 32 bits", info);
    *(uint32_t *)member = (uint32_t)x;
    return ERR_OK;
}

static err_t set_real(const cfg_field *field, void *member, const char *value, err_info *info)
{
    double x;
    const err_t err = cfg_parse_f64(value, &x);
    if (err != ERR_OK) return refuse_value(field, value, "is not a number", info);
    if (!(x >= field->min && x <= field->max)) return refuse_range(field, value, info);
    *(double *)member = x;
    return ERR_OK;
}

static err_t set_bool(const cfg_field *field, bool *member, const char *value, err_info *info)
{
    static const char *const words[2][4] = {{"false", "0", "no", "off"},
                                            {"true", "1", "yes", "on"}};
    for (size_t truth = 0; truth < 2; truth++) {
        for (size_t i = 0; i < 4; i++) {
            if (strcmp(words[truth][i], value) != 0) continue;
            *member = truth == 1;
            return ERR_OK;
        }
    }
    return refuse_value(field, value, "is neither true nor false", info);
}

static err_t set_choice(const cfg_field *field, uint32_t *member, const char *value, err_info *info)
{
    char list[MESSAGE_BYTES] = "";
    for (uint32_t i = 0; field->choices[i] != NULL; i++) {
        if (strcmp(field->choices[i], value) == 0) {
            *member = i;
            return ERR_OK;
        }
        const size_t used = strlen(list);
        snprintf(list + used, sizeof list - used, "%s%s", i > 0 ? ", " : "", field->choices[i]);
    }
    return err_set(info, ERR_BAD_CONFIG, "%s: \"%.*s\" is none of %s", field->name, SHOWN_BYTES_MAX,
                   value, list);
}

static err_t set_string(char **member, const char *value)
{
    char *copy = strdup(value);
    if (copy == NULL) return ERR_NO_MEMORY;
    free(*member);
    *member = copy;
    return ERR_OK;
}

static err_t append_string(cfg_strings *list, const char *value)
{
    char *copy = strdup(value);
    if (copy == NULL) return ERR_NO_MEMORY;
    char **items = reallocarray(list->items, list->n_items + 1, sizeof *items);
    if (items == NULL) {
        free(copy);
        return ERR_NO_MEMORY;
    }
    items[list->n_items] = copy;
    list->items = items;
    list->n_items++;
    return ERR_OK;
}

static void clear_strings(cfg_strings *list)
{
    for (size_t i = 0; i < list->n_items; i++)
        free(list->items[i]);
    free(list->items);
    *list = (cfg_strings){0};
}

static err_t set_member(const cfg_field *field, void *member, const char *value, err_info *info)
{
    switch (field->type) {
    case CFG_BOOL: return set_bool(field, member, value, info);
    case CFG_U32:
    case CFG_U64: return set_whole(field, member, value, info);
    case CFG_F64: return set_real(field, member, value, info);
    case CFG_CHOICE: return set_choice(field, member, value, info);
    case CFG_STRING: return set_string(member, value);
    case CFG_STRINGS: return append_string(member, value);
    }
    assert(false); /* a field has one of the types above */
    return ERR_BAD_CONFIG;
}

err_t cfg_set(const cfg_binding *bindings, size_t n_bindings, const char *name, const char *value,
              err_info *info)
{
    void *target;
    const cfg_field *field = cfg_find(bindings, n_bindings, name, &target);
    if (field == NULL) return refuse_unknown(bindings, n_bindings, name, info);
    const err_t err = set_member(field, (char *)target + field->offset, value, info);
    if (err == ERR_NO_MEMORY) return err_set(info, err, "%s: out of memory", field->name);
    return err;
}

void cfg_clear_list(const cfg_binding *bindings, size_t n_bindings, const char *name)
{
    void *target;
    const cfg_field *field = cfg_find(bindings, n_bindings, name, &target);
    assert(field != NULL);
    assert(field->type == CFG_STRINGS);
    clear_strings((cfg_strings *)((char *)target + field->offset));
}

err_t cfg_defaults(const cfg_binding *bindings, size_t n_bindings)
{
    for (size_t b = 0; b < n_bindings; b++) {
        const cfg_table *table = bindings[b].table;
        for (size_t i = 0; i < table->n_fields; i++) {
            const cfg_field *field = &table->fields[i];
            if (field->default_text == NULL) {
                assert(field->type == CFG_STRING || field->type == CFG_STRINGS);
                continue;
            }
            char *member = (char *)bindings[b].target + field->offset;
            const err_t err = set_member(field, member, field->default_text, NULL);
            if (err == ERR_NO_MEMORY) return err;
            assert(err == ERR_OK); /* a default that its own limits refuse */
        }
    }
    return ERR_OK;
}

static err_t copy_strings(const cfg_strings *from, cfg_strings *to)
{
    clear_strings(to);
    for (size_t i = 0; i < from->n_items; i++)
        TRY(append_string(to, from->items[i]));
    return ERR_OK;
}

static err_t copy_string(const char *from, char **to)
{
    if (from != NULL) return set_string(to, from);
    free(*to);
    *to = NULL;
    return ERR_OK;
}

static err_t copy_member(cfg_type type, const void *from, void *to)
{
    switch (type) {
    case CFG_BOOL: *(bool *)to = *(const bool *)from; return ERR_OK;
    case CFG_U32:
    case CFG_CHOICE: *(uint32_t *)to = *(const uint32_t *)from; return ERR_OK;
    case CFG_U64: *(uint64_t *)to = *(const uint64_t *)from; return ERR_OK;
    case CFG_F64: *(double *)to = *(const double *)from; return ERR_OK;
    case CFG_STRING: return copy_string(*(char *const *)from, to);
    case CFG_STRINGS: return copy_strings(from, to);
    }
    assert(false); /* a field has one of the types above */
    return ERR_BAD_CONFIG;
}

err_t cfg_copy(const cfg_table *table, const void *from, void *to)
{
    assert(from != to);
    for (size_t i = 0; i < table->n_fields; i++) {
        const cfg_field *field = &table->fields[i];
        TRY(copy_member(field->type, (const char *)from + field->offset,
                        (char *)to + field->offset));
    }
    return ERR_OK;
}

void cfg_deinit(const cfg_binding *bindings, size_t n_bindings)
{
    for (size_t b = 0; b < n_bindings; b++) {
        const cfg_table *table = bindings[b].table;
        for (size_t i = 0; i < table->n_fields; i++) {
            char *member = (char *)bindings[b].target + table->fields[i].offset;
            if (table->fields[i].type == CFG_STRINGS) clear_strings((cfg_strings *)member);
            if (table->fields[i].type != CFG_STRING) continue;
            free(*(char **)member);
            *(char **)member = NULL;
        }
    }
}
