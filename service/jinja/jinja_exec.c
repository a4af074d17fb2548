/* Statements, and the rendering as a whole. */
#include "base/check.h"
#include "service/jinja/jinja_eval.h"

#include <stdlib.h>
#include <string.h>

/* ---- variables */

err_t jinja_open_scope(jinja_run *run, jinja_scope *outer)
{
    void *scope;
    TRY(jinja_take(run, 1, sizeof(jinja_scope), &scope));
    run->scope = scope;
    run->scope->outer = outer;
    return ERR_OK;
}

err_t jinja_set_variable(jinja_run *run, uint32_t name, jinja_value v)
{
    if (run->scope == NULL) {
        run->variables[name] = v;
        return ERR_OK;
    }
    jinja_binding *b = run->scope->first;
    while (b != NULL && b->name != name)
        b = b->next;
    if (b == NULL) {
        void *taken;
        TRY(jinja_take(run, 1, sizeof *b, &taken));
        b = taken;
        *b = (jinja_binding){.next = run->scope->first, .name = name};
        run->scope->first = b;
    }
    b->value = v;
    return ERR_OK;
}

static err_t get_space(jinja_run *run, const jinja_node *target, jinja_namespace **out)
{
    jinja_node name = {.kind = JINJA_N_NAME, .line = target->line, .name = target->name};
    jinja_value space;
    TRY(jinja_eval(run, &name, &space));
    if (space.type != JINJA_NAMESPACE)
        return jinja_fail(run, "cannot assign attribute on non-namespace object");
    *out = space.space;
    return ERR_OK;
}

static err_t assign(jinja_run *run, const jinja_node *target, jinja_value v)
{
    if (target->kind == JINJA_N_NAME) return jinja_set_variable(run, target->name, v);
    if (target->kind == JINJA_N_MEMBER) {
        jinja_namespace *space = NULL;
        TRY(get_space(run, target, &space));
        return jinja_space_put(run, space, target->value, v);
    }
    const jinja_value *items;
    size_t n;
    TRY(jinja_enter(run));
    TRY(jinja_iterate(run, v, &items, &n));
    if (n != target->n_kids)
        return jinja_fail(run, "%s values to unpack (expected %u)",
                          n < target->n_kids ? "not enough" : "too many", target->n_kids);
    for (uint32_t i = 0; i < target->n_kids; i++)
        TRY(assign(run, target->kids[i], items[i]));
    jinja_leave(run);
    return ERR_OK;
}

/* ---- output */

err_t jinja_print(jinja_run *run, const char *text, size_t n_bytes)
{
    TRY(jinja_charge(run, n_bytes / 64 + 1));
    if (n_bytes > run->limits->output_bytes - run->n_bytes)
        return jinja_fail(run, "rendering makes more than %zu bytes", run->limits->output_bytes);
    if (run->n_bytes + n_bytes >= run->capacity) {
        const size_t capacity = max_size(run->capacity * 2, run->n_bytes + n_bytes + 1024);
        char *grown = realloc(run->text, capacity);
        if (grown == NULL) return err_set(run->info, ERR_NO_MEMORY, "no memory to render");
        run->text = grown;
        run->capacity = capacity;
    }
    if (n_bytes > 0) memcpy(run->text + run->n_bytes, text, n_bytes);
    run->n_bytes += n_bytes;
    return ERR_OK;
}

err_t jinja_capture(jinja_run *run, const jinja_node *node, jinja_value *out)
{
    const size_t begin = run->n_bytes;
    TRY(jinja_exec(run, node));
    TRY(jinja_make_text(run, run->text + begin, run->n_bytes - begin, out));
    run->n_bytes = begin;
    return ERR_OK;
}

static err_t print_value(jinja_run *run, const jinja_node *node)
{
    jinja_value v;
    TRY(jinja_eval(run, node->kids[0], &v));
    TRY(jinja_str(run, v, &v));
    return jinja_print(run, v.text, v.n_bytes);
}

/* ---- statements */

