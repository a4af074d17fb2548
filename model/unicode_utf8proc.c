/* model/unicode_utf8proc.c - see unicode.h. The only include of utf8proc.
 *
 * The tokenizers library normalises by the tables of Unicode 9 (2016). What Unicode has gained since is
 * left as it is here too: such a character is a boundary, and the text between two is normalised.
 *
 * utf8proc decomposes characters and composes a text; in between marks must be in canonical order,
 * which it does by swapping neighbours: n^2 for a run of n marks. So that step is ours. */
#include "model/unicode.h"

#include "base/check.h"
#include "base/utf8.h"
#include "model/unicode_since.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

enum {
    DECOMPOSED_MAX = 32, /* characters of one: 18 in Unicode 15 */
    N_CLASSES = 256,
    SMALL_RUN = 16
};

/* ---- characters ---------------------------------------------------------------------------------- */

uint32_t unicode_first(text_view text, size_t *n_bytes)
{
    const uint8_t *const at = (const uint8_t *)text.bytes;
    *n_bytes = utf8_next(text.bytes, text.n_bytes).bytes;
    switch (*n_bytes) {
    case 1: return at[0];
    case 2: return (at[0] & 0x1fu) << 6 | (at[1] & 0x3fu);
    case 3: return (at[0] & 0xfu) << 12 | (at[1] & 0x3fu) << 6 | (at[2] & 0x3fu);
    default:
        return (at[0] & 7u) << 18 | (at[1] & 0x3fu) << 12 | (at[2] & 0x3fu) << 6 | (at[3] & 0x3fu);
    }
}

uint32_t unicode_last(text_view text, size_t *n_bytes)
{
    size_t begin = text.n_bytes - 1;
    while (begin > 0 && ((uint8_t)text.bytes[begin] & 0xc0) == 0x80)
        begin--;
    return unicode_first((text_view){text.bytes + begin, text.n_bytes - begin}, n_bytes);
}

bool unicode_is_space(uint32_t c)
{
    return (c >= 9 && c <= 13) || c == ' ' || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f ||
           c == 0x205f || c == 0x3000;
}

/* Of a character that utf8proc may be too old for. */
static bool is_newer_word(uint32_t c)
{
    for (size_t i = 0; i < N_UNICODE_SINCE; i++) {
        const unicode_since *const u = &unicode_since_2021[i];
        if (c < u->first || c > u->last) continue;
        const char *const name = u->category;
        return name[0] == 'L' || name[0] == 'M' || (name[0] == 'N' && name[1] != 'o') ||
               (name[0] == 'P' && name[1] == 'c');
    }
    return false;
}

