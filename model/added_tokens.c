/* model/added_tokens.c - see added_tokens.h.
 *
 * The trie's edges lie in one hash table keyed by (node, byte); a node that ends a token names it. */
#include "model/added_tokens.h"

#include "base/check.h"
#include "model/unicode.h"

#include <stdlib.h>
#include <string.h>

typedef struct edge {
    uint64_t key; /* node << 8 | byte; 0: free, since no edge leads from node 0 by byte 0 */
    uint32_t to;
} edge;

/* Node 1 is the root. */
enum { ROOT = 1, NO_NODE = 0, NO_TOKEN = UINT32_MAX };

struct added_set {
    edge *edge; /* [n_slots] */
    size_t n_slots, n_edges;
    uint32_t *token_of; /* [n_nodes] of [node_room]: index of its token */
    size_t n_nodes, node_room;
    added_token *token; /* [n_tokens] of [token_room] */
    size_t n_tokens, token_room;
    bool begins[256]; /* a token begins with this byte */
};

/* ---- the trie ------------------------------------------------------------------------------------ */

static edge *find_edge(const added_set *s, uint32_t node, uint8_t byte)
{
    const uint64_t key = (uint64_t)node << 8 | byte;
    const uint64_t mixed = key * UINT64_C(0x9e3779b97f4a7c15);
    size_t i = (size_t)(mixed >> 32) & (s->n_slots - 1);
    while (s->edge[i].key != 0 && s->edge[i].key != key)
        i = (i + 1) & (s->n_slots - 1);
    return &s->edge[i];
}

static err_t add_node(added_set *s, uint32_t *out)
{
    if (s->n_nodes == s->node_room) {
        const size_t room = max_size(2 * s->node_room, 64);
        uint32_t *const token_of = realloc(s->token_of, room * sizeof *token_of);
        if (token_of == NULL) return ERR_NO_MEMORY;
        s->token_of = token_of;
        s->node_room = room;
    }
    *out = (uint32_t)s->n_nodes;
    s->token_of[s->n_nodes++] = NO_TOKEN;
    return ERR_OK;
}

/* At most half of the slots are used. */
static err_t grow_edges(added_set *s)
{
    if (2 * (s->n_edges + 1) <= s->n_slots) return ERR_OK;
    edge *const old = s->edge;
    const size_t n_old = s->n_slots, n_slots = max_size(2 * n_old, 64);
    edge *const new = calloc(n_slots, sizeof *new);
    if (new == NULL) return ERR_NO_MEMORY;
    s->edge = new;
    s->n_slots = n_slots;
    for (size_t i = 0; i < n_old; i++)
        if (old[i].key != 0)
            *find_edge(s, (uint32_t)(old[i].key >> 8), (uint8_t)old[i].key) = old[i];
    free(old);
    return ERR_OK;
}

static err_t step_into(added_set *s, uint32_t node, uint8_t byte, uint32_t *out)
{
    TRY(grow_edges(s));
    edge *const e = find_edge(s, node, byte);
    if (e->key == 0) {
        uint32_t to;
        TRY(add_node(s, &to));
        *e = (edge){(uint64_t)node << 8 | byte, to};
        s->n_edges++;
    }
    *out = e->to;
    return ERR_OK;
}

err_t added_set_open(added_set **out)
{
    *out = NULL;
    added_set *const s = calloc(1, sizeof *s);
    if (s == NULL) return ERR_NO_MEMORY;
    uint32_t node;
    err_t err = grow_edges(s);
    for (int i = 0; i <= ROOT && err == ERR_OK; i++)
        err = add_node(s, &node);
    if (err != ERR_OK) {
        added_set_close(s);
        return err;
    }
    *out = s;
    return ERR_OK;
}

void added_set_close(added_set *s)
{
    if (s == NULL) return;
    free(s->edge);
    free(s->token_of);
    free(s->token);
    free(s);
}

