/* model/tokenizer_spm.h - the C face of SentencePiece: what tokenizer.c needs of it and no more.
 *
 * Nothing is thrown through here; memory that C++ could not get is ERR_NO_MEMORY.
 * Threads: after open every call is const and may run on any thread. */
#ifndef MODEL_TOKENIZER_SPM_H
#define MODEL_TOKENIZER_SPM_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct spm spm;

typedef enum spm_kind { SPM_TEXT, SPM_BYTE, SPM_CONTROL, SPM_UNKNOWN } spm_kind;

/* `model` is the content of tokenizer.model; it is not kept. `bare`: no text gets a space put before it,
 * whatever the model says. ERR_BAD_MODEL, ERR_NO_MEMORY. */
err_t spm_open(const void *model, size_t model_bytes, bool bare, spm **out) MUST_CHECK;
void spm_close(spm *s); /* NULL is fine */

uint32_t spm_n_vocab(const spm *s);
int64_t spm_bos(const spm *s); /* -1: none */
int64_t spm_eos(const spm *s);

/* Kind and spelling of a piece; `*bytes` is borrowed for the life of `s` and holds no NUL at its end. */
spm_kind spm_piece(const spm *s, uint32_t id, const char **bytes, size_t *n_bytes);

/* Ids of a valid UTF-8 text, in a heap array with `n_front` free places before the first. */
err_t spm_encode(const spm *s, const char *text, size_t n_bytes, size_t n_front, uint32_t **ids,
                 size_t *n_ids) MUST_CHECK;

#ifdef __cplusplus
}
#endif

#endif
