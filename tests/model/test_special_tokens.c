/* Finding the names of special tokens in a text. */
#include "model/special_tokens.h"
#include "tests/test_main.h"

#include <string.h>

static const char *const names[] = {"<s>", "</s>", "[INST]", "<|im_end|>", "<|im", "[", "<s>>"};
enum { N_NAMES = sizeof names / sizeof names[0] };

static special_token tokens[N_NAMES];

static special_tokens all_tokens(void)
{
    special_tokens s;
    for (uint32_t i = 0; i < N_NAMES; i++)
        tokens[i] = (special_token){names[i], strlen(names[i]), i};
    special_tokens_init(&s, tokens, N_NAMES);
    return s;
}

/* The name found in text[from ..), which must be at `at`; "" for none. */
static const char *find(const special_tokens *s, const char *text, size_t from, size_t at)
{
    size_t place = 0;
    const special_token *found = special_tokens_find(s, text, strlen(text), from, &place);
    if (found == NULL) return "";
    ck_assert_uint_eq(place, at);
    ck_assert_str_eq(found->bytes, names[found->id]);
    return found->bytes;
}

START_TEST(the_first_name_is_found)
{
    const special_tokens s = all_tokens();
    ck_assert_str_eq(find(&s, "hello <s>you</s>", 0, 6), "<s>");
    ck_assert_str_eq(find(&s, "hello <s>you</s>", 7, 12), "</s>");
    ck_assert_str_eq(find(&s, "hello <s>you</s>", 13, 0), "");
    ck_assert_str_eq(find(&s, "", 0, 0), "");
    ck_assert_str_eq(find(&s, "<|i <|IM <s", 0, 0), "");
}
END_TEST

START_TEST(of_those_at_one_place_the_longest_is_found)
{
    const special_tokens s = all_tokens();
    ck_assert_str_eq(find(&s, "a[INST]", 0, 1), "[INST]");
    ck_assert_str_eq(find(&s, "a[INST", 0, 1), "[");
    ck_assert_str_eq(find(&s, "<|im_end|>", 0, 0), "<|im_end|>");
    ck_assert_str_eq(find(&s, "<|im_end|", 0, 0), "<|im");
    ck_assert_str_eq(find(&s, "<s>>", 0, 0), "<s>>");
    ck_assert_str_eq(find(&s, "<s>x", 0, 0), "<s>");
}
END_TEST

START_TEST(without_tokens_nothing_is_found)
{
    special_tokens s;
    special_tokens_init(&s, NULL, 0);
    ck_assert_str_eq(find(&s, "<s>", 0, 0), "");
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(the_first_name_is_found),
    TEST_CASE(of_those_at_one_place_the_longest_is_found),
    TEST_CASE(without_tokens_nothing_is_found),
    TEST_CASES_END,
};
