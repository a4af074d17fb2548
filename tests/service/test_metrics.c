/* Promises of service/metrics.h: what is counted comes out, in the text format that Prometheus reads. */
#include "service/metrics.h"
#include "tests/test_main.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static metrics *open_metrics(const char *model_name)
{
    metrics *m;
    const metrics_shape shape = {.model_name = model_name, .n_layers = 3, .n_experts = 4};
    ck_assert_int_eq(metrics_open(&shape, &m), ERR_OK);
    return m;
}

static const metrics_gauges GAUGES = {.n_running = 3,
                                      .n_waiting = 2,
                                      .n_preempted = 5,
                                      .weight_bytes = 1000,
                                      .load_seconds = 1.5,
                                      .is_ready = true,
                                      .kv = {.pages_total = 10,
                                             .pages_used = 4,
                                             .used_bytes = 4096,
                                             .pool_budget_bytes = 16384,
                                             .pages_free = 6,
                                             .pages_open = 100,
                                             .pages_read = 25,
                                             .certificates = 8,
                                             .certificate_sum = 0.5,
                                             .certificate_max = 0.25,
                                             .step_certificate_mean = 0.125,
                                             .step_certificate_max = 0.1875,
                                             .n_shards = 2,
                                             .experts_packed = 5,
                                             .shards = {{3, 90, 4096, 0}, {1, 17, 1024, 12}},
                                             .host_budget_bytes = 4096,
                                             .disk_budget_bytes = 8192,
                                             .host_bytes = 2048,
                                             .disk_bytes = 1024,
                                             .host_pages = 11,
                                             .disk_pages = 12,
                                             .pages_demoted = 13,
                                             .pages_promoted = 14,
                                             .disk_read_bytes = 15,
                                             .disk_read_failures = 16,
                                             .disk_write_failures = 17,
                                             .seqs_lost = 18},
                                      .dev_name = "avx2",
                                      .kv_type = "bf16",
                                      .page_tokens = 32,
                                      .has_prefix_cache = true,
                                      .capacity_tokens = 6400,
                                      .context_max = 2048};

static char *write_page(const metrics *m)
{
    char *text;
    size_t n_bytes;
    ck_assert_int_eq(metrics_write(m, &GAUGES, &text, &n_bytes), ERR_OK);
    ck_assert_uint_eq(strlen(text), n_bytes);
    ck_assert_int_eq(text[n_bytes - 1], '\n');
    return text;
}

/* The value of the sample whose name and labels are exactly `series`. */
static double value_of(const char *text, const char *series)
{
    const size_t n_bytes = strlen(series);
    for (const char *line = text; line != NULL && *line != '\0'; line = strchr(line, '\n')) {
        if (*line == '\n') line++;
        if (strncmp(line, series, n_bytes) == 0 && line[n_bytes] == ' ') {
            return strtod(line + n_bytes, NULL);
        }
    }
    ck_abort_msg("no series %s in\n%s", series, text);
    return 0;
}

START_TEST(what_is_counted_is_written)
{
    metrics *m = open_metrics("story");
    metrics_add(m, METRIC_GENERATION_TOKENS, 5);
    metrics_add(m, METRIC_GENERATION_TOKENS, 2);
    metrics_count_outcome(m, OUTCOME_LENGTH);
    metrics_count_reject(m, REJECT_QUEUE_FULL);
    ck_assert_uint_eq(metrics_read(m, METRIC_GENERATION_TOKENS), 7);
    char *text = write_page(m);
    ck_assert(value_of(text, "pikv_generation_tokens_total{model_name=\"story\"}") == 7);
    ck_assert(value_of(text, "pikv_requests_total{model_name=\"story\",outcome=\"length\"}") == 1);
    ck_assert(value_of(text, "pikv_requests_total{model_name=\"story\",outcome=\"stop\"}") == 0);
    ck_assert(
        value_of(text,
                 "pikv_request_rejections_total{model_name=\"story\",reason=\"queue_full\"}") == 1);
    ck_assert(value_of(text, "pikv_requests_running{model_name=\"story\"}") == 3);
    ck_assert(value_of(text, "pikv_kv_blocks{model_name=\"story\",state=\"used\"}") == 4);
    ck_assert(value_of(text, "pikv_kv_used_bytes{model_name=\"story\"}") == 4096);
    ck_assert(value_of(text, "pikv_model_load_seconds{model_name=\"story\"}") == 1.5);
    ck_assert(value_of(text, "process_resident_memory_bytes") > 1e5);
    ck_assert(value_of(text, "process_start_time_seconds") > 1.5e9);
    ck_assert(value_of(text, "process_open_fds") >= 3);
    free(text);
    metrics_close(m);
}
END_TEST

