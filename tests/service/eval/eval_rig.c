/* tests/service/eval/eval_rig.c - see eval_rig.h. */
#include "tests/service/eval/eval_rig.h"

#include "base/random.h"

#include <check.h>

static cfg_binding bind(eval_rig *rig)
{
    return (cfg_binding){&kv_config_table, &rig->kv};
}

void eval_rig_open(const char *dir, eval_rig *out)
{
    err_info info = {0};
    const dev_config device = {.isa = "auto", .n_threads = 2};
    const model_options shape = {.n_step_tokens_max = RIG_STEP_TOKENS_MAX};
    *out = (eval_rig){0};
    const cfg_binding binding = bind(out);
    ck_assert_int_eq(cfg_defaults(&binding, 1), ERR_OK);
    out->kv.memory_bytes = 64 << 20;
    out->kv.window_tokens = 8;
    out->kv.sink_tokens = 2;
    out->kv.page_tokens = 4;
    ck_assert_int_eq(dev_open_cpu(&device, &out->d, &info), ERR_OK);
    ck_assert_msg(model_open(out->d, dir, &shape, &out->m, &info) == ERR_OK, "%s", info.message);
    out->n_vocab = model_get_config(out->m)->n_vocab;
    out->options = (eval_options){.d = out->d,
                                  .m = out->m,
                                  .kv = &out->kv,
                                  .n_seqs_max = 4,
                                  .n_step_tokens_max = 64,
                                  .n_seq_tokens_max = 400};
}

void eval_rig_close(eval_rig *rig)
{
    const cfg_binding binding = bind(rig);
    cfg_deinit(&binding, 1);
    model_close(rig->m);
    dev_close(rig->d);
}

eval_run *eval_rig_run_open(const eval_rig *rig)
{
    err_info info = {0};
    eval_run *r;
    ck_assert_msg(eval_run_open(&rig->options, &r, &info) == ERR_OK, "%s", info.message);
    return r;
}

void must_run(eval_run *r, eval_job *jobs, size_t n_jobs)
{
    err_info info = {0};
    ck_assert_msg(eval_run_jobs(r, jobs, n_jobs, &info) == ERR_OK, "%s", info.message);
}

void fill_tokens(const eval_rig *rig, uint32_t kind, uint32_t n, uint32_t *tokens)
{
    for (uint32_t i = 0; i < n; i++)
        tokens[i] = 3 + random_at(7, kind, i).word[0] % (rig->n_vocab - 3);
}
