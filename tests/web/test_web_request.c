/* web/http_request.h, web/router.h and web/sse.h: the parts without sockets. */
#include "tests/test_main.h"
#include "web/http_request.h"
#include "web/router.h"
#include "web/sse.h"

#include <stdlib.h>
#include <string.h>

/* ---- stand-ins for the stream, so that frames are seen byte by byte --------------------------- */

static char written[256];
static size_t n_written;
static http_response begun;
static http_field begun_fields[8];

err_t http_stream_write(http_exchange *ex, const void *data, size_t bytes)
{
    (void)ex;
    memcpy(written + n_written, data, bytes);
    n_written += bytes;
    return ERR_OK;
}

err_t http_stream_begin(http_exchange *ex, const http_response *response)
{
    (void)ex;
    begun = *response;
    memcpy(begun_fields, response->fields, response->n_fields * sizeof(http_field));
    return ERR_OK;
}

START_TEST(a_frame_is_data_and_an_empty_line)
{
    ck_assert_int_eq(sse_write(NULL, "{\"a\":1}", 7), ERR_OK);
    ck_assert_int_eq(sse_write(NULL, "", 0), ERR_OK);
    ck_assert_int_eq(sse_write_done(NULL), ERR_OK);
    ck_assert_str_eq(written, "data: {\"a\":1}\n\ndata: \n\ndata: [DONE]\n\n");
}
END_TEST

START_TEST(a_stream_of_events_says_so_and_is_not_cached)
{
    const http_field more = {"X-Request-Id", "r1"};
    ck_assert_int_eq(sse_begin(NULL, &more, 1), ERR_OK);
    ck_assert_uint_eq(begun.status, 200);
    ck_assert_str_eq(begun.content_type, "text/event-stream");
    ck_assert_uint_eq(begun.n_fields, 3);
    ck_assert_str_eq(begun_fields[0].value, "no-cache");
    ck_assert_str_eq(begun_fields[1].name, "X-Accel-Buffering");
    ck_assert_str_eq(begun_fields[2].value, "r1");
}
END_TEST

/* ---- the router ------------------------------------------------------------------------------- */

static const route routes[] = {
    {.method = "GET", .path = "/health"},
    {.method = "POST", .path = "/v1/completions"},
    {.method = "GET", .path = "/v1/models"},
    {.method = "GET", .path = "/v1/models/", .takes_rest = true},
    {.method = "DELETE", .path = "/v1/models/", .takes_rest = true},
};

static route_result find(const char *method, const char *path, const route **out, char allow[64])
{
    return route_find(routes, sizeof routes / sizeof *routes, method, path, out, allow);
}

