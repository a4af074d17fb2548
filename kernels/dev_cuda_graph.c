/* kernels/dev_cuda_graph.c - runs of ops that are queued as one: CUDA graphs. See dev_cuda.h.
 *
 * A decode step of a small batch is hundreds of launches of a few microseconds each; as a graph it is one. The
 * graphs of the latest keys are kept. What cannot be recorded has not run either, so that is a failure of the device,
 * and says how to do without. */
#include "kernels/dev_cuda.h"

#include "base/check.h"
#include "base/log.h"
#include "kernels/dev_cuda_impl.h"

#include <cuda_runtime_api.h>
#include <stdlib.h>

enum { GRAPHS_MAX = 64 };

typedef struct graph {
    uint64_t key, last_use;
    cudaGraphExec_t exec; /* NULL: the place is free */
} graph;

struct cuda_graphs {
    graph graph[GRAPHS_MAX];
    uint64_t n_uses, key; /* of what is being recorded */
};

cuda_graphs *cuda_graphs_open(void)
{
    return calloc(1, sizeof(cuda_graphs));
}

void cuda_graphs_close(cuda_graphs *g)
{
    for (uint32_t i = 0; g != NULL && i < GRAPHS_MAX; i++) {
        if (g->graph[i].exec != NULL) (void)cudaGraphExecDestroy(g->graph[i].exec);
    }
    free(g);
}

static void keep(cuda_queue *queue, cudaError_t error)
{
    if (error == cudaSuccess || queue->failure != 0) return;
    queue->failure = (int)error;
    log_error("device", "a step could not be recorded; gpu-graphs off does without error=\"%s\"",
              cudaGetErrorString(error));
}

static graph *find(cuda_graphs *g, uint64_t key)
{
    for (uint32_t i = 0; i < GRAPHS_MAX; i++) {
        if (g->graph[i].exec != NULL && g->graph[i].key == key) return &g->graph[i];
    }
    return NULL;
}

/* A free place, or that of the graph that was not used for longest. */
static graph *take_place(cuda_graphs *g)
{
    graph *oldest = &g->graph[0];
    for (uint32_t i = 0; i < GRAPHS_MAX; i++) {
        if (g->graph[i].exec == NULL) return &g->graph[i];
        if (g->graph[i].last_use < oldest->last_use) oldest = &g->graph[i];
    }
    (void)cudaGraphExecDestroy(oldest->exec); /* what still runs of it goes on */
    oldest->exec = NULL;
    return oldest;
}

void dev_cuda_begin_graph(dev_cuda *d, uint64_t key)
{
    cuda_queue *queue = cuda_queue_of(d);
    cuda_graphs *g = queue->graphs;
    assert(queue->run == CUDA_RUN_AT_ONCE);
    if (g == NULL || queue->failure != 0) return;
    graph *known = find(g, key);
    g->key = key;
    if (known == NULL) {
        pthread_mutex_lock(&queue->recording);
        const cudaError_t error =
            cudaStreamBeginCapture(queue->stream, cudaStreamCaptureModeThreadLocal);
        keep(queue, error);
        if (error == cudaSuccess) queue->run = CUDA_RUN_RECORDS;
        if (error != cudaSuccess) pthread_mutex_unlock(&queue->recording);
        return;
    }
    known->last_use = ++g->n_uses;
    keep(queue, cudaGraphLaunch(known->exec, queue->stream));
    queue->run = CUDA_RUN_REPLAYS;
}

void dev_cuda_end_graph(dev_cuda *d)
{
    cuda_queue *queue = cuda_queue_of(d);
    cuda_graphs *g = queue->graphs;
    const cuda_run run = queue->run;
    cudaGraph_t recorded = NULL;
    queue->run = CUDA_RUN_AT_ONCE;
    if (run != CUDA_RUN_RECORDS) return;
    graph *place = take_place(g);
    cudaError_t error = cudaStreamEndCapture(queue->stream, &recorded);
    pthread_mutex_unlock(&queue->recording);
    if (error == cudaSuccess) error = cudaGraphInstantiate(&place->exec, recorded, 0);
    if (error != cudaSuccess) place->exec = NULL;
    if (recorded != NULL) (void)cudaGraphDestroy(recorded);
    place->key = g->key;
    place->last_use = ++g->n_uses;
    if (error == cudaSuccess) error = cudaGraphLaunch(place->exec, queue->stream);
    keep(queue, error);
}
