/* service/eval/eval_passage.h - the facts of a question, scattered in filler up to an exact number of tokens.
 *
 *   [BOS] sentence " " sentence " " ... sentence  "\nQuestions:\n" stem | answer
 *                                                                      ^ the prompt ends here
 *
 * A task writes down its facts, each with a place; here filler sentences with places of their own are drawn
 * until the next one would go over the budget, and all stand in the order of their places. So another fact
 * or filler moves none of the others.
 *
 * Tokens are counted word by word (most words recur), which is exact where no piece goes across a space.
 * It is never trusted: the whole text is encoded, and where it comes out otherwise the difference is
 * taken into account and the text made anew. That one encoding also gives the prompt's ids. They are
 * those of the prompt alone: a piece boundary where the answer begins means that no merge (BPE) and no
 * best path (unigram) went across it, so neither side had a say in the other. A tokenizer with a piece
 * across it is refused; there is no token after which to ask. */
#ifndef SERVICE_EVAL_EVAL_PASSAGE_H
#define SERVICE_EVAL_EVAL_PASSAGE_H

#include "base/random.h"
#include "service/eval/eval_tasks.h"

/* Random numbers one after the other. Of a sample (see random.h):
 *
 *   seed    the spec's
 *   stream  the sample's index
 *   index   task's row (8 bits) | context (32 bits) | number of the block of four words (24 bits)
 *
 * The distance is not part of it: a sample keeps its sentences and their order at every distance, but
 * for the asked fact. */
typedef struct eval_draws {
    uint64_t seed, stream, index; /* index: of the next block */
    random_block block;
    uint32_t n_left; /* words of the block that have not been used */
} eval_draws;

enum { EVAL_DRAWS_BLOCK_BITS = 24 };

uint32_t eval_draw(eval_draws *d);                   /* 32 random bits */
uint32_t eval_draw_below(eval_draws *d, uint32_t n); /* uniform in [0, n) up to n / 2^32; n >= 1 */

enum {
    EVAL_FACTS_MAX = 128,
    EVAL_SENTENCE_BYTES = 96, /* with the NUL */
    EVAL_NO_FACT = UINT16_MAX
};

/* What a task says and asks. */
typedef struct eval_facts {
    char text[EVAL_FACTS_MAX][EVAL_SENTENCE_BYTES];
    uint32_t
        place[EVAL_FACTS_MAX]; /* uniform over 32 bits; equal ones stand in the order of saying */
    uint32_t n_facts;          /* >= 1 */
    uint32_t asked;            /* the fact that a distance moves, or EVAL_NO_FACT */
    char stem[EVAL_SENTENCE_BYTES];
    char answer[EVAL_SENTENCE_BYTES]; /* begins with a space */
} eval_facts;

typedef struct eval_passage_spec {
    const tokenizer *t;
    const eval_sample_spec *sample; /* checked */
    const eval_facts *facts;
} eval_passage_spec;

/* Fillers are drawn from `draws`. ERR_BAD_CONFIG if the facts or the distance do not fit, ERR_BAD_MODEL
 * for a tokenizer that does not give the answer back behind the question, ERR_NO_MEMORY; `out` is zero
 * then. */
err_t eval_passage_write(const eval_passage_spec *spec, eval_draws *draws, eval_sample *out,
                         err_info *info) MUST_CHECK;

#endif