START_TEST(the_page_says_what_each_shard_owns)
{
    metrics *m = open_metrics("s");
    char *text = write_page(m);
    ck_assert(value_of(text, "pikv_kv_shard_blocks{model_name=\"s\",shard=\"0\"}") == 3);
    ck_assert(value_of(text, "pikv_kv_shard_blocks{model_name=\"s\",shard=\"1\"}") == 1);
    ck_assert(value_of(text, "pikv_kv_shard_slots_live{model_name=\"s\",shard=\"0\"}") == 90);
    ck_assert(value_of(text, "pikv_kv_shard_bytes{model_name=\"s\",shard=\"1\"}") == 1024);
    ck_assert(value_of(text, "pikv_kv_shard_spilled_entries_total{model_name=\"s\",shard=\"1\"}") ==
              12);
    ck_assert(value_of(text, "pikv_kv_expert_packings_total{model_name=\"s\"}") == 5);
    ck_assert_ptr_nonnull(strstr(text, "# TYPE pikv_kv_shard_spilled_entries_total counter"));
    ck_assert_ptr_nonnull(strstr(text, "# TYPE pikv_kv_shard_bytes gauge"));
    ck_assert_ptr_null(strstr(text, "shard=\"2\""));
    free(text);
    metrics_close(m);
}
END_TEST

START_TEST(the_page_says_what_lies_below_the_pool)
{
    static const struct {
        const char *series;
        double value;
    } rows[] = {
        {"pikv_kv_tier_budget_bytes{model_name=\"s\",tier=\"host\"}", 4096},
        {"pikv_kv_tier_budget_bytes{model_name=\"s\",tier=\"disk\"}", 8192},
        {"pikv_kv_tier_bytes{model_name=\"s\",tier=\"host\"}", 2048},
        {"pikv_kv_tier_bytes{model_name=\"s\",tier=\"disk\"}", 1024},
        {"pikv_kv_tier_blocks{model_name=\"s\",tier=\"host\"}", 11},
        {"pikv_kv_tier_blocks{model_name=\"s\",tier=\"disk\"}", 12},
        {"pikv_kv_demoted_blocks_total{model_name=\"s\"}", 13},
        {"pikv_kv_promoted_blocks_total{model_name=\"s\"}", 14},
        {"pikv_kv_disk_read_bytes_total{model_name=\"s\"}", 15},
        {"pikv_kv_disk_failures_total{model_name=\"s\",op=\"read\"}", 16},
        {"pikv_kv_disk_failures_total{model_name=\"s\",op=\"write\"}", 17},
        {"pikv_kv_lost_sequences_total{model_name=\"s\"}", 18},
    };
    metrics *m = open_metrics("s");
    char *text = write_page(m);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        ck_assert_double_eq(value_of(text, rows[i].series), rows[i].value);
    free(text);
    metrics_close(m);
}
END_TEST

START_TEST(the_page_says_what_decode_steps_have_not_read)
{
    metrics *m = open_metrics("s");
    char *text = write_page(m);
    const char *const step = "pikv_kv_step_unread_mass_bound{model_name=\"s\",stat=";
    char mean[96], max[96];
    snprintf(mean, sizeof mean, "%s\"mean\"}", step);
    snprintf(max, sizeof max, "%s\"max\"}", step);
    ck_assert(value_of(text, "pikv_kv_decode_pages_total{model_name=\"s\",state=\"open\"}") == 100);
    ck_assert(value_of(text, "pikv_kv_decode_pages_total{model_name=\"s\",state=\"read\"}") == 25);
    ck_assert(value_of(text, "pikv_kv_decode_heads_total{model_name=\"s\"}") == 8);
    ck_assert(value_of(text, "pikv_kv_unread_mass_bound_total{model_name=\"s\"}") == 0.5);
    ck_assert(value_of(text, "pikv_kv_unread_mass_bound_max{model_name=\"s\"}") == 0.25);
    ck_assert(value_of(text, mean) == 0.125);
    ck_assert(value_of(text, max) == 0.1875);
    free(text);
    metrics_close(m);
}
END_TEST

