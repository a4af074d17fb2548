/* kvcache/reader.h - attention of a step's queries over pages, ring and staging.
 *
 * A job is one KV head of one layer and up to 16 queries of one sequence that follow each other. Its
 * blocks are listed in position order, 64 at a time, in the scratch of the worker that runs it, and
 * folded by dev->ops->attend. Where a block lies decides only which spans it has:
 *
 *   in a page            page            (block 0: sinks of the ring, then the page without them)
 *   in ring and staging  ring, staging
 *   scattered layers     a page of its own each, in order of first positions; sinks before (scatter.h)
 *
 * so neither the cut of a prompt, nor the neighbours, nor the prefix cache changes a bit.
 *
 * Queries of a prompt that is read again (kv_replay.h) go over the keys twice more: once for the lse over
 * those that their scores compare, unless that is all of them, and once for the chunk's largest shares.
 *
 * What entries get from the queries around them is summed behind attention, too (local_mass.h).
 *
 * Pages of a low-rank codec are listed and folded by themselves (low_reader.h).
 *
 * A decode query under a routing that is not exact leaves out the pages that are not chosen; what it
 * reads is folded in position order all the same, so it has the bits of a full read if that is all.
 * Methods that want to know what has been read before they go on (routing.h) get it from a probe: an
 * attention of values without channels, whose maximum and sum of weights are those of the keys. The
 * keys of chosen pages are then read twice, the second time from the processor's cache. */
#ifndef KVCACHE_READER_H
#define KVCACHE_READER_H

#include "base/arena.h"
#include "kvcache/kv_cache.h"
#include "kvcache/low_reader.h"
#include "kvcache/page_choice.h"

enum { KV_TILE_QUERIES_MAX = 16, KV_READ_BLOCKS = 64 };

/* Scratch of one worker. */
typedef struct kv_reader_worker {
    attn_span *spans;    /* [2 * KV_READ_BLOCKS] */
    attn_block *blocks;  /* [KV_READ_BLOCKS] */
    uint32_t *positions; /* [KV_TILE_QUERIES_MAX] */
    attn_state state;    /* of the largest tile */
    attn_state probe;    /* of one query's heads; no values */
    float *lse;          /* [rows of the largest tile], of a pass that keeps its own */
    kv_low_reader low;   /* pages of coefficients, of the job or its probe */
    uint8_t *landings;   /* [KV_READ_BLOCKS][landing_bytes]: pages of the file; NULL without one */
    kv_choice choice;
    uint64_t bytes_read, blocks_read; /* since start, probes not counted */
    uint64_t pages_open,
        pages_read; /* since start: candidates of decode queries, and chosen ones */
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
    kv_misses *job_misses; /* [n_seqs_max][n_kv_heads_max]: of decode rows in the present layer */
    kv_misses misses, step_misses; /* since start; of the last step that had decode rows */
} kv_reader;

/* Run over a measuring and then a real arena. */
void kv_reader_place(arena *a, const kv_cache *cache, kv_reader *reader);

/* Queries of a tile in a layer, at most. */
uint32_t kv_tile_queries(const kv_layer_shape *shape);

/* A step with decode rows begins. */
void kv_reader_begin_step(kv_reader *reader);

/* Writes what all workers and the device's view have counted. Between steps. */
void kv_reader_count(const kv_cache *cache, kv_stats *stats);

#endif
