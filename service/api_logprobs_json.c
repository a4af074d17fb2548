/* service/api_logprobs_json.c - see api_logprobs_json.h. */
#include "service/api_logprobs_json.h"

#include "service/api_fields_json.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* What stands for minus infinity, which JSON cannot say. Clients know this number. */
static const double LOGPROB_MIN = -9999.0;

enum { TOKEN_ID_BYTES = 32 };

static json_t *token_id_text(uint32_t token)
{
    char text[TOKEN_ID_BYTES];
    snprintf(text, sizeof text, "token_id:%" PRIu32, token);
    return json_string_nocheck(text);
}

static json_t *token_text(const api_envelope *envelope, uint32_t token, bool drops_space)
{
    if (envelope->tokens_as_ids) return token_id_text(token);
    const tok_piece piece = tokenizer_piece(envelope->tokenizer, token, true);
    const bool is_shorter = drops_space && piece.n_bytes > 0 && piece.bytes[0] == ' ';
    return api_text_new(piece.bytes + (is_shorter ? 1 : 0), piece.n_bytes - (is_shorter ? 1 : 0));
}

static json_t *logprob_number(float logprob)
{
    const double x = (double)logprob;
    return json_real(x >= LOGPROB_MIN ? x : LOGPROB_MIN); /* also for NaN */
}

/* map[text of token] = number, or under the token's id where the text is taken. */
static bool put_top(const api_envelope *envelope, json_t *map, sampler_entry entry,
                    bool drops_space)
{
    json_t *key = token_text(envelope, entry.token, drops_space);
    if (key == NULL) return false;
    /* jansson's keys end at a NUL: such a text would collide with a shorter one. */
    const char *text = json_string_value(key);
    const bool has_nul = strlen(text) != json_string_length(key);
    if (has_nul || json_object_get(map, text) != NULL) {
        json_decref(key);
        key = token_id_text(entry.token);
        if (key == NULL) return false;
    }
    const bool is_put = api_put(map, json_string_value(key), logprob_number(entry.logprob));
    json_decref(key);
    return is_put;
}

/* The k likeliest and the token itself: up to k + 1 keys. */
static json_t *top_map(const api_envelope *envelope, const api_token_score *score)
{
    bool has_token = false;
    json_t *map = json_object();
    bool is_ok = map != NULL;
    for (uint32_t i = 0; is_ok && i < score->n_top; i++) {
        const bool is_token = score->top[i].token == score->token;
        has_token = has_token || is_token;
        is_ok = put_top(envelope, map, score->top[i], is_token && score->drops_space);
    }
    if (is_ok && !has_token) {
        is_ok = put_top(envelope, map, (sampler_entry){score->token, score->logprob},
                        score->drops_space);
    }
    if (is_ok) return map;
    json_decref(map);
    return NULL;
}

static bool append_score(const api_envelope *envelope, const api_token_score *score,
                         json_t *const arrays[4])
{
    const bool has_number = !score->is_unscored;
    return json_array_append_new(arrays[0],
                                 token_text(envelope, score->token, score->drops_space)) == 0 &&
           json_array_append_new(arrays[1],
                                 has_number ? logprob_number(score->logprob) : json_null()) == 0 &&
           json_array_append_new(arrays[2], has_number ? top_map(envelope, score) : json_null()) ==
               0 &&
           json_array_append_new(arrays[3], json_integer((json_int_t)score->text_offset)) == 0;
}

json_t *api_logprobs_new(const api_envelope *envelope, const api_token_score *scores,
                         size_t n_scores)
{
    static const char *const names[4] = {"tokens", "token_logprobs", "top_logprobs", "text_offset"};
    json_t *arrays[4] = {NULL};
    json_t *object = json_object();
    bool is_ok = object != NULL;
    for (size_t i = 0; is_ok && i < 4; i++) {
        arrays[i] = json_array();
        is_ok = api_put(object, names[i], arrays[i]);
    }
    for (size_t i = 0; is_ok && i < n_scores; i++)
        is_ok = append_score(envelope, &scores[i], arrays);
    if (is_ok) return object;
    json_decref(object);
    return NULL;
}

/* ---- of a chat ------------------------------------------------------------------------------------------- */

static json_t *token_bytes(const api_envelope *envelope, uint32_t token)
{
    const tok_piece piece = tokenizer_piece(envelope->tokenizer, token, true);
    json_t *bytes = json_array();
    for (size_t i = 0; bytes != NULL && i < piece.n_bytes; i++) {
        if (json_array_append_new(bytes, json_integer((unsigned char)piece.bytes[i])) == 0)
            continue;
        json_decref(bytes);
        return NULL;
    }
    return bytes;
}

/* {token, logprob, bytes} */
static json_t *entry_new(const api_envelope *envelope, sampler_entry entry)
{
    return json_pack("{s:o,s:o,s:o}", "token", token_text(envelope, entry.token, false), "logprob",
                     logprob_number(entry.logprob), "bytes", token_bytes(envelope, entry.token));
}

static json_t *item_new(const api_envelope *envelope, const api_token_score *score)
{
    json_t *item = entry_new(envelope, (sampler_entry){score->token, score->logprob});
    json_t *top = json_array();
    bool is_ok = api_put(item, "top_logprobs", top); /* releases `top` if there is no item */
    for (uint32_t i = 0; is_ok && i < score->n_top; i++)
        is_ok = json_array_append_new(top, entry_new(envelope, score->top[i])) == 0;
    if (is_ok) return item;
    json_decref(item);
    return NULL;
}

json_t *api_chat_logprobs_new(const api_envelope *envelope, const api_token_score *scores,
                              size_t n_scores)
{
    json_t *object = json_object();
    json_t *content = json_array();
    bool is_ok = api_put(object, "content", content);
    for (size_t i = 0; is_ok && i < n_scores; i++)
        is_ok = json_array_append_new(content, item_new(envelope, &scores[i])) == 0;
    is_ok = is_ok && api_put(object, "refusal", json_null());
    if (is_ok) return object;
    json_decref(object);
    return NULL;
}
