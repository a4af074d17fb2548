/* service/jinja/jinja_values_json.h - JSON as values of a rendering. */
#ifndef SERVICE_JINJA_JINJA_VALUES_JSON_H
#define SERVICE_JINJA_JINJA_VALUES_JSON_H

#include "service/jinja/jinja_run.h"

/* Its strings stay the document's. */
err_t jinja_borrow_json(jinja_run *run, const json_t *json, jinja_value *out) MUST_CHECK;

#endif
