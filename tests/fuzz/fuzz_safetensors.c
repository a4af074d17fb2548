/* Fuzz target: the header of a .safetensors file, from the first byte of its JSON.
 *
 * The first four bytes of an input are the number of data bytes that follow the header; the rest is
 * the header. Whatever it says, the answer is
 * ERR_OK or an error with a message of one line. */
#include "model/safetensors.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes)
{
    uint32_t data_bytes = 0;
    if (n_bytes < sizeof data_bytes) return 0;
    memcpy(&data_bytes, data, sizeof data_bytes);
    const size_t header_bytes = n_bytes - sizeof data_bytes;
    char *const header =
        malloc(header_bytes > 0 ? header_bytes : 1); /* exact: an over-read shows */
    if (header == NULL) return 0;
    memcpy(header, data + sizeof data_bytes, header_bytes);

    err_info info = {0};
    const err_t err = tensor_header_check(header, header_bytes, data_bytes, &info);
    assert(err == info.code);
    if (err != ERR_OK) {
        assert(err == ERR_BAD_MODEL || err == ERR_NO_MEMORY);
        assert(strchr(info.message, '\n') == NULL);
        assert(info.message[0] != '\0');
    }
    free(header);
    return 0;
}