static kv_methods methods_of(const char *routing, const char *compression)
{
    kv_methods methods;
    const kv_config config = {.routing = (char *)(uintptr_t)routing,
                              .routing_k = 0.5,
                              .scheduling = (char *)(uintptr_t) "none",
                              .budget = 0.5,
                              .compression = (char *)(uintptr_t)compression,
                              .rewrite = (char *)(uintptr_t) "none"};
    ck_assert_int_eq(kv_methods_resolve(&config, &methods, NULL), ERR_OK);
    return methods;
}

START_TEST(sequences_are_counted_by_their_methods)
{
    metrics *m = open_metrics("s");
    const kv_methods exact = methods_of("full", "none"), lossy = methods_of("topk", "int4");
    const kv_methods selected = methods_of("full", "chunkkv,int8");
    const kv_methods last = methods_of("full", "random+adakv,lora_plus");
    metrics_count_methods(m, &exact);
    metrics_count_methods(m, &lossy);
    metrics_count_methods(m, &lossy);
    metrics_count_methods(m, &selected);
    metrics_count_methods(m, &last);
    char *text = write_page(m);
#define BY_METHOD(routing, compression)                                 \
    "pikv_requests_by_method_total{model_name=\"s\",routing=\"" routing \
    "\",scheduling=\"none\",compression=\"" compression "\"}"
    ck_assert(value_of(text, BY_METHOD("full", "none")) == 1);
    ck_assert(value_of(text, BY_METHOD("topk", "int4")) == 2);
    ck_assert(value_of(text, BY_METHOD("full", "chunkkv,int8")) == 1);
    ck_assert(value_of(text, BY_METHOD("full", "random,lora_plus")) == 1);
    ck_assert_ptr_null(strstr(text, BY_METHOD("topk", "none"))); /* nobody asked for it */
#undef BY_METHOD
    free(text);
    metrics_close(m);
}
END_TEST

START_TEST(a_pause_counts_nothing_but_refusals)
{
    const uint32_t chosen[] = {0, 1};
    metrics *m = open_metrics("s");
    metrics_pause(m, true);
    metrics_add(m, METRIC_STEPS, 1);
    metrics_observe(m, METRIC_E2E, 1);
    metrics_count_outcome(m, OUTCOME_STOP);
    metrics_count_experts(m, 0, chosen, 1, 2);
    metrics_count_reject(m, REJECT_AUTH);
    metrics_pause(m, false);
    metrics_add(m, METRIC_STEPS, 1);
    char *text = write_page(m);
    ck_assert(value_of(text, "pikv_engine_steps_total{model_name=\"s\"}") == 1);
    ck_assert(value_of(text, "pikv_e2e_request_latency_seconds_count{model_name=\"s\"}") == 0);
    ck_assert(value_of(text, "pikv_requests_total{model_name=\"s\",outcome=\"stop\"}") == 0);
    ck_assert(
        value_of(text, "pikv_moe_expert_tokens_total{model_name=\"s\",layer=\"0\",expert=\"0\"}") ==
        0);
    ck_assert(value_of(text, "pikv_request_rejections_total{model_name=\"s\",reason=\"auth\"}") ==
              1);
    free(text);
    metrics_close(m);
}
END_TEST

START_TEST(a_model_name_cannot_break_the_page)
{
    metrics *m = open_metrics("a\"b\\c\nd");
    char *text = write_page(m);
    ck_assert(value_of(text, "pikv_ready{model_name=\"a\\\"b\\\\c\\nd\"}") == 1);
    free(text);
    metrics_close(m);
}
END_TEST

START_TEST(experts_are_counted_per_layer)
{
    metrics *m = open_metrics("s");
    const uint32_t chosen[] = {0, 1, 0, 2, 0, 3}; /* 3 tokens, top 2 */
    metrics_count_experts(m, 1, chosen, 3, 2);
    char *text = write_page(m);
    ck_assert(
        value_of(text, "pikv_moe_expert_tokens_total{model_name=\"s\",layer=\"1\",expert=\"0\"}") ==
        3);
    ck_assert(
        value_of(text, "pikv_moe_expert_tokens_total{model_name=\"s\",layer=\"0\",expert=\"0\"}") ==
        0);
    /* 3 of 6 choices on one of 4 experts: twice the mean. */
    ck_assert(value_of(text, "pikv_moe_layer_load_imbalance_ratio{model_name=\"s\",layer=\"1\"}") ==
              2);
    ck_assert_ptr_null(strstr(text, "imbalance_ratio{model_name=\"s\",layer=\"0\"}"));
    free(text);
    metrics_close(m);
}
END_TEST

