/* service/chat_content.h - in which form a chat's template is given the content of a message. */
#ifndef SERVICE_CHAT_CONTENT_H
#define SERVICE_CHAT_CONTENT_H

/* --chat-template-content-format */
typedef enum chat_content_format {
    CHAT_FORMAT_AUTO, /* as the template reads it */
    CHAT_FORMAT_STRING,
    CHAT_FORMAT_OPENAI
} chat_content_format;

typedef enum chat_content {
    CHAT_CONTENT_TEXTS,   /* always a text: parts are joined by line ends */
    CHAT_CONTENT_AS_SENT, /* a text or a list of parts, as the client has it */
    CHAT_CONTENT_PARTS    /* always a list of parts */
} chat_content;

#endif
