/* kvcache/device_choice.h - the device chooses pages for rows whose routing has a rule of its own.
 *
 * The view then has the box of every page and what biases it, and a step says which of its rows choose among how
 * many entries (kernels/choose_pages.h). What was chosen and missed stays on the device until the step ends, and comes
 * down in one piece: counters and certificates are made from it.
 *
 * Threads: the cache's owner. */
#ifndef KVCACHE_DEVICE_CHOICE_H
#define KVCACHE_DEVICE_CHOICE_H

#include "kvcache/device_view.h"

/* Run over a measuring and then a real arena, of the host's memory and of the device's. Nothing without boxes. */
void kv_view_place_choice(const kv_cache *cache, arena *a, kv_view *view);
void kv_view_place_choice_there(const kv_cache *cache, arena *a, kv_view *view);

/* Can the device choose what the methods ask for? */
bool kv_view_can_choose(const kv_cache *cache, const kv_methods *methods);

/* Before a step: row r chooses. Returns the most blocks that it may attend to. */
uint32_t kv_view_add_choice(kv_cache *cache, uint32_t r);
void kv_view_send_choices(kv_cache *cache);

/* Inside one, before attention. */
void kv_view_choose(const kv_cache *cache, uint32_t layer, const attend_pages_args *attend);
uint32_t kv_view_chosen_stride(const kv_cache *cache);
attn_mass *kv_view_masses(const kv_cache *cache, uint32_t layer);

/* After one. */
void kv_view_count_choices(kv_cache *cache);

#endif
