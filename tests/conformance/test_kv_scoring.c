/* tests/conformance/test_kv_scoring.c - every scorer and every allocator against the same promises. */
#include "tests/kvcache/score_problem.h"
#include "tests/test_main.h"

#include "base/random.h"
#include "kvcache/scoring/allocator.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

START_TEST(every_method_is_found_by_its_name_and_by_no_other)
{
    for (size_t i = 0; kv_scorers[i] != NULL; i++) {
        ck_assert_ptr_eq(kv_scorer_find(kv_scorers[i]->name), kv_scorers[i]);
        ck_assert_ptr_nonnull(strstr(kv_scorer_names, kv_scorers[i]->name));
    }
    for (size_t i = 0; kv_allocators[i] != NULL; i++) {
        ck_assert_ptr_eq(kv_allocator_find(kv_allocators[i]->name), kv_allocators[i]);
        ck_assert_ptr_nonnull(strstr(kv_allocator_names, kv_allocators[i]->name));
    }
    ck_assert_ptr_null(kv_scorer_find(""));
    ck_assert_ptr_null(kv_scorer_find("snapkv "));
    ck_assert_ptr_null(kv_allocator_find("Uniform"));
}
END_TEST

/* ---- scorers ------------------------------------------------------------------------------------------- */

enum { N_MAX = 320 };

/* Ways to spoil the entries of a problem. */
typedef enum contents { RANDOM, ALL_EQUAL, ALL_ZERO, HUGE, TINY, LARGEST, N_CONTENTS } contents;

static void set_all(float *x, size_t n, float scale, float offset)
{
    for (size_t i = 0; i < n; i++)
        x[i] = fminf(fmaxf(x[i] * scale + offset, -FLT_MAX), FLT_MAX);
}

static void spoil(score_problem *p, contents kind)
{
    static const float scale[N_CONTENTS] = {1, 0, 0, 1e18f, 1e-30f, FLT_MAX};
    const float offset = kind == ALL_EQUAL ? 0.75f : 0;
    set_all(p->k, (size_t)p->n * p->k_dim, scale[kind], offset);
    set_all(p->v, (size_t)p->n * p->v_dim, scale[kind], offset);
    set_all(p->mass, p->n, kind >= HUGE ? 1 : scale[kind], offset);
    if (kind == HUGE || kind == LARGEST)
        set_all(p->q, (size_t)p->n_queries * p->group * p->k_dim, scale[kind], 0);
}

/* A problem with as many queries as the scorer asks for and the sequence has. */
static score_shape shape_for(const kv_scorer *scorer, score_shape shape)
{
    shape.n_queries = scorer->n_queries < shape.n ? scorer->n_queries : shape.n;
    return shape;
}

static void check_contents(const kv_scorer *scorer, score_shape shape, contents kind)
{
    score_problem p;
    float first[N_MAX], again[N_MAX];
    const score_shape whole = shape_for(scorer, shape);
    score_problem_random(&p, &whole, 11);
    spoil(&p, kind);
    score_problem_run(&p, scorer, NAN, first);
    score_problem_run(&p, scorer, 1e6f, again);
    ck_assert_msg(memcmp(first, again, shape.n * sizeof *first) == 0,
                  "%s depends on what its memory held, n %u, contents %d", scorer->name, shape.n,
                  (int)kind);
    for (uint32_t i = 0; i < shape.n; i++)
        ck_assert_msg(isfinite(first[i]), "%s: score %u of %u, contents %d, is %g", scorer->name, i,
                      shape.n, (int)kind, (double)first[i]);
    score_problem_deinit(&p);
}

START_TEST(every_score_is_finite_and_a_function_of_its_arguments)
{
    static const uint32_t lengths[] = {0, 1, 2, 5, 63, 64, 65, 130, 300};
    static const score_shape shapes[] = {
        {.group = 2, .k_dim = 8, .v_dim = 8, .d_model = 20},
        {.group = 1, .k_dim = 9, .v_dim = 5, .d_model = 7}, /* a channel that does not turn */
        {.group = 3, .k_dim = 4, .v_dim = 10, .d_model = 3},
        {.group = 1, .k_dim = 2, .v_dim = 1, .d_model = 1},
    };
    for (size_t i = 0; kv_scorers[i] != NULL; i++) {
        for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
            for (size_t l = 0; l < sizeof lengths / sizeof lengths[0]; l++) {
                score_shape shape = shapes[s];
                shape.n = lengths[l];
                for (contents kind = 0; kind < N_CONTENTS; kind++)
                    check_contents(kv_scorers[i], shape, kind);
            }
        }
    }
}
END_TEST

