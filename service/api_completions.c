/* service/api_completions.c - POST /v1/completions. What happens is in api_call.h. */
#include "service/api_call.h"

void api_completions(void *ctx, http_exchange *ex)
{
    api_context *api = ctx;
    api_error error = {0};
    api_call *call = api_is_serving(api, &error) ? api_call_open(api, ex, &error) : NULL;
    if (call == NULL || !api_call_submit(call, &error)) {
        api_call_close(call);
        api_reply_error(api, ex, &error);
        return;
    }
    /* Sessions may have finished already: the poll that follows sees whatever is there. */
    http_defer(
        ex, &(http_deferral){
                .poll = api_call_poll, .gone = api_call_gone, .done = api_call_done, .user = call});
}
