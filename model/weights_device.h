/* model/weights_device.h - the weights where a device's ops read them.
 *
 * On the host they are views into mapped files, and a device that works on the host's memory reads them there. For
 * others they are copied once, into one block. */
#ifndef MODEL_WEIGHTS_DEVICE_H
#define MODEL_WEIGHTS_DEVICE_H

#include "model/family.h"
#include "model/weights.h"

typedef struct model_device_weights {
    matrix embedding, head, head_bias, final_norm, final_norm_bias;
    model_layer *layer; /* [n_layers]; their arrays of experts are in the device's memory, too */
    void *block;        /* of dev_alloc; NULL: `layer` is the host's */
    model_weights copy; /* owns `layer` if there is a block */
} model_device_weights;

typedef struct device_weights_args {
    const model_family *family;
    const model_config *config;
    model_weights *host; /* borrowed */
    bool
        all_experts; /* else those that this rank reads now; the others have no data: if none can move */
} device_weights_args;

/* Bytes that a matrix takes there with its scales, and those of the arrays of experts. ERR_OVERFLOW. */
err_t model_device_matrix_bytes(const matrix *m, size_t *out) MUST_CHECK;
err_t model_device_experts_bytes(const model_config *config, size_t *out) MUST_CHECK;

/* ERR_NO_MEMORY names the bytes wanted. */
err_t model_weights_to_device(dev *d, const device_weights_args *args, model_device_weights *out,
                              err_info *info) MUST_CHECK;
void model_weights_leave_device(dev *d, model_device_weights *w); /* a zeroed one is fine */

#endif
