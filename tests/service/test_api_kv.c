/* `kv` in requests and in usage: what is taken, what is refused and how, what comes back. */
#include "base/hash.h"
#include "service/api_reply.h"
#include "service/api_request.h"
#include "tests/test_main.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static kv_config settings(const char *routing, bool request_methods)
{
    return (kv_config){.request_methods = request_methods,
                       .routing = (char *)(uintptr_t)routing,
                       .routing_k = 0.25,
                       .routing_eps = 0.01,
                       .routing_tau = 0.95,
                       .scheduling = (char *)(uintptr_t) "none",
                       .budget = 1,
                       .lazy_threshold = 0.9,
                       .compression = (char *)(uintptr_t) "int8",
                       .rewrite = (char *)(uintptr_t) "none"};
}

static bool parse(const kv_config *server, const char *kv, completion_request *out,
                  api_error *error)
{
    static const char *const names[] = {"m"};
    const api_limits limits = {
        .n_vocab = 10, .n_choices_max = 1, .model_names = names, .n_model_names = 1, .kv = server};
    char body[4096];
    const int n = snprintf(body, sizeof body, "{\"prompt\":\"a\",\"kv\":%s}", kv);
    *error = (api_error){0};
    ck_assert_int_eq(hash_init(), ERR_OK);
    return api_completion_parse(&limits, body, (size_t)n, out, error);
}

static completion_request accept(const kv_config *server, const char *kv)
{
    completion_request r;
    api_error error;
    if (!parse(server, kv, &r, &error)) ck_abort_msg("%s: %s", kv, error.message);
    return r;
}

START_TEST(what_is_left_out_is_as_the_server_has_it)
{
    const kv_config server = settings("topk", true);
    completion_request r = accept(&server, "{}");
    ck_assert(r.has_kv);
    ck_assert_str_eq(r.kv.routing->name, "topk");
    ck_assert_str_eq(r.kv.policy.name, "none");
    ck_assert_str_eq(r.kv.codec->name, "int8");
    ck_assert(r.kv.route.k == 0.25 && r.kv.route.eps == 0.01 && r.kv.route.tau == 0.95);
    api_completion_deinit(&r);
    r = accept(&server, "{\"routing\":null,\"routing_k\":0.5,\"compression\":\"none\"}");
    ck_assert_str_eq(r.kv.routing->name, "topk");
    ck_assert(r.kv.route.k == 0.5);
    ck_assert_str_eq(r.kv.codec->name, "none");
    api_completion_deinit(&r);
    r = accept(&server, "{\"routing\":\"full\",\"compression\":\"none\"}");
    ck_assert(r.kv.is_exact);
    api_completion_deinit(&r);
    r = accept(&server, "{\"routing\":\"certified\",\"routing_eps\":1,\"scheduling\":\"none\"}");
    ck_assert(r.kv.route.eps == 1.0); /* an integer is a number, too */
    api_completion_deinit(&r);
    r = accept(&server, "{\"routing\":\"adaptive\",\"routing_tau\":0.5}");
    ck_assert(r.kv.route.tau == 0.5);
    api_completion_deinit(&r);
    r = accept(&server, "null");
    ck_assert(!r.has_kv);
    api_completion_deinit(&r);
}
END_TEST

typedef struct bad_case {
    const char *kv, *param, *message;
} bad_case;

static void refuse(const kv_config *server, const bad_case *c)
{
    completion_request r;
    api_error error;
    if (parse(server, c->kv, &r, &error)) ck_abort_msg("accepted: %s", c->kv);
    ck_assert_uint_eq(error.status, 400);
    ck_assert_str_eq(error.type, "invalid_request_error");
    ck_assert_str_eq(error.param, c->param);
    ck_assert_msg(strncmp(error.message, c->message, strlen(c->message)) == 0, "%s: %s", c->kv,
                  error.message);
}

