/* tests/kvcache/test_page_pool.c - pages and slabs of one budget. */
#include "kvcache/page_bias.h"
#include "kvcache/page_changes.h"
#include "kvcache/page_slots.h"
#include "kvcache/page_tiers.h"
#include "tests/test_main.h"

#include <string.h>

#if defined(__SANITIZE_ADDRESS__)
#define HAS_POISON 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HAS_POISON 1
#endif
#endif
#ifdef HAS_POISON
#include <sanitizer/asan_interface.h>
#endif

enum { PAGE_TOKENS = 8, SMALL = 1024, LARGE = 24 * 1024, N_SLABS = 6 };
enum { SMALL_PER_SLAB = KV_SLAB_BYTES / SMALL, LARGE_PER_SLAB = KV_SLAB_BYTES / LARGE };

static kv_pool *open_pool(uint64_t budget_bytes)
{
    static const size_t page_bytes[] = {SMALL, LARGE};
    const kv_pool_config config = {.budget_bytes = budget_bytes,
                                   .page_tokens = PAGE_TOKENS,
                                   .n_classes = 2,
                                   .page_bytes = page_bytes,
                                   .n_shards = 4};
    kv_pool *pool;
    ck_assert_int_eq(kv_pool_open(&config, &pool), ERR_OK);
    return pool;
}

/* Sane, with exactly these pages held once by sequences. */
static void check(const kv_pool *pool, const uint32_t *pages, uint32_t n_pages)
{
    kv_pool_check_begin(pool);
    for (uint32_t i = 0; i < n_pages; i++) {
        if (pages[i] != KV_PAGE_NONE) kv_pool_check_ref(pool, pages[i], KV_HELD_BY_SEQ);
    }
    ck_assert(kv_pool_check_end(pool));
}

START_TEST(the_budget_is_spent_to_the_last_slab_and_not_beyond)
{
    kv_pool *pool = open_pool(N_SLABS * KV_SLAB_BYTES + 1000);
    uint32_t pages[N_SLABS * SMALL_PER_SLAB];
    ck_assert_uint_eq(kv_pool_count(pool).budget_bytes, N_SLABS * KV_SLAB_BYTES);
    for (uint32_t i = 0; i < N_SLABS * SMALL_PER_SLAB; i++) {
        pages[i] = kv_pool_alloc_page(pool, 0, KV_HELD_BY_SEQ);
        ck_assert_uint_ne(pages[i], KV_PAGE_NONE);
        memset(kv_pool_data(pool, pages[i]), (int)i, SMALL); /* all of it is ours */
    }
    for (uint32_t i = 0; i < N_SLABS * SMALL_PER_SLAB; i++)
        ck_assert_uint_eq(kv_pool_data(pool, pages[i])[SMALL - 1], i & 0xff);
    ck_assert_uint_eq(kv_pool_alloc_page(pool, 0, KV_HELD_BY_SEQ), KV_PAGE_NONE);
    ck_assert_uint_eq(kv_pool_alloc_page(pool, 1, KV_HELD_BY_SEQ), KV_PAGE_NONE);
    ck_assert_uint_eq(kv_pool_count(pool).slab_bytes, N_SLABS * KV_SLAB_BYTES);
    ck_assert_uint_eq(kv_pool_count(pool).pages_free, 0);
    check(pool, pages, N_SLABS * SMALL_PER_SLAB);
    kv_pool_close(pool);
}
END_TEST

START_TEST(a_slab_returns_when_its_last_page_does_and_serves_another_class)
{
    kv_pool *pool = open_pool(KV_SLAB_BYTES);
    uint32_t pages[SMALL_PER_SLAB];
    for (uint32_t i = 0; i < SMALL_PER_SLAB; i++)
        pages[i] = kv_pool_alloc_page(pool, 0, KV_HELD_BY_SEQ);
    for (uint32_t i = 0; i < SMALL_PER_SLAB; i++) {
        ck_assert_uint_eq(kv_pool_count(pool).slab_bytes, KV_SLAB_BYTES);
        ck_assert_uint_eq(kv_pool_alloc_page(pool, 1, KV_HELD_BY_SEQ), KV_PAGE_NONE);
        const uint32_t p = (i * 7) % SMALL_PER_SLAB;
        ck_assert(kv_pool_drop(pool, pages[p], KV_HELD_BY_SEQ));
        pages[p] = KV_PAGE_NONE;
        check(pool, pages, SMALL_PER_SLAB);
    }
    ck_assert_uint_eq(kv_pool_count(pool).slab_bytes, 0);
    for (uint32_t i = 0; i < LARGE_PER_SLAB; i++)
        ck_assert_uint_ne(kv_pool_alloc_page(pool, 1, KV_HELD_BY_SEQ), KV_PAGE_NONE);
    ck_assert_uint_eq(kv_pool_alloc_page(pool, 1, KV_HELD_BY_SEQ), KV_PAGE_NONE);
    kv_pool_close(pool);
}
END_TEST

