/* service/jinja/jinja_run.h - one rendering, as filters, tests, methods and functions see it.
 *
 * Whatever takes time or memory in proportion to its input says so: jinja_charge for work, and every piece
 * of memory comes from the rendering's heap, which has a limit. */
#ifndef SERVICE_JINJA_JINJA_RUN_H
#define SERVICE_JINJA_JINJA_RUN_H

#include "base/error.h"
#include "service/jinja/jinja.h"
#include "service/jinja/jinja_ast.h"

/* Variables of one for, macro, with or block: what is not here is looked for in the scope around it. */
typedef struct jinja_binding {
    struct jinja_binding *next;
    jinja_value value;
    uint32_t name;
} jinja_binding;

typedef struct jinja_scope {
    jinja_binding *first;
    struct jinja_scope *outer; /* NULL: the template's variables, jinja_run.variables */
} jinja_scope;

struct jinja_macro {
    const jinja_node *node;
    jinja_scope *scope; /* in which it was defined */
};

struct jinja_loop {
    const jinja_value *items;
    uint32_t n, index0, depth;
    const jinja_node *node;   /* its statement, which it goes through again when it is called */
    jinja_scope *scope;       /* around the statement */
    jinja_value last_changed; /* ABSENT before the first changed() */
};

typedef enum jinja_flow { JINJA_GOES_ON, JINJA_BREAKS, JINJA_CONTINUES } jinja_flow;

typedef struct jinja_run {
    const jinja *template;
    const jinja_limits *limits;
    err_info *info;
    jinja_heap heap;  /* of values */
    jinja_heap texts; /* apart, so that a text that grows is often the last piece */
    char *text; /* [n_bytes] of [capacity]: what has been rendered, then what blocks capture */
    size_t n_bytes, capacity;
    jinja_value *variables; /* [template->n_names]: of the context, then of the outermost scope */
    jinja_scope *scope;     /* NULL: the outermost */
    jinja_value captured;   /* what CAPTURED stands for */
    uint64_t steps_left;
    uint32_t line; /* of the node that is being evaluated */
    uint32_t depth;
    jinja_flow flow;
} jinja_run;

/* A filter, test, method or function. args[0] is the input, the others are as `params` names them; one
 * that was not given is ABSENT. */
typedef struct jinja_def {
    const char *name;
    const char *params; /* "old new count?": those with ? may be left out; behind the input */
    err_t (*fn)(jinja_run *run, const jinja_value *args, jinja_value *out);
} jinja_def;

/* What a file of them offers; NULL if it has none of that name. */
const jinja_def *jinja_find_filter(jinja_value name);
const jinja_def *jinja_find_test(jinja_value name);
const jinja_def *jinja_find_method(jinja_value name);
const jinja_def *jinja_find_function(jinja_value name);

/* ---- errors and limits */

/* ERR_BAD_REQUEST with the line that is being rendered. */
err_t jinja_fail(jinja_run *run, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The template's own words, without the line. */
err_t jinja_raise(jinja_run *run, jinja_value message);
/* The error of using an undefined value. */
err_t jinja_fail_undefined(jinja_run *run, jinja_value v);
/* n units of work, each about that of a short instruction sequence. */
err_t jinja_charge(jinja_run *run, size_t n) MUST_CHECK;
/* One level deeper; fails when that is too deep. */
err_t jinja_enter(jinja_run *run) MUST_CHECK;
void jinja_leave(jinja_run *run);

/* ---- making values */

err_t jinja_take(jinja_run *run, size_t n, size_t each_bytes, void **out) MUST_CHECK;
err_t jinja_take_text(jinja_run *run, size_t n_bytes, char **out) MUST_CHECK;
err_t jinja_make_text(jinja_run *run, const char *text, size_t n_bytes,
                      jinja_value *out) MUST_CHECK;
/* a and b, one behind the other. */
err_t jinja_join_text(jinja_run *run, jinja_value a, jinja_value b, jinja_value *out) MUST_CHECK;
/* n items to be filled in, then jinja_close_list, which may cut them and finds the depth. */
err_t jinja_open_list(jinja_run *run, jinja_form form, size_t n, jinja_value *out) MUST_CHECK;
err_t jinja_close_list(jinja_run *run, jinja_value list, size_t n) MUST_CHECK;
err_t jinja_make_pair(jinja_run *run, jinja_value a, jinja_value b, jinja_value *out) MUST_CHECK;
/* Room for n entries, then jinja_dict_put for at most so many, then jinja_close_dict. */
err_t jinja_open_dict(jinja_run *run, size_t n, jinja_value *out) MUST_CHECK;
err_t jinja_dict_put(jinja_run *run, jinja_value dict, jinja_value key, jinja_value v) MUST_CHECK;
err_t jinja_close_dict(jinja_run *run, jinja_value dict) MUST_CHECK;
err_t jinja_space_put(jinja_run *run, jinja_namespace *space, jinja_value name,
                      jinja_value v) MUST_CHECK;

/* ---- reading values */

/* jinja_equal, and a dict's value (NULL if it has no such key), with the work charged. */
err_t jinja_same(jinja_run *run, jinja_value a, jinja_value b, bool *out) MUST_CHECK;
err_t jinja_find(jinja_run *run, const jinja_dict *dict, jinja_value key,
                 const jinja_value **out) MUST_CHECK;
/* As `for` sees it: *items[n] of a list, the keys of a dict, the characters of a string. */
err_t jinja_iterate(jinja_run *run, jinja_value v, const jinja_value **items, size_t *n) MUST_CHECK;
/* Python's str(), and Jinja's soft_str: a string as it is. */
err_t jinja_str(jinja_run *run, jinja_value v, jinja_value *out) MUST_CHECK;
/* v.name and v[index]. */
err_t jinja_get_attribute(jinja_run *run, jinja_value v, jinja_value name,
                          jinja_value *out) MUST_CHECK;
err_t jinja_get_item(jinja_run *run, jinja_value v, jinja_value index, jinja_value *out) MUST_CHECK;
/* "a.b.0" step by step, as filters name attributes. */
err_t jinja_get_path(jinja_run *run, jinja_value v, jinja_value path, jinja_value *out) MUST_CHECK;
err_t jinja_get_slice(jinja_run *run, jinja_value v, const jinja_value bounds[3],
                      jinja_value *out) MUST_CHECK;
err_t jinja_length(jinja_run *run, jinja_value v, int64_t *out) MUST_CHECK;

/* ---- operators */

err_t jinja_math(jinja_run *run, jinja_op op, jinja_value a, jinja_value b,
                 jinja_value *out) MUST_CHECK;
err_t jinja_negate(jinja_run *run, jinja_value v, jinja_value *out) MUST_CHECK;
err_t jinja_compare(jinja_run *run, jinja_op op, jinja_value a, jinja_value b,
                    bool *out) MUST_CHECK;
/* -1, 0, 1; for sorting. */
err_t jinja_order(jinja_run *run, jinja_value a, jinja_value b, int *out) MUST_CHECK;

/* ---- words and JSON */

typedef struct jinja_json_style {
    jinja_value item_separator, key_separator;
    const char *indent; /* one level; NULL: all on one line */
    size_t indent_bytes;
    bool ascii_only, sort_keys;
} jinja_json_style;
err_t jinja_to_json(jinja_run *run, jinja_value v, const jinja_json_style *style,
                    jinja_value *out) MUST_CHECK;

#endif
