/* tests/model/temp_dir.c - see temp_dir.h. */
#include "tests/model/temp_dir.h"

#include <check.h>
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void temp_dir_open(temp_dir *out)
{
    const char *const base = getenv("TMPDIR");
    (void)snprintf(out->path, sizeof out->path, "%.200s/pikv-test-XXXXXX",
                   base != NULL ? base : P_tmpdir);
    ck_assert_ptr_nonnull(mkdtemp(out->path));
}

const char *temp_path(const temp_dir *dir, const char *name)
{
    static char path[1024];
    (void)snprintf(path, sizeof path, "%s/%s", dir->path, name);
    return path;
}

void temp_dir_close(const temp_dir *dir)
{
    DIR *const d = opendir(dir->path);
    ck_assert_ptr_nonnull(d);
    for (struct dirent *entry; (entry = readdir(d)) != NULL;) {
        const char *const path = temp_path(dir, entry->d_name);
        if (entry->d_name[0] != '.' && unlink(path) != 0) (void)rmdir(path);
    }
    closedir(d);
    (void)rmdir(dir->path);
}

void temp_write(const temp_dir *dir, const char *name, const void *bytes, size_t n_bytes)
{
    FILE *const file = fopen(temp_path(dir, name), "wb");
    ck_assert_ptr_nonnull(file);
    ck_assert(fwrite(bytes, 1, n_bytes, file) == n_bytes);
    ck_assert(fclose(file) == 0);
}

void temp_write_text(const temp_dir *dir, const char *name, const char *text)
{
    temp_write(dir, name, text, strlen(text));
}

void temp_write_tensors(const temp_dir *dir, const char *name, const char *header,
                        size_t data_bytes)
{
    const size_t header_bytes = strlen(header);
    uint8_t *const file = malloc(8 + header_bytes + data_bytes);
    ck_assert_ptr_nonnull(file);
    for (int i = 0; i < 8; i++)
        file[i] = (uint8_t)((uint64_t)header_bytes >> (8 * i));
    memcpy(file + 8, header, header_bytes);
    for (size_t i = 0; i < data_bytes; i++)
        file[8 + header_bytes + i] = (uint8_t)i;
    temp_write(dir, name, file, 8 + header_bytes + data_bytes);
    free(file);
}

char *temp_read(const char *path, size_t *n_bytes)
{
    FILE *const file = fopen(path, "rb");
    ck_assert_msg(file != NULL, "%s", path);
    ck_assert(fseek(file, 0, SEEK_END) == 0);
    const long n = ftell(file);
    ck_assert(n >= 0);
    rewind(file);
    char *const text = calloc(1, (size_t)n + 1);
    ck_assert_ptr_nonnull(text);
    ck_assert(fread(text, 1, (size_t)n, file) == (size_t)n);
    fclose(file);
    *n_bytes = (size_t)n;
    return text;
}
