/* service/server.c - listeners, phases, signals. See server.h.
 *
 * The listeners open first, so that a supervisor's probes have an answer while gigabytes load. The
 * main thread then loads, publishes `ready` and watches: the engine's heartbeat, the log line of every ten
 * busy seconds, the request to stop.
 *
 * Stopping: the phase becomes `draining` at once (new requests get 503, /ready too), running requests
 * get --shutdown-timeout seconds, what is left then ends with an error chunk. Connections are still
 * accepted meanwhile, since "503, come back later" is a better answer than a refused connection. */
#include "service/server_parts.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "service/cli.h"
#include "service/signal_watch.h"

#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    HEAD_TIMEOUT_MS = 10000,
    BODY_TIMEOUT_MS = 60000,
    IDLE_TIMEOUT_MS = 75000,
    STREAM_BYTES_MAX = 1 << 20, /* unsent bytes of a stream: minutes of text */
    MONITOR_BODY_BYTES_MAX = 1024,
    MONITOR_CONNECTIONS_MAX = 64,
    WATCH_MS = 1000,
    REPORT_SECONDS = 10,
    FLUSH_MS_MAX = 5000,
    FAILED_FLUSH_MS = 1000, /* what runs ends with an error, and the process soon */
    FLUSH_POLL_MS = 5
};

/* ---- listeners ----------------------------------------------------------------------------------------- */

enum { URL_BYTES = 300 };

static const char *url_of(const char *host, uint16_t port, char url[URL_BYTES])
{
    const bool is_v6 = strchr(host, ':') != NULL;
    snprintf(url, URL_BYTES, "http://%s%.200s%s:%u", is_v6 ? "[" : "", host, is_v6 ? "]" : "",
             port);
    return url;
}

static void log_listening(const char *name, const char *host, uint16_t port)
{
    char url[URL_BYTES];
    log_info("server", "listening name=%s url=%s", name, url_of(host, port, url));
}

static err_t open_main(server_parts *parts, err_info *info)
{
    const serve_config *serve = &parts->settings->serve;
    const http_config config = {.host = serve->host,
                                .port = (uint16_t)serve->port,
                                .n_connections_max = serve->n_connections_max,
                                .body_bytes_max = serve->body_bytes_max,
                                .head_timeout_ms = HEAD_TIMEOUT_MS,
                                .body_timeout_ms = BODY_TIMEOUT_MS,
                                .write_timeout_ms = serve->stream_write_timeout_s * 1000,
                                .idle_timeout_ms = IDLE_TIMEOUT_MS,
                                .stream_bytes_max = STREAM_BYTES_MAX,
                                .server_name = "main"};
    const http_handler handler = {
        .handle = api_handle, .ctx = &parts->api, .error_body = api_error_body};
    TRY(http_server_open(&config, &handler, &parts->server, info));
    parts->api.server = parts->server;
    log_listening("main", serve->host, http_server_port(parts->server));
    return ERR_OK;
}

/* Probes and scrapes have their own listener, which requests cannot fill. A port that nobody asked for is
 * no reason not to start. */
static err_t open_monitor(server_parts *parts, err_info *info)
{
    const serve_config *serve = &parts->settings->serve;
    const char *host = serve->monitor_host != NULL ? serve->monitor_host : serve->host;
    const http_config config = {.host = host,
                                .port = (uint16_t)serve->monitor_port,
                                .n_connections_max = MONITOR_CONNECTIONS_MAX,
                                .body_bytes_max = MONITOR_BODY_BYTES_MAX,
                                .head_timeout_ms = HEAD_TIMEOUT_MS,
                                .body_timeout_ms = BODY_TIMEOUT_MS,
                                .write_timeout_ms = HEAD_TIMEOUT_MS,
                                .idle_timeout_ms = IDLE_TIMEOUT_MS,
                                .stream_bytes_max = STREAM_BYTES_MAX,
                                .server_name = "monitor"};
    const http_handler handler = {
        .handle = api_handle_monitor, .ctx = &parts->api, .error_body = api_error_body};
    err_info own = {0};
    if (!serve->monitor) return ERR_OK;
    const err_t err = http_server_open(&config, &handler, &parts->monitor, &own);
    if (err == ERR_OK) {
        log_listening("monitor", host, http_server_port(parts->monitor));
        return ERR_OK;
    }
    if (!serve->monitor_port_is_auto) return err_set(info, err, "%s", own.message);
    log_warn("server", "no monitor listener: %s", own.message);
    return ERR_OK;
}

/* ---- the watch ----------------------------------------------------------------------------------------- */

typedef struct throughput {
    uint64_t at_ns, n_prompt, n_output; /* of the last report */
} throughput;

