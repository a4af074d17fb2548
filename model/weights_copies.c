/* model/weights_copies.c - see weights_copies.h. */
#include "model/weights_copies.h"

#include "base/check.h"
#include "base/log.h"
#include "model/family.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

enum { ALIGN_BYTES = 64, PAGE_BYTES = 4096 };

static bool is_aligned(const matrix *m)
{
    return dtype_has_scales(m->type) || (uintptr_t)m->data % dtype_bytes(m->type) == 0;
}

static bool is_copied(const model_weight *weight)
{
    const bool is_turned = weight->part.is_turned && !dtype_has_scales(weight->into->type);
    return weight->arrange != NULL || is_turned || !is_aligned(weight->into);
}

bool weight_is_expanded(const model_weight *weight)
{
    return weight->arrange != NULL && dtype_has_scales(weight->into->type);
}

size_t weight_copy_bytes(const model_weight *weight)
{
    if (!is_copied(weight)) return 0;
    return weight_is_expanded(weight) ? (size_t)weight->rows * weight->cols * sizeof(float)
                                      : matrix_bytes(weight->into);
}

/* ---- one copy ------------------------------------------------------------------------------------ */

enum { TURN_TILE = 32 }; /* a tile's lines of both sides stay in the nearest cache */

/* Every row_step-th column of an item becomes a row. */
static void copy_turned(const model_weight *weight, const matrix *m, uint8_t *to)
{
    const uint8_t *const from = m->data;
    const size_t bytes = dtype_bytes(m->type), stride = weight->part.n_rows * bytes,
                 step = (weight->part.row_step > 1 ? weight->part.row_step : 1) * bytes,
                 n_rows = weight->is_vector ? weight->cols : weight->rows,
                 n_cols = weight->is_vector ? 1 : weight->cols;
    for (size_t r0 = 0; r0 < n_rows; r0 += TURN_TILE) {
        const size_t r1 = r0 + TURN_TILE < n_rows ? r0 + TURN_TILE : n_rows;
        for (size_t c0 = 0; c0 < n_cols; c0 += TURN_TILE) {
            const size_t c1 = c0 + TURN_TILE < n_cols ? c0 + TURN_TILE : n_cols;
            for (size_t r = r0; r < r1; r++) {
                for (size_t c = c0; c < c1; c++)
                    memcpy(to + (r * n_cols + c) * bytes, from + c * stride + r * step, bytes);
            }
        }
    }
}

static void copy_values(const model_config *config, const model_weight *weight, const matrix *view,
                        void *to)
{
    if (weight->arrange != NULL)
        weight->arrange(config, view, to);
    else if (weight->part.is_turned)
        copy_turned(weight, view, to);
    else
        memcpy(to, view->data, matrix_bytes(view));
}

/* ---- all of them --------------------------------------------------------------------------------- */

typedef struct copier {
    const scaled_source *from;
    model_weights *w;
    uint8_t *at;
} copier;

static bool is_read(const copier *to, const model_weight *weight)
{
    const size_t expert = model_weights_expert_of(to->from->config, to->w, weight->into);
    return expert == SIZE_MAX || to->w->is_read[expert];
}

static err_t copy_weight(void *ctx, const model_weight *weight)
{
    copier *const to = ctx;
    matrix *const m = weight->into;
    const size_t scale_bytes = scaled_copy_bytes(to->from, weight),
                 bytes = weight_copy_bytes(weight);
    if (scale_bytes > 0) scaled_copy(to->from, weight, (float *)(void *)to->at);
    to->at += round_up(scale_bytes, ALIGN_BYTES);
    if (bytes == 0) return ERR_OK;
    if (is_read(to, weight)) copy_values(to->from->config, weight, m, to->at);
    if (weight_is_expanded(weight))
        *m = (matrix){.type = DTYPE_F32, .rows = m->rows, .cols = m->cols};
    m->data = to->at;
    to->at += round_up(bytes, ALIGN_BYTES);
    return ERR_OK;
}

err_t weights_copy(const scaled_source *from, const model_family *family, model_weights *w)
{
    const size_t n_experts = (size_t)from->config->n_layers * from->config->n_experts;
    if (w->copies_bytes == 0) return ERR_OK;
    void *const block = mmap(NULL, w->copies_bytes, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (block == MAP_FAILED)
        return err_set(from->info, ERR_NO_MEMORY,
                       "weights: no memory for copies of %zu bytes of tensors: %s", w->copies_bytes,
                       strerror(errno));
    w->copies = block;
    copier to = {.from = from, .w = w, .at = block};
    memcpy(w->is_held, w->is_read, n_experts * sizeof *w->is_held);
    TRY(family->each_weight(from->config, w, copy_weight, &to));
    assert(to.at <= (uint8_t *)block + w->copies_bytes);
    return ERR_OK;
}

/* ---- experts that come and go -------------------------------------------------------------------- */

typedef struct holder {
    copier to;
    bool holds; /* what is read; else nothing */
} holder;

/* The pages that are of nothing else. */
static void drop(void *data, size_t bytes)
{
    const uintptr_t first = round_up((uintptr_t)data, PAGE_BYTES),
                    end = ((uintptr_t)data + bytes) / PAGE_BYTES * PAGE_BYTES;
    if (first < end) (void)madvise((void *)first, end - first, MADV_DONTNEED);
}

static err_t hold_weight(void *ctx, const model_weight *weight)
{
    const holder *const h = ctx;
    const model_weights *const w = h->to.w;
    const size_t expert = model_weights_expert_of(h->to.from->config, w, weight->into);
    const uintptr_t at = (uintptr_t)weight->into->data, first = (uintptr_t)w->copies;
    if (expert == SIZE_MAX || at < first || at >= first + w->copies_bytes) return ERR_OK;
    const bool is_wanted = h->holds && w->is_read[expert];
    if (is_wanted == w->is_held[expert]) return ERR_OK;
    void *const data = (uint8_t *)w->copies + (at - first);
    if (!is_wanted) {
        drop(data, matrix_bytes(weight->into));
        return ERR_OK;
    }
    matrix view;
    model_weight seen = *weight;
    bool found = false;
    seen.into = &view;
    TRY(weight_view(h->to.from, &seen, &view, &found));
    assert(found);
    copy_values(h->to.from->config, &seen, &view, data);
    return ERR_OK;
}

void model_weights_hold(const model_family *family, const model_config *config, model_weights *w,
                        bool holds)
{
    const scaled_source from = {.files = w->files, .config = config, .weights = w};
    const size_t n_experts = (size_t)config->n_layers * config->n_experts;
    holder h = {.to = {.from = &from, .w = w}, .holds = holds};
    if (w->copies == NULL) return;
    const err_t err = family->each_weight(config, w, hold_weight, &h);
    assert(err == ERR_OK); /* the same files gave the same views before */
    for (size_t i = 0; i < n_experts; i++)
        w->is_held[i] = holds && w->is_read[i];
}
