/* Errors, limits, and the making of values. */
#include "base/check.h"
#include "service/jinja/jinja_run.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* ---- errors and limits */

err_t jinja_fail(jinja_run *run, const char *format, ...)
{
    char message[ERR_MESSAGE_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    return err_set(run->info, ERR_BAD_REQUEST, "line %u: %s", run->line, message);
}

err_t jinja_raise(jinja_run *run, jinja_value message)
{
    return err_set(run->info, ERR_BAD_REQUEST, "%.*s",
                   (int)min_size(message.n_bytes, ERR_MESSAGE_BYTES), message.text);
}

err_t jinja_fail_undefined(jinja_run *run, jinja_value v)
{
    const int n = (int)min_size(v.n_bytes, 80);
    if (v.of == JINJA_ABSENT) return jinja_fail(run, "'%.*s' is undefined", n, v.text);
    if (v.of == JINJA_STRING || v.of == JINJA_LIST || v.of == JINJA_DICT) {
        const char *owner = v.of == JINJA_STRING ? "str" : v.of == JINJA_LIST ? "list" : "dict";
        return jinja_fail(run, "'%s object' has no attribute '%.*s'", owner, n, v.text);
    }
    return jinja_fail(run, "an object has no attribute '%.*s'", n, v.text);
}

err_t jinja_charge(jinja_run *run, size_t n)
{
    if (n < run->steps_left) {
        run->steps_left -= n;
        return ERR_OK;
    }
    run->steps_left = 0;
    return jinja_fail(run, "rendering needs more than %llu steps",
                      (unsigned long long)run->limits->steps);
}

err_t jinja_enter(jinja_run *run)
{
    enum { DEPTH_MAX = 1200 }; /* nodes; the stack that so many take is measured in the tests */
    if (++run->depth <= DEPTH_MAX) return jinja_charge(run, 1);
    return jinja_fail(run, "rendering nests too deeply");
}

void jinja_leave(jinja_run *run)
{
    run->depth--;
}

static err_t refused(jinja_run *run)
{
    if (!run->heap.is_over_limit && !run->texts.is_over_limit)
        return err_set(run->info, ERR_NO_MEMORY, "no memory to render");
    return jinja_fail(run, "rendering needs more than %zu bytes of memory",
                      run->limits->memory_bytes);
}

/* ---- memory */

err_t jinja_take(jinja_run *run, size_t n, size_t each_bytes, void **out)
{
    TRY(jinja_charge(run, n / 8 + 1));
    run->heap.limit_bytes = run->limits->memory_bytes - run->texts.used_bytes;
    *out = jinja_heap_take(&run->heap, n, each_bytes);
    return *out != NULL ? ERR_OK : refused(run);
}

err_t jinja_take_text(jinja_run *run, size_t n_bytes, char **out)
{
    TRY(jinja_charge(run, n_bytes / 64 + 1));
    if (n_bytes >= UINT32_MAX) return jinja_fail(run, "a text is too long");
    run->texts.limit_bytes = run->limits->memory_bytes - run->heap.used_bytes;
    *out = jinja_heap_take_text(&run->texts, n_bytes);
    return *out != NULL ? ERR_OK : refused(run);
}

/* ---- values */

err_t jinja_make_text(jinja_run *run, const char *text, size_t n_bytes, jinja_value *out)
{
    char *copy = NULL;
    TRY(jinja_take_text(run, n_bytes, &copy));
    if (n_bytes > 0) memcpy(copy, text, n_bytes);
    *out = jinja_string(copy, n_bytes);
    return ERR_OK;
}

err_t jinja_join_text(jinja_run *run, jinja_value a, jinja_value b, jinja_value *out)
{
    const size_t n_bytes = (size_t)a.n_bytes + b.n_bytes;
    char *text = NULL;
    if (a.n_bytes == 0 || b.n_bytes == 0) {
        *out = a.n_bytes == 0 ? b : a;
        out->is_escaped = false;
        return ERR_OK;
    }
    if (n_bytes < UINT32_MAX && jinja_heap_extend(&run->texts, a.text, a.n_bytes, b.n_bytes)) {
        TRY(jinja_charge(run, b.n_bytes / 64 + 1));
        text = (char *)(uintptr_t)a.text; /* ours, as it was the last piece of the heap */
    } else {
        TRY(jinja_take_text(run, n_bytes, &text));
        memcpy(text, a.text, a.n_bytes);
    }
    memcpy(text + a.n_bytes, b.text, b.n_bytes);
    *out = jinja_string(text, n_bytes);
    return ERR_OK;
}

err_t jinja_open_list(jinja_run *run, jinja_form form, size_t n, jinja_value *out)
{
    void *list, *items = NULL;
    if (n > UINT32_MAX) return jinja_fail(run, "a list is too long");
    TRY(jinja_take(run, 1, sizeof(jinja_list), &list));
    if (n > 0) TRY(jinja_take(run, n, sizeof(jinja_value), &items));
    *out = (jinja_value){.type = JINJA_LIST, .list = list};
    *out->list = (jinja_list){.items = items, .n = (uint32_t)n, .form = (uint8_t)form};
    return ERR_OK;
}

static unsigned depth_of(jinja_value v)
{
    return v.type == JINJA_LIST ? v.list->depth : v.type == JINJA_DICT ? v.dict->depth : 0u;
}

static err_t check_depth(jinja_run *run, unsigned depth)
{
    if (depth < JINJA_VALUE_DEPTH_MAX) return ERR_OK;
    return jinja_fail(run, "a value nests more than %d deep", JINJA_VALUE_DEPTH_MAX);
}

err_t jinja_close_list(jinja_run *run, jinja_value list, size_t n)
{
    unsigned depth = 0;
    assert(n <= list.list->n);
    list.list->n = (uint32_t)n;
    for (size_t i = 0; i < n; i++)
        if (depth_of(list.list->items[i]) > depth) depth = depth_of(list.list->items[i]);
    list.list->depth = (uint16_t)(depth + 1);
    return check_depth(run, depth);
}

err_t jinja_make_pair(jinja_run *run, jinja_value a, jinja_value b, jinja_value *out)
{
    TRY(jinja_open_list(run, JINJA_FORM_TUPLE, 2, out));
    out->list->items[0] = a;
    out->list->items[1] = b;
    return jinja_close_list(run, *out, 2);
}

err_t jinja_open_dict(jinja_run *run, size_t n, jinja_value *out)
{
    void *dict, *keys = NULL, *values = NULL;
    if (n > UINT32_MAX) return jinja_fail(run, "a dict is too large");
    TRY(jinja_take(run, 1, sizeof(jinja_dict), &dict));
    if (n > 0) TRY(jinja_take(run, n, sizeof(jinja_value), &keys));
    if (n > 0) TRY(jinja_take(run, n, sizeof(jinja_value), &values));
    *out = (jinja_value){.type = JINJA_DICT, .dict = dict};
    *out->dict = (jinja_dict){.keys = keys, .values = values};
    return ERR_OK;
}

static bool is_hashable(jinja_value v)
{
    if (v.type == JINJA_DICT) return false;
    if (v.type != JINJA_LIST) return true;
    if (v.list->form == JINJA_FORM_LIST) return false;
    for (uint32_t i = 0; v.list->form == JINJA_FORM_TUPLE && i < v.list->n; i++)
        if (!is_hashable(v.list->items[i])) return false;
    return true;
}

err_t jinja_dict_put(jinja_run *run, jinja_value dict, jinja_value key, jinja_value v)
{
    const jinja_value *found;
    if (!is_hashable(key)) return jinja_fail(run, "unhashable type: '%s'", jinja_type_name(key));
    TRY(jinja_find(run, dict.dict, key, &found));
    const size_t at = found != NULL ? (size_t)(found - dict.dict->values) : dict.dict->n++;
    if (found == NULL) dict.dict->keys[at] = key;
    dict.dict->values[at] = v;
    return ERR_OK;
}

err_t jinja_close_dict(jinja_run *run, jinja_value dict)
{
    unsigned depth = 0;
    for (uint32_t i = 0; i < dict.dict->n; i++) {
        if (depth_of(dict.dict->keys[i]) > depth) depth = depth_of(dict.dict->keys[i]);
        if (depth_of(dict.dict->values[i]) > depth) depth = depth_of(dict.dict->values[i]);
    }
    dict.dict->depth = (uint16_t)(depth + 1);
    return check_depth(run, depth);
}

err_t jinja_space_put(jinja_run *run, jinja_namespace *space, jinja_value name, jinja_value v)
{
    TRY(jinja_charge(run, space->n + 1));
    for (uint32_t i = 0; i < space->n; i++) {
        if (!jinja_equal(space->names[i], name)) continue;
        space->values[i] = v;
        return ERR_OK;
    }
    if (name.n_bytes > 0 && name.text[0] == '_')
        return jinja_fail(run, "a namespace cannot have attributes that begin with '_'");
    if (space->n == space->capacity) {
        const uint32_t capacity = space->capacity * 2 + 4;
        void *names, *values;
        TRY(jinja_take(run, capacity, sizeof(jinja_value), &names));
        TRY(jinja_take(run, capacity, sizeof(jinja_value), &values));
        if (space->n > 0) {
            memcpy(names, space->names, space->n * sizeof(jinja_value));
            memcpy(values, space->values, space->n * sizeof(jinja_value));
        }
        *space = (jinja_namespace){
            .names = names, .values = values, .n = space->n, .capacity = capacity};
    }
    space->names[space->n] = name;
    space->values[space->n++] = v;
    return ERR_OK;
}
