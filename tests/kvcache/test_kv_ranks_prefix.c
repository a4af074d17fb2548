/* tests/kvcache/test_kv_ranks_prefix.c - what a new sequence may take from those before it, over several ranks.
 *
 * A hit must be the same on all ranks, whatever each of them has given up, and what is computed behind it is
 * compared with the reference and, to the last bit, among ranks. */
#include "kvcache/ranks.h"
#include "tests/kvcache/rank_group.h"
#include "tests/test_main.h"

#include "base/random.h"

#include <string.h>

enum { N = 90, HITS_MAX = 256 };

/* What every rank writes down, in the order of its calls: one for each rank in ctx. */
typedef struct rank_notes {
    uint32_t hits[HITS_MAX];
    uint32_t n_hits;
    uint64_t bits; /* of all that attention returned */
} rank_notes;

static void note(const rank_test *t, uint32_t n_taken)
{
    rank_notes *notes = (rank_notes *)(uintptr_t)t->ctx + t->rank;
    ck_assert_uint_lt(notes->n_hits, HITS_MAX);
    notes->hits[notes->n_hits++] = n_taken;
}

static void note_bits(const rank_test *t, const fake_seq *s, uint32_t first, uint32_t end)
{
    rank_notes *notes = (rank_notes *)(uintptr_t)t->ctx + t->rank;
    for (size_t i = first * t->f->n_out; i < end * t->f->n_out; i++) {
        uint32_t bits;
        memcpy(&bits, &s->out[i], sizeof bits);
        notes->bits = notes->bits * 31 + bits;
    }
}

static void check(const rank_test *t, const fake_seq *s, uint32_t first, uint32_t end)
{
    ck_assert_double_le(fake_error(t->f, s, first, end), 1);
    note_bits(t, s, first, end);
}

static uint32_t take(rank_test *t, fake_seq *s, uint32_t n_tokens)
{
    const uint32_t n_taken = kv_seq_take_prefix(s->seq, s->tokens, n_tokens);
    ck_assert_uint_eq(n_taken, kv_seq_length(s->seq));
    note(t, n_taken);
    return n_taken;
}

/* Leaves n tokens of these ids behind. */
static void leave(rank_test *t, fake_ids ids, uint32_t n_tokens)
{
    fake_seq s = fake_seq_open(t->f, ids);
    (void)take(t, &s, n_tokens);
    fake_run(t->f, &s, n_tokens, 64);
    fake_seq_close(t->f, &s, true);
}

/* How many of the n tokens with these ids are cached on all ranks. */
static uint32_t n_cached(rank_test *t, fake_ids ids, uint32_t n_tokens)
{
    fake_seq s = fake_seq_open(t->f, ids);
    const uint32_t n = take(t, &s, n_tokens);
    s.seq->no_prefix_write = true;
    fake_seq_close(t->f, &s, false);
    return n;
}

static void check_notes_agree(const rank_notes *notes, uint32_t n)
{
    for (uint32_t r = 1; r < n; r++)
        ck_assert_mem_eq(&notes[0], &notes[r], sizeof notes[0]);
}

/* Runs the body on 1, 2, 3, 4 and 8 ranks; hits are those of one rank. */
static void run_all(const fake_options *options, void (*body)(rank_test *t))
{
    static const uint32_t n_ranks[] = {1, 2, 3, 4, 8};
    rank_notes alone[RANKS_MAX], notes[RANKS_MAX];
    for (int i = 0; i < 5; i++) {
        const uint32_t n = n_ranks[i];
        rank_test ranks[RANKS_MAX];
        rank_notes *of = i == 0 ? alone : notes;
        memset(of, 0, sizeof alone);
        run_group(ranks, &(rank_run){.n = n, .options = *options, .body = body, .ctx = of});
        check_notes_agree(of, n);
        ck_assert_uint_gt(of[0].n_hits, 0);
        ck_assert_uint_eq(of[0].n_hits, alone[0].n_hits);
        ck_assert_mem_eq(of[0].hits, alone[0].hits, sizeof alone[0].hits);
        close_ranks(ranks, n);
    }
}

