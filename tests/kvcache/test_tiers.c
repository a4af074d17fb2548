/* tests/kvcache/test_tiers.c - promises of kvcache/tier/tiers.h and tier_file.h: pages that leave the pool
 * come back bit for bit or not at all. */
#include "kvcache/page_slots.h"
#include "kvcache/tier/tiers.h"
#include "tests/kvcache/bad_disk.h"
#include "tests/test_main.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum { PAGE_TOKENS = 8, SMALL = 8 * 1024, LARGE = 24 * 1024, BOX = 16, N_POOL = 12 };

typedef struct rig {
    kv_pool *pool;
    kv_tiers *tiers;
    char dir[64];
    uint32_t pages[N_POOL]; /* of the pool, filled; KV_PAGE_NONE once they have moved */
    uint8_t landing[LARGE];
} rig;

/* Bytes of page i that nothing else could be mistaken for. */
static void write_bytes(uint8_t *data, size_t bytes, uint32_t i)
{
    for (size_t k = 0; k < bytes; k++)
        data[k] = (uint8_t)(k * 31 + i * 7 + (k >> 8));
}

static bool are_bytes(const uint8_t *data, size_t bytes, uint32_t i)
{
    for (size_t k = 0; k < bytes; k++) {
        if (data[k] != (uint8_t)(k * 31 + i * 7 + (k >> 8))) return false;
    }
    return true;
}

