/* web/static_file.h - the files of web/static, which CMake puts into the program (cmake/embed.cmake).
 *
 * They are a page for browsers, so each goes out with what keeps a browser honest: its type and no guessing
 * about it, a policy that lets it load from here alone and run no inline script, and no framing by others.
 * A browser may keep a copy but asks each time whether it is still the one (ETag, 304), so that a new
 * version of the program is seen at once.
 *
 * Threads: any; everything is constant. */
#ifndef WEB_STATIC_FILE_H
#define WEB_STATIC_FILE_H

#include "web/http.h"

typedef struct static_file {
    const char *name; /* in web/static: "index.html" */
    const char *content_type;
    const char *etag; /* with its quotes: hash of the bytes */
    const unsigned char *bytes;
    size_t n_bytes;
} static_file;

extern const static_file static_files[]; /* [n_static_files] */
extern const size_t n_static_files;

const static_file *static_file_find(const char *name); /* NULL if there is none */

/* 200 with the bytes, or 304 if the request says that it has them. */
err_t static_file_reply(http_exchange *ex, const static_file *file);

#endif
