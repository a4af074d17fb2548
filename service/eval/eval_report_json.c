/* service/eval/eval_report_json.c - see eval_report.h: the part for tools.
 *
 * jansson makes no NaN; here none is tried either: what is not known is null (number_or_null). */
#include "service/eval/eval_report.h"

#include "base/check.h"
#include "base/utf8.h"

#include <jansson.h>
#include <math.h>
#include <string.h>

static json_t *number_or_null(double x, bool is_known)
{
    return is_known && isfinite(x) ? json_real(x) : json_null();
}

static json_t *count_or_null(uint64_t n, bool is_known)
{
    return is_known ? json_integer((json_int_t)n) : json_null();
}

/* A path of the user's need not be UTF-8, and JSON cannot hold it then. */
static json_t *text_or_null(const char *text)
{
    return utf8_valid(text, strlen(text)) ? json_string(text) : json_null();
}

/* Steals `value`; false without memory. */
static bool put(json_t *object, const char *key, json_t *value)
{
    return value != NULL && json_object_set_new(object, key, value) == 0;
}

static json_t *setting_new(const cfg_field *field, const void *member)
{
    switch (field->type) {
    case CFG_BOOL: return json_boolean(*(const bool *)member);
    case CFG_U32: return json_integer(*(const uint32_t *)member);
    case CFG_U64: return json_integer((json_int_t) * (const uint64_t *)member);
    case CFG_F64: return json_real(*(const double *)member);
    case CFG_CHOICE: return json_string(field->choices[*(const uint32_t *)member]);
    case CFG_STRING: {
        const char *text = *(char *const *)member;
        return text != NULL ? text_or_null(text) : json_null();
    }
    case CFG_STRINGS: break;
    }
    assert(false); /* the cache has no setting of another type */
    return NULL;
}

static json_t *settings_new(const kv_config *kv)
{
    json_t *object = json_object();
    bool is_ok = object != NULL;
    for (size_t i = 0; is_ok && i < kv_config_table.n_fields; i++) {
        const cfg_field *field = &kv_config_table.fields[i];
        is_ok = put(object, field->name, setting_new(field, (const char *)kv + field->offset));
    }
    if (is_ok) return object;
    json_decref(object);
    return NULL;
}

static bool put_share(json_t *contexts, uint32_t n_context_tokens, const eval_accuracy *a)
{
    char key[16];
    snprintf(key, sizeof key, "%u", n_context_tokens);
    const double share = (double)a->n_right / (a->n_done > 0 ? a->n_done : 1);
    return put(contexts, key, number_or_null(share, a->n_done > 0));
}

static json_t *accuracy_by_task_new(const eval_row *row, const eval_plan *plan)
{
    json_t *tasks = json_object();
    bool is_ok = tasks != NULL;
    for (uint32_t k = 0; is_ok && k < plan->n_tasks; k++) {
        json_t *contexts = json_object();
        is_ok = put(tasks, eval_task_name(plan->tasks[k]), contexts);
        for (uint32_t c = 0; is_ok && c < plan->n_contexts; c++)
            is_ok = put_share(contexts, plan->contexts[c], &row->accuracy[k][c]);
    }
    if (is_ok) return tasks;
    json_decref(tasks);
    return NULL;
}

static bool put_text(json_t *object, const eval_report *report, const eval_row *row)
{
    const eval_text_score *text = &row->text;
    const bool is_known = text->n_tokens > 0;
    const eval_difference *d = &row->difference;
    return put(object, "nll", number_or_null(text->nll, is_known)) &&
           put(object, "perplexity", number_or_null(text->perplexity, is_known)) &&
           put(object, "bits_per_byte", number_or_null(text->bits_per_byte, is_known)) &&
           put(object, "nll_difference", number_or_null(d->mean, row->has_difference)) &&
           put(object, "nll_difference_ci95", number_or_null(d->half_width, row->has_difference)) &&
           put(object, "n_tokens", json_integer((json_int_t)text->n_tokens)) &&
           put(object, "n_bytes", json_integer((json_int_t)text->n_bytes)) &&
           put(object, "n_windows", json_integer(text->n_windows)) &&
           put(object, "window", count_or_null(report->plan->window, report->text_path != NULL));
}

