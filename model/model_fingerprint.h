/* model/model_fingerprint.h - a number that tells models apart, for ranks that must hold the same. */
#ifndef MODEL_MODEL_FINGERPRINT_H
#define MODEL_MODEL_FINGERPRINT_H

#include "model/model.h"

/* The same on every machine for the same shape, tensors and kv_bases.safetensors, however they are dealt to
 * files. Of a tensor it sees name, type, shape and the first and last 4 KiB: fine-tunes differ there, and to
 * read all would cost a minute that loading does not. After hash_init. Errors as model_open's. */
err_t model_fingerprint(const char *dir, model_load load, uint64_t *out, err_info *info) MUST_CHECK;

#endif