START_TEST(what_cannot_be_is_refused_by_key_value_and_limit)
{
    static const bad_case cases[] = {
        {"[]", "kv", "kv: [] is not an object"},
        {"\"topk\"", "kv", "kv: \"topk\" is not an object"},
        {"{\"routng\":\"full\"}", "kv", "kv: the key \"routng\" is unknown; known are: routing "},
        {"{\"placement\":\"block\"}", "kv", "kv: the key \"placement\" is unknown"},
        {"{\"routing\":5}", "kv.routing", "kv.routing: 5 is not a string"},
        {"{\"routing\":\"best\"}", "kv.routing", "kv.routing: 'best' is unknown; known are: full"},
        {"{\"routing\":\"full\\u0000\"}", "kv.routing", "kv.routing: \"full\\u0000\" is no name"},
        {"{\"compression\":\"int9\"}", "kv.compression",
         "kv.compression: 'int9' is unknown; known are: none"},
        {"{\"compression\":\"int8,int4\"}", "kv.compression",
         "kv.compression: 'int8,int4' is more than one codec"},
        {"{\"compression\":\"chunkkv\"}", "kv.compression",
         "kv.compression: 'chunkkv' selects entries and is no codec; write chunkkv,none"},
        {"{\"compression\":\"chunkvk,int4\"}", "kv.compression",
         "kv.compression: 'chunkvk' is unknown; known are: adakv"},
        {"{\"compression\":\"quest,int4\"}", "kv.compression",
         "kv.compression: 'quest' is unknown; known are: adakv"},
        {"{\"compression\":\"chunkkv,int3\"}", "kv.compression",
         "kv.compression: 'int3' is unknown; known are: none"},
        {"{\"compression\":\"chunkkv,\"}", "kv.compression",
         "kv.compression: '' is unknown; known are: none"},
        {"{\"compression\":\",int8\"}", "kv.compression",
         "kv.compression: '' is unknown; known are: adakv"},
        {"{\"compression\":\"snapkv,h2o,int4\"}", "kv.compression",
         "kv.compression: 'h2o,int4' is more than one codec"},
        {"{\"compression\":\"chunkkv+adakv,int4\"}", "kv.compression",
         "kv.compression: 'chunkkv+adakv': chunkkv scores all heads alike"},
        {"{\"compression\":\"chunkkv,int4\",\"budget\":0}", "kv.budget",
         "kv.budget: 0 is neither a share in (0, 1] nor"},
        {"{\"routing\":\"full\",\"scheduling\":\"quest\",\"budget\":0.5,"
         "\"compression\":\"chunkkv,int4\"}",
         "kv.compression",
         "kv.compression: chunkkv selects by kv-budget, and kv-scheduling: quest"},
        {"{\"scheduling\":\"tova\",\"budget\":0.5,\"compression\":\"snapkv,int4\"}",
         "kv.compression", "kv.compression: snapkv leaves each head entries of its own"},
        {"{\"scheduling\":\"\"}", "kv.scheduling", "kv.scheduling: '' is unknown; known are:"},
        {"{\"routing_k\":0}", "kv.routing_k", "kv.routing_k: 0 is neither a share in (0, 1] nor"},
        {"{\"routing_k\":2.5}", "kv.routing_k", "kv.routing_k: 2.5 is neither a share"},
        {"{\"routing_k\":\"2\"}", "kv.routing_k", "kv.routing_k: \"2\" is not a number"},
        {"{\"routing_k\":true}", "kv.routing_k", "kv.routing_k: true is not a number"},
        {"{\"routing\":\"certified\",\"routing_eps\":-1}", "kv.routing_eps",
         "kv.routing_eps: -1 is outside [0, 1]"},
        {"{\"routing\":\"adaptive\",\"routing_tau\":1.01}", "kv.routing_tau",
         "kv.routing_tau: 1.01 is outside [0, 1]"},
        {"{\"routing_tau\":0.95}", "kv.routing_tau",
         "kv.routing_tau: 0.95 has no effect with routing \"topk\""},
        {"{\"routing\":\"full\",\"routing_k\":0.5}", "kv.routing_k",
         "kv.routing_k: 0.5 has no effect with routing \"full\""},
        {"{\"scheduling\":\"snapkv+best\"}", "kv.scheduling", "kv.scheduling: "},
        {"{\"scheduling\":\"snapkv\",\"budget\":0}", "kv.budget",
         "kv.budget: 0 is neither a share in (0, 1] nor"},
        {"{\"scheduling\":\"snapkv\",\"budget\":100.5}", "kv.budget",
         "kv.budget: 100.5 is neither a share in (0, 1] nor"},
        {"{\"budget\":0.5}", "kv.budget",
         "kv.budget: 0.5 has no effect with scheduling \"none\" and compression \"int8\""},
    };
    const kv_config server = settings("topk", true);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        refuse(&server, &cases[i]);
}
END_TEST

