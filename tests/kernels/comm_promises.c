/* tests/kernels/comm_promises.c - see comm_promises.h. */
#include "tests/kernels/comm_promises.h"

#include "base/clock.h"

#include <stdlib.h>
#include <time.h>

/* Elements; the last two are cut into slices, and into pieces for all but few ranks. */
static const size_t COUNTS[] = {0, 1, 31, 1000, 4099, 70001, 1100003};
enum { N_COUNTS = sizeof COUNTS / sizeof COUNTS[0], N_SHORT_COUNTS = N_COUNTS - 1 };

static uint32_t mix(uint32_t rank, size_t i)
{
    uint64_t x = (uint64_t)i * 1024 + rank + 1;
    x = (x ^ x >> 31) * 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 29) * 0xbf58476d1ce4e5b9u;
    return (uint32_t)(x >> 32);
}

/* Magnitudes from 2^-8 to 2^7, both signs, so that the order of a sum shows. */
static float value_f32(uint32_t rank, size_t i)
{
    const uint32_t bits = mix(rank, i);
    const float magnitude = (float)(bits & 0xffffffu) * 0x1p-24f;
    const float scale = (float)(1u << (bits >> 24 & 15u)) * 0x1p-8f;
    return bits >> 31 != 0 ? -magnitude * scale : magnitude * scale;
}

static void fill(void *out, uint32_t rank, size_t n, dtype type)
{
    for (size_t i = 0; i < n; i++) {
        const float x = value_f32(rank, i);
        const uint16_t half = bf16_from_f32(x);
        if (type == DTYPE_F32) ((float *)out)[i] = x;
        if (type == DTYPE_BF16) ((uint16_t *)out)[i] = half;
    }
}

static float term(uint32_t rank, size_t i, dtype type)
{
    const float x = value_f32(rank, i);
    return type == DTYPE_F32 ? x : f32_from_bf16(bf16_from_f32(x));
}

/* The definition: one element, rank by rank. */
static bool is_sum(const void *out, size_t i, uint32_t n_ranks, dtype type)
{
    float sum = term(0, i, type);
    for (uint32_t r = 1; r < n_ranks; r++)
        sum += term(r, i, type);
    if (type == DTYPE_F32) return f32_bits(sum) == f32_bits(((const float *)out)[i]);
    return bf16_from_f32(sum) == ((const uint16_t *)out)[i];
}

static bool sum_is_right(comm *c, size_t n, dtype type, bool is_in_place)
{
    const size_t bytes = n * dtype_bytes(type);
    uint8_t *in = malloc(bytes + 1), *other = malloc(bytes + 1);
    uint8_t *out = is_in_place ? in : other;
    fill(in, comm_rank(c), n, type);
    in[bytes] = other[bytes] = 0xa5;
    EXPECT_OK(comm_all_reduce(c, in, out, n, type, info));
    EXPECT_OK(comm_wait(c, info));
    EXPECT(out[bytes] == 0xa5);
    for (size_t i = 0; i < n; i++) {
        EXPECT(is_sum(out, i, comm_n_ranks(c), type));
    }
    free(in);
    free(other);
    return true;
}

static bool sums_are_in_rank_order_and_rounded_once(comm *c)
{
    for (int k = 0; k < N_COUNTS; k++) {
        if (!sum_is_right(c, COUNTS[k], DTYPE_F32, k % 2 == 0)) return false;
        if (!sum_is_right(c, COUNTS[k], DTYPE_BF16, k % 2 != 0)) return false;
    }
    return sum_is_right(c, 70001, DTYPE_F32, false) && sum_is_right(c, 70001, DTYPE_BF16, false);
}

/* A check of the check above: other orders would be noticed. */
static bool the_order_of_a_sum_shows(comm *c)
{
    const uint32_t n_ranks = comm_n_ranks(c);
    size_t n_different = 0;
    for (size_t i = 0; i < 1000; i++) {
        float sum = term(n_ranks - 1, i, DTYPE_F32);
        for (uint32_t r = n_ranks - 1; r-- > 0;)
            sum += term(r, i, DTYPE_F32);
        if (!is_sum(&(float[1]){sum} - i, i, n_ranks, DTYPE_F32)) n_different++;
    }
    EXPECT((n_different > 0) == (n_ranks > 2));
    return true;
}

