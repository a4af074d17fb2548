/* tests/kernels/cuda_emulated.cc - fibers for threads: see cuda_emulated.h.
 *
 * The scheduler goes round the fibers of a block and runs each that may run until it waits or ends. When
 * a whole round moves none, what they wait for can never come, and the first of them says where it stands. */
#include "tests/kernels/cuda_emulated.h"

#include "kernels/dev_cuda_impl.h"
#include "tests/kernels/cuda_emulated_dev.h"

#include <mutex>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <vector>

#if defined(__SANITIZE_ADDRESS__) || defined(EMU_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define EMU_HAS_ASAN 1
#else
#define EMU_HAS_ASAN 0
#endif

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace
{

enum { THREADS_MAX = 1024, STACK_BYTES = 128 * 1024, GUARD_BYTES = 256, GRID_YZ_MAX = 65535 };
enum { SHARED_BYTES_MAX = 48 * 1024 }; /* what a kernel gets without asking for more */

/* What __builtin_setjmp fills. The library's jumps and swapcontext are the sanitizer's, which clears a stack's shadow
 * at each, as it need not where it is told of every switch; swapcontext asks the kernel for the signal mask, too. */
typedef void *resume_point[5];

enum fiber_state { RUNS, AT_BARRIER, IN_WARP, ENDED };

struct fiber {
    resume_point resume_at;
    bool has_run;
    char *stack;
    fiber_state state;
    emu_site site; /* where it waits */
    unsigned mask; /* IN_WARP */
    void *payload; /* IN_WARP */
    emu_combine *combine;
    void *fake_stack; /* ASan's */
};

struct emulator {
    std::vector<fiber> fibers; /* their stacks live as long as the process */
    std::vector<ucontext_t>
        contexts; /* of each; apart, since they are large and all fibers are looked at all the time */
    unsigned n_threads, current;
    unsigned awaited[THREADS_MAX / 32]; /* per warp: the lane that the last exchange waited for */
    resume_point scheduler_at;
    const void *scheduler_stack;
    size_t scheduler_stack_bytes;
    void *scheduler_fake;
    const std::function<void()> *body;
    unsigned char *shared;
    bool has_failed;
    char message[240];
    uint64_t seed;
} emu;

void start_switch(void **save, const void *bottom, size_t bytes)
{
#if EMU_HAS_ASAN
    __sanitizer_start_switch_fiber(save, bottom, bytes);
#else
    (void)save, (void)bottom, (void)bytes;
#endif
}

void finish_switch(void *save, const void **bottom, size_t *bytes)
{
#if EMU_HAS_ASAN
    __sanitizer_finish_switch_fiber(save, bottom, bytes);
#else
    (void)save, (void)bottom, (void)bytes;
#endif
}

__attribute__((noinline, noreturn, no_sanitize("address"))) void resume(void **there)
{
    __builtin_longjmp(there, 1);
}

/* Saves where this context is in `here`, goes on in `to`: from its beginning, or `there` if it has run. */
__attribute__((noinline, no_sanitize("address"))) void change(resume_point here, ucontext_t *to,
                                                              resume_point there, bool has_run)
{
    if (__builtin_setjmp(here) != 0) return;
    if (has_run) resume(there);
    setcontext(to);
    abort(); /* it does not return; and this frame must stay */
}

/* From the running fiber to the scheduler; returns when it is resumed. */
void leave(fiber_state state)
{
    fiber *f = &emu.fibers[emu.current];
    f->state = state;
    start_switch(&f->fake_stack, emu.scheduler_stack, emu.scheduler_stack_bytes);
    change(f->resume_at, nullptr, emu.scheduler_at, true);
    finish_switch(f->fake_stack, &emu.scheduler_stack, &emu.scheduler_stack_bytes);
}

void fiber_main()
{
    finish_switch(nullptr, &emu.scheduler_stack, &emu.scheduler_stack_bytes);
    for (;;) {
        (*emu.body)();
        leave(ENDED); /* and goes on with the next block: a new context costs system calls */
    }
}

void prepare(unsigned thread)
{
    fiber *f = &emu.fibers[thread];
    if (f->has_run && f->state == ENDED) {
        f->state = RUNS;
        return;
    }
    if (f->stack == nullptr) {
        void *stack = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (stack == MAP_FAILED) abort();
        f->stack = static_cast<char *>(stack);
    }
#if EMU_HAS_ASAN
    __asan_unpoison_memory_region(f->stack, STACK_BYTES);
#endif
    f->state = RUNS;
    f->has_run = false;
    ucontext_t *const context = &emu.contexts[thread];
    getcontext(context);
    context->uc_stack.ss_sp = f->stack;
    context->uc_stack.ss_size = STACK_BYTES;
    context->uc_link = nullptr;
    makecontext(context, fiber_main, 0);
}

void run(unsigned thread)
{
    fiber *f = &emu.fibers[thread];
    emu.current = thread;
    threadIdx = dim3(thread, 0, 0);
    start_switch(&emu.scheduler_fake, f->stack, STACK_BYTES);
    const bool has_run = f->has_run;
    f->has_run = true;
    change(emu.scheduler_at, &emu.contexts[thread], f->resume_at, has_run);
    finish_switch(emu.scheduler_fake, nullptr, nullptr);
}

void note_failure(const char *format, va_list args)
{
    if (emu.has_failed) return;
    emu.has_failed = true;
    char text[160];
    vsnprintf(text, sizeof text, format, args);
    snprintf(emu.message, sizeof emu.message, "block (%u, %u, %u): %s", blockIdx.x, blockIdx.y,
             blockIdx.z, text);
    fprintf(stderr, "cuda emulator: %s\n", emu.message);
}

__attribute__((format(printf, 1, 2))) void fail_launch(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    note_failure(format, args);
    va_end(args);
}

bool is_same_site(emu_site a, emu_site b)
{
    return a.line == b.line && (a.file == b.file || strcmp(a.file, b.file) == 0);
}

/* A permutation of 0 .. n - 1 (Fisher and Yates) over splitmix64; in order for seed 0. */
std::vector<unsigned> make_order(unsigned n)
{
    std::vector<unsigned> order(n);
    for (unsigned i = 0; i < n; i++)
        order[i] = i;
    for (unsigned i = n; emu.seed != 0 && i > 1; i--) {
        uint64_t z = emu.seed += UINT64_C(0x9E3779B97F4A7C15);
        z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
        z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
        std::swap(order[i - 1], order[(z ^ z >> 31) % i]);
    }
    return order;
}

/* Lets all go on if every thread of the block is at one barrier. */
bool release_barrier()
{
    for (unsigned t = 0; t < emu.n_threads; t++) {
        if (emu.fibers[t].state != AT_BARRIER) return false;
        if (!is_same_site(emu.fibers[t].site, emu.fibers[0].site)) return false;
    }
    for (unsigned t = 0; t < emu.n_threads; t++)
        emu.fibers[t].state = RUNS;
    return true;
}

/* What keeps the threads of this block from going on for ever. */
void explain_stall()
{
    static const char *const names[] = {"runs", "is at a barrier", "is in an exchange of its warp",
                                        "has ended"};
    unsigned waiting = 0, other = 0;
    while (emu.fibers[waiting].state == ENDED)
        waiting++;
    const fiber *w = &emu.fibers[waiting];
    while (other + 1 < emu.n_threads && emu.fibers[other].state == w->state &&
           is_same_site(emu.fibers[other].site, w->site) && emu.fibers[other].mask == w->mask)
        other++;
    fail_launch("thread %u %s at line %d of %s for ever, thread %u %s (line %d)", waiting,
                names[w->state], w->site.line, strrchr(w->site.file, '/') + 1, other,
                names[emu.fibers[other].state], emu.fibers[other].site.line);
}

void run_block(const std::vector<unsigned> &order)
{
    for (unsigned t = 0; t < emu.n_threads; t++)
        prepare(t);
    for (;;) {
        bool has_moved = false, all_ended = true;
        for (unsigned t : order) {
            if (emu.fibers[t].state == RUNS) {
                run(t);
                has_moved = true;
            }
            if (emu.has_failed) return;
            all_ended = all_ended && emu.fibers[t].state == ENDED;
        }
        if (all_ended) return;
        if (!has_moved && !release_barrier()) {
            explain_stall();
            return;
        }
    }
}

void check_guard(size_t shared_bytes)
{
    for (size_t i = 0; !EMU_HAS_ASAN && i < GUARD_BYTES; i++) {
        if (emu.shared[shared_bytes + i] != 0xa5)
            fail_launch("byte %zu behind the %zu of shared memory was written", i, shared_bytes);
    }
}

bool is_legal(dim3 grid, unsigned n_threads, size_t shared_bytes)
{
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > GRID_YZ_MAX || grid.z > GRID_YZ_MAX)
        fail_launch("a grid of %u x %u x %u", grid.x, grid.y, grid.z);
    if (n_threads == 0 || n_threads > THREADS_MAX) fail_launch("%u threads", n_threads);
    if (shared_bytes > SHARED_BYTES_MAX) fail_launch("%zu bytes of shared memory", shared_bytes);
    return !emu.has_failed;
}

} /* namespace */

