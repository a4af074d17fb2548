/* service/tools/tool_parts.h - what parsers share. Positions are in the text; functions that return a tool_step move
 * reader->at only over what they have understood. */
#ifndef SERVICE_TOOLS_TOOL_PARTS_H
#define SERVICE_TOOLS_TOOL_PARTS_H

#include "service/tools/tool_reader.h"

enum { TOOL_NAME_BYTES_MAX = 256 };

bool tool_is_space(char c);
size_t tool_skip_space(const char *text, size_t n_bytes, size_t at);
/* TOOL_DONE: `literal` lies at `at`; TOOL_MORE: its beginning does, at the end of the text; else TOOL_BROKEN. */
tool_step tool_match(const char *text, size_t n_bytes, size_t at, const char *literal);
/* Spaces, then `literal`; reader->at is behind it if it returns TOOL_DONE. */
tool_step tool_expect(tool_reader *reader, const char *text, size_t n_bytes, const char *literal);

/* Reads on in one value; DONE: *at is behind it. */
tool_step tool_span_read(tool_span *span, const char *text, size_t n_bytes, size_t *at);

/* A heap copy; NULL without memory. */
char *tool_copy(const char *bytes, size_t n_bytes);

/* A new call, which takes `name` (NULL: there was no memory for it): NULL, and the name freed, without memory. Its arguments begin and end at `at`. */
tool_call *tool_call_open(tool_reader *reader, char *name, size_t name_bytes, size_t at);
/* The arguments of the newest call, which go on at reader->at. */
tool_step tool_call_read(tool_reader *reader, const char *text, size_t n_bytes);

/* One object; a new one after tool_object_init. */
void tool_object_init(tool_object *object);
void tool_object_deinit(tool_object *object);
tool_step tool_object_read(tool_reader *reader, const char *text, size_t n_bytes);
/* [object, object...]; reader->phase is TOOL_LIST_BEGIN at first. */
enum { TOOL_LIST_BEGIN, TOOL_LIST_OBJECT, TOOL_LIST_NEXT, TOOL_LIST_PHASES };
tool_step tool_list_read(tool_reader *reader, const char *text, size_t n_bytes);

/* The text of a JSON string with its quotes, in a heap string; TOOL_BROKEN, TOOL_NO_MEMORY. */
tool_step tool_string_decode(const char *quoted, size_t n_bytes, char **out, size_t *out_bytes);

#endif
