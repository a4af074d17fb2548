#include "web/sse.h"

#include "base/check.h"

#include <string.h>

enum { FIELDS_MAX = 16 };

err_t sse_write(http_exchange *ex, const char *line, size_t bytes)
{
    assert(memchr(line, '\n', bytes) == NULL);
    assert(memchr(line, '\r', bytes) == NULL); /* ends a line too, to a parser of events */
    TRY(http_stream_write(ex, "data: ", 6));
    TRY(http_stream_write(ex, line, bytes));
    return http_stream_write(ex, "\n\n", 2);
}

err_t sse_write_done(http_exchange *ex)
{
    return sse_write(ex, "[DONE]", 6);
}

err_t sse_begin(http_exchange *ex, const http_field *fields, size_t n_fields)
{
    http_field all[FIELDS_MAX] = {
        {"Cache-Control", "no-cache"},
        {"X-Accel-Buffering", "no"}, /* nginx would collect events into blocks */
    };
    assert(n_fields <= FIELDS_MAX - 2);
    if (n_fields > 0) memcpy(all + 2, fields, n_fields * sizeof *fields);
    const http_response response = {.status = 200,
                                    .content_type = "text/event-stream",
                                    .fields = all,
                                    .n_fields = n_fields + 2};
    return http_stream_begin(ex, &response);
}
