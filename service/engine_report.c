/* service/engine_report.c - the line that a busy engine writes every ten seconds. Idle, it is silent. */
#include "service/engine_internal.h"

#include "base/clock.h"
#include "base/log.h"

static const uint64_t INTERVAL_NS = 10ull * 1000 * 1000 * 1000;

static engine_report report_now(const engine *e)
{
    kv_stats stats;
    kv_stats_read(e->parts.cache, &stats);
    return (engine_report){.at_ns = clock_mono_ns(),
                           .n_prompt = metrics_read(e->parts.metrics, METRIC_PROMPT_TOKENS),
                           .n_output = metrics_read(e->parts.metrics, METRIC_GENERATION_TOKENS),
                           .n_queried = stats.prefix_query_tokens,
                           .n_hit = stats.prefix_hit_tokens};
}

static double share(uint64_t part, uint64_t whole)
{
    return whole > 0 ? (double)part / (double)whole : 0;
}

void engine_report_start(engine *e)
{
    const bool is_first = e->reported.at_ns == 0;
    if (is_first || clock_mono_ns() - e->reported.at_ns > INTERVAL_NS) e->reported = report_now(e);
}

void engine_report_if_due(engine *e)
{
    if (clock_mono_ns() - e->reported.at_ns < INTERVAL_NS) return;
    const engine_report before = e->reported, now = report_now(e);
    const double seconds = (double)(now.at_ns - before.at_ns) * 1e-9;
    const engine_load load = engine_get_load(e);
    kv_stats stats;
    kv_stats_read(e->parts.cache, &stats);
    log_info("engine",
             "load prompt_tokens_per_s=%.1f output_tokens_per_s=%.1f running=%u waiting=%u "
             "preempted=%u kv_used=%.3f prefix_hits=%.3f",
             (double)(now.n_prompt - before.n_prompt) / seconds,
             (double)(now.n_output - before.n_output) / seconds, load.n_running, load.n_waiting,
             load.n_preempted, share(stats.pages_used, stats.pages_total),
             share(now.n_hit - before.n_hit, now.n_queried - before.n_queried));
    e->reported = now;
}
