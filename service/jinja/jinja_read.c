/* Attributes, indices, slices and iteration: what Python's objects and Jinja's sandbox allow. */
#include "base/check.h"
#include "service/jinja/jinja_run.h"
#include "service/jinja/jinja_text.h"

#include <string.h>

static err_t spent(jinja_run *run)
{
    return run->steps_left > 0 ? ERR_OK : jinja_charge(run, 1);
}

err_t jinja_same(jinja_run *run, jinja_value a, jinja_value b, bool *out)
{
    *out = jinja_equal_within(a, b, &run->steps_left);
    return spent(run);
}

err_t jinja_find(jinja_run *run, const jinja_dict *dict, jinja_value key, const jinja_value **out)
{
    *out = NULL;
    for (uint32_t i = 0; i < dict->n && *out == NULL; i++)
        if (jinja_equal_within(dict->keys[i], key, &run->steps_left)) *out = &dict->values[i];
    return spent(run);
}

/* ---- iteration */

static err_t split_characters(jinja_run *run, jinja_value v, jinja_value *out)
{
    const size_t n = jinja_char_count(v.text, v.n_bytes);
    TRY(jinja_charge(run, v.n_bytes / 16 + 1));
    TRY(jinja_open_list(run, JINJA_FORM_LIST, n, out));
    size_t at = 0;
    for (size_t i = 0; i < n; i++) {
        unsigned n_bytes;
        (void)jinja_char_at(v.text + at, &n_bytes);
        out->list->items[i] = jinja_string(v.text + at, n_bytes);
        at += n_bytes;
    }
    return jinja_close_list(run, *out, n);
}

err_t jinja_iterate(jinja_run *run, jinja_value v, const jinja_value **items, size_t *n)
{
    *items = NULL;
    *n = 0;
    if (v.type == JINJA_STRING) TRY(split_characters(run, v, &v));
    if (v.type == JINJA_LIST) {
        const bool is_once = v.list->form == JINJA_FORM_ITERATOR;
        if (is_once && v.list->is_used_up) return ERR_OK;
        v.list->is_used_up = is_once;
        *items = v.list->items;
        *n = v.list->n;
        return ERR_OK;
    }
    if (v.type == JINJA_DICT) {
        *items = v.dict->keys;
        *n = v.dict->n;
        return ERR_OK;
    }
    if (v.type == JINJA_UNDEFINED) return ERR_OK;
    return jinja_fail(run, "'%s' object is not iterable", jinja_type_name(v));
}

err_t jinja_length(jinja_run *run, jinja_value v, int64_t *out)
{
    *out = 0;
    if (v.type == JINJA_UNDEFINED) return ERR_OK;
    if (v.type == JINJA_STRING) {
        TRY(jinja_charge(run, v.n_bytes / 64 + 1));
        *out = (int64_t)jinja_char_count(v.text, v.n_bytes);
        return ERR_OK;
    }
    if (v.type == JINJA_LIST && v.list->form != JINJA_FORM_ITERATOR) {
        *out = v.list->n;
        return ERR_OK;
    }
    if (v.type == JINJA_DICT) {
        *out = v.dict->n;
        return ERR_OK;
    }
    return jinja_fail(run, "object of type '%s' has no len()", jinja_type_name(v));
}

/* ---- attributes and items */

/* The names that Python's types have themselves; behind a point they come before a dict's keys. */
static bool has_method(jinja_value v, jinja_value name)
{
    static const char *const of_dict[] = {"items",  "keys",    "values",   "get",
                                          "copy",   "pop",     "clear",    "setdefault",
                                          "update", "popitem", "fromkeys", NULL};
    static const char *const of_list[] = {"append", "clear", "copy",   "count",   "extend", "index",
                                          "insert", "pop",   "remove", "reverse", "sort",   NULL};
    static const char *const not_of_text[] = {"items", "keys", "values", "get", "copy", NULL};
    if (v.type == JINJA_STRING) {
        for (size_t i = 0; not_of_text[i] != NULL; i++)
            if (jinja_is_text(name, not_of_text[i])) return false;
        return jinja_find_method(name) != NULL;
    }
    const char *const *names = v.type == JINJA_DICT   ? of_dict
                               : v.type == JINJA_LIST ? of_list
                                                      : NULL;
    for (; names != NULL && *names != NULL; names++)
        if (jinja_is_text(name, *names)) return true;
    return false;
}

static jinja_value undefined_in(jinja_value v, jinja_value name)
{
    if (name.type != JINJA_STRING) name = jinja_string("(index)", 7);
    return jinja_undefined(v.type, name.text, name.n_bytes);
}

static jinja_value loop_neighbour(const jinja_loop *loop, bool is_next)
{
    const uint32_t at = is_next ? loop->index0 + 1 : loop->index0 - 1;
    if (at < loop->n) return loop->items[at]; /* 0 - 1 is large */
    return is_next ? jinja_undefined(JINJA_ABSENT, "nextitem", 8)
                   : jinja_undefined(JINJA_ABSENT, "previtem", 8);
}

