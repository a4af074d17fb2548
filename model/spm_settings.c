/* model/spm_settings.c - see spm_settings.h.
 *
 * A protocol buffer is a list of fields: a varint key = number << 3 | wire type, then a varint (0),
 * 8 bytes (1), a length and as many bytes (2), or 4 bytes (5). A message field is type 2 with a
 * message inside. Of repeated single fields the last counts. */
#include "model/spm_settings.h"

#include <string.h>

enum { /* wire types, and field numbers of sentencepiece_model.proto */
       WIRE_VARINT = 0,
       WIRE_8_BYTES = 1,
       WIRE_BYTES = 2,
       WIRE_4_BYTES = 5,
       MODEL_TRAINER_SPEC = 2,
       MODEL_NORMALIZER_SPEC = 3,
       MODEL_DENORMALIZER_SPEC = 5,
       TRAINER_WHITESPACE_AS_SUFFIX = 24,
       TRAINER_UNK_SURFACE = 44,
       NORMALIZER_CHARSMAP = 2,
       NORMALIZER_DUMMY_PREFIX = 3,
       NORMALIZER_REMOVE_EXTRA = 4
};

typedef struct view {
    const uint8_t *at, *end;
} view;

typedef struct field {
    uint64_t number;
    uint32_t wire;
    uint64_t value; /* WIRE_VARINT */
    view bytes;     /* WIRE_BYTES */
} field;

static err_t read_varint(view *in, uint64_t *out)
{
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
        if (in->at == in->end) return ERR_BAD_MODEL;
        const uint8_t byte = *in->at++;
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) {
            *out = value;
            return ERR_OK;
        }
    }
    return ERR_BAD_MODEL;
}

static err_t read_bytes(view *in, uint64_t n, view *out)
{
    if (n > (uint64_t)(in->end - in->at)) return ERR_BAD_MODEL;
    *out = (view){in->at, in->at + n};
    in->at += n;
    return ERR_OK;
}

static err_t read_field(view *in, field *out)
{
    uint64_t key, n_bytes;
    TRY(read_varint(in, &key));
    *out = (field){.number = key >> 3, .wire = (uint32_t)(key & 7)};
    switch (out->wire) {
    case WIRE_VARINT: return read_varint(in, &out->value);
    case WIRE_8_BYTES: return read_bytes(in, 8, &out->bytes);
    case WIRE_4_BYTES: return read_bytes(in, 4, &out->bytes);
    case WIRE_BYTES: TRY(read_varint(in, &n_bytes)); return read_bytes(in, n_bytes, &out->bytes);
    default: return ERR_BAD_MODEL;
    }
}

static err_t read_trainer(view in, spm_settings *out)
{
    while (in.at < in.end) {
        field f;
        TRY(read_field(&in, &f));
        if (f.number == TRAINER_WHITESPACE_AS_SUFFIX && f.wire == WIRE_VARINT)
            out->suffix_whitespace = f.value != 0;
        if (f.number == TRAINER_UNK_SURFACE && f.wire == WIRE_BYTES) {
            out->unk_surface = (const char *)f.bytes.at;
            out->unk_surface_bytes = (size_t)(f.bytes.end - f.bytes.at);
        }
    }
    return ERR_OK;
}

static err_t read_normalizer(view in, spm_settings *out)
{
    while (in.at < in.end) {
        field f;
        TRY(read_field(&in, &f));
        if (f.number == NORMALIZER_CHARSMAP && f.wire == WIRE_BYTES && f.bytes.at < f.bytes.end)
            out->has_normalizer = true;
        if (f.wire != WIRE_VARINT) continue;
        if (f.number == NORMALIZER_DUMMY_PREFIX) out->add_dummy_prefix = f.value != 0;
        if (f.number == NORMALIZER_REMOVE_EXTRA) out->remove_extra_whitespaces = f.value != 0;
    }
    return ERR_OK;
}

static err_t read_denormalizer(view in, spm_settings *out)
{
    while (in.at < in.end) {
        field f;
        TRY(read_field(&in, &f));
        if (f.number == NORMALIZER_CHARSMAP && f.wire == WIRE_BYTES && f.bytes.at < f.bytes.end)
            out->has_denormalizer = true;
    }
    return ERR_OK;
}

err_t spm_settings_read(const uint8_t *model, size_t model_bytes, spm_settings *out)
{
    static const char default_unk_surface[] = " \xe2\x81\x87 ";
    *out = (spm_settings){.add_dummy_prefix = true,
                          .remove_extra_whitespaces = true,
                          .unk_surface = default_unk_surface,
                          .unk_surface_bytes = sizeof default_unk_surface - 1};
    view in = {model, model + model_bytes};
    while (in.at < in.end) {
        field f;
        TRY(read_field(&in, &f));
        if (f.wire != WIRE_BYTES) continue;
        if (f.number == MODEL_TRAINER_SPEC) TRY(read_trainer(f.bytes, out));
        if (f.number == MODEL_NORMALIZER_SPEC) TRY(read_normalizer(f.bytes, out));
        if (f.number == MODEL_DENORMALIZER_SPEC) TRY(read_denormalizer(f.bytes, out));
    }
    return ERR_OK;
}
