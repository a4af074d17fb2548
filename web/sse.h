/* web/sse.h - frames of server-sent events, as OpenAI's clients expect: `data: <one line>\n\n`. */
#ifndef WEB_SSE_H
#define WEB_SSE_H

#include "web/http.h"

/* `line` holds no line feed (asserted: JSON is dumped compact). */
err_t sse_write(http_exchange *ex, const char *line, size_t bytes) MUST_CHECK;
err_t sse_write_done(http_exchange *ex) MUST_CHECK; /* data: [DONE] */

/* text/event-stream, no-cache, no proxy buffering. */
err_t sse_begin(http_exchange *ex, const http_field *fields, size_t n_fields) MUST_CHECK;

#endif
