/* Frequencies of every RoPE scaling, against those that transformers computes. */
#include "model/rope.h"
#include "tests/test_main.h"

#include <math.h>

enum { N_PAIRS = 8 };

typedef struct rope_case {
    const char *name;
    rope_config rope;
    uint32_t n_positions;
    float freq[N_PAIRS], scale;
} rope_case;

#define COMMON .theta = 10000, .n_rotated = 2 * N_PAIRS
#define DIVISORS                                                      \
    .short_factor = {1.0f, 1.1f, 1.2f, 1.3f, 1.4f, 1.5f, 1.6f, 1.7f}, \
    .long_factor = {1, 2, 3, 4, 5, 6, 7, 8}, .factor = 4, .n_original = 256

/* modeling_rope_utils.ROPE_INIT_FUNCTIONS of transformers 5, seq_len n_positions, head_dim 16. */
static const rope_case cases[] = {
    {"linear",
     {.kind = ROPE_LINEAR, COMMON, .factor = 4},
     1024,
     {0.25f, 0.079056941f, 0.0250000004f, 0.00790569466f, 0.00249999994f, 0.000790569466f,
      0.000250000012f, 7.90569466e-05f},
     1},
    {"dynamic beyond the original positions",
     {.kind = ROPE_DYNAMIC, COMMON, .factor = 4, .n_original = 256},
     512,
     {1, 0.251273751f, 0.0631385073f, 0.0158650484f, 0.0039864704f, 0.0010016954f, 0.000251699792f,
      6.32455485e-05f},
     1},
    {"dynamic within them",
     {.kind = ROPE_DYNAMIC, COMMON, .factor = 4, .n_original = 256},
     128,
     {1, 0.316227764f, 0.100000001f, 0.0316227786f, 0.00999999978f, 0.00316227786f, 0.00100000005f,
      0.000316227786f},
     1},
    {"llama3",
     {.kind = ROPE_LLAMA3, COMMON, .factor = 8, .n_original = 256, .low_freq = 1, .high_freq = 4},
     1024,
     {1, 0.316227764f, 0.100000001f, 0.00661310693f, 0.00124999997f, 0.000395284733f,
      0.000125000006f, 3.95284733e-05f},
     1},
    {"yarn",
     {.kind = ROPE_YARN, COMMON, .factor = 4, .n_original = 256, .beta_fast = 32, .beta_slow = 1},
     1024,
     {1, 0.25693506f, 0.0625f, 0.0138349654f, 0.00249999994f, 0.000790569466f, 0.000250000012f,
      7.90569466e-05f},
     1.13862944f},
    {"yarn with all that it can have",
     {.kind = ROPE_YARN,
      COMMON,
      .factor = 40,
      .n_original = 4096,
      .beta_fast = 16,
      .beta_slow = 2,
      .mscale = 0.7f,
      .mscale_all = 0.5f,
      .is_range_exact = true},
     1024,
     {1, 0.316227764f, 0.100000001f, 0.0316227786f, 0.00579010462f, 0.000123952457f,
      2.49999994e-05f, 7.90569447e-06f},
     1.0622888f},
    {"longrope within the original positions",
     {.kind = ROPE_LONGROPE, COMMON, DIVISORS},
     256,
     {1, 0.287479758f, 0.0833333358f, 0.0243252143f, 0.00714285718f, 0.00210818532f,
      0.000624999986f, 0.000186016332f},
     1.11803399f},
    {"longrope beyond them",
     {.kind = ROPE_LONGROPE, COMMON, DIVISORS, .cos_scale = 1.19f},
     257,
     {1, 0.158113882f, 0.0333333351f, 0.00790569466f, 0.00200000009f, 0.00052704633f,
      0.000142857141f, 3.95284733e-05f},
     1.19f},
    {"longrope with scales of its own",
     {.kind = ROPE_LONGROPE, COMMON, DIVISORS, .short_scale = 1.2f, .long_scale = 1.3f},
     257,
     {1, 0.158113882f, 0.0333333351f, 0.00790569466f, 0.00200000009f, 0.00052704633f,
      0.000142857141f, 3.95284733e-05f},
     1.3f},
};

START_TEST(frequencies_are_those_of_transformers)
{
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const rope_case *const c = &cases[i];
        float freq[N_PAIRS];
        const float scale = rope_fill(&c->rope, c->n_positions, freq);
        ck_assert_msg(fabsf(scale - c->scale) <= 2e-7f * c->scale, "%s: %.9g", c->name,
                      (double)scale);
        for (int p = 0; p < N_PAIRS; p++)
            ck_assert_msg(fabsf(freq[p] - c->freq[p]) <= 4e-7f * c->freq[p],
                          "%s: pair %d: %.9g is not %.9g", c->name, p, (double)freq[p],
                          (double)c->freq[p]);
    }
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(frequencies_are_those_of_transformers),
    TEST_CASES_END,
};
