/* kvcache/compression/principal_axes.h - the eigenvectors of a symmetric matrix.
 *
 * One-sided Jacobi (Hestenes 1958): rows are turned against each other, pair by pair, until all are at right
 * angles. For a symmetric matrix without negative eigenvalues the rows are then the eigenvectors, each
 * as long as its eigenvalue. Slower than tridiagonal methods and much shorter; the order of turns is
 * fixed, so the same matrix gives the same bits. */
#ifndef KVCACHE_COMPRESSION_PRINCIPAL_AXES_H
#define KVCACHE_COMPRESSION_PRINCIPAL_AXES_H

#include <stdint.h>

/* a [n][n], symmetric and without negative eigenvalues: becomes its eigenvectors, as rows by falling
 * length, each as long as its eigenvalue. Numbers must be finite. */
void principal_axes(double *a, uint32_t n);

#endif
