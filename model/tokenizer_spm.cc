/* model/tokenizer_spm.cc - see tokenizer_spm.h. The only C++ of the program, and the only include of
 * SentencePiece. Every entry ends exceptions here: C frames above must never be unwound.
 *
 * One limit is protobuf's: when memory ends while it builds a message, it crashes on the half-built
 * one instead of throwing. So the memory that a call may need is asked for first, and given back; what
 * the sum of other threads takes in between remains a risk. */
#include "model/tokenizer_spm.h"

#include <climits>
#include <cstdlib>
#include <new>
#include <sentencepiece_processor.h>
#include <string>
#include <vector>

/* Exported by the library, declared in a header that Debian does not install. */
namespace sentencepiece
{
namespace logging
{
void SetMinLogLevel(int level);
}
} // namespace sentencepiece

struct spm {
    sentencepiece::SentencePieceProcessor processor;
};

enum { LOG_FATAL_ONLY = 3 };

/* Measured at most: 262 bytes for a byte of text; a model's file grows about sixfold. */
enum { MEMORY_PER_BYTE = 512, MEMORY_LEAST = 1 << 16 };

static bool memory_is_there(size_t n_bytes)
{
    if (n_bytes > (SIZE_MAX - MEMORY_LEAST) / MEMORY_PER_BYTE) return false;
    void *const probe = std::malloc(n_bytes * MEMORY_PER_BYTE + MEMORY_LEAST);
    std::free(probe);
    return probe != nullptr;
}

/* Of two normalizer_spec in one message the fields of the second count: this one says add_dummy_prefix = false. */
static const char bare_spec[] = "\x1a\x02\x18\x00";

err_t spm_open(const void *model, size_t model_bytes, bool bare, spm **out)
{
    *out = nullptr;
    spm *s = nullptr;
    if (!memory_is_there(model_bytes)) return ERR_NO_MEMORY;
    try {
        sentencepiece::logging::SetMinLogLevel(LOG_FATAL_ONLY);
        s = new spm;
        std::string bytes(static_cast<const char *>(model), model_bytes);
        if (bare) bytes.append(bare_spec, sizeof bare_spec - 1);
        const sentencepiece::util::Status status = s->processor.LoadFromSerializedProto(bytes);
        if (!status.ok() || s->processor.GetPieceSize() <= 0) {
            delete s;
            return ERR_BAD_MODEL;
        }
    } catch (const std::bad_alloc &) {
        delete s;
        return ERR_NO_MEMORY;
    } catch (...) {
        delete s;
        return ERR_BAD_MODEL;
    }
    *out = s;
    return ERR_OK;
}

void spm_close(spm *s)
{
    delete s;
}

uint32_t spm_n_vocab(const spm *s)
{
    return static_cast<uint32_t>(s->processor.GetPieceSize());
}

int64_t spm_bos(const spm *s)
{
    return s->processor.bos_id();
}

int64_t spm_eos(const spm *s)
{
    return s->processor.eos_id();
}

spm_kind spm_piece(const spm *s, uint32_t id, const char **bytes, size_t *n_bytes)
{
    const int i = static_cast<int>(id);
    const std::string &piece = s->processor.IdToPiece(i);
    *bytes = piece.data();
    *n_bytes = piece.size();
    if (s->processor.IsByte(i)) return SPM_BYTE;
    if (s->processor.IsControl(i)) return SPM_CONTROL;
    return s->processor.IsUnknown(i) ? SPM_UNKNOWN : SPM_TEXT;
}

err_t spm_encode(const spm *s, const char *text, size_t n_bytes, size_t n_front, uint32_t **ids,
                 size_t *n_ids)
{
    if (!memory_is_there(n_bytes)) return ERR_NO_MEMORY;
    try {
        std::vector<int> found;
        if (!s->processor.Encode(absl::string_view(text, n_bytes), &found).ok())
            return ERR_BAD_REQUEST;
        const size_t n = n_front + found.size();
        uint32_t *const array = static_cast<uint32_t *>(std::malloc((n + 1) * sizeof *array));
        if (array == nullptr) return ERR_NO_MEMORY;
        for (size_t i = 0; i < found.size(); i++)
            array[n_front + i] = static_cast<uint32_t>(found[i]);
        *ids = array;
        *n_ids = n;
    } catch (const std::bad_alloc &) {
        return ERR_NO_MEMORY;
    } catch (...) {
        return ERR_BAD_REQUEST;
    }
    return ERR_OK;
}
