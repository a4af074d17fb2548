/* kvcache/tier/tiers.c - see tiers.h. */
#include "kvcache/tier/tiers.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/hash.h"
#include "base/log.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* Failures to write, one after the other, after which the file is left alone. One may be a moment
 * without room on the disk; a disk that is full or broken would cost a system call per page for ever. */
enum { WRITE_FAILURES_MAX = 3 };

/* Pages since start that could not be read back, after which no more go there: every one costs a
 * sequence its work, and it would be computed again for ever. */
enum { READ_FAILURES_MAX = 16 };

static const uint64_t LOG_INTERVAL_NS = 10ull * 1000 * 1000 * 1000;

struct kv_tiers {
    kv_pool *pool;      /* borrowed */
    kv_tier_file *file; /* NULL: no such tier */
    hash_key key;
    uint32_t first_file_page, n_file_pages;
    uint64_t *checksum;       /* [n_file_pages]; valid while the page is held */
    _Atomic bool *is_bad;     /* [n_file_pages] */
    uint8_t *landing;         /* of one page, for the owner */
    uint32_t n_failed_writes; /* one after the other */
    bool is_off;
    uint64_t pages_demoted, pages_promoted, write_failures;
    _Atomic uint64_t read_bytes, read_failures;
    _Atomic int read_error;             /* of the last failure: errno, or 0 for a wrong checksum */
    uint64_t reported_failures;         /* of reading, in the log */
    uint64_t read_log_ns, write_log_ns; /* when the last lines were written; 0: never */
};

/* ---- life cycle ---------------------------------------------------------------------------------- */

static err_t open_file(kv_tiers *tiers, const char *dir, err_info *info)
{
    const uint64_t bytes = kv_pool_count_tier(tiers->pool, KV_TIER_FILE).budget_bytes;
    tiers->first_file_page = kv_pool_first_page(tiers->pool, KV_TIER_FILE);
    tiers->n_file_pages = kv_pool_n_pages(tiers->pool) - tiers->first_file_page;
    tiers->checksum = calloc(tiers->n_file_pages, sizeof *tiers->checksum);
    tiers->is_bad = calloc(tiers->n_file_pages, sizeof *tiers->is_bad);
    tiers->landing = malloc(kv_pool_page_bytes_max(tiers->pool));
    if (tiers->checksum == NULL || tiers->is_bad == NULL || tiers->landing == NULL)
        return err_set(info, ERR_NO_MEMORY, "kv-disk-bytes: no memory for what lies in the file");
    TRY(hash_init());
    hash_key_random(&tiers->key);
    return kv_tier_file_open(dir, bytes, &tiers->file, info);
}

err_t kv_tiers_open(kv_pool *pool, const char *dir, kv_tiers **out, err_info *info)
{
    *out = NULL;
    kv_tiers *tiers = calloc(1, sizeof *tiers);
    if (tiers == NULL) return err_set(info, ERR_NO_MEMORY, "no memory for the tiers of the cache");
    tiers->pool = pool;
    const err_t err = dir != NULL ? open_file(tiers, dir, info) : ERR_OK;
    if (err != ERR_OK) {
        kv_tiers_close(tiers);
        return err;
    }
    *out = tiers;
    return ERR_OK;
}

void kv_tiers_close(kv_tiers *tiers)
{
    if (tiers == NULL) return;
    kv_tier_file_close(tiers->file);
    free(tiers->checksum);
    free(tiers->is_bad);
    free(tiers->landing);
    free(tiers);
}

/* ---- the file ------------------------------------------------------------------------------------ */

/* Its number among the pages of the file. */
static uint32_t file_page(const kv_tiers *tiers, uint32_t page)
{
    assert(page >= tiers->first_file_page);
    assert(page - tiers->first_file_page < tiers->n_file_pages);
    return page - tiers->first_file_page;
}

