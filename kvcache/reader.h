/* kvcache/reader.h - attention of a step's queries over pages, ring and staging.
 *
 * A job is one KV head of one layer and up to 16 queries of one sequence that follow each other. Its
 * blocks are listed in position order, 64 at a time, in the scratch of the worker that runs it, and
 * folded by dev->ops->attend. Where a block lies decides only which spans it has:
 *
 *   in a page            page            (block 0: sinks of the ring, then the page without them)
 *   in ring and staging  ring, staging
 *
 * so neither the cut of a prompt, nor the neighbours, nor the prefix cache changes a bit. */
#ifndef KVCACHE_READER_H
#define KVCACHE_READER_H

#include "base/arena.h"
#include "kvcache/kv_cache.h"

enum { KV_TILE_QUERIES_MAX = 16, KV_READ_BLOCKS = 64 };

/* Scratch of one worker. */
typedef struct kv_reader_worker {
    attn_span *spans;                 /* [2 * KV_READ_BLOCKS] */
    attn_block *blocks;               /* [KV_READ_BLOCKS] */
    uint32_t *chosen;                 /* [n_blocks_max]: what routing selects */
    uint32_t *positions;              /* [KV_TILE_QUERIES_MAX] */
    attn_state state;                 /* of the largest tile */
    uint64_t bytes_read, blocks_read; /* since start */
} kv_reader_worker;

/* Queries [first, first + n_queries) of the share of rows[row]. */
typedef struct kv_tile {
    uint32_t row;
    uint32_t first;
    uint32_t n_queries;
} kv_tile;

typedef struct kv_reader {
    uint32_t n_workers;
    kv_reader_worker *workers; /* [n_workers] */
    kv_tile *tiles;            /* [n_step_tokens_max] */
} kv_reader;

/* Run over a measuring and then a real arena. */
void kv_reader_place(arena *a, const kv_cache *cache, kv_reader *reader);

/* Bytes and blocks read so far, all workers. Between steps. */
void kv_reader_count(const kv_reader *reader, uint64_t *bytes_read, uint64_t *blocks_read);

#endif