err_t added_set_add(added_set *s, text_view content, const added_token *token)
{
    assert(content.n_bytes > 0);
    assert(content.n_bytes <= ADDED_TOKEN_BYTES_MAX);
    uint32_t node = ROOT;
    for (size_t i = 0; i < content.n_bytes; i++)
        TRY(step_into(s, node, (uint8_t)content.bytes[i], &node));
    if (s->token_of[node] != NO_TOKEN) return ERR_BAD_MODEL;
    if (s->n_tokens == s->token_room) {
        const size_t room = max_size(2 * s->token_room, 16);
        added_token *const tokens = realloc(s->token, room * sizeof *tokens);
        if (tokens == NULL) return ERR_NO_MEMORY;
        s->token = tokens;
        s->token_room = room;
    }
    s->token_of[node] = (uint32_t)s->n_tokens;
    s->token[s->n_tokens++] = *token;
    s->begins[(uint8_t)content.bytes[0]] = true;
    return ERR_OK;
}

bool added_set_is_lossless(const added_set *s)
{
    for (size_t i = 0; i < s->n_tokens; i++)
        if (s->token[i].lstrip || s->token[i].rstrip) return false;
    return true;
}

/* ---- the walk ------------------------------------------------------------------------------------ */

void added_walk_init(added_walk *w, const added_set *s, text_view text, bool passes_special)
{
    *w = (added_walk){.set = s, .text = text, .passes_special = passes_special};
}

/* The longest token that begins at `begin`; NULL if none does. */
static const added_token *longest_at(const added_set *s, text_view text, size_t begin, size_t *end)
{
    const added_token *best = NULL;
    uint32_t node = ROOT;
    if (!s->begins[(uint8_t)text.bytes[begin]]) return NULL;
    for (size_t i = begin; i < text.n_bytes; i++) {
        const edge *const e = find_edge(s, node, (uint8_t)text.bytes[i]);
        if (e->key == 0) break;
        node = e->to;
        if (s->token_of[node] == NO_TOKEN) continue;
        best = &s->token[s->token_of[node]];
        *end = i + 1;
    }
    return best;
}

static bool is_between_words(text_view text, size_t begin, size_t end)
{
    size_t n;
    if (begin > 0 && unicode_is_word(unicode_last((text_view){text.bytes, begin}, &n)))
        return false;
    const text_view rest = {text.bytes + end, text.n_bytes - end};
    return rest.n_bytes == 0 || !unicode_is_word(unicode_first(rest, &n));
}

/* Spaces before `begin`, as far as they were not handed out. */
static size_t strip_left(text_view text, size_t begin, size_t least)
{
    size_t n;
    while (begin > least && unicode_is_space(unicode_last((text_view){text.bytes, begin}, &n)))
        begin -= n;
    return begin;
}

static size_t strip_right(text_view text, size_t end)
{
    size_t n;
    while (end < text.n_bytes &&
           unicode_is_space(unicode_first((text_view){text.bytes + end, text.n_bytes - end}, &n)))
        end += n;
    return end;
}

/* As in the library the next search begins behind a token's content, not behind the spaces it took. */
static bool find_token(added_walk *w, size_t *begin)
{
    const text_view text = w->text;
    for (; w->at < text.n_bytes; w->at++) {
        size_t end = 0;
        const added_token *const found = longest_at(w->set, text, w->at, &end);
        if (found == NULL) continue;
        const size_t found_at = w->at;
        w->at = end;
        if ((found->is_special && w->passes_special) ||
            (found->single_word && !is_between_words(text, found_at, end))) {
            w->at--; /* for the loop */
            continue;
        }
        *begin = found->lstrip ? strip_left(text, found_at, w->handed) : found_at;
        w->token = *found;
        w->token_end = found->rstrip ? strip_right(text, end) : end;
        return true;
    }
    return false;
}

bool added_walk_next(added_walk *w, added_part *out)
{
    size_t begin = w->text.n_bytes;
    if (!w->has_token) {
        w->has_token = find_token(w, &begin);
        if (w->handed < begin) {
            *out = (added_part){ADDED_NONE, {w->text.bytes + w->handed, begin - w->handed}};
            w->handed = begin;
            return true;
        }
        if (!w->has_token) return false;
    }
    w->has_token = false;
    *out = (added_part){w->token.id, {w->text.bytes + w->handed, 0}};
    w->handed = w->token_end;
    return true;
}
