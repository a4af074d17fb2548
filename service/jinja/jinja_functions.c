/* The functions that transformers gives templates, and Jinja's own range. */
#include "service/jinja/jinja_filters.h"

#include <string.h>
#include <time.h>

enum { RANGE_MAX = 100000, FORMAT_BYTES_MAX = 256, TIME_BYTES_MAX = 4096 };

static err_t call_range(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    const bool has_stop = args[1].type != JINJA_ABSENT;
    for (int i = 0; i < 3; i++)
        if (args[i].type != JINJA_ABSENT && !jinja_is_whole(args[i]))
            return jinja_fail(run, "range takes integers");
    const int64_t start = has_stop ? jinja_whole(args[0]) : 0;
    const int64_t stop = jinja_whole(args[has_stop]);
    const int64_t step = args[2].type == JINJA_ABSENT ? 1 : jinja_whole(args[2]);
    if (step == 0) return jinja_fail(run, "range() arg 3 must not be zero");
    const bool is_empty = step > 0 ? start >= stop : start <= stop;
    const uint64_t span =
        step > 0 ? (uint64_t)stop - (uint64_t)start : (uint64_t)start - (uint64_t)stop;
    const uint64_t width = step > 0 ? (uint64_t)step : -(uint64_t)step;
    const uint64_t n = is_empty ? 0 : (span - 1) / width + 1;
    if (n > RANGE_MAX) return jinja_fail(run, "range() is limited to %d items", RANGE_MAX);
    TRY(jinja_open_list(run, JINJA_FORM_RANGE, n, out));
    for (uint64_t i = 0; i < n; i++)
        out->list->items[i] = jinja_int(start + (int64_t)i * step);
    return jinja_close_list(run, *out, n);
}

/* dict({...} or [[key, value], ...], name=value, ...). */
static err_t call_dict(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    const jinja_value from = args[0];
    const jinja_dict *named = args[1].dict;
    const jinja_value *items = NULL;
    size_t n = 0;
    if (from.type != JINJA_ABSENT) TRY(jinja_iterate(run, from, &items, &n));
    TRY(jinja_open_dict(run, n + named->n, out));
    for (size_t i = 0; i < n; i++) {
        if (from.type == JINJA_DICT) {
            TRY(jinja_dict_put(run, *out, items[i], from.dict->values[i]));
            continue;
        }
        const jinja_value *pair;
        size_t n_pair;
        TRY(jinja_iterate(run, items[i], &pair, &n_pair));
        if (n_pair != 2) return jinja_fail(run, "dict takes pairs");
        TRY(jinja_dict_put(run, *out, pair[0], pair[1]));
    }
    for (uint32_t i = 0; i < named->n; i++)
        TRY(jinja_dict_put(run, *out, named->keys[i], named->values[i]));
    return jinja_close_dict(run, *out);
}

static err_t call_namespace(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    jinja_value members;
    void *space;
    TRY(call_dict(run, args, &members));
    TRY(jinja_take(run, 1, sizeof(jinja_namespace), &space));
    *out = (jinja_value){.type = JINJA_NAMESPACE, .space = space};
    for (uint32_t i = 0; i < members.dict->n; i++) {
        if (members.dict->keys[i].type != JINJA_STRING)
            return jinja_fail(run, "a namespace takes names");
        TRY(jinja_space_put(run, out->space, members.dict->keys[i], members.dict->values[i]));
    }
    return ERR_OK;
}

static err_t call_raise_exception(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    jinja_value message;
    (void)out;
    TRY(jinja_str(run, args[0], &message));
    return jinja_raise(run, message);
}

/* Only %d and its like, %-d among them: a width could ask for any number of bytes. */
static bool is_time_format(jinja_value format)
{
    if (format.n_bytes >= FORMAT_BYTES_MAX) return false;
    for (size_t i = 0; i < format.n_bytes; i++) {
        if (format.text[i] == '\0') return false;
        if (format.text[i] != '%') continue;
        const size_t flag = i + 1 < format.n_bytes && strchr("-_^#", format.text[i + 1]) != NULL;
        i += 1 + flag;
        if (i >= format.n_bytes ||
            strchr("aAbBcCdDeFgGhHIjklmMnpPrRsStTuUVwWxXyYzZ%", format.text[i]) == NULL)
            return false;
    }
    return true;
}

static err_t call_strftime_now(jinja_run *run, const jinja_value *args, jinja_value *out)
{
    const jinja_value format = args[0];
    if (format.type != JINJA_STRING || !is_time_format(format))
        return jinja_fail(run, "strftime_now with this format is not supported");
    char terminated[FORMAT_BYTES_MAX], text[TIME_BYTES_MAX];
    memcpy(terminated, format.text, format.n_bytes);
    terminated[format.n_bytes] = '\0';
    const time_t now = (time_t)run->limits->now;
    struct tm local;
    if (localtime_r(&now, &local) == NULL) return jinja_fail(run, "there is no such time");
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral" /* checked above */
    const size_t n = strftime(text, sizeof text, terminated, &local);
#pragma GCC diagnostic pop
    return jinja_make_text(run, text, n, out);
}

static const jinja_def FUNCTIONS[] = {
    {"dict", "*", call_dict},
    {"namespace", "*", call_namespace},
    {"raise_exception", "message", call_raise_exception},
    {"range", "start stop? step?", call_range},
    {"strftime_now", "format", call_strftime_now},
};

const jinja_def *jinja_find_function(jinja_value name)
{
    return jinja_find_def(FUNCTIONS, sizeof FUNCTIONS / sizeof *FUNCTIONS, name);
}
