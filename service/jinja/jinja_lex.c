/* After jinja2/lexer.py (version 3.1), whose whitespace rules are regular expressions; here each is a
 * small function, and the expression is in its comment. */
#include "service/jinja/jinja_lex.h"

#include "base/check.h"
#include "base/utf8.h"
#include "service/jinja/jinja_lex_literal.h"
#include "service/jinja/jinja_text.h"

#include <string.h>

enum { BRACKETS_MAX = 200, SOURCE_BYTES_MAX = 8 << 20 };

typedef struct lexer {
    jinja_lex_source src;
    size_t at; /* the first byte not read yet */
    uint32_t line;
    bool is_line_start; /* what was read last ended a line */
    char brackets[BRACKETS_MAX];
    size_t n_brackets;
    jinja_tokens *out;
    size_t capacity;
    jinja_heap *heap;
    err_info *info;
} lexer;

static err_t fail(lexer *lx, err_t code, const char *what)
{
    return err_set(lx->info, code, "line %u: %s", lx->line, what);
}

static err_t push(lexer *lx, jinja_token_kind kind, jinja_value value)
{
    if (lx->out->n == lx->capacity) {
        lx->capacity = lx->capacity * 2 + 64;
        jinja_token *grown = jinja_heap_take(lx->heap, lx->capacity, sizeof *grown);
        if (grown == NULL) return fail(lx, ERR_NO_MEMORY, "no memory for its words");
        if (lx->out->n > 0) memcpy(grown, lx->out->at, lx->out->n * sizeof *grown);
        lx->out->at = grown;
    }
    lx->out->at[lx->out->n++] =
        (jinja_token){.kind = (uint8_t)kind, .line = lx->line, .value = value};
    return ERR_OK;
}

static bool looking_at(const lexer *lx, size_t at, const char *word)
{
    const size_t n = strlen(word);
    return lx->src.n_bytes - at >= n && memcmp(lx->src.text + at, word, n) == 0;
}

static size_t skip_spaces(const lexer *lx, size_t at)
{
    jinja_trim_left(lx->src.text, &at, lx->src.n_bytes);
    return at;
}

/* Everything up to `end` has been read. */
static void move_to(lexer *lx, size_t end)
{
    for (size_t i = lx->at; i < end; i++)
        lx->line += lx->src.text[i] == '\n';
    lx->is_line_start = end > lx->at ? lx->src.text[end - 1] == '\n' : lx->is_line_start;
    lx->at = end;
}

/* The end of a tag at `at`: -%}\s* or %}, which with trim_blocks takes one newline along (`trims`), or
 * +%}, which does not. 0 if there is none. */
static size_t tag_end(const lexer *lx, size_t at, const char *mark, bool trims)
{
    if (at < lx->src.n_bytes && lx->src.text[at] == '-' && looking_at(lx, at + 1, mark))
        return skip_spaces(lx, at + 3);
    if (trims && at < lx->src.n_bytes && lx->src.text[at] == '+' && looking_at(lx, at + 1, mark))
        return at + 3;
    if (!looking_at(lx, at, mark)) return 0;
    return at + 2 + (trims && looking_at(lx, at + 2, "\n"));
}

/* The text before a tag whose first two bytes are at `tag`. */
static err_t push_text(lexer *lx, size_t tag, bool is_print)
{
    const char *text = lx->src.text;
    const char sign = tag + 2 < lx->src.n_bytes ? text[tag + 2] : '\0';
    const size_t begin = lx->at;
    size_t end = tag;
    if (sign == '-') {
        jinja_trim_right(text, begin, &end);
    } else if (sign != '+' && !is_print) { /* lstrip_blocks */
        size_t last = tag;
        while (last > begin && text[last - 1] != '\n')
            last--;
        size_t first = last;
        jinja_trim_left(text, &first, tag);
        if ((last > begin || lx->is_line_start) && first == tag) end = last;
    }
    if (end == begin) return ERR_OK;
    return push(lx, JINJA_T_DATA, jinja_string(text + begin, end - begin));
}

