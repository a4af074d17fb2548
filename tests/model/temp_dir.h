/* tests/model/temp_dir.h - a folder of files for one test. Helpers fail the running test themselves. */
#ifndef TESTS_MODEL_TEMP_DIR_H
#define TESTS_MODEL_TEMP_DIR_H

#include <stddef.h>

typedef struct temp_dir {
    char path[256];
} temp_dir;

void temp_dir_open(temp_dir *out);
void temp_dir_close(const temp_dir *dir); /* removes the files and the folder */

/* DIR/NAME into a static buffer, good until the next call. */
const char *temp_path(const temp_dir *dir, const char *name);

void temp_write(const temp_dir *dir, const char *name, const void *bytes, size_t n_bytes);
void temp_write_text(const temp_dir *dir, const char *name, const char *text);

/* A .safetensors file: length, header, and data_bytes bytes of the pattern 0 1 2 ... */
void temp_write_tensors(const temp_dir *dir, const char *name, const char *header,
                        size_t data_bytes);

/* The whole of a file into fresh memory with a NUL behind. */
char *temp_read(const char *path, size_t *n_bytes);

#endif
