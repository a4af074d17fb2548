#include "service/jinja/jinja_value.h"

#include <string.h>

bool jinja_is_text(jinja_value v, const char *text)
{
    return v.type == JINJA_STRING && v.n_bytes == strlen(text) &&
           memcmp(v.text, text, v.n_bytes) == 0;
}

const char *jinja_type_name(jinja_value v)
{
    static const char *const forms[] = {"list", "tuple", "generator", "dict_view", "range"};
    switch ((jinja_type)v.type) {
    case JINJA_NONE: return "NoneType";
    case JINJA_BOOL: return "bool";
    case JINJA_INT: return "int";
    case JINJA_FLOAT: return "float";
    case JINJA_STRING: return "str";
    case JINJA_LIST: return forms[v.list->form];
    case JINJA_DICT: return "dict";
    case JINJA_NAMESPACE: return "Namespace";
    case JINJA_MACRO: return "Macro";
    case JINJA_FUNCTION: return "function";
    case JINJA_METHOD: return "method";
    case JINJA_LOOP: return "LoopContext";
    case JINJA_ABSENT:
    case JINJA_UNDEFINED: break;
    }
    return "Undefined";
}

bool jinja_truth(jinja_value v)
{
    switch ((jinja_type)v.type) {
    case JINJA_ABSENT:
    case JINJA_UNDEFINED:
    case JINJA_NONE: return false;
    case JINJA_BOOL: return v.truth;
    case JINJA_INT: return v.integer != 0;
    case JINJA_FLOAT: return v.real != 0.0;
    case JINJA_STRING: return v.n_bytes > 0;
    case JINJA_LIST: return v.list->n > 0 || v.list->form == JINJA_FORM_ITERATOR;
    case JINJA_DICT: return v.dict->n > 0;
    case JINJA_NAMESPACE:
    case JINJA_MACRO:
    case JINJA_FUNCTION:
    case JINJA_METHOD:
    case JINJA_LOOP: break;
    }
    return true;
}

bool jinja_is_whole(jinja_value v)
{
    return v.type == JINJA_BOOL || v.type == JINJA_INT;
}

int64_t jinja_whole(jinja_value v)
{
    return v.type == JINJA_BOOL ? v.truth : v.integer;
}

bool jinja_is_number(jinja_value v)
{
    return jinja_is_whole(v) || v.type == JINJA_FLOAT;
}

double jinja_real(jinja_value v)
{
    return v.type == JINJA_FLOAT ? v.real : (double)jinja_whole(v);
}

static bool spend(uint64_t *steps, uint64_t n)
{
    *steps = *steps > n ? *steps - n : 0;
    return *steps > 0;
}

static bool equal_lists(const jinja_list *a, const jinja_list *b, uint64_t *steps)
{
    if (a == b) return true;
    if (a->form != b->form || a->n != b->n) return false;
    if (a->form == JINJA_FORM_ITERATOR || a->form == JINJA_FORM_VIEW) return false;
    for (uint32_t i = 0; i < a->n; i++)
        if (!jinja_equal_within(a->items[i], b->items[i], steps)) return false;
    return true;
}

static bool equal_dicts(const jinja_dict *a, const jinja_dict *b, uint64_t *steps)
{
    if (a == b) return true;
    if (a->n != b->n) return false;
    for (uint32_t i = 0; i < a->n; i++) {
        uint32_t k = 0;
        while (k < b->n && !jinja_equal_within(a->keys[i], b->keys[k], steps))
            k++;
        if (k == b->n || !jinja_equal_within(a->values[i], b->values[k], steps)) return false;
    }
    return true;
}

bool jinja_equal_within(jinja_value a, jinja_value b, uint64_t *steps)
{
    if (!spend(steps, 1)) return false;
    if (jinja_is_whole(a) && jinja_is_whole(b)) return jinja_whole(a) == jinja_whole(b);
    if (jinja_is_number(a) && jinja_is_number(b)) return jinja_real(a) == jinja_real(b);
    if (a.type != b.type) return false;
    switch ((jinja_type)a.type) {
    case JINJA_STRING:
        if (a.n_bytes != b.n_bytes || !spend(steps, a.n_bytes / 64 + 1)) return false;
        return a.n_bytes == 0 || memcmp(a.text, b.text, a.n_bytes) == 0;
    case JINJA_LIST: return equal_lists(a.list, b.list, steps);
    case JINJA_DICT: return equal_dicts(a.dict, b.dict, steps);
    case JINJA_NAMESPACE: return a.space == b.space;
    case JINJA_MACRO: return a.macro == b.macro;
    case JINJA_FUNCTION: return a.function == b.function;
    case JINJA_METHOD: return a.text == b.text;
    case JINJA_LOOP: return a.loop == b.loop;
    default: return true; /* none is none, and undefined is undefined */
    }
}

bool jinja_equal(jinja_value a, jinja_value b)
{
    uint64_t steps = UINT64_MAX;
    return jinja_equal_within(a, b, &steps);
}
