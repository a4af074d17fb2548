/* Promises of service/session_text.h: the automata against their plain definition, over random texts of
 * few letters, so that matches and near matches are frequent. What sessions make of it is in
 * test_session.c. */
#include "service/session_text.h"
#include "tests/test_main.h"

#include <string.h>

enum { TRIAL_STOPS = 3, TRIAL_TEXT = 40 };

static uint32_t random_word(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33);
}

typedef struct trial {
    char stops[TRIAL_STOPS][8];
    stop_matcher matchers[TRIAL_STOPS];
    uint16_t borders[TRIAL_STOPS][9];
    char text[TRIAL_TEXT];
} trial;

static void make_trial(trial *t, uint64_t *state)
{
    for (int i = 0; i < TRIAL_STOPS; i++) {
        const uint16_t n = (uint16_t)(1 + random_word(state) % 7);
        for (int k = 0; k < n; k++)
            t->stops[i][k] = (char)('a' + random_word(state) % 2);
        stop_border_fill(t->stops[i], n, t->borders[i]);
        t->matchers[i] = (stop_matcher){.stop = t->stops[i], .border = t->borders[i], .n_bytes = n};
    }
    for (int k = 0; k < TRIAL_TEXT; k++)
        t->text[k] = (char)('a' + (random_word(state) % 16 == 0 ? 2 : random_word(state) % 2));
}

/* The stop that ends at text[end), the longest one; TRIAL_STOPS if none does. */
static uint32_t stop_ending_at(const trial *t, size_t end)
{
    uint32_t found = TRIAL_STOPS;
    for (uint32_t i = 0; i < TRIAL_STOPS; i++) {
        const size_t n = t->matchers[i].n_bytes;
        if (n > end || memcmp(t->text + end - n, t->stops[i], n) != 0) continue;
        if (found == TRIAL_STOPS || n > t->matchers[found].n_bytes) found = i;
    }
    return found;
}

static size_t held_by_definition(const trial *t, size_t end)
{
    for (size_t n = 7; n > 0; n--) {
        for (uint32_t i = 0; i < TRIAL_STOPS; i++) {
            const bool is_proper = n < t->matchers[i].n_bytes && n <= end;
            if (is_proper && memcmp(t->text + end - n, t->stops[i], n) == 0) return n;
        }
    }
    return 0;
}

START_TEST(matchers_agree_with_their_definition_for_every_cut)
{
    uint64_t state = 1;
    for (int round = 0; round < 20000; round++) {
        trial t;
        make_trial(&t, &state);
        size_t end = 0, fed = 0;
        while (end < TRIAL_TEXT && stop_ending_at(&t, end + 1) == TRIAL_STOPS)
            end++;
        bool is_found = false;
        while (fed < TRIAL_TEXT && !is_found) {
            size_t n = 1 + random_word(&state) % 6;
            if (n > TRIAL_TEXT - fed) n = TRIAL_TEXT - fed;
            const stop_scan scan =
                stop_matchers_feed(t.matchers, TRIAL_STOPS, t.text + fed, n, true);
            fed += scan.n_scanned;
            is_found = scan.is_found;
            if (is_found) {
                ck_assert_uint_eq(fed, end + 1);
                ck_assert_uint_eq(t.matchers[scan.stop].n_bytes,
                                  t.matchers[stop_ending_at(&t, fed)].n_bytes);
            } else {
                ck_assert_uint_le(fed, end);
                ck_assert_uint_eq(scan.n_held, held_by_definition(&t, fed));
            }
        }
        ck_assert(is_found == (end < TRIAL_TEXT));
    }
}
END_TEST

START_TEST(a_long_stop_string_costs_no_more_than_a_short_one)
{
    enum { STOP_BYTES = 1024, TEXT_BYTES = 1 << 20 };
    static char stop[STOP_BYTES], text[TEXT_BYTES];
    static uint16_t border[STOP_BYTES + 1];
    memset(stop, 'a', STOP_BYTES - 1);
    stop[STOP_BYTES - 1] = 'b';
    memset(text, 'a', TEXT_BYTES); /* the worst case of a naive search: a billion comparisons */
    stop_border_fill(stop, STOP_BYTES, border);
    stop_matcher m = {.stop = stop, .border = border, .n_bytes = STOP_BYTES};
    const stop_scan scan = stop_matchers_feed(&m, 1, text, TEXT_BYTES, true);
    ck_assert(!scan.is_found);
    ck_assert_uint_eq(scan.n_held, STOP_BYTES - 1);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(matchers_agree_with_their_definition_for_every_cut),
    TEST_CASE_SECONDS(a_long_stop_string_costs_no_more_than_a_short_one, 10), TEST_CASES_END};