static uint8_t byte_of(uint32_t from, uint32_t to, size_t i)
{
    return (uint8_t)mix(from * 64 + to, i);
}

static bool gathers_every_rank(comm *c)
{
    const uint32_t n_ranks = comm_n_ranks(c), rank = comm_rank(c);
    for (int k = 0; k < 2 * N_SHORT_COUNTS; k++) {
        const size_t bytes = COUNTS[k / 2];
        uint8_t *out = malloc(bytes * n_ranks + 1), *apart = malloc(bytes + 1);
        uint8_t *in = k % 2 == 0 ? apart : out + rank * bytes;
        out[bytes * n_ranks] = 0xa5;
        for (size_t i = 0; i < bytes; i++)
            in[i] = byte_of(rank, 0, i);
        EXPECT_OK(comm_all_gather(c, in, out, bytes, info));
        EXPECT_OK(comm_wait(c, info));
        for (uint32_t r = 0; r < n_ranks; r++) {
            for (size_t i = 0; i < bytes; i++) {
                EXPECT(out[r * bytes + i] == byte_of(r, 0, i));
            }
        }
        EXPECT(out[bytes * n_ranks] == 0xa5);
        free(out);
        free(apart);
    }
    return true;
}

static bool every_part_goes_to_its_rank(comm *c)
{
    const uint32_t n_ranks = comm_n_ranks(c), rank = comm_rank(c);
    for (int k = 0; k < N_SHORT_COUNTS; k++) {
        const size_t bytes = COUNTS[k];
        uint8_t *in = malloc(bytes * n_ranks + 1), *out = malloc(bytes * n_ranks + 1);
        out[bytes * n_ranks] = 0xa5;
        for (uint32_t r = 0; r < n_ranks; r++) {
            for (size_t i = 0; i < bytes; i++)
                in[r * bytes + i] = byte_of(rank, r, i);
        }
        EXPECT_OK(comm_all_to_all(c, in, out, bytes, info));
        EXPECT_OK(comm_wait(c, info));
        for (uint32_t r = 0; r < n_ranks; r++) {
            for (size_t i = 0; i < bytes; i++) {
                EXPECT(out[r * bytes + i] == byte_of(r, rank, i));
            }
        }
        EXPECT(out[bytes * n_ranks] == 0xa5);
        free(in);
        free(out);
    }
    return true;
}

static bool every_root_is_heard_by_all(comm *c)
{
    for (uint32_t root = 0; root < comm_n_ranks(c); root++) {
        for (int k = 0; k < N_SHORT_COUNTS; k++) {
            const size_t bytes = COUNTS[k];
            uint8_t *data = malloc(bytes + 1);
            data[bytes] = 0xa5;
            for (size_t i = 0; i < bytes; i++)
                data[i] = byte_of(comm_rank(c), 7, i);
            EXPECT_OK(comm_broadcast(c, data, bytes, root, info));
            EXPECT_OK(comm_wait(c, info));
            for (size_t i = 0; i < bytes; i++) {
                EXPECT(data[i] == byte_of(root, 7, i));
            }
            EXPECT(data[bytes] == 0xa5);
            free(data);
        }
    }
    return true;
}

static void sleep_ms(long ms)
{
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}, NULL);
}

/* All ranks are on one machine, whose monotonic clock they share. Buffers of the device are compared
 * by their bytes alone, so times travel as such. */
static bool nobody_leaves_a_barrier_before_all_came(comm *c)
{
    uint64_t came[64];
    const uint32_t n_ranks = comm_n_ranks(c);
    for (uint32_t late = 0; late < n_ranks; late++) {
        if (comm_rank(c) == late) sleep_ms(10);
        uint64_t own = clock_mono_ns();
        EXPECT_OK(comm_barrier(c, info));
        const uint64_t left = clock_mono_ns();
        EXPECT_OK(comm_all_gather(c, &own, came, sizeof own, info));
        EXPECT_OK(comm_wait(c, info));
        for (uint32_t r = 0; r < n_ranks; r++) {
            EXPECT(left >= came[r]);
        }
    }
    return true;
}

