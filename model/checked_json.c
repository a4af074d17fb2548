/* model/checked_json.c - see checked_json.h.
 *
 * The scanner is a loop over values with an explicit stack of open containers; it builds nothing. The
 * text is then copied behind a few NULs, because cJSON 1.7.15 reads one byte past a text that ends
 * after a comma (CVE-2023-53154), and the header of a mapped file may end at the end of a page. */
#include "model/checked_json.h"

#include "base/check.h"
#include "base/utf8.h"
#include "model/model_file.h"

#include <cjson/cJSON.h>
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    FILE_VALUES_MAX = 1 << 19, /* bounds the tree's memory: about 80 bytes each */
    PADDING_BYTES = 8,
    NUMBER_BYTES_MAX = 60, /* cJSON copies a number into 64 bytes and misreads longer ones */
    SMALL_OBJECT_KEYS = 32 /* compared on the stack */
};

/* ---- the scanner --------------------------------------------------------------------------------- */

typedef struct scanner {
    const char *at, *end;
    const char *problem;               /* NULL while all is well */
    char closer[MODEL_JSON_DEPTH_MAX]; /* of the open containers: '}' or ']' */
    uint32_t depth;
    size_t n_values, n_values_max;
} scanner;

static bool fail(scanner *s, const char *problem)
{
    if (s->problem == NULL) s->problem = problem;
    return false;
}

/* The next byte, or 0 at the end: no grammar rule accepts a NUL. */
static char peek(const scanner *s)
{
    return s->at < s->end ? *s->at : '\0';
}

static void skip_space(scanner *s)
{
    while (peek(s) == ' ' || peek(s) == '\n' || peek(s) == '\r' || peek(s) == '\t')
        s->at++;
}

static size_t skip_digits(scanner *s)
{
    const char *const begin = s->at;
    while (peek(s) >= '0' && peek(s) <= '9')
        s->at++;
    return (size_t)(s->at - begin);
}

static bool scan_number(scanner *s)
{
    const char *const begin = s->at;
    if (peek(s) == '-') s->at++;
    const bool has_leading_zero = peek(s) == '0';
    const size_t n_digits = skip_digits(s);
    if (n_digits == 0 || (has_leading_zero && n_digits > 1)) return fail(s, "a malformed number");
    if (peek(s) == '.') {
        s->at++;
        if (skip_digits(s) == 0) return fail(s, "a malformed number");
    }
    if (peek(s) == 'e' || peek(s) == 'E') {
        s->at++;
        if (peek(s) == '+' || peek(s) == '-') s->at++;
        if (skip_digits(s) == 0) return fail(s, "a malformed number");
    }
    if (s->at - begin > NUMBER_BYTES_MAX) return fail(s, "a number of too many digits");
    return true;
}

/* Four hexadecimal digits; 0 if they are not there, which no caller accepts either. */
static uint32_t scan_hex4(scanner *s)
{
    uint32_t value = 0;
    for (int i = 0; i < 4; i++, s->at++) {
        const char c = peek(s);
        if (!isxdigit((unsigned char)c)) return 0;
        value = value * 16 + (uint32_t)(c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
    }
    return value;
}

static bool scan_escape(scanner *s)
{
    const char c = peek(s);
    if (c != '\0' && strchr("\"\\/bfnrt", c) != NULL) {
        s->at++;
        return true;
    }
    if (c != 'u') return fail(s, "an unknown escape");
    s->at++;
    const uint32_t unit = scan_hex4(s);
    if (unit == 0) return fail(s, "a malformed \\u escape or \\u0000");
    if (unit < 0xd800 || unit > 0xdfff) return true;
    if (unit > 0xdbff || peek(s) != '\\') return fail(s, "a lone surrogate");
    s->at++;
    if (peek(s) != 'u') return fail(s, "a lone surrogate");
    s->at++;
    const uint32_t low = scan_hex4(s);
    if (low < 0xdc00 || low > 0xdfff) return fail(s, "a lone surrogate");
    return true;
}

static bool scan_string(scanner *s)
{
    if (peek(s) != '"') return fail(s, "no string where one is due");
    s->at++;
    while (s->at < s->end) {
        const char c = *s->at++;
        if (c == '"') return true;
        if ((unsigned char)c < 0x20) return fail(s, "a control character in a string");
        if (c == '\\' && !scan_escape(s)) return false;
    }
    return fail(s, "a string without an end");
}

static bool scan_key(scanner *s)
{
    skip_space(s);
    if (!scan_string(s)) return false;
    skip_space(s);
    if (peek(s) != ':') return fail(s, "no ':' after a key");
    s->at++;
    return true;
}

static bool scan_word(scanner *s)
{
    static const char *const words[] = {"true", "false", "null"};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        const size_t n = strlen(words[i]);
        if ((size_t)(s->end - s->at) >= n && memcmp(s->at, words[i], n) == 0) {
            s->at += n;
            return true;
        }
    }
    return fail(s, "no value where one is due");
}

