/* service/jinja/jinja_eval.h - how expressions (jinja_eval.c), calls (jinja_call.c) and statements
 * (jinja_exec.c) call each other. */
#ifndef SERVICE_JINJA_JINJA_EVAL_H
#define SERVICE_JINJA_JINJA_EVAL_H

#include "service/jinja/jinja_run.h"

err_t jinja_eval(jinja_run *run, const jinja_node *node, jinja_value *out) MUST_CHECK;
err_t jinja_eval_call(jinja_run *run, const jinja_node *node, jinja_value *out) MUST_CHECK;
err_t jinja_eval_def(jinja_run *run, const jinja_node *node, jinja_value *out) MUST_CHECK;
err_t jinja_eval_each(jinja_run *run, const jinja_node *node, jinja_value *out) MUST_CHECK;
/* A call whose `caller` is that macro; NULL: it has none. */
err_t jinja_call(jinja_run *run, const jinja_node *call, const jinja_macro *caller,
                 jinja_value *out) MUST_CHECK;
/* loop(sequence): what its statement makes of that. */
err_t jinja_recurse(jinja_run *run, const jinja_loop *loop, jinja_value sequence,
                    jinja_value *out) MUST_CHECK;
err_t jinja_exec(jinja_run *run, const jinja_node *node) MUST_CHECK;
err_t jinja_open_scope(jinja_run *run, jinja_scope *outer) MUST_CHECK;
err_t jinja_set_variable(jinja_run *run, uint32_t name, jinja_value v) MUST_CHECK;
/* Executes and takes back what was rendered, as a string. */
err_t jinja_capture(jinja_run *run, const jinja_node *node, jinja_value *out) MUST_CHECK;
err_t jinja_print(jinja_run *run, const char *text, size_t n_bytes) MUST_CHECK;

#endif
