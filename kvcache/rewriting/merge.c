/* kvcache/rewriting/merge.c - values of entries that go are blended into those that stay: MergingPress of
 * NVIDIA's kvpress, after Wan et al., D2O (arXiv 2406.13035), and Bolya et al., Token Merging (arXiv
 * 2210.09461).
 *
 *   j(i) = argmax_j cos(k_i, k_j) over what stays, of equals the oldest
 *   a_i  = max(cos, 0) |v_i| / (|v_i| + |v_j| + 1e-6)
 *   v_j := (v_j + sum_i a_i v_i) / (1 + sum_i a_i), over the i that go to j
 *
 * Over ranks what goes is blended into what stays on the same rank.
 *
 * Threshold 0 and all entries that go, as are the published defaults. Keys stay, and so does the attention
 * that they get: the mass of what went is lost all the same (compression/matching.h finds biases for it).
 *
 * Sinks and recent entries are compared with, and take nothing, nor do fixed ones: what resembles those most
 * goes as by eviction. As published all that stays takes what it gets. Measured on models/storyteller,
 * keydiff+adakv at 1/4, windows of 1024 with a ring of 32: NLL 3.842 whole, 3.856 by eviction, 3.857 merged,
 * 3.949 when sinks and ring take values as well, since sinks resemble many keys and mean nothing; and of look-up
 * questions 0.98 by eviction and so, 0.83 if only what may take is compared with.
 *
 * Sums are doubles. */
#include "kvcache/rewriting/rewriting.h"
#include "kvcache/scoring/score_math.h"

#include <math.h>
#include <string.h>

static const double LEAST = 1e-6;

#define NO_ENTRY UINT32_MAX

/* Entries that go and entries that stay, each in the order of their positions. */
typedef struct merging {
    const kv_rewrite_args *args;
    uint32_t n_goes, n_stays; /* together at most n, the entries of the view */
    uint32_t *goes, *stays;   /* [n_goes], [n_stays]: entries of the view */
    uint32_t *target;         /* [n_goes]: which of the stays */
    uint32_t *first, *next;   /* [n_stays], [n_goes]: what goes to one of the stays, as a list */
    float *cosine;            /* [n_goes]: to the target */
    float *leaving, *staying; /* [KV_SCORE_CHUNK][k_dim]: unit keys */
    float *columns;           /* [k_dim][KV_SCORE_CHUNK]: the second, turned over */
    float *value, *other;     /* [v_dim] */
    double *sum;              /* [v_dim] */
} merging;

static size_t merge_indices(const kv_rewrite_shape *shape)
{
    return 3 * (size_t)shape->n_max;
}

static size_t merge_floats(const kv_rewrite_shape *shape)
{
    return 4 * (size_t)shape->v_dim + 3 * (size_t)KV_SCORE_CHUNK * shape->k_dim + shape->n_max;
}

/* n_goes and n_stays are known. */
static void cut_memory(merging *m)
{
    const kv_rewrite_args *args = m->args;
    const size_t chunk = (size_t)KV_SCORE_CHUNK * args->k_dim;
    m->goes = args->work.index;
    m->stays = m->goes + m->n_goes;
    m->target = m->stays + m->n_stays;
    m->first = m->target + m->n_goes;
    m->next = m->first + m->n_stays;
    m->sum = (double *)(void *)args->work.rows;
    m->value = args->work.rows + 2 * (size_t)args->v_dim;
    m->other = m->value + args->v_dim;
    m->leaving = m->other + args->v_dim;
    m->staying = m->leaving + chunk;
    m->columns = m->staying + chunk;
    m->cosine = m->columns + chunk;
}

static void list_entries(merging *m)
{
    const kv_rewrite_args *args = m->args;
    for (uint32_t i = 0; i < args->view->n; i++)
        m->n_goes += args->fate[i] == KV_FATE_GOES;
    m->n_stays = args->view->n - m->n_goes;
    cut_memory(m);
    for (uint32_t i = 0, g = 0, s = 0; i < args->view->n; i++) {
        if (args->fate[i] == KV_FATE_GOES) {
            m->goes[g++] = i;
        } else {
            m->stays[s++] = i;
        }
    }
}

