/* service/session_text.c - see session_text.h. */
#include "service/session_text.h"

#include "base/check.h"

void stop_border_fill(const char *stop, size_t n_bytes, uint16_t *border)
{
    assert(n_bytes >= 1);
    assert(n_bytes < UINT16_MAX);
    border[0] = 0;
    border[1] = 0;
    uint16_t length = 0;
    for (size_t i = 1; i < n_bytes; i++) {
        while (length > 0 && stop[i] != stop[length])
            length = border[length];
        if (stop[i] == stop[length]) length++;
        border[i + 1] = length;
    }
}

/* The next state of one automaton. A complete match (state n_bytes) is left through its border. */
static uint16_t matcher_next(const stop_matcher *m, char byte)
{
    uint16_t length = m->n_matched;
    if (length == m->n_bytes) length = m->border[length];
    while (length > 0 && m->stop[length] != byte)
        length = m->border[length];
    return m->stop[length] == byte ? (uint16_t)(length + 1) : 0;
}

/* Feeds one byte to all; the longest stop string that it completes, or n_matchers. */
static uint32_t feed_byte(stop_matcher *matchers, uint32_t n_matchers, char byte)
{
    uint32_t found = n_matchers;
    for (uint32_t i = 0; i < n_matchers; i++) {
        stop_matcher *m = &matchers[i];
        m->n_matched = matcher_next(m, byte);
        if (m->n_matched < m->n_bytes) continue;
        if (found == n_matchers || m->n_bytes > matchers[found].n_bytes) found = i;
    }
    return found;
}

static size_t held_bytes(const stop_matcher *matchers, uint32_t n_matchers)
{
    size_t n_held = 0;
    for (uint32_t i = 0; i < n_matchers; i++) {
        const stop_matcher *m = &matchers[i];
        const bool is_whole = m->n_matched == m->n_bytes; /* only its border may still grow */
        n_held = max_size(n_held, is_whole ? m->border[m->n_bytes] : m->n_matched);
    }
    return n_held;
}

stop_scan stop_matchers_feed(stop_matcher *matchers, uint32_t n_matchers, const char *text,
                             size_t n_bytes, bool may_match)
{
    for (size_t i = 0; i < n_bytes; i++) {
        const uint32_t found = feed_byte(matchers, n_matchers, text[i]);
        if (!may_match || found == n_matchers) continue;
        return (stop_scan){.n_scanned = i + 1, .is_found = true, .stop = found};
    }
    return (stop_scan){.n_scanned = n_bytes, .n_held = held_bytes(matchers, n_matchers)};
}
