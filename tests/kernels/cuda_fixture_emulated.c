#include "tests/kernels/cuda_emulated_dev.h"
#include "tests/kernels/cuda_fixture.h"

void gpu_shuffle(uint64_t seed)
{
    cuda_emulated_seed(seed);
}