START_TEST(no_scorer_needs_queries_statistics_or_rotation_to_exist)
{
    static const score_shape shape = {.n = 100, .group = 2, .k_dim = 8, .v_dim = 4, .d_model = 5};
    for (size_t i = 0; kv_scorers[i] != NULL; i++) {
        score_problem p;
        float out[N_MAX];
        score_problem_random(&p, &shape, 12); /* n_queries is 0 */
        p.args.stats = (kv_query_stats){0};
        p.args.rope = NULL;
        score_problem_run(&p, kv_scorers[i], NAN, out);
        for (uint32_t k = 0; k < shape.n; k++)
            ck_assert_msg(isfinite(out[k]), "%s", kv_scorers[i]->name);
        score_problem_deinit(&p);
    }
}
END_TEST

/* What becomes of scores if the contents of entries change places and positions stay. */
typedef enum order { CONTENTS, POSITIONS, NEIGHBOURS } order;

static order order_of(const char *name)
{
    static const char *const by_position[] = {"streaming_llm", "random"};
    static const char *const by_neighbours[] = {
        "snapkv", "chunkkv", "criticalkv",         "criticalkv_l2",
        "lagkv",  "cur",     "observed_attention", "non_causal"};
    for (size_t i = 0; i < sizeof by_position / sizeof by_position[0]; i++) {
        if (strcmp(name, by_position[i]) == 0) return POSITIONS;
    }
    for (size_t i = 0; i < sizeof by_neighbours / sizeof by_neighbours[0]; i++) {
        if (strcmp(name, by_neighbours[i]) == 0) return NEIGHBOURS;
    }
    return CONTENTS;
}

static void move(void *to, const void *from, uint32_t t, uint32_t f, size_t bytes)
{
    memcpy((char *)to + t * bytes, (const char *)from + f * bytes, bytes);
}

/* Entries [4, n - n_queries) of the problem in reverse. */
static void reverse(score_problem *to, const score_problem *from)
{
    const uint32_t end = from->n - from->n_queries;
    for (uint32_t i = 4; i < end; i++) {
        const uint32_t j = end + 3 - i;
        move(to->k, from->k, i, j, from->k_dim * sizeof(float));
        move(to->v, from->v, i, j, from->v_dim * sizeof(float));
        move(to->mass, from->mass, i, j, sizeof(float));
        move(to->local, from->local, i, j, sizeof(float));
        for (uint32_t g = 0; g < from->group; g++)
            move(to->replay + g * from->n, from->replay + g * from->n, i, j, sizeof(float));
        move(to->last_use, from->last_use, i, j, sizeof(uint32_t));
        move(to->n_uses, from->n_uses, i, j, sizeof(uint32_t));
    }
}

static void check_reversed(const kv_scorer *scorer)
{
    score_problem p, q;
    float straight[N_MAX], reversed[N_MAX], most = 0;
    const score_shape shape = shape_for(
        scorer, (score_shape){.n = 301, .group = 2, .k_dim = 16, .v_dim = 8, .d_model = 12});
    const uint32_t end = shape.n - shape.n_queries;
    score_problem_random(&p, &shape, 13);
    score_problem_random(&q, &shape, 13);
    reverse(&q, &p);
    score_problem_run(&p, scorer, NAN, straight);
    score_problem_run(&q, scorer, NAN, reversed);
    for (uint32_t i = 4; i < end; i++)
        most = fmaxf(most, fabsf(straight[i]));
    for (uint32_t i = 4; i < end; i++) {
        const float want = straight[order_of(scorer->name) == CONTENTS ? end + 3 - i : i];
        ck_assert_msg(fabsf(reversed[i] - want) <= 2e-6f * most, "%s at %u: %g is not %g",
                      scorer->name, i, (double)reversed[i], (double)want);
    }
    score_problem_deinit(&p);
    score_problem_deinit(&q);
}

