/* service/leader.c - see leader.h. */
#include "service/leader.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/hash.h"
#include "kvcache/kv_replay.h"
#include "service/rank_wire.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct leader {
    rank_parts parts;
    uint32_t n_ranks;
    rank_mail mail;     /* nothing if alone */
    kv_seq **seqs;      /* [n_seqs_max]: by slot; NULL: free */
    uint64_t tick_ns;   /* of the last one */
    kv_usage *usages;   /* [n_ranks] */
    rank_report *fresh; /* [n_ranks]: where a tick gathers them */
    pthread_mutex_t lock;
    rank_report *reports; /* [n_ranks]; under lock */
};

/* ---- open and close ------------------------------------------------------------------------------- */

static err_t alloc_parts(leader *l)
{
    l->seqs = calloc(l->parts.limits.n_seqs_max, sizeof(kv_seq *));
    l->usages = calloc(l->n_ranks, sizeof *l->usages);
    l->fresh = calloc(l->n_ranks, sizeof *l->fresh);
    l->reports = calloc(l->n_ranks, sizeof *l->reports);
    if (l->seqs == NULL || l->usages == NULL || l->fresh == NULL || l->reports == NULL)
        return ERR_NO_MEMORY;
    return leader_is_alone(l) ? ERR_OK : rank_mail_init(&l->mail, &l->parts.limits);
}

static void leader_free(leader *l)
{
    rank_mail_deinit(&l->mail);
    pthread_mutex_destroy(&l->lock);
    free(l->seqs);
    free(l->usages);
    free(l->fresh);
    free(l->reports);
    free(l);
}

err_t leader_open(const rank_parts *parts, leader **out, err_info *info)
{
    *out = NULL;
    leader *l = calloc(1, sizeof *l);
    if (l == NULL) return err_set(info, ERR_NO_MEMORY, "ranks: out of memory");
    l->parts = *parts;
    l->n_ranks = parts->comm != NULL ? comm_n_ranks(parts->comm) : 1;
    pthread_mutex_init(&l->lock, NULL);
    const err_t err = alloc_parts(l);
    if (err != ERR_OK) {
        leader_free(l);
        return err_set(info, err, "ranks: no memory for %u sequences", parts->limits.n_seqs_max);
    }
    *out = l;
    return ERR_OK;
}

/* Tells the others, if there are any. */
static err_t tell(leader *l, const rank_head *head)
{
    if (leader_is_alone(l)) return ERR_OK;
    *rank_mail_head(&l->mail) = *head;
    return rank_mail_send(&l->mail, l->parts.comm, NULL);
}

void leader_close(leader *l)
{
    if (l == NULL) return;
    for (uint32_t slot = 0; slot < l->parts.limits.n_seqs_max; slot++)
        assert(l->seqs[slot] == NULL);
    (void)tell(l, &(rank_head){.op = RANK_LEAVE}); /* a group that has failed knows it already */
    leader_free(l);
}

bool leader_is_alone(const leader *l)
{
    return l->n_ranks == 1;
}

err_t leader_status(const leader *l, err_info *info)
{
    if (l->parts.comm != NULL) TRY(comm_status(l->parts.comm, info));
    return model_status(l->parts.m, info);
}

/* ---- sequences ------------------------------------------------------------------------------------ */

static uint32_t free_slot(const leader *l)
{
    uint32_t slot = 0;
    while (slot < l->parts.limits.n_seqs_max && l->seqs[slot] != NULL)
        slot++;
    return slot;
}

static err_t tell_open(leader *l, uint32_t slot, const kv_seq_options *options,
                       const uint32_t *tokens, uint32_t n_tokens)
{
    if (leader_is_alone(l)) return ERR_OK;
    assert(n_tokens <= l->parts.limits.n_seq_tokens_max);
    rank_head head = {.op = RANK_OPEN,
                      .slot = slot,
                      .n_prompt_tokens = options->n_prompt_tokens,
                      .n_tokens = n_tokens,
                      .payload_bytes = (uint32_t)(sizeof(rank_open) + n_tokens * sizeof *tokens)};
    rank_open open = {.salt = {0}};
    if (options->no_prefix_read) head.flags |= RANK_NO_PREFIX_READ;
    if (options->no_prefix_write) head.flags |= RANK_NO_PREFIX_WRITE;
    if (options->methods != NULL) {
        head.flags |= RANK_HAS_METHODS;
        kv_methods_pack(options->methods, &open.methods);
    }
    if (options->salt_bytes > 0) {
        head.flags |= RANK_HAS_SALT;
        hash_secret(options->salt, options->salt_bytes, open.salt);
    }
    uint8_t *payload = rank_mail_payload(&l->mail);
    memcpy(payload, &open, sizeof open);
    memcpy(payload + sizeof open, tokens, n_tokens * sizeof *tokens);
    return tell(l, &head);
}

err_t leader_seq_open(leader *l, const kv_seq_options *options, const uint32_t *tokens,
                      uint32_t n_tokens, leader_seq *out)
{
    *out = (leader_seq){.slot = free_slot(l)};
    if (out->slot == l->parts.limits.n_seqs_max) return ERR_BAD_ARGUMENT;
    TRY(tell_open(l, out->slot, options, tokens, n_tokens));
    TRY(kv_seq_open(l->parts.cache, options, &out->seq));
    l->seqs[out->slot] = out->seq;
    out->n_cached = kv_seq_take_prefix(out->seq, tokens, n_tokens);
    return ERR_OK;
}

