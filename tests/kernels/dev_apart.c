/* tests/kernels/dev_apart.c - see dev_apart.h. */
#include "tests/kernels/dev_apart.h"

#include "base/check.h"

#include <limits.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { ALIGN_BYTES = 256 };

typedef struct apart {
    dev base; /* first: it is what others see */
    dev *cpu;
    dev_ops ops;
    uint8_t *memory; /* without access, unless is_open */
    size_t memory_bytes, used_bytes;
    bool is_open;
    dev_apart_traffic traffic;
    atomic_bool has_failed;
    atomic_uint n_ops_left; /* UINT_MAX: any number */
} apart;

static apart *apart_of(dev *d)
{
    return (apart *)(void *)d;
}

static void set_open(apart *a, bool is_open)
{
    assert(a->is_open != is_open);
    a->is_open = is_open;
    if (mprotect(a->memory, a->memory_bytes, is_open ? PROT_READ | PROT_WRITE : PROT_NONE) != 0)
        abort();
}

static void check(const apart *a, const void *data, size_t bytes)
{
    const uint8_t *const at = data;
    assert(at >= a->memory);
    assert(at + bytes <= a->memory + a->used_bytes);
}

/* False: the device has failed. */
static bool begin(apart *a)
{
    const unsigned n_left = atomic_load(&a->n_ops_left);
    if (n_left == 0) atomic_store(&a->has_failed, true);
    if (atomic_load(&a->has_failed)) return false;
    if (n_left != UINT_MAX) atomic_store(&a->n_ops_left, n_left - 1);
    set_open(a, true);
    return true;
}

static void check_matrix(const apart *a, const matrix *m)
{
    check(a, m->data, m->rows * matrix_row_bytes(m));
}

/* ---- ops ----------------------------------------------------------------------------------------- */

static void embed(dev *d, const embed_args *args)
{
    apart *a = apart_of(d);
    check_matrix(a, &args->table);
    check(a, args->id, args->n_tokens * sizeof *args->id);
    check(a, args->out, (size_t)args->n_tokens * args->table.cols * sizeof *args->out);
    if (!begin(a)) return;
    a->cpu->ops->embed(a->cpu, args);
    set_open(a, false);
}

static void rms_norm(dev *d, const rms_norm_args *args)
{
    apart *a = apart_of(d);
    const size_t stride = args->stride > 0 ? args->stride : args->dim,
                 bytes = ((args->n_tokens - 1) * stride + args->dim) * sizeof(float);
    check(a, args->x, bytes);
    check(a, args->w, args->dim * dtype_bytes(args->w_type));
    check(a, args->out, bytes);
    if (!begin(a)) return;
    a->cpu->ops->rms_norm(a->cpu, args);
    set_open(a, false);
}

static void layer_norm(dev *d, const layer_norm_args *args)
{
    apart *a = apart_of(d);
    const rms_norm_args *const n = &args->norm;
    const size_t bytes = (size_t)n->n_tokens * n->dim * sizeof(float);
    check(a, n->x, bytes);
    check(a, n->w, n->dim * dtype_bytes(n->w_type));
    check(a, args->b, n->dim * dtype_bytes(n->w_type));
    check(a, n->out, bytes);
    if (!begin(a)) return;
    a->cpu->ops->layer_norm(a->cpu, args);
    set_open(a, false);
}

static void adjust(dev *d, const adjust_args *args)
{
    apart *a = apart_of(d);
    check(a, args->x, (size_t)args->n_tokens * args->dim * sizeof(float));
    if (args->b != NULL) check(a, args->b, args->dim * dtype_bytes(args->b_type));
    if (!begin(a)) return;
    a->cpu->ops->adjust(a->cpu, args);
    set_open(a, false);
}

static void rope(dev *d, const rope_args *args)
{
    apart *a = apart_of(d);
    const size_t angles = (size_t)args->n_tokens * (args->dim / 2) * sizeof(float);
    const size_t stride = args->stride > 0 ? args->stride : args->dim,
                 n_rows = (size_t)args->n_tokens * args->n_heads;
    check(a, args->x, ((n_rows - 1) * stride + args->dim) * sizeof(float));
    check(a, args->cos, angles);
    check(a, args->sin, angles);
    if (!begin(a)) return;
    a->cpu->ops->rope(a->cpu, args);
    set_open(a, false);
}

