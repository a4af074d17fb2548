/* kvcache/page_table.c - see page_table.h. */
#include "kvcache/page_table.h"

#include "base/check.h"

#include <stdlib.h>
#include <string.h>

enum { ENTRIES_MIN = 8 };

/* Of one list. */
static size_t runs_bytes(const kv_table *table)
{
    return table->capacity / KV_RUN_PAGES * table->run_box_bytes;
}

static void copy_list(const kv_table *table, uint32_t list, kv_table *grown)
{
    const size_t from = kv_table_entry(table, list, 0), to = kv_table_entry(grown, list, 0);
    memcpy(grown->page + to, table->page + from, table->capacity * sizeof *grown->page);
    memcpy(grown->live + to, table->live + from, table->capacity * sizeof *grown->live);
    grown->n_live[list] = table->n_live[list];
    grown->marks[list] = table->marks[list];
    grown->changed[list] = table->changed[list];
    if (runs_bytes(table) > 0)
        memcpy(kv_table_run_box(grown, list, 0), kv_table_run_box(table, list, 0),
               runs_bytes(table));
}

err_t kv_table_grow(kv_table *table, uint32_t n_entries)
{
    if (n_entries <= table->capacity) return ERR_OK;
    uint64_t capacity = table->capacity > 0 ? table->capacity : ENTRIES_MIN;
    while (capacity < n_entries)
        capacity *= 2; /* so that a growing sequence copies each entry once or twice in all */
    if (capacity > UINT32_MAX) return ERR_OVERFLOW;
    kv_table grown = {.n_lists = table->n_lists,
                      .capacity = (uint32_t)capacity,
                      .run_box_bytes = table->run_box_bytes};
    const bool has_runs = runs_bytes(&grown) > 0;
    size_t n, page_bytes;
    TRY(size_mul(table->n_lists, (size_t)capacity, &n));
    TRY(size_mul(n, sizeof *grown.page, &page_bytes));
    grown.page = malloc(page_bytes);
    grown.live = calloc(n, sizeof *grown.live);
    grown.n_live = calloc(table->n_lists, sizeof *grown.n_live);
    grown.marks = calloc(table->n_lists, sizeof *grown.marks);
    grown.changed = calloc(table->n_lists, sizeof *grown.changed);
    if (has_runs) grown.run_boxes = calloc(table->n_lists, runs_bytes(&grown));
    if (grown.page == NULL || grown.live == NULL || grown.n_live == NULL || grown.marks == NULL ||
        grown.changed == NULL || (has_runs && grown.run_boxes == NULL)) {
        kv_table_deinit(&grown);
        return ERR_NO_MEMORY;
    }
    memset(grown.page, 0xff, page_bytes); /* KV_PAGE_NONE */
    for (uint32_t list = 0; list < table->n_lists; list++) {
        grown.marks[list].tail = KV_PAGE_NONE;
        if (table->capacity > 0) copy_list(table, list, &grown);
    }
    kv_table_deinit(table);
    *table = grown;
    return ERR_OK;
}

void kv_table_deinit(kv_table *table)
{
    free(table->page);
    free(table->live);
    free(table->n_live);
    free(table->marks);
    free(table->changed);
    free(table->run_boxes);
    *table = (kv_table){.n_lists = table->n_lists, .run_box_bytes = table->run_box_bytes};
}

size_t kv_table_bytes(const kv_table *table)
{
    if (table->capacity == 0) return 0;
    const size_t entry_bytes = sizeof *table->page + sizeof *table->live;
    return table->n_lists * (table->capacity * entry_bytes + sizeof *table->n_live +
                             sizeof *table->marks + sizeof *table->changed + runs_bytes(table));
}

void kv_table_see(kv_table *table, uint32_t list, uint32_t block, uint64_t live)
{
    uint64_t *entry = &table->live[kv_table_entry(table, list, block)];
    table->n_live[list] -= (uint32_t)__builtin_popcountll(*entry);
    table->n_live[list] += (uint32_t)__builtin_popcountll(live);
    *entry = live;
    if (block < table->changed[list]) table->changed[list] = block;
}

bool kv_table_drop_entry(kv_table *table, kv_pool *pool, uint32_t list, uint32_t block,
                         kv_holder holder)
{
    const uint32_t page = kv_table_page(table, list, block);
    if (page == KV_PAGE_NONE) return false;
    kv_table_see(table, list, block, 0);
    table->page[kv_table_entry(table, list, block)] = KV_PAGE_NONE;
    return kv_pool_drop(pool, page, holder);
}

uint64_t kv_table_drop(kv_table *table, kv_pool *pool, uint32_t first, uint32_t end,
                       kv_holder holder)
{
    uint64_t n_freed = 0;
    if (end > table->capacity) end = table->capacity;
    for (uint32_t list = 0; list < table->n_lists; list++) {
        for (uint32_t b = first; b < end; b++)
            n_freed += kv_table_drop_entry(table, pool, list, b, holder);
    }
    return n_freed;
}
