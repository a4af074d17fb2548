/* model/bpe.c - see bpe.h.
 *
 * Two open-addressed tables: spelling -> id (the slots hold ids, the spellings lie in one block) and
 * pair of ids -> (rank, joined id). Characters below U+0200, which are all that a byte-level vocabulary
 * begins with, are looked up in an array instead.
 *
 * A word's symbols are a linked list in an array. An entry of the heap may be out of date when it is
 * taken; it is used only if the pair that now stands there joins to the same piece. */
#include "model/bpe.h"

#include "base/check.h"
#include "base/utf8.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_LOW_CHARACTERS = 0x200, N_BYTES = 256 };

typedef struct merge {
    uint64_t pair; /* left << 32 | right; EMPTY_PAIR: a free slot */
    uint32_t rank;
    uint32_t joined;
} merge;

static const uint64_t EMPTY_PAIR = UINT64_MAX; /* ids are below BPE_NO_ID */

struct bpe {
    bpe_settings settings;
    uint32_t n_ids;
    uint32_t n_added_merges;
    size_t *piece_begin; /* [n_ids] */
    uint32_t *piece_len; /* [n_ids]; 0: the id has no piece */
    char *bytes;         /* the spellings */
    size_t n_bytes, bytes_room;
    uint32_t *slot; /* [slot_mask + 1], ids */
    size_t slot_mask;
    merge *merge; /* [merge_mask + 1] */
    size_t merge_mask;
    uint32_t low[N_LOW_CHARACTERS]; /* id of the piece that is this character */
    uint32_t byte[N_BYTES];         /* id of <0x..> */
};

typedef struct bpe_symbol {
    uint32_t id; /* BPE_NO_ID: joined to its left neighbour */
    uint32_t prev, next;
} bpe_symbol;

typedef struct bpe_candidate {
    uint32_t rank, position, joined;
} bpe_candidate;

enum { NO_SYMBOL = UINT32_MAX };

/* ---- tables -------------------------------------------------------------------------------------- */

static uint64_t mix(uint64_t x)
{
    x ^= x >> 32;
    x *= UINT64_C(0xd6e8feb86659fd93);
    x ^= x >> 32;
    return x;
}

static size_t hash_bytes(text_view text)
{
    uint64_t h = UINT64_C(0xcbf29ce484222325) ^ text.n_bytes;
    for (size_t i = 0; i < text.n_bytes; i++)
        h = (h ^ (uint8_t)text.bytes[i]) * UINT64_C(0x100000001b3);
    return (size_t)mix(h);
}

/* A power of two with at least as many free slots as used ones. */
static err_t table_slots(size_t n_used, size_t *n_slots)
{
    size_t n = 16;
    while (n / 2 < n_used)
        TRY(size_mul(n, 2, &n));
    *n_slots = n;
    return ERR_OK;
}

text_view bpe_piece(const bpe *b, uint32_t id)
{
    if (id >= b->n_ids) return (text_view){"", 0};
    return (text_view){b->bytes + b->piece_begin[id], b->piece_len[id]};
}

/* The slot of a spelling, or the free one where it belongs. */
static uint32_t *find_slot(const bpe *b, text_view piece)
{
    size_t i = hash_bytes(piece) & b->slot_mask;
    for (; b->slot[i] != BPE_NO_ID; i = (i + 1) & b->slot_mask) {
        const text_view other = bpe_piece(b, b->slot[i]);
        if (other.n_bytes == piece.n_bytes && memcmp(other.bytes, piece.bytes, piece.n_bytes) == 0)
            break;
    }
    return &b->slot[i];
}

uint32_t bpe_find(const bpe *b, text_view piece)
{
    return *find_slot(b, piece);
}

static merge *find_merge(const bpe *b, uint32_t left, uint32_t right)
{
    const uint64_t pair = (uint64_t)left << 32 | right;
    size_t i = (size_t)mix(pair) & b->merge_mask;
    while (b->merge[i].pair != pair && b->merge[i].pair != EMPTY_PAIR)
        i = (i + 1) & b->merge_mask;
    return &b->merge[i];
}

/* ---- life cycle ---------------------------------------------------------------------------------- */

err_t bpe_open(const bpe_limits *limits, bpe **out)
{
    *out = NULL;
    size_t n_slots, n_merges;
    TRY(table_slots(limits->n_pieces, &n_slots));
    TRY(table_slots(limits->n_merges, &n_merges));
    bpe *const b = calloc(1, sizeof *b);
    if (b == NULL) return ERR_NO_MEMORY;
    b->n_ids = limits->n_ids;
    b->bytes_room = limits->pieces_bytes;
    b->slot_mask = n_slots - 1;
    b->merge_mask = n_merges - 1;
    b->piece_begin = calloc((size_t)limits->n_ids + 1, sizeof *b->piece_begin);
    b->piece_len = calloc((size_t)limits->n_ids + 1, sizeof *b->piece_len);
    b->bytes = malloc(limits->pieces_bytes + 1);
    b->slot = malloc(n_slots * sizeof *b->slot);
    b->merge = calloc(n_merges, sizeof *b->merge);
    if (b->piece_begin == NULL || b->piece_len == NULL || b->bytes == NULL || b->slot == NULL ||
        b->merge == NULL) {
        bpe_close(b);
        return ERR_NO_MEMORY;
    }
    memset(b->slot, 0xff, n_slots * sizeof *b->slot);
    for (size_t i = 0; i < n_merges; i++)
        b->merge[i].pair = EMPTY_PAIR;
    *out = b;
    return ERR_OK;
}

