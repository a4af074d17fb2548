/* service/process_words.c - see process_words.h. */
#include "service/process_words.h"

#include "base/config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PATH_BYTES = 64, TEXT_BYTES_MAX = 1 << 20 };

static err_t read_text(process_words *out, const char *path, size_t *n_bytes, err_info *info)
{
    FILE *file = fopen(path, "re");
    if (file == NULL) return err_set(info, ERR_IO, "%s: %s", path, strerror(errno));
    out->text = malloc(TEXT_BYTES_MAX + 1);
    *n_bytes = out->text != NULL ? fread(out->text, 1, TEXT_BYTES_MAX, file) : 0;
    fclose(file);
    if (out->text == NULL) return err_set(info, ERR_NO_MEMORY, "%s: out of memory", path);
    out->text[*n_bytes] = '\0';
    return ERR_OK;
}

err_t process_words_init(process_words *out, const char *pid, err_info *info)
{
    char path[PATH_BYTES];
    uint64_t number;
    size_t n_bytes = 0;
    *out = (process_words){0};
    if (cfg_parse_u64(pid, &number) != ERR_OK)
        return err_set(info, ERR_BAD_CONFIG, "pid: \"%.40s\" is not a number", pid);
    snprintf(path, sizeof path, "/proc/%" PRIu64 "/cmdline", number);
    TRY(read_text(out, path, &n_bytes, info));
    for (size_t i = 0; i < n_bytes; i++)
        out->argc += out->text[i] == '\0';
    out->argv = calloc((size_t)out->argc + 1, sizeof *out->argv);
    if (out->argv == NULL) {
        free(out->text);
        return err_set(info, ERR_NO_MEMORY, "%s: out of memory", path);
    }
    char *word = out->text;
    for (int i = 0; i < out->argc; i++, word += strlen(word) + 1)
        out->argv[i] = word;
    return ERR_OK;
}

void process_words_deinit(process_words *words)
{
    free(words->argv);
    free(words->text);
    *words = (process_words){0};
}