START_TEST(scores_go_with_the_contents_of_entries_or_with_their_positions)
{
    for (size_t i = 0; kv_scorers[i] != NULL; i++) {
        if (order_of(kv_scorers[i]->name) != NEIGHBOURS) check_reversed(kv_scorers[i]);
    }
}
END_TEST

/* Every third entry of a problem, from `first` on. */
typedef struct third {
    const score_problem *p;
    uint32_t positions[N_MAX];
    kv_score_view view;
    uint32_t first;
} third;

static void load_third(const kv_score_view *view, uint32_t first, uint32_t count, float *k,
                       float *v)
{
    const third *t = view->ctx;
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t from = t->first + 3 * (first + i);
        if (k != NULL) move(k, t->p->k, i, from, t->p->k_dim * sizeof(float));
        if (v != NULL) move(v, t->p->v, i, from, t->p->v_dim * sizeof(float));
    }
}

static void cut_third(const score_problem *p, uint32_t first, third *out)
{
    *out = (third){.p = p, .first = first};
    for (uint32_t i = first; i < p->n; i += 3)
        out->positions[out->view.n++] = p->positions[i];
    out->view.positions = out->positions;
    out->view.load = load_third;
    out->view.ctx = out;
}

enum { LSE_MAX = 64 * 2 };

/* Sums of exponentials, added. */
static void add_lse(const float lse[LSE_MAX], double sum[LSE_MAX])
{
    for (uint32_t i = 0; i < LSE_MAX; i++)
        sum[i] += exp((double)lse[i]);
}

static void check_thirds(const kv_scorer *scorer)
{
    score_problem p;
    float alone[N_MAX], with_lse[N_MAX], lse[LSE_MAX], most = 0;
    double whole[LSE_MAX] = {0}, parts[LSE_MAX] = {0};
    const score_shape shape = shape_for(
        scorer, (score_shape){.n = 301, .group = 2, .k_dim = 16, .v_dim = 8, .d_model = 12});
    const kv_score_shape sizes = {.n_max = shape.n,
                                  .group = shape.group,
                                  .k_dim = shape.k_dim,
                                  .v_dim = shape.v_dim,
                                  .n_queries = shape.n_queries};
    float *work = malloc(scorer->work_floats(&sizes) * sizeof *work);
    score_problem_random(&p, &shape, 15);
    score_problem_run(&p, scorer, NAN, alone);
    kv_score_args args = p.args;
    args.work = work;
    for (uint32_t i = 0; i < 4; i++) { /* the whole, then thirds */
        third part;
        if (i > 0) cut_third(&p, i - 1, &part);
        if (i > 0) args.view = &part.view;
        for (uint32_t k = 0; k < LSE_MAX; k++)
            lse[k] = -INFINITY;
        scorer->lse(&args, lse);
        add_lse(lse, i == 0 ? whole : parts);
    }
    for (uint32_t k = 0; k < LSE_MAX; k++) {
        ck_assert_double_le(fabs(parts[k] - whole[k]), 1e-5 * whole[k]);
        lse[k] = (float)log(parts[k]);
    }
    ck_assert_double_gt(whole[0], 0);
    p.args.lse = lse;
    score_problem_run(&p, scorer, NAN, with_lse);
    for (uint32_t i = 4; i < shape.n; i++)
        most = fmaxf(most, fabsf(alone[i]));
    for (uint32_t i = 0; i < shape.n; i++)
        ck_assert_msg(fabsf(with_lse[i] - alone[i]) <= 1e-5f * most, "%s at %u: %g is not %g",
                      scorer->name, i, (double)with_lse[i], (double)alone[i]);
    score_problem_deinit(&p);
    free(work);
}

/* Over ranks each scores the entries that it holds, with the normalisers of all. */
START_TEST(what_normalises_scores_adds_up_over_parts_of_the_entries)
{
    uint32_t n_scorers = 0;
    for (size_t i = 0; kv_scorers[i] != NULL; i++) {
        if (kv_scorers[i]->lse == NULL) continue;
        check_thirds(kv_scorers[i]);
        n_scorers++;
    }
    ck_assert_uint_ge(n_scorers, 10);
}
END_TEST

/* What these methods themselves protect, whether or not the cache does; the window of criticalkv is
 * weighted by its values, too. */
