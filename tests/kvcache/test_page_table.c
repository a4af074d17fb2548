/* tests/kvcache/test_page_table.c - lists of pages and the slots seen of them. */
#include "kvcache/page_table.h"
#include "tests/test_main.h"

enum { N_LISTS = 3 };

static kv_pool *open_pool(void)
{
    static const size_t page_bytes[] = {4096};
    const kv_pool_config config = {.budget_bytes = 1 << 20,
                                   .page_tokens = 16,
                                   .n_classes = 1,
                                   .page_bytes = page_bytes,
                                   .n_shards = 4};
    kv_pool *pool;
    ck_assert_int_eq(kv_pool_open(&config, &pool), ERR_OK);
    return pool;
}

static void put(kv_table *table, kv_pool *pool, uint32_t list, uint32_t block)
{
    table->page[kv_table_entry(table, list, block)] = kv_pool_alloc_page(pool, 0, KV_HELD_BY_SEQ);
}

START_TEST(growing_keeps_every_entry_and_makes_room_for_more)
{
    kv_pool *pool = open_pool();
    kv_table table = {.n_lists = N_LISTS};
    ck_assert_uint_eq(kv_table_bytes(&table), 0);
    ck_assert_uint_eq(kv_table_page(&table, 1, 0), KV_PAGE_NONE);
    ck_assert_int_eq(kv_table_grow(&table, 3), ERR_OK);
    put(&table, pool, 1, 2);
    kv_table_see(&table, 1, 2, 0x70f);
    const uint32_t page = kv_table_page(&table, 1, 2);
    ck_assert_int_eq(kv_table_grow(&table, 40), ERR_OK);
    ck_assert_uint_ge(table.capacity, 40);
    ck_assert_uint_eq(kv_table_page(&table, 1, 2), page);
    ck_assert_uint_eq(table.live[kv_table_entry(&table, 1, 2)], 0x70f);
    ck_assert_uint_eq(table.n_live[1], 7);
    for (uint32_t list = 0; list < N_LISTS; list++) {
        for (uint32_t b = 0; b < table.capacity; b++) {
            if (list == 1 && b == 2) continue;
            ck_assert_uint_eq(kv_table_page(&table, list, b), KV_PAGE_NONE);
            ck_assert_uint_eq(table.live[kv_table_entry(&table, list, b)], 0);
        }
    }
    kv_table_drop(&table, pool, 0, 40, KV_HELD_BY_SEQ);
    kv_table_deinit(&table);
    kv_pool_close(pool);
}
END_TEST

START_TEST(dropping_frees_the_pages_that_nobody_else_holds)
{
    kv_pool *pool = open_pool();
    kv_table table = {.n_lists = N_LISTS};
    ck_assert_int_eq(kv_table_grow(&table, 4), ERR_OK);
    for (uint32_t list = 0; list < N_LISTS; list++) {
        for (uint32_t b = 0; b < 4; b++)
            put(&table, pool, list, b);
    }
    const uint32_t shared = kv_table_page(&table, 2, 3);
    kv_pool_hold(pool, shared, KV_HELD_BY_OBJECT);
    ck_assert_uint_eq(kv_table_drop(&table, pool, 2, 4, KV_HELD_BY_SEQ), 5);
    ck_assert_uint_eq(kv_table_page(&table, 0, 2), KV_PAGE_NONE);
    ck_assert_uint_ne(kv_table_page(&table, 0, 1), KV_PAGE_NONE);
    ck_assert_uint_eq(kv_pool_count(pool).pages_used, 6);
    ck_assert_uint_eq(kv_pool_count(pool).pages_cached, 1);
    ck_assert_uint_eq(kv_table_drop(&table, pool, 0, 100, KV_HELD_BY_SEQ), 6);
    ck_assert(kv_pool_drop(pool, shared, KV_HELD_BY_OBJECT));
    kv_table_deinit(&table);
    kv_pool_close(pool);
}
END_TEST

START_TEST(live_slots_are_counted_per_list)
{
    kv_pool *pool = open_pool();
    kv_table table = {.n_lists = N_LISTS};
    ck_assert_int_eq(kv_table_grow(&table, 4), ERR_OK);
    put(&table, pool, 0, 0);
    put(&table, pool, 0, 1);
    kv_table_see(&table, 0, 0, 0xff);
    kv_table_see(&table, 0, 1, 0xf);
    kv_table_see(&table, 0, 0, 0xf0);
    ck_assert_uint_eq(table.n_live[0], 8);
    ck_assert_uint_eq(table.n_live[1], 0);
    ck_assert(kv_table_drop_entry(&table, pool, 0, 0, KV_HELD_BY_SEQ));
    ck_assert_uint_eq(table.n_live[0], 4);
    ck_assert(!kv_table_drop_entry(&table, pool, 0, 0, KV_HELD_BY_SEQ));
    kv_table_drop(&table, pool, 0, 4, KV_HELD_BY_SEQ);
    kv_table_deinit(&table);
    kv_pool_close(pool);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(growing_keeps_every_entry_and_makes_room_for_more),
    TEST_CASE(dropping_frees_the_pages_that_nobody_else_holds),
    TEST_CASE(live_slots_are_counted_per_list),
    TEST_CASES_END,
};
