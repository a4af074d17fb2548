/* service/api_reply.h - the replies of POST /v1/completions and /v1/chat/completions as JSON, byte for byte.
 *
 * Pure: pieces of choices in, documents out. A piece is a choice's part of one document: all of it in
 * a plain reply, what is new in a chunk of a stream. Everything is borrowed for the call.
 *
 * What differs between the two is a row of a table, api_shape: a completion's chunk is a piece, a chat's pieces are
 * cut up first, since the role comes in a chunk of its own and so does the end.
 *
 * Log-probabilities of a completion have the legacy shape: four arrays of equal length. The numbers of
 * `token_logprobs` and `top_logprobs` are printed from the same float by the same writer, so that a
 * client may compare them for equality (lm-eval does, to see whether a token was the greedy one). A
 * map keyed by text cannot hold two tokens of one text (pieces of characters often look alike): the
 * later one gets the key `token_id:N`, so none is lost. */
#ifndef SERVICE_API_REPLY_H
#define SERVICE_API_REPLY_H

#include "kvcache/kv_methods.h"
#include "kvcache/kv_stats.h"
#include "model/sampler.h"
#include "model/tokenizer.h"
#include "service/session.h"

/* One position of the four arrays. */
typedef struct api_token_score {
    uint32_t token;
    float logprob;
    const sampler_entry *top; /* [n_top], falling; the token itself may be missing */
    uint32_t n_top;
    bool is_unscored;   /* the first token of a prompt: null in both arrays */
    bool drops_space;   /* the space that the tokenizer puts before a text is not part of it */
    size_t text_offset; /* in characters, from the beginning of the choice's text */
} api_token_score;

/* What is new of a call of a tool. */
typedef struct api_call_delta {
    size_t index;   /* of the call in its choice */
    const char *id; /* NULL: it was sent, and the name with it */
    const char *name;
    size_t name_bytes;
    const char *arguments; /* [arguments_bytes] */
    size_t arguments_bytes;
} api_call_delta;

typedef struct api_piece {
    uint32_t index; /* of the choice */
    bool is_first;  /* nothing of the choice was sent before */
    const char
        *echo; /* [echo_bytes] the prompt, or a chat's last message, before the text; NULL: none */
    size_t echo_bytes;
    const char *text; /* [text_bytes] */
    size_t text_bytes;
    const api_call_delta *calls; /* [n_calls] */
    size_t n_calls;
    const api_token_score *scores; /* [n_scores]; NULL: logprobs is null */
    size_t n_scores;
    const char *finish;    /* "stop", "length", "tool_calls"; NULL: null */
    const char *stop_text; /* [stop_text_bytes] the stop string that matched, or NULL */
    size_t stop_text_bytes;
    int64_t stop_token;         /* the stop id that matched, or -1 */
    const uint32_t *prompt_ids; /* [n_prompt_ids]; NULL: not asked for, or sent already */
    size_t n_prompt_ids;
    const uint32_t *token_ids; /* [n_token_ids] */
    size_t n_token_ids;
    bool shows_ids; /* return_token_ids */
} api_piece;

typedef struct api_usage {
    uint64_t n_prompt, n_output, n_cached; /* tokens */
    const kv_methods *methods; /* of all sequences; NULL: the request did not ask for `kv` */
    kv_usage kv;               /* of all sequences together; valid with methods */
} api_usage;

typedef struct api_shape api_shape;
extern const api_shape api_shape_completion, api_shape_chat;

/* What all documents of one request have in common. */
typedef struct api_envelope {
    const char *id;
    int64_t created;
    const char *model;
    const char *fingerprint;
    const tokenizer *tokenizer;
    bool tokens_as_ids; /* tokens are printed as token_id:N */
    const char *role;   /* of a chat's message; static */
    const api_shape *shape;
} api_envelope;

/* All return a heap string in one line, its length in *n_bytes; NULL without memory. */
char *api_reply_document(const api_envelope *envelope, const api_piece *pieces, size_t n_pieces,
                         const api_usage *usage, size_t *n_bytes);

/* What a piece becomes in a stream: at most API_PARTS_MAX pieces, a chunk each. They borrow from `piece`, and
 * none is to be freed. */
enum { API_PARTS_MAX = 4 };
size_t api_reply_split(const api_envelope *envelope, const api_piece *piece,
                       api_piece parts[API_PARTS_MAX]);

/* With `has_usage` the chunk says "usage":null, as OpenAI's do when usage was asked for. */
char *api_reply_chunk(const api_envelope *envelope, const api_piece *piece, bool has_usage,
                      size_t *n_bytes);
char *api_reply_usage_chunk(const api_envelope *envelope, const api_usage *usage, size_t *n_bytes);

#endif