START_TEST(what_changes_nothing_is_refused)
{
    static const bad_case cases[] = {
        {"{\"rewrite\":\"merge\"}", "kv.rewrite",
         "kv.rewrite: merge rewrites what stays when entries go, and with kv-scheduling: none"},
        {"{\"scheduling\":\"h2o\",\"budget\":0.5,\"rewrite\":\"merge,mend\"}", "kv.rewrite",
         "kv.rewrite: 'mend' is unknown; known are: none merge rerotate"},
        {"{\"scheduling\":\"distill\",\"budget\":0.5,\"rewrite\":\"rerotate\"}", "kv.rewrite",
         "kv.rewrite: rerotate would spoil what distill fits"},
        {"{\"lazy_threshold\":0.5,\"compression\":\"pyramidkv,int4\",\"budget\":0.5}",
         "kv.lazy_threshold",
         "kv.lazy_threshold: 0.5 has no effect with scheduling \"none\" and compression "
         "\"snapkv+pyramid,int4\""},
        {"{\"lazy_threshold\":1.5,\"scheduling\":\"simlayerkv\"}", "kv.lazy_threshold",
         "kv.lazy_threshold: 1.5 is outside [0, 1]"},
    };
    const kv_config server = settings("topk", true);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        refuse(&server, &cases[i]);
}
END_TEST

START_TEST(the_budget_of_the_server_is_a_bound_in_its_unit)
{
    kv_config server = settings("full", true);
    server.budget = 0.5;
    server.scheduling = (char *)(uintptr_t) "snapkv";
    refuse(&server, &(bad_case){"{\"budget\":0.6}", "kv.budget",
                                "kv.budget: 0.6 is more than the server's 0.5"});
    refuse(&server, &(bad_case){"{\"budget\":64}", "kv.budget",
                                "kv.budget: 64 is more than the server's 0.5, or not in its unit"});
    completion_request r = accept(&server, "{\"budget\":0.25}");
    ck_assert(r.kv.policy.evicts && r.kv.policy.budget == 0.25);
    api_completion_deinit(&r);
    server.budget = 512;
    refuse(&server, &(bad_case){"{\"budget\":513}", "kv.budget", "kv.budget: 513 is more"});
    refuse(&server, &(bad_case){"{\"budget\":0.5}", "kv.budget", "kv.budget: 0.5 is more"});
    server.budget = 1; /* no bound */
    r = accept(&server, "{\"scheduling\":\"h2o+adakv\",\"budget\":100}");
    ck_assert_str_eq(r.kv.policy.name, "h2o+adakv");
    ck_assert(r.kv.policy.budget == 100);
    api_completion_deinit(&r);
}
END_TEST

START_TEST(a_selection_goes_before_the_codec)
{
    kv_config server = settings("full", true);
    completion_request r = accept(&server, "{\"compression\":\"chunkkv,int4\",\"budget\":0.5}");
    ck_assert_str_eq(r.kv.policy.name, "none");
    ck_assert_str_eq(r.kv.selection.name, "chunkkv");
    ck_assert_str_eq(r.kv.codec->name, "int4");
    ck_assert(r.kv.selection.evicts && r.kv.selection.budget == 0.5 && !r.kv.policy.evicts);
    api_completion_deinit(&r);
    server.compression =
        (char *)(uintptr_t) "pyramidkv,int8"; /* the budget looked at, and a bound */
    server.budget = 0.5;
    refuse(&server, &(bad_case){"{\"budget\":0.6}", "kv.budget", "kv.budget: 0.6 is more"});
    r = accept(&server, "{\"budget\":0.25,\"scheduling\":\"h2o+adakv\"}");
    ck_assert_str_eq(r.kv.policy.name, "h2o+adakv");
    ck_assert_str_eq(r.kv.selection.name, "snapkv+pyramid");
    ck_assert(r.kv.selection.budget == 0.25 && r.kv.policy.budget == 0.25);
    api_completion_deinit(&r);
    server.request_methods = false;
    refuse(&server, &(bad_case){"{\"compression\":\"int8\"}", "kv.compression",
                                "kv.compression: \"int8\" is not the server's \"pyramidkv,int8\""});
    r = accept(&server, "{\"compression\":\"pyramidkv,int8\"}");
    api_completion_deinit(&r);
}
END_TEST

