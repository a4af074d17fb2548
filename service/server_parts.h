/* service/server_parts.h - what a running server is made of. Shared by server*.c only. */
#ifndef SERVICE_SERVER_PARTS_H
#define SERVICE_SERVER_PARTS_H

#include "service/api.h"
#include "service/rank_group.h"
#include "service/server.h"

/* Opened from top to bottom, closed from bottom to top; NULL where it is not open yet. */
typedef struct server_parts {
    const server_settings *settings;
    uint64_t start_ns;
    model_config shape;           /* of config.json, read before anything else */
    generation_config generation; /* of the model */
    const char **model_names;     /* [n_model_names] borrowed texts; owned array */
    char *default_name;           /* last part of model_dir; owned */
    metrics *metrics;
    http_server *server, *monitor;
    rank_group *group;
    rank_share own; /* rank 0's */
    tokenizer *t;
    chat_template *chat;
    engine *e;
    const char *failure; /* of server_load; NULL: none. Borrowed from its info */
    api_context api;
} server_parts;

/* Quick: shape, names, keys, counters. What is wrong with paths and keys is known before anything is bound. */
err_t server_prepare(server_parts *parts, const server_settings *settings,
                     err_info *info) MUST_CHECK;

/* Slow: weights, tokenizer, cache, engine, one forward pass. Logs each phase with its time. The parts are
 * ready to be published when it returns. */
err_t server_load(server_parts *parts, err_info *info) MUST_CHECK;

/* What is left, in reverse order; the listeners must be closed already. */
void server_unload(server_parts *parts);

#endif