static kv_seq *seq_at(const leader *l, uint32_t slot)
{
    assert(slot < l->parts.limits.n_seqs_max);
    assert(l->seqs[slot] != NULL);
    return l->seqs[slot];
}

void leader_seq_share(leader *l, uint32_t slot, const uint32_t *prompt, uint32_t n_prompt)
{
    (void)tell(l, &(rank_head){.op = RANK_SHARE, .slot = slot, .n_tokens = n_prompt});
    kv_seq_share_prompt(seq_at(l, slot), prompt, n_prompt);
}

void leader_seq_close(leader *l, uint32_t slot, const uint32_t *tokens)
{
    kv_seq *seq = seq_at(l, slot);
    (void)tell(
        l, &(rank_head){.op = RANK_CLOSE, .slot = slot, .flags = tokens != NULL ? RANK_KEEPS : 0});
    kv_seq_close(seq, tokens);
    l->seqs[slot] = NULL;
}

uint32_t leader_seq_end_replay(leader *l, uint32_t slot)
{
    (void)tell(l, &(rank_head){.op = RANK_END_REPLAY, .slot = slot});
    return kv_seq_end_replay(seq_at(l, slot));
}

static void add_usage(const kv_usage *from, kv_usage *sum)
{
    sum->resident_bytes += from->resident_bytes;
    sum->uncompressed_bytes += from->uncompressed_bytes;
    sum->pages_evicted += from->pages_evicted;
    sum->pages_demoted += from->pages_demoted;
}

void leader_seq_usage(leader *l, uint32_t slot, kv_usage *out)
{
    kv_usage own;
    kv_seq_usage(seq_at(l, slot), &own);
    *out = own;
    if (tell(l, &(rank_head){.op = RANK_USAGE, .slot = slot}) != ERR_OK || leader_is_alone(l))
        return;
    if (comm_all_gather(l->parts.comm, &own, l->usages, sizeof own, NULL) != ERR_OK) return;
    /* Of what decode queries missed, every rank knows what was missed of all. */
    *out = (kv_usage){.certificates = own.certificates, .certificate_sum = own.certificate_sum};
    for (uint32_t r = 0; r < l->n_ranks; r++)
        add_usage(&l->usages[r], out);
}

/* ---- steps ---------------------------------------------------------------------------------------- */

static err_t tell_step(leader *l, const leader_step *step)
{
    if (leader_is_alone(l)) return ERR_OK;
    rank_row *rows = rank_mail_payload(&l->mail);
    const size_t bytes = step->n_rows * sizeof *rows + step->n_tokens * sizeof *step->tokens;
    for (uint32_t r = 0; r < step->n_rows; r++) {
        const kv_row *row = &step->rows[r];
        rows[r] = (rank_row){.slot = step->slots[r],
                             .n_tokens = row->n_tokens,
                             .flags = (row->is_decode ? RANK_ROW_DECODES : 0) |
                                      (row->is_replay ? RANK_ROW_REPLAYS : 0)};
    }
    memcpy(rows + step->n_rows, step->tokens, step->n_tokens * sizeof *step->tokens);
    return tell(l, &(rank_head){.op = RANK_STEP,
                                .n_rows = step->n_rows,
                                .n_tokens = step->n_tokens,
                                .payload_bytes = (uint32_t)bytes});
}

err_t leader_step_begin(leader *l, const leader_step *step)
{
    TRY(tell_step(l, step));
    return kv_step_begin(l->parts.cache, step->rows, step->n_rows);
}

void leader_forward(leader *l, const model_batch *batch)
{
    model_forward(l->parts.m, l->parts.cache, batch);
    kv_step_end(l->parts.cache);
}

void leader_look(leader *l, kv_look *look)
{
    const kv_map_query *query = kv_look_query(look);
    if (!leader_is_alone(l)) {
        const rank_look wire = {
            .seq = query->seq, .has_layer = query->has_layer, .layer = query->layer};
        memcpy(rank_mail_payload(&l->mail), &wire, sizeof wire);
        (void)tell(l, &(rank_head){.op = RANK_LOOK, .payload_bytes = sizeof wire});
    }
    kv_look_take(look, l->parts.cache);
}

/* ---- reports -------------------------------------------------------------------------------------- */

void leader_tick(leader *l)
{
    const uint64_t now_ns = clock_mono_ns();
    rank_report own;
    if (leader_is_alone(l) || now_ns - l->tick_ns < LEADER_TICK_MS * UINT64_C(1000000)) return;
    l->tick_ns = now_ns;
    if (tell(l, &(rank_head){.op = RANK_TICK}) != ERR_OK) return;
    rank_report_take(l->parts.cache, l->parts.m, l->parts.comm, &own);
    if (comm_all_gather(l->parts.comm, &own, l->fresh, sizeof own, NULL) != ERR_OK) return;
    pthread_mutex_lock(&l->lock);
    memcpy(l->reports, l->fresh, l->n_ranks * sizeof *l->reports);
    pthread_mutex_unlock(&l->lock);
}

uint32_t leader_get_reports(leader *l, rank_report *out, uint32_t n_max)
{
    const uint32_t n = l->n_ranks < n_max ? l->n_ranks : n_max;
    if (leader_is_alone(l)) {
        if (n > 0) rank_report_take(l->parts.cache, l->parts.m, NULL, out);
        return n;
    }
    pthread_mutex_lock(&l->lock);
    memcpy(out, l->reports, n * sizeof *out);
    pthread_mutex_unlock(&l->lock);
    return n;
}
