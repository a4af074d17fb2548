/* service/jinja/jinja_ast.h - a compiled template.
 *
 * One kind of node for all; what its children are is said at its kind. Names of variables are numbers, so
 * that a rendering finds them without comparing texts. Filters, tests and methods are found, and their
 * arguments put in order, when the template is compiled: an unknown one is refused there.
 *
 * The depth of a tree is limited by the parser, and with it the stack that walking it takes. */
#ifndef SERVICE_JINJA_JINJA_AST_H
#define SERVICE_JINJA_JINJA_AST_H

#include "service/jinja/jinja_heap.h"
#include "service/jinja/jinja_value.h"

enum { JINJA_NODE_DEPTH_MAX = 200, JINJA_ARGS_MAX = 8 };

typedef enum jinja_kind {
    /* expressions; children in brackets, ? may be NULL */
    JINJA_N_CONST,     /* value */
    JINJA_N_NAME,      /* name */
    JINJA_N_CAPTURED,  /* what a block has just rendered, the input of its filters */
    JINJA_N_TUPLE,     /* [item...] */
    JINJA_N_LIST,      /* [item...] */
    JINJA_N_DICT,      /* [key, value, ...] */
    JINJA_N_ATTRIBUTE, /* [object], value: the name */
    JINJA_N_ITEM,      /* [object, index] */
    JINJA_N_SLICE,     /* [object, start?, stop?, step?] */
    JINJA_N_CALL, /* [callee, argument..., list?, dict?]: n_keywords before the last two are named, op: jinja_unpack */
    JINJA_N_METHOD,  /* [object, argument?...], def */
    JINJA_N_FILTER,  /* [input, argument?...], def */
    JINJA_N_TEST,    /* [input, argument?...], def */
    JINJA_N_EACH,    /* [input, attribute?, argument?...], op: jinja_each, def: filter or test? */
    JINJA_N_NOT,     /* [x] */
    JINJA_N_AND,     /* [left, right] */
    JINJA_N_OR,      /* [left, right] */
    JINJA_N_COMPARE, /* [x, y, ...], ops: one less */
    JINJA_N_MATH,    /* [left, right], op: jinja_op */
    JINJA_N_CONCAT,  /* [x...] */
    JINJA_N_NEGATE,  /* [x] */
    JINJA_N_PLUS,    /* [x] */
    JINJA_N_CHOOSE,  /* [condition, then, else?] */
    /* statements */
    JINJA_N_BLOCK,        /* [statement...] */
    JINJA_N_TEXT,         /* value */
    JINJA_N_PRINT,        /* [x] */
    JINJA_N_IF,           /* [condition, block, condition, block, ..., else?] */
    JINJA_N_FOR,          /* [target, sequence, condition?, block, else?], op: it is recursive */
    JINJA_N_SET,          /* [target, x] */
    JINJA_N_SET_BLOCK,    /* [target, block, x over CAPTURED] */
    JINJA_N_FILTER_BLOCK, /* [block, x over CAPTURED] */
    JINJA_N_WITH,         /* [block, target, x, ...] */
    JINJA_N_SCOPE,        /* [block] */
    JINJA_N_MACRO,        /* [block, default?...], name, names: the parameters, op: jinja_extra */
    JINJA_N_CALL_BLOCK,   /* [CALL, MACRO] */
    JINJA_N_BREAK,
    JINJA_N_CONTINUE,
    JINJA_N_MEMBER /* a target only: name, value: the attribute of a namespace */
} jinja_kind;

typedef enum jinja_op {
    JINJA_ADD,
    JINJA_SUBTRACT,
    JINJA_MULTIPLY,
    JINJA_DIVIDE,
    JINJA_FLOOR_DIVIDE,
    JINJA_MODULO,
    JINJA_POWER,
    JINJA_EQ,
    JINJA_NE,
    JINJA_LT,
    JINJA_LE,
    JINJA_GT,
    JINJA_GE,
    JINJA_IN,
    JINJA_NOT_IN
} jinja_op;

/* Bits: which of *list and **dict a call has, and which of varargs and kwargs a macro looks at. */
typedef enum jinja_unpack { JINJA_UNPACKS_LIST = 1, JINJA_UNPACKS_DICT = 2 } jinja_unpack;
typedef enum jinja_extra { JINJA_TAKES_VARARGS = 1, JINJA_TAKES_KWARGS = 2 } jinja_extra;

/* map, select, reject and theirs over an attribute. */
typedef enum jinja_each {
    JINJA_EACH_ATTRIBUTE, /* map(attribute=...) with an optional default as the argument */
    JINJA_EACH_FILTER,    /* map("upper") */
    JINJA_EACH_SELECT,
    JINJA_EACH_REJECT
} jinja_each;

typedef struct jinja_node jinja_node;
struct jinja_node {
    uint8_t kind; /* jinja_kind */
    uint8_t op;   /* jinja_op, jinja_each, or as its kind says */
    uint16_t depth;
    uint32_t line;
    uint32_t name; /* NAME, MACRO, MEMBER: number in jinja.names */
    uint32_t n_kids, n_keywords;
    jinja_node **kids;
    uint8_t *ops;
    uint32_t *names;       /* MACRO: of its parameters */
    jinja_value *keywords; /* CALL: their names */
    jinja_value value;
    const struct jinja_def *def;
};

/* The arguments of a CALL but for those that are unpacked. */
static inline uint32_t jinja_call_own_args(const jinja_node *call)
{
    const uint32_t n_unpacked =
        (call->op & JINJA_UNPACKS_LIST ? 1u : 0u) + (call->op & JINJA_UNPACKS_DICT ? 1u : 0u);
    return call->n_kids - 1 - n_unpacked;
}

enum {
    JINJA_NAME_LOOP,
    JINJA_NAME_CALLER,
    JINJA_NAME_VARARGS,
    JINJA_NAME_KWARGS,
    JINJA_NAMES_KNOWN
}; /* the first names of any template */

struct jinja {
    jinja_heap heap;
    jinja_value *names; /* [n_names] strings; terminated */
    uint32_t n_names;
    jinja_node *root;
};

#endif