START_TEST(a_value_on_an_edge_belongs_to_its_bucket)
{
    metrics *m = open_metrics("s");
    metrics_observe(m, METRIC_TTFT, 0.001);
    metrics_observe(m, METRIC_TTFT, 0.0011);
    metrics_observe(m, METRIC_TTFT, 1e9);
    char *text = write_page(m);
#define TTFT(le) \
    value_of(text, "pikv_time_to_first_token_seconds_bucket{model_name=\"s\",le=\"" le "\"}")
    ck_assert(TTFT("0.001") == 1);
    ck_assert(TTFT("0.002") == 2);
    ck_assert(TTFT("2560") == 2);
    ck_assert(TTFT("+Inf") == 3);
#undef TTFT
    ck_assert(value_of(text, "pikv_time_to_first_token_seconds_count{model_name=\"s\"}") == 3);
    ck_assert(value_of(text, "pikv_time_to_first_token_seconds_sum{model_name=\"s\"}") > 9e8);
    free(text);
    metrics_close(m);
}
END_TEST

START_TEST(steps_are_one_family_with_a_phase)
{
    metrics *m = open_metrics("s");
    metrics_observe(m, METRIC_STEP_PREFILL, 0.3);
    metrics_observe(m, METRIC_STEP_DECODE, 0.1);
    metrics_observe(m, METRIC_STEP_DECODE, 0.1);
    char *text = write_page(m);
    ck_assert(value_of(text, "pikv_step_seconds_count{model_name=\"s\",phase=\"prefill\"}") == 1);
    ck_assert(value_of(text, "pikv_step_seconds_count{model_name=\"s\",phase=\"decode\"}") == 2);
    const char *type = strstr(text, "# TYPE pikv_step_seconds ");
    ck_assert_ptr_nonnull(type);
    ck_assert_ptr_null(strstr(type + 1, "# TYPE pikv_step_seconds "));
    free(text);
    metrics_close(m);
}
END_TEST

/* ---- the whole page, by a reader of its own -------------------------------------------------------- */

typedef struct page_check {
    char family[128], type[16]; /* of the last # TYPE line */
    char series[512];           /* of the last bucket, without le */
    double last_le, last_count; /* of that bucket */
    bool has_inf;
} page_check;

static void check_type_line(page_check *c, const char *line, const char *page)
{
    char again[160];
    ck_assert_int_eq(sscanf(line, "# TYPE %127s %15s", c->family, c->type), 2);
    snprintf(again, sizeof again, "# TYPE %s ", c->family);
    const char *first = strstr(page, again);
    ck_assert_msg(strstr(first + 1, again) == NULL, "%s is declared twice", c->family);
    const char *total = strstr(c->family, "_total");
    const bool ends_in_total = total != NULL && strlen(total) == 6;
    ck_assert_msg((strcmp(c->type, "counter") == 0) == ends_in_total, "%s", c->family);
}

static void check_bucket(page_check *c, const char *line)
{
    char series[512];
    const char *le = strstr(line, "le=\"");
    ck_assert_ptr_nonnull(le);
    snprintf(series, sizeof series, "%.*s", (int)(le - line), line);
    const bool is_new = strcmp(series, c->series) != 0;
    const double edge = strncmp(le + 4, "+Inf", 4) == 0 ? 1e300 : strtod(le + 4, NULL);
    const double count = strtod(strstr(le, "} ") + 2, NULL);
    if (is_new) {
        snprintf(c->series, sizeof c->series, "%s", series);
    } else {
        ck_assert_msg(edge > c->last_le, "%s", line);
        ck_assert_msg(count >= c->last_count, "%s", line);
    }
    c->last_le = edge;
    c->last_count = count;
}

static void check_sample(page_check *c, const char *line)
{
    const size_t family_bytes = strlen(c->family);
    ck_assert_msg(strncmp(line, c->family, family_bytes) == 0, "%s under %s", line, c->family);
    const char *suffix = line + family_bytes;
    ck_assert_ptr_null(memchr(line, ':', strcspn(line, "{ ")));
    if (strcmp(c->type, "histogram") != 0) {
        ck_assert_msg(*suffix == '{' || *suffix == ' ', "%s", line);
        return;
    }
    if (strncmp(suffix, "_bucket{", 8) == 0) {
        check_bucket(c, line);
    } else if (strncmp(suffix, "_count{", 7) == 0) {
        ck_assert_msg(c->last_le == 1e300, "no +Inf before %s", line);
        ck_assert_msg(strtod(strstr(line, "} ") + 2, NULL) == c->last_count, "%s", line);
    } else {
        ck_assert_msg(strncmp(suffix, "_sum{", 5) == 0, "%s", line);
    }
}

