/* tests/kvcache/test_device_commit.c - pages that a device makes of entries that it has: their bytes are the host's,
 * in both memories, and hardly anything goes up. */
#include "tests/kernels/dev_apart.h"
#include "tests/kvcache/fake_model.h"
#include "tests/test_main.h"

#include "kvcache/device_view.h"
#include "kvcache/encode.h"
#include "kvcache/page_changes.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SECTION = 64, CHUNK = 50, N_SEQS = 3, PROMPT = 150, TOKENS = 200 };

/* The first five by the device alone; with boxes and without. */
static const struct {
    const char *name;
    bool has_boxes;
} codecs[] = {{"none", true}, {"none", false},      {"fp8", true},  {"int8", false},
              {"int4", true}, {"int4", false},      {"int2", true}, {"prune", true},
              {"lora", true}, {"lora_plus", false}, {"svd", true},  {"pikv", false}};

typedef struct run {
    fake *f;
    fake_seq seqs[N_SEQS];
    dev_apart_traffic in_prompt,
        in_decode; /* of a device apart: of the first prompt, of all rows */
} run;

static dev_apart_traffic traffic_of(const fake *f)
{
    return f->cache->view != NULL ? dev_apart_count(f->d) : (dev_apart_traffic){0};
}

/* Since then, without what the model itself sends and fetches for n_tokens in n_steps. */
static dev_apart_traffic since(const fake *f, dev_apart_traffic before, uint32_t n_tokens,
                               uint32_t n_steps)
{
    dev_apart_traffic out = traffic_of(f);
    for (uint32_t l = 0; l < f->n_layers; l++) {
        const kv_layer_shape *layer = &f->layers[l];
        const size_t n_up = (size_t)layer->n_heads * layer->k_dim +
                            (size_t)layer->n_kv_heads * (layer->k_dim + layer->v_dim);
        out.up_bytes -= n_up * n_tokens * sizeof(float);
        out.down_bytes -= (size_t)layer->n_heads * layer->v_dim * n_tokens * sizeof(float);
        out.n_uploads -= 3 * (uint64_t)n_steps;
        out.n_downloads -= n_steps;
    }
    out.up_bytes -= before.up_bytes;
    out.down_bytes -= before.down_bytes;
    out.n_uploads -= before.n_uploads;
    out.n_downloads -= before.n_downloads;
    return out;
}

/* Prompts one by one, the last behind a prefix of the first's, then decode steps of all together. */
static void run_open(const char *device, const char *codec, bool has_boxes, run *out)
{
    fake_seq *rows[N_SEQS];
    ck_assert_int_eq(setenv("PIKV_TEST_DEVICE", device, 1), 0);
    fake_options options = {.layers = fake_coded_layers,
                            .n_layers = 2,
                            .model_type = DTYPE_BF16,
                            .config = fake_coded(codec)};
    options.config.request_methods = has_boxes;
    *out = (run){.f = fake_open(&options)};
    out->f->cache->section_tokens = SECTION;
    for (uint32_t i = 0; i < N_SEQS; i++) {
        const uint32_t n = PROMPT - 5 * i;
        const fake_ids ids = {
            .seed = 1 + i, .n_prompt = n, .shared_seed = 1, .n_shared = i + 1 == N_SEQS ? 70 : 0};
        fake_seq *s = &out->seqs[i];
        *s = fake_seq_open(out->f, ids);
        s->n_prompt = n;
        if (i > 0) (void)kv_seq_take_prefix(s->seq, s->tokens, n);
        const dev_apart_traffic before = traffic_of(out->f);
        fake_run(out->f, s, n, CHUNK);
        if (i == 0) out->in_prompt = since(out->f, before, n, n / CHUNK);
        rows[i] = s;
    }
    const dev_apart_traffic before = traffic_of(out->f);
    for (uint32_t t = 0; t < TOKENS - PROMPT; t++)
        ck_assert_int_eq(fake_step(out->f, rows, (uint32_t[]){1, 1, 1}, N_SEQS), ERR_OK);
    out->in_decode = since(out->f, before, N_SEQS * (TOKENS - PROMPT), TOKENS - PROMPT);
}