static size_t after_sign(const lexer *lx, size_t at)
{
    return at + (looking_at(lx, at, "-") || looking_at(lx, at, "+"));
}

/* \s*word\s* and the end of the tag; 0 if it is another tag. */
static size_t word_tag(const lexer *lx, size_t tag, const char *word, bool trims)
{
    size_t at = skip_spaces(lx, after_sign(lx, tag + 2));
    if (!looking_at(lx, at, word)) return 0;
    at = skip_spaces(lx, at + strlen(word));
    return at == lx->src.n_bytes ? 0 : tag_end(lx, at, "%}", trims);
}

static err_t lex_raw(lexer *lx, size_t body)
{
    move_to(lx, body);
    for (size_t tag = body; tag < lx->src.n_bytes; tag++) {
        if (!looking_at(lx, tag, "{%")) continue;
        const size_t end = word_tag(lx, tag, "endraw", true);
        if (end == 0) continue;
        TRY(push_text(lx, tag, false));
        move_to(lx, end);
        return ERR_OK;
    }
    return fail(lx, ERR_BAD_MODEL, "{% raw %} has no end");
}

static err_t lex_comment(lexer *lx, size_t tag)
{
    const size_t body = after_sign(lx, tag + 2);
    for (size_t at = body; at < lx->src.n_bytes; at++) {
        const size_t end = tag_end(lx, at, "#}", true);
        if (end == 0) continue;
        move_to(lx, end);
        return ERR_OK;
    }
    return fail(lx, ERR_BAD_MODEL, "a comment has no end");
}

static err_t lex_bracket(lexer *lx, char c)
{
    static const char opening[] = "([{", closing[] = ")]}";
    if (strchr(opening, c) != NULL) {
        if (lx->n_brackets == BRACKETS_MAX)
            return fail(lx, ERR_UNSUPPORTED, "brackets this deep are not supported");
        lx->brackets[lx->n_brackets++] = closing[strchr(opening, c) - opening];
    } else if (strchr(closing, c) != NULL) {
        if (lx->n_brackets == 0 || lx->brackets[--lx->n_brackets] != c)
            return err_set(lx->info, ERR_BAD_MODEL, "line %u: unexpected '%c'", lx->line, c);
    }
    return ERR_OK;
}

static err_t lex_operator(lexer *lx)
{
    static const char *const operators[] = {"//", "**", "==", "!=", ">=", "<=", NULL};
    const char c = lx->src.text[lx->at];
    size_t n = 1;
    for (size_t i = 0; operators[i] != NULL; i++)
        n = looking_at(lx, lx->at, operators[i]) ? 2 : n;
    if (n == 1 && (c == '\0' || strchr("+-/*%~[](){}>=<.:|,;", c) == NULL)) {
        if (c >= ' ' && c <= '~')
            return err_set(lx->info, ERR_BAD_MODEL, "line %u: unexpected '%c'", lx->line, c);
        return fail(lx, c < 0 ? ERR_UNSUPPORTED : ERR_BAD_MODEL,
                    c < 0 ? "a name outside ASCII is not supported" : "unexpected character");
    }
    if (n == 1) TRY(lex_bracket(lx, c));
    TRY(push(lx, JINJA_T_OPERATOR, jinja_string(lx->src.text + lx->at, n)));
    move_to(lx, lx->at + n);
    return ERR_OK;
}

static err_t lex_word(lexer *lx)
{
    const size_t at = lx->at;
    const char c = lx->src.text[at];
    jinja_value value;
    jinja_token_kind kind = JINJA_T_NAME;
    size_t end;
    if (c >= '0' && c <= '9') {
        TRY(jinja_lex_number(&lx->src, at, lx->line, &value, &end, lx->info));
        kind = value.type == JINJA_FLOAT ? JINJA_T_FLOAT : JINJA_T_INTEGER;
    } else if (c == '"' || c == '\'') {
        TRY(jinja_lex_string(lx->heap, &lx->src, at, lx->line, &value, &end, lx->info));
        kind = JINJA_T_STRING;
    } else if (jinja_lex_name(&lx->src, at, &end)) {
        value = jinja_string(lx->src.text + at, end - at);
    } else {
        return lex_operator(lx);
    }
    TRY(push(lx, kind, value));
    move_to(lx, end);
    return ERR_OK;
}

