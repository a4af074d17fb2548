/* model/regex_pcre2.c - see regex.h. The only include of PCRE2.
 *
 * Compiled for its just-in-time engine where that exists; where it does not (no executable memory), the
 * interpreter does the same more slowly. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "model/regex.h"

#include "base/check.h"
#include "base/utf8.h"

#include <pcre2.h>
#include <stdlib.h>

enum {
    JIT_STACK_FIRST = 32 << 10,
    JIT_STACK_MAX = 1 << 20,
    HEAP_LIMIT_KIB = 64 << 10,
    MATCH_LIMIT_LEAST = 10 << 20,
    MATCH_LIMIT_PER_BYTE = 32
};

struct regex {
    pcre2_general_context *memory;
    pcre2_code *code;
    bool out_of_memory; /* an allocation has failed while it was opened */
};

struct regex_scratch {
    pcre2_general_context *memory;
    pcre2_match_context *context;
    pcre2_match_data *data;
    pcre2_jit_stack *stack;
};

/* ---- memory -------------------------------------------------------------------------------------- */

/* PCRE2 says "no memory" also where a system has none for code, so that is noted here. */
static void *take(size_t n_bytes, void *out_of_memory)
{
    void *const block = malloc(n_bytes);
    if (block == NULL && out_of_memory != NULL) *(bool *)out_of_memory = true;
    return block;
}

static void give(void *block, void *out_of_memory)
{
    (void)out_of_memory;
    free(block);
}

/* ---- life cycle ---------------------------------------------------------------------------------- */

static err_t compile(regex *r, const regex_source *source, text_view pattern, err_info *info)
{
    r->memory = pcre2_general_context_create(take, give, &r->out_of_memory);
    if (r->memory == NULL) return err_set(info, ERR_NO_MEMORY, "%s: out of memory", source->what);
    pcre2_compile_context *const context = pcre2_compile_context_create(r->memory);
    if (context == NULL) return err_set(info, ERR_NO_MEMORY, "%s: out of memory", source->what);
    (void)pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    int problem;
    PCRE2_SIZE at;
    r->code = pcre2_compile((PCRE2_SPTR)pattern.bytes, pattern.n_bytes,
                            PCRE2_UTF | PCRE2_UCP | PCRE2_NO_UTF_CHECK | PCRE2_NEVER_BACKSLASH_C,
                            &problem, &at, context);
    pcre2_compile_context_free(context);
    if (r->code != NULL) (void)pcre2_jit_compile(r->code, PCRE2_JIT_COMPLETE);
    if (r->out_of_memory) return err_set(info, ERR_NO_MEMORY, "%s: out of memory", source->what);
    if (r->code != NULL) return ERR_OK;
    PCRE2_UCHAR why[120] = "";
    (void)pcre2_get_error_message(problem, why, sizeof why);
    return err_set(info, ERR_BAD_MODEL, "%s: the pattern \"%.60s\" is malformed: %s", source->what,
                   source->text.bytes, (const char *)why);
}

static err_t open_pattern(const regex_source *source, text_view pattern, regex **out,
                          err_info *info)
{
    regex *const r = calloc(1, sizeof *r);
    if (r == NULL) return err_set(info, ERR_NO_MEMORY, "%s: out of memory", source->what);
    const err_t err = compile(r, source, pattern, info);
    if (err != ERR_OK) {
        regex_close(r);
        return err;
    }
    *out = r;
    return ERR_OK;
}

err_t regex_open(const regex_source *source, regex **out, err_info *info)
{
    text_buffer pattern = {0};
    *out = NULL;
    err_t err = regex_translate(source, &pattern, info);
    if (err == ERR_OK)
        err = open_pattern(source, (text_view){pattern.bytes, pattern.n_bytes}, out, info);
    free(pattern.bytes);
    return err;
}

err_t regex_open_literal(const regex_source *source, regex **out, err_info *info)
{
    text_buffer pattern = {0};
    *out = NULL;
    err_t err = regex_escape(source->text, &pattern);
    if (err != ERR_OK) (void)err_set(info, err, "%s: out of memory", source->what);
    if (err == ERR_OK)
        err = open_pattern(source, (text_view){pattern.bytes, pattern.n_bytes}, out, info);
    free(pattern.bytes);
    return err;
}

