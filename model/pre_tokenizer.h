/* model/pre_tokenizer.h - how tokenizer.json cuts a normalised text into words: a list of steps.
 *
 * Every step cuts each piece that the step before has made, and may rewrite it. The pieces are not
 * collected: a piece goes through all later steps before the next is cut, so the memory is that of one
 * piece for each step.
 *
 * Const once it is built; any thread, each with scratch of its own. */
#ifndef MODEL_PRE_TOKENIZER_H
#define MODEL_PRE_TOKENIZER_H

#include "base/error.h"
#include "model/regex.h"
#include "model/text_buffer.h"

#include <stdbool.h>
#include <stddef.h>

enum { PRE_STEPS_MAX = 16 };

/* What becomes of the matches of a pattern, and of the text between them. */
typedef enum split_behavior {
    SPLIT_ISOLATED,             /* each a piece of its own */
    SPLIT_REMOVED,              /* matches are dropped */
    SPLIT_CONTIGUOUS,           /* neighbouring matches are one piece */
    SPLIT_MERGED_WITH_PREVIOUS, /* a match ends the piece before it */
    SPLIT_MERGED_WITH_NEXT      /* a match begins the piece behind it */
} split_behavior;

typedef enum pre_prefix { PREFIX_NEVER, PREFIX_FIRST, PREFIX_ALWAYS } pre_prefix;

/* In this order: spaces become `marker`, the prefix is put before, the text is cut, bytes are mapped. */
typedef struct pre_step {
    bool marks_spaces;   /* Metaspace: every ' ' becomes `prefix_text` */
    pre_prefix prefix;   /* where `prefix_text` is put before a piece that does not begin with it */
    char prefix_text[5]; /* " " or the marker */
    regex *pattern;      /* owned; NULL: nothing is cut */
    split_behavior behavior;
    bool invert;     /* matches and the text between them change places */
    bool maps_bytes; /* ByteLevel: every byte becomes the character that stands for it */
} pre_step;

typedef struct pre_tokenizer {
    pre_step step[PRE_STEPS_MAX];
    size_t n_steps;
} pre_tokenizer;

void pre_tokenizer_deinit(pre_tokenizer *p); /* zeroed is fine */

typedef struct pre_scratch {
    text_buffer marked[PRE_STEPS_MAX], mapped[PRE_STEPS_MAX];
    regex_scratch *regex; /* borrowed */
} pre_scratch;
void pre_scratch_deinit(pre_scratch *s);

/* Calls `word` for each word, in order; stops at its first error. `is_first`: the text is the beginning
 * of what the author wrote. ERR_NO_MEMORY, ERR_BAD_REQUEST (a pattern over its match limit). */
typedef struct pre_sink {
    err_t (*word)(void *ctx, text_view word);
    void *ctx;
} pre_sink;
err_t pre_tokenizer_apply(const pre_tokenizer *p, pre_scratch *scratch, text_view text,
                          bool is_first, const pre_sink *sink) MUST_CHECK;

bool pre_tokenizer_is_lossless(const pre_tokenizer *p); /* no step drops text */

/* The characters that stand for bytes (GPT-2): byte -> UTF-8 and back; -1 if it is none of them. */
text_view byte_level_character(uint8_t byte, char out[2]);
int byte_level_value(uint32_t character);

#endif
