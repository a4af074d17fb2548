/* model/normalizer.c - see normalizer.h. */
#include "model/normalizer.h"

#include <stdlib.h>

void normalizer_deinit(normalizer *n)
{
    for (size_t i = 0; i < n->n_steps; i++) {
        regex_close(n->step[i].pattern);
        free(n->step[i].content.bytes);
    }
    *n = (normalizer){0};
}

static text_view strip(const normalizer_step *step, text_view text)
{
    size_t n;
    while (step->strip_left && text.n_bytes > 0 && unicode_is_space(unicode_first(text, &n))) {
        text.bytes += n;
        text.n_bytes -= n;
    }
    while (step->strip_right && text.n_bytes > 0 && unicode_is_space(unicode_last(text, &n)))
        text.n_bytes -= n;
    return text;
}

static err_t replace(const normalizer_step *step, regex_scratch *scratch, text_view text,
                     text_buffer *out)
{
    regex_walk walk;
    regex_match match;
    size_t handed = 0;
    err_t err;
    regex_walk_init(&walk, step->pattern, scratch, text);
    while ((err = regex_walk_next(&walk, &match)) == ERR_OK) {
        TRY(text_buffer_append(out, text.bytes + handed, match.begin - handed));
        TRY(text_buffer_append(out, step->content.bytes, step->content.n_bytes));
        handed = match.end;
    }
    if (err != ERR_NOT_FOUND) return err;
    return text_buffer_append(out, text.bytes + handed, text.n_bytes - handed);
}

static err_t prepend(const normalizer_step *step, text_view text, text_buffer *out)
{
    if (text.n_bytes == 0) return ERR_OK;
    TRY(text_buffer_append(out, step->content.bytes, step->content.n_bytes));
    return text_buffer_append(out, text.bytes, text.n_bytes);
}

static err_t apply_step(const normalizer_step *step, regex_scratch *scratch, text_view text,
                        text_buffer *out)
{
    switch (step->kind) {
    case NORMALIZE_FORM: return unicode_normalize(step->form, text, out);
    case NORMALIZE_LOWER: return unicode_lower(text, out);
    case NORMALIZE_PREPEND: return prepend(step, text, out);
    default: return replace(step, scratch, text, out);
    }
}

err_t normalizer_apply(const normalizer *n, normalizer_scratch *scratch, text_view text,
                       text_view *out)
{
    size_t which = 0;
    for (size_t i = 0; i < n->n_steps; i++) {
        const normalizer_step *const step = &n->step[i];
        if (step->kind == NORMALIZE_STRIP) {
            text = strip(step, text);
            continue;
        }
        text_buffer *const buffer = &scratch->buffer[which];
        which = 1 - which; /* the text may lie in the other */
        buffer->n_bytes = 0;
        TRY(apply_step(step, scratch->regex, text, buffer));
        text = (text_view){buffer->n_bytes > 0 ? buffer->bytes : "", buffer->n_bytes};
    }
    *out = text;
    return ERR_OK;
}

bool normalizer_is_lossless(const normalizer *n)
{
    for (size_t i = 0; i < n->n_steps; i++)
        if (n->step[i].kind != NORMALIZE_PREPEND) return false;
    return true;
}
