#include "web/http_request.h"

#include "base/check.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

static err_t reserve(http_pairs *pairs, size_t more_bytes)
{
    size_t need;
    TRY(size_add(pairs->text_bytes, more_bytes, &need));
    if (need <= pairs->capacity_bytes) return ERR_OK;
    TRY(size_add(need, need / 2 + 256, &need));
    char *text = realloc(pairs->text, need);
    if (text == NULL) return ERR_NO_MEMORY;
    pairs->text = text;
    pairs->capacity_bytes = need;
    return ERR_OK;
}

static void append(http_pairs *pairs, const char *text, size_t bytes)
{
    if (bytes > 0) memcpy(pairs->text + pairs->text_bytes, text, bytes);
    pairs->text[pairs->text_bytes + bytes] = '\0';
    pairs->text_bytes += bytes + 1;
}

err_t http_pairs_add(http_pairs *pairs, const char *name, size_t name_bytes, const char *value,
                     size_t value_bytes)
{
    size_t more;
    TRY(size_add(name_bytes, value_bytes, &more));
    TRY(size_add(more, 2, &more));
    TRY(reserve(pairs, more));
    append(pairs, name, name_bytes);
    append(pairs, value, value_bytes);
    return ERR_OK;
}

typedef int compare_fn(const char *a, const char *b);

static const char *find(const http_pairs *pairs, const char *name, compare_fn *compare, size_t *n)
{
    const char *found = NULL;
    const char *const end = pairs->text + pairs->text_bytes;
    for (const char *p = pairs->text; p != end;) {
        const char *value = p + strlen(p) + 1;
        if (compare(p, name) == 0) {
            if (found == NULL) found = value;
            if (n == NULL) break;
            ++*n;
        }
        p = value + strlen(value) + 1;
    }
    return found;
}

const char *http_pairs_find(const http_pairs *pairs, const char *name)
{
    if (pairs->text == NULL) return NULL;
    return find(pairs, name, strcmp, NULL);
}

const char *http_pairs_find_caseless(const http_pairs *pairs, const char *name, size_t *n)
{
    if (n != NULL) *n = 0;
    if (pairs->text == NULL) return NULL;
    return find(pairs, name, strcasecmp, n);
}

void http_pairs_deinit(http_pairs *pairs)
{
    free(pairs->text);
    *pairs = (http_pairs){0};
}

char *http_target_split(char *target, const char **query)
{
    char *path = target;
    if (strncasecmp(path, "http://", 7) == 0) {
        path += 7;
        path += strcspn(path, "/?");
    }
    char *mark = strchr(path, '?');
    *query = "";
    if (mark != NULL) {
        *mark = '\0';
        *query = mark + 1;
    }
    return path;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

/* Decodes in place; never longer than it was. Returns the new length. */
static size_t decode(char *text, size_t bytes)
{
    size_t n = 0;
    for (size_t i = 0; i < bytes; i++) {
        char c = text[i] == '+' ? ' ' : text[i];
        if (c == '%' && bytes - i > 2) {
            const int hi = hex_digit(text[i + 1]), lo = hex_digit(text[i + 2]);
            if (hi >= 0 && lo >= 0 && hi + lo > 0) {
                c = (char)(hi * 16 + lo);
                i += 2;
            }
        }
        text[n++] = c;
    }
    return n;
}

err_t http_query_parse(const char *query, http_pairs *out)
{
    char *copy = strdup(query);
    if (copy == NULL) return ERR_NO_MEMORY;
    err_t err = ERR_OK;
    for (char *p = copy; *p != '\0' && err == ERR_OK;) {
        const size_t bytes = strcspn(p, "&");
        char *next = p + bytes + (p[bytes] == '&');
        char *equals = memchr(p, '=', bytes);
        const size_t name_bytes = equals != NULL ? (size_t)(equals - p) : bytes;
        char *value = equals != NULL ? equals + 1 : p + bytes;
        const size_t value_bytes = (size_t)(p + bytes - value);
        if (bytes > 0) {
            const size_t n_name = decode(p, name_bytes), n_value = decode(value, value_bytes);
            err = http_pairs_add(out, p, n_name, value, n_value);
        }
        p = next;
    }
    free(copy);
    return err;
}

bool http_field_is_valid(const char *name, size_t name_bytes, const char *value, size_t value_bytes)
{
    static const char token[] = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"
                                "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
    if (name_bytes == 0) return false;
    for (size_t i = 0; i < name_bytes; i++) {
        if (memchr(token, name[i], sizeof token - 1) == NULL) return false;
    }
    for (size_t i = 0; i < value_bytes; i++) {
        const unsigned char c = (unsigned char)value[i];
        if ((c < 0x20 && c != '\t') || c == 0x7f) return false;
    }
    return true;
}

static http_head_verdict refuse(unsigned status, const char *message)
{
    return (http_head_verdict){.status = status, .message = message};
}

static bool parse_length(const char *text, uint64_t *out)
{
    uint64_t length = 0;
    if (*text == '\0') return false;
    for (; *text != '\0'; text++) {
        if (*text < '0' || *text > '9') return false;
        if (__builtin_mul_overflow(length, 10u, &length) ||
            __builtin_add_overflow(length, (uint64_t)(*text - '0'), &length)) {
            length = UINT64_MAX;
            continue; /* still must be digits; too large is 413, not 400 */
        }
    }
    *out = length;
    return true;
}

http_head_verdict http_head_judge(const http_pairs *fields, const char *version,
                                  size_t body_bytes_max)
{
    size_t n_hosts, n_lengths, n_codings;
    (void)http_pairs_find_caseless(fields, "host", &n_hosts);
    const char *length = http_pairs_find_caseless(fields, "content-length", &n_lengths);
    const char *coding = http_pairs_find_caseless(fields, "transfer-encoding", &n_codings);
    if (n_hosts > 1) return refuse(400, "more than one Host header");
    if (n_lengths > 1) return refuse(400, "more than one Content-Length header");
    if (n_codings > 1) return refuse(400, "more than one Transfer-Encoding header");
    if (n_lengths > 0 && n_codings > 0) {
        return refuse(400, "Content-Length together with Transfer-Encoding");
    }
    if (coding != NULL && strcasecmp(coding, "chunked") != 0) {
        return refuse(400, "the only supported Transfer-Encoding is chunked");
    }
    if (coding != NULL && strcmp(version, "HTTP/1.1") != 0) {
        return refuse(400, "Transfer-Encoding needs HTTP/1.1");
    }
    http_head_verdict verdict = {.has_length = length != NULL};
    if (length != NULL && !parse_length(length, &verdict.content_bytes)) {
        return refuse(400, "Content-Length is not a number");
    }
    if (verdict.content_bytes > body_bytes_max) {
        return refuse(413, "the request body is larger than this server allows");
    }
    return verdict;
}