static void report(const server_parts *parts, throughput *last)
{
    const uint64_t now_ns = clock_mono_ns();
    const double seconds = (double)(now_ns - last->at_ns) * 1e-9;
    if (seconds < REPORT_SECONDS) return;
    const uint64_t n_prompt = metrics_read(parts->metrics, METRIC_PROMPT_TOKENS);
    const uint64_t n_output = metrics_read(parts->metrics, METRIC_GENERATION_TOKENS);
    const engine_load load = engine_get_load(parts->e);
    kv_stats kv;
    kv_stats_read(parts->own.cache, &kv);
    const bool is_busy = n_prompt + n_output > last->n_prompt + last->n_output ||
                         load.n_running + load.n_waiting > 0;
    if (is_busy) {
        const uint64_t n_asked = kv.prefix_query_tokens > 0 ? kv.prefix_query_tokens : 1;
        const uint64_t n_pages = kv.pages_total > 0 ? kv.pages_total : 1;
        log_info("server",
                 "throughput prompt_tokens_per_s=%.1f output_tokens_per_s=%.1f running=%" PRIu32
                 " waiting=%" PRIu32 " kv_used=%.1f%% prefix_hits=%.1f%%",
                 (double)(n_prompt - last->n_prompt) / seconds,
                 (double)(n_output - last->n_output) / seconds, load.n_running, load.n_waiting,
                 100.0 * (double)kv.pages_used / (double)n_pages,
                 100.0 * (double)kv.prefix_hit_tokens / (double)n_asked);
    }
    *last = (throughput){now_ns, n_prompt, n_output};
}

/* Until the server shall stop. False if the engine has died, of what `info` says. */
static bool watch_engine(const server_parts *parts, const signal_watch *watch, err_info *info)
{
    throughput last = {clock_mono_ns(), metrics_read(parts->metrics, METRIC_PROMPT_TOKENS),
                       metrics_read(parts->metrics, METRIC_GENERATION_TOKENS)};
    struct pollfd stop = {.fd = watch->stop_event, .events = POLLIN};
    while (poll(&stop, 1, WATCH_MS) <= 0) {
        if (engine_status(parts->e, info) != ERR_OK) return false;
        report(parts, &last);
    }
    return true;
}

/* ---- phases -------------------------------------------------------------------------------------------- */

static void set_phase(server_parts *parts, api_phase phase)
{
    atomic_store_explicit(&parts->api.phase, phase, memory_order_release);
}

static uint32_t n_active(const server_parts *parts)
{
    return http_server_n_active(parts->server);
}

/* The last bytes of the last replies. */
static void flush(server_parts *parts, int ms_max)
{
    http_server_stop_accepting(parts->server);
    for (int ms = 0; ms < ms_max && n_active(parts) > 0; ms += FLUSH_POLL_MS)
        poll(NULL, 0, FLUSH_POLL_MS);
}

static void drain(server_parts *parts)
{
    const uint64_t start_ns = clock_mono_ns();
    set_phase(parts, API_DRAINING);
    engine_drain(parts->e, parts->settings->serve.shutdown_timeout_s * 1000);
    flush(parts, FLUSH_MS_MAX);
    log_info("server", "drained seconds=%.3f", clock_seconds_since(start_ns));
}

/* Loaded, then watched to the end. The exit code. */
static int serve(server_parts *parts, signal_watch *watch, err_info *info)
{
    if (server_load(parts, info) != ERR_OK) return 1;
    signal_watch_set_busy(watch);
    set_phase(parts, API_READY);
    const serve_config *config = &parts->settings->serve;
    char url[URL_BYTES];
    log_info("server", "ready model=%s url=%s seconds=%.3f", parts->model_names[0],
             url_of(config->host, http_server_port(parts->server), url), parts->api.load_seconds);
    if (watch_engine(parts, watch, info)) {
        drain(parts);
        return 0;
    }
    set_phase(parts, API_FAILED);
    flush(parts, FAILED_FLUSH_MS);
    return 1;
}

int server_run(const server_settings *settings)
{
    err_info info = {0};
    server_parts parts;
    signal_watch watch;
    int code = 1;
    err_t err = server_prepare(&parts, settings, &info);
    const signal_watch_options signals = {.name = "server",
                                          .on_stop =
                                              "running requests are finished, new ones refused",
                                          .is_under_mpi = rank_place_is_mpi(&settings->place)};
    if (err == ERR_OK) err = signal_watch_open(&watch, &signals, &info);
    if (err == ERR_OK) {
        err = open_main(&parts, &info);
        if (err == ERR_OK) err = open_monitor(&parts, &info);
        if (err == ERR_OK) code = serve(&parts, &watch, &info);
        /* Listeners first: their exchanges hold sessions and read the engine. The monitor before the
         * main one, whose state its /metrics reads. */
        http_server_close(parts.monitor);
        http_server_close(parts.server);
        server_unload(&parts);
        signal_watch_close(&watch);
    } else {
        server_unload(&parts);
    }
    if (code != 0)
        log_error("server", "%s", info.code != ERR_OK ? info.message : err_sentence(err));
    /* Some settings can only be judged once the model is known: still a mistake in the settings. */
    return code != 0 && info.code == ERR_BAD_CONFIG ? CLI_EXIT_USAGE : code;
}
