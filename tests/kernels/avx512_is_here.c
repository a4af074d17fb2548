/* The twins' tests compare every table that this processor can run. Where AVX-512 is not among them this
 * says so, as a skip that CTest shows, instead of leaving it to be guessed. */
#include "kernels/dev.h"

#include <stdio.h>
#include <string.h>

enum { SKIPPED = 77 };

int main(void)
{
    for (const dev_ops *const *table = dev_cpu_tables(); *table != NULL; table++) {
        if (strcmp((*table)->name, "avx512") == 0) return 0;
    }
    puts("this processor has no AVX-512 (F, BW, DQ, VL): its table is compiled, not run");
    return SKIPPED;
}
