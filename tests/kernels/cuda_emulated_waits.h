/* tests/kernels/cuda_emulated_waits.h - how threads of the emulator wait for each other; part of cuda_emulated.h. */
#ifndef TESTS_KERNELS_CUDA_EMULATED_WAITS_H
#define TESTS_KERNELS_CUDA_EMULATED_WAITS_H

/* A place in the source: threads that wait together wait at the same one. */
struct emu_site {
    const char *file;
    int line;
};
#define EMU_SITE           \
    emu_site               \
    {                      \
        __FILE__, __LINE__ \
    }

/* What the lanes of a warp do together, once all of the mask have come: payload[lane], NULL outside. */
typedef void emu_combine(void **payload);

void emu_fail(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
void emu_barrier(emu_site site);
void emu_warp(emu_site site, unsigned mask, void *payload, emu_combine *combine);
void *emu_shared();
unsigned emu_lane();
void emu_launch(void *device, dim3 grid, unsigned n_threads, size_t shared_bytes,
                const std::function<void()> &body);

/* A launch with its arguments. */
struct emu_launched {
    dim3 grid;
    unsigned n_threads;
    size_t shared_bytes;
    const void *kernel;
    std::function<void()> body;
};

/* Runs it, or makes it part of a graph. */
void emu_queue(void *device, const emu_launched &launch);

template <typename T> struct emu_exchange {
    T value, result;
    unsigned from;
};

template <typename T> static void emu_shuffle(void **payload)
{
    for (int lane = 0; lane < 32; lane++) {
        emu_exchange<T> *to = static_cast<emu_exchange<T> *>(payload[lane]);
        if (to == nullptr) continue;
        const emu_exchange<T> *from = static_cast<emu_exchange<T> *>(payload[to->from % 32]);
        if (from == nullptr)
            emu_fail("lane %d takes a value from lane %u, outside the mask", lane, to->from);
        to->result = from->value;
    }
}

template <typename T> static T emu_shfl(emu_site site, unsigned mask, T value, unsigned from)
{
    emu_exchange<T> mine = {value, value, from};
    emu_warp(site, mask, &mine, emu_shuffle<T>);
    return mine.result;
}

struct emu_vote {
    bool is_set;
    unsigned result;
};
void emu_ballot_all(void **payload);
static inline unsigned emu_ballot(emu_site site, unsigned mask, bool is_set)
{
    emu_vote mine = {is_set, 0};
    emu_warp(site, mask, &mine, emu_ballot_all);
    return mine.result;
}

#endif
