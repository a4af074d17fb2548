/* Filters of lists and dicts. */
#include "base/check.h"
#include "service/jinja/jinja_filters.h"
#include "service/jinja/jinja_string.h"

#include <string.h>

/* ---- lists */

static err_t filter_length(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    int64_t n;
    TRY(jinja_length(run, args[0], &n));
    *out = jinja_int(n);
    return ERR_OK;
}

static err_t make_list(jinja_run *run, jinja_form form, const jinja_value *items, size_t n,
                       jinja_value *out)
{
    TRY(jinja_open_list(run, form, n, out));
    if (n > 0) memcpy(out->list->items, items, n * sizeof *items);
    return jinja_close_list(run, *out, n);
}

static err_t filter_list(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    const jinja_value *items;
    size_t n;
    TRY(jinja_iterate(run, args[0], &items, &n));
    return make_list(run, JINJA_FORM_LIST, items, n, out);
}

static err_t filter_first(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    const jinja_value *items;
    size_t n;
    TRY(jinja_iterate(run, args[0], &items, &n));
    *out = n > 0 ? items[0] : jinja_undefined(JINJA_ABSENT, "the first item of nothing", 25);
    if (n == 0 || !jinja_is_list(args[0], JINJA_FORM_ITERATOR)) return ERR_OK;
    args[0].list->items++; /* the others can still be read */
    args[0].list->n--;
    args[0].list->is_used_up = false;
    return ERR_OK;
}

static err_t filter_last(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    const jinja_value *items;
    size_t n;
    if (jinja_is_list(args[0], JINJA_FORM_ITERATOR))
        return jinja_fail(run, "'generator' object is not reversible");
    TRY(jinja_iterate(run, args[0], &items, &n));
    *out = n > 0 ? items[n - 1] : jinja_undefined(JINJA_ABSENT, "the last item of nothing", 24);
    return ERR_OK;
}

static err_t filter_join(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    const jinja_value *items;
    jinja_value separator = jinja_string("", 0), got;
    size_t n;
    TRY(jinja_iterate(run, args[0], &items, &n));
    if (args[1].type != JINJA_ABSENT) TRY(jinja_str(run, args[1], &separator));
    if (args[2].type != JINJA_ABSENT && args[2].type != JINJA_NONE) {
        TRY(jinja_open_list(run, JINJA_FORM_LIST, n, &got));
        for (size_t i = 0; i < n; i++)
            TRY(jinja_get_path(run, items[i], args[2], &got.list->items[i]));
        items = got.list->items;
    }
    return jinja_join(run, items, n, separator, out);
}

static err_t filter_reverse(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    const jinja_value *items;
    size_t n;
    TRY(jinja_iterate(run, args[0], &items, &n));
    const bool is_once = jinja_is_list(args[0], JINJA_FORM_ITERATOR);
    TRY(jinja_open_list(run, is_once ? JINJA_FORM_LIST : JINJA_FORM_ITERATOR, n, out));
    for (size_t i = 0; i < n; i++)
        out->list->items[i] = items[n - 1 - i];
    TRY(jinja_close_list(run, *out, n));
    if (args[0].type != JINJA_STRING) return ERR_OK;
    return jinja_join(run, out->list->items, n, jinja_string("", 0), out);
}

static err_t filter_batch(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    const jinja_value *items;
    size_t n;
    if (!jinja_is_whole(args[1]) || jinja_whole(args[1]) < 1)
        return jinja_fail(run, "batch takes a number of items");
    const size_t each = (size_t)jinja_whole(args[1]);
    const bool is_filled = args[2].type != JINJA_ABSENT && args[2].type != JINJA_NONE;
    TRY(jinja_iterate(run, args[0], &items, &n));
    const size_t n_batches = n / each + (n % each > 0);
    TRY(jinja_open_list(run, JINJA_FORM_ITERATOR, n_batches, out));
    for (size_t i = 0; i < n_batches; i++) {
        jinja_value *batch = &out->list->items[i];
        const size_t begin = i * each, n_own = min_size(each, n - begin);
        const size_t n_all = is_filled ? each : n_own;
        TRY(jinja_open_list(run, JINJA_FORM_LIST, n_all, batch));
        for (size_t k = 0; k < n_all; k++)
            batch->list->items[k] = k < n_own ? items[begin + k] : args[2];
        TRY(jinja_close_list(run, *batch, n_all));
    }
    return jinja_close_list(run, *out, n_batches);
}