static bool ten_thousand_small_calls_go_through(comm *c)
{
    const uint32_t n_ranks = comm_n_ranks(c), rank = comm_rank(c);
    const uint32_t n_calls = n_ranks > 4 ? 2000 : 10000;
    for (uint32_t k = 0; k < n_calls; k++) {
        float x = (float)(rank + k % 7), all[64];
        uint32_t word = rank == k % n_ranks ? k : 0;
        switch (k % 4) {
        case 0:
            EXPECT_OK(comm_all_reduce(c, &x, &x, 1, DTYPE_F32, info));
            EXPECT_OK(comm_wait(c, info));
            EXPECT(x == (float)(n_ranks * (n_ranks - 1) / 2 + n_ranks * (k % 7)));
            break;
        case 1:
            EXPECT_OK(comm_all_gather(c, &x, all, sizeof x, info));
            EXPECT_OK(comm_wait(c, info));
            EXPECT(all[n_ranks - 1] == (float)(n_ranks - 1 + k % 7));
            break;
        case 2:
            EXPECT_OK(comm_broadcast(c, &word, sizeof word, k % n_ranks, info));
            EXPECT_OK(comm_wait(c, info));
            EXPECT(word == k);
            break;
        default: EXPECT_OK(comm_barrier(c, info));
        }
    }
    return true;
}

static bool calls_bytes_and_time_are_counted(comm *c)
{
    enum { BYTES = 1000 };
    uint8_t *in = calloc(64, BYTES), *out = calloc(64, BYTES);
    const uint64_t n_others = comm_n_ranks(c) - 1;
    for (comm_kind kind = COMM_ALL_GATHER; kind <= COMM_ALL_TO_ALL; kind++) {
        const comm_stats before = comm_get_stats(c, kind);
        for (int k = 0; k < 3; k++) {
            if (kind == COMM_ALL_GATHER) EXPECT_OK(comm_all_gather(c, in, out, BYTES, info));
            if (kind == COMM_ALL_TO_ALL) EXPECT_OK(comm_all_to_all(c, in, out, BYTES, info));
        }
        const comm_stats after = comm_get_stats(c, kind);
        EXPECT(after.n_calls - before.n_calls == 3);
        EXPECT(after.bytes - before.bytes == 3 * BYTES * n_others);
        EXPECT(after.seconds > before.seconds);
    }
    EXPECT_OK(comm_wait(c, info));
    free(in);
    free(out);
    return true;
}

static bool a_size_over_the_limit_is_refused_and_the_group_goes_on(comm *c)
{
    err_info info = {.code = ERR_OK};
    float x = 1;
    const size_t n_over = COMM_BYTES_MAX / comm_n_ranks(c) + 1;
    EXPECT(comm_all_reduce(c, &x, &x, SIZE_MAX / 2, DTYPE_F32, &info) == ERR_OVERFLOW);
    EXPECT(comm_all_reduce(c, &x, &x, COMM_BYTES_MAX / 4 + 1, DTYPE_F32, NULL) == ERR_OVERFLOW);
    EXPECT(comm_all_gather(c, &x, &info, n_over, NULL) == ERR_OVERFLOW);
    EXPECT(comm_all_to_all(c, &x, &info, n_over, NULL) == ERR_OVERFLOW);
    EXPECT(comm_broadcast(c, &x, COMM_BYTES_MAX + 1, 0, NULL) == ERR_OVERFLOW);
    EXPECT(comm_status(c, NULL) == ERR_OK);
    return sum_is_right(c, 31, DTYPE_F32, true);
}

const comm_promise comm_promises[] = {
    {"sums_are_in_rank_order_and_rounded_once", sums_are_in_rank_order_and_rounded_once},
    {"the_order_of_a_sum_shows", the_order_of_a_sum_shows},
    {"gathers_every_rank", gathers_every_rank},
    {"every_part_goes_to_its_rank", every_part_goes_to_its_rank},
    {"every_root_is_heard_by_all", every_root_is_heard_by_all},
    {"nobody_leaves_a_barrier_before_all_came", nobody_leaves_a_barrier_before_all_came},
    {"ten_thousand_small_calls_go_through", ten_thousand_small_calls_go_through},
    {"calls_bytes_and_time_are_counted", calls_bytes_and_time_are_counted},
    {"a_size_over_the_limit_is_refused_and_the_group_goes_on",
     a_size_over_the_limit_is_refused_and_the_group_goes_on},
    {NULL, NULL},
};

