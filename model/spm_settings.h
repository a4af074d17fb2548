/* model/spm_settings.h - the few settings of a SentencePiece model that decoding depends on.
 *
 * SentencePiece has no call for them, so they are read from tokenizer.model itself, which is a
 * protocol buffer (sentencepiece_model.proto, field numbers in spm_settings.c). */
#ifndef MODEL_SPM_SETTINGS_H
#define MODEL_SPM_SETTINGS_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct spm_settings {
    bool add_dummy_prefix;         /* a space is put before the text */
    bool remove_extra_whitespaces; /* leading spaces are dropped, runs become one */
    bool suffix_whitespace;        /* pieces end, not begin, with their space */
    bool has_normalizer;           /* text is rewritten by a table before it is cut */
    bool has_denormalizer;         /* decoded text would be rewritten by a table */
    const char *unk_surface;       /* what an unknown piece decodes to; borrowed, no NUL */
    size_t unk_surface_bytes;
} spm_settings;

/* `model` outlives `out`. ERR_BAD_MODEL if it is no well-formed message. */
err_t spm_settings_read(const uint8_t *model, size_t model_bytes, spm_settings *out) MUST_CHECK;

#endif