START_TEST(the_newest_entry_is_the_best_where_the_window_is_kept)
{
    static const char *const names[] = {"snapkv", "tova", "dropkv", "finch"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        for (uint32_t n = 2; n <= 200; n = n * 3 + 1) {
            score_problem p;
            float out[N_MAX];
            const kv_scorer *scorer = kv_scorer_find(names[i]);
            const score_shape shape = shape_for(
                scorer, (score_shape){.n = n, .group = 2, .k_dim = 8, .v_dim = 8, .d_model = 6});
            score_problem_random(&p, &shape, 14);
            score_problem_run(&p, scorer, NAN, out);
            for (uint32_t k = 0; k + 1 < n; k++)
                ck_assert_msg(out[k] < out[n - 1], "%s, %u of %u", names[i], k, n);
            score_problem_deinit(&p);
        }
    }
}
END_TEST

/* ---- allocators ------------------------------------------------------------------------------------------ */

static void check_layers(const kv_allocator *allocator, kv_layer_share_args args)
{
    uint64_t sum = 0;
    for (args.layer = 0; args.layer < args.n_layers; args.layer++) {
        const uint32_t share = allocator->layer_share(&args);
        ck_assert_uint_le(share, args.n);
        ck_assert_uint_eq(share, allocator->layer_share(&args));
        sum += share;
    }
    ck_assert_uint_le(sum, (uint64_t)args.n_layers * args.n_keep);
    if (args.n_keep <= args.n) ck_assert_uint_eq(sum, (uint64_t)args.n_layers * args.n_keep);
}

START_TEST(layers_share_the_budget_exactly)
{
    enum { LAYERS_MAX = 40 };
    for (size_t i = 0; kv_allocators[i] != NULL; i++) {
        if (kv_allocators[i]->layer_share == NULL) continue;
        for (uint64_t k = 0; k < 20000; k++) {
            const random_block r = random_at(15, i, k);
            const uint32_t n = r.word[0] % (k % 3 == 0 ? 50 : 200000);
            double lazy[LAYERS_MAX];
            for (uint32_t l = 0; l < LAYERS_MAX; l++) /* some are alike */
                lazy[l] = (double)(random_at(19, k, l).word[0] % 20) / 19;
            check_layers(kv_allocators[i],
                         (kv_layer_share_args){.n_layers = 1 + r.word[1] % LAYERS_MAX,
                                               .n = n,
                                               .n_window = k % 5 == 0 ? n : r.word[2] % 200,
                                               .n_sinks = (uint32_t)k % 7,
                                               .n_keep = r.word[3] % (n + 2),
                                               .lazy = lazy,
                                               .lazy_threshold = 1});
        }
    }
}
END_TEST

enum { HEADS_MAX = 9 };

/* Heads with scores of one scorer each. */
typedef struct layer {
    uint32_t n_heads, n[HEADS_MAX];
    float score[HEADS_MAX][N_MAX];
    const float *rows[HEADS_MAX];
} layer;

static void layer_init(layer *x, const kv_scorer *scorer, uint32_t n_heads, contents kind)
{
    x->n_heads = n_heads;
    for (uint32_t h = 0; h < n_heads; h++) {
        score_problem p;
        x->n[h] = kind == RANDOM ? random_at(16, n_heads, h).word[0] % 300 : 100 * (h % 3);
        const score_shape shape = shape_for(
            scorer, (score_shape){.n = x->n[h], .group = 2, .k_dim = 8, .v_dim = 4, .d_model = 4});
        score_problem_random(&p, &shape, 17 + h);
        spoil(&p, kind);
        score_problem_run(&p, scorer, 0, x->score[h]);
        score_problem_deinit(&p);
        x->rows[h] = x->score[h];
    }
}

/* Runs the split with memory behind which nothing may be written. */
static void run_split(const kv_allocator *allocator, kv_split_args args, float dirt,
                      uint32_t *n_keep)
{
    enum { GUARD = 8 };
    const size_t n_work =
        allocator->work_floats == NULL ? 0 : allocator->work_floats(args.n_heads, N_MAX);
    float *work = malloc((n_work + GUARD) * sizeof *work);
    for (size_t i = 0; i < n_work + GUARD; i++)
        work[i] = i < n_work ? dirt : 4711;
    args.work = work;
    n_keep[args.n_heads] = 777;
    allocator->split(&args, n_keep);
    ck_assert_uint_eq(n_keep[args.n_heads], 777);
    for (size_t i = n_work; i < n_work + GUARD; i++)
        ck_assert_float_eq(work[i], 4711);
    free(work);
}