/* So many lists as alike as can be, the longer ones first. */
static err_t filter_slice(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    const jinja_value *items;
    size_t n, at = 0;
    if (!jinja_is_whole(args[1]) || jinja_whole(args[1]) < 1)
        return jinja_fail(run, "slice takes a number of slices");
    const size_t n_slices = (size_t)jinja_whole(args[1]);
    const bool is_filled = args[2].type != JINJA_ABSENT && args[2].type != JINJA_NONE;
    TRY(jinja_iterate(run, args[0], &items, &n));
    TRY(jinja_open_list(run, JINJA_FORM_ITERATOR, n_slices, out));
    for (size_t i = 0; i < n_slices; i++) {
        jinja_value *slice = &out->list->items[i];
        const bool is_long = i < n % n_slices;
        const size_t n_own = n / n_slices + is_long, n_all = n_own + (is_filled && !is_long);
        TRY(jinja_open_list(run, JINJA_FORM_LIST, n_all, slice));
        for (size_t k = 0; k < n_all; k++)
            slice->list->items[k] = k < n_own ? items[at + k] : args[2];
        TRY(jinja_close_list(run, *slice, n_all));
        at += n_own;
    }
    return jinja_close_list(run, *out, n_slices);
}

/* ---- order */

/* What an item is compared by: itself or its attribute, texts in lower case unless case counts. */
typedef struct key_rule {
    jinja_value attribute; /* ABSENT: none */
    jinja_value otherwise; /* of an item that lacks it; ABSENT: it is undefined */
    bool case_counts;
} key_rule;

static err_t make_key(jinja_run *run, const key_rule *rule, jinja_value item, jinja_value *out)
{
    *out = item;
    if (rule->attribute.type != JINJA_ABSENT && rule->attribute.type != JINJA_NONE)
        TRY(jinja_get_path(run, item, rule->attribute, out));
    if (out->type == JINJA_UNDEFINED && rule->otherwise.type != JINJA_ABSENT)
        *out = rule->otherwise;
    if (out->type != JINJA_STRING || rule->case_counts) return ERR_OK;
    return jinja_case(run, *out, JINJA_LOWER, out);
}

/* "name,age" sorts by several attributes; what lacks one is not compared, as long as all lack it. */
static err_t make_sort_key(jinja_run *run, const key_rule *rule, jinja_value item, jinja_value *out)
{
    const jinja_value names = rule->attribute;
    if (names.type != JINJA_STRING) return make_key(run, rule, item, out);
    jinja_value list;
    size_t n = 0, n_names = 1;
    for (size_t i = 0; i < names.n_bytes; i++)
        n_names += names.text[i] == ',';
    TRY(jinja_open_list(run, JINJA_FORM_LIST, n_names, &list));
    for (size_t at = 0, end; n < n_names; at = end + 1) {
        for (end = at; end < names.n_bytes && names.text[end] != ',';)
            end++;
        const key_rule one = {.attribute = jinja_string(names.text + at, end - at),
                              .otherwise = rule->otherwise,
                              .case_counts = rule->case_counts};
        TRY(make_key(run, &one, item, &list.list->items[n++]));
    }
    *out = list;
    return jinja_close_list(run, list, n);
}

typedef struct keyed {
    jinja_value key, item;
} keyed;

/* Merges from[a, b) and from[b, c): the left one first where the keys are the same. */
static err_t merge(jinja_run *run, const keyed *from, const size_t abc[3], bool is_reversed,
                   keyed *to)
{
    size_t left = abc[0], right = abc[1], at = abc[0];
    while (left < abc[1] && right < abc[2]) {
        int order;
        TRY(jinja_order(run, from[right].key, from[left].key, &order));
        const bool takes_right = is_reversed ? order > 0 : order < 0;
        to[at++] = takes_right ? from[right++] : from[left++];
    }
    while (left < abc[1])
        to[at++] = from[left++];
    while (right < abc[2])
        to[at++] = from[right++];
    return ERR_OK;
}

