/* kvcache/placement/placement.h - which shard owns an entry.
 *
 * One owner per entry, always: a copy would be counted twice by the merge. The owner is chosen when
 * the entry leaves the ring, since its expert is known by then, and is never computed again. */
#ifndef KVCACHE_PLACEMENT_PLACEMENT_H
#define KVCACHE_PLACEMENT_PLACEMENT_H

#include <stdbool.h>
#include <stdint.h>

typedef struct kv_place_args {
    uint32_t layer;
    uint32_t n_shards;
    uint32_t page_tokens;
    uint32_t first_position; /* of an aligned block: a multiple of page_tokens */
    uint32_t n_slots;
    const uint16_t *expert;       /* [n_slots]: top-1 expert of each token, or KV_EXPERT_NONE */
    const uint16_t *expert_shard; /* [n_experts]: where the layer's experts are now; expert_map.h */
} kv_place_args;

typedef struct kv_placement {
    const char *name;
    bool is_exact;           /* all entries of a block have one owner: results keep their bits */
    bool needs_power_of_two; /* of shards */
    bool follows_experts;    /* reads expert_shard */

    /* Writes the owner of each entry, < n_shards; without an expert, that of its block. Called by the
     * owner between steps, once per layer and block that leaves the ring; pure; must not block,
     * allocate or fail. */
    void (*place)(const kv_place_args *args, uint32_t *owner);
} kv_placement;

#define KV_PLACEMENT_LIST(X) X(block) X(expert) X(hash)

extern const kv_placement *const kv_placements[]; /* ends with NULL */
extern const char kv_placement_names[];           /* " block ..." for messages */

const kv_placement *kv_placement_find(const char *name); /* NULL if unknown */

/* Blocks are dealt to the shards in turn. */
static inline uint32_t kv_block_shard(uint32_t n_shards, uint32_t block)
{
    return block % n_shards;
}

#endif
