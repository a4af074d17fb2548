/* model/tokenizer_settings.h - what tokenizer_config.json says, or its defaults without the file. */
#ifndef MODEL_TOKENIZER_SETTINGS_H
#define MODEL_TOKENIZER_SETTINGS_H

#include "base/error.h"

#include <stdbool.h>

typedef struct tokenizer_settings {
    bool says_add_bos; /* add_bos_token is there */
    bool add_bos;      /* its value; true if it is not there */
    bool
        is_legacy; /* legacy: each text between control tokens begins as a text of its own; true if absent */
    bool adds_prefix; /* add_prefix_space, which counts where legacy is false; true if absent */
    char *bos, *eos;  /* bos_token and eos_token; NULL if null or absent; owned */
} tokenizer_settings;

err_t tokenizer_settings_read(const char *dir, tokenizer_settings *out, err_info *info) MUST_CHECK;
void tokenizer_settings_deinit(tokenizer_settings *s);

#endif