START_TEST(memory_of_a_returned_slab_is_given_back)
{
    kv_pool *pool = open_pool(KV_SLAB_BYTES);
    uint32_t page = kv_pool_alloc_page(pool, 1, KV_HELD_BY_SEQ);
    memset(kv_pool_data(pool, page), 0xab, LARGE);
    ck_assert(kv_pool_drop(pool, page, KV_HELD_BY_SEQ));
    page = kv_pool_alloc_page(pool, 1, KV_HELD_BY_SEQ);
    ck_assert_uint_eq(kv_pool_data(pool, page)[100], 0); /* a fresh page of the system */
    kv_pool_close(pool);
}
END_TEST

START_TEST(a_page_is_free_when_nobody_holds_it)
{
    kv_pool *pool = open_pool(N_SLABS * KV_SLAB_BYTES);
    const uint32_t page = kv_pool_alloc_page(pool, 0, KV_HELD_BY_SEQ);
    kv_pool_fill(pool, page, 40, 5, 0);
    ck_assert_uint_eq(kv_pool_pages(pool)->positions[page * PAGE_TOKENS + 4], 44);
    kv_pool_hold(pool, page, KV_HELD_BY_OBJECT);
    kv_pool_hold(pool, page, KV_HELD_BY_SEQ);
    ck_assert(!kv_pool_drop(pool, page, KV_HELD_BY_SEQ));
    ck_assert_uint_eq(kv_pool_count(pool).pages_used, 1);
    kv_pool_pass(pool, page, KV_HELD_BY_SEQ, KV_HELD_BY_OBJECT);
    ck_assert_uint_eq(kv_pool_count(pool).pages_used, 0);
    ck_assert_uint_eq(kv_pool_count(pool).pages_cached, 1);
    ck_assert_uint_eq(kv_pool_count(pool).slots_live, 5);
    ck_assert(!kv_pool_drop(pool, page, KV_HELD_BY_OBJECT));
    ck_assert(kv_pool_drop(pool, page, KV_HELD_BY_OBJECT));
    ck_assert_uint_eq(kv_pool_count(pool).pages_cached, 0);
    ck_assert_uint_eq(kv_pool_count(pool).slots_live, 0);
    check(pool, NULL, 0);
    kv_pool_close(pool);
}
END_TEST

START_TEST(a_page_that_others_lean_on_is_held_by_who_holds_them)
{
    kv_pool *pool = open_pool(N_SLABS * KV_SLAB_BYTES);
    const uint32_t base = kv_pool_alloc_page(pool, 1, KV_HELD_BY_SEQ);
    const uint32_t page = kv_pool_alloc_page(pool, 0, KV_HELD_BY_SEQ);
    ck_assert_uint_eq(kv_pool_leans_on(pool, page), KV_PAGE_NONE);
    kv_pool_hold(pool, page, KV_HELD_BY_OBJECT);
    kv_pool_lean(pool, page, base);
    ck_assert_uint_eq(kv_pool_leans_on(pool, page), base);
    ck_assert_uint_eq(kv_pool_pages(pool)->n_refs[KV_HELD_BY_SEQ][base], 2);
    ck_assert_uint_eq(kv_pool_pages(pool)->n_refs[KV_HELD_BY_OBJECT][base], 1);
    ck_assert(!kv_pool_drop(pool, base, KV_HELD_BY_SEQ));
    kv_pool_pass(pool, page, KV_HELD_BY_SEQ, KV_HELD_BY_OBJECT);
    ck_assert_uint_eq(kv_pool_count(pool).pages_used, 0);
    ck_assert_uint_eq(kv_pool_count(pool).pages_cached, 2);
    kv_pool_check_begin(pool);
    kv_pool_check_ref(pool, page, KV_HELD_BY_OBJECT);
    ck_assert(!kv_pool_check_end(pool)); /* two objects hold it */
    kv_pool_check_begin(pool);
    kv_pool_check_ref(pool, page, KV_HELD_BY_OBJECT);
    kv_pool_check_ref(pool, page, KV_HELD_BY_OBJECT);
    ck_assert(kv_pool_check_end(pool));
    ck_assert(!kv_pool_drop(pool, page, KV_HELD_BY_OBJECT));
    ck_assert(kv_pool_drop(pool, page, KV_HELD_BY_OBJECT));
    ck_assert_uint_eq(kv_pool_count(pool).pages_cached, 0); /* both are gone */
    ck_assert_uint_eq(kv_pool_count(pool).slab_bytes, 0);
    const uint32_t again = kv_pool_alloc_page(pool, 0, KV_HELD_BY_SEQ);
    ck_assert_uint_eq(kv_pool_leans_on(pool, again), KV_PAGE_NONE);
    kv_pool_close(pool);
}
END_TEST