static void matmul(dev *d, const matmul_args *args)
{
    apart *a = apart_of(d);
    const size_t last = args->n_tokens - 1;
    check(a, args->x, (last * args->x_stride + args->part[0].w.cols) * sizeof(float));
    for (uint32_t p = 0; p < args->n_parts; p++) {
        check_matrix(a, &args->part[p].w);
        check(a, args->part[p].out,
              (last * args->part[p].out_stride + args->part[p].w.rows) * sizeof(float));
    }
    if (!begin(a)) return;
    a->cpu->ops->matmul(a->cpu, args);
    set_open(a, false);
}

static void matmul_heads(dev *d, const matmul_heads_args *args)
{
    apart *a = apart_of(d);
    const size_t last = args->n_tokens - 1, last_head = args->n_heads - 1;
    const matrix w = matmul_head(args, args->n_heads - 1);
    check(a, args->x,
          (last * args->x_stride + last_head * args->x_head_stride + w.cols) * sizeof(float));
    check_matrix(a, &args->w);
    check_matrix(a, &w);
    check(a, args->out,
          (last * args->out_stride + last_head * args->out_head_stride + w.rows) * sizeof(float));
    if (!begin(a)) return;
    a->cpu->ops->matmul_heads(a->cpu, args);
    set_open(a, false);
}

static void router(dev *d, const router_args *args)
{
    apart *a = apart_of(d);
    const size_t n_choices = (size_t)args->n_tokens * args->top_k;
    check(a, args->logits, (size_t)args->n_tokens * args->n_experts * sizeof(float));
    check(a, args->expert, n_choices * sizeof *args->expert);
    check(a, args->weight, n_choices * sizeof *args->weight);
    if (!begin(a)) return;
    a->cpu->ops->router(a->cpu, args);
    set_open(a, false);
}

static void moe(dev *d, const moe_args *args)
{
    apart *a = apart_of(d);
    const size_t n_choices = (size_t)args->n_tokens * args->top_k,
                 bytes = (size_t)args->n_tokens * args->dim * sizeof(float);
    check(a, args->x, bytes);
    check(a, args->out, bytes);
    check(a, args->expert, args->n_experts * sizeof *args->expert);
    check(a, args->chosen, n_choices * sizeof *args->chosen);
    check(a, args->weight, n_choices * sizeof *args->weight);
    check(a, args->scratch, 1);
    if (!begin(a)) return;
    for (uint32_t e = 0; e < args->n_experts; e++) {
        if (args->expert[e].gate.data != NULL) check_matrix(a, &args->expert[e].gate);
    }
    a->cpu->ops->moe(a->cpu, args);
    set_open(a, false);
}

static void add(dev *d, const add_args *args)
{
    apart *a = apart_of(d);
    check(a, args->x, args->n * sizeof *args->x);
    check(a, args->y, args->n * sizeof *args->y);
    if (!begin(a)) return;
    a->cpu->ops->add(a->cpu, args);
    set_open(a, false);
}

static void deal_choices(dev *d, const deal_choices_args *args)
{
    apart *a = apart_of(d);
    const size_t bytes = (size_t)args->n_tokens * args->top_k * sizeof *args->chosen;
    check(a, args->chosen, bytes);
    check(a, args->served, bytes);
    check(a, args->positions, args->n_tokens * sizeof *args->positions);
    check(a, args->experts.first, 1);
    check(a, args->experts.rank, 1);
    if (!begin(a)) return;
    a->cpu->ops->deal_choices(a->cpu, args);
    set_open(a, false);
}

/* What tasks and lists lead to is not checked here, but outside of `memory` nothing answers to the same address. */
static void attend_pages(dev *d, const attend_pages_args *args)
{
    apart *a = apart_of(d);
    check(a, args->q, 1);
    check(a, args->out, 1);
    check(a, args->staging, 1);
    check(a, args->layouts, sizeof *args->layouts);
    check(a, args->tasks, args->n_tasks * sizeof *args->tasks);
    check(a, args->merges, args->n_merges * sizeof *args->merges);
    if (!begin(a)) return;
    for (uint32_t t = 0; t < args->n_tasks; t++) {
        const attn_row *row = &args->rows[args->tasks[t].row];
        check(a, row->ring, 1);
        if (row->n_blocks > 0)
            check(a, row->pages, (size_t)row->n_blocks * args->n_lists * sizeof *row->pages);
    }
    attend_pages_cpu(args);
    set_open(a, false);
}

