/* model/regex_translate.c - expressions written for Oniguruma (Ruby's syntax), said for PCRE2.
 *
 * The two differ quietly: \s also holds U+180E in PCRE2, \v is a class there and one character here,
 * \p{Han} counts script extensions there, and their tables are of different versions of Unicode. So
 * this is a list of what is known to be alike. Classes that are defined by Unicode are rewritten: \s is
 * spelled out, and a category also names the characters that PCRE2's table may be too old for
 * (unicode_since.h). Everything else is refused by name, before a text has been cut wrongly. */
#include "model/regex.h"

#include "base/check.h"
#include "base/utf8.h"
#include "model/unicode_since.h"

#include <stdio.h>
#include <string.h>

enum { GROUPS_MAX = 32 };

typedef struct translation {
    const regex_source *source;
    const char *at, *end;
    text_buffer *out;
    err_info *info;
    uint32_t depth;   /* of open groups */
    bool after_group; /* what stands before can be repeated by '?' only */
    bool after_atom;  /* what stands before can be repeated */
} translation;

static const char space_members[] =
    "\\t-\\r "
    "\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}";
static const char other_members[] =
    "\\x{0}-\\x{8}\\x{e}-\\x{1f}\\x{21}-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}\\x{1681}-\\x{1fff}"
    "\\x{200b}-\\x{2027}\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}\\x{3001}-\\x{"
    "10ffff}";

static const char *const categories[] = {
    "L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M", "Mn", "Mc", "Me", "N",  "Nd", "Nl", "No", "P",  "Pc",
    "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "S", "Sm", "Sc", "Sk", "So", "Z",  "Zs", "Zl", "Zp", "Cc"};
static const char *const scripts[] = {"Han",      "Hiragana", "Katakana",   "Hangul", "Latin",
                                      "Cyrillic", "Greek",    "Thai",       "Arabic", "Hebrew",
                                      "Bopomofo", "Armenian", "Devanagari", "Lao",    "Khmer"};

static err_t refuse(const translation *t, const char *what)
{
    return err_set(t->info, ERR_UNSUPPORTED,
                   "%s: the pattern \"%.80s\" has %s, which is not supported", t->source->what,
                   t->source->text.bytes, what);
}

static err_t malformed(const translation *t, const char *what)
{
    return err_set(t->info, ERR_BAD_MODEL, "%s: the pattern \"%.80s\" is malformed: %s",
                   t->source->what, t->source->text.bytes, what);
}

static char peek(const translation *t, size_t ahead)
{
    return (size_t)(t->end - t->at) > ahead ? t->at[ahead] : '\0';
}

static bool begins(const translation *t, const char *with)
{
    const size_t n = strlen(with);
    return (size_t)(t->end - t->at) >= n && memcmp(t->at, with, n) == 0;
}

static err_t put(translation *t, const char *text)
{
    const err_t err = text_buffer_append(t->out, text, strlen(text));
    return err == ERR_OK ? err : err_set(t->info, err, "%s: out of memory", t->source->what);
}

static err_t put_character(translation *t, uint32_t c)
{
    char text[16];
    (void)snprintf(text, sizeof text, "\\x{%x}", c);
    return put(t, text);
}

/* Copies one character of the source. */
static err_t copy(translation *t)
{
    const size_t n = utf8_next(t->at, (size_t)(t->end - t->at)).bytes;
    const err_t err = text_buffer_append(t->out, t->at, n);
    t->at += n;
    return err == ERR_OK ? err : err_set(t->info, err, "%s: out of memory", t->source->what);
}

/* ---- properties ---------------------------------------------------------------------------------- */

static bool is_listed(const char *name, const char *const *list, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(list[i], name) == 0) return true;
    return false;
}

/* The members of a category, for inside a class. */
static err_t put_category(translation *t, const char *name)
{
    char text[48];
    (void)snprintf(text, sizeof text, "\\p{%s}", name);
    TRY(put(t, text));
    for (size_t i = 0; i < N_UNICODE_SINCE; i++) {
        const unicode_since *const u = &unicode_since_2021[i];
        if (u->category[0] != name[0] || (name[1] != '\0' && u->category[1] != name[1])) continue;
        (void)snprintf(text, sizeof text, "\\x{%x}-\\x{%x}", u->first, u->last);
        TRY(put(t, text));
    }
    return ERR_OK;
}