START_TEST(biases_stay_with_a_page_until_its_slots_change)
{
    static const size_t page_bytes[] = {SMALL};
    static const uint32_t positions[] = {3, 5, 8};
    static const float biases[] = {-1.5f, 0.25f, 0, 9};
    const kv_pool_config config = {.budget_bytes = KV_SLAB_BYTES,
                                   .host_bytes = KV_SLAB_BYTES,
                                   .page_tokens = PAGE_TOKENS,
                                   .n_classes = 1,
                                   .page_bytes = page_bytes,
                                   .n_shards = 1,
                                   .has_biases = true};
    kv_pool *pool, *plain = open_pool(KV_SLAB_BYTES);
    ck_assert_int_eq(kv_pool_open(&config, &pool), ERR_OK);
    uint32_t pages[2] = {kv_pool_alloc_page(pool, 0, KV_HELD_BY_SEQ), KV_PAGE_NONE};
    ck_assert_ptr_null(kv_pool_biases(pool, pages[0]));
    ck_assert_float_eq(kv_pool_bias_most(pool, pages[0]), 0);
    kv_pool_rewrite(pool, pages[0], positions, 3, 0);
    kv_pool_set_biases(pool, pages[0], biases);
    pages[1] = kv_pool_alloc_twin(pool, pages[0], KV_TIER_HOST, KV_HELD_BY_SEQ);
    for (uint32_t i = 0; i < 2; i++) {
        ck_assert_mem_eq(kv_pool_biases(pool, pages[i]), biases, 3 * sizeof *biases);
        ck_assert_float_eq(kv_pool_bias_most(pool, pages[i]), 0.25f);
    }
    kv_pool_set_bias(pool, pages[0], 2, 2);
    kv_pool_set_bias(pool, pages[0], 1, -4);
    ck_assert_mem_eq(kv_pool_biases(pool, pages[0]), ((float[]){-1.5f, -4, 2}), 3 * sizeof *biases);
    ck_assert_float_eq(kv_pool_bias_most(pool, pages[0]), 2);
    check(pool, pages, 2);
    kv_pool_rewrite(pool, pages[0], positions, 2, 0);
    ck_assert_ptr_null(kv_pool_biases(pool, pages[0]));
    kv_pool_set_bias(pool, pages[0], 1, 3); /* the other slot has none */
    ck_assert_mem_eq(kv_pool_biases(pool, pages[0]), ((float[]){0, 3}), 2 * sizeof *biases);
    ck_assert_ptr_nonnull(kv_pool_biases(pool, pages[1]));
    ck_assert(kv_pool_drop(pool, pages[1], KV_HELD_BY_SEQ));
    pages[1] = kv_pool_alloc_page(pool, 0, KV_HELD_BY_SEQ);
    ck_assert_ptr_null(kv_pool_biases(pool, pages[1]));
    kv_pool_close(pool);
    ck_assert_ptr_null(kv_pool_biases(plain, kv_pool_alloc_page(plain, 0, KV_HELD_BY_SEQ)));
    kv_pool_close(plain);
}
END_TEST

