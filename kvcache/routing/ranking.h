/* kvcache/routing/ranking.h - what routing methods have in common: an order of the candidates, the mass
 * that may lie behind each place of it, and the choice of its beginning. */
#ifndef KVCACHE_ROUTING_RANKING_H
#define KVCACHE_ROUTING_RANKING_H

#include "kvcache/routing/routing.h"

/* work.order = candidates by falling work.priority; equal ones by position. */
void kv_rank_order(const kv_route_args *args);

/* Of n_open pages or shards, those that `k` allows to read: that share of them, or its number, of which every
 * rank has as many. */
uint32_t kv_rank_budget(const kv_route_args *args, uint32_t n_open);

/* Ranks by the largest bound that a candidate has in any head. */
void kv_rank_by_bound(const kv_route_args *args);

/* Ranks by the largest share of attention that a candidate can have in any head, relative to what is
 * read: priority = max_g (log n + bound - log_read), or, where nothing is, to the largest. Then, in units of work.scale per head,
 *     work.rest[g][r] = sum of n exp(bound) over the candidates at rank r and behind it. */
void kv_rank_by_mass(const kv_route_args *args);

/* May reading stop before rank r? True if in every head what is behind is at most `share` of that and
 * of what has been read together. */
bool kv_rank_is_enough(const kv_route_args *args, uint32_t rank, double share);

/* Sums up the candidates of each shard in work.shards; returns how many shards have any. */
uint32_t kv_rank_shards(const kv_route_args *args);

/* work.shard_order = shards by falling priority, equal ones by number; those without candidates last. */
void kv_rank_shard_order(const kv_route_args *args);

/* Writes the candidates of the first n shards of that order, rising; returns how many. */
uint32_t kv_rank_choose_shards(const kv_route_args *args, uint32_t n, uint32_t *chosen);

/* Writes the first n of the order, rising; returns n. */
uint32_t kv_rank_choose(const kv_route_args *args, uint32_t n, uint32_t *chosen);

#endif
