/* kvcache/compression/codec.c - the list of page codecs. */
#include "kvcache/compression/codec.h"

#include <string.h>

#define X(name) extern const kv_codec kv_codec_##name;
KV_CODEC_LIST(X)
#undef X

const kv_codec *const kv_codecs[] = {
#define X(name) &kv_codec_##name,
    KV_CODEC_LIST(X) NULL
#undef X
};

#define X(name) " " #name
const char kv_codec_names[] = KV_CODEC_LIST(X);
#undef X

const kv_codec *kv_codec_find(const char *name)
{
    for (size_t i = 0; kv_codecs[i] != NULL; i++) {
        if (strcmp(kv_codecs[i]->name, name) == 0) return kv_codecs[i];
    }
    return NULL;
}
