/* model/tokenizer_settings.h - what tokenizer_config.json says, or its defaults without the file. */
#ifndef MODEL_TOKENIZER_SETTINGS_H
#define MODEL_TOKENIZER_SETTINGS_H

#include "base/error.h"

#include <stdbool.h>

typedef struct tokenizer_settings {
    bool add_bos; /* add_bos_token; true if absent */
} tokenizer_settings;

err_t tokenizer_settings_read(const char *dir, tokenizer_settings *out, err_info *info) MUST_CHECK;

#endif
