/* model/special_tokens.c - see special_tokens.h. */
#include "model/special_tokens.h"

#include "base/check.h"

#include <stdlib.h>
#include <string.h>

static int compare(const void *a, const void *b)
{
    const special_token *x = a, *y = b;
    const int order = memcmp(x->bytes, y->bytes, min_size(x->n_bytes, y->n_bytes));
    if (order != 0) return order;
    return (x->n_bytes > y->n_bytes) - (x->n_bytes < y->n_bytes);
}

void special_tokens_init(special_tokens *out, special_token *tokens, size_t n_tokens)
{
    *out = (special_tokens){.sorted = tokens, .n_tokens = n_tokens};
    if (n_tokens > 0) qsort(tokens, n_tokens, sizeof *tokens, compare);
    for (size_t i = 0; i < n_tokens; i++) {
        assert(tokens[i].n_bytes > 0);
        out->begins[(unsigned char)tokens[i].bytes[0]] = true;
    }
}

/* The first of [lo, hi), whose names have more than `depth` bytes and are equal up to it, with at least `byte`
 * there. */
static size_t lower_bound(const special_tokens *s, size_t lo, size_t hi, size_t depth, int byte)
{
    while (lo < hi) {
        const size_t mid = lo + (hi - lo) / 2;
        if ((unsigned char)s->sorted[mid].bytes[depth] < byte) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    return lo;
}

/* The longest name that text begins with. */
static const special_token *match(const special_tokens *s, const char *text, size_t n_bytes)
{
    const special_token *found = NULL;
    size_t lo = 0, hi = s->n_tokens;
    for (size_t depth = 0; depth < n_bytes && lo < hi; depth++) {
        const int byte = (unsigned char)text[depth];
        lo = lower_bound(s, lo, hi, depth, byte);
        hi = lower_bound(s, lo, hi, depth, byte + 1);
        while (lo < hi && s->sorted[lo].n_bytes == depth + 1)
            found = &s->sorted[lo++]; /* whole; the others go on */
    }
    return found;
}

const special_token *special_tokens_find(const special_tokens *s, const char *text, size_t n_bytes,
                                         size_t from, size_t *at)
{
    for (size_t i = from; i < n_bytes; i++) {
        if (!s->begins[(unsigned char)text[i]]) continue;
        const special_token *found = match(s, text + i, n_bytes - i);
        if (found == NULL) continue;
        *at = i;
        return found;
    }
    return NULL;
}