/* Layers that never free a page: what is left behind can hit at every length. */
static const kv_layer_shape *full_layers(kv_layer_shape layers[2])
{
    layers[0] = fake_layers[0];
    layers[1] = fake_layers[2];
    return layers;
}

/* ---- hits ----------------------------------------------------------------------------------------- */

/* Prefixes of all lengths, of finished sequences; what follows is chunked, and decoded. */
static void take_all_lengths(rank_test *t)
{
    leave(t, (fake_ids){.seed = 1}, 60);
    for (uint32_t n_shared = 3; n_shared < 60; n_shared += 5) {
        const fake_ids ids = {.seed = 100 + n_shared, .shared_seed = 1, .n_shared = n_shared};
        fake_seq s = fake_seq_open(t->f, ids);
        const uint32_t n_taken = take(t, &s, N);
        ck_assert_uint_eq(n_taken, n_shared < 4 ? 0 : n_shared);
        fake_run(t->f, &s, N - 5, 11);
        fake_run(t->f, &s, N, 1);
        check(t, &s, n_taken, N);
        fake_seq_close(t->f, &s, true);
    }
}

START_TEST(a_hit_is_the_same_on_all_ranks_and_what_follows_is_right)
{
    static const char *const placements[] = {"block", "expert", "hash"};
    for (int p = 0; p < 3; p++) {
        kv_layer_shape layers[2];
        const fake_options options =
            rank_options(placements[p], 8, full_layers(layers), 2, fake_defaults());
        run_all(&options, take_all_lengths);
    }
}
END_TEST

/* The source goes on: what is in pages of it, and what in its ring, moves under the shared prompt. */
static void take_from_running(rank_test *t)
{
    fake_seq source = fake_seq_open(t->f, (fake_ids){.seed = 1});
    fake_run(t->f, &source, 43, 64);
    kv_seq_share_prompt(source.seq, source.tokens, 43);
    for (uint32_t length = 43; length < 70; length += 3) {
        fake_run(t->f, &source, length, 1);
        fake_seq s = fake_seq_open(t->f, (fake_ids){.seed = 2, .shared_seed = 1, .n_shared = 43});
        const uint32_t n_taken = take(t, &s, N);
        fake_run(t->f, &s, N, 64);
        check(t, &s, n_taken, N);
        s.seq->no_prefix_write = true;
        fake_seq_close(t->f, &s, false);
    }
    fake_seq_close(t->f, &source, true);
    (void)n_cached(t, (fake_ids){.seed = 1}, N);
}

START_TEST(a_running_prompt_is_shared_on_all_ranks)
{
    static const char *const placements[] = {"block", "expert", "hash"};
    for (int p = 0; p < 6; p++) {
        kv_layer_shape layers[2];
        (void)full_layers(layers);
        /* The window of 10 of the second layer frees older pages after a while. */
        const fake_options options = rank_options(
            placements[p % 3], 8, p < 3 ? layers : fake_layers, p < 3 ? 2 : 3, fake_defaults());
        run_all(&options, take_from_running);
    }
}
END_TEST

/* Windows have freed what shorter hits need; pages of a window lie on some ranks alone. */
static void take_behind_windows(rank_test *t)
{
    leave(t, (fake_ids){.seed = 1}, 70);
    ck_assert_uint_eq(n_cached(t, (fake_ids){.seed = 2, .shared_seed = 1, .n_shared = 30}, N), 0);
    fake_seq s = fake_seq_open(t->f, (fake_ids){.seed = 1});
    const uint32_t n_taken = take(t, &s, N);
    ck_assert_uint_eq(n_taken, 70);
    fake_run(t->f, &s, N, 7);
    check(t, &s, n_taken, N);
    fake_seq_close(t->f, &s, true);
}