static uint64_t checksum_of(const kv_tiers *tiers, const uint8_t *data, size_t bytes)
{
    return hash_bytes(&tiers->key, data, bytes).lo;
}

static void switch_off(kv_tiers *tiers, const char *cause, uint64_t n_failures)
{
    tiers->is_off = true;
    log_error("kvcache",
              "disk tier off: no more pages go to the file cause=\"%s\" failures=%" PRIu64, cause,
              n_failures);
}

static void note_write_failure(kv_tiers *tiers, int system_error)
{
    const uint64_t now_ns = clock_mono_ns();
    tiers->write_failures++;
    tiers->n_failed_writes++;
    if (tiers->n_failed_writes == WRITE_FAILURES_MAX) {
        switch_off(tiers, strerror(system_error), tiers->write_failures);
    } else if (tiers->write_log_ns == 0 || now_ns - tiers->write_log_ns > LOG_INTERVAL_NS) {
        tiers->write_log_ns = now_ns;
        log_warn("kvcache", "disk tier write failed cause=\"%s\" failures=%" PRIu64,
                 strerror(system_error), tiers->write_failures);
    }
}

/* The page's bytes to its twin in the file. */
static bool write_page(kv_tiers *tiers, uint32_t twin, const uint8_t *data, size_t bytes)
{
    int system_error = 0;
    const uint64_t offset = kv_pool_file_offset(tiers->pool, twin);
    if (kv_tier_file_write(tiers->file, offset, data, bytes, &system_error) != ERR_OK) {
        note_write_failure(tiers, system_error);
        return false;
    }
    tiers->n_failed_writes = 0;
    tiers->checksum[file_page(tiers, twin)] = checksum_of(tiers, data, bytes);
    atomic_store_explicit(&tiers->is_bad[file_page(tiers, twin)], false, memory_order_relaxed);
    return true;
}

/* *system_error is 0 if the bytes came but are not those that were written. */
static bool read_page(const kv_tiers *tiers, uint32_t page, uint8_t *out, int *system_error)
{
    const size_t bytes = kv_pool_page_bytes(tiers->pool, page);
    const uint64_t offset = kv_pool_file_offset(tiers->pool, page);
    *system_error = 0;
    if (kv_tier_file_read(tiers->file, offset, out, bytes, system_error) != ERR_OK) return false;
    return checksum_of(tiers, out, bytes) == tiers->checksum[file_page(tiers, page)];
}

void kv_tiers_report(kv_tiers *tiers)
{
    const uint64_t n = atomic_load_explicit(&tiers->read_failures, memory_order_relaxed);
    if (n == tiers->reported_failures) return;
    const int error = atomic_load_explicit(&tiers->read_error, memory_order_relaxed);
    const char *cause = error != 0 ? strerror(error) : "the bytes differ from those written";
    if (n >= READ_FAILURES_MAX && !tiers->is_off) switch_off(tiers, cause, n);
    const uint64_t now_ns = clock_mono_ns();
    if (tiers->read_log_ns != 0 && now_ns - tiers->read_log_ns < LOG_INTERVAL_NS) return;
    tiers->read_log_ns = now_ns;
    tiers->reported_failures = n;
    log_error("kvcache",
              "disk tier read failed: its sequences are computed again cause=\"%s\" "
              "failures=%" PRIu64,
              cause, n);
}

/* ---- moving -------------------------------------------------------------------------------------- */

uint32_t kv_tiers_demote(kv_tiers *tiers, uint32_t page, kv_holder holder)
{
    const uint8_t *data = kv_pool_data(tiers->pool, page);
    const size_t bytes = kv_pool_page_bytes(tiers->pool, page);
    uint32_t twin = kv_pool_alloc_twin(tiers->pool, page, KV_TIER_HOST, holder);
    if (twin != KV_PAGE_NONE) {
        memcpy(kv_pool_data(tiers->pool, twin), data, bytes);
    } else {
        if (tiers->file == NULL || tiers->is_off) return KV_PAGE_NONE;
        twin = kv_pool_alloc_twin(tiers->pool, page, KV_TIER_FILE, holder);
        if (twin == KV_PAGE_NONE) return KV_PAGE_NONE;
        if (!write_page(tiers, twin, data, bytes)) {
            (void)kv_pool_drop(tiers->pool, twin, holder);
            return KV_PAGE_NONE;
        }
    }
    tiers->pages_demoted++;
    return twin;
}

