#include "web/static_file.h"

#include <string.h>

/* The page takes scripts, styles and pictures from its own server and talks to nobody else. */
static const char policy[] =
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'";

const static_file *static_file_find(const char *name)
{
    for (size_t i = 0; i < n_static_files; i++) {
        if (strcmp(static_files[i].name, name) == 0) return &static_files[i];
    }
    return NULL;
}

/* If-None-Match is a list of quoted tags or a star; a tag holds no quote, so it is found as a text. */
static bool has_already(const http_exchange *ex, const static_file *file)
{
    const char *tags = http_header(ex, "If-None-Match");
    return tags != NULL && (strstr(tags, file->etag) != NULL || strcmp(tags, "*") == 0);
}

err_t static_file_reply(http_exchange *ex, const static_file *file)
{
    const http_field fields[] = {
        {"ETag", file->etag},
        {"Cache-Control", "no-cache"},
        {"Content-Security-Policy", policy},
        {"X-Content-Type-Options", "nosniff"},
        {"Referrer-Policy", "no-referrer"},
    };
    /* A 304 has the length of the body that it leaves out; the library knows to leave it out. */
    return http_reply(ex, &(http_response){.status = has_already(ex, file) ? 304 : 200,
                                           .content_type = file->content_type,
                                           .fields = fields,
                                           .n_fields = sizeof fields / sizeof fields[0],
                                           .body = file->bytes,
                                           .body_bytes = file->n_bytes});
}
