/* service/jinja/jinja_value.h - what an expression of a template can be, after Python's values.
 *
 * Values are small and copied; what they point to lies in the heap of the rendering (or of the template,
 * or is borrowed from the request) and is never changed once made, save namespaces and the mark of a
 * used-up iterator. So there are no cycles, except through namespaces, which no function walks into; and
 * containers carry their depth, which is limited, so that walking them cannot overflow the stack.
 *
 * Texts are valid UTF-8 (they come from JSON or a checked template) and may hold NULs. */
#ifndef SERVICE_JINJA_JINJA_VALUE_H
#define SERVICE_JINJA_JINJA_VALUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { JINJA_VALUE_DEPTH_MAX = 200 }; /* lists in lists */

typedef enum jinja_type {
    JINJA_ABSENT, /* an argument that was not given */
    JINJA_UNDEFINED,
    JINJA_NONE,
    JINJA_BOOL,
    JINJA_INT,
    JINJA_FLOAT,
    JINJA_STRING,
    JINJA_LIST,
    JINJA_DICT,
    JINJA_NAMESPACE,
    JINJA_MACRO,
    JINJA_FUNCTION,
    JINJA_METHOD, /* of a value, not called: only its being there can be tested */
    JINJA_LOOP
} jinja_type;

/* What Python would have where we have a list. */
typedef enum jinja_form {
    JINJA_FORM_LIST,
    JINJA_FORM_TUPLE,
    JINJA_FORM_ITERATOR, /* of a filter: no length, no index, read once */
    JINJA_FORM_VIEW,     /* keys(), values(), items(): a length, no index */
    JINJA_FORM_RANGE
} jinja_form;

typedef struct jinja_list jinja_list;
typedef struct jinja_dict jinja_dict;
typedef struct jinja_namespace jinja_namespace;
typedef struct jinja_macro jinja_macro;
typedef struct jinja_loop jinja_loop;

typedef struct jinja_value {
    uint8_t type;     /* jinja_type */
    uint8_t of;       /* UNDEFINED: the type that lacks it, ABSENT for a variable */
    bool is_escaped;  /* STRING: Markup, which escapes what is joined to it */
    uint32_t n_bytes; /* STRING; UNDEFINED: of its name */
    union {
        bool truth;
        int64_t integer;
        double real;
        const char *text; /* STRING, UNDEFINED (its name), METHOD: n_bytes; not terminated */
        jinja_list *list;
        jinja_dict *dict;
        jinja_namespace *space;
        const jinja_macro *macro;
        const struct jinja_def *function;
        jinja_loop *loop;
    };
} jinja_value;

struct jinja_list {
    jinja_value *items;
    uint32_t n;
    uint16_t depth;
    uint8_t form;    /* jinja_form */
    bool is_used_up; /* an iterator that has been read */
    bool is_group;   /* a pair of groupby: its items are also called grouper and list */
};

struct jinja_dict {
    jinja_value *keys, *values; /* [n], in the order of insertion */
    uint32_t n;
    uint16_t depth;
};

struct jinja_namespace {
    jinja_value *names, *values; /* [n] of [capacity] */
    uint32_t n, capacity;
};

static inline jinja_value jinja_none(void)
{
    return (jinja_value){.type = JINJA_NONE};
}

static inline jinja_value jinja_bool(bool truth)
{
    return (jinja_value){.type = JINJA_BOOL, .truth = truth};
}

static inline jinja_value jinja_int(int64_t integer)
{
    return (jinja_value){.type = JINJA_INT, .integer = integer};
}

static inline jinja_value jinja_float(double real)
{
    return (jinja_value){.type = JINJA_FLOAT, .real = real};
}

static inline jinja_value jinja_string(const char *text, size_t n_bytes)
{
    return (jinja_value){.type = JINJA_STRING, .n_bytes = (uint32_t)n_bytes, .text = text};
}

/* A name that `of` (ABSENT: the variables) does not have. */
static inline jinja_value jinja_undefined(uint8_t of, const char *name, size_t n_bytes)
{
    return (jinja_value){
        .type = JINJA_UNDEFINED, .of = of, .n_bytes = (uint32_t)n_bytes, .text = name};
}

static inline bool jinja_is_list(jinja_value v, jinja_form form)
{
    return v.type == JINJA_LIST && v.list->form == form;
}

bool jinja_is_text(jinja_value v, const char *text);

/* Python's type, for messages: "str", "NoneType". */
const char *jinja_type_name(jinja_value v);

bool jinja_truth(jinja_value v);

/* As Python's ==: 1 == 1.0 == True. Takes from *steps what it costs; when that is not enough *steps is 0
 * and the answer false. */
bool jinja_equal_within(jinja_value a, jinja_value b, uint64_t *steps);
bool jinja_equal(jinja_value a, jinja_value b); /* of names */

/* Bools, integers and floats as a number. */
bool jinja_is_number(jinja_value v);
double jinja_real(jinja_value v);
/* Bools and integers. */
bool jinja_is_whole(jinja_value v);
int64_t jinja_whole(jinja_value v);

#endif
