/* jinja_render: the members of the context that the template names become values (strings are borrowed
 * from it), and the tree is executed. */
#include "service/jinja/jinja_eval.h"
#include "service/jinja/jinja_values_json.h"

#include <stdlib.h>

enum { TEXT_BYTES_FIRST = 1024 };

static err_t render(jinja_run *run, const json_t *context)
{
    void *variables;
    TRY(jinja_take(run, run->template->n_names, sizeof(jinja_value), &variables));
    run->variables = variables;
    for (uint32_t i = 0; i < run->template->n_names; i++) {
        const json_t *member = json_object_get(context, run->template->names[i].text);
        if (member != NULL) TRY(jinja_borrow_json(run, member, &run->variables[i]));
    }
    TRY(jinja_exec(run, run->template->root));
    run->text[run->n_bytes] = '\0';
    return ERR_OK;
}

err_t jinja_render(const jinja *template, const json_t *context, const jinja_limits *limits,
                   char **text, size_t *n_bytes, err_info *info)
{
    jinja_run run = {.template = template,
                     .limits = limits,
                     .info = info,
                     .line = 1,
                     .steps_left = limits->steps,
                     .capacity = TEXT_BYTES_FIRST};
    *text = NULL;
    *n_bytes = 0;
    run.text = malloc(run.capacity);
    if (run.text == NULL) return err_set(info, ERR_NO_MEMORY, "no memory to render");
    jinja_heap_init(&run.heap, limits->memory_bytes);
    jinja_heap_init(&run.texts, limits->memory_bytes);
    const err_t err = render(&run, context);
    jinja_heap_deinit(&run.texts);
    jinja_heap_deinit(&run.heap);
    if (err != ERR_OK) {
        free(run.text);
        return err;
    }
    *text = run.text;
    *n_bytes = run.n_bytes;
    return ERR_OK;
}
