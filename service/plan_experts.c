/* service/plan_experts.c - see plan_experts.h.
 *
 * Let J be the number of different experts that a step reads. J is a chain over the tokens: of the k
 * experts that the next one draws, x are new with probability C(E - j, x) C(j, k - x) / C(E, k). Given J =
 * j every set of j experts is equally likely, so the largest part of it on one rank has a distribution that
 * follows from counting sets:
 *
 *     P(no rank has more than m | j) = [z^j] prod_r (sum_{c <= m} C(n_r, c) z^c) / C(E, j)
 *     E[most | j]                    = sum_{m >= 0} P(some rank has more than m | j)
 *
 * The counts are sums of positive numbers, at most C(1024, 512) = 4.5e306, so plain doubles hold them to
 * rounding. */
#include "service/plan_experts.h"

#include "base/check.h"
#include "kernels/moe.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Room for one draw. */
typedef struct experts_work {
    double *choose;      /* [n_experts + 1]: C(n_experts, j) */
    double *part[2];     /* [n_experts + 1] each: C(n_r, c) of the two sizes that parts have */
    double *sets, *next; /* [n_experts + 1]: coefficients of the product so far */
    double *most;        /* [n_experts + 1]: E[most | j] */
    double *chance;      /* [n_experts + 1]: P(J = j) */
    double *gain; /* [n_experts + 1][MOE_TOP_K_MAX + 1]: x of the next token's are new, given j */
} experts_work;

enum { N_ARRAYS = 7, N_GAINS = MOE_TOP_K_MAX + 1 };

static err_t work_init(uint32_t n_experts, experts_work *w)
{
    const size_t n = (size_t)n_experts + 1;
    double *at = calloc((N_ARRAYS + N_GAINS) * n, sizeof *at);
    *w = (experts_work){0};
    if (at == NULL) return ERR_NO_MEMORY;
    double **arrays[N_ARRAYS] = {&w->choose, &w->part[0], &w->part[1], &w->sets,
                                 &w->next,   &w->most,    &w->chance};
    for (size_t i = 0; i < N_ARRAYS; i++)
        *arrays[i] = at + i * n;
    w->gain = at + N_ARRAYS * n;
    return ERR_OK;
}

static void work_deinit(experts_work *w)
{
    free(w->choose); /* the first of one allocation */
}

/* row[c] = C(n, c), c in [0, n]. */
static void fill_choose(uint32_t n, double *row)
{
    row[0] = 1;
    for (uint32_t i = 1; i <= n; i++) {
        row[i] = 1;
        for (uint32_t c = i - 1; c > 0; c--)
            row[c] += row[c - 1];
    }
}

/* The same number by multiplication, for the small k of a token. */
static double choose_few(uint32_t n, uint32_t k)
{
    double ways = 1;
    if (k > n) return 0;
    for (uint32_t i = 0; i < k; i++)
        ways *= (double)(n - i) / (double)(i + 1);
    return ways;
}

static void fill_gains(const plan_draw *draw, experts_work *w)
{
    const uint32_t n = draw->n_experts, k = draw->top_k;
    const double all = choose_few(n, k);
    for (uint32_t j = 0; j <= n; j++) {
        for (uint32_t x = 0; x <= k; x++)
            w->gain[j * N_GAINS + x] = choose_few(n - j, x) * choose_few(j, k - x) / all;
    }
}

/* chance[j] after all tokens. */
static void fill_chances(const plan_draw *draw, experts_work *w)
{
    const uint32_t n = draw->n_experts, k = draw->top_k;
    fill_gains(draw, w);
    w->chance[0] = 1;
    for (uint32_t t = 0; t < draw->n_tokens; t++) {
        for (uint32_t j = n + 1; j-- > 0;) { /* downwards: what a count gives goes to higher ones */
            const double from = w->chance[j];
            const double *gain = w->gain + (size_t)j * N_GAINS;
            w->chance[j] = from * gain[0];
            for (uint32_t x = 1; x <= k && j + x <= n; x++)
                w->chance[j + x] += from * gain[x];
        }
    }
}

/* sets *= sum_{c <= most} part[c] z^c; degree is that of sets before. */
static void multiply(experts_work *w, uint32_t degree, const double *part, uint32_t most)
{
    memset(w->next, 0, ((size_t)degree + most + 1) * sizeof *w->next);
    for (uint32_t i = 0; i <= degree; i++) {
        for (uint32_t c = 0; c <= most; c++)
            w->next[i + c] += w->sets[i] * part[c];
    }
    double *swap = w->sets;
    w->sets = w->next;
    w->next = swap;
}

/* most[j], for every j. */
static void fill_most(const plan_draw *draw, experts_work *w)
{
    const uint32_t n = draw->n_experts, n_ranks = draw->n_ranks;
    const uint32_t least = n / n_ranks, n_larger = n % n_ranks;
    const uint32_t largest = least + (n_larger > 0);
    fill_choose(n, w->choose);
    fill_choose(least, w->part[0]);
    fill_choose(largest, w->part[1]);
    for (uint32_t m = 0; m < largest; m++) {
        uint32_t degree = 0;
        w->sets[0] = 1;
        for (uint32_t r = 0; r < n_ranks; r++) {
            const uint32_t n_part = r < n_larger ? largest : least;
            const uint32_t n_counted = m < n_part ? m : n_part;
            multiply(w, degree, w->part[r < n_larger], n_counted);
            degree += n_counted;
        }
        for (uint32_t j = 0; j <= n; j++)
            w->most[j] += 1 - (j <= degree ? w->sets[j] / w->choose[j] : 0);
    }
}

double plan_experts_read(const plan_draw *draw)
{
    const double n = draw->n_experts;
    return n * (1 - pow(1 - draw->top_k / n, draw->n_tokens));
}

err_t plan_experts_read_most(const plan_draw *draw, double *out)
{
    assert(draw->n_experts >= 1 && draw->n_experts <= MOE_EXPERTS_MAX);
    assert(draw->top_k >= 1 && draw->top_k <= MOE_TOP_K_MAX);
    assert(draw->top_k <= draw->n_experts);
    assert(draw->n_tokens >= 1);
    assert(draw->n_ranks >= 1);
    experts_work w;
    *out = plan_experts_read(draw);
    if (draw->n_ranks == 1) return ERR_OK;
    TRY(work_init(draw->n_experts, &w));
    fill_chances(draw, &w);
    fill_most(draw, &w);
    *out = 0;
    for (uint32_t j = 0; j <= draw->n_experts; j++)
        *out += w.chance[j] * w.most[j];
    work_deinit(&w);
    return ERR_OK;
}