START_TEST(room_is_counted_in_slabs_of_the_class)
{
    kv_pool *pool = open_pool(3 * KV_SLAB_BYTES);
    ck_assert(kv_pool_has_room(pool, (uint64_t[]){2 * SMALL_PER_SLAB, LARGE_PER_SLAB}));
    ck_assert(!kv_pool_has_room(pool, (uint64_t[]){2 * SMALL_PER_SLAB + 1, LARGE_PER_SLAB}));
    const uint32_t page = kv_pool_alloc_page(pool, 0, KV_HELD_BY_SEQ);
    ck_assert(kv_pool_has_room(pool, (uint64_t[]){SMALL_PER_SLAB - 1, 2 * LARGE_PER_SLAB}));
    ck_assert(!kv_pool_has_room(pool, (uint64_t[]){SMALL_PER_SLAB, 2 * LARGE_PER_SLAB}));
    ck_assert(kv_pool_could_hold(pool, (uint64_t[]){SMALL_PER_SLAB, 2 * LARGE_PER_SLAB}));
    ck_assert(kv_pool_drop(pool, page, KV_HELD_BY_SEQ));
    kv_pool_close(pool);
}
END_TEST

START_TEST(a_page_larger_than_a_slab_makes_slabs_larger)
{
    static const size_t page_bytes[] = {200 * 1024, 64};
    const kv_pool_config config = {.budget_bytes = 1 << 20,
                                   .page_tokens = PAGE_TOKENS,
                                   .n_classes = 2,
                                   .page_bytes = page_bytes,
                                   .n_shards = 4};
    kv_pool *pool;
    ck_assert_int_eq(kv_pool_open(&config, &pool), ERR_OK);
    ck_assert_uint_eq(kv_pool_count(pool).budget_bytes, 4 * 256 * 1024);
    const uint32_t page = kv_pool_alloc_page(pool, 0, KV_HELD_BY_SEQ);
    memset(kv_pool_data(pool, page), 1, page_bytes[0]);
    const uint32_t small = kv_pool_alloc_page(pool, 1, KV_HELD_BY_SEQ);
    memset(kv_pool_data(pool, small), 1, page_bytes[1]);
    check(pool, (uint32_t[]){page, small}, 2);
    kv_pool_close(pool);
}
END_TEST

START_TEST(a_wrong_reference_count_is_noticed)
{
    kv_pool *pool = open_pool(KV_SLAB_BYTES);
    const uint32_t page = kv_pool_alloc_page(pool, 0, KV_HELD_BY_SEQ);
    kv_pool_check_begin(pool);
    ck_assert(!kv_pool_check_end(pool)); /* held, but by nobody that we know */
    kv_pool_check_begin(pool);
    kv_pool_check_ref(pool, page, KV_HELD_BY_OBJECT);
    ck_assert(!kv_pool_check_end(pool));
    check(pool, &page, 1);
    kv_pool_close(pool);
}
END_TEST

#ifdef HAS_POISON
START_TEST(free_pages_are_poisoned)
{
    kv_pool *pool = open_pool(KV_SLAB_BYTES);
    const uint32_t a = kv_pool_alloc_page(pool, 0, KV_HELD_BY_SEQ);
    const uint32_t b = kv_pool_alloc_page(pool, 0, KV_HELD_BY_SEQ);
    uint8_t *data = kv_pool_data(pool, a);
    ck_assert(!__asan_address_is_poisoned(data));
    ck_assert(__asan_address_is_poisoned(kv_pool_data(pool, b) + SMALL)); /* never allocated */
    ck_assert(kv_pool_drop(pool, a, KV_HELD_BY_SEQ));
    ck_assert(__asan_address_is_poisoned(data));
    ck_assert(__asan_address_is_poisoned(data + SMALL - 1));
    ck_assert(!__asan_address_is_poisoned(kv_pool_data(pool, b)));
    kv_pool_close(pool);
}
END_TEST
#endif