static bool put_tasks(json_t *object, const eval_plan *plan, const eval_row *row)
{
    uint64_t n_samples = 0, n_distances = 0, n_distance_tokens = 0;
    const bool is_asked = plan->n_tasks > 0;
    for (uint32_t k = 0; k < plan->n_tasks; k++) {
        for (uint32_t c = 0; c < plan->n_contexts; c++) {
            const eval_accuracy *a = &row->accuracy[k][c];
            n_samples += a->n_done;
            n_distance_tokens += a->n_distance_tokens;
            if (a->n_distance_tokens > 0)
                n_distances += a->n_done; /* else no fact to measure from */
        }
    }
    const double distance_mean =
        (double)n_distance_tokens / (double)(n_distances > 0 ? n_distances : 1);
    return put(object, "accuracy", number_or_null(eval_row_accuracy(row, plan), is_asked)) &&
           put(object, "accuracy_by_task",
               is_asked ? accuracy_by_task_new(row, plan) : json_null()) &&
           put(object, "n_samples", json_integer((json_int_t)n_samples)) &&
           put(object, "distance",
               count_or_null(plan->n_distance_tokens, plan->n_distance_tokens > 0)) &&
           put(object, "distance_mean", number_or_null(distance_mean, n_distances > 0)) &&
           put(object, "seed", count_or_null(plan->seed, is_asked));
}

static bool put_cost(json_t *object, const eval_row *row)
{
    const eval_cost c = eval_row_cost(row);
    return put(object, "resident_bytes_per_token",
               number_or_null(eval_cost_resident_bytes_per_token(&c), c.resident_tokens > 0)) &&
           put(object, "read_bytes_per_step",
               number_or_null(eval_cost_read_bytes_per_step(&c), c.n_decode_tokens > 0)) &&
           put(object, "pages_read_share",
               number_or_null(eval_cost_share_of_pages_read(&c), c.pages_open > 0)) &&
           put(object, "certificate_mean",
               number_or_null(eval_cost_certificate_mean(&c), c.n_certificates > 0)) &&
           put(object, "tokens_per_s",
               number_or_null(eval_cost_tokens_per_second(&c), c.decode_seconds > 0));
}

static bool put_against(json_t *object, const eval_against_result *a)
{
    const bool is_known = a->n_rows > 0;
    return put(object, "relative_error_max", number_or_null(a->relative_error_max, is_known)) &&
           put(object, "relative_error_mean", number_or_null(a->relative_error_mean, is_known)) &&
           put(object, "top1_agreement", number_or_null(a->top1_agreement, is_known));
}

static json_t *row_new(const eval_report *report, const eval_report_row *r)
{
    json_t *object = json_object();
    if (object != NULL && put(object, "model", text_or_null(report->model_dir)) &&
        put(object, "config", text_or_null(r->config)) &&
        put(object, "settings", settings_new(r->kv)) && put_text(object, report, &r->row) &&
        put_tasks(object, report->plan, &r->row) && put_cost(object, &r->row) &&
        put_against(object, &r->against) &&
        put(object, "is_cut_short", json_boolean(r->row.is_cut_short))) {
        return object;
    }
    json_decref(object);
    return NULL;
}

char *eval_report_json(const eval_report *report)
{
    json_t *rows = json_array();
    bool is_ok = rows != NULL;
    for (uint32_t i = 0; is_ok && i < report->n_rows; i++)
        is_ok = json_array_append_new(rows, row_new(report, &report->rows[i])) == 0;
    char *text = is_ok ? json_dumps(rows, JSON_INDENT(2)) : NULL;
    json_decref(rows);
    return text;
}