void cuda_emulated_seed(uint64_t seed)
{
    emu.seed = seed;
}

void emu_fail(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    note_failure(format, args);
    va_end(args);
    emu.fibers[emu.current].has_run = false; /* begins anew in the next launch */
    leave(ENDED);
    abort(); /* a failed launch is resumed by nobody */
}

unsigned emu_lane()
{
    return emu.current % 32;
}

void *emu_shared()
{
    return emu.shared;
}

void emu_barrier(emu_site site)
{
    emu.fibers[emu.current].site = site;
    emu.fibers[emu.current].mask = 0;
    leave(AT_BARRIER);
}

namespace
{

bool has_come(const fiber *f, const fiber *mine)
{
    return f->state == IN_WARP && f->mask == mine->mask && f->combine == mine->combine &&
           is_same_site(f->site, mine->site);
}

/* Whom others wait for is asked first: most calls end here. */
bool waits_for_the_late(const fiber *mine)
{
    const unsigned lane = emu.awaited[emu.current / 32], thread = emu.current / 32 * 32 + lane;
    const fiber *late = &emu.fibers[thread];
    return late != mine && (mine->mask >> lane & 1) != 0 && thread < emu.n_threads &&
           late->state != ENDED && !has_come(late, mine);
}

/* False: a lane has yet to come. */
bool exchange(const fiber *mine)
{
    const unsigned first = emu.current / 32 * 32, mask = mine->mask;
    void *payloads[32] = {};
    for (unsigned lane = 0; lane < 32; lane++) {
        if ((mask >> lane & 1) == 0) continue;
        const fiber *f = &emu.fibers[first + lane];
        if (first + lane >= emu.n_threads)
            emu_fail("line %d: lane %u does not exist", mine->site.line, lane);
        if (f->state == ENDED) emu_fail("line %d: lane %u has ended", mine->site.line, lane);
        if (f != mine && !has_come(f, mine)) {
            emu.awaited[first / 32] = lane;
            return false;
        }
        payloads[lane] = f->payload;
    }
    if (mine->combine != nullptr) mine->combine(payloads);
    for (unsigned lane = 0; lane < 32; lane++) {
        if ((mask >> lane & 1) != 0) emu.fibers[first + lane].state = RUNS;
    }
    return true;
}

} /* namespace */