/* At "\p{" or "\P{". */
static err_t property(translation *t, bool in_class)
{
    const char *const name_begin = t->at + 3;
    const char *const close = memchr(name_begin, '}', (size_t)(t->end - name_begin));
    if (close == NULL) return malformed(t, "a property without an end");
    const bool is_caret = *name_begin == '^';
    const bool negated = (t->at[1] == 'P') != is_caret;
    char name[24] = "", shown[40];
    const char *const begin = name_begin + is_caret;
    (void)snprintf(name, sizeof name, "%.*s", (int)(close - begin), begin);
    (void)snprintf(shown, sizeof shown, "\\p{%.24s}", name);
    const bool is_category = is_listed(name, categories, sizeof categories / sizeof categories[0]);
    if (!is_category && !is_listed(name, scripts, sizeof scripts / sizeof scripts[0]))
        return refuse(t, shown);
    if (negated && in_class) return refuse(t, "a negated property in a class");
    t->at = close + 1;
    if (!in_class) TRY(put(t, negated ? "[^" : "["));
    if (is_category) {
        TRY(put_category(t, name));
    } else { /* without "sc:" script extensions would count */
        char text[48];
        (void)snprintf(text, sizeof text, "\\p{sc:%s}", name);
        TRY(put(t, text));
    }
    return in_class ? ERR_OK : put(t, "]");
}

/* ---- escapes ------------------------------------------------------------------------------------- */

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

/* \xHH, \x{H...} and \uHHHH: the value, which is a character. */
static err_t code_point(translation *t)
{
    const bool is_u = t->at[1] == 'u', is_braced = !is_u && peek(t, 2) == '{';
    const size_t n_max = is_u ? 4 : is_braced ? 6 : 2;
    size_t n = 0;
    uint32_t value = 0;
    t->at += is_braced ? 3 : 2;
    for (; n < n_max && hex_digit(peek(t, 0)) >= 0; n++, t->at++)
        value = value * 16 + (uint32_t)hex_digit(*t->at);
    if (n == 0 || (is_u && n != 4)) return malformed(t, "a character's code without digits");
    if (is_braced && peek(t, 0) != '}') return malformed(t, "a character's code without '}'");
    if (is_braced) t->at++;
    if (value > 0x10ffff || (value >= 0xd800 && value < 0xe000))
        return malformed(t, "a code that is no character");
    if (!is_u && !is_braced && value >= 0x80) return refuse(t, "a single byte \\xHH");
    return put_character(t, value);
}

static err_t space_class(translation *t, bool in_class)
{
    const bool negated = t->at[1] == 'S';
    t->at += 2;
    if (in_class) return put(t, negated ? other_members : space_members);
    TRY(put(t, negated ? "[^" : "["));
    TRY(put(t, space_members));
    return put(t, "]");
}

static err_t digit_class(translation *t, bool in_class)
{
    const bool negated = t->at[1] == 'D';
    if (negated && in_class) return refuse(t, "\\D in a class");
    t->at += 2;
    if (!in_class) TRY(put(t, negated ? "[^" : "["));
    TRY(put_category(t, "Nd"));
    return in_class ? ERR_OK : put(t, "]");
}

/* At a backslash. */
static err_t escape(translation *t, bool in_class)
{
    const char c = peek(t, 1);
    if ((c == 'p' || c == 'P') && peek(t, 2) == '{') return property(t, in_class);
    if (c == 's' || c == 'S') return space_class(t, in_class);
    if (c == 'd' || c == 'D') return digit_class(t, in_class);
    if (c == 'x' || c == 'u') return code_point(t);
    static const char named[] = "rntfve", value[] = {'\r', '\n', '\t', '\f', '\v', 0x1b};
    const char *const found = c != '\0' ? strchr(named, c) : NULL;
    const bool is_mark = (unsigned char)c > ' ' && (unsigned char)c < 0x7f && hex_digit(c) < 0 &&
                         !((c | 0x20) >= 'a' && (c | 0x20) <= 'z');
    if (found == NULL && !is_mark && c != ' ') {
        const char shown[3] = {'\\', c, '\0'};
        return c == '\0' ? malformed(t, "a backslash at the end") : refuse(t, shown);
    }
    t->at += 2;
    return put_character(t, found != NULL ? (uint32_t)value[found - named] : (uint32_t)c);
}

/* ---- classes ------------------------------------------------------------------------------------- */

/* At '['. Ranges need no care: both ends are single characters here and there. */
static err_t character_class(translation *t)
{
    t->at++;
    TRY(put(t, "["));
    if (peek(t, 0) == '^') TRY(copy(t));
    if (peek(t, 0) == ']') return refuse(t, "']' as the first of a class");
    while (t->at < t->end && *t->at != ']') {
        if (*t->at == '[') return refuse(t, "a class in a class");
        if (begins(t, "&&")) return refuse(t, "&& in a class");
        if (*t->at == '\\')
            TRY(escape(t, true));
        else
            TRY(copy(t));
    }
    if (t->at == t->end) return malformed(t, "a class without an end");
    return copy(t);
}

