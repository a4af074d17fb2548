/* service/jinja/jinja_unicode.h - the tables behind jinja_text.h: of what Python's str knows. */
#ifndef SERVICE_JINJA_JINJA_UNICODE_H
#define SERVICE_JINJA_JINJA_UNICODE_H

#include <stdint.h>

/* first, first + step, ...; tables are sorted by `first`, but runs with a step of 2 may interleave. */
typedef struct jinja_run_of_chars {
    uint32_t first;
    uint16_t n;
    uint8_t step;
} jinja_run_of_chars;

typedef struct jinja_case_run {
    uint32_t first;
    uint16_t n;
    uint8_t step;
    int32_t distance;
} jinja_case_run;

#define JINJA_SETS(X) \
    X(unprintable)    \
    X(alpha)          \
    X(upper)          \
    X(lower)          \
    X(title)          \
    X(decimal)        \
    X(digit)          \
    X(numeric)        \
    X(ignorable)
#define X(name)                                            \
    extern const jinja_run_of_chars jinja_##name##_runs[]; \
    extern const uint32_t jinja_##name##_runs_n;
JINJA_SETS(X)
#undef X

/* `several` begins with the character; unused places are 0. */
#define JINJA_CASES(X) X(upper) X(title) X(lower)
#define X(name)                                         \
    extern const jinja_case_run jinja_##name##_cases[]; \
    extern const uint32_t jinja_##name##_cases_n;       \
    extern const uint32_t jinja_##name##_several[][4];  \
    extern const uint32_t jinja_##name##_several_n;
JINJA_CASES(X)
#undef X

#endif
