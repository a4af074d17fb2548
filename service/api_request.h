/* service/api_request.h - the bodies of POST /v1/completions and /v1/chat/completions, read and checked.
 *
 * Reading needs no server, no model and no tokenizer, only limits: what a fuzzer drives. Every number
 * passes one checked reader (api_fields_json.h), every list has a cap, and a request that has been
 * read refers to nothing outside itself.
 *
 * Accepted and ignored: `user`, fields that nobody knows. Refused although ignoring them would be
 * easier: known options that would change the output and that this server lacks. */
#ifndef SERVICE_API_REQUEST_H
#define SERVICE_API_REQUEST_H

#include "kvcache/kv_methods.h"
#include "model/generation_config.h"
#include "model/sampler.h"
#include "service/api_error.h"
#include "service/chat_content.h"
#include "service/session.h"
#include "service/tools/tool_reader.h"

enum {
    API_N_MAX = 128,            /* n */
    API_BIAS_MAX = 1024,        /* entries of logit_bias */
    API_TOKENS_MAX = INT32_MAX, /* of max_tokens */
    API_SALT_BYTES_MAX = 4096,  /* cache_salt: 1024 characters */
    API_REQUEST_ID_BYTES = 129, /* with the NUL */
    API_NESTING_MAX = 16384,    /* arrays and objects in a body: each costs 100 bytes and more */
    API_VALUES_MAX = 1 << 21    /* commas in a body */
};

/* What the server allows. */
typedef struct api_limits {
    uint32_t n_vocab;
    uint32_t n_logprobs_max;        /* <= SAMPLER_LOGPROBS_MAX */
    uint32_t n_choices_max;         /* n x prompts */
    const char *const *model_names; /* [n_model_names] */
    size_t n_model_names;
    const kv_config *kv;                 /* the server's settings: defaults and limits of `kv` */
    chat_content content;                /* of messages, as the template wants it */
    const tool_parser *tools;            /* NULL: chats with tools are refused */
    const generation_config *generation; /* defaults of sampling; NULL: those of OpenAI's API */
} api_limits;

/* A prompt is text until it has been tokenised, or ids from the start. */
typedef struct api_prompt {
    char *text; /* NUL-terminated, may hold NULs; NULL when the client sent ids */
    size_t text_bytes;
    uint32_t *ids; /* [n_ids]; NULL for text that has not been tokenised */
    size_t n_ids;
} api_prompt;

/* What a chat has instead of prompts: variables of the template that makes one of them. */
struct json_t;
typedef struct api_chat {
    struct json_t *variables; /* owned; NULL: not a chat. messages, add_generation_prompt ... */
    const char *role;         /* of the message that answers; static */
    const tool_parser *tools; /* finds calls in the answer; NULL: it is not looked for any */
    bool one_call;            /* parallel_tool_calls is false: only the first counts */
    bool continues; /* continue_final_message: the prompt ends where the last message does */
    bool echo;      /* the answer begins with the last message */
    char *last;     /* the text of the last message, owned; NULL unless one of the two */
    size_t last_bytes;
    size_t tail_bytes; /* of it, what the template shows in one piece: all, or the last part */
} api_chat;

typedef struct completion_request {
    api_chat chat;
    api_prompt *prompts; /* [n_prompts], owned */
    size_t n_prompts;
    uint32_t n;          /* choices of each prompt */
    uint32_t max_tokens; /* of a completion 16, of a chat API_TOKENS_MAX, unless has_max_tokens */
    bool has_max_tokens;
    const char *max_tokens_field; /* that said so; static */
    uint32_t min_tokens;
    bool echo;
    sampler_params sampling; /* n_logprobs -1 without logprobs; bias is owned; choice is unset */
    bool has_seed;
    bool stream, include_usage;
    char *stops[SESSION_STOPS_MAX]; /* [n_stops], owned */
    size_t stop_bytes[SESSION_STOPS_MAX];
    uint32_t n_stops;
    uint32_t stop_ids[SESSION_STOP_IDS_MAX];
    uint32_t n_stop_ids;
    bool include_stop; /* include_stop_str_in_output */
    bool ignore_eos;
    bool skip_special; /* skip_special_tokens */
    bool hide_eos;     /* the end token gives no text even where special tokens do */
    bool
        add_special; /* add_special_tokens: BOS before a prompt of text; a chat's template has its own */
    bool return_ids;      /* return_token_ids */
    bool tokens_as_ids;   /* return_tokens_as_token_ids */
    bool truncates;       /* truncate_prompt_tokens was given */
    uint32_t n_truncated; /* prompt tokens kept at the end; 0: as many as fit (-1 in the request) */
    char *salt;           /* cache_salt, owned; NULL: none */
    size_t salt_bytes;
    bool has_kv;
    kv_methods kv;                         /* valid with has_kv */
    char request_id[API_REQUEST_ID_BYTES]; /* "" if none or not fit for a header */
} completion_request;

/* False leaves the reason in `error`; *out is zeroed then and owns nothing. */
bool api_completion_parse(const api_limits *limits, const char *body, size_t body_bytes,
                          completion_request *out, api_error *error);
/* The same for /v1/chat/completions: the one prompt is empty until the template has been rendered. */
bool api_chat_parse(const api_limits *limits, const char *body, size_t body_bytes,
                    completion_request *out, api_error *error);
void api_completion_deinit(completion_request *request); /* zeroed is fine */
void api_chat_deinit(api_chat *chat);                    /* zeroed is fine */

/* Refuses methods for a reason given in terms of settings, in terms of the request. */
bool api_kv_refuse(api_error *error, const err_info *info);

#endif
