/* service/api_page.c - the dashboard: GET / and the files that it asks for.
 *
 * The page holds no data. What it shows it gets from the other routes, with the key that its user gives
 * it, so it may be public itself. */
#include "service/api.h"
#include "web/static_file.h"

#include <string.h>

static void reply(api_context *api, http_exchange *ex, const char *name)
{
    const static_file *file = static_file_find(name);
    if (file != NULL) {
        (void)static_file_reply(ex, file);
        return;
    }
    api_error error = {0};
    api_refuse(&error, API_FAULT_PATH, NULL, "The page has no file %.*s.", API_ECHO_BYTES, name);
    api_reply_error(api, ex, &error);
}

void api_page(void *ctx, http_exchange *ex)
{
    reply(ctx, ex, "index.html");
}

void api_page_file(void *ctx, http_exchange *ex)
{
    reply(ctx, ex, http_path(ex) + strlen("/page/"));
}