START_TEST(the_threshold_of_lazy_layers_is_a_requests_own)
{
    const kv_config server = settings("full", true);
    completion_request r = accept(&server, "{\"scheduling\":\"simlayerkv\",\"budget\":0.5}");
    ck_assert_str_eq(r.kv.policy.name, "streaming_llm+simlayer");
    ck_assert(r.kv.policy.lazy_threshold == 0.9);
    api_completion_deinit(&r);
    r = accept(&server, "{\"compression\":\"snapkv+simlayer,int4\",\"budget\":0.5,"
                        "\"lazy_threshold\":0.65}");
    ck_assert_str_eq(r.kv.selection.name, "snapkv+simlayer");
    ck_assert(r.kv.selection.lazy_threshold == 0.65);
    api_completion_deinit(&r);
}
END_TEST

START_TEST(a_number_of_pages_has_a_limit)
{
    const kv_config server = settings("topk", true);
    refuse(&server, &(bad_case){"{\"routing_k\":1e300}", "kv.routing_k",
                                "kv.routing_k: 1e300 is outside [0, 4294967295]"});
    completion_request r = accept(&server, "{\"routing_k\":4294967295}");
    api_completion_deinit(&r);
}
END_TEST

START_TEST(without_the_flag_only_the_settings_of_the_server_pass)
{
    static const bad_case cases[] = {
        {"{\"routing\":\"full\"}", "kv.routing",
         "kv.routing: \"full\" is not the server's \"topk\", which runs without "
         "--kv-request-methods"},
        {"{\"routing_k\":0.5}", "kv.routing_k", "kv.routing_k: 0.5 is not the server's 0.25"},
        {"{\"compression\":\"none\"}", "kv.compression",
         "kv.compression: \"none\" is not the server's \"int8\""},
        {"{\"rewrite\":\"merge\"}", "kv.rewrite",
         "kv.rewrite: \"merge\" is not the server's \"none\""},
    };
    const kv_config server = settings("topk", false);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        refuse(&server, &cases[i]);
    completion_request r = accept(&server, "{\"routing\":\"topk\",\"routing_k\":0.25,"
                                           "\"scheduling\":\"none\",\"compression\":\"int8\"}");
    ck_assert(r.has_kv);
    api_completion_deinit(&r);
}
END_TEST

START_TEST(a_long_name_gets_a_short_error)
{
    char kv[3000] = "{\"routing\":\"";
    memset(kv + strlen(kv), 'x', 2000);
    strcat(kv, "\"}");
    const kv_config server = settings("full", true);
    refuse(&server, &(bad_case){kv, "kv.routing", "kv.routing: \"xxx"});
    memset(kv + 2, 'x', 2000);
    strcpy(kv + 2002, "\":1}");
    refuse(&server, &(bad_case){kv, "kv", "kv: the key \"xxx"});
}
END_TEST

/* ---- usage --------------------------------------------------------------------------------------- */

static void check_usage(const kv_config *server, const char *kv, const kv_usage *used,
                        const char *expected)
{
    const api_envelope envelope = {.shape = &api_shape_completion,
                                   .id = "cmpl-1",
                                   .created = 7,
                                   .model = "m",
                                   .fingerprint = "fp_0"};
    completion_request r = accept(server, kv);
    const api_usage usage = {.n_prompt = 1, .n_output = 2, .methods = &r.kv, .kv = *used};
    size_t n_bytes;
    char *text = api_reply_usage_chunk(&envelope, &usage, &n_bytes);
    ck_assert_ptr_nonnull(text);
    const char *found = strstr(text, "\"kv\":");
    ck_assert_ptr_nonnull(found);
    ck_assert_str_eq(found, expected);
    free(text);
    api_completion_deinit(&r);
}

