/* tests/kernels/cuda_emulated_graph.cc - graphs of launches over the emulator: kernels/dev_cuda_graph.c of the tests.
 *
 * A graph keeps launches with the arguments of the first time, and a replay runs those. What is called meanwhile is
 * held against them: another kernel or another grid is a failure, as the key was not enough to tell. */
#include "kernels/dev_cuda_impl.h"
#include "tests/kernels/cuda_emulated.h"

extern "C" {
#include "kernels/dev_cuda.h"
}

#include <map>
#include <stdio.h>
#include <vector>

struct cuda_graphs {
    std::map<uint64_t, std::vector<emu_launched>> known;
    std::vector<emu_launched> *present; /* recorded or replayed now */
    size_t n_replayed;
};

cuda_graphs *cuda_graphs_open(void)
{
    return new cuda_graphs();
}

void cuda_graphs_close(cuda_graphs *g)
{
    delete g;
}

static void run(dev_cuda *d, const emu_launched &launch)
{
    emu_launch(d, launch.grid, launch.n_threads, launch.shared_bytes, launch.body);
}

static bool is_same(dim3 a, dim3 b)
{
    return a.x == b.x && a.y == b.y && a.z == b.z;
}

static void fail(cuda_queue *queue, const char *what)
{
    fprintf(stderr, "cuda emulator: %s\n", what);
    queue->failure = 1;
}

static void compare(cuda_queue *queue, const emu_launched &launch)
{
    cuda_graphs *g = queue->graphs;
    if (g->n_replayed == g->present->size()) {
        fail(queue, "a step launches more than the graph of its key");
        return;
    }
    const emu_launched &known = (*g->present)[g->n_replayed++];
    if (known.kernel != launch.kernel || !is_same(known.grid, launch.grid) ||
        known.n_threads != launch.n_threads || known.shared_bytes != launch.shared_bytes)
        fail(queue, "a step launches something else than the graph of its key");
}

void emu_queue(void *device, const emu_launched &launch)
{
    dev_cuda *d = static_cast<dev_cuda *>(device);
    cuda_queue *queue = cuda_queue_of(d);
    if (queue->run == CUDA_RUN_AT_ONCE) {
        run(d, launch);
    } else if (queue->run == CUDA_RUN_RECORDS) {
        queue->graphs->present->push_back(launch);
    } else {
        compare(queue, launch);
    }
}

void dev_cuda_begin_graph(dev_cuda *d, uint64_t key)
{
    cuda_queue *queue = cuda_queue_of(d);
    cuda_graphs *g = queue->graphs;
    if (g == nullptr) return;
    const bool is_known = g->known.count(key) > 0;
    g->present = &g->known[key];
    g->n_replayed = 0;
    queue->run = is_known ? CUDA_RUN_REPLAYS : CUDA_RUN_RECORDS;
    for (size_t i = 0; is_known && i < g->present->size(); i++)
        run(d, (*g->present)[i]);
}

void dev_cuda_end_graph(dev_cuda *d)
{
    cuda_queue *queue = cuda_queue_of(d);
    cuda_graphs *g = queue->graphs;
    const cuda_run was = queue->run;
    queue->run = CUDA_RUN_AT_ONCE;
    for (size_t i = 0; was == CUDA_RUN_RECORDS && i < g->present->size(); i++)
        run(d, (*g->present)[i]);
    if (was == CUDA_RUN_REPLAYS && g->n_replayed != g->present->size())
        fail(queue, "a step launches less than the graph of its key");
}