/* ---- groups and repetitions ---------------------------------------------------------------------- */

static err_t open_group(translation *t)
{
    static const char *const openings[] = {"(?:", "(?i:", "(?=", "(?!", "(?<=", "(?<!", "(?>"};
    if (t->depth == GROUPS_MAX) return refuse(t, "groups that are nested too deep");
    t->depth++;
    t->after_atom = false;
    if (peek(t, 1) != '?') {
        t->at++;
        return put(t, "(?:"); /* nobody asks what a group has matched */
    }
    for (size_t i = 0; i < sizeof openings / sizeof openings[0]; i++) {
        if (!begins(t, openings[i])) continue;
        t->at += strlen(openings[i]);
        return put(t, openings[i]);
    }
    return refuse(t, "a group with other options than i");
}

static err_t close_group(translation *t)
{
    if (t->depth == 0) return malformed(t, "')' without '('");
    t->depth--;
    t->after_group = true;
    t->after_atom = true;
    return copy(t);
}

/* {n}, {n,} or {n,m}: its length, or 0. */
static size_t interval_bytes(const translation *t)
{
    size_t i = 1, n_digits = 0, n_commas = 0;
    for (;; i++) {
        const char c = peek(t, i);
        if (c >= '0' && c <= '9')
            n_digits++;
        else if (c == ',' && n_digits > 0)
            n_commas++;
        else
            break;
    }
    return peek(t, i) == '}' && n_digits > 0 && n_digits < 8 && n_commas <= 1 ? i + 1 : 0;
}

static err_t repetition(translation *t)
{
    const char c = *t->at;
    if (!t->after_atom) return malformed(t, "a repetition of nothing");
    if (t->after_group && c != '?') return refuse(t, "a repeated group");
    size_t n = 1;
    if (c == '{') {
        n = interval_bytes(t);
        if (n == 0) return refuse(t, "a '{' that begins no {n,m}");
        const char next = peek(t, n); /* means something else in Ruby's syntax */
        if (next == '?' || next == '+' || next == '*' || next == '{')
            return refuse(t, "{n,m} with a repetition behind it");
    }
    for (size_t i = 0; i < n; i++)
        TRY(copy(t));
    if (c != '{' && (peek(t, 0) == '?' || peek(t, 0) == '+')) TRY(copy(t));
    t->after_atom = false;
    return ERR_OK;
}

/* Ends of lines, as in Ruby. No line begins behind a newline that is the text's last. */
static err_t line_end(translation *t)
{
    const bool is_begin = *t->at++ == '^';
    t->after_atom = false;
    return put(t, is_begin ? "(?:\\A|(?<=\\n)(?!\\z))" : "(?:(?=\\n)|(?<!\\n)\\z)");
}

static err_t translate_next(translation *t)
{
    const char c = *t->at;
    if (c == '(') return open_group(t);
    if (c == ')') return close_group(t);
    if (c == '*' || c == '+' || c == '?' || c == '{') return repetition(t);
    t->after_group = false;
    t->after_atom = c != '|';
    if (c == '[') return character_class(t);
    if (c == '\\') return escape(t, false);
    if (c == '^' || c == '$') return line_end(t);
    if (c == '\0') return refuse(t, "a NUL");
    return copy(t);
}

err_t regex_translate(const regex_source *source, text_buffer *out, err_info *info)
{
    translation t = {.source = source,
                     .at = source->text.bytes,
                     .end = source->text.bytes + source->text.n_bytes,
                     .out = out,
                     .info = info};
    assert(utf8_valid(source->text.bytes, source->text.n_bytes));
    while (t.at < t.end)
        TRY(translate_next(&t));
    if (t.depth > 0) return malformed(&t, "'(' without ')'");
    return ERR_OK;
}

err_t regex_escape(text_view text, text_buffer *out)
{
    for (size_t i = 0; i < text.n_bytes; i++) {
        const unsigned char c = (unsigned char)text.bytes[i];
        const bool is_mark = c < 0x80 && strchr("\\^$.[]|()?*+{}#-", c) != NULL && c != 0;
        if (is_mark) TRY(text_buffer_append(out, "\\", 1));
        TRY(text_buffer_append(out, text.bytes + i, 1));
    }
    return ERR_OK;
}
