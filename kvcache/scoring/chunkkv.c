/* kvcache/scoring/chunkkv.c - whole chunks by snapkv's scores (Liu et al., ChunkKV, arXiv 2502.00299).
 *
 * A chunk is worth the mean over its entries of the mean over the KV heads of s; the best chunks stay, the
 * same in all heads. A chunk is a page here: what goes are whole pages, so that nothing is packed and no
 * encoded page is written a second time. The paper has chunks of 10 and NVIDIA's kvpress of 20 positions;
 * under kv-page-tokens 20 they are the same. As many chunks stay as the budget holds whole, which is
 * the published trunc(chunks * (1 - r)) when the length is a multiple of the chunk. The paper also
 * reuses the choice of a layer in the next one, to save time, which is not done. */
#include "kvcache/scoring/methods.h"
#include "kvcache/scoring/window_attention.h"

static void score_chunks(const kv_score_args *args, float *out)
{
    kv_snapkv_score(args, KV_SNAPKV_KERNEL, out);
}

extern const kv_scorer kv_scorer_chunkkv;
const kv_scorer kv_scorer_chunkkv = {.name = "chunkkv",
                                     .needs = KV_SCORE_QUERIES,
                                     .n_queries = KV_SNAPKV_WINDOW,
                                     .over_heads = true,
                                     .by_page = true,
                                     .work_floats = kv_snapkv_floats,
                                     .lse = kv_window_lse,
                                     .score = score_chunks};