/* A pool of N_POOL pages of both sizes, all of them held, and tiers of so many slabs. */
static void open_rig(rig *r, uint32_t n_host_slabs, uint32_t n_file_slabs)
{
    static const size_t page_bytes[] = {SMALL, LARGE};
    const kv_pool_config config = {.budget_bytes = 16 * KV_SLAB_BYTES,
                                   .host_bytes = n_host_slabs * KV_SLAB_BYTES,
                                   .file_bytes = n_file_slabs * KV_SLAB_BYTES,
                                   .page_tokens = PAGE_TOKENS,
                                   .n_classes = 2,
                                   .n_shards = 3,
                                   .page_bytes = page_bytes,
                                   .box_bytes = BOX};
    err_info info = {0};
    bad_disk_mend();
    strcpy(r->dir, "/tmp/pikv-tiers-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(r->dir));
    ck_assert_int_eq(kv_pool_open(&config, &r->pool), ERR_OK);
    const char *dir = n_file_slabs > 0 ? r->dir : NULL;
    ck_assert_msg(kv_tiers_open(r->pool, dir, &r->tiers, &info) == ERR_OK, "%s", info.message);
    for (uint32_t i = 0; i < N_POOL; i++) {
        const uint32_t page = kv_pool_alloc_page(r->pool, i % 2, KV_HELD_BY_SEQ);
        kv_pool_fill(r->pool, page, 8 * i, 1 + i % 8, i % 3);
        write_bytes(kv_pool_data(r->pool, page), kv_pool_page_bytes(r->pool, page), i);
        memset(kv_pool_box(r->pool, page), (int)i, BOX);
        r->pages[i] = page;
    }
}

/* Everything that is held is dropped, and the pool is sane with that and without. The folder is empty:
 * rmdir says so. */
static void close_rig(rig *r, const uint32_t *away, uint32_t n_away)
{
    kv_pool_check_begin(r->pool);
    for (uint32_t i = 0; i < N_POOL; i++) {
        if (r->pages[i] != KV_PAGE_NONE) kv_pool_check_ref(r->pool, r->pages[i], KV_HELD_BY_SEQ);
    }
    for (uint32_t i = 0; i < n_away; i++)
        kv_pool_check_ref(r->pool, away[i], KV_HELD_BY_SEQ);
    ck_assert(kv_pool_check_end(r->pool));
    for (uint32_t i = 0; i < N_POOL; i++) {
        if (r->pages[i] != KV_PAGE_NONE) (void)kv_pool_drop(r->pool, r->pages[i], KV_HELD_BY_SEQ);
    }
    for (uint32_t i = 0; i < n_away; i++)
        (void)kv_pool_drop(r->pool, away[i], KV_HELD_BY_SEQ);
    kv_pool_check_begin(r->pool);
    ck_assert(kv_pool_check_end(r->pool));
    for (int t = 0; t < KV_N_TIERS; t++)
        ck_assert_uint_eq(kv_pool_count_tier(r->pool, (kv_tier)t).slab_bytes, 0);
    kv_tiers_close(r->tiers);
    kv_pool_close(r->pool);
    ck_assert_int_eq(rmdir(r->dir), 0);
}

/* Moves page i of the pool down; KV_PAGE_NONE if it stays. */
static uint32_t demote(rig *r, uint32_t i)
{
    const uint32_t twin = kv_tiers_demote(r->tiers, r->pages[i], KV_HELD_BY_SEQ);
    if (twin == KV_PAGE_NONE) return twin;
    (void)kv_pool_drop(r->pool, r->pages[i], KV_HELD_BY_SEQ);
    r->pages[i] = KV_PAGE_NONE;
    return twin;
}

/* All that is known of page i, and its bytes. */
static void check_page(rig *r, uint32_t page, uint32_t i)
{
    const kv_pages *known = kv_pool_pages(r->pool);
    ck_assert_uint_eq(kv_pool_class(r->pool, page), i % 2);
    ck_assert_uint_eq(known->n_slots[page], 1 + i % 8);
    ck_assert_uint_eq(known->owner[page], i % 3);
    for (uint32_t s = 0; s < 1 + i % 8; s++)
        ck_assert_uint_eq(known->positions[page * PAGE_TOKENS + s], 8 * i + s);
    for (uint32_t b = 0; b < BOX; b++)
        ck_assert_uint_eq(known->boxes[page * BOX + b], i);
    const uint8_t *data = kv_tiers_read(r->tiers, page, r->landing);
    ck_assert_ptr_nonnull(data);
    ck_assert(are_bytes(data, i % 2 == 0 ? SMALL : LARGE, i));
}

/* Through each tier on its own and through both. */
static void check_round_trip(uint32_t n_host_slabs, uint32_t n_file_slabs)
{
    rig r;
    uint32_t away[N_POOL];
    open_rig(&r, n_host_slabs, n_file_slabs);
    for (uint32_t i = 0; i < N_POOL; i++) {
        away[i] = demote(&r, i);
        ck_assert_uint_ne(away[i], KV_PAGE_NONE);
        ck_assert_int_ne(kv_pool_tier(r.pool, away[i]), KV_TIER_POOL);
    }
    ck_assert_uint_eq(kv_pool_count(r.pool).slab_bytes, 0); /* the pool has its bytes back */
    for (uint32_t i = 0; i < N_POOL; i++)
        check_page(&r, away[i], i);
    for (uint32_t i = 0; i < N_POOL; i++) {
        r.pages[i] = kv_tiers_promote(r.tiers, away[i], KV_HELD_BY_SEQ);
        ck_assert_uint_ne(r.pages[i], KV_PAGE_NONE);
        ck_assert_int_eq(kv_pool_tier(r.pool, r.pages[i]), KV_TIER_POOL);
        (void)kv_pool_drop(r.pool, away[i], KV_HELD_BY_SEQ);
    }
    for (uint32_t i = 0; i < N_POOL; i++)
        check_page(&r, r.pages[i], i);
    const kv_tiers_counts counts = kv_tiers_count(r.tiers);
    ck_assert_uint_eq(counts.pages_demoted, N_POOL);
    ck_assert_uint_eq(counts.pages_promoted, N_POOL);
    ck_assert_uint_eq(counts.read_failures + counts.write_failures, 0);
    close_rig(&r, NULL, 0);
}

START_TEST(a_page_comes_back_bit_for_bit_from_every_tier)
{
    check_round_trip(8, 0);
    check_round_trip(0, 8);
    check_round_trip(2, 8);
    ck_assert_int_gt(the_disk.n_writes, 0);
}
END_TEST

START_TEST(host_memory_is_filled_before_the_file)
{
    rig r;
    uint32_t away[N_POOL], n_host = 0;
    open_rig(&r, 2, 8);
    for (uint32_t i = 0; i < N_POOL; i++) {
        away[i] = demote(&r, i);
        const kv_tier tier = kv_pool_tier(r.pool, away[i]);
        if (tier == KV_TIER_HOST) n_host++;
    }
    ck_assert_uint_eq(n_host, N_POOL / 2 + KV_SLAB_BYTES / LARGE); /* a slab of either size */
    ck_assert_uint_eq(kv_pool_count_tier(r.pool, KV_TIER_HOST).slab_bytes, 2 * KV_SLAB_BYTES);
    ck_assert_uint_eq(kv_pool_count_tier(r.pool, KV_TIER_FILE).n_pages, N_POOL - n_host);
    close_rig(&r, away, N_POOL);
}
END_TEST

START_TEST(full_tiers_say_so_and_change_nothing)
{
    rig r;
    uint32_t away[N_POOL], n = 0;
    open_rig(&r, 0, 2);
    for (uint32_t i = 0; i < N_POOL; i++) {
        const uint32_t twin = demote(&r, i);
        if (twin != KV_PAGE_NONE) away[n++] = twin;
    }
    ck_assert_uint_eq(n, N_POOL / 2 + KV_SLAB_BYTES / LARGE);
    ck_assert_uint_eq(kv_tiers_count(r.tiers).write_failures, 0);
    close_rig(&r, away, n);
}
END_TEST

START_TEST(short_writes_and_reads_are_continued)
{
    rig r;
    open_rig(&r, 0, 8);
    the_disk.bytes_max = 1000;
    const uint32_t away[1] = {demote(&r, 1)};
    ck_assert_uint_ne(away[0], KV_PAGE_NONE);
    check_page(&r, away[0], 1);
    close_rig(&r, away, 1);
}
END_TEST

START_TEST(a_failed_write_leaves_the_page_where_it_is)
{
    static const int errors[] = {ENOSPC, EIO, 0};
    for (size_t e = 0; e < 3; e++) {
        rig r;
        open_rig(&r, 0, 8);
        the_disk.error = errors[e];
        the_disk.n_failing = 1;
        the_disk.writes_until_failure = 0;
        ck_assert_uint_eq(demote(&r, 0), KV_PAGE_NONE);
        check_page(&r, r.pages[0], 0);
        ck_assert_uint_eq(kv_tiers_count(r.tiers).write_failures, 1);
        const uint32_t away[1] = {demote(&r, 0)}; /* one failure is forgiven */
        ck_assert_uint_ne(away[0], KV_PAGE_NONE);
        check_page(&r, away[0], 0);
        ck_assert(!kv_tiers_count(r.tiers).is_off);
        close_rig(&r, away, 1);
    }
}
END_TEST

START_TEST(a_file_that_fails_again_and_again_is_left_alone)
{
    rig r;
    open_rig(&r, 0, 8);
    const uint32_t away[1] = {demote(&r, 11)};
    the_disk.error = ENOSPC;
    the_disk.writes_until_failure = 1; /* a write that is cut short, and then no more room */
    the_disk.bytes_max = 100;
    for (uint32_t i = 0; i < 10; i++)
        ck_assert_uint_eq(demote(&r, i), KV_PAGE_NONE);
    the_disk.bytes_max = 0;
    ck_assert(kv_tiers_count(r.tiers).is_off);
    ck_assert_uint_eq(kv_tiers_count(r.tiers).write_failures, 3);
    ck_assert_int_eq(the_disk.n_writes, 1 + 4);
    check_page(&r, away[0], 11); /* and what is there can still be read */
    close_rig(&r, away, 1);
}
END_TEST

START_TEST(a_limit_of_the_system_is_a_full_disk)
{
    rig r;
    uint32_t away[N_POOL], n = 0;
    open_rig(&r, 0, 8);
    signal(SIGXFSZ, SIG_IGN);
    const struct rlimit limit = {.rlim_cur = SMALL * 3 / 2, .rlim_max = RLIM_INFINITY};
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    for (uint32_t i = 0; i < N_POOL; i += 2) {
        const uint32_t twin = demote(&r, i);
        if (twin == KV_PAGE_NONE) continue;
        check_page(&r, twin, i);
        away[n++] = twin;
    }
    ck_assert_uint_eq(n, 1);
    ck_assert(kv_tiers_count(r.tiers).is_off);
    close_rig(&r, away, n);
}
END_TEST

START_TEST(a_wrong_byte_is_an_error_and_stays_one)
{
    rig r;
    open_rig(&r, 0, 8);
    uint32_t away[2] = {demote(&r, 1), demote(&r, 2)};
    the_disk.flips_every = 1;
    ck_assert_ptr_null(kv_tiers_read(r.tiers, away[0], r.landing));
    ck_assert(kv_tiers_is_bad(r.tiers, away[0]));
    the_disk.flips_every = 0;
    ck_assert_ptr_null(kv_tiers_read(r.tiers, away[0], r.landing));
    ck_assert_uint_eq(kv_tiers_promote(r.tiers, away[0], KV_HELD_BY_SEQ), KV_PAGE_NONE);
    ck_assert_uint_eq(kv_tiers_count(r.tiers).read_failures, 1);
    check_page(&r, away[1], 2); /* the others are as good as ever */
    (void)kv_pool_drop(r.pool, away[0], KV_HELD_BY_SEQ);
    away[0] = demote(&r, 3); /* in the same place, and good */
    check_page(&r, away[0], 3);
    close_rig(&r, away, 2);
}
END_TEST

START_TEST(a_failed_read_is_an_error)
{
    static const int errors[] = {EIO, 0};
    for (size_t e = 0; e < 2; e++) {
        rig r;
        open_rig(&r, 0, 8);
        const uint32_t away[1] = {demote(&r, 1)};
        the_disk.error = errors[e];
        the_disk.bytes_max = 5000;
        the_disk.reads_until_failure = 2; /* in the middle of the page */
        ck_assert_ptr_null(kv_tiers_read(r.tiers, away[0], r.landing));
        ck_assert(kv_tiers_is_bad(r.tiers, away[0]));
        kv_tiers_report(r.tiers);
        close_rig(&r, away, 1);
    }
}
END_TEST

START_TEST(a_look_for_checks_counts_nothing)
{
    rig r;
    open_rig(&r, 0, 8);
    const uint32_t away[1] = {demote(&r, 1)};
    ck_assert_ptr_nonnull(kv_tiers_peek(r.tiers, away[0], r.landing));
    the_disk.flips_every = 1;
    ck_assert_ptr_null(kv_tiers_peek(r.tiers, away[0], r.landing));
    the_disk.flips_every = 0;
    ck_assert(!kv_tiers_is_bad(r.tiers, away[0]));
    ck_assert_uint_eq(kv_tiers_count(r.tiers).read_bytes, 0);
    kv_tier_range range = {0};
    kv_tiers_hint(r.tiers, away[0], &range);
    kv_tiers_hint_end(r.tiers, &range);
    ck_assert_uint_eq(range.bytes, LARGE);
    check_page(&r, away[0], 1);
    ck_assert_uint_eq(kv_tiers_count(r.tiers).read_bytes, LARGE);
    close_rig(&r, away, 1);
}
END_TEST

START_TEST(a_folder_that_cannot_hold_a_file_is_named)
{
    static const size_t page_bytes[] = {SMALL};
    const kv_pool_config config = {.budget_bytes = KV_SLAB_BYTES,
                                   .file_bytes = KV_SLAB_BYTES,
                                   .page_tokens = PAGE_TOKENS,
                                   .n_classes = 1,
                                   .n_shards = 1,
                                   .page_bytes = page_bytes};
    kv_pool *pool;
    kv_tiers *tiers;
    err_info info = {0};
    ck_assert_int_eq(kv_pool_open(&config, &pool), ERR_OK);
    ck_assert_int_eq(kv_tiers_open(pool, "/no/such/folder", &tiers, &info), ERR_BAD_CONFIG);
    ck_assert_ptr_null(tiers);
    ck_assert_ptr_nonnull(strstr(info.message, "kv-disk-path"));
    ck_assert_ptr_nonnull(strstr(info.message, "/no/such/folder"));
    kv_pool_close(pool);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(a_page_comes_back_bit_for_bit_from_every_tier),
    TEST_CASE(host_memory_is_filled_before_the_file),
    TEST_CASE(full_tiers_say_so_and_change_nothing),
    TEST_CASE(short_writes_and_reads_are_continued),
    TEST_CASE(a_failed_write_leaves_the_page_where_it_is),
    TEST_CASE(a_file_that_fails_again_and_again_is_left_alone),
    TEST_CASE(a_limit_of_the_system_is_a_full_disk),
    TEST_CASE(a_wrong_byte_is_an_error_and_stays_one),
    TEST_CASE(a_failed_read_is_an_error),
    TEST_CASE(a_look_for_checks_counts_nothing),
    TEST_CASE(a_folder_that_cannot_hold_a_file_is_named),
    TEST_CASES_END,
};