static err_t exec_block(jinja_run *run, const jinja_node *node)
{
    for (uint32_t i = 0; i < node->n_kids && run->flow == JINJA_GOES_ON; i++)
        TRY(jinja_exec(run, node->kids[i]));
    return ERR_OK;
}

static err_t exec_if(jinja_run *run, const jinja_node *node)
{
    uint32_t i = 0;
    for (; i + 1 < node->n_kids; i += 2) {
        jinja_value condition;
        TRY(jinja_eval(run, node->kids[i], &condition));
        if (jinja_truth(condition)) return jinja_exec(run, node->kids[i + 1]);
    }
    return i < node->n_kids ? jinja_exec(run, node->kids[i]) : ERR_OK;
}

/* Keeps the items for which the condition holds: `loop` counts only those. */
static err_t filter_items(jinja_run *run, const jinja_node *node, const jinja_value **items,
                          size_t *n)
{
    jinja_scope *scope = run->scope;
    jinja_value kept, condition;
    size_t n_kept = 0;
    TRY(jinja_open_list(run, JINJA_FORM_LIST, *n, &kept));
    for (size_t i = 0; i < *n; i++) {
        TRY(jinja_open_scope(run, scope));
        TRY(assign(run, node->kids[0], (*items)[i]));
        TRY(jinja_eval(run, node->kids[2], &condition));
        if (jinja_truth(condition)) kept.list->items[n_kept++] = (*items)[i];
    }
    run->scope = scope;
    *items = kept.list->items;
    *n = n_kept;
    return ERR_OK;
}

static err_t run_loop(jinja_run *run, const jinja_node *node, jinja_value sequence, uint32_t depth)
{
    jinja_scope *scope = run->scope;
    const jinja_value *items;
    size_t n;
    void *loop;
    TRY(jinja_iterate(run, sequence, &items, &n));
    if (node->kids[2] != NULL) TRY(filter_items(run, node, &items, &n));
    TRY(jinja_take(run, 1, sizeof(jinja_loop), &loop));
    const jinja_value v = {.type = JINJA_LOOP, .loop = loop};
    *v.loop = (jinja_loop){
        .items = items, .n = (uint32_t)n, .depth = depth, .node = node, .scope = scope};
    for (; v.loop->index0 < n && run->flow != JINJA_BREAKS; v.loop->index0++) {
        run->flow = JINJA_GOES_ON;
        TRY(jinja_open_scope(run, scope));
        TRY(jinja_set_variable(run, JINJA_NAME_LOOP, v));
        TRY(assign(run, node->kids[0], items[v.loop->index0]));
        TRY(jinja_exec(run, node->kids[3]));
    }
    run->flow = JINJA_GOES_ON;
    run->scope = scope;
    if (n > 0 || node->kids[4] == NULL) return ERR_OK;
    TRY(jinja_open_scope(run, scope));
    TRY(jinja_exec(run, node->kids[4]));
    run->scope = scope;
    return ERR_OK;
}

static err_t exec_for(jinja_run *run, const jinja_node *node)
{
    jinja_value sequence;
    TRY(jinja_eval(run, node->kids[1], &sequence));
    return run_loop(run, node, sequence, 0);
}

err_t jinja_recurse(jinja_run *run, const jinja_loop *loop, jinja_value sequence, jinja_value *out)
{
    jinja_scope *scope = run->scope;
    const size_t begin = run->n_bytes;
    if (!loop->node->op)
        return jinja_fail(run, "The loop must have the 'recursive' marker to be called "
                               "recursively.");
    run->scope = loop->scope;
    TRY(run_loop(run, loop->node, sequence, loop->depth + 1));
    run->scope = scope;
    TRY(jinja_make_text(run, run->text + begin, run->n_bytes - begin, out));
    run->n_bytes = begin;
    return ERR_OK;
}

/* A block in a scope of its own: as text in *captured, or printed. */
static err_t exec_inner(jinja_run *run, const jinja_node *block, jinja_value *captured)
{
    jinja_scope *scope = run->scope;
    TRY(jinja_open_scope(run, scope));
    TRY(captured != NULL ? jinja_capture(run, block, captured) : jinja_exec(run, block));
    run->scope = scope;
    return ERR_OK;
}