void emu_warp(emu_site site, unsigned mask, void *payload, emu_combine *combine)
{
    fiber *mine = &emu.fibers[emu.current];
    if ((mask >> emu_lane() & 1) == 0)
        emu_fail("line %d: the mask leaves out its own lane", site.line);
    mine->site = site;
    mine->mask = mask;
    mine->payload = payload;
    mine->combine = combine;
    if (waits_for_the_late(mine) || !exchange(mine)) leave(IN_WARP);
}

void emu_ballot_all(void **payload)
{
    unsigned result = 0;
    for (int lane = 0; lane < 32; lane++) {
        const emu_vote *vote = static_cast<emu_vote *>(payload[lane]);
        if (vote != nullptr && vote->is_set) result |= 1u << lane;
    }
    for (int lane = 0; lane < 32; lane++) {
        if (payload[lane] != nullptr) static_cast<emu_vote *>(payload[lane])->result = result;
    }
}

namespace
{

struct mma_operands {
    float *d;
    const uint32_t *a;
    uint32_t b[2];
};

float half_of(uint32_t pair, unsigned i)
{
    return f32_from_bf16(static_cast<uint16_t>(pair >> 16 * i));
}

/* The layout is that of the PTX manual, read once more and not from the kernels. */
void mma_all(void **payload)
{
    float a[16][16], b[16][8];
    for (unsigned lane = 0; lane < 32; lane++) {
        const mma_operands *m = static_cast<mma_operands *>(payload[lane]);
        const unsigned group = lane >> 2, in_group = lane & 3;
        for (unsigned i = 0; i < 8; i++) {
            const unsigned row =
                (i & 2) == 0 ? group : group + 8; /* a0 a1, a4 a5: the upper rows */
            const unsigned k = in_group * 2 + (i & 1) + (i < 4 ? 0 : 8);
            a[row][k] = half_of(m->a[i / 2], i & 1);
        }
        for (unsigned i = 0; i < 4; i++)
            b[in_group * 2 + (i & 1) + (i < 2 ? 0 : 8)][group] = half_of(m->b[i / 2], i & 1);
    }
    for (unsigned lane = 0; lane < 32; lane++) {
        const mma_operands *m = static_cast<mma_operands *>(payload[lane]);
        for (unsigned i = 0; i < 4; i++) {
            const unsigned row = (lane >> 2) + (i < 2 ? 0 : 8), column = (lane & 3) * 2 + (i & 1);
            double sum = static_cast<double>(m->d[i]);
            for (unsigned k = 0; k < 16; k++)
                sum += static_cast<double>(a[row][k]) * static_cast<double>(b[k][column]);
            m->d[i] = static_cast<float>(sum);
        }
    }
}

} /* namespace */

