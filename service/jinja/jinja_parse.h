/* service/jinja/jinja_parse.h - from words to trees, after jinja2/parser.py.
 *
 * Statements are in jinja_parse.c, expressions in jinja_parse_expr.c, calls of filters, tests, methods and
 * functions in jinja_parse_call.c. Everything is recursive, and jinja_parse_enter limits how deep. */
#ifndef SERVICE_JINJA_JINJA_PARSE_H
#define SERVICE_JINJA_JINJA_PARSE_H

#include "service/jinja/jinja_ast.h"
#include "service/jinja/jinja_lex.h"

typedef struct jinja_name_use {
    bool is_assigned; /* somewhere in the template: it may be more than a variable of the context */
    uint32_t called_line; /* where it is first called; 0 if it is not */
    uint32_t odd_line;    /* where it first stands for something of Jinja's that is not supported */
} jinja_name_use;

typedef struct jinja_parser {
    const jinja_token *at;
    jinja_heap *heap;
    err_info *info;
    jinja_value *names; /* [n_names] of [names_capacity] */
    jinja_name_use *uses;
    uint32_t n_names, names_capacity;
    unsigned depth;
    unsigned n_loops;  /* around this place, in the same macro */
    unsigned n_macros; /* around this place */
    uint8_t extra;     /* jinja_extra, of the macro around this place */
} jinja_parser;

/* ---- shared by the three files */

err_t jinja_parse_enter(jinja_parser *p) MUST_CHECK;
void jinja_parse_leave(jinja_parser *p);
err_t jinja_parse_unexpected(const jinja_parser *p);
err_t jinja_parse_unsupported(const jinja_parser *p, uint32_t line, const char *what,
                              jinja_value name);
bool jinja_parse_is(const jinja_parser *p, const char *operator_text);
bool jinja_parse_is_name(const jinja_parser *p, const char *name);
bool jinja_parse_skip(jinja_parser *p, const char *operator_text);
bool jinja_parse_skip_name(jinja_parser *p, const char *name);
err_t jinja_parse_expect(jinja_parser *p, const char *operator_text) MUST_CHECK;
err_t jinja_parse_expect_name(jinja_parser *p, jinja_value *out) MUST_CHECK;
err_t jinja_parse_node(jinja_parser *p, jinja_kind kind, jinja_node **out) MUST_CHECK;
err_t jinja_parse_add(jinja_parser *p, jinja_node *node, jinja_node *kid) MUST_CHECK; /* kid? */
/* A node with up to two children. */
err_t jinja_parse_over(jinja_parser *p, jinja_kind kind, jinja_node *a, jinja_node *b,
                       jinja_node **out) MUST_CHECK;
/* The number of a name, a new one if need be. */
err_t jinja_parse_intern(jinja_parser *p, jinja_value name, uint32_t *out) MUST_CHECK;

/* ---- expressions */

typedef struct jinja_tuple_rule {
    bool is_target;     /* names and literals only */
    bool may_be_member; /* a target like ns.x */
    bool no_choice;     /* no `a if b` */
    bool may_be_empty;
    const char *end_name; /* a name that ends it; NULL: none */
} jinja_tuple_rule;

err_t jinja_parse_expression(jinja_parser *p, jinja_node **out) MUST_CHECK;
err_t jinja_parse_tuple(jinja_parser *p, const jinja_tuple_rule *rule, jinja_node **out) MUST_CHECK;
err_t jinja_parse_primary(jinja_parser *p, bool may_be_member, jinja_node **out) MUST_CHECK;
err_t jinja_parse_postfix(jinja_parser *p, jinja_node **node) MUST_CHECK;
err_t jinja_parse_target(jinja_parser *p, const jinja_tuple_rule *rule,
                         jinja_node **out) MUST_CHECK;

/* ---- calls; *node is the callee or the input, and becomes the call */

err_t jinja_parse_call(jinja_parser *p, jinja_node **node) MUST_CHECK;
err_t jinja_parse_filters(jinja_parser *p, bool has_begun, jinja_node **node) MUST_CHECK;
err_t jinja_parse_test(jinja_parser *p, jinja_node **node) MUST_CHECK;
/* At the end: every name that is called is a macro's or a function's. */
err_t jinja_parse_check_calls(jinja_parser *p) MUST_CHECK;

#endif
