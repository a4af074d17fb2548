/* service/jinja/jinja_filters.h - what the files of filters, tests and methods share. */
#ifndef SERVICE_JINJA_JINJA_FILTERS_H
#define SERVICE_JINJA_JINJA_FILTERS_H

#include "service/jinja/jinja_run.h"

const jinja_def *jinja_find_def(const jinja_def *defs, size_t n, jinja_value name);
const jinja_def *jinja_find_list_filter(jinja_value name); /* of jinja_filters_list.c */
err_t jinja_filter_from_json(jinja_run *run, const jinja_value *args, jinja_value *out);
const jinja_def *jinja_find_text_method(jinja_value name); /* of jinja_methods_text.c */

#endif