/* A scalar, or the opening of a container. *is_open tells that a first element must follow. */
static bool scan_value(scanner *s, bool *is_open)
{
    *is_open = false;
    if (++s->n_values > s->n_values_max) return fail(s, "too many values");
    const char c = peek(s);
    if (c == '"') return scan_string(s);
    if (c == '-' || (c >= '0' && c <= '9')) return scan_number(s);
    if (c != '{' && c != '[') return scan_word(s);
    if (s->depth == MODEL_JSON_DEPTH_MAX) return fail(s, "nesting that is too deep");
    const char closer = c == '{' ? '}' : ']';
    s->at++;
    skip_space(s);
    if (peek(s) == closer) {
        s->at++;
        return true;
    }
    s->closer[s->depth++] = closer;
    *is_open = true;
    return c == '{' ? scan_key(s) : true;
}

/* After a whole value: closes containers up to a comma. Returns whether another value must follow. */
static bool scan_after_value(scanner *s)
{
    while (s->depth > 0) {
        const char closer = s->closer[s->depth - 1];
        skip_space(s);
        const char c = peek(s);
        if (c == ',') {
            s->at++;
            return closer == '}' ? scan_key(s) : true;
        }
        if (c != closer) return fail(s, "neither ',' nor a closing bracket after a value");
        s->at++;
        s->depth--;
    }
    return false;
}

static void scan_text(scanner *s)
{
    bool more = true;
    skip_space(s);
    if (peek(s) != '{') (void)fail(s, "no '{' at the beginning");
    while (more && s->problem == NULL) {
        bool is_open;
        skip_space(s);
        if (!scan_value(s, &is_open)) return;
        if (!is_open) more = scan_after_value(s);
    }
    if (s->problem != NULL) return;
    skip_space(s);
    if (s->at != s->end) (void)fail(s, "something after the end of the object");
}

/* ---- duplicate keys ------------------------------------------------------------------------------ */

