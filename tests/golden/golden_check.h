/* tests/golden/golden_check.h - what tracks computed, against the reference and against each other.
 *
 * Helpers fail the running test themselves. */
#ifndef TESTS_GOLDEN_GOLDEN_CHECK_H
#define TESTS_GOLDEN_GOLDEN_CHECK_H

#include "tests/golden/golden_run.h"

/* Logits of the prompt's positions that the reference has, to rounding. */
void golden_check_prompt_logits(const track *t);
/* All 64 tokens are chosen; greedy[0 .. 62] have been computed. */
void golden_check_greedy(const track *t);

/* Every prompt at its own pace, prompts beside decoding; all run to the end of their 64 tokens. */
void golden_run_crowd(track *tracks, uint32_t n_tracks);

/* Logits of the whole prompt, computed alone: [n_prompt][n_vocab]. */
float *golden_keep_whole(golden *g, uint32_t prompt);
/* Those that `a` computed of its prompt are the bits of `kept`. */
void golden_check_same_bits(const track *a, const float *kept, const char *how);

#endif