uint32_t kv_tiers_promote(kv_tiers *tiers, uint32_t page, kv_holder holder)
{
    const uint8_t *data = kv_tiers_read(tiers, page, tiers->landing);
    if (data == NULL) return KV_PAGE_NONE;
    const uint32_t twin = kv_pool_alloc_twin(tiers->pool, page, KV_TIER_POOL, holder);
    if (twin == KV_PAGE_NONE) return KV_PAGE_NONE;
    memcpy(kv_pool_data(tiers->pool, twin), data, kv_pool_page_bytes(tiers->pool, page));
    tiers->pages_promoted++;
    return twin;
}

/* ---- reading ------------------------------------------------------------------------------------- */

const uint8_t *kv_tiers_read(kv_tiers *tiers, uint32_t page, uint8_t *landing)
{
    int system_error;
    if (kv_pool_tier(tiers->pool, page) != KV_TIER_FILE) return kv_pool_data(tiers->pool, page);
    if (kv_tiers_is_bad(tiers, page)) return NULL;
    if (read_page(tiers, page, landing, &system_error)) {
        atomic_fetch_add_explicit(&tiers->read_bytes, kv_pool_page_bytes(tiers->pool, page),
                                  memory_order_relaxed);
        return landing;
    }
    atomic_store_explicit(&tiers->is_bad[file_page(tiers, page)], true, memory_order_relaxed);
    atomic_store_explicit(&tiers->read_error, system_error, memory_order_relaxed);
    atomic_fetch_add_explicit(&tiers->read_failures, 1, memory_order_relaxed);
    return NULL;
}

const uint8_t *kv_tiers_peek(const kv_tiers *tiers, uint32_t page, uint8_t *landing)
{
    int system_error;
    if (kv_pool_tier(tiers->pool, page) != KV_TIER_FILE) return kv_pool_data(tiers->pool, page);
    return read_page(tiers, page, landing, &system_error) ? landing : NULL;
}

bool kv_tiers_is_bad(const kv_tiers *tiers, uint32_t page)
{
    return kv_pool_tier(tiers->pool, page) == KV_TIER_FILE &&
           atomic_load_explicit(&tiers->is_bad[file_page(tiers, page)], memory_order_relaxed);
}

void kv_tiers_hint_end(const kv_tiers *tiers, const kv_tier_range *range)
{
    if (range->bytes > 0) kv_tier_file_hint(tiers->file, range->offset, range->bytes);
}

void kv_tiers_hint(const kv_tiers *tiers, uint32_t page, kv_tier_range *range)
{
    const uint64_t offset = kv_pool_file_offset(tiers->pool, page);
    const size_t bytes = kv_pool_page_bytes(tiers->pool, page);
    if (offset == range->offset + range->bytes) {
        range->bytes += bytes;
        return;
    }
    kv_tiers_hint_end(tiers, range);
    *range = (kv_tier_range){offset, bytes};
}

/* ---- queries ------------------------------------------------------------------------------------- */

kv_tiers_counts kv_tiers_count(const kv_tiers *tiers)
{
    return (kv_tiers_counts){
        .pages_demoted = tiers->pages_demoted,
        .pages_promoted = tiers->pages_promoted,
        .read_bytes = atomic_load_explicit(&tiers->read_bytes, memory_order_relaxed),
        .read_failures = atomic_load_explicit(&tiers->read_failures, memory_order_relaxed),
        .write_failures = tiers->write_failures,
        .is_off = tiers->is_off,
    };
}