START_TEST(usage_names_the_methods_as_a_request_would)
{
    const kv_config server = settings("topk", true);
    const kv_usage used = {.resident_bytes = 5,
                           .uncompressed_bytes = 1 << 30,
                           .pages_evicted = 7,
                           .pages_demoted = 5,
                           .certificates = 4,
                           .certificate_sum = 0.5};
    check_usage(&server, "{}", &used,
                "\"kv\":{\"resident_bytes\":5,\"uncompressed_bytes\":1073741824,"
                "\"pages_evicted\":7,\"pages_demoted\":5,\"mean_certificate\":0.125,\"methods\":{"
                "\"routing\":\"topk\","
                "\"routing_k\":0.25,"
                "\"scheduling\":\"none\",\"compression\":\"int8\",\"rewrite\":\"none\"}}}}");
    check_usage(&server, "{\"routing\":\"full\",\"compression\":\"pyramidkv,int4\",\"budget\":0.5}",
                &(kv_usage){0},
                "\"kv\":{\"resident_bytes\":0,\"uncompressed_bytes\":0,\"pages_evicted\":0,\"pages_"
                "demoted\":0,"
                "\"methods\":{\"routing\":\"full\",\"scheduling\":\"none\",\"budget\":0.5,"
                "\"compression\":\"snapkv+pyramid,int4\",\"rewrite\":\"none\"}}}}");
    check_usage(
        &server,
        "{\"routing\":\"full\",\"compression\":\"none\",\"scheduling\":\"simlayerkv\","
        "\"budget\":0.5,\"lazy_threshold\":0.75}",
        &(kv_usage){0},
        "\"kv\":{\"resident_bytes\":0,\"uncompressed_bytes\":0,\"pages_evicted\":0,\"pages_"
        "demoted\":0,"
        "\"methods\":{\"routing\":\"full\",\"scheduling\":\"streaming_llm+simlayer\","
        "\"budget\":0.5,\"lazy_threshold\":0.75,\"compression\":\"none\",\"rewrite\":\"none\"}}}}");
    check_usage(&server,
                "{\"routing\":\"full\",\"scheduling\":\"h2o\",\"budget\":0.5,"
                "\"rewrite\":\"rerotate,merge\"}",
                &(kv_usage){0},
                "\"kv\":{\"resident_bytes\":0,\"uncompressed_bytes\":0,\"pages_evicted\":0,\"pages_"
                "demoted\":0,"
                "\"methods\":{\"routing\":\"full\",\"scheduling\":\"h2o\",\"budget\":0.5,"
                "\"compression\":\"int8\",\"rewrite\":\"merge,rerotate\"}}}}");
}
END_TEST

START_TEST(without_certificates_there_is_no_mean)
{
    const kv_config server = settings("certified", true);
    check_usage(&server, "{\"compression\":\"none\"}", &(kv_usage){0},
                "\"kv\":{\"resident_bytes\":0,\"uncompressed_bytes\":0,\"pages_evicted\":0,\"pages_"
                "demoted\":0,"
                "\"methods\":{\"routing\":"
                "\"certified\",\"routing_eps\":0.01,\"scheduling\":\"none\","
                "\"compression\":\"none\",\"rewrite\":\"none\"}}}}");
    check_usage(
        &server, "{\"routing\":\"full\"}", &(kv_usage){.certificates = 9},
        "\"kv\":{\"resident_bytes\":0,\"uncompressed_bytes\":0,\"pages_evicted\":0,\"pages_"
        "demoted\":0,"
        "\"methods\":{\"routing\":"
        "\"full\",\"scheduling\":\"none\",\"compression\":\"int8\",\"rewrite\":\"none\"}}}}");
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(what_is_left_out_is_as_the_server_has_it),
    TEST_CASE(what_cannot_be_is_refused_by_key_value_and_limit),
    TEST_CASE(what_changes_nothing_is_refused),
    TEST_CASE(the_budget_of_the_server_is_a_bound_in_its_unit),
    TEST_CASE(a_selection_goes_before_the_codec),
    TEST_CASE(the_threshold_of_lazy_layers_is_a_requests_own),
    TEST_CASE(a_number_of_pages_has_a_limit),
    TEST_CASE(without_the_flag_only_the_settings_of_the_server_pass),
    TEST_CASE(a_long_name_gets_a_short_error),
    TEST_CASE(usage_names_the_methods_as_a_request_would),
    TEST_CASE(without_certificates_there_is_no_mean),
    TEST_CASES_END,
};