static jinja_value loop_attribute(jinja_value v, jinja_value name)
{
    const jinja_loop *loop = v.loop;
    if (jinja_is_text(name, "index")) return jinja_int((int64_t)loop->index0 + 1);
    if (jinja_is_text(name, "index0")) return jinja_int(loop->index0);
    if (jinja_is_text(name, "first")) return jinja_bool(loop->index0 == 0);
    if (jinja_is_text(name, "last")) return jinja_bool(loop->index0 + 1 == loop->n);
    if (jinja_is_text(name, "length")) return jinja_int(loop->n);
    if (jinja_is_text(name, "revindex")) return jinja_int((int64_t)loop->n - loop->index0);
    if (jinja_is_text(name, "revindex0")) return jinja_int((int64_t)loop->n - loop->index0 - 1);
    if (jinja_is_text(name, "depth")) return jinja_int((int64_t)loop->depth + 1);
    if (jinja_is_text(name, "depth0")) return jinja_int(loop->depth);
    if (jinja_is_text(name, "previtem")) return loop_neighbour(loop, false);
    if (jinja_is_text(name, "nextitem")) return loop_neighbour(loop, true);
    return undefined_in(v, name);
}

static jinja_value space_attribute(jinja_value v, jinja_value name)
{
    for (uint32_t i = 0; i < v.space->n; i++)
        if (jinja_equal(v.space->names[i], name)) return v.space->values[i];
    return undefined_in(v, name);
}

static jinja_value method_value(jinja_value name)
{
    return (jinja_value){.type = JINJA_METHOD, .n_bytes = name.n_bytes, .text = name.text};
}

/* grouper and list of what groupby gives. */
static bool get_of_group(jinja_value v, jinja_value name, jinja_value *out)
{
    if (v.type != JINJA_LIST || !v.list->is_group || name.type != JINJA_STRING) return false;
    const bool is_key = jinja_is_text(name, "grouper");
    if (!is_key && !jinja_is_text(name, "list")) return false;
    *out = v.list->items[is_key ? 0 : 1];
    return true;
}

err_t jinja_get_attribute(jinja_run *run, jinja_value v, jinja_value name, jinja_value *out)
{
    const jinja_value *found = NULL;
    if (v.type == JINJA_UNDEFINED) return jinja_fail_undefined(run, v);
    if (get_of_group(v, name, out)) return ERR_OK;
    if (v.type == JINJA_LOOP) {
        *out = loop_attribute(v, name);
    } else if (v.type == JINJA_NAMESPACE) {
        TRY(jinja_charge(run, v.space->n));
        *out = space_attribute(v, name);
    } else if (has_method(v, name)) {
        *out = method_value(name);
    } else {
        if (v.type == JINJA_DICT) TRY(jinja_find(run, v.dict, name, &found));
        *out = found != NULL ? *found : undefined_in(v, name);
    }
    return ERR_OK;
}

/* Python's index from the end; false if there is no such item. */
static bool resolve_index(int64_t index, size_t n, size_t *out)
{
    if (index < 0) index += (int64_t)n;
    *out = (size_t)index;
    return index >= 0 && (size_t)index < n;
}

static err_t get_character(jinja_run *run, jinja_value v, int64_t index, jinja_value *out)
{
    TRY(jinja_charge(run, v.n_bytes / 32 + 1));
    size_t at;
    if (resolve_index(index, jinja_char_count(v.text, v.n_bytes), &at)) {
        at = jinja_char_offset(v.text, v.n_bytes, at);
        unsigned n_bytes;
        (void)jinja_char_at(v.text + at, &n_bytes);
        *out = jinja_string(v.text + at, n_bytes);
        out->is_escaped = v.is_escaped;
    }
    return ERR_OK;
}

err_t jinja_get_item(jinja_run *run, jinja_value v, jinja_value index, jinja_value *out)
{
    if (v.type == JINJA_UNDEFINED) return jinja_fail_undefined(run, v);
    if (get_of_group(v, index, out)) return ERR_OK;
    const bool is_indexed = v.type == JINJA_LIST && v.list->form != JINJA_FORM_ITERATOR &&
                            v.list->form != JINJA_FORM_VIEW;
    size_t at;
    *out = undefined_in(v, index);
    if (v.type == JINJA_DICT) {
        const jinja_value *found;
        TRY(jinja_find(run, v.dict, index, &found));
        if (found != NULL) {
            *out = *found;
            return ERR_OK;
        }
    } else if (jinja_is_whole(index) && v.type == JINJA_STRING) {
        return get_character(run, v, jinja_whole(index), out);
    } else if (jinja_is_whole(index) && is_indexed) {
        if (resolve_index(jinja_whole(index), v.list->n, &at)) *out = v.list->items[at];
        return ERR_OK;
    }
    /* x["name"] is x.name where there is no such key */
    if (index.type == JINJA_STRING) return jinja_get_attribute(run, v, index, out);
    return ERR_OK;
}