static err_t exec_set(jinja_run *run, const jinja_node *node)
{
    jinja_value v;
    if (node->kind == JINJA_N_SET_BLOCK) {
        TRY(exec_inner(run, node->kids[1], &v));
        run->captured = v;
        TRY(jinja_eval(run, node->kids[2], &v));
    } else {
        TRY(jinja_eval(run, node->kids[1], &v));
    }
    return assign(run, node->kids[0], v);
}

static err_t exec_filter_block(jinja_run *run, const jinja_node *node)
{
    jinja_value v;
    TRY(exec_inner(run, node->kids[0], &v));
    run->captured = v;
    TRY(jinja_eval(run, node->kids[1], &v));
    TRY(jinja_str(run, v, &v));
    return jinja_print(run, v.text, v.n_bytes);
}

/* The values are those of the scope around it: `with a = 1, b = a` does not see its own a. */
static err_t exec_with(jinja_run *run, const jinja_node *node)
{
    jinja_scope *scope = run->scope;
    void *taken;
    TRY(jinja_take(run, node->n_kids, sizeof(jinja_value), &taken));
    jinja_value *values = taken;
    for (uint32_t i = 1; i < node->n_kids; i += 2)
        TRY(jinja_eval(run, node->kids[i + 1], &values[i]));
    TRY(jinja_open_scope(run, scope));
    for (uint32_t i = 1; i < node->n_kids; i += 2)
        TRY(assign(run, node->kids[i], values[i]));
    TRY(jinja_exec(run, node->kids[0]));
    run->scope = scope;
    return ERR_OK;
}

static err_t make_macro(jinja_run *run, const jinja_node *node, jinja_value *out)
{
    void *taken;
    TRY(jinja_take(run, 1, sizeof(jinja_macro), &taken));
    jinja_macro *macro = taken;
    *macro = (jinja_macro){.node = node, .scope = run->scope};
    *out = (jinja_value){.type = JINJA_MACRO, .macro = macro};
    return ERR_OK;
}

static err_t exec_call_block(jinja_run *run, const jinja_node *node)
{
    jinja_value caller, v;
    TRY(make_macro(run, node->kids[1], &caller));
    TRY(jinja_call(run, node->kids[0], caller.macro, &v));
    TRY(jinja_str(run, v, &v));
    return jinja_print(run, v.text, v.n_bytes);
}

static err_t exec_macro(jinja_run *run, const jinja_node *node)
{
    jinja_value macro;
    TRY(make_macro(run, node, &macro));
    return jinja_set_variable(run, node->name, macro);
}

static err_t exec_kind(jinja_run *run, const jinja_node *node)
{
    switch ((jinja_kind)node->kind) {
    case JINJA_N_BLOCK: return exec_block(run, node);
    case JINJA_N_TEXT: return jinja_print(run, node->value.text, node->value.n_bytes);
    case JINJA_N_PRINT: return print_value(run, node);
    case JINJA_N_IF: return exec_if(run, node);
    case JINJA_N_FOR: return exec_for(run, node);
    case JINJA_N_SET:
    case JINJA_N_SET_BLOCK: return exec_set(run, node);
    case JINJA_N_FILTER_BLOCK: return exec_filter_block(run, node);
    case JINJA_N_WITH: return exec_with(run, node);
    case JINJA_N_SCOPE: return exec_inner(run, node->kids[0], NULL);
    case JINJA_N_MACRO: return exec_macro(run, node);
    case JINJA_N_CALL_BLOCK: return exec_call_block(run, node);
    case JINJA_N_BREAK: run->flow = JINJA_BREAKS; return ERR_OK;
    case JINJA_N_CONTINUE: run->flow = JINJA_CONTINUES; return ERR_OK;
    default: break;
    }
    assert(false); /* an expression */
    return ERR_UNSUPPORTED;
}

err_t jinja_exec(jinja_run *run, const jinja_node *node)
{
    TRY(jinja_enter(run));
    run->line = node->line;
    TRY(exec_kind(run, node));
    jinja_leave(run);
    return ERR_OK;
}