void bpe_close(bpe *b)
{
    if (b == NULL) return;
    free(b->piece_begin);
    free(b->piece_len);
    free(b->bytes);
    free(b->slot);
    free(b->merge);
    free(b);
}

err_t bpe_add_piece(bpe *b, uint32_t id, text_view piece)
{
    assert(id < b->n_ids);
    assert(piece.n_bytes <= b->bytes_room - b->n_bytes);
    if (piece.n_bytes == 0 || b->piece_len[id] != 0) return ERR_BAD_MODEL;
    uint32_t *const slot = find_slot(b, piece);
    if (*slot != BPE_NO_ID) return ERR_BAD_MODEL;
    memcpy(b->bytes + b->n_bytes, piece.bytes, piece.n_bytes);
    b->piece_begin[id] = b->n_bytes;
    b->piece_len[id] = (uint32_t)piece.n_bytes;
    b->n_bytes += piece.n_bytes;
    *slot = id;
    return ERR_OK;
}

err_t bpe_add_merge(bpe *b, text_view left, text_view right)
{
    const uint32_t left_id = bpe_find(b, left), right_id = bpe_find(b, right);
    if (left_id == BPE_NO_ID || right_id == BPE_NO_ID) return ERR_BAD_MODEL;
    char small[256];
    const size_t n_bytes = left.n_bytes + right.n_bytes;
    char *const joined = n_bytes <= sizeof small ? small : malloc(n_bytes);
    if (joined == NULL) return ERR_NO_MEMORY;
    memcpy(joined, left.bytes, left.n_bytes);
    memcpy(joined + left.n_bytes, right.bytes, right.n_bytes);
    const uint32_t joined_id = bpe_find(b, (text_view){joined, n_bytes});
    if (joined != small) free(joined);
    if (joined_id == BPE_NO_ID) return ERR_BAD_MODEL;
    merge *const m = find_merge(b, left_id, right_id);
    *m = (merge){(uint64_t)left_id << 32 | right_id, b->n_added_merges++, joined_id};
    return ERR_OK;
}

/* The UTF-8 of a character below U+0200. */
static text_view low_character(uint32_t c, char out[2])
{
    if (c < 0x80) {
        out[0] = (char)c;
        return (text_view){out, 1};
    }
    out[0] = (char)(0xc0 | c >> 6);
    out[1] = (char)(0x80 | (c & 0x3f));
    return (text_view){out, 2};
}

void bpe_finish(bpe *b, const bpe_settings *settings)
{
    b->settings = *settings;
    for (uint32_t c = 0; c < N_LOW_CHARACTERS; c++) {
        char bytes[2];
        b->low[c] = bpe_find(b, low_character(c, bytes));
    }
    for (unsigned i = 0; i < N_BYTES; i++) {
        char name[8];
        (void)snprintf(name, sizeof name, "<0x%02X>", i);
        b->byte[i] = bpe_find(b, (text_view){name, 6});
    }
}

bool bpe_has_all_bytes(const bpe *b)
{
    for (unsigned i = 0; i < N_BYTES; i++)
        if (b->byte[i] == BPE_NO_ID) return false;
    return true;
}

/* ---- a word -------------------------------------------------------------------------------------- */

static err_t grow(void *array, size_t *room, size_t element_bytes)
{
    void **const at = array;
    const size_t n = max_size(*room * 2, 64);
    void *const block = realloc(*at, n * element_bytes);
    if (block == NULL) return ERR_NO_MEMORY;
    *at = block;
    *room = n;
    return ERR_OK;
}

static err_t push_symbol(bpe_scratch *s, uint32_t id)
{
    if (s->n_symbols == s->symbol_room) TRY(grow(&s->symbol, &s->symbol_room, sizeof *s->symbol));
    s->symbol[s->n_symbols++] = (bpe_symbol){.id = id};
    return ERR_OK;
}

static bool is_before(bpe_candidate a, bpe_candidate b)
{
    return a.rank != b.rank ? a.rank < b.rank : a.position < b.position;
}

