/* service/follower.h - a rank other than 0: does what rank 0's engine does to cache and model.
 *
 * It has a cache and a model of its own over the group's comm, and no sessions: messages of rank_wire.h say
 * which sequences there are and which tokens a step has. What it computes stays in the caches of the group;
 * nothing is sampled here.
 *
 * Threads: one, for all of it. */
#ifndef SERVICE_FOLLOWER_H
#define SERVICE_FOLLOWER_H

#include "service/leader.h"

/* Follows until rank 0 lets it go: ERR_OK. Otherwise what ended the group: ERR_PEER_LOST for a lost rank, or
 * a failure here, which the others are told. Closes every sequence. Allocates before the first message. */
err_t follower_run(const rank_parts *parts, err_info *info) MUST_CHECK;

#endif
