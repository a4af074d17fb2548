/* kernels/dev_cpu.c - the CPU as a device: which tables exist, and which this processor can run.
 *
 * The choice is made from cpuid at run time, not from the flags of the build: one binary serves
 * every x86-64 machine, and no other file asks what the processor is. */
#include "kernels/dev.h"

#include "kernels/ops_cpu.h"

#include <stdlib.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

enum { N_THREADS_MAX = 1024 }; /* of a pool */

const dev_ops dev_ops_ref = {.name = "ref",
                             .embed = embed_cpu,
                             .rms_norm = rms_norm_cpu,
                             .layer_norm = layer_norm_cpu,
                             .adjust = adjust_cpu,
                             .rope = rope_cpu,
                             .matmul = matmul_cpu,
                             .matmul_heads = matmul_heads_cpu,
                             .router = router_cpu,
                             .moe = moe_cpu,
                             .moe_scratch_bytes = moe_scratch_bytes,
                             .add = add_cpu,
                             .deal_choices = deal_choices_cpu,
                             .attend = attend_cpu,
                             .attend_mass = attend_mass_cpu,
                             .attend_max = attend_max_cpu,
                             .key_bounds = key_bounds_cpu,
                             .store = store_cpu};

#if defined(__x86_64__)
static bool has_avx2(void)
{
    unsigned eax, ebx, ecx = 0, edx;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || (ecx & bit_F16C) == 0) return false;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static bool has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

const dev_ops *const *dev_cpu_tables(void)
{
    static const dev_ops *const plain[] = {&dev_ops_ref, NULL};
#if defined(__x86_64__)
    static const dev_ops *const avx2[] = {&dev_ops_ref, &dev_ops_avx2_wide, &dev_ops_avx2, NULL};
    static const dev_ops *const avx512[] = {&dev_ops_ref, &dev_ops_avx2_wide, &dev_ops_avx2,
                                            &dev_ops_avx512, NULL};
    if (has_avx512()) return avx512;
    if (has_avx2()) return avx2;
#endif
    return plain;
}

/* NULL if this processor cannot run it. */
static const dev_ops *find_table(const char *isa)
{
    const dev_ops *const *tables = dev_cpu_tables();
    const dev_ops *best = tables[0];
    const bool is_auto = strcmp(isa, "auto") == 0;
    for (size_t i = 0; tables[i] != NULL; i++) {
        if (!is_auto && strcmp(tables[i]->name, isa) == 0) return tables[i];
        best = tables[i];
    }
    return is_auto ? best : NULL;
}

static bool is_known(const char *isa)
{
    static const char *const names[] = {"auto", "ref", "avx2", "avx512"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (strcmp(names[i], isa) == 0) return true;
    }
    return false;
}

err_t dev_open_cpu(const dev_config *config, dev **out, err_info *info)
{
    *out = NULL;
    const dev_ops *ops = find_table(config->isa);
    if (ops == NULL && !is_known(config->isa)) {
        return err_set(info, ERR_BAD_CONFIG, "isa: \"%s\" is none of auto, ref, avx2, avx512",
                       config->isa);
    }
    if (ops == NULL) {
        return err_set(info, ERR_UNSUPPORTED,
                       "isa \"%s\": this processor does not have it; auto is %s", config->isa,
                       find_table("auto")->name);
    }
    dev *d = calloc(1, sizeof *d);
    if (d == NULL) return err_set(info, ERR_NO_MEMORY, "cpu device: out of memory");
    const uint32_t n_wanted = config->n_threads != 0 ? config->n_threads : threads_available();
    const uint32_t n_threads = n_wanted < N_THREADS_MAX ? n_wanted : N_THREADS_MAX;
    d->ops = ops;
    const err_t err = thread_pool_open(n_threads, &d->pool);
    if (err != ERR_OK) {
        dev_close(d);
        return err_set(info, err, "cpu device: cannot start %u threads", n_threads);
    }
    *out = d;
    return ERR_OK;
}

void dev_close(dev *d)
{
    if (d == NULL) return;
    if (d->memory != NULL) d->memory->close(d);
    thread_pool_close(d->pool);
    free(d);
}
