/* service/rank_wire.c - see rank_wire.h. */
#include "service/rank_wire.h"

#include "base/check.h"

#include <stdlib.h>
#include <string.h>

/* The longest payload: a sequence that is opened with all its positions, or a step of as many tokens and rows
 * as there can be. */
static err_t payload_bytes_max(const kv_limits *limits, size_t *out)
{
    size_t open_bytes, step_bytes, rows_bytes;
    TRY(size_mul(limits->n_seq_tokens_max, sizeof(uint32_t), &open_bytes));
    TRY(size_add(open_bytes, sizeof(rank_open), &open_bytes));
    TRY(size_mul(limits->n_step_tokens_max, sizeof(uint32_t), &step_bytes));
    TRY(size_mul(limits->n_seqs_max, sizeof(rank_row), &rows_bytes));
    TRY(size_add(step_bytes, rows_bytes, &step_bytes));
    *out = max_size(open_bytes, step_bytes);
    return ERR_OK;
}

err_t rank_mail_init(rank_mail *mail, const kv_limits *limits)
{
    size_t bytes;
    *mail = (rank_mail){0};
    TRY(payload_bytes_max(limits, &bytes));
    TRY(size_add(bytes, sizeof(rank_head), &bytes));
    bytes = max_size(bytes, RANK_MESSAGE_BYTES);
    if (bytes > COMM_BYTES_MAX) return ERR_OVERFLOW;
    mail->bytes = calloc(bytes, 1);
    if (mail->bytes == NULL) return ERR_NO_MEMORY;
    mail->capacity_bytes = bytes;
    return ERR_OK;
}

void rank_mail_deinit(rank_mail *mail)
{
    free(mail->bytes);
    *mail = (rank_mail){0};
}

/* Behind the first RANK_MESSAGE_BYTES. */
static size_t rest_bytes(const rank_head *head)
{
    const size_t bytes = sizeof *head + (size_t)head->payload_bytes;
    return bytes > RANK_MESSAGE_BYTES ? bytes - RANK_MESSAGE_BYTES : 0;
}

err_t rank_mail_send(rank_mail *mail, comm *c, err_info *info)
{
    rank_head *head = rank_mail_head(mail);
    assert(head->payload_bytes <= mail->capacity_bytes - sizeof *head);
    head->number = mail->n_sent++;
    TRY(comm_broadcast(c, mail->bytes, RANK_MESSAGE_BYTES, 0, info));
    if (rest_bytes(head) == 0) return ERR_OK;
    return comm_broadcast(c, mail->bytes + RANK_MESSAGE_BYTES, rest_bytes(head), 0, info);
}

err_t rank_mail_receive(rank_mail *mail, comm *c, err_info *info)
{
    const rank_head *head = rank_mail_head(mail);
    TRY(comm_broadcast(c, mail->bytes, RANK_MESSAGE_BYTES, 0, info));
    if (head->op >= RANK_OP_COUNT || head->number != mail->n_sent ||
        head->payload_bytes > mail->capacity_bytes - sizeof *head)
        return err_set(info, ERR_PEER_LOST,
                       "rank 0 sent message %u of kind %u and %u bytes, message %u was expected",
                       head->number, head->op, head->payload_bytes, mail->n_sent);
    mail->n_sent++;
    if (rest_bytes(head) == 0) return ERR_OK;
    return comm_broadcast(c, mail->bytes + RANK_MESSAGE_BYTES, rest_bytes(head), 0, info);
}
