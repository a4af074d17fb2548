/* service/follower.c - see follower.h. */
#include "service/follower.h"

#include "base/arena.h"
#include "base/check.h"
#include "kvcache/kv_replay.h"
#include "service/rank_wire.h"

#include <string.h>

typedef struct follower {
    rank_parts parts;
    rank_mail mail;
    arena memory;
    kv_seq **seqs;   /* [n_seqs_max]: by slot; NULL: not open */
    uint32_t *known; /* [n_seqs_max][n_seq_tokens_max]: the ids that a sequence holds, and more */
    kv_row *rows;    /* [n_seqs_max] */
    uint32_t *positions; /* [n_step_tokens_max] */
    void *gathered;      /* [n_ranks] rank_report or kv_usage, which only rank 0 reads */
    kv_map *map;         /* with room for any query's answer, which rank 0 gives */
} follower;

typedef err_t handle_message(follower *f, const rank_head *head, err_info *info);

/* ---- memory --------------------------------------------------------------------------------------- */

static void place(follower *f, arena *a)
{
    const kv_limits *limits = &f->parts.limits;
    const size_t each_bytes = max_size(sizeof(rank_report), sizeof(kv_usage));
    f->seqs = arena_take(a, limits->n_seqs_max, sizeof(kv_seq *));
    f->rows = arena_take(a, limits->n_seqs_max, sizeof *f->rows);
    f->positions = arena_take(a, limits->n_step_tokens_max, sizeof *f->positions);
    f->gathered = arena_take(a, comm_n_ranks(f->parts.comm), each_bytes);
    f->known =
        arena_take(a, limits->n_seqs_max, (size_t)limits->n_seq_tokens_max * sizeof *f->known);
}

static err_t init(follower *f, const rank_parts *parts, err_info *info)
{
    arena measure;
    *f = (follower){.parts = *parts};
    arena_init_measure(&measure);
    place(f, &measure);
    err_t err = measure.err;
    if (err == ERR_OK) err = arena_init(&f->memory, measure.used_bytes);
    if (err == ERR_OK) place(f, &f->memory);
    if (err == ERR_OK) err = f->memory.err;
    if (err == ERR_OK) err = rank_mail_init(&f->mail, &parts->limits);
    if (err == ERR_OK) err = kv_map_open(parts->cache, &(kv_map_query){.seq = 1}, &f->map);
    if (err == ERR_OK) return ERR_OK;
    return err_set(info, err, "no memory for %u sequences of %u tokens", parts->limits.n_seqs_max,
                   parts->limits.n_seq_tokens_max);
}

static void deinit(follower *f)
{
    for (uint32_t slot = 0; f->seqs != NULL && slot < f->parts.limits.n_seqs_max; slot++) {
        if (f->seqs[slot] != NULL) kv_seq_close(f->seqs[slot], NULL);
    }
    kv_map_close(f->map);
    rank_mail_deinit(&f->mail);
    arena_deinit(&f->memory);
}

/* ---- messages ------------------------------------------------------------------------------------- */

static uint32_t *known_of(const follower *f, uint32_t slot)
{
    return f->known + (size_t)slot * f->parts.limits.n_seq_tokens_max;
}

static err_t refuse(const rank_head *head, err_info *info)
{
    return err_set(info, ERR_PEER_LOST,
                   "message %u of kind %u makes no sense: slot %u, %u rows, %u tokens, %u bytes",
                   head->number, head->op, head->slot, head->n_rows, head->n_tokens,
                   head->payload_bytes);
}

