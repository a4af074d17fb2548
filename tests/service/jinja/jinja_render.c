/* jinja_render TEMPLATE CONTEXT.json: prints what a chat template makes of a context, for
 * tools/compare_chat_templates.py. Exit status 0: printed; 1: an error, in words on stderr, while
 * rendering; 3: the template was refused when compiled. Without a context: "parts" or "texts", as contents are
 * read. */
#include "service/jinja/jinja.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { FILE_BYTES_MAX = 1 << 24 };

static char *read_file(const char *path, size_t *n_bytes)
{
    char *text = malloc(FILE_BYTES_MAX);
    FILE *file = fopen(path, "rb");
    if (text == NULL || file == NULL) {
        perror(path);
        exit(2);
    }
    *n_bytes = fread(text, 1, FILE_BYTES_MAX, file);
    fclose(file);
    return text;
}

static int print_content(const char *path)
{
    size_t n_bytes;
    char *source = read_file(path, &n_bytes);
    err_info info = {0};
    jinja *template;
    jinja_content content;
    const bool is_ok = jinja_compile(source, n_bytes, &template, &info) == ERR_OK &&
                       jinja_find_content(template, &content) == ERR_OK;
    if (is_ok)
        printf("%s%s\n", content.reads_parts ? "parts" : "texts",
               content.asks_type ? ", asks" : "");
    jinja_free(template);
    free(source);
    return is_ok ? 0 : 3;
}

int main(int argc, char **argv)
{
    if (argc == 2) return print_content(argv[1]);
    if (argc != 3) return 2;
    size_t n_source, n_json, n_text;
    char *source = read_file(argv[1], &n_source), *json = read_file(argv[2], &n_json), *text;
    const jinja_limits limits = {.output_bytes = 64 << 20,
                                 .memory_bytes = 256 << 20,
                                 .steps = 100000000,
                                 .now = (int64_t)time(NULL)};
    err_info info = {0};
    jinja *template;
    json_t *context = json_loadb(json, n_json, JSON_ALLOW_NUL | JSON_REJECT_DUPLICATES, NULL);
    if (context == NULL) return 2;
    int status = 0;
    if (jinja_compile(source, n_source, &template, &info) != ERR_OK) {
        status = 3;
    } else if (jinja_render(template, context, &limits, &text, &n_text, &info) != ERR_OK) {
        status = 1;
    } else {
        fwrite(text, 1, n_text, stdout);
        free(text);
    }
    if (status != 0) fprintf(stderr, "%s: %s\n", err_name(info.code), info.message);
    jinja_free(template);
    json_decref(context);
    free(source);
    free(json);
    return status;
}