static void check_split(const kv_allocator *allocator, const layer *x, uint32_t n_keep,
                        const float *retrieval)
{
    uint32_t got[HEADS_MAX + 1], again[HEADS_MAX + 1];
    uint64_t sum = 0, n_there = 0, n_wanted = (uint64_t)x->n_heads * n_keep;
    const kv_split_args args = {.n_layers = 1,
                                .n_heads = x->n_heads,
                                .length = N_MAX,
                                .n = x->n,
                                .score = x->rows,
                                .n_keep = n_keep,
                                .retrieval = retrieval};
    run_split(allocator, args, NAN, got);
    run_split(allocator, args, 0, again);
    for (uint32_t h = 0; h < x->n_heads; h++) {
        ck_assert_uint_eq(got[h], again[h]);
        ck_assert_uint_le(got[h], x->n[h]);
        sum += got[h];
        n_there += x->n[h];
    }
    ck_assert_msg(sum == (n_there < n_wanted ? n_there : n_wanted), "%s: %lu of %lu, at most %lu",
                  allocator->name, (unsigned long)sum, (unsigned long)n_there,
                  (unsigned long)n_wanted);
}

/* What a head keeps is in order, once each, and no entry that goes is better than one that stays. */
static void check_kept(const layer *x, uint32_t h, uint32_t n_keep)
{
    uint32_t index[N_MAX], next = 0;
    kv_keep_best(x->score[h], x->n[h], n_keep, index);
    float worst = INFINITY;
    for (uint32_t i = 0; i < n_keep; i++) {
        ck_assert(i == 0 || index[i] > index[i - 1]);
        ck_assert_uint_lt(index[i], x->n[h]);
        worst = fminf(worst, x->score[h][index[i]]);
    }
    for (uint32_t i = 0; i < x->n[h]; i++) {
        if (next < n_keep && index[next] == i)
            next++;
        else
            ck_assert_float_le(x->score[h][i], worst);
    }
}

static void check_allocators(const layer *x)
{
    static const float retrieval[HEADS_MAX] = {0.5f, 0.5f, 0, 1, -3, 0.25f, 1, 1, 0.5f};
    for (uint32_t n_keep = 0; n_keep <= 320; n_keep = n_keep * 2 + 1) {
        for (size_t k = 0; kv_allocators[k] != NULL; k++) {
            if (kv_allocators[k]->split == NULL) continue;
            check_split(kv_allocators[k], x, n_keep, NULL);
            check_split(kv_allocators[k], x, n_keep, retrieval);
        }
        check_kept(x, 0, n_keep < x->n[0] ? n_keep : x->n[0]);
    }
}

START_TEST(heads_share_the_budget_exactly_under_every_scorer)
{
    static const uint32_t n_heads[] = {1, 2, 5, HEADS_MAX};
    static layer x;
    for (size_t i = 0; kv_scorers[i] != NULL; i++) {
        for (size_t k = 0; k < 4 * N_CONTENTS; k++) {
            layer_init(&x, kv_scorers[i], n_heads[k % 4], (contents)(k / 4));
            check_allocators(&x);
        }
    }
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(every_method_is_found_by_its_name_and_by_no_other),
    TEST_CASE_SECONDS(every_score_is_finite_and_a_function_of_its_arguments, 600),
    TEST_CASE(no_scorer_needs_queries_statistics_or_rotation_to_exist),
    TEST_CASE(scores_go_with_the_contents_of_entries_or_with_their_positions),
    TEST_CASE(what_normalises_scores_adds_up_over_parts_of_the_entries),
    TEST_CASE(the_newest_entry_is_the_best_where_the_window_is_kept),
    TEST_CASE(layers_share_the_budget_exactly),
    TEST_CASE_SECONDS(heads_share_the_budget_exactly_under_every_scorer, 600),
    TEST_CASES_END,
};
