/* model/regex.h - the regular expressions of tokenizer.json, by PCRE2 (regex_pcre2.c).
 *
 * Such files are written for Oniguruma. Its expressions are translated (regex_translate.c): what means
 * the same in both is taken, what means something else is rewritten, and what is neither is refused. No
 * group may be repeated, so that no expression that we take needs exponential time; a match limit
 * bounds what is left.
 *
 * Threads: a regex is const after open; a regex_scratch belongs to one call at a time. */
#ifndef MODEL_REGEX_H
#define MODEL_REGEX_H

#include "base/error.h"
#include "model/text_buffer.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct regex regex;

/* `source` is an Oniguruma expression in UTF-8. ERR_UNSUPPORTED, ERR_BAD_MODEL (malformed): `info` then
 * says why, beginning with `what`. ERR_NO_MEMORY. */
typedef struct regex_source {
    const char *what; /* how messages call it: "tokenizer.json: pre_tokenizer" */
    text_view text;
} regex_source;
err_t regex_open(const regex_source *source, regex **out, err_info *info) MUST_CHECK;
err_t regex_open_literal(const regex_source *source, regex **out, err_info *info) MUST_CHECK;
void regex_close(regex *r); /* NULL is fine */

/* The working memory of matches. */
typedef struct regex_scratch regex_scratch;
err_t regex_scratch_open(regex_scratch **out) MUST_CHECK; /* ERR_NO_MEMORY */
void regex_scratch_close(regex_scratch *s);

/* A walk over the matches in a text of valid UTF-8, from left to right; between two matches may be
 * text. As the library's find_iter: an empty match right behind the match before is none. */
typedef struct regex_walk {
    const regex *regex;
    regex_scratch *scratch;
    text_view text;
    size_t at;       /* where the next search begins */
    size_t last_end; /* of the last match; SIZE_MAX: none yet */
} regex_walk;
typedef struct regex_match {
    size_t begin, end;
} regex_match;
void regex_walk_init(regex_walk *w, const regex *r, regex_scratch *s, text_view text);

/* ERR_NOT_FOUND: no more. ERR_BAD_REQUEST: over the match limit. ERR_NO_MEMORY. */
err_t regex_walk_next(regex_walk *w, regex_match *out) MUST_CHECK;

/* regex_translate.c: the expression for PCRE2 (no NUL at its end), or ERR_UNSUPPORTED, ERR_BAD_MODEL. */
err_t regex_translate(const regex_source *source, text_buffer *out, err_info *info) MUST_CHECK;
err_t regex_escape(text_view text, text_buffer *out) MUST_CHECK; /* so that it matches itself */

#endif