static int compare_keys(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Sorting instead of comparing all pairs: a header may hold 10^5 names. */
static err_t check_keys(const model_json_text *source, const cJSON *object, err_info *info)
{
    const char *small[SMALL_OBJECT_KEYS];
    const char **keys = small;
    size_t n_keys = 0;
    for (const cJSON *item = object->child; item != NULL; item = item->next)
        n_keys++;
    if (n_keys > SMALL_OBJECT_KEYS) keys = malloc(n_keys * sizeof *keys);
    if (keys == NULL) return err_set(info, ERR_NO_MEMORY, "%s: out of memory", source->file);
    size_t i = 0;
    for (const cJSON *item = object->child; item != NULL; item = item->next)
        keys[i++] = item->string;
    qsort(keys, n_keys, sizeof *keys, compare_keys);
    err_t err = ERR_OK;
    for (i = 1; i < n_keys && err == ERR_OK; i++) {
        if (strcmp(keys[i - 1], keys[i]) == 0)
            err = err_set(info, ERR_BAD_MODEL, "%s: duplicate key %.100s", source->file, keys[i]);
    }
    if (keys != small) free(keys);
    return err;
}

/* Recursion is at most MODEL_JSON_DEPTH_MAX deep: the scanner has counted. */
static err_t check_tree(const model_json_text *source, const cJSON *item, err_info *info)
{
    if (cJSON_IsObject(item)) TRY(check_keys(source, item, info));
    for (const cJSON *child = item->child; child != NULL; child = child->next) {
        if (child->child != NULL) TRY(check_tree(source, child, info));
    }
    return ERR_OK;
}

err_t model_json_parse(const model_json_text *source, cJSON **out, err_info *info)
{
    *out = NULL;
    if (!utf8_valid(source->text, source->n_bytes))
        return err_set(info, ERR_BAD_MODEL, "%s: the JSON is not valid UTF-8", source->file);
    scanner s = {.at = source->text,
                 .end = source->text + source->n_bytes,
                 .n_values_max = source->n_values_max};
    scan_text(&s);
    if (s.problem != NULL)
        return err_set(info, ERR_BAD_MODEL, "%s: bad JSON, %s at byte %zu", source->file, s.problem,
                       (size_t)(s.at - source->text));

    char *const copy = calloc(1, source->n_bytes + PADDING_BYTES);
    if (copy == NULL) return err_set(info, ERR_NO_MEMORY, "%s: out of memory", source->file);
    memcpy(copy, source->text, source->n_bytes);
    cJSON *const tree = cJSON_ParseWithLength(copy, source->n_bytes + 1);
    free(copy);
    if (tree == NULL) return err_set(info, ERR_NO_MEMORY, "%s: out of memory", source->file);
    const err_t err = check_tree(source, tree, info);
    if (err != ERR_OK) {
        cJSON_Delete(tree);
        return err;
    }
    *out = tree;
    return ERR_OK;
}

/* ---- files --------------------------------------------------------------------------------------- */

err_t model_json_read(const char *dir, const char *name, cJSON **out, err_info *info)
{
    *out = NULL;
    model_json_text source = {.file = name, .n_values_max = FILE_VALUES_MAX};
    char *text;
    TRY(model_file_read(dir, name, MODEL_JSON_FILE_BYTES_MAX, &text, &source.n_bytes, info));
    source.text = text;
    const err_t err = model_json_parse(&source, out, info);
    free(text);
    return err;
}

/* ---- readers ------------------------------------------------------------------------------------- */

const char *model_json_show(const cJSON *item, char out[MODEL_JSON_SHOWN_BYTES])
{
    if (cJSON_IsString(item))
        (void)snprintf(out, MODEL_JSON_SHOWN_BYTES, "\"%.40s\"", item->valuestring);
    else if (cJSON_IsNumber(item))
        (void)snprintf(out, MODEL_JSON_SHOWN_BYTES, "%.17g", item->valuedouble);
    else if (cJSON_IsBool(item))
        return cJSON_IsTrue(item) ? "true" : "false";
    else if (cJSON_IsArray(item))
        return "an array";
    else if (cJSON_IsObject(item))
        return "an object";
    else
        return "null";
    return out;
}

const cJSON *model_json_member(const model_json_object *from, const char *key)
{
    const cJSON *const item = cJSON_GetObjectItemCaseSensitive(from->object, key);
    return item == NULL || cJSON_IsNull(item) ? NULL : item;
}

static const char *name_of(const cJSON *item)
{
    return item->string != NULL ? item->string : "an element";
}

err_t model_json_integer(const model_json_object *from, const cJSON *item, const uint64_t limits[2],
                         uint64_t *out)
{
    assert(limits[1] <= UINT64_C(1) << 53);
    char shown[MODEL_JSON_SHOWN_BYTES];
    if (!cJSON_IsNumber(item))
        return err_set(from->info, ERR_BAD_MODEL, "%s: %.80s: %s is not a number", from->file,
                       name_of(item), model_json_show(item, shown));
    const double x = item->valuedouble;
    /* Written so that a NaN fails. */
    if (!(x >= (double)limits[0] && x <= (double)limits[1]))
        return err_set(from->info, ERR_BAD_MODEL, "%s: %.80s: %s is outside [%llu, %llu]",
                       from->file, name_of(item), model_json_show(item, shown),
                       (unsigned long long)limits[0], (unsigned long long)limits[1]);
    if (x != floor(x))
        return err_set(from->info, ERR_BAD_MODEL, "%s: %.80s: %s is not an integer", from->file,
                       name_of(item), model_json_show(item, shown));
    *out = (uint64_t)x;
    return ERR_OK;
}

err_t model_json_u32(const model_json_object *from, const char *key, const uint32_t limits[2],
                     uint32_t *out)
{
    const cJSON *const item = model_json_member(from, key);
    if (item == NULL)
        return err_set(from->info, ERR_BAD_MODEL, "%s: %s is missing", from->file, key);
    uint64_t value = 0;
    TRY(model_json_integer(from, item, (const uint64_t[2]){limits[0], limits[1]}, &value));
    *out = (uint32_t)value;
    return ERR_OK;
}

err_t model_json_real(const model_json_object *from, const char *key, const double limits[2],
                      float *out)
{
    char shown[MODEL_JSON_SHOWN_BYTES];
    const cJSON *const item = model_json_member(from, key);
    if (item == NULL)
        return err_set(from->info, ERR_BAD_MODEL, "%s: %s is missing", from->file, key);
    if (!cJSON_IsNumber(item))
        return err_set(from->info, ERR_BAD_MODEL, "%s: %s: %s is not a number", from->file, key,
                       model_json_show(item, shown));
    if (!(item->valuedouble >= limits[0] && item->valuedouble <= limits[1]))
        return err_set(from->info, ERR_BAD_MODEL, "%s: %s: %s is outside [%g, %g]", from->file, key,
                       model_json_show(item, shown), limits[0], limits[1]);
    *out = (float)item->valuedouble;
    return ERR_OK;
}