bool unicode_is_word(uint32_t c)
{
    switch (utf8proc_category((utf8proc_int32_t)c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC: return true;
    case UTF8PROC_CATEGORY_CN: return is_newer_word(c);
    default: /* joiners, and the letters in circles and squares, which are alphabetic symbols */
        return c == 0x200c || c == 0x200d || (c >= 0x24b6 && c <= 0x24e9) ||
               (c >= 0x1f130 && c <= 0x1f149) || (c >= 0x1f150 && c <= 0x1f169) ||
               (c >= 0x1f170 && c <= 0x1f189);
    }
}

static err_t append_character(text_buffer *out, utf8proc_int32_t c)
{
    utf8proc_uint8_t bytes[4];
    const utf8proc_ssize_t n = utf8proc_encode_char(c, bytes);
    return text_buffer_append(out, (const char *)bytes, (size_t)n);
}

err_t unicode_lower(text_view text, text_buffer *out)
{
    for (size_t i = 0, n; i < text.n_bytes; i += n) {
        const uint32_t c = unicode_first((text_view){text.bytes + i, text.n_bytes - i}, &n);
        if (c == 0x130) { /* the one character whose lower case is two */
            TRY(text_buffer_append(out, "i\xcc\x87", 3));
            continue;
        }
        TRY(append_character(out, utf8proc_tolower((utf8proc_int32_t)c)));
    }
    return ERR_OK;
}

/* ---- normal forms -------------------------------------------------------------------------------- */

typedef struct characters {
    utf8proc_int32_t *at; /* [n] of [room] */
    size_t n, room;
} characters;

static err_t reserve(characters *c, size_t n_more)
{
    if (c->room - c->n >= n_more) return ERR_OK;
    const size_t room = max_size(c->room * 2, c->n + n_more);
    utf8proc_int32_t *const at = realloc(c->at, room * sizeof *at);
    if (at == NULL) return ERR_NO_MEMORY;
    c->at = at;
    c->room = room;
    return ERR_OK;
}

/* Since Unicode 9: characters with a decomposition or a class of marks, and those that compose to such.
 * Found by asking the library about every character that utf8proc 2.8 (Unicode 15) changes; those of
 * Unicode 16, which later versions of utf8proc know, by its table. */
static const uint32_t since_9[][2] = {
    {0x7fd, 0x7fd},     {0x897, 0x89f},     {0x8ca, 0x8d3},     {0x9fe, 0x9fe},
    {0xc3c, 0xc3c},     {0xd3b, 0xd3c},     {0xeba, 0xeba},     {0x1715, 0x1715},
    {0x1abf, 0x1ace},   {0x1df6, 0x1dfa},   {0x32ff, 0x32ff},   {0xa7f1, 0xa7f4},
    {0xa82c, 0xa82c},   {0xab69, 0xab69},   {0x105c9, 0x105c9}, {0x105d2, 0x105d2},
    {0x105da, 0x105da}, {0x105e4, 0x105e4}, {0x10781, 0x10785}, {0x10787, 0x107b0},
    {0x107b2, 0x107ba}, {0x10d24, 0x10d27}, {0x10d69, 0x10d6d}, {0x10eab, 0x10eac},
    {0x10efc, 0x10eff}, {0x10f46, 0x10f50}, {0x10f82, 0x10f85}, {0x11070, 0x11070},
    {0x1133b, 0x1133b}, {0x11382, 0x113e2}, {0x1145e, 0x1145e}, {0x11839, 0x1183a},
    {0x11930, 0x11930}, {0x11938, 0x11938}, {0x1193d, 0x1193e}, {0x11943, 0x11943},
    {0x119e0, 0x119e0}, {0x11a34, 0x11a34}, {0x11a47, 0x11a47}, {0x11a99, 0x11a99},
    {0x11d42, 0x11d42}, {0x11d44, 0x11d45}, {0x11d97, 0x11d97}, {0x11f41, 0x11f42},
    {0x1611e, 0x1612f}, {0x16d63, 0x16d6a}, {0x16ff0, 0x16ff1}, {0x1ccd6, 0x1ccf9},
    {0x1e030, 0x1e06d}, {0x1e08f, 0x1e08f}, {0x1e130, 0x1e136}, {0x1e2ae, 0x1e2ae},
    {0x1e2ec, 0x1e2ef}, {0x1e4ec, 0x1e4ef}, {0x1e5ee, 0x1e5ef}, {0x1f16c, 0x1f16c},
    {0x1fbf0, 0x1fbf9}};

static bool is_since_9(uint32_t c)
{
    size_t low = 0, high = sizeof since_9 / sizeof since_9[0];
    if (c < since_9[0][0]) return false;
    while (high - low > 1) { /* since_9[low] begins at or before c */
        const size_t middle = low + (high - low) / 2;
        if (since_9[middle][0] <= c)
            low = middle;
        else
            high = middle;
    }
    return c <= since_9[low][1];
}

static err_t decompose(text_view text, utf8proc_option_t options, characters *out)
{
    for (size_t i = 0, n; i < text.n_bytes; i += n) {
        const uint32_t c = unicode_first((text_view){text.bytes + i, text.n_bytes - i}, &n);
        int boundary = 0;
        TRY(reserve(out, DECOMPOSED_MAX));
        if (is_since_9(c)) {
            out->at[out->n++] = (utf8proc_int32_t)c;
            continue;
        }
        const utf8proc_ssize_t n_new = utf8proc_decompose_char(
            (utf8proc_int32_t)c, out->at + out->n, DECOMPOSED_MAX, options, &boundary);
        assert(n_new > 0);
        assert(n_new <= DECOMPOSED_MAX);
        out->n += (size_t)n_new;
    }
    return ERR_OK;
}

static unsigned class_of(utf8proc_int32_t c)
{
    if (c < 0x300 || is_since_9((uint32_t)c)) return 0;
    return (unsigned)utf8proc_get_property(c)->combining_class & (N_CLASSES - 1);
}

static void sort_few(utf8proc_int32_t *at, size_t n)
{
    for (size_t i = 1; i < n; i++) {
        const utf8proc_int32_t c = at[i];
        size_t j = i;
        for (; j > 0 && class_of(at[j - 1]) > class_of(c); j--)
            at[j] = at[j - 1];
        at[j] = c;
    }
}

/* Stable, by counting; `copy` has room for n. */
static void sort_many(utf8proc_int32_t *at, size_t n, utf8proc_int32_t *copy)
{
    size_t place[N_CLASSES + 1] = {0};
    memcpy(copy, at, n * sizeof *at);
    for (size_t i = 0; i < n; i++)
        place[class_of(copy[i]) + 1]++;
    for (size_t i = 1; i <= N_CLASSES; i++)
        place[i] += place[i - 1];
    for (size_t i = 0; i < n; i++)
        at[place[class_of(copy[i])]++] = copy[i];
}

/* Canonical order: the marks of every run by their class, equal ones as they stand. */
static err_t order_marks(characters *c)
{
    for (size_t i = 0; i < c->n; i++) {
        size_t end = i;
        while (end < c->n && class_of(c->at[end]) != 0)
            end++;
        const size_t n = end - i;
        if (n > 1 && n <= SMALL_RUN) sort_few(c->at + i, n);
        if (n > SMALL_RUN) {
            utf8proc_int32_t *const copy = malloc(n * sizeof *copy);
            if (copy == NULL) return ERR_NO_MEMORY;
            sort_many(c->at + i, n, copy);
            free(copy);
        }
        i = end;
    }
    return ERR_OK;
}

static void compose(characters *c, utf8proc_option_t options)
{
    size_t n_out = 0;
    for (size_t i = 0; i < c->n;) {
        size_t end = i;
        while (end < c->n && !is_since_9((uint32_t)c->at[end]))
            end++;
        const utf8proc_ssize_t n =
            utf8proc_normalize_utf32(c->at + i, (utf8proc_ssize_t)(end - i), options);
        assert(n >= 0);
        memmove(c->at + n_out, c->at + i, (size_t)n * sizeof *c->at);
        n_out += (size_t)n;
        if (end < c->n) c->at[n_out++] = c->at[end++];
        i = end;
    }
    c->n = n_out;
}

static err_t normalize(text_view text, utf8proc_option_t options, characters *c, text_buffer *out)
{
    TRY(reserve(c, text.n_bytes + DECOMPOSED_MAX));
    TRY(decompose(text, options, c));
    TRY(order_marks(c));
    if ((options & UTF8PROC_COMPOSE) != 0) compose(c, options);
    TRY(text_buffer_reserve(out, c->n)); /* at least a byte for each */
    for (size_t i = 0; i < c->n; i++)
        TRY(append_character(out, c->at[i]));
    return ERR_OK;
}

/* Nothing below U+0300 changes by composition, nothing below U+0080 at all. */
static bool is_inert(unicode_form form, text_view text)
{
    const uint8_t first = form == UNICODE_NFC ? 0xcc : 0x80; /* U+0300 is CC 80 */
    for (size_t i = 0; i < text.n_bytes; i++)
        if ((uint8_t)text.bytes[i] >= first) return false;
    return true;
}

err_t unicode_normalize(unicode_form form, text_view text, text_buffer *out)
{
    static const int options[] = {
        [UNICODE_NFC] = UTF8PROC_STABLE | UTF8PROC_COMPOSE,
        [UNICODE_NFD] = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE,
        [UNICODE_NFKC] = UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT,
        [UNICODE_NFKD] = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT};
    if (is_inert(form, text)) return text_buffer_append(out, text.bytes, text.n_bytes);
    characters c = {0};
    const err_t err = normalize(text, (utf8proc_option_t)options[form], &c, out);
    free(c.at);
    return err;
}