START_TEST(windows_refuse_the_same_hits_on_all_ranks)
{
    static const char *const placements[] = {"block", "expert", "hash"};
    for (int p = 0; p < 3; p++) {
        kv_layer_shape layers[2] = {fake_layers[0], fake_layers[1]};
        layers[1].window = 21;
        layers[1].has_router = true;
        const fake_options options = rank_options(placements[p], 8, layers, 2, fake_defaults());
        run_all(&options, take_behind_windows);
    }
}
END_TEST

/* ---- what is left behind -------------------------------------------------------------------------- */

static void live_with_others(rank_test *t)
{
    fake_seq s = fake_seq_open(t->f, (fake_ids){.seed = 1});
    fake_run(t->f, &s, 30, 64);
    kv_seq_share_prompt(s.seq, s.tokens, 30);
    fake_run(t->f, &s, 55, 1);
    fake_seq_close(t->f, &s, false); /* the ids of its prompt alone are known */
    note(t, n_cached(t, (fake_ids){.seed = 1}, 100) >= 28);
    s = fake_seq_open(t->f, (fake_ids){.seed = 1});
    const uint32_t n_taken = kv_seq_take_prefix(s.seq, s.tokens, 100);
    fake_run(t->f, &s, 60, 9);
    check(t, &s, n_taken, 60);
    fake_seq_close(t->f, &s, true);
    leave(t, (fake_ids){.seed = 2}, 40);
    leave(t, (fake_ids){.seed = 2}, 55); /* contains the one before, */
    leave(t, (fake_ids){.seed = 2}, 30); /* and this one */
    note(t, (uint32_t)fake_stats(t->f).prefix_objects);
    s = fake_seq_open_salted(t->f, (fake_ids){.seed = 2}, "another tenant");
    ck_assert_uint_eq(take(t, &s, 50), 0);
    fake_seq_close(t->f, &s, false);
    s = fake_seq_open(t->f, (fake_ids){.seed = 2});
    (void)take(t, &s, 100);
    kv_cache_drop_prefixes(t->f->cache); /* but for the one in use */
    fake_run(t->f, &s, 70, 3);
    check(t, &s, 55, 70);
    s.seq->no_prefix_write = true;
    fake_seq_close(t->f, &s, true);
    kv_cache_drop_prefixes(t->f->cache);
    ck_assert_uint_eq(fake_stats(t->f).slab_bytes, 0);
    note(t, (uint32_t)fake_stats(t->f).prefix_hit_tokens > 0);
}

START_TEST(sharing_leaving_and_dropping_are_the_same_on_all_ranks)
{
    static const char *const placements[] = {"block", "expert", "hash"};
    for (int p = 0; p < 3; p++) {
        kv_layer_shape layers[2];
        const fake_options options =
            rank_options(placements[p], 8, full_layers(layers), 2, fake_defaults());
        rank_notes notes[RANKS_MAX];
        memset(notes, 0, sizeof notes);
        rank_test ranks[3];
        run_group(ranks,
                  &(rank_run){.n = 3, .options = options, .body = live_with_others, .ctx = notes});
        check_notes_agree(notes, 3);
        close_ranks(ranks, 3);
    }
}
END_TEST

/* ---- lossy settings ------------------------------------------------------------------------------- */

/* No reference knows what is right here, but all ranks have the same bits. */
static void take_lossy(rank_test *t)
{
    static const uint32_t n_shared[] = {150, 97, 40, 180, 150};
    leave(t, (fake_ids){.seed = 1, .n_prompt = 150}, 180);
    for (int i = 0; i < 5; i++) {
        const fake_ids ids = {
            .seed = 10 + (uint32_t)i, .shared_seed = 1, .n_shared = n_shared[i], .n_prompt = 185};
        fake_seq s = fake_seq_open(t->f, ids);
        s.n_prompt = 185;
        const uint32_t n_taken = take(t, &s, 190);
        fake_run(t->f, &s, 185, 50);
        kv_seq_share_prompt(s.seq, s.tokens, 185);
        fake_run(t->f, &s, 200, 1);
        note_bits(t, &s, n_taken, 200);
        fake_seq_close(t->f, &s, true);
    }
}

