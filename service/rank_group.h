/* service/rank_group.h - the ranks of a server come together, load, and part.
 *
 * On each of them, in this order: device, comm (with a fingerprint of program, settings and model, which must
 * be equal), model, cache, a meeting when all are loaded. Then rank 0 serves and the others follow. A rank
 * that cannot load tells the others why, and all end.
 *
 * In one process rank 0 is the caller, and the others are threads that the group starts and joins. */
#ifndef SERVICE_RANK_GROUP_H
#define SERVICE_RANK_GROUP_H

#include "service/server_config.h"

/* Opened from top to bottom; NULL where it is not open yet. */
typedef struct rank_share {
    dev *d;
    comm *comm; /* NULL: alone */
    model *m;
    kv_cache *cache;
} rank_share;

typedef struct rank_group rank_group;

/* Rank 0: brings all ranks together and fills share->d and share->comm. After a failure, too,
 * rank_group_close comes last. Settings and share outlive the group. */
err_t rank_group_open(const server_settings *settings, rank_share *share, rank_group **out,
                      err_info *info) MUST_CHECK;

/* The parts of any rank, in this order. */
err_t rank_share_load(const server_settings *settings, rank_share *share,
                      err_info *info) MUST_CHECK;
err_t rank_share_open_cache(const server_settings *settings, rank_share *share,
                            err_info *info) MUST_CHECK;
/* Returns when all ranks have come so far; from now on a wait is as long as --rank-timeout. */
err_t rank_share_meet(const server_settings *settings, rank_share *share,
                      err_info *info) MUST_CHECK;

kv_limits rank_share_limits(const server_settings *settings, const rank_share *share);

/* Closes what share holds and waits for the ranks of this process; engine and sequences are gone. reason: why
 * the others were not let go (leader_close); they are told. Group NULL: only closes. */
void rank_group_close(rank_group *group, rank_share *share, const char *reason);

/* The life of a process that is a rank other than 0; the exit code. Signals are blocked. */
int rank_follow(const server_settings *settings);

#endif
