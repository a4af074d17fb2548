/* service/api_chat.c - from a chat to its prompt. See api_call.h.
 *
 * continue_final_message cuts what the template puts behind the last message, which is found in the rendered text
 * as transformers does: its last occurrence, without the white space around it that templates like to trim. */
#include "base/check.h"
#include "service/api_call.h"
#include "service/chat_template.h"

#include <stdlib.h>
#include <string.h>

static bool is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static void reverse_into(const char *from, size_t n_bytes, char *out)
{
    for (size_t i = 0; i < n_bytes; i++)
        out[i] = from[n_bytes - 1 - i];
}

/* The last place of `part` in `text`, both backwards: a single search, which memmem does in linear time
 * whatever a client sends. False without memory; *found is then untouched, else n_bytes means nowhere. */
static bool find_last(const char *text, size_t n_bytes, const char *part, size_t part_bytes,
                      size_t *found)
{
    char *backwards = malloc(n_bytes + part_bytes + 1);
    if (backwards == NULL) return false;
    reverse_into(text, n_bytes, backwards);
    reverse_into(part, part_bytes, backwards + n_bytes);
    const char *at = memmem(backwards, n_bytes, backwards + n_bytes, part_bytes);
    *found =
        at == NULL || part_bytes == 0 ? n_bytes : n_bytes - (size_t)(at - backwards) - part_bytes;
    free(backwards);
    return true;
}

/* Ends the prompt where the last message ends. */
static bool cut_behind_last(const api_chat *chat, api_prompt *prompt, api_error *error)
{
    const char *last = chat->last;
    size_t begin = chat->last_bytes - chat->tail_bytes, end = chat->last_bytes, at;
    while (begin < end && is_space(last[begin]))
        begin++;
    while (end > begin && is_space(last[end - 1]))
        end--;
    if (!find_last(prompt->text, prompt->text_bytes, last + begin, end - begin, &at))
        return api_refuse(error, API_FAULT_MEMORY, NULL, "out of memory");
    if (at == prompt->text_bytes) {
        return api_refuse(error, API_FAULT_REQUEST, "continue_final_message",
                          "continue_final_message: the chat template does not show the last "
                          "message as it is");
    }
    const size_t whole = chat->last_bytes - begin;
    const bool keeps_tail =
        whole <= prompt->text_bytes - at && memcmp(prompt->text + at, last + begin, whole) == 0;
    prompt->text_bytes = at + (keeps_tail ? whole : end - begin);
    prompt->text[prompt->text_bytes] = '\0';
    return true;
}

bool api_chat_render(const api_context *api, const api_chat *chat, api_prompt *out,
                     api_error *error)
{
    err_info info = {0};
    const char *fault = chat_template_fault(api->chat);
    if (fault != NULL) return api_refuse(error, API_FAULT_REQUEST, NULL, "%s", fault);
    if (chat->tools != NULL && !chat_template_shows_tools(api->chat)) {
        return api_refuse(error, API_FAULT_UNSUPPORTED, "tools",
                          "tools: the model's chat template has no place for them");
    }
    const err_t err = chat_template_render(api->chat, chat->variables, api->text_bytes_max,
                                           &out->text, &out->text_bytes, &info);
    if (err == ERR_NO_MEMORY) return api_refuse(error, API_FAULT_MEMORY, NULL, "out of memory");
    if (err != ERR_OK) {
        return api_refuse(error, API_FAULT_REQUEST, "messages", "messages: the chat template: %s",
                          info.message);
    }
    return !chat->continues || cut_behind_last(chat, out, error);
}