/* The pair (left, next of left) becomes a candidate if there is a merge for it. */
static err_t push_pair(const bpe *b, bpe_scratch *s, uint32_t left)
{
    const merge *const m = find_merge(b, s->symbol[left].id, s->symbol[s->symbol[left].next].id);
    if (m->pair == EMPTY_PAIR) return ERR_OK;
    if (s->n_candidates == s->candidate_room)
        TRY(grow(&s->candidate, &s->candidate_room, sizeof *s->candidate));
    const bpe_candidate new = {m->rank, left, m->joined};
    size_t at = s->n_candidates++;
    while (at > 0 && is_before(new, s->candidate[(at - 1) / 2])) {
        s->candidate[at] = s->candidate[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    s->candidate[at] = new;
    return ERR_OK;
}

static bpe_candidate pop(bpe_scratch *s)
{
    const bpe_candidate top = s->candidate[0], last = s->candidate[--s->n_candidates];
    size_t at = 0;
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= s->n_candidates) break;
        if (child + 1 < s->n_candidates && is_before(s->candidate[child + 1], s->candidate[child]))
            child++;
        if (!is_before(s->candidate[child], last)) break;
        s->candidate[at] = s->candidate[child];
        at = child;
    }
    s->candidate[at] = last;
    return top;
}

static uint32_t character_id(const bpe *b, text_view c)
{
    if (c.n_bytes == 1) return b->low[(uint8_t)c.bytes[0]];
    if (c.n_bytes == 2) {
        const uint32_t value = ((uint32_t)c.bytes[0] & 0x1f) << 6 | ((uint32_t)c.bytes[1] & 0x3f);
        if (value < N_LOW_CHARACTERS) return b->low[value];
    }
    return bpe_find(b, c);
}

static bool has_byte_pieces(const bpe *b, text_view c)
{
    for (size_t i = 0; i < c.n_bytes; i++)
        if (b->byte[(uint8_t)c.bytes[i]] == BPE_NO_ID) return false;
    return true;
}

/* A byte that falls back does not end a run of unknown characters: its pieces come out before the unk
 * that preceded them. That is how the library does it. */
static err_t first_symbols(const bpe *b, bpe_scratch *s, text_view word)
{
    bool has_unk = false;
    for (size_t i = 0; i < word.n_bytes;) {
        const text_view c = {word.bytes + i, utf8_next(word.bytes + i, word.n_bytes - i).bytes};
        i += c.n_bytes;
        const uint32_t id = character_id(b, c);
        if (id != BPE_NO_ID) {
            if (has_unk) TRY(push_symbol(s, b->settings.unk));
            has_unk = false;
            TRY(push_symbol(s, id));
        } else if (b->settings.byte_fallback && has_byte_pieces(b, c)) {
            for (size_t j = 0; j < c.n_bytes; j++)
                TRY(push_symbol(s, b->byte[(uint8_t)c.bytes[j]]));
        } else if (b->settings.unk != BPE_NO_ID) {
            if (has_unk && !b->settings.fuse_unk) TRY(push_symbol(s, b->settings.unk));
            has_unk = true;
        }
    }
    return has_unk ? push_symbol(s, b->settings.unk) : ERR_OK;
}

static void link_symbols(bpe_scratch *s)
{
    for (size_t i = 0; i < s->n_symbols; i++) {
        s->symbol[i].prev = i > 0 ? (uint32_t)i - 1 : NO_SYMBOL;
        s->symbol[i].next = i + 1 < s->n_symbols ? (uint32_t)i + 1 : NO_SYMBOL;
    }
}

/* Joins the pair at `c`, if it is still there, and offers the pairs that this makes. */
static err_t try_join(const bpe *b, bpe_scratch *s, bpe_candidate c)
{
    bpe_symbol *const left = &s->symbol[c.position];
    if (left->id == BPE_NO_ID || left->next == NO_SYMBOL) return ERR_OK;
    bpe_symbol *const right = &s->symbol[left->next];
    const merge *const m = find_merge(b, left->id, right->id);
    if (m->pair == EMPTY_PAIR || m->joined != c.joined) return ERR_OK;
    left->id = c.joined;
    left->next = right->next;
    right->id = BPE_NO_ID;
    if (left->next != NO_SYMBOL) s->symbol[left->next].prev = c.position;
    if (left->prev != NO_SYMBOL) TRY(push_pair(b, s, left->prev));
    if (left->next != NO_SYMBOL) TRY(push_pair(b, s, c.position));
    return ERR_OK;
}

err_t bpe_encode(const bpe *b, bpe_scratch *s, text_view word, id_list *ids)
{
    if (word.n_bytes == 0) return ERR_OK;
    if (word.n_bytes >= NO_SYMBOL) return ERR_OVERFLOW;
    if (b->settings.ignore_merges) {
        const uint32_t id = bpe_find(b, word);
        if (id != BPE_NO_ID) return id_list_push(ids, id);
    }
    s->n_symbols = 0;
    s->n_candidates = 0;
    TRY(first_symbols(b, s, word));
    link_symbols(s);
    for (uint32_t i = 0; i + 1 < s->n_symbols; i++)
        TRY(push_pair(b, s, i));
    while (s->n_candidates > 0)
        TRY(try_join(b, s, pop(s)));
    for (size_t i = 0; i < s->n_symbols; i++)
        if (s->symbol[i].id != BPE_NO_ID) TRY(id_list_push(ids, s->symbol[i].id));
    return ERR_OK;
}

void bpe_scratch_deinit(bpe_scratch *s)
{
    free(s->symbol);
    free(s->candidate);
    *s = (bpe_scratch){0};
}
