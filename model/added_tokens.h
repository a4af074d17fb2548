/* model/added_tokens.h - the tokens that are looked for in a text before it is cut: "<|im_start|>".
 *
 * Two sets: tokens looked for in the text as it came, and tokens looked for in the normalised text. Of
 * the tokens that begin at the same place the longest counts; the leftmost comes first; none overlap.
 * A trie finds them: time is that of the text, times the length of the longest token at worst.
 *
 * Filled once (open, add ...), const after that. */
#ifndef MODEL_ADDED_TOKENS_H
#define MODEL_ADDED_TOKENS_H

#include "base/error.h"
#include "model/text_buffer.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { ADDED_TOKEN_BYTES_MAX = 1024 };

typedef struct added_set added_set;

typedef struct added_token {
    uint32_t id;
    bool is_special;  /* may be passed over */
    bool single_word; /* not between letters */
    bool lstrip;      /* takes the spaces before it */
    bool rstrip;      /* takes the spaces behind it */
} added_token;

err_t added_set_open(added_set **out) MUST_CHECK;
void added_set_close(added_set *s); /* NULL is fine */

/* `content` is not empty and at most ADDED_TOKEN_BYTES_MAX long. ERR_BAD_MODEL: it is there already. */
err_t added_set_add(added_set *s, text_view content, const added_token *token) MUST_CHECK;

bool added_set_is_lossless(const added_set *s); /* no token takes more than its content */

/* A walk through a text: parts, each a token or (id ADDED_NONE) the text before the next one. Together
 * they cover the text. */
enum { ADDED_NONE = UINT32_MAX };
typedef struct added_walk {
    const added_set *set;
    text_view text;
    bool passes_special; /* special tokens are text */
    size_t at;           /* where the next search begins */
    size_t handed;       /* end of what was handed out */
    bool has_token;
    added_token token; /* found, but the text before it came first */
    size_t token_end;
} added_walk;
typedef struct added_part {
    uint32_t id;
    text_view text;
} added_part;
void added_walk_init(added_walk *w, const added_set *s, text_view text, bool passes_special);
bool added_walk_next(added_walk *w, added_part *out); /* false: the end */

#endif