START_TEST(changes_are_told_once_and_in_order)
{
    static const size_t page_bytes[] = {SMALL};
    static const uint32_t positions[] = {3, 5};
    const kv_pool_config config = {.budget_bytes = 2 * KV_SLAB_BYTES,
                                   .page_tokens = PAGE_TOKENS,
                                   .n_classes = 1,
                                   .page_bytes = page_bytes,
                                   .n_shards = 1,
                                   .notes_changes = true};
    kv_pool *pool;
    uint32_t pages[5];
    kv_page_change change;
    ck_assert_int_eq(kv_pool_open(&config, &pool), ERR_OK);
    ck_assert_uint_eq(kv_pool_mapped_bytes(pool), 2 * KV_SLAB_BYTES);
    for (uint32_t i = 0; i < 5; i++)
        pages[i] = kv_pool_alloc_page(pool, 0, KV_HELD_BY_SEQ);
    ck_assert(!kv_pool_take_change(pool, &change)); /* none has slots */
    kv_pool_fill(pool, pages[3], 0, PAGE_TOKENS, 0);
    kv_pool_own(pool, pages[1], 0);
    kv_pool_append(pool, pages[1], 7);
    kv_pool_append(pool, pages[1], 9);
    kv_pool_rewrite(pool, pages[0], positions, 2, 0);
    kv_pool_fill(pool, pages[4], 0, PAGE_TOKENS, 0);
    ck_assert(kv_pool_drop(pool, pages[4], KV_HELD_BY_SEQ)); /* nobody asks for it any more */
    const uint32_t expected[] = {3, 1, 0};
    for (uint32_t i = 0; i < 3; i++) {
        ck_assert(kv_pool_take_change(pool, &change));
        ck_assert_uint_eq(change.page, pages[expected[i]]);
        ck_assert(!change.is_made);
        ck_assert_uint_eq(kv_pool_offset(pool, change.page), (uint64_t)change.page * SMALL);
    }
    ck_assert(!kv_pool_take_change(pool, &change));
    kv_pool_note_change(pool, pages[1]);
    kv_pool_note_change(pool, pages[1]);
    ck_assert(kv_pool_take_change(pool, &change));
    ck_assert_uint_eq(change.page, pages[1]);
    ck_assert(!kv_pool_take_change(pool, &change));
    kv_pool_close(pool);
}
END_TEST

START_TEST(what_was_made_where_the_copy_is_need_not_be_sent_until_it_changes)
{
    const size_t page_bytes[] = {SMALL};
    const kv_pool_config config = {.budget_bytes = KV_SLAB_BYTES,
                                   .page_tokens = PAGE_TOKENS,
                                   .n_classes = 1,
                                   .page_bytes = page_bytes,
                                   .n_shards = 1,
                                   .notes_changes = true};
    kv_pool *pool;
    uint32_t pages[3];
    kv_page_change change;
    ck_assert_int_eq(kv_pool_open(&config, &pool), ERR_OK);
    for (uint32_t i = 0; i < 3; i++) {
        pages[i] = kv_pool_alloc_page(pool, 0, KV_HELD_BY_SEQ);
        kv_pool_fill(pool, pages[i], 0, PAGE_TOKENS, 0);
        ck_assert(!kv_pool_has_copy(pool, pages[i]));
    }
    kv_pool_note_made(pool, pages[0]);
    kv_pool_note_made(pool, pages[1]);
    ck_assert(kv_pool_has_copy(pool, pages[1]));
    ck_assert(kv_pool_is_made(pool, pages[1]));
    kv_pool_note_change(pool, pages[1]);
    ck_assert(!kv_pool_has_copy(pool, pages[1]));
    for (uint32_t i = 0; i < 3; i++) {
        ck_assert(kv_pool_take_change(pool, &change));
        ck_assert_uint_eq(change.page, pages[i]);
        ck_assert(change.is_made == (i == 0));
        ck_assert(kv_pool_has_copy(pool, pages[i]));
        ck_assert(!kv_pool_is_made(pool, pages[i]));
    }
    ck_assert(!kv_pool_take_change(pool, &change));
    kv_pool_close(pool);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(the_budget_is_spent_to_the_last_slab_and_not_beyond),
    TEST_CASE(a_slab_returns_when_its_last_page_does_and_serves_another_class),
    TEST_CASE(memory_of_a_returned_slab_is_given_back),
    TEST_CASE(a_page_is_free_when_nobody_holds_it),
    TEST_CASE(a_page_that_others_lean_on_is_held_by_who_holds_them),
    TEST_CASE(biases_stay_with_a_page_until_its_slots_change),
    TEST_CASE(room_is_counted_in_slabs_of_the_class),
    TEST_CASE(a_page_larger_than_a_slab_makes_slabs_larger),
    TEST_CASE(a_wrong_reference_count_is_noticed),
    TEST_CASE(changes_are_told_once_and_in_order),
    TEST_CASE(what_was_made_where_the_copy_is_need_not_be_sent_until_it_changes),
#ifdef HAS_POISON
    TEST_CASE(free_pages_are_poisoned),
#endif
    TEST_CASES_END,
};