/* Also of sequences that evict: they leave what their prompts had in whole blocks. */
START_TEST(hits_under_lossy_settings_are_the_same_on_all_ranks)
{
    static const char *const codecs[] = {"int8", "lora", "pikv", "int4", "none"};
    static const char *const policies[] = {"none", "none", "none", "knorm", "streaming_llm"};
    static const char *const placements[] = {"block", "expert"};
    for (int i = 0; i < 10; i++) {
        rank_test ranks[3];
        rank_notes notes[RANKS_MAX];
        kv_layer_shape layers[2] = {fake_coded_layers[0], fake_coded_layers[1]};
        layers[1].window = 0;
        fake_options options =
            rank_options(placements[i % 2], 4, layers, 2, fake_coded(codecs[i / 2]));
        options.config.scheduling = (char *)(uintptr_t)policies[i / 2];
        options.config.budget = 0.6;
        memset(notes, 0, sizeof notes);
        run_group(ranks, &(rank_run){.n = 3, .options = options, .body = take_lossy, .ctx = notes});
        check_notes_agree(notes, 3);
        ck_assert_uint_gt(fake_stats(ranks[0].f).prefix_hit_tokens, i / 2 < 3 ? 400 : 0);
        close_ranks(ranks, 3);
    }
}
END_TEST

/* ---- pressure on one rank ------------------------------------------------------------------------- */

static void make_one_small(rank_test *t)
{
    if (t->rank == 1) t->options.config.memory_bytes = 2 * KV_SLAB_BYTES;
}

enum { N_COMES = 40, N_COME = 150 };

/* Conversations that come back; which of them are whole, which are cut, is what one rank has room for. */
static void come_and_go(rank_test *t)
{
    for (uint32_t i = 0; i < N_COMES; i++) {
        const uint32_t seed = 1 + random_at(3, 5, i).word[0] % (4 * t->n_ranks - 1),
                       n = N_COME + 5 * (i / 10);
        fake_seq s = fake_seq_open(t->f, (fake_ids){.seed = seed});
        const uint32_t n_taken = take(t, &s, n);
        fake_run(t->f, &s, n, 40);
        check(t, &s, n_taken, n);
        if (i % 3 == 0) kv_seq_share_prompt(s.seq, s.tokens, n);
        fake_seq_close(t->f, &s, true);
    }
}

START_TEST(what_one_rank_has_given_up_nobody_takes)
{
    static const char *const placements[] = {"block", "expert", "hash"};
    for (int p = 0; p < 6; p++) {
        rank_test ranks[4];
        rank_notes notes[RANKS_MAX];
        kv_layer_shape layers[2];
        const uint32_t n = p < 3 ? 3 : 2;
        uint32_t n_whole = 0, n_cut = 0;
        fake_options options =
            rank_options(placements[p % 3], 8, full_layers(layers), 2, fake_defaults());
        memset(notes, 0, sizeof notes);
        run_group(ranks, &(rank_run){n, options, come_and_go, make_one_small, notes});
        check_notes_agree(notes, n);
        for (uint32_t i = 0; i < N_COMES; i++) {
            n_whole += notes[0].hits[i] >= N_COME - 1;
            n_cut += notes[0].hits[i] > 0 && notes[0].hits[i] < N_COME - 1;
        }
        ck_assert_uint_gt(n_whole, 0);
        ck_assert_uint_gt(n_cut, 0);
        for (uint32_t r = 0; r < n; r++)
            ck_assert_int_eq(fake_stats(ranks[r].f).pages_given_up > 0, r == 1);
        close_ranks(ranks, n);
    }
}
END_TEST

/* ---- what one rank cannot, or has lost ------------------------------------------------------------- */