static void check_page(const char *text)
{
    page_check c = {0};
    char line[1024];
    for (const char *at = text; *at != '\0';) {
        const size_t n_bytes = strcspn(at, "\n");
        ck_assert_uint_lt(n_bytes, sizeof line);
        memcpy(line, at, n_bytes);
        line[n_bytes] = '\0';
        at += n_bytes + 1;
        if (strncmp(line, "# TYPE ", 7) == 0) {
            check_type_line(&c, line, text);
        } else if (line[0] != '#') {
            check_sample(&c, line);
        }
    }
}

static metrics *open_busy(void)
{
    metrics *m = open_metrics("busy");
    for (int i = 0; i < 1000; i++) {
        for (int h = 0; h < METRIC_HISTOGRAM_COUNT; h++)
            metrics_observe(m, (metric_histogram)h, (double)(i * i) * 1e-4);
        metrics_count_experts(m, (uint32_t)i % 3, (const uint32_t[]){(uint32_t)i % 4}, 1, 1);
    }
    return m;
}

static metrics *open_vllm(void)
{
    metrics *m;
    const metrics_shape shape = {
        .model_name = "s", .n_layers = 3, .n_experts = 4, .compat = METRICS_COMPAT_VLLM};
    ck_assert_int_eq(metrics_open(&shape, &m), ERR_OK);
    return m;
}

/* The value of vllm:NAME{LABELS}; all of these carry model and engine. */
static double vllm_value(const char *text, const char *name, const char *labels)
{
    char series[160];
    snprintf(series, sizeof series, "vllm:%s{model_name=\"s\",engine=\"0\"%s}", name, labels);
    return value_of(text, series);
}

START_TEST(names_of_vllm_are_shown_where_asked_for)
{
    metrics *m = open_vllm();
    metrics_add(m, METRIC_PROMPT_TOKENS, 100);
    metrics_add(m, METRIC_PROMPT_CACHED_TOKENS, 32);
    metrics_count_outcome(m, OUTCOME_LENGTH);
    char *text = write_page(m);
    const char *const by_source = "prompt_tokens_by_source_total";
    ck_assert(vllm_value(text, "num_requests_running", "") == 3);
    ck_assert(vllm_value(text, "num_requests_waiting", "") == 7); /* 2, and 5 preempted ones */
    ck_assert(vllm_value(text, "kv_cache_usage_perc", "") == 0.25);
    ck_assert(vllm_value(text, "prompt_tokens_total", "") == 100);
    ck_assert(vllm_value(text, by_source, ",source=\"local_compute\"") == 68);
    ck_assert(vllm_value(text, by_source, ",source=\"local_cache_hit\"") == 32);
    ck_assert(vllm_value(text, "request_success_total", ",finished_reason=\"length\"") == 1);
    ck_assert(vllm_value(text, "cache_config_info",
                         ",block_size=\"32\",cache_dtype=\"bf16\",enable_prefix_caching=\"True\","
                         "num_gpu_blocks=\"200\"") == 1);
    ck_assert(value_of(text, "pikv_kv_capacity_tokens{model_name=\"s\"}") == 6400);
    free(text);
    metrics_close(m);
    m = open_metrics("s");
    text = write_page(m);
    ck_assert_ptr_null(strstr(text, "vllm:"));
    free(text);
    metrics_close(m);
}
END_TEST

