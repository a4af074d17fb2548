/* tests/kernels/dev_apart.h - a device whose memory is not the host's, out of a CPU's ops.
 *
 * Its memory cannot be touched but inside its own calls: who hands an op a pointer of the host's, or reads a result that
 * was not downloaded, ends the test. So what runs on it is ready for a GPU. */
#ifndef TESTS_KERNELS_DEV_APART_H
#define TESTS_KERNELS_DEV_APART_H

#include "kernels/dev.h"

err_t dev_apart_open(const dev_config *config, size_t memory_bytes, dev **out,
                     err_info *info) MUST_CHECK;

/* One that attends by itself, by the definition of kernels/attention_pages.h. */
err_t dev_apart_open_attending(const dev_config *config, size_t memory_bytes, dev **out,
                               err_info *info) MUST_CHECK;

/* What has passed between the two memories since it was opened. */
typedef struct dev_apart_traffic {
    uint64_t up_bytes, down_bytes, n_uploads, n_downloads;
} dev_apart_traffic;
dev_apart_traffic dev_apart_count(const dev *d);

/* After so many more ops the device has failed, and computes nothing. Any thread may say so. */
void dev_apart_fail_after(dev *d, uint32_t n_ops);

#endif
