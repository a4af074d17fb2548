/* service/session_text.h - which part of a growing text may be shown, and where a stop string ends it.
 *
 * One matching automaton per stop string (Knuth, Morris and Pratt, 1977): its state is the length of
 * the longest suffix of the text that is a prefix of the stop string. The longest state of all is
 * exactly what must be held back: those bytes may still become a stop string, and no others can.
 * A byte costs a constant on average, however long the stop strings are.
 *
 * The text ends at the stop string that is complete first, and among those that end at one byte at the
 * longest, so the result does not depend on how the text was cut into tokens. */
#ifndef SERVICE_SESSION_TEXT_H
#define SERVICE_SESSION_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct stop_matcher {
    const char *stop; /* [n_bytes]; borrowed */
    const uint16_t
        *border; /* [n_bytes + 1]; longest proper prefix of stop[0 .. i) that is its suffix */
    uint16_t n_bytes;
    uint16_t n_matched; /* state */
} stop_matcher;

/* Fills border[0 .. n_bytes]; the tables of a session are placed by its owner. */
void stop_border_fill(const char *stop, size_t n_bytes, uint16_t *border);

typedef struct stop_scan {
    size_t n_scanned; /* bytes of the input consumed: up to and including the stop string, or all */
    size_t n_held;    /* bytes at the end of the text that may become a stop string */
    bool is_found;
    uint32_t stop; /* which; valid when found */
} stop_scan;

/* Feeds `n_bytes` of new text. With `may_match` false a complete stop string counts as ordinary text,
 * though its tail may still begin another. */
stop_scan stop_matchers_feed(stop_matcher *matchers, uint32_t n_matchers, const char *text,
                             size_t n_bytes, bool may_match);

#endif