static err_t sort_items(jinja_run *run, const jinja_value *items, size_t n, const key_rule *rule,
                        bool is_reversed, jinja_value *out)
{
    void *taken[2];
    for (int i = 0; i < 2; i++)
        TRY(jinja_take(run, n + 1, sizeof(keyed), &taken[i]));
    keyed *from = taken[0], *to = taken[1];
    for (size_t i = 0; i < n; i++) {
        from[i].item = items[i];
        TRY(make_sort_key(run, rule, items[i], &from[i].key));
    }
    for (size_t width = 1; width < n; width *= 2) {
        for (size_t a = 0; a < n; a += 2 * width) {
            const size_t abc[3] = {a, min_size(a + width, n), min_size(a + 2 * width, n)};
            TRY(merge(run, from, abc, is_reversed, to));
        }
        keyed *swapped = from;
        from = to;
        to = swapped;
    }
    TRY(jinja_open_list(run, JINJA_FORM_LIST, n, out));
    for (size_t i = 0; i < n; i++)
        out->list->items[i] = from[i].item;
    return jinja_close_list(run, *out, n);
}

static err_t filter_sort(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    const jinja_value *items;
    size_t n;
    const key_rule rule = {.attribute = args[3], .case_counts = jinja_truth(args[2])};
    TRY(jinja_iterate(run, args[0], &items, &n));
    return sort_items(run, items, n, &rule, jinja_truth(args[1]), out);
}

/* The first of `items` and all that have its key behind it. */
static err_t make_group(jinja_run *run, const jinja_value *items, size_t n, const key_rule *rule,
                        jinja_value *out)
{
    jinja_value list, grouper;
    const key_rule exact = {
        .attribute = rule->attribute, .otherwise = rule->otherwise, .case_counts = true};
    TRY(make_key(run, &exact, items[0], &grouper));
    TRY(jinja_open_list(run, JINJA_FORM_LIST, n, &list));
    memcpy(list.list->items, items, n * sizeof *items);
    TRY(jinja_close_list(run, list, n));
    TRY(jinja_make_pair(run, grouper, list, out));
    out->list->is_group = true;
    return ERR_OK;
}

static err_t filter_groupby(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    const jinja_value *items;
    jinja_value sorted, key, next;
    size_t n, n_groups = 0;
    const key_rule rule = {
        .attribute = args[1], .otherwise = args[2], .case_counts = jinja_truth(args[3])};
    TRY(jinja_iterate(run, args[0], &items, &n));
    TRY(sort_items(run, items, n, &rule, false, &sorted));
    TRY(jinja_open_list(run, JINJA_FORM_LIST, n, out));
    items = sorted.list->items;
    for (size_t begin = 0, end; begin < n; begin = end) {
        bool is_same = true;
        TRY(make_key(run, &rule, items[begin], &key));
        for (end = begin + 1; end < n; end++) {
            TRY(make_key(run, &rule, items[end], &next));
            TRY(jinja_same(run, key, next, &is_same));
            if (!is_same) break;
        }
        TRY(make_group(run, items + begin, end - begin, &rule, &out->list->items[n_groups++]));
    }
    return jinja_close_list(run, *out, n_groups);
}

static err_t list_entries(jinja_run *run, const jinja_dict *dict, jinja_form form, jinja_value *out)
{
    TRY(jinja_open_list(run, form, dict->n, out));
    for (uint32_t i = 0; i < dict->n; i++)
        TRY(jinja_make_pair(run, dict->keys[i], dict->values[i], &out->list->items[i]));
    return jinja_close_list(run, *out, dict->n);
}

static err_t filter_dictsort(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    if (args[0].type == JINJA_UNDEFINED) return jinja_fail_undefined(run, args[0]);
    if (args[0].type != JINJA_DICT) return jinja_fail(run, "dictsort takes a dict");
    const bool by_key = args[2].type == JINJA_ABSENT || jinja_is_text(args[2], "key");
    if (!by_key && !jinja_is_text(args[2], "value"))
        return jinja_fail(run, "You can only sort by either \"key\" or \"value\"");
    const key_rule rule = {.attribute = jinja_int(!by_key), .case_counts = jinja_truth(args[1])};
    TRY(list_entries(run, args[0].dict, JINJA_FORM_LIST, out));
    return sort_items(run, out->list->items, out->list->n, &rule, jinja_truth(args[3]), out);
}

