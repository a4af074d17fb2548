/* service/api_completions.c - POST /v1/completions and POST /v1/chat/completions. What happens is in api_call.h. */
#include "service/api_call.h"

static const api_endpoint completions = {.route = "POST /v1/completions",
                                         .id_prefix = "cmpl-",
                                         .prompt_field = "prompt",
                                         .parse = api_completion_parse,
                                         .shape = &api_shape_completion};

static const api_endpoint chats = {.route = "POST /v1/chat/completions",
                                   .id_prefix = "chatcmpl-",
                                   .prompt_field = "messages",
                                   .parse = api_chat_parse,
                                   .shape = &api_shape_chat};

static void serve(api_context *api, const api_endpoint *endpoint, http_exchange *ex)
{
    api_error error = {0};
    api_call *call = api_is_serving(api, &error) ? api_call_open(api, endpoint, ex, &error) : NULL;
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

void api_completions(void *ctx, http_exchange *ex)
{
    serve(ctx, &completions, ex);
}

void api_chat_completions(void *ctx, http_exchange *ex)
{
    serve(ctx, &chats, ex);
}
