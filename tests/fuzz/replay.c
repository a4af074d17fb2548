/* Replays a folder of inputs, and cheap mutations of each, through a libFuzzer entry point, so that
 * what a fuzzer once found stays a test where no fuzzer is built. */
#include "base/random.h"

#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

enum { INPUT_BYTES_MAX = 1 << 20, MUTATIONS = 200 };

static size_t read_file(const char *path, uint8_t *out)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL) return 0;
    const size_t n = fread(out, 1, INPUT_BYTES_MAX, file);
    fclose(file);
    return n;
}

/* Flips, cuts or doubles a piece of the input; the same for the same number. */
static size_t mutate(uint8_t *data, size_t bytes, uint64_t number)
{
    const random_block r = random_at(1, 0, number);
    if (bytes == 0) return 0;
    const size_t at = r.word[0] % bytes;
    switch (r.word[1] % 4) {
    case 0: data[at] ^= (uint8_t)(1u << (r.word[2] % 8)); return bytes;
    case 1: data[at] = (uint8_t)r.word[2]; return bytes;
    case 2: return at;
    default: memmove(data + at / 2, data + at, bytes - at); return bytes - at + at / 2;
    }
}

static void replay(const uint8_t *input, size_t bytes)
{
    /* Exact-size heap copies: one byte of over-read is then visible to AddressSanitizer. */
    for (uint64_t i = 0; i <= MUTATIONS; i++) {
        uint8_t *copy = malloc(bytes > 0 ? bytes : 1);
        if (copy == NULL) abort();
        memcpy(copy, input, bytes);
        size_t n = bytes;
        for (uint64_t j = 0; i > 0 && j <= i % 4; j++)
            n = mutate(copy, n, i * 8 + j);
        uint8_t *exact = malloc(n > 0 ? n : 1);
        if (exact == NULL) abort();
        memcpy(exact, copy, n);
        (void)LLVMFuzzerTestOneInput(exact, n);
        free(exact);
        free(copy);
    }
}

int main(int argc, char **argv)
{
    if (argc != 2) return 2;
    DIR *dir = opendir(argv[1]);
    uint8_t *input = malloc(INPUT_BYTES_MAX);
    if (dir == NULL || input == NULL) return 2;
    size_t n_inputs = 0;
    for (struct dirent *entry = readdir(dir); entry != NULL; entry = readdir(dir)) {
        char path[4096];
        if (entry->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "%s/%s", argv[1], entry->d_name);
        replay(input, read_file(path, input));
        n_inputs++;
    }
    closedir(dir);
    free(input);
    printf("%zu inputs, %d mutations each\n", n_inputs, MUTATIONS);
    return n_inputs > 0 ? 0 : 1;
}
