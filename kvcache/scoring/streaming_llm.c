/* kvcache/scoring/streaming_llm.c - sinks and the newest entries (Xiao et al., Efficient streaming language
 * models with attention sinks, 2023).
 *
 * Keys keep the angles of their own positions; the paper turns them to their places in the cache. */
#include "kvcache/scoring/methods.h"

static void score_recency(const kv_score_args *args, float *out)
{
    for (uint32_t i = 0; i < args->view->n; i++) {
        const uint32_t position = args->view->positions[i];
        out[i] = position < KV_SCORE_SINKS ? 1 : -(float)(args->length - position);
    }
}

extern const kv_scorer kv_scorer_streaming_llm;
const kv_scorer kv_scorer_streaming_llm = {.name = "streaming_llm", .score = score_recency};