static void run_close(run *r)
{
    for (uint32_t i = 0; i < N_SEQS; i++)
        fake_seq_close(r->f, &r->seqs[i], false);
    fake_close(r->f);
}

/* ---- bytes --------------------------------------------------------------------------------------- */

/* Rows of a plain page; what lies between them and behind is nobody's. */
static void check_page_bytes(const kv_page_layout *layout, const uint8_t *a, const uint8_t *b,
                             uint32_t n_slots)
{
    const kv_strip *strip = &layout->strip;
    if (layout->coding != ATTN_PLAIN || layout->coefficients.n_slots > 0) {
        ck_assert_mem_eq(a, b, layout->page_bytes);
        return;
    }
    ck_assert_mem_eq(a, b, n_slots * (size_t)strip->k_stride_bytes);
    ck_assert_mem_eq(a + strip->v_offset_bytes, b + strip->v_offset_bytes,
                     n_slots * (size_t)strip->v_copy_bytes);
}

/* A page of the host's in the memory of its device. False: it is still to be told. */
static bool check_there(const kv_cache *cache, uint32_t page)
{
    uint8_t there[1 << 14];
    const kv_page_layout *layout = kv_layout_of(cache, page);
    if (!kv_pool_has_copy(cache->pool, page)) return false;
    ck_assert_uint_le(layout->page_bytes, sizeof there);
    dev_download(cache->d, there, cache->view->device.pool + kv_pool_offset(cache->pool, page),
                 layout->page_bytes);
    check_page_bytes(layout, kv_pool_data(cache->pool, page), there,
                     kv_pool_pages(cache->pool)->n_slots[page]);
    if (cache->view->choice.boxes == NULL) return true;
    const size_t bytes = kv_pool_pages(cache->pool)->box_bytes;
    dev_download(cache->d, there, cache->view->choice.boxes + page * bytes, bytes);
    ck_assert_mem_eq(kv_pool_box(cache->pool, page), there, bytes);
    return true;
}

/* Both caches have the same entries; returns how many pages the second one's device has. */
static uint32_t check_pages(const run *host, const run *apart, uint32_t s, uint32_t *n_pages)
{
    const kv_cache *a = host->f->cache, *b = apart->f->cache;
    const kv_seq *from = host->seqs[s].seq, *to = apart->seqs[s].seq;
    uint32_t n_there = 0;
    ck_assert_uint_eq(from->n_blocks, to->n_blocks);
    for (uint32_t list = 0; list < a->n_lists; list++) {
        for (uint32_t block = 0; block < from->n_blocks; block++) {
            const uint32_t p = kv_table_page(&from->table, list, block),
                           q = kv_table_page(&to->table, list, block);
            ck_assert_uint_eq(p == KV_PAGE_NONE, q == KV_PAGE_NONE);
            if (p == KV_PAGE_NONE) continue;
            ck_assert_uint_eq(kv_pool_class(a->pool, p), kv_pool_class(b->pool, q));
            check_page_bytes(kv_layout_of(a, p), kv_pool_data(a->pool, p), kv_pool_data(b->pool, q),
                             kv_pool_pages(a->pool)->n_slots[p]);
            if (a->has_boxes)
                ck_assert_mem_eq(kv_pool_box(a->pool, p), kv_pool_box(b->pool, q),
                                 kv_pool_pages(a->pool)->box_bytes);
            n_there += check_there(b, q);
            (*n_pages)++;
        }
    }
    return n_there;
}

/* Sums in other orders, over the same entries. */
static void check_outputs(const run *host, const run *apart, uint32_t s)
{
    const size_t n = host->f->n_out * TOKENS;
    const float *a = host->seqs[s].out, *b = apart->seqs[s].out;
    for (size_t i = 0; i < n - host->f->n_out * 5 * s; i++)
        ck_assert_float_eq_tol(a[i], b[i], 1e-5f);
}