/* The failure stays: every call returns the same, and so does comm_status. */
static bool has_failed_with(comm *c, err_t code, const char *part)
{
    err_info first = {.code = ERR_OK}, later = {.code = ERR_OK};
    float x = 1;
    EXPECT(comm_status(c, &first) == code);
    if (strstr(first.message, part) == NULL) fprintf(stderr, "\"%s\" is not in:\n", part);
    if (strstr(first.message, part) == NULL) fprintf(stderr, "%s\n", first.message);
    EXPECT(strstr(first.message, part) != NULL);
    EXPECT(comm_all_reduce(c, &x, &x, 1, DTYPE_F32, &later) == code);
    EXPECT(strcmp(first.message, later.message) == 0);
    return true;
}

static bool an_abort_wakes_all_and_says_why(comm *c)
{
    const uint32_t last = comm_n_ranks(c) - 1;
    char want[64];
    snprintf(want, sizeof want, "rank %u gave up: no tea", last);
    comm_set_timeout_ms(c, 0); /* it alone can wake them */
    EXPECT_OK(comm_barrier(c, info));
    if (comm_rank(c) == last) {
        sleep_ms(50);
        comm_abort(c, "no tea");
    } else {
        EXPECT(comm_barrier(c, NULL) == ERR_PEER_LOST);
    }
    return has_failed_with(c, ERR_PEER_LOST, want);
}

static bool a_rank_that_does_not_come_is_named(comm *c)
{
    const uint32_t absent = comm_n_ranks(c) - 1;
    char want[64];
    snprintf(want, sizeof want, "rank %u is lost: it did not come to all_gather within %d ms",
             absent, COMM_ENDING_TIMEOUT_MS);
    float x = 0, all[64];
    EXPECT_OK(comm_barrier(c, info));
    if (comm_rank(c) == absent) {
        sleep_ms(3 * COMM_ENDING_TIMEOUT_MS);
        return comm_all_gather(c, &x, all, sizeof x, NULL) != ERR_OK;
    }
    EXPECT(comm_all_gather(c, &x, all, sizeof x, NULL) == ERR_PEER_LOST);
    return has_failed_with(c, ERR_PEER_LOST, want);
}

static bool a_rank_that_leaves_is_lost_to_those_who_wait(comm *c)
{
    const uint32_t last = comm_n_ranks(c) - 1;
    char want[64];
    snprintf(want, sizeof want, "rank %u ", last);
    EXPECT_OK(comm_barrier(c, info));
    if (comm_rank(c) == last) return true; /* and closes */
    comm_set_timeout_ms(c, 30000);
    EXPECT(comm_barrier(c, NULL) == ERR_PEER_LOST);
    return has_failed_with(c, ERR_PEER_LOST, want);
}

static bool calls_of_other_sizes_are_noticed(comm *c)
{
    uint8_t in[16] = {0}, out[64 * 16];
    err_info failure = {.code = ERR_OK};
    const size_t bytes = comm_rank(c) == 0 ? 16 : 8;
    /* Those who are slow may be told of the failure while they still are in the barrier. */
    err_t err = comm_barrier(c, &failure);
    if (err == ERR_OK) err = comm_all_gather(c, in, out, bytes, &failure);
    EXPECT(err == ERR_BAD_ARGUMENT || err == ERR_PEER_LOST);
    EXPECT(strstr(failure.message, "rank ") != NULL);
    return true;
}

static bool other_calls_are_noticed(comm *c)
{
    uint8_t data[8] = {0}, all[64 * 8];
    err_t err = comm_barrier(c, NULL);
    if (err == ERR_OK && comm_rank(c) == 0) err = comm_all_gather(c, data, all, 8, NULL);
    if (err == ERR_OK) err = comm_all_to_all(c, all, (uint8_t[64 * 8]){0}, 8, NULL);
    EXPECT(err == ERR_BAD_ARGUMENT || err == ERR_PEER_LOST);
    return true;
}

const comm_promise comm_endings[] = {
    {"an_abort_wakes_all_and_says_why", an_abort_wakes_all_and_says_why},
    {"a_rank_that_does_not_come_is_named", a_rank_that_does_not_come_is_named},
    {"a_rank_that_leaves_is_lost_to_those_who_wait", a_rank_that_leaves_is_lost_to_those_who_wait},
    {"calls_of_other_sizes_are_noticed", calls_of_other_sizes_are_noticed},
    {"other_calls_are_noticed", other_calls_are_noticed},
    {NULL, NULL},
};
