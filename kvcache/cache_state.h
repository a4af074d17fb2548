/* kvcache/cache_state.h - what a cache is made of; private to kvcache/ and its tests.
 *
 * Files, in reading order:
 *   kv_open.c       open and close: sizes, classes, arrays
 *   kv_seq.c        sequences: open, truncate, close
 *   kv_step.c       one step: begin, append, note experts, end, abort
 *   commit.c        what step begin reserves and step end writes to pages
 *   scatter.c       the same for layers whose entries are placed one by one
 *   device_view.c   what a device with memory of its own sees of all this (device_tell.c: is told, device_commit.c: makes)
 *   encode.c        which blocks are encoded, and when (basis.c: in which basis; heat.c: by which codec)
 *   demote.c        which pages go to lower tiers, and come back; away.c reads them there
 *   evict.c         which entries stay (evict_score.c: by what; score_view.c: seen how; observe*.c, local_mass.c: kept)
 *   distill.c       what stays is made to stand for what goes (rewrite.c: or is rewritten; own_pages.c: where)
 *   compact.c       pages with holes become fewer
 *   reader.c        attention (read_blocks.c: over what; low_reader.c: over coefficients; ranks.c: over ranks)
 *   page_choice.c   which pages a decode query reads, by routing (key_box.c, run_box.c: by what)
 *   prefix_cache.c  cached objects (found by prefix_index.c, prefix_ranks.c; prefix_share.c, prefix_take.c)
 *   kv_queries.c    numbers for others (kv_map.c: what lies where)
 *   kv_sane.c       the invariants
 *
 * Blocks: position p lies in block p / page_tokens. Of a sequence, blocks [0, n_blocks) lie in pages
 * and positions [n_blocks * page_tokens, length) in its ring; during a step, positions [length,
 * length + n_step_tokens) lie in staging, and blocks [n_blocks, n_reserved) have empty pages - but in
 * layers whose entries are placed one by one, where pages are taken when the step ends (scatter.h).
 *
 * Scheduling thins a sequence out: from then on an entry of its table is no block any more, but up to a
 * page of entries in position order, those of all entries before it being older. */
#ifndef KVCACHE_CACHE_STATE_H
#define KVCACHE_CACHE_STATE_H

#include "base/arena.h"
#include "base/check.h"
#include "kvcache/basis_state.h"
#include "kvcache/evict_state.h"
#include "kvcache/heat_state.h"
#include "kvcache/kv_cache.h"
#include "kvcache/observe.h"
#include "kvcache/page_table.h"
#include "kvcache/placement/expert_map.h"
#include "kvcache/placement/placement.h"
#include "kvcache/prefix_cache.h"
#include "kvcache/ranks_state.h"
#include "kvcache/reader.h"
#include "kvcache/recent_ring.h"
#include "kvcache/stats_board.h"
#include "kvcache/step_state.h"
#include "kvcache/tier/tiers.h"

enum { KV_CODECS_MAX = 16 };
#define KV_CLASS_NONE UINT32_MAX

struct kv_seq {
    kv_cache *cache;
    kv_methods methods;
    kv_seq *next_free; /* valid only while closed */
    uint64_t id;       /* see kv_map.h */
    uint64_t origin;   /* entries with the same one are the same; prefix_ranks.h */
    bool is_open, no_prefix_read, no_prefix_write;
    _Atomic bool is_lost; /* a page could not be read; see away.h */
    bool is_taken;   /* over from a prefix, and no step since: n_coded may lag behind the goal */
    bool is_thinned; /* scheduling has evicted entries */
    uint64_t n_pages_evicted, n_pages_demoted;
    uint32_t length;     /* tokens held, a step's not included */
    uint32_t n_blocks;   /* in pages: the first n_blocks * page_tokens positions */
    uint32_t n_reserved; /* >= n_blocks; the rest has pages without slots, inside a step only */
    uint32_t n_coded; /* blocks below lie in encoded pages, from there on in raw ones; encode.h */
    uint32_t n_coded_goal;   /* valid only inside a step: n_coded after it */
    uint32_t settled_length; /* at which scheduling last had its way; evict.h */
    uint32_t chosen_length; /* at which it last chose what stays; settled_length when all is done */
    uint32_t n_prompt_tokens;
    uint32_t n_replayed;    /* of them have been read again; kv_replay.h */
    bool is_replaying;      /* tokens behind the prompt are those of a replay */
    uint32_t first_token;   /* of its tokens in the step's batch; valid only inside a step */
    uint32_t n_step_tokens; /* 0 outside a step */
    uint32_t object;        /* the cached object that borrows this table, or KV_OBJECT_NONE */
    hash128 seed;           /* of its prefix keys: salt and settings */
    kv_misses misses, step_misses; /* of its decode queries; of the step that is open */
    kv_table table;
    kv_ring *ring;        /* NULL while closed */
    kv_observed observed; /* what its scorer needs beside the entries */
};

