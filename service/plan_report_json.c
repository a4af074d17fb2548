/* service/plan_report_json.c - see plan_report.h: the part for tools. A path that is no UTF-8 is null. */
#include "service/plan_report.h"

#include "base/utf8.h"

#include <jansson.h>
#include <math.h>
#include <string.h>

static bool put(json_t *object, const char *key, json_t *value)
{
    return value != NULL && json_object_set_new(object, key, value) == 0;
}

static json_t *text_new(const char *text)
{
    return utf8_valid(text, strlen(text)) ? json_string(text) : json_null();
}

static json_t *number_new(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

static bool put_line(json_t *root, const plan_line *line)
{
    json_t *group = json_object_get(root, line->group); /* borrowed */
    if (group == NULL) {
        if (!put(root, line->group, json_object())) return false;
        group = json_object_get(root, line->group);
    }
    const bool is_whole = line->unit == PLAN_COUNT || line->unit == PLAN_BYTES;
    return put(group, line->key,
               is_whole ? json_integer((json_int_t)line->n) : number_new(line->x));
}

static json_t *contrast_new(const plan_contrast *c)
{
    json_t *object = json_object();
    if (put(object, "key", json_string(c->key)) &&
        put(object, "paper_formula", json_string(c->paper_formula)) &&
        put(object, "paper", number_new(c->paper)) &&
        put(object, "formula", json_string(c->formula)) &&
        put(object, "corrected", number_new(c->corrected)) &&
        put(object, "unit", json_string(c->unit)) &&
        put(object, "difference", json_string(c->difference)))
        return object;
    json_decref(object);
    return NULL;
}

static bool fill(json_t *root, const plan_report *report)
{
    bool is_whole = put(root, "model", text_new(report->model_dir)) &&
                    put(root, "family", json_string(report->family));
    for (size_t i = 0; i < report->n_lines && is_whole; i++)
        is_whole = put_line(root, &report->lines[i]);
    if (!is_whole || !put(root, "paper", json_array()) || !put(root, "notes", json_array()))
        return false;
    json_t *paper = json_object_get(root, "paper"), *notes = json_object_get(root, "notes");
    for (size_t i = 0; i < report->n_contrasts && is_whole; i++)
        is_whole = json_array_append_new(paper, contrast_new(&report->contrasts[i])) == 0;
    for (size_t i = 0; i < report->n_notes && is_whole; i++)
        is_whole = json_array_append_new(notes, json_string(report->notes[i])) == 0;
    return is_whole;
}

char *plan_report_json(const plan_report *report)
{
    json_t *root = json_object();
    char *text = root != NULL && fill(root, report)
                     ? json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(12))
                     : NULL;
    json_decref(root);
    return text;
}