/* The keys of count of these entries, of length 1; zeros stay zeros. */
static void load_units(const merging *m, const uint32_t *entry, uint32_t count, float *out)
{
    const kv_score_view *view = m->args->view;
    const uint32_t k_dim = m->args->k_dim;
    for (uint32_t i = 0; i < count; i++) {
        float *key = out + (size_t)i * k_dim;
        view->load(view, entry[i], 1, key, NULL);
        const double length = fmax(sqrt(kv_row_square(key, k_dim)), LEAST);
        for (uint32_t c = 0; c < k_dim; c++)
            key[c] = (float)((double)key[c] / length);
    }
}

/* Of count entries that go, from the g-th on. */
static void find_targets(const merging *m, uint32_t g, uint32_t count)
{
    const uint32_t k_dim = m->args->k_dim;
    load_units(m, m->goes + g, count, m->leaving);
    for (uint32_t i = 0; i < count; i++) {
        m->target[g + i] = 0;
        m->cosine[g + i] = -INFINITY;
    }
    for (uint32_t s = 0; s < m->n_stays; s += KV_SCORE_CHUNK) {
        const uint32_t n = kv_chunk_count(m->n_stays, s);
        float dots[KV_SCORE_CHUNK];
        load_units(m, m->stays + s, n, m->staying);
        kv_chunk_turn(m->staying, n, k_dim, m->columns);
        for (uint32_t i = 0; i < count; i++) {
            kv_chunk_dots(m->leaving + (size_t)i * k_dim, m->columns, k_dim, dots);
            for (uint32_t j = 0; j < n; j++) {
                if (!(dots[j] > m->cosine[g + i])) continue;
                m->cosine[g + i] = dots[j];
                m->target[g + i] = s + j;
            }
        }
    }
}

/* From the newest to the oldest, so that every list begins with its oldest. */
static void link_targets(const merging *m)
{
    for (uint32_t s = 0; s < m->n_stays; s++)
        m->first[s] = NO_ENTRY;
    for (uint32_t g = m->n_goes; g-- > 0;) {
        if (!(m->cosine[g] > 0)) continue;
        m->next[g] = m->first[m->target[g]];
        m->first[m->target[g]] = g;
    }
}

static void merge_into(const merging *m, uint32_t s)
{
    const kv_score_view *view = m->args->view;
    const uint32_t v_dim = m->args->v_dim;
    double weight = 1;
    view->load(view, m->stays[s], 1, NULL, m->value);
    const double length = sqrt(kv_row_square(m->value, v_dim));
    for (uint32_t c = 0; c < v_dim; c++)
        m->sum[c] = (double)m->value[c];
    for (uint32_t g = m->first[s]; g != NO_ENTRY; g = m->next[g]) {
        view->load(view, m->goes[g], 1, NULL, m->other);
        const double other = sqrt(kv_row_square(m->other, v_dim));
        const double a = (double)m->cosine[g] * other / (other + length + LEAST);
        for (uint32_t c = 0; c < v_dim; c++)
            m->sum[c] += a * (double)m->other[c];
        weight += a;
    }
    for (uint32_t c = 0; c < v_dim; c++)
        m->value[c] = (float)(m->sum[c] / weight);
    m->args->put_value(m->args->ctx, m->stays[s], m->value);
}

static void merge(const kv_rewrite_args *args)
{
    merging m = {.args = args};
    list_entries(&m);
    for (uint32_t g = 0; g < m.n_goes; g += KV_SCORE_CHUNK)
        find_targets(&m, g, kv_chunk_count(m.n_goes, g));
    link_targets(&m);
    for (uint32_t s = 0; s < m.n_stays; s++) {
        const bool is_written = args->fate[m.stays[s]] == KV_FATE_STAYS;
        if (is_written && m.first[s] != NO_ENTRY) merge_into(&m, s);
    }
}

extern const kv_rewriting kv_rewriting_merge;
const kv_rewriting kv_rewriting_merge = {
    .name = "merge", .n_indices = merge_indices, .n_floats = merge_floats, .rewrite = merge};