static void choose_pages(dev *d, const choose_pages_args *args)
{
    apart *a = apart_of(d);
    const size_t n = (size_t)args->n_choices * args->attend->n_kv_heads;
    const size_t n_heads = n * args->attend->group, n_max = args->n_blocks_max;
    check(a, args->choices, args->n_choices * sizeof *args->choices);
    check(a, args->boxes, 1);
    check(a, args->bounds, (n_heads + n) * n_max * sizeof *args->bounds);
    check(a, args->log_unread, n_heads * sizeof *args->log_unread);
    if (args->order != NULL) {
        check(a, args->order, n * attn_n_order(args->n_blocks_max) * sizeof *args->order);
        check(a, args->rest, n_heads * attn_n_rest(args->n_blocks_max) * sizeof *args->rest);
    }
    check(a, args->notes, n * sizeof *args->notes);
    if (!begin(a)) return;
    for (uint32_t i = 0; i < args->n_choices; i++)
        check(a, args->attend->rows[args->choices[i].row].chosen, 1);
    choose_pages_cpu(args);
    set_open(a, false);
}

static void put_rows(dev *d, const put_rows_args *args)
{
    apart *a = apart_of(d);
    check(a, args->x, (size_t)args->n_rows * args->n * sizeof *args->x);
    check(a, args->to, (args->n_rows - 1) * args->stride_bytes + args->n * dtype_bytes(args->type));
    if (!begin(a)) return;
    put_rows_cpu(args);
    set_open(a, false);
}

static void check_task(const apart *a, const encode_kind *kind, const encode_task *task)
{
    for (int r = 0; r < 2; r++) {
        const encode_run *const run = &task->run[r];
        if (run->n_slots == 0) continue;
        check(a, run->k,
              (run->n_slots - 1) * (size_t)run->k_stride_bytes +
                  kind->k_dim * dtype_bytes(kind->type));
        if (kind->has_values)
            check(a, run->v,
                  (run->n_slots - 1) * (size_t)run->v_stride_bytes +
                      kind->v_dim * dtype_bytes(kind->type));
    }
    check(a, task->page, kind->page_bytes);
    if (task->box != NULL) check(a, task->box, encode_box_bytes(kind));
    if (task->copy != NULL)
        check(a, task->copy, kind->page_bytes + (task->box != NULL ? encode_box_bytes(kind) : 0));
}

static void encode_pages(dev *d, const encode_pages_args *args)
{
    apart *a = apart_of(d);
    check(a, args->tasks, args->n_tasks * sizeof *args->tasks);
    check(a, args->kinds, sizeof *args->kinds);
    if (!begin(a)) return;
    for (uint32_t t = 0; t < args->n_tasks; t++)
        check_task(a, &args->kinds[args->tasks[t].kind], &args->tasks[t]);
    encode_pages_cpu(args);
    set_open(a, false);
}

static void move_slots(dev *d, const move_slots_args *args)
{
    apart *a = apart_of(d);
    check(a, args->tasks, args->n_tasks * sizeof *args->tasks);
    if (!begin(a)) return;
    for (uint32_t t = 0; t < args->n_tasks; t++) {
        check(a, args->tasks[t].from, args->bytes);
        check(a, args->tasks[t].to, args->bytes);
    }
    move_slots_cpu(args);
    set_open(a, false);
}

static void merge_parts(dev *d, const merge_parts_args *args)
{
    apart *a = apart_of(d);
    const size_t n_rows = (size_t)args->n_tokens * args->n_heads;
    check(a, args->parts,
          ((args->n_parts - 1) * args->part_stride + n_rows * (args->v_dim + 1)) * sizeof(float));
    check(a, args->out, n_rows * args->v_dim * sizeof *args->out);
    if (!begin(a)) return;
    merge_parts_cpu(args);
    set_open(a, false);
}

static void sample(dev *d, const sample_args *args)
{
    apart *a = apart_of(d);
    check(a, args->logits, (size_t)args->n_rows * args->n_vocab * sizeof *args->logits);
    check(a, args->rows, args->n_rows * sizeof *args->rows);
    check(a, args->results, args->n_rows * sizeof *args->results);
    if (!begin(a)) return;
    for (uint32_t r = 0; r < args->n_rows; r++) {
        const sample_row *const row = &args->rows[r];
        if (row->n_edits > 0)
            check(a, args->edits + row->first_edit, row->n_edits * sizeof *args->edits);
    }
    void *const scratch = malloc(sample_scratch_bytes(args->n_vocab));
    if (scratch == NULL) abort();
    sample_cpu(args, scratch);
    free(scratch);
    set_open(a, false);
}

/* ---- memory -------------------------------------------------------------------------------------- */