void emu_mma_bf16(emu_site site, float d[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    mma_operands mine = {d, a, {b0, b1}};
    emu_warp(site, 0xffffffffu, &mine, mma_all);
}

void emu_launch(void *device, dim3 grid, unsigned n_threads, size_t shared_bytes,
                const std::function<void()> &body)
{
    /* Ranks that are threads share this one multiprocessor. */
    static std::mutex turn;
    const std::lock_guard<std::mutex> mine(turn);
    emu.has_failed = false;
    if (emu.fibers.empty()) {
        emu.fibers.resize(THREADS_MAX);
        emu.contexts.resize(THREADS_MAX);
    }
    if (is_legal(grid, n_threads, shared_bytes)) {
        const unsigned n_blocks = grid.x * grid.y * grid.z;
        const size_t guard = EMU_HAS_ASAN ? 0 : GUARD_BYTES;
        emu.n_threads = n_threads;
        emu.body = &body;
        emu.shared =
            static_cast<unsigned char *>(aligned_alloc(16, (shared_bytes + guard + 15) / 16 * 16));
        blockDim = dim3(n_threads);
        gridDim = grid;
        const std::vector<unsigned> blocks = make_order(n_blocks);
        for (unsigned i = 0; i < n_blocks && !emu.has_failed; i++) {
            const unsigned b = blocks[i];
            blockIdx = dim3(b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y);
            memset(emu.shared, 0xff, shared_bytes);
            memset(emu.shared + shared_bytes, 0xa5, guard);
            run_block(make_order(n_threads));
            check_guard(shared_bytes);
        }
        free(emu.shared);
    }
    cuda_queue *queue = cuda_queue_of(static_cast<dev_cuda *>(device));
    if (emu.has_failed) queue->failure = 1;
}