START_TEST(buckets_of_vllm_are_sums_of_ours)
{
    metrics *m = open_vllm();
    const double seconds[] = {0.0001, 0.001, 0.0015, 0.005, 0.0051, 3000};
    for (size_t i = 0; i < sizeof seconds / sizeof *seconds; i++)
        metrics_observe(m, METRIC_TTFT, seconds[i]);
    metrics_observe(m, METRIC_PROMPT_LENGTH, 1500);
    char *text = write_page(m);
    const char *const ttft = "time_to_first_token_seconds_bucket";
    ck_assert(vllm_value(text, ttft, ",le=\"0.001\"") == 2);
    ck_assert(vllm_value(text, ttft, ",le=\"0.005\"") == 4); /* ours has .002 in between */
    ck_assert(vllm_value(text, ttft, ",le=\"0.01\"") == 5);
    ck_assert(vllm_value(text, ttft, ",le=\"2560\"") == 5);
    ck_assert(vllm_value(text, ttft, ",le=\"+Inf\"") == 6);
    ck_assert(vllm_value(text, "time_to_first_token_seconds_count", "") == 6);
    ck_assert_ptr_null(strstr(text, "vllm:time_to_first_token_seconds_bucket{model_name=\"s\","
                                    "engine=\"0\",le=\"0.002\"}"));
    /* Lengths end where sequences do: the context has 2048 positions. */
    const char *const length = "request_prompt_tokens_bucket";
    ck_assert(vllm_value(text, length, ",le=\"1000\"") == 0);
    ck_assert(vllm_value(text, length, ",le=\"2000\"") == 1);
    ck_assert(vllm_value(text, length, ",le=\"+Inf\"") == 1);
    ck_assert_ptr_null(strstr(text, "vllm:request_prompt_tokens_bucket{model_name=\"s\","
                                    "engine=\"0\",le=\"5000\"}"));
    free(text);
    metrics_close(m);
}
END_TEST

START_TEST(the_page_is_well_formed)
{
    metrics *m = open_metrics("empty");
    char *text = write_page(m);
    check_page(text);
    free(text);
    metrics_close(m);
    m = open_busy();
    text = write_page(m);
    check_page(text);
    free(text);
    metrics_close(m);
}
END_TEST

START_TEST(promtool_has_nothing_to_say)
{
    if (system("command -v promtool >/dev/null") != 0)
        return; /* one tool more than the build needs */
    metrics *m = open_busy();
    char *text = write_page(m);
    char path[] = "/tmp/pikv-metrics-XXXXXX";
    const int fd = mkstemp(path);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
    char command[128];
    snprintf(command, sizeof command, "promtool check metrics < %s", path);
    ck_assert_int_eq(system(command), 0);
    unlink(path);
    free(text);
    metrics_close(m);
}
END_TEST

static void *count_much(void *arg)
{
    metrics *m = arg;
    for (int i = 0; i < 20000; i++) {
        metrics_observe(m, METRIC_ITL, 0.5);
        metrics_add(m, METRIC_STEPS, 1);
    }
    return NULL;
}

START_TEST(nothing_is_lost_while_pages_are_written)
{
    enum { N_THREADS = 3 };
    metrics *m = open_metrics("s");
    pthread_t threads[N_THREADS];
    for (int i = 0; i < N_THREADS; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, count_much, m), 0);
    for (int i = 0; i < 20; i++) {
        char *text = write_page(m);
        check_page(text);
        free(text);
    }
    for (int i = 0; i < N_THREADS; i++)
        pthread_join(threads[i], NULL);
    ck_assert_uint_eq(metrics_read(m, METRIC_STEPS), 60000);
    char *text = write_page(m);
    ck_assert(value_of(text, "pikv_inter_token_latency_seconds_count{model_name=\"s\"}") == 60000);
    ck_assert(value_of(text, "pikv_inter_token_latency_seconds_sum{model_name=\"s\"}") == 30000);
    free(text);
    metrics_close(m);
}
END_TEST

const test_case test_cases[] = {TEST_CASE(what_is_counted_is_written),
                                TEST_CASE(the_page_says_what_each_shard_owns),
                                TEST_CASE(the_page_says_what_lies_below_the_pool),
                                TEST_CASE(the_page_says_what_decode_steps_have_not_read),
                                TEST_CASE(sequences_are_counted_by_their_methods),
                                TEST_CASE(a_pause_counts_nothing_but_refusals),
                                TEST_CASE(a_model_name_cannot_break_the_page),
                                TEST_CASE(experts_are_counted_per_layer),
                                TEST_CASE(a_value_on_an_edge_belongs_to_its_bucket),
                                TEST_CASE(steps_are_one_family_with_a_phase),
                                TEST_CASE(names_of_vllm_are_shown_where_asked_for),
                                TEST_CASE(buckets_of_vllm_are_sums_of_ours),
                                TEST_CASE(the_page_is_well_formed),
                                TEST_CASE(promtool_has_nothing_to_say),
                                TEST_CASE(nothing_is_lost_while_pages_are_written),
                                TEST_CASES_END};