static err_t alloc_apart(dev *d, size_t bytes, void **out, err_info *info)
{
    apart *a = apart_of(d);
    if (bytes > a->memory_bytes - a->used_bytes)
        return err_set(info, ERR_NO_MEMORY, "apart: %zu bytes do not fit", bytes);
    *out = a->memory + a->used_bytes; /* zero, as it came from the system */
    a->used_bytes += round_up(bytes, ALIGN_BYTES);
    return ERR_OK;
}

static void free_apart(dev *d, void *data)
{
    check(apart_of(d), data, 0); /* it goes with the device */
}

static size_t room(dev *d)
{
    return apart_of(d)->memory_bytes - apart_of(d)->used_bytes;
}

static void upload(dev *d, void *to, const void *from, size_t bytes)
{
    apart *a = apart_of(d);
    check(a, to, bytes);
    if (!begin(a)) return;
    a->traffic.up_bytes += bytes;
    a->traffic.n_uploads++;
    memcpy(to, from, bytes);
    set_open(a, false);
}

static void download(dev *d, void *to, const void *from, size_t bytes)
{
    apart *a = apart_of(d);
    check(a, from, bytes);
    memset(to, 0, bytes);
    if (!begin(a)) return;
    a->traffic.down_bytes += bytes;
    a->traffic.n_downloads++;
    memcpy(to, from, bytes);
    set_open(a, false);
}

static void zero(dev *d, void *data, size_t bytes)
{
    apart *a = apart_of(d);
    check(a, data, bytes);
    if (!begin(a)) return;
    memset(data, 0, bytes);
    set_open(a, false);
}

static err_t status(dev *d, err_info *info)
{
    return atomic_load(&apart_of(d)->has_failed)
               ? err_set(info, ERR_SYSTEM, "apart: the device failed")
               : ERR_OK;
}

static void close_apart(dev *d)
{
    apart *a = apart_of(d);
    dev_close(a->cpu);
    if (a->memory != NULL) munmap(a->memory, a->memory_bytes);
    d->pool = NULL; /* the CPU's, which is gone */
}

static const dev_memory memory_apart = {.alloc = alloc_apart,
                                        .free = free_apart,
                                        .room = room,
                                        .upload = upload,
                                        .download = download,
                                        .zero = zero,
                                        .status = status,
                                        .close = close_apart};

static err_t open_apart(const dev_config *config, size_t memory_bytes, bool attends, dev **out,
                        err_info *info)
{
    *out = NULL;
    apart *a = calloc(1, sizeof *a);
    if (a == NULL) return err_set(info, ERR_NO_MEMORY, "apart: out of memory");
    a->n_ops_left = UINT_MAX;
    a->memory_bytes = round_up(memory_bytes, 4096);
    a->base.memory = &memory_apart;
    const err_t err = dev_open_cpu(config, &a->cpu, info);
    if (err != ERR_OK) {
        free(a);
        return err;
    }
    a->memory =
        mmap(NULL, a->memory_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (a->memory == MAP_FAILED) abort();
    a->ops = *a->cpu->ops; /* serial ones stay: they work on the host's memory */
    a->ops.embed = embed;
    a->ops.rms_norm = rms_norm;
    a->ops.layer_norm = layer_norm;
    a->ops.adjust = adjust;
    a->ops.rope = rope;
    a->ops.matmul = matmul;
    a->ops.matmul_heads = matmul_heads;
    a->ops.router = router;
    a->ops.moe = moe;
    a->ops.add = add;
    a->ops.deal_choices = deal_choices;
    if (attends) a->ops.attend_pages = attend_pages;
    if (attends) a->ops.choose_pages = choose_pages;
    if (attends) a->ops.put_rows = put_rows;
    if (attends) a->ops.encode_pages = encode_pages;
    if (attends) a->ops.move_slots = move_slots;
    if (attends) a->ops.merge_parts = merge_parts;
    if (attends) a->ops.sample = sample;
    a->base.ops = &a->ops;
    a->base.pool = a->cpu->pool;
    *out = &a->base;
    return ERR_OK;
}

err_t dev_apart_open(const dev_config *config, size_t memory_bytes, dev **out, err_info *info)
{
    return open_apart(config, memory_bytes, false, out, info);
}

err_t dev_apart_open_attending(const dev_config *config, size_t memory_bytes, dev **out,
                               err_info *info)
{
    return open_apart(config, memory_bytes, true, out, info);
}

void dev_apart_fail_after(dev *d, uint32_t n_ops)
{
    atomic_store(&apart_of(d)->n_ops_left, n_ops);
}

dev_apart_traffic dev_apart_count(const dev *d)
{
    return ((const apart *)(const void *)d)->traffic;
}
