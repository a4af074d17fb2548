/* model/weights_copies.h - tensors that ops cannot read where the file has them. For the loader.
 *
 * The format does not pad: a header of odd length puts every value at an odd address, and kernels may assume that a
 * float lies at a multiple of four. Other tensors lie turned in the file, or are wanted in another order (`arrange`). Codes
 * that are put in another order become f32, value = code times scale, as no block of scales would fit them any more:
 * nothing is rounded that a product with the codes would not round.
 *
 * Copies lie in one anonymous mapping, in the order of the family's list. Memory is taken as they are written: an
 * expert has it only while it is held. */
#ifndef MODEL_WEIGHTS_COPIES_H
#define MODEL_WEIGHTS_COPIES_H

#include "model/weights_scaled.h"

/* Of a weight that has been viewed: bytes of its values' copy; 0: it has none. */
size_t weight_copy_bytes(const model_weight *weight);

/* Are codes expanded? */
bool weight_is_expanded(const model_weight *weight);

/* Fills `out` with a view of the weight's tensor in the files. *found: false, and nothing else, without one. */
err_t weight_view(const scaled_source *from, const model_weight *weight, matrix *out,
                  bool *found) MUST_CHECK;

/* Makes the copies, w->copies_bytes of them, of all but experts that are not read. ERR_NO_MEMORY. */
err_t weights_copy(const scaled_source *from, const struct model_family *family,
                   model_weights *w) MUST_CHECK;

#endif
