/* service/rank_wire.h - what rank 0 tells the other ranks: messages of a fixed layout.
 *
 * A message is RANK_MESSAGE_BYTES, so that everybody knows how much to wait for: a head, and behind it what
 * there is room for of the payload. What is left comes in a second broadcast. A decode step of 200 sequences
 * needs no second one.
 *
 *   OPEN        rank_open, then n_tokens ids: all that is known of the sequence. Its prefix is looked up
 *   SHARE       the slot's prompt, n_tokens of it, may be shared
 *   CLOSE       with RANK_KEEPS, what it holds may stay behind in the prefix cache
 *   END_REPLAY
 *   STEP        n_rows rank_row, then n_tokens ids: one step, if all ranks can begin it
 *   TICK        all_gather of rank_report
 *   USAGE       all_gather of kv_usage of the slot's sequence
 *   LOOK        rank_look: kv_map_take
 *   LEAVE       the end
 *
 * Ranks are of one build (comm_config.fingerprint), so structs go as they are. */
#ifndef SERVICE_RANK_WIRE_H
#define SERVICE_RANK_WIRE_H

#include "kernels/comm.h"
#include "kvcache/kv_cache.h"
#include "model/model.h"
#include "service/rank_report.h"

#include <assert.h>

enum { RANK_MESSAGE_BYTES = 4096, RANK_SALT_BYTES = 32 };

typedef enum rank_op {
    RANK_OPEN,
    RANK_SHARE,
    RANK_CLOSE,
    RANK_END_REPLAY,
    RANK_STEP,
    RANK_TICK,
    RANK_USAGE,
    RANK_LOOK,
    RANK_LEAVE,
    RANK_OP_COUNT
} rank_op;

enum { /* flags of a message */
       RANK_HAS_METHODS = 1,
       RANK_HAS_SALT = 2,
       RANK_NO_PREFIX_READ = 4,
       RANK_NO_PREFIX_WRITE = 8,
       RANK_KEEPS = 16
};

typedef struct rank_head {
    uint32_t op; /* rank_op */
    uint32_t flags;
    uint32_t slot;            /* of a sequence, < n_seqs_max */
    uint32_t n_prompt_tokens; /* OPEN */
    uint32_t n_rows, n_tokens;
    uint32_t number;        /* of messages before this one: who counts differently has lost one */
    uint32_t payload_bytes; /* behind the head */
} rank_head;
static_assert(sizeof(rank_head) == 32, "of a fixed layout");

typedef struct rank_open {
    kv_methods_wire methods;       /* with RANK_HAS_METHODS */
    uint8_t salt[RANK_SALT_BYTES]; /* with RANK_HAS_SALT: a digest, equal for equal salts */
} rank_open;

enum { RANK_ROW_DECODES = 1, RANK_ROW_REPLAYS = 2 }; /* as kv_row's */

typedef struct rank_row {
    uint32_t slot, n_tokens, flags;
} rank_row;

typedef struct rank_look {
    uint64_t seq;
    uint32_t has_layer, layer; /* as in kv_map_query */
} rank_look;

/* One message, and room for the longest one under these limits. */
typedef struct rank_mail {
    uint8_t *bytes; /* [capacity_bytes]: the head first */
    size_t capacity_bytes;
    uint32_t n_sent; /* messages so far */
} rank_mail;

err_t rank_mail_init(rank_mail *mail, const kv_limits *limits) MUST_CHECK;
void rank_mail_deinit(rank_mail *mail); /* a zeroed one is fine */

static inline rank_head *rank_mail_head(const rank_mail *mail)
{
    return (rank_head *)(void *)mail->bytes;
}

static inline void *rank_mail_payload(const rank_mail *mail)
{
    return mail->bytes + sizeof(rank_head);
}

/* Rank 0 sends what lies in `mail`; the head's number is set here. */
err_t rank_mail_send(rank_mail *mail, comm *c, err_info *info) MUST_CHECK;

/* The others: waits for the next one. ERR_PEER_LOST for one that makes no sense. */
err_t rank_mail_receive(rank_mail *mail, comm *c, err_info *info) MUST_CHECK;

#endif
