/* model/draws.c - what comes of a step's logits: themselves, or tokens drawn from them where they are.
 *
 * A device with dev_ops.sample keeps the rows that sampler_lower can say: only results come down, some hundred bytes
 * instead of the vocabulary's. The rest of the batch comes as it does from other devices. */
#include "model/model_internal.h"

#include "base/check.h"

void model_logits(model *m, const uint32_t *rows, uint32_t n_rows, float *logits)
{
    float *const out = m->scratch.logits != NULL ? m->scratch.logits : logits;
    model_compute_logits(m, rows, n_rows, out);
    dev_download(m->d, logits, out, (size_t)n_rows * m->config.n_vocab * sizeof *logits);
}

/* Marks those that the device is to draw; returns their number, and that of their edits. */
static uint32_t lower_draws(const model *m, model_draw *draws, uint32_t n_rows, uint32_t *n_edits)
{
    const model_drawing *const host = &m->host.drawing;
    uint32_t n = 0;
    *n_edits = 0;
    for (uint32_t i = 0; i < n_rows; i++) {
        model_draw *const draw = &draws[i];
        sample_row *const row = &host->rows[n];
        if (draw->params == NULL) continue;
        draw->in.n_vocab = m->config.n_vocab;
        draw->is_drawn = sampler_lower(draw->params, draw->state, &draw->in, MODEL_ROW_EDITS_MAX,
                                       row, host->edits + *n_edits);
        if (!draw->is_drawn) continue;
        row->logits_row = i;
        row->first_edit = *n_edits;
        *n_edits += row->n_edits;
        n++;
    }
    return n;
}

static void run_draws(model *m, uint32_t n, uint32_t n_edits)
{
    const model_drawing *const host = &m->host.drawing, *const there = &m->scratch.drawing;
    dev_upload(m->d, there->rows, host->rows, n * sizeof *host->rows);
    if (n_edits > 0) dev_upload(m->d, there->edits, host->edits, n_edits * sizeof *host->edits);
    m->d->ops->sample(m->d, &(sample_args){.logits = m->scratch.logits,
                                           .n_vocab = m->config.n_vocab,
                                           .n_rows = n,
                                           .rows = there->rows,
                                           .edits = there->edits,
                                           .results = there->results});
    dev_download(m->d, host->results, there->results, n * sizeof *host->results);
}

void model_sample(model *m, const uint32_t *rows, uint32_t n_rows, model_draw *draws, float *logits,
                  sampler_result *results)
{
    const uint32_t n_vocab = m->config.n_vocab;
    uint32_t n_edits;
    for (uint32_t i = 0; i < n_rows; i++)
        draws[i].is_drawn = false;
    if (m->d->ops->sample == NULL) {
        model_logits(m, rows, n_rows, logits);
        return;
    }
    assert(m->scratch.logits != NULL);
    model_compute_logits(m, rows, n_rows, m->scratch.logits);
    const uint32_t n = lower_draws(m, draws, n_rows, &n_edits);
    if (n > 0) run_draws(m, n, n_edits);
    const sampler_result *next = m->host.drawing.results;
    for (uint32_t i = 0; i < n_rows; i++) {
        const size_t at = (size_t)i * n_vocab;
        if (draws[i].is_drawn)
            results[i] = *next++;
        else
            dev_download(m->d, logits + at, m->scratch.logits + at, n_vocab * sizeof *logits);
    }
}