err_t jinja_get_path(jinja_run *run, jinja_value v, jinja_value path, jinja_value *out)
{
    *out = v;
    if (path.type != JINJA_STRING) return jinja_get_item(run, v, path, out);
    for (size_t at = 0; at <= path.n_bytes;) {
        size_t end = at;
        int64_t number = 0;
        bool is_number = true;
        for (; end < path.n_bytes && path.text[end] != '.'; end++) {
            const char c = path.text[end];
            is_number = is_number && c >= '0' && c <= '9' && number < 1000000000;
            number = is_number ? number * 10 + (c - '0') : number;
        }
        const jinja_value part =
            is_number && end > at ? jinja_int(number) : jinja_string(path.text + at, end - at);
        TRY(jinja_get_item(run, *out, part, out));
        at = end + 1;
    }
    return ERR_OK;
}

/* ---- slices */

typedef struct slice {
    int64_t start, step;
    size_t n;
} slice;

static int64_t clamp_bound(int64_t bound, int64_t n, int64_t step)
{
    if (bound < 0) bound += n;
    if (bound < 0) return step < 0 ? -1 : 0;
    if (bound >= n) return step < 0 ? n - 1 : n;
    return bound;
}

/* PySlice_AdjustIndices. */
static err_t resolve_slice(jinja_run *run, const jinja_value bounds[3], int64_t n, slice *out)
{
    for (int i = 0; i < 3; i++) {
        const bool is_bound = bounds[i].type == JINJA_ABSENT || bounds[i].type == JINJA_NONE ||
                              jinja_is_whole(bounds[i]);
        if (!is_bound) return jinja_fail(run, "slice indices must be integers or None");
    }
    const int64_t step = jinja_is_whole(bounds[2]) ? jinja_whole(bounds[2]) : 1;
    if (step == 0) return jinja_fail(run, "slice step cannot be zero");
    const bool is_back = step < 0;
    const int64_t start = jinja_is_whole(bounds[0]) ? clamp_bound(jinja_whole(bounds[0]), n, step)
                          : is_back                 ? n - 1
                                                    : 0;
    const int64_t stop = jinja_is_whole(bounds[1]) ? clamp_bound(jinja_whole(bounds[1]), n, step)
                         : is_back                 ? -1
                                                   : n;
    const int64_t span = is_back ? start - stop : stop - start;
    const uint64_t width = is_back ? -(uint64_t)step : (uint64_t)step;
    out->start = start;
    out->step = step;
    out->n = span > 0 ? (size_t)(((uint64_t)span - 1) / width + 1) : 0;
    return ERR_OK;
}

static err_t slice_text(jinja_run *run, jinja_value v, const jinja_value bounds[3],
                        jinja_value *out)
{
    slice s;
    TRY(jinja_charge(run, v.n_bytes / 16 + 1));
    TRY(resolve_slice(run, bounds, (int64_t)jinja_char_count(v.text, v.n_bytes), &s));
    if (s.n == 0) {
        *out = jinja_string("", 0);
        return ERR_OK;
    }
    if (s.step == 1) {
        const size_t begin = jinja_char_offset(v.text, v.n_bytes, (size_t)s.start);
        const size_t n = jinja_char_offset(v.text + begin, v.n_bytes - begin, s.n);
        *out = jinja_string(v.text + begin, n);
        return ERR_OK;
    }
    jinja_value characters;
    TRY(split_characters(run, v, &characters));
    char *text = NULL;
    TRY(jinja_take_text(run, s.n * JINJA_CHAR_BYTES_MAX, &text));
    size_t n = 0;
    for (size_t i = 0; i < s.n; i++) {
        const jinja_value c = characters.list->items[s.start + (int64_t)i * s.step];
        memcpy(text + n, c.text, c.n_bytes);
        n += c.n_bytes;
    }
    *out = jinja_string(text, n);
    return ERR_OK;
}

err_t jinja_get_slice(jinja_run *run, jinja_value v, const jinja_value bounds[3], jinja_value *out)
{
    slice s;
    if (v.type == JINJA_UNDEFINED) return jinja_fail_undefined(run, v);
    if (v.type == JINJA_STRING) {
        TRY(slice_text(run, v, bounds, out));
        out->is_escaped = v.is_escaped;
        return ERR_OK;
    }
    const bool is_indexed = v.type == JINJA_LIST && v.list->form != JINJA_FORM_ITERATOR &&
                            v.list->form != JINJA_FORM_VIEW;
    if (!is_indexed) return jinja_fail(run, "%s cannot be sliced", jinja_type_name(v));
    TRY(resolve_slice(run, bounds, v.list->n, &s));
    TRY(jinja_open_list(run, (jinja_form)v.list->form, s.n, out));
    for (size_t i = 0; i < s.n; i++)
        out->list->items[i] = v.list->items[s.start + (int64_t)i * s.step];
    return jinja_close_list(run, *out, s.n);
}