struct kv_cache {
    dev *d;
    kv_methods methods;   /* of sequences that bring none */
    bool request_methods; /* sequences may bring others */
    const kv_placement *placement;
    bool has_boxes;       /* of pages, for routing */
    size_t run_box_bytes; /* of tables whose sequence's routing asks for runs */
    kv_limits limits;
    dtype type;
    uint32_t page_tokens, window_tokens, sink_tokens, n_shards;
    bool prefix_caching;
    bool has_tiers, has_file;                             /* below the pool; tier/tiers.h */
    uint32_t section_tokens, replay_tokens, local_tokens; /* encode, kv_replay, local_mass.h */
    kv_ranks ranks;
    uint32_t n_layers, n_lists, n_kv_heads_max, n_experts, v_dim_max, n_classes, n_raw_classes;
    uint32_t first_class[KV_CODECS_MAX]; /* of each codec in kv_codecs, or KV_CLASS_NONE */
    kv_layer_shape *layer;               /* [n_layers] */
    kv_head_shape *heads;                /* [n_layers] */
    uint32_t *n_kv_heads;                /* [n_layers]: layer[l].n_kv_heads */
    uint32_t *first_list;                /* [n_layers]: in page tables; see kv_list */
    bool has_scattered;                  /* layers */
    bool *scatters;         /* [n_layers]: its entries are placed one by one; see scatter.h */
    uint32_t *layer_class;  /* [n_layers]: size class of its raw pages; see kv_coded_class */
    kv_page_layout *layout; /* [n_classes]: raw ones, then those of each codec in their order */
    const kv_codec **class_codec; /* [n_classes] */
    uint64_t *need;               /* [n_classes]: pages to find room for */

    kv_expert_map experts; /* which shard has which */
    kv_pool *pool;
    uint64_t quota_bytes; /* of the pool, for what one shard owns; see kv_choose_owner */
    kv_tiers *tiers;      /* NULL: the pool is all there is */
    kv_rings rings;
    kv_staging staging;
    kv_reader reader;
    struct kv_view *view; /* NULL: the device works on the host's memory */
    kv_prefix prefix;
    kv_evict evict;
    kv_observers observers;
    kv_step step;
    struct kv_sealing *sealings; /* [KV_SEALING_MAX]: pages that are being encoded */
    float *v_weight;  /* [n_lists][v_dim_max]: see value_weight.h; NULL: the codec does not ask */
    uint8_t *decoded; /* [n_threads][decoded_bytes]: where codecs decode a page, and pages land */
    size_t decoded_bytes, bases_offset; /* where a worker expands bases, in its part of decoded */
    size_t landing_bytes; /* of the largest page if there is a file, else 0; the end of decoded */
    kv_own_bases own_bases;
    kv_heats heats;
    struct kv_victim *victims;     /* [KV_VICTIMS_MAX]: pages that are to leave the pool */
    kv_seq *seqs, *free_seqs;      /* [n_seqs_max]; a list of closed ones */
    uint64_t last_id, last_origin; /* of sequences */
    size_t table_bytes;            /* of the tables of open sequences */
    kv_stats stats; /* counters since start, seqs_open; the rest is filled when published */
    kv_stats_board board;
    arena layer_memory, work_memory; /* every array above */
};

/* ---- kv_seq.c ---- */

/* Makes room in the table for the blocks of n_tokens positions. */
err_t kv_seq_grow(kv_seq *seq, uint32_t n_tokens) MUST_CHECK;
/* Back to the first n_blocks blocks in pages. */
void kv_seq_cut_pages(kv_seq *seq, uint32_t n_blocks);

/* ---- kv_queries.c ---- */

/* Publishes the counters; every public function that changes something ends with it. */
void kv_publish(kv_cache *cache);

#endif