START_TEST(paths_match_exactly)
{
    const struct {
        const char *method, *path;
        route_result result;
        int index; /* -1: none */
    } cases[] = {
        {"GET", "/health", ROUTE_FOUND, 0},
        {"HEAD", "/health", ROUTE_FOUND, 0},
        {"POST", "/v1/completions", ROUTE_FOUND, 1},
        {"GET", "/v1/models", ROUTE_FOUND, 2},
        {"GET", "/v1/models/a/b", ROUTE_FOUND, 3},
        {"DELETE", "/v1/models/x", ROUTE_FOUND, 4},
        {"GET", "/v1/models/", ROUTE_NO_PATH, -1},
        {"GET", "/health/", ROUTE_NO_PATH, -1},
        {"GET", "/healthy", ROUTE_NO_PATH, -1},
        {"GET", "/HEALTH", ROUTE_NO_PATH, -1},
        {"GET", "/health%00", ROUTE_NO_PATH, -1},
        {"GET", "", ROUTE_NO_PATH, -1},
        {"GET", "*", ROUTE_NO_PATH, -1},
        {"HEAD", "/v1/completions", ROUTE_NO_METHOD, -1},
        {"get", "/health", ROUTE_NO_METHOD, -1},
        {"OPTIONS", "/v1/models/x", ROUTE_NO_METHOD, -1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const route *found;
        char allow[64];
        ck_assert_int_eq(find(cases[i].method, cases[i].path, &found, allow), cases[i].result);
        ck_assert_ptr_eq(found, cases[i].index < 0 ? NULL : &routes[cases[i].index]);
    }
}
END_TEST

START_TEST(a_wrong_method_is_told_the_right_ones)
{
    const route *found;
    char allow[64];
    ck_assert_int_eq(find("PUT", "/v1/models/x", &found, allow), ROUTE_NO_METHOD);
    ck_assert_str_eq(allow, "GET, HEAD, DELETE");
    ck_assert_int_eq(find("GET", "/v1/completions", &found, allow), ROUTE_NO_METHOD);
    ck_assert_str_eq(allow, "POST");
}
END_TEST

/* ---- targets and queries ---------------------------------------------------------------------- */

START_TEST(targets_are_cut_at_the_query)
{
    const struct {
        const char *target, *path, *query;
    } cases[] = {
        {"/a", "/a", ""},
        {"/a?b=c", "/a", "b=c"},
        {"/a?b?c", "/a", "b?c"},
        {"/?", "/", ""},
        {"http://host:80/a?b", "/a", "b"},
        {"HTTP://host", "", ""},
        {"http://host?x=1", "", "x=1"},
        {"*", "*", ""},
        {"/%2e%00", "/%2e%00", ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *target = strdup(cases[i].target);
        ck_assert_ptr_nonnull(target);
        const char *query;
        ck_assert_str_eq(http_target_split(target, &query), cases[i].path);
        ck_assert_str_eq(query, cases[i].query);
        free(target);
    }
}
END_TEST

START_TEST(query_values_are_decoded_and_bad_escapes_kept)
{
    http_pairs query = {0};
    ck_assert_int_eq(
        http_query_parse("a=1&b=x%20y+z&&c&=d&e=%zz%4&f=%00&a=2&%67=%E2%82%AC", &query), ERR_OK);
    ck_assert_str_eq(http_pairs_find(&query, "a"), "1");
    ck_assert_str_eq(http_pairs_find(&query, "b"), "x y z");
    ck_assert_str_eq(http_pairs_find(&query, "c"), "");
    ck_assert_str_eq(http_pairs_find(&query, ""), "d");
    ck_assert_str_eq(http_pairs_find(&query, "e"), "%zz%4");
    ck_assert_str_eq(http_pairs_find(&query, "f"), "%00");
    ck_assert_str_eq(http_pairs_find(&query, "g"), "\xE2\x82\xAC");
    ck_assert_ptr_null(http_pairs_find(&query, "A"));
    http_pairs_deinit(&query);
    ck_assert_ptr_null(http_pairs_find(&query, "a"));
}
END_TEST

/* ---- heads ------------------------------------------------------------------------------------ */

/* "Name: value\n..." */
static http_head_verdict judge(const char *text, const char *version)
{
    http_pairs fields = {0};
    while (*text != '\0') {
        const size_t name = strcspn(text, ":"), line = strcspn(text, "\n");
        ck_assert_int_eq(http_pairs_add(&fields, text, name, text + name + 2, line - name - 2),
                         ERR_OK);
        text += line + 1;
    }
    const http_head_verdict verdict = http_head_judge(&fields, version, 1000);
    http_pairs_deinit(&fields);
    return verdict;
}

START_TEST(heads_that_two_readers_could_read_differently_are_refused)
{
    const struct {
        const char *text, *version;
        unsigned status;
    } cases[] = {
        {"Host: a\n", "HTTP/1.1", 0},
        {"Host: a\nContent-Length: 0\n", "HTTP/1.1", 0},
        {"Host: a\nContent-Length: 1000\n", "HTTP/1.1", 0},
        {"Host: a\nContent-Length: 1001\n", "HTTP/1.1", 413},
        {"Host: a\nContent-Length: 99999999999999999999999\n", "HTTP/1.1", 413},
        {"Host: a\nContent-Length: 18446744073709551617\n", "HTTP/1.1", 413},
        {"Host: a\nContent-Length: -1\n", "HTTP/1.1", 400},
        {"Host: a\nContent-Length: +1\n", "HTTP/1.1", 400},
        {"Host: a\nContent-Length: 5, 5\n", "HTTP/1.1", 400},
        {"Host: a\nContent-Length: 0x5\n", "HTTP/1.1", 400},
        {"Host: a\nContent-Length: \n", "HTTP/1.1", 400},
        {"Host: a\nContent-Length: 5\nCONTENT-LENGTH: 6\n", "HTTP/1.1", 400},
        {"Host: a\nTransfer-Encoding: Chunked\n", "HTTP/1.1", 0},
        {"Host: a\nTransfer-Encoding: chunked\n", "HTTP/1.0", 400},
        {"Host: a\nTransfer-Encoding: gzip, chunked\n", "HTTP/1.1", 400},
        {"Host: a\nTransfer-Encoding: identity\n", "HTTP/1.1", 400},
        {"Host: a\nTransfer-Encoding: chunked\nTransfer-Encoding: chunked\n", "HTTP/1.1", 400},
        {"Host: a\nTransfer-Encoding: chunked\nContent-Length: 5\n", "HTTP/1.1", 400},
        {"Host: a\nhost: b\n", "HTTP/1.1", 400},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const http_head_verdict verdict = judge(cases[i].text, cases[i].version);
        ck_assert_msg(verdict.status == cases[i].status, "%s: %u", cases[i].text, verdict.status);
    }
    ck_assert_uint_eq(judge("Content-Length: 7\n", "HTTP/1.1").content_bytes, 7);
}
END_TEST

START_TEST(field_names_are_tokens_and_values_hold_no_control_characters)
{
    ck_assert(http_field_is_valid("X-A_b!", 6, "v\tw\xff", 4));
    ck_assert(http_field_is_valid("A", 1, "", 0));
    ck_assert(!http_field_is_valid("", 0, "v", 1));
    ck_assert(!http_field_is_valid("a b", 3, "v", 1));
    ck_assert(!http_field_is_valid("a:", 2, "v", 1));
    ck_assert(!http_field_is_valid("a\0b", 3, "v", 1));
    ck_assert(!http_field_is_valid("a", 1, "v\0w", 3));
    ck_assert(!http_field_is_valid("a", 1, "v\rw", 3));
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(a_frame_is_data_and_an_empty_line),
    TEST_CASE(a_stream_of_events_says_so_and_is_not_cached),
    TEST_CASE(paths_match_exactly),
    TEST_CASE(a_wrong_method_is_told_the_right_ones),
    TEST_CASE(targets_are_cut_at_the_query),
    TEST_CASE(query_values_are_decoded_and_bad_escapes_kept),
    TEST_CASE(heads_that_two_readers_could_read_differently_are_refused),
    TEST_CASE(field_names_are_tokens_and_values_hold_no_control_characters),
    TEST_CASES_END,
};
