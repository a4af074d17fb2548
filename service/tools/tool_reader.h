/* service/tools/tool_reader.h - finds the calls of tools in what a model writes, while it writes.
 *
 * Every family of models marks calls in its own way; tool_parser is the table of a way, tool_NAME.c has one each.
 * A reader is given the whole text so far, again and again, and keeps what it has understood: content, and calls, whose
 * arguments grow. What it finds depends on the text alone, never on the pieces in which the text came.
 *
 *   text         I look.\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>
 *   content      I look.
 *   calls        f, {"a": 1}
 *
 * A call counts from the moment that its name and the beginning of its arguments are there, for from then on they
 * are streamed. What breaks before that is content, word for word; of what breaks later the arguments have what came
 * before, and content has the rest. White space beside a call is nobody's; else nothing is lost.
 *
 * Threads: none; a reader belongs to one choice of one request. */
#ifndef SERVICE_TOOLS_TOOL_READER_H
#define SERVICE_TOOLS_TOOL_READER_H

#include "base/error.h"
#include "model/text_buffer.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { TOOL_ID_BYTES = 32, TOOL_DEPTH_MAX = 64 };

typedef struct tool_call {
    char id[TOOL_ID_BYTES];
    char *name; /* [name_bytes], owned, not empty */
    size_t name_bytes;
    size_t begin, end; /* of the arguments in the text, so far */
    char *
        own; /* [own_bytes] the arguments where the text has them in another form; NULL: it has not; owned */
    size_t own_bytes;
    size_t n_told; /* bytes of the arguments that the client has; for the reader's user */
    bool is_told;  /* and that it knows the name */
} tool_call;

/* A value of JSON that is being read. */
typedef struct tool_span {
    uint64_t braces; /* a bit for each level: set for {, clear for [ */
    uint8_t depth;
    bool in_string, is_escaped, is_scalar;
} tool_span;

/* A call as {"name": ..., "arguments": {...}}, keys in any order. */
typedef struct tool_object {
    uint8_t phase, key;
    bool is_first, has_arguments;
    bool is_called; /* reader->calls has it */
    char *name;     /* [name_bytes], until the call has it */
    size_t name_bytes;
    char *own;
    size_t own_bytes;
    size_t begin, end; /* of the value */
    size_t args_begin, args_end;
    tool_span span;
} tool_object;

typedef struct tool_parser tool_parser;

typedef struct tool_reader {
    const tool_parser *parser;
    text_buffer content;
    tool_call *calls; /* [n_calls] of [room] */
    size_t n_calls, room;
    size_t at; /* in the text: all before it is understood */
    /* of what has begun with a marker */
    bool is_inside;
    uint8_t phase;       /* the parser's */
    size_t begin, first; /* of the white space before the marker, and behind the marker */
    size_t kept;         /* behind the last call */
    size_t n_before;     /* calls of earlier markers */
    tool_object object;
} tool_reader;

typedef enum tool_step {
    TOOL_MORE,    /* what is there is not enough */
    TOOL_GOES_ON, /* something was read */
    TOOL_DONE,    /* the marker's last call is read */
    TOOL_BROKEN,  /* this is none */
    TOOL_NO_MEMORY
} tool_step;

struct tool_parser {
    const char *name;
    const char *const *markers; /* NULL-terminated: what begins calls */
    uint8_t first_phase;
    bool shows_special; /* markers are special tokens of some of its models: they must be text */
    bool short_ids;     /* nine letters or digits, which its templates insist on; else call_... */
    /* Reads on behind the marker, moving reader->at, by what lies in text[reader->at .. n_bytes). */
    tool_step (*step)(tool_reader *reader, const char *text, size_t n_bytes);
    bool (*may_end)(const tool_reader *reader); /* the text, here: only marks are missing */
};

/* ---- use */

const tool_parser *tool_find_parser(const char *name); /* NULL: there is none */
extern const tool_parser *const tool_parsers[];        /* NULL-terminated */

void tool_reader_init(tool_reader *reader, const tool_parser *parser);
void tool_reader_deinit(tool_reader *reader); /* zeroed is fine */
/* `text` is what it was, and more. ERR_NO_MEMORY. */
err_t tool_reader_read(tool_reader *reader, const char *text, size_t n_bytes,
                       bool is_end) MUST_CHECK;
text_view tool_arguments(const tool_call *call, const char *text);

#endif