static err_t open_seq(follower *f, const rank_head *head, err_info *info)
{
    const uint8_t *payload = rank_mail_payload(&f->mail);
    const size_t tokens_bytes = head->n_tokens * sizeof(uint32_t);
    rank_open open;
    kv_methods methods;
    if (f->seqs[head->slot] != NULL || head->n_tokens > f->parts.limits.n_seq_tokens_max ||
        head->payload_bytes != sizeof open + tokens_bytes)
        return refuse(head, info);
    memcpy(&open, payload, sizeof open);
    memcpy(known_of(f, head->slot), payload + sizeof open, tokens_bytes);
    const bool has_methods = (head->flags & RANK_HAS_METHODS) != 0;
    const bool has_salt = (head->flags & RANK_HAS_SALT) != 0;
    if (has_methods) TRY(kv_methods_unpack(&open.methods, f->parts.page_tokens, &methods, info));
    const kv_seq_options options = {.methods = has_methods ? &methods : NULL,
                                    .salt = has_salt ? (const char *)open.salt : "",
                                    .salt_bytes = has_salt ? sizeof open.salt : 0,
                                    .n_prompt_tokens = head->n_prompt_tokens,
                                    .no_prefix_read = (head->flags & RANK_NO_PREFIX_READ) != 0,
                                    .no_prefix_write = (head->flags & RANK_NO_PREFIX_WRITE) != 0};
    /* All ranks have it, or none: rank 0 sees the same error. */
    if (kv_seq_open(f->parts.cache, &options, &f->seqs[head->slot]) != ERR_OK) return ERR_OK;
    (void)kv_seq_take_prefix(f->seqs[head->slot], known_of(f, head->slot), head->n_tokens);
    return ERR_OK;
}

static err_t share_seq(follower *f, const rank_head *head, err_info *info)
{
    kv_seq *seq = f->seqs[head->slot];
    if (head->n_tokens > kv_seq_length(seq)) return refuse(head, info);
    kv_seq_share_prompt(seq, known_of(f, head->slot), head->n_tokens);
    return ERR_OK;
}

static err_t close_seq(follower *f, const rank_head *head, err_info *info)
{
    const bool keeps = (head->flags & RANK_KEEPS) != 0;
    (void)info;
    kv_seq_close(f->seqs[head->slot], keeps ? known_of(f, head->slot) : NULL);
    f->seqs[head->slot] = NULL;
    return ERR_OK;
}

static err_t end_replay(follower *f, const rank_head *head, err_info *info)
{
    kv_replay_chunk chunk;
    if (!kv_seq_wants_replay(f->seqs[head->slot], &chunk)) return refuse(head, info);
    (void)kv_seq_end_replay(f->seqs[head->slot]);
    return ERR_OK;
}

static err_t report(follower *f, const rank_head *head, err_info *info)
{
    rank_report own;
    (void)head;
    rank_report_take(f->parts.cache, f->parts.m, f->parts.comm, &own);
    return comm_all_gather(f->parts.comm, &own, f->gathered, sizeof own, info);
}

static err_t report_usage(follower *f, const rank_head *head, err_info *info)
{
    kv_usage own;
    kv_seq_usage(f->seqs[head->slot], &own);
    return comm_all_gather(f->parts.comm, &own, f->gathered, sizeof own, info);
}

static err_t look(follower *f, const rank_head *head, err_info *info)
{
    rank_look wire;
    if (head->payload_bytes != sizeof wire) return refuse(head, info);
    memcpy(&wire, rank_mail_payload(&f->mail), sizeof wire);
    f->map->query =
        (kv_map_query){.seq = wire.seq, .has_layer = wire.has_layer != 0, .layer = wire.layer};
    kv_map_take(f->parts.cache, f->map);
    return comm_status(f->parts.comm, info);
}

/* ---- steps ---------------------------------------------------------------------------------------- */

/* May the sequence take the row's tokens? */
static bool fits(const kv_seq *seq, const rank_row *row, const kv_limits *limits)
{
    const bool is_replay = (row->flags & RANK_ROW_REPLAYS) != 0;
    if (row->n_tokens > limits->n_seq_tokens_max - kv_seq_length(seq)) return false;
    if (!is_replay) return row->n_tokens <= kv_seq_step_tokens_max(seq);
    return row->n_tokens <= kv_seq_replay_tokens_max(seq) && (row->flags & RANK_ROW_DECODES) == 0;
}

