/* model/model_weight.h - one tensor that a checkpoint must hold, as a family lists it and a loader looks for it. */
#ifndef MODEL_MODEL_WEIGHT_H
#define MODEL_MODEL_WEIGHT_H

#include "base/error.h"
#include "kernels/matmul.h"
#include "model/model_config.h"

/* Writes a tensor, of which `from` is a view into the file, as ops want it: as many elements of its type, or, of types
 * with scales, as many f32. */
typedef void model_arrange(const model_config *c, const matrix *from, void *to);

/* kv_b_proj of latent attention (layer_latent.c): the transposes of all heads' keys' parts, then all values' parts. */
model_arrange model_latent_arrange;
/* As it is, for codes whose blocks of scales are cut by heads. */
model_arrange model_plain_arrange;

/* One tensor that a checkpoint must hold. */
typedef struct model_weight {
    char name[128];
    uint32_t rows, cols;
    bool is_vector; /* the file's shape is [cols] */
    bool is_bias;   /* dummy ones are zeros, as other vectors are ones */
    /* It is a part of the file's tensor: rows first_row .. of item `item` of [n_items][n_rows][cols], or of
     * [n_rows][cols] if n_items is 0. n_rows 0: all of it. Each tensor's first part, item 0 and row 0, is visited. */
    struct {
        uint32_t n_items, item, n_rows, first_row;
        uint32_t
            row_step; /* every so many rows of it; 0 is 1. Of turned ones, and mxfp4's blocks */
        /* Its rows are the file's columns: of [n_items][cols][n_rows], or, a vector's, of [n_items][n_rows]. It is
         * copied. Blocks are never turned. */
        bool is_turned;
    } part;
    model_arrange *arrange; /* NULL: it is used as it lies in the file */
    matrix *into;
} model_weight;
typedef err_t model_weight_visit(void *ctx, const model_weight *weight);

#endif
