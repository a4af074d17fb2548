/* model/normalizer.h - what tokenizer.json does to a text before it is cut: a list of steps.
 *
 * Const once it is built; any thread, each with buffers of its own. */
#ifndef MODEL_NORMALIZER_H
#define MODEL_NORMALIZER_H

#include "base/error.h"
#include "model/regex.h"
#include "model/text_buffer.h"
#include "model/unicode.h"

#include <stdbool.h>
#include <stddef.h>

enum { NORMALIZER_STEPS_MAX = 16 };

typedef enum normalizer_kind {
    NORMALIZE_FORM,    /* NFC, NFD, NFKC, NFKD */
    NORMALIZE_LOWER,   /* Lowercase */
    NORMALIZE_STRIP,   /* Strip: spaces at the ends */
    NORMALIZE_PREPEND, /* Prepend: `content` before a text that is not empty */
    NORMALIZE_REPLACE  /* Replace: every match of `pattern` by `content` */
} normalizer_kind;

typedef struct normalizer_step {
    normalizer_kind kind;
    unicode_form form;
    bool strip_left, strip_right;
    regex *pattern;      /* owned */
    text_buffer content; /* owned */
} normalizer_step;

typedef struct normalizer {
    normalizer_step step[NORMALIZER_STEPS_MAX];
    size_t n_steps;
} normalizer;

void normalizer_deinit(normalizer *n); /* zeroed is fine */

/* The normalised text: `text` itself, or in one of the two buffers, whose contents are lost.
 * ERR_NO_MEMORY, ERR_BAD_REQUEST (a pattern over its match limit). */
typedef struct normalizer_scratch {
    text_buffer buffer[2];
    regex_scratch *regex; /* borrowed */
} normalizer_scratch;
err_t normalizer_apply(const normalizer *n, normalizer_scratch *scratch, text_view text,
                       text_view *out) MUST_CHECK;

/* No byte of a text is lost and none is added that it does not have. */
bool normalizer_is_lossless(const normalizer *n);

#endif