/* Slots of a ring that have not changed for the device are the host's, those of recent tokens all. */
static void check_ring(const run *apart, uint32_t s)
{
    const kv_cache *cache = apart->f->cache;
    const kv_seq *seq = apart->seqs[s].seq;
    const kv_view *view = cache->view;
    const size_t n_slots = (size_t)cache->rings.n_recent + cache->rings.n_sinks;
    uint8_t *here = calloc(1, view->slot_bytes), *there = calloc(1, view->slot_bytes);
    for (uint32_t p = 0; p < seq->length; p++) {
        const bool is_sink = p < cache->rings.n_sinks;
        if (!is_sink && p < seq->n_blocks * cache->page_tokens) continue;
        const uint32_t slot = is_sink ? cache->rings.n_recent + p : p % cache->rings.n_recent;
        ck_assert(!atomic_load(&seq->ring->changed[slot]));
        kv_slots_pack(&(kv_slot_copy){.cache = cache,
                                      .strips = &cache->rings.strips,
                                      .bytes = seq->ring->bytes,
                                      .first = slot,
                                      .packed = here},
                      1);
        dev_download(cache->d, there,
                     view->device.rings +
                         ((size_t)(seq - cache->seqs) * n_slots + slot) * view->slot_bytes,
                     view->slot_bytes);
        for (uint32_t l = 0; l < cache->n_layers; l++) {
            const kv_strip *strip = &cache->staging.strips.strip[l];
            ck_assert_mem_eq(here + view->layer_offset[l], there + view->layer_offset[l],
                             cache->n_kv_heads[l] *
                                 ((size_t)strip->k_stride_bytes + strip->v_copy_bytes));
        }
    }
    free(here);
    free(there);
}

START_TEST(both_memories_have_the_bytes_of_a_host_alone)
{
    for (size_t c = 0; c < sizeof codecs / sizeof codecs[0]; c++) {
        static run host, apart;
        uint32_t n_pages = 0, n_there = 0;
        run_open("cpu", codecs[c].name, codecs[c].has_boxes, &host);
        run_open("apart", codecs[c].name, codecs[c].has_boxes, &apart);
        const bool is_there = apart.f->cache->view->n_hosts == 0;
        ck_assert(is_there == (strcmp(codecs[c].name, "pikv") != 0));
        for (uint32_t s = 0; s < N_SEQS; s++) {
            n_there += check_pages(&host, &apart, s, &n_pages);
            check_outputs(&host, &apart, s);
            if (is_there) check_ring(&apart, s);
        }
        ck_assert_uint_gt(n_pages, 100);
        ck_assert_uint_le(n_pages - n_there, is_there ? 0 : n_pages);
        run_close(&host);
        run_close(&apart);
    }
}
END_TEST

/* ---- traffic ------------------------------------------------------------------------------------- */

START_TEST(what_the_device_has_does_not_go_up)
{
    static const char *const names[] = {"none", "int4"};
    for (int c = 0; c < 2; c++) {
        static run apart;
        run_open("apart", names[c], false, &apart);
        const double slot_bytes = (double)apart.f->cache->view->slot_bytes,
                     n_decoded = N_SEQS * (TOKENS - PROMPT);
        printf(
            "%s: a token's entries are %.0f bytes; of a prompt %.0f up, %.0f down; in decode steps "
            "%.0f up, %.0f down, %.1f uploads and %.1f downloads a step\n",
            names[c], slot_bytes, (double)apart.in_prompt.up_bytes / PROMPT,
            (double)apart.in_prompt.down_bytes / PROMPT,
            (double)apart.in_decode.up_bytes / n_decoded,
            (double)apart.in_decode.down_bytes / n_decoded,
            (double)apart.in_decode.n_uploads / (TOKENS - PROMPT),
            (double)apart.in_decode.n_downloads / (TOKENS - PROMPT));
        /* What goes up is lists, tasks and rows. */
        ck_assert_double_lt((double)apart.in_prompt.up_bytes, 0.35 * slot_bytes * PROMPT);
        ck_assert_double_lt((double)apart.in_decode.up_bytes, slot_bytes * n_decoded);
        /* The step's entries come down, and what was encoded, once. */
        ck_assert_double_ge((double)apart.in_prompt.down_bytes, slot_bytes * PROMPT);
        ck_assert_double_lt((double)apart.in_decode.down_bytes, 1.5 * slot_bytes * n_decoded);
        run_close(&apart);
    }
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(both_memories_have_the_bytes_of_a_host_alone),
    TEST_CASE(what_the_device_has_does_not_go_up),
    TEST_CASES_END,
};