static void open_without_room(rank_test *t)
{
    kv_cache *cache = t->f->cache;
    kv_seq *const free_seqs = cache->free_seqs;
    kv_seq *seq;
    const kv_seq_options options = {.salt = ""};
    if (t->rank == 1) cache->free_seqs = NULL; /* as if it had no more */
    ck_assert_int_eq(kv_seq_open(cache, &options, &seq), ERR_BAD_ARGUMENT);
    ck_assert_ptr_null(seq);
    if (t->rank == 1) cache->free_seqs = free_seqs;
    ck_assert(kv_cache_is_sane(cache));
    t->seqs[0] = fake_seq_open(t->f, (fake_ids){.seed = 1});
    ck_assert_uint_eq(t->seqs[0].seq->id, 1);
    fake_run(t->f, &t->seqs[0], 40, 40);
}

START_TEST(a_sequence_opens_on_all_ranks_or_on_none)
{
    rank_test ranks[3];
    const fake_options options = rank_options("block", 1, fake_layers, 3, fake_defaults());
    run_ranks(ranks, 3, &options, open_without_room);
    for (int r = 0; r < 3; r++)
        ck_assert_double_le(fake_error(ranks[r].f, &ranks[r].seqs[0], 0, 40), 1);
    close_ranks(ranks, 3);
}
END_TEST

static void lose_a_rank(rank_test *t)
{
    const kv_seq_options options = {.salt = ""};
    kv_seq *seq;
    leave(t, (fake_ids){.seed = 1}, 50);
    t->seqs[0] = fake_seq_open(t->f, (fake_ids){.seed = 1});
    t->seqs[1] = fake_seq_open(t->f, (fake_ids){.seed = 2});
    fake_run(t->f, &t->seqs[1], 50, 50);
    if (t->rank == 2) comm_abort(t->comm, "a test");
    /* One call of a rank may have gone through before it hears of it. */
    if (t->rank != 2) (void)kv_seq_take_prefix(t->seqs[0].seq, t->seqs[0].tokens, 50);
    ck_assert_int_eq(kv_seq_open(t->f->cache, &options, &seq), ERR_PEER_LOST);
    kv_seq_share_prompt(t->seqs[1].seq, t->seqs[1].tokens, 50);
    ck_assert_uint_eq(fake_stats(t->f).prefix_objects, 1); /* nothing new is left, */
    fake_seq_close(t->f, &t->seqs[1], true);
    ck_assert_uint_eq(fake_stats(t->f).prefix_objects, 1);
    t->seqs[1] = (fake_seq){0};
    ck_assert_uint_eq(kv_seq_truncate(t->seqs[0].seq, 0), 0);
    ck_assert_uint_eq(kv_seq_take_prefix(t->seqs[0].seq, t->seqs[0].tokens, 50), 0); /* or taken, */
    fake_seq *s = &t->seqs[0];
    ck_assert_int_eq(fake_step(t->f, &s, &(uint32_t){1}, 1),
                     ERR_PEER_LOST); /* and no step begins */
}

START_TEST(a_lost_rank_leaves_nothing_to_take_or_to_leave)
{
    rank_test ranks[3];
    rank_notes notes[RANKS_MAX];
    kv_layer_shape layers[2];
    memset(notes, 0, sizeof notes);
    run_group(ranks, &(rank_run){.n = 3,
                                 .options = rank_options("expert", 3, full_layers(layers), 2,
                                                         fake_defaults()),
                                 .body = lose_a_rank,
                                 .ctx = notes});
    close_ranks(ranks, 3);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE_SECONDS(a_hit_is_the_same_on_all_ranks_and_what_follows_is_right, 600),
    TEST_CASE_SECONDS(a_running_prompt_is_shared_on_all_ranks, 600),
    TEST_CASE(windows_refuse_the_same_hits_on_all_ranks),
    TEST_CASE(sharing_leaving_and_dropping_are_the_same_on_all_ranks),
    TEST_CASE_SECONDS(hits_under_lossy_settings_are_the_same_on_all_ranks, 600),
    TEST_CASE_SECONDS(what_one_rank_has_given_up_nobody_takes, 600),
    TEST_CASE(a_sequence_opens_on_all_ranks_or_on_none),
    TEST_CASE(a_lost_rank_leaves_nothing_to_take_or_to_leave),
    TEST_CASES_END};
