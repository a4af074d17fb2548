/* kernels/dev_cuda_impl.h - what the .cu files and the device share, private to this folder. C and C++. */
#ifndef KERNELS_DEV_CUDA_IMPL_H
#define KERNELS_DEV_CUDA_IMPL_H

#include "kernels/ops_cuda.h"

#include <pthread.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct cuda_graphs cuda_graphs;

/* What becomes of a launch. */
typedef enum cuda_run {
    CUDA_RUN_AT_ONCE,
    CUDA_RUN_RECORDS, /* into a graph, which runs when it is complete */
    CUDA_RUN_REPLAYS  /* nothing: a graph that has it was launched */
} cuda_run;

/* What an op sees of its device: the first member of struct dev_cuda. */
typedef struct cuda_queue {
    void *stream; /* cudaStream_t */
    void *scratch;
    size_t scratch_bytes;
    uint32_t n_multiprocessors;
    cuda_run run;
    cuda_graphs *graphs;       /* NULL: all runs at once */
    int failure;               /* cudaError_t of the first launch that failed, 0: none */
    pthread_mutex_t recording; /* held while the stream is recorded: asking it then ends that */
} cuda_queue;

static inline cuda_queue *cuda_queue_of(dev_cuda *d)
{
    return (cuda_queue *)(void *)d;
}

cuda_graphs *cuda_graphs_open(void); /* NULL without memory */
void cuda_graphs_close(cuda_graphs *g);

void embed_cuda(dev_cuda *d, const embed_args *args);
void rms_norm_cuda(dev_cuda *d, const rms_norm_args *args);
void add_norm_cuda(dev_cuda *d, const add_norm_args *args);
void layer_norm_cuda(dev_cuda *d, const layer_norm_args *args);
void adjust_cuda(dev_cuda *d, const adjust_args *args);
void rope_cuda(dev_cuda *d, const rope_args *args);
void add_cuda(dev_cuda *d, const add_args *args);
void matmul_cuda(dev_cuda *d, const matmul_args *args);
void matmul_heads_cuda(dev_cuda *d, const matmul_heads_args *args);
void router_cuda(dev_cuda *d, const router_args *args);
void moe_cuda(dev_cuda *d, const moe_args *args);
void deal_choices_cuda(dev_cuda *d, const deal_choices_args *args);
void attend_pages_cuda(dev_cuda *d, const attend_pages_args *args);
void choose_pages_cuda(dev_cuda *d, const choose_pages_args *args);
void put_rows_cuda(dev_cuda *d, const put_rows_args *args);
void encode_pages_cuda(dev_cuda *d, const encode_pages_args *args);
void move_slots_cuda(dev_cuda *d, const move_slots_args *args);
void merge_parts_cuda(dev_cuda *d, const merge_parts_args *args);
void sample_cuda(dev_cuda *d, const sample_args *args);
extern const cuda_ops cuda_ops_table;

#ifdef __cplusplus
}
#endif

#endif
