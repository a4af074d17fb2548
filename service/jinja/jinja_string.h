/* service/jinja/jinja_string.h - Python's methods of str that filters share with methods. Texts come in
 * as strings (jinja_str has made them so); of one that is escaped strip, case and lines are, too. */
#ifndef SERVICE_JINJA_JINJA_STRING_H
#define SERVICE_JINJA_JINJA_STRING_H

#include "service/jinja/jinja_run.h"

enum { JINJA_STRIP_LEFT = 1, JINJA_STRIP_RIGHT = 2 };

/* chars: ABSENT or None (spaces), or a string of characters. */
err_t jinja_strip(jinja_run *run, jinja_value s, jinja_value chars, unsigned sides,
                  jinja_value *out) MUST_CHECK;
/* For HTML; what is escaped already stays as it is. */
err_t jinja_escape(jinja_run *run, jinja_value v, jinja_value *out) MUST_CHECK;
/* times < 0: all. */
err_t jinja_replace(jinja_run *run, jinja_value s, const jinja_value old_new[2], int64_t times,
                    jinja_value *out) MUST_CHECK;

typedef enum jinja_casing {
    JINJA_UPPER,
    JINJA_LOWER,
    JINJA_CAPITALIZED, /* the first character upper, the others lower */
    JINJA_TITLE,       /* str.title: every letter behind a non-letter */
    JINJA_TITLE_WORDS, /* the filter: behind spaces and - ( { [ < */
    JINJA_SWAPPED
} jinja_casing;
err_t jinja_case(jinja_run *run, jinja_value s, jinja_casing casing, jinja_value *out) MUST_CHECK;

err_t jinja_split_lines(jinja_run *run, jinja_value s, bool keeps_ends,
                        jinja_value *out) MUST_CHECK;
/* The items as str() has them, with a separator between them. */
err_t jinja_join(jinja_run *run, const jinja_value *items, size_t n, jinja_value separator,
                 jinja_value *out) MUST_CHECK;
/* The integer that Python's int(str) reads; false if it reads none. */
bool jinja_read_int(jinja_value s, int64_t *out);
bool jinja_read_float(jinja_value s, double *out);

#endif