/* One row of the step, from token `first` of the batch on. */
static bool read_row(follower *f, const rank_row *from, uint32_t first, const uint32_t *tokens,
                     kv_row *out)
{
    const kv_limits *limits = &f->parts.limits;
    kv_seq *seq = from->slot < limits->n_seqs_max ? f->seqs[from->slot] : NULL;
    if (seq == NULL || from->n_tokens == 0) return false;
    const uint32_t start = kv_seq_length(seq);
    if (!fits(seq, from, limits)) return false;
    *out = (kv_row){.seq = seq,
                    .first_token = first,
                    .n_tokens = from->n_tokens,
                    .is_decode = (from->flags & RANK_ROW_DECODES) != 0,
                    .is_replay = (from->flags & RANK_ROW_REPLAYS) != 0};
    for (uint32_t t = 0; t < from->n_tokens; t++)
        f->positions[first + t] = start + t;
    if (out->is_replay) return true; /* those are taken away again */
    memcpy(known_of(f, from->slot) + start, tokens + first, from->n_tokens * sizeof *tokens);
    return true;
}

static bool read_rows(follower *f, const rank_head *head)
{
    const kv_limits *limits = &f->parts.limits;
    const rank_row *rows = rank_mail_payload(&f->mail);
    const uint32_t *tokens = (const uint32_t *)(const void *)(rows + head->n_rows);
    uint32_t first = 0;
    if (head->n_rows == 0 || head->n_rows > limits->n_seqs_max ||
        head->n_tokens > limits->n_step_tokens_max ||
        head->payload_bytes != head->n_rows * sizeof *rows + head->n_tokens * sizeof *tokens)
        return false;
    for (uint32_t r = 0; r < head->n_rows; r++) {
        if (rows[r].n_tokens > head->n_tokens - first) return false;
        if (!read_row(f, &rows[r], first, tokens, &f->rows[r])) return false;
        first += rows[r].n_tokens;
    }
    return first == head->n_tokens;
}

static err_t run_step(follower *f, const rank_head *head, err_info *info)
{
    const rank_row *rows = rank_mail_payload(&f->mail);
    if (!read_rows(f, head)) return refuse(head, info);
    const model_batch batch = {.tokens = (const uint32_t *)(const void *)(rows + head->n_rows),
                               .positions = f->positions,
                               .n_tokens = head->n_tokens};
    /* What it says, it says on every rank: rank 0 makes room and sends another step. */
    if (kv_step_begin(f->parts.cache, f->rows, head->n_rows) != ERR_OK)
        return comm_status(f->parts.comm, info);
    model_forward(f->parts.m, f->parts.cache, &batch);
    kv_step_end(f->parts.cache);
    TRY(model_status(f->parts.m, info));
    return comm_status(f->parts.comm, info);
}

/* ---- the loop ------------------------------------------------------------------------------------- */

static const struct {
    handle_message *handle;
    bool needs_seq; /* the slot's sequence is open */
} handlers[RANK_OP_COUNT] = {
    [RANK_OPEN] = {open_seq, false},     [RANK_SHARE] = {share_seq, true},
    [RANK_CLOSE] = {close_seq, true},    [RANK_END_REPLAY] = {end_replay, true},
    [RANK_STEP] = {run_step, false},     [RANK_TICK] = {report, false},
    [RANK_USAGE] = {report_usage, true}, [RANK_LOOK] = {look, false}};

static err_t follow(follower *f, err_info *info)
{
    for (;;) {
        TRY(rank_mail_receive(&f->mail, f->parts.comm, info));
        const rank_head head = *rank_mail_head(&f->mail);
        if (head.op == RANK_LEAVE) return ERR_OK;
        if (head.slot >= f->parts.limits.n_seqs_max) return refuse(&head, info);
        if (handlers[head.op].needs_seq && f->seqs[head.slot] == NULL) return refuse(&head, info);
        TRY(handlers[head.op].handle(f, &head, info));
    }
}

err_t follower_run(const rank_parts *parts, err_info *info)
{
    follower f;
    err_info own = {0};
    err_t err = init(&f, parts, &own);
    if (err == ERR_OK) err = follow(&f, &own);
    if (err != ERR_OK && comm_status(parts->comm, NULL) == ERR_OK)
        comm_abort(parts->comm, own.code != ERR_OK ? own.message : err_sentence(err));
    deinit(&f);
    return err != ERR_OK ? err_set(info, err, "%s", own.message) : ERR_OK;
}
