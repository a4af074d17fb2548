/* tests/kernels/cuda_fixture_gpu.c - on hardware: is there any? Asked in a child, since a process that has talked
 * to the driver cannot fork tests that do. */
#include "tests/kernels/cuda_fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

void gpu_shuffle(uint64_t seed)
{
    (void)seed; /* the hardware has its own */
}

static int ask(void)
{
    dev_cuda *d;
    err_info info = {.code = ERR_OK};
    const dev_cuda_config config = {.memory_share = 1};
    if (dev_cuda_open(&config, &d, &info) != ERR_OK) {
        printf("%s\n", info.message);
        fflush(stdout);
        return 1;
    }
    dev_cuda_close(d);
    return 0;
}

bool test_can_run(void)
{
    int status = 1;
    const pid_t child = fork();
    if (child == 0) _exit(ask());
    return child > 0 && waitpid(child, &status, 0) == child && status == 0;
}