void regex_close(regex *r)
{
    if (r == NULL) return;
    pcre2_code_free(r->code);
    pcre2_general_context_free(r->memory);
    free(r);
}

err_t regex_scratch_open(regex_scratch **out)
{
    *out = NULL;
    regex_scratch *const s = calloc(1, sizeof *s);
    if (s == NULL) return ERR_NO_MEMORY;
    s->memory = pcre2_general_context_create(take, give, NULL);
    if (s->memory != NULL) {
        s->context = pcre2_match_context_create(s->memory);
        s->data = pcre2_match_data_create(1, s->memory);
        s->stack = pcre2_jit_stack_create(JIT_STACK_FIRST, JIT_STACK_MAX, s->memory);
    }
    /* Without a just-in-time engine there is no stack for it, which is no failure. */
    uint32_t has_jit = 0;
    (void)pcre2_config(PCRE2_CONFIG_JIT, &has_jit);
    if (s->context == NULL || s->data == NULL || (s->stack == NULL && has_jit != 0)) {
        regex_scratch_close(s);
        return ERR_NO_MEMORY;
    }
    (void)pcre2_set_heap_limit(s->context, HEAP_LIMIT_KIB);
    pcre2_jit_stack_assign(s->context, NULL, s->stack);
    *out = s;
    return ERR_OK;
}

void regex_scratch_close(regex_scratch *s)
{
    if (s == NULL) return;
    pcre2_jit_stack_free(s->stack);
    pcre2_match_data_free(s->data);
    pcre2_match_context_free(s->context);
    pcre2_general_context_free(s->memory);
    free(s);
}

/* ---- matches ------------------------------------------------------------------------------------- */

void regex_walk_init(regex_walk *w, const regex *r, regex_scratch *s, text_view text)
{
    *w = (regex_walk){.regex = r, .scratch = s, .text = text, .last_end = SIZE_MAX};
}

static err_t search(regex_walk *w)
{
    const PCRE2_SPTR text = (PCRE2_SPTR)w->text.bytes;
    const size_t n_bytes = w->text.n_bytes;
    regex_scratch *const s = w->scratch;
    const size_t n_counted = min_size(n_bytes, UINT32_MAX / (2 * MATCH_LIMIT_PER_BYTE));
    (void)pcre2_set_match_limit(s->context,
                                (uint32_t)(MATCH_LIMIT_LEAST + n_counted * MATCH_LIMIT_PER_BYTE));
    int n =
        pcre2_match(w->regex->code, text, n_bytes, w->at, PCRE2_NO_UTF_CHECK, s->data, s->context);
    if (n == PCRE2_ERROR_JIT_STACKLIMIT) /* the interpreter has a heap */
        n = pcre2_match(w->regex->code, text, n_bytes, w->at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                        s->data, s->context);
    if (n == PCRE2_ERROR_NOMATCH) return ERR_NOT_FOUND;
    if (n == PCRE2_ERROR_NOMEMORY) return ERR_NO_MEMORY;
    return n < 0 ? ERR_BAD_REQUEST : ERR_OK; /* over a limit */
}

err_t regex_walk_next(regex_walk *w, regex_match *out)
{
    while (w->at <= w->text.n_bytes) {
        TRY(search(w));
        const PCRE2_SIZE *const found = pcre2_get_ovector_pointer(w->scratch->data);
        *out = (regex_match){found[0], found[1]};
        assert(out->begin <= out->end);
        assert(out->end <= w->text.n_bytes);
        if (out->begin != out->end || out->end != w->last_end) {
            w->at = out->end;
            w->last_end = out->end;
            return ERR_OK;
        }
        if (w->at == w->text.n_bytes) break;
        w->at += utf8_next(w->text.bytes + w->at, w->text.n_bytes - w->at).bytes;
    }
    return ERR_NOT_FOUND;
}