static err_t lex_tag(lexer *lx, size_t tag, bool is_print)
{
    const char *mark = is_print ? "}}" : "%}";
    move_to(lx, after_sign(lx, tag + 2));
    TRY(push(lx, is_print ? JINJA_T_PRINT_BEGIN : JINJA_T_BLOCK_BEGIN, jinja_none()));
    lx->n_brackets = 0;
    for (;;) {
        move_to(lx, skip_spaces(lx, lx->at));
        if (lx->at == lx->src.n_bytes)
            return ERR_OK; /* the parser misses the end, and says of what */
        const size_t end = lx->n_brackets == 0 ? tag_end(lx, lx->at, mark, !is_print) : 0;
        if (end != 0) {
            TRY(push(lx, is_print ? JINJA_T_PRINT_END : JINJA_T_BLOCK_END, jinja_none()));
            move_to(lx, end);
            return ERR_OK;
        }
        TRY(lex_word(lx));
    }
}

/* The next {%, {{ or {#; the end of the source if there is none. */
static size_t find_tag(const lexer *lx)
{
    const char *text = lx->src.text;
    for (size_t i = lx->at; i + 1 < lx->src.n_bytes; i++)
        if (text[i] == '{' && (text[i + 1] == '%' || text[i + 1] == '{' || text[i + 1] == '#'))
            return i;
    return lx->src.n_bytes;
}

static err_t lex_all(lexer *lx)
{
    while (lx->at < lx->src.n_bytes) {
        const size_t tag = find_tag(lx);
        if (tag == lx->src.n_bytes) {
            TRY(push(lx, JINJA_T_DATA, jinja_string(lx->src.text + lx->at, tag - lx->at)));
            break;
        }
        const char kind = lx->src.text[tag + 1];
        TRY(push_text(lx, tag, kind == '{'));
        move_to(lx, tag);
        const size_t raw = kind == '%' ? word_tag(lx, tag, "raw", false) : 0;
        if (raw != 0)
            TRY(lex_raw(lx, raw));
        else if (kind == '#')
            TRY(lex_comment(lx, tag));
        else
            TRY(lex_tag(lx, tag, kind == '{'));
    }
    return push(lx, JINJA_T_END, jinja_none());
}

/* A copy with \n for every end of a line, and without the last one. */
static err_t normalise(lexer *lx, const char *source, size_t n_bytes)
{
    char *text = jinja_heap_take_text(lx->heap, n_bytes + 1);
    if (text == NULL) return fail(lx, ERR_NO_MEMORY, "no memory for its text");
    size_t n = 0;
    for (size_t i = 0; i < n_bytes; i++) {
        if (source[i] == '\r' && i + 1 < n_bytes && source[i + 1] == '\n') continue;
        text[n++] = source[i] == '\r' ? '\n' : source[i];
    }
    if (n > 0 && text[n - 1] == '\n') n--;
    text[n] = '\0';
    lx->src = (jinja_lex_source){.text = text, .n_bytes = n};
    return ERR_OK;
}

err_t jinja_lex(jinja_heap *heap, const char *source, size_t n_bytes, jinja_tokens *out,
                err_info *info)
{
    *out = (jinja_tokens){0};
    lexer lx = {.line = 1, .is_line_start = true, .out = out, .heap = heap, .info = info};
    if (n_bytes > SOURCE_BYTES_MAX)
        return err_set(info, ERR_UNSUPPORTED, "a template of more than %d bytes is not supported",
                       SOURCE_BYTES_MAX);
    if (!utf8_valid(source, n_bytes)) return err_set(info, ERR_BAD_MODEL, "it is not UTF-8");
    TRY(normalise(&lx, source, n_bytes));
    return lex_all(&lx);
}