static err_t filter_items(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    if (args[0].type == JINJA_UNDEFINED) return jinja_open_list(run, JINJA_FORM_ITERATOR, 0, out);
    if (args[0].type != JINJA_DICT)
        return jinja_fail(run, "Can only get item pairs from a mapping.");
    return list_entries(run, args[0].dict, JINJA_FORM_ITERATOR, out);
}

static err_t filter_unique(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    const jinja_value *items;
    jinja_value seen;
    size_t n, n_kept = 0;
    const key_rule rule = {.attribute = args[2], .case_counts = jinja_truth(args[1])};
    TRY(jinja_iterate(run, args[0], &items, &n));
    TRY(jinja_open_list(run, JINJA_FORM_ITERATOR, n, out));
    TRY(jinja_open_dict(run, n, &seen));
    for (size_t i = 0; i < n; i++) {
        jinja_value key;
        TRY(make_key(run, &rule, items[i], &key));
        TRY(jinja_dict_put(run, seen, key, jinja_none()));
        if (seen.dict->n > n_kept) out->list->items[n_kept++] = items[i];
    }
    return jinja_close_list(run, *out, n_kept);
}

static err_t extreme(jinja_run *run, const jinja_value *args, bool is_max, jinja_value *out)
{
    const jinja_value *items;
    size_t n;
    jinja_value best = {0}, key;
    const key_rule rule = {.attribute = args[2], .case_counts = jinja_truth(args[1])};
    TRY(jinja_iterate(run, args[0], &items, &n));
    *out = jinja_undefined(JINJA_ABSENT, "the extreme of nothing", 22);
    for (size_t i = 0; i < n; i++) {
        int order = 0;
        TRY(make_key(run, &rule, items[i], &key));
        if (i > 0) TRY(jinja_order(run, key, best, &order));
        if (i > 0 && (is_max ? order <= 0 : order >= 0)) continue;
        best = key;
        *out = items[i];
    }
    return ERR_OK;
}

static err_t filter_min(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    return extreme(run, args, false, out);
}

static err_t filter_max(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    return extreme(run, args, true, out);
}

static err_t filter_sum(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    const jinja_value *items;
    size_t n;
    TRY(jinja_iterate(run, args[0], &items, &n));
    *out = args[2].type == JINJA_ABSENT ? jinja_int(0) : args[2];
    if (out->type == JINJA_STRING) return jinja_fail(run, "sum() can't sum strings");
    for (size_t i = 0; i < n; i++) {
        jinja_value x = items[i];
        if (args[1].type != JINJA_ABSENT && args[1].type != JINJA_NONE)
            TRY(jinja_get_path(run, x, args[1], &x));
        TRY(jinja_math(run, JINJA_ADD, *out, x, out));
    }
    return ERR_OK;
}

static const jinja_def LIST_FILTERS[] = {
    {"batch", "linecount fill_with?", filter_batch},
    {"count", "", filter_length},
    {"dictsort", "case_sensitive? by? reverse?", filter_dictsort},
    {"first", "", filter_first},
    {"groupby", "attribute default? case_sensitive?", filter_groupby},
    {"items", "", filter_items},
    {"join", "d? attribute?", filter_join},
    {"last", "", filter_last},
    {"length", "", filter_length},
    {"list", "", filter_list},
    {"max", "case_sensitive? attribute?", filter_max},
    {"min", "case_sensitive? attribute?", filter_min},
    {"reverse", "", filter_reverse},
    {"slice", "slices fill_with?", filter_slice},
    {"sort", "reverse? case_sensitive? attribute?", filter_sort},
    {"sum", "attribute? start?", filter_sum},
    {"unique", "case_sensitive? attribute?", filter_unique},
};

const jinja_def *jinja_find_list_filter(jinja_value name)
{
    return jinja_find_def(LIST_FILTERS, sizeof LIST_FILTERS / sizeof *LIST_FILTERS, name);
}
