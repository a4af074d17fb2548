/* kvcache/compression/principal_axes.c - see principal_axes.h. */
#include "kvcache/compression/principal_axes.h"

#include <math.h>
#include <stdbool.h>
#include <stddef.h>

/* It converges quadratically: 6 to 10 sweeps; more would mean that rounding keeps it busy. */
enum { N_SWEEPS_MAX = 30, N_SUMS = 8 };

/* Cosine of the angle below which rows count as being at right angles. */
static const double COSINE_MIN = 1e-10;

typedef struct products {
    double xx, yy, xy;
} products;

static products multiply(const double *x, const double *y, uint32_t n)
{
    double xx[N_SUMS] = {0}, yy[N_SUMS] = {0}, xy[N_SUMS] = {0};
    products sum = {0};
    uint32_t c = 0;
    for (; c + N_SUMS <= n;
         c += N_SUMS) { /* beside each other, so that the compiler may use vectors */
        for (uint32_t i = 0; i < N_SUMS; i++) {
            xx[i] += x[c + i] * x[c + i];
            yy[i] += y[c + i] * y[c + i];
            xy[i] += x[c + i] * y[c + i];
        }
    }
    for (uint32_t i = 0; i < N_SUMS; i++)
        sum = (products){sum.xx + xx[i], sum.yy + yy[i], sum.xy + xy[i]};
    for (; c < n; c++)
        sum = (products){sum.xx + x[c] * x[c], sum.yy + y[c] * y[c], sum.xy + x[c] * y[c]};
    return sum;
}

/* Turns x and y in their plane to right angles, the longer one first; false if they are already. */
static bool turn(double *x, double *y, uint32_t n)
{
    const products p = multiply(x, y, n);
    const bool is_right = fabs(p.xy) <= COSINE_MIN * sqrt(p.xx * p.yy);
    if (is_right && p.xx >= p.yy) return false;
    /* tan of twice the angle is 2 xy / (xx - yy); its half between -90 and 90 degrees makes x the longer. */
    const double angle = is_right ? acos(0) : 0.5 * atan2(2 * p.xy, p.xx - p.yy);
    const double c = cos(angle), s = sin(angle);
    for (uint32_t i = 0; i < n; i++) {
        const double a = x[i], b = y[i];
        x[i] = c * a + s * b;
        y[i] = c * b - s * a;
    }
    return true;
}

void principal_axes(double *a, uint32_t n)
{
    bool any = true;
    for (int sweep = 0; any && sweep < N_SWEEPS_MAX; sweep++) {
        any = false;
        for (uint32_t p = 0; p + 1 < n; p++) {
            for (uint32_t q = p + 1; q < n; q++)
                any = turn(a + (size_t)p * n, a + (size_t)q * n, n) || any;
        }
    }
}
