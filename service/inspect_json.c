/* service/inspect_json.c - see inspect.h. The report is made as a JSON object of objects, and printed from it for
 * people: both say the same. */
#include "service/inspect.h"

#include "base/utf8.h"
#include "model/family.h"
#include "model/safetensors.h"
#include "model/tensor_scan.h"
#include "model/tokenizer.h"
#include "service/chat_template.h"
#include "service/plan.h"

#include <inttypes.h>
#include <jansson.h>
#include <string.h>

enum { FAULTS_SHOWN_MAX = 20 };

typedef struct inspection {
    const inspect_request *request;
    json_t *root;
    bool is_whole;   /* no memory has been missing */
    err_info *first; /* what is missing or not supported */
    model_config about;
    bool has_config;
    tensor_files *files; /* NULL: none */
} inspection;

static json_t *text_new(const char *text)
{
    return utf8_valid(text, strlen(text)) ? json_string(text) : json_null();
}

static void put(inspection *in, json_t *object, const char *key, json_t *value)
{
    if (json_object_set_new(object, key, value) != 0) in->is_whole = false;
}

static void put_count(inspection *in, json_t *object, const char *key, uint64_t n)
{
    put(in, object, key, json_integer((json_int_t)n));
}

static json_t *part_new(inspection *in, const char *name)
{
    put(in, in->root, name, json_object());
    return json_object_get(in->root,
                           name); /* borrowed; NULL without memory, which jansson's calls take */
}

/* A part that cannot be told of, and why. */
static void put_fault(inspection *in, json_t *part, err_t code, const char *message)
{
    put(in, part, "fault", text_new(message));
    (void)err_set(in->first, code, "%s", message);
}

/* ---- config.json --------------------------------------------------------------------------------- */

static uint64_t layers_of(const model_config *c, bool (*is_one)(const model_config *, uint32_t))
{
    uint64_t n = 0;
    for (uint32_t l = 0; l < c->n_layers; l++)
        n += is_one(c, l) ? 1 : 0;
    return n;
}

static bool is_windowed(const model_config *c, uint32_t layer)
{
    return model_layer_window(c, layer) > 0;
}

static void put_shape(inspection *in, const model_config *c)
{
    json_t *const part = part_new(in, "shape");
    put_count(in, part, "layers", c->n_layers);
    put_count(in, part, "hidden_size", c->d_model);
    put_count(in, part, "heads", c->n_heads);
    put_count(in, part, "kv_heads", c->n_kv_heads);
    put_count(in, part, "key_channels", c->head_dim);
    put_count(in, part, "value_channels", c->v_dim);
    put_count(in, part, "experts", c->n_experts);
    put_count(in, part, "experts_per_token", c->top_k);
    put_count(in, part, "expert_width", c->d_ffn);
    put_count(in, part, "shared_expert_width", c->d_shared_ffn);
    put_count(in, part, "dense_layers", layers_of(c, model_layer_is_dense));
    put_count(in, part, "dense_width", c->d_dense_ffn);
    put_count(in, part, "windowed_layers", layers_of(c, is_windowed));
    put_count(in, part, "window", c->window);
    put_count(in, part, "vocabulary", c->n_vocab);
    put(in, part, "tied_embeddings", json_boolean(c->tied_embeddings));
}

static void put_context(inspection *in, const model_config *c)
{
    static const char *const kinds[ROPE_KINDS] = {
        [ROPE_PLAIN] = "default", [ROPE_LINEAR] = "linear", [ROPE_DYNAMIC] = "dynamic",
        [ROPE_LLAMA3] = "llama3", [ROPE_YARN] = "yarn",     [ROPE_LONGROPE] = "longrope"};
    json_t *const part = part_new(in, "context");
    put_count(in, part, "tokens", c->n_positions);
    put(in, part, "rope", json_string(kinds[c->rope.kind]));
    put(in, part, "rope_theta", json_real((double)c->rope.theta));
    if (c->rope.kind != ROPE_PLAIN)
        put_count(in, part, "tokens_before_scaling", c->rope.n_original);
    put(in, part, "ends", json_array());
    for (uint32_t i = 0; i < c->n_eos; i++)
        if (json_array_append_new(json_object_get(part, "ends"), json_integer(c->eos[i])) != 0)
            in->is_whole = false;
}

static void put_config(inspection *in)
{
    err_info info = {0};
    json_t *const part = part_new(in, "family");
    const err_t err = model_config_read(in->request->dir, &in->about, &info);
    if (err != ERR_OK) {
        put_fault(in, part, err, info.message);
        return;
    }
    in->has_config = true;
    put(in, part, "model_type", json_string(in->about.family));
    put_shape(in, &in->about);
    put_context(in, &in->about);
    json_t *const params = part_new(in, "parameters");
    put_count(in, params, "total", in->about.n_params);
    put_count(in, params, "active", in->about.n_params_active);
}

/* ---- files of weights ---------------------------------------------------------------------------- */

static void put_types(inspection *in, json_t *part)
{
    uint64_t bytes[TENSOR_TYPE_COUNT] = {0};
    for (size_t i = 0; i < tensor_count(in->files); i++) {
        const tensor *const t = tensor_at(in->files, i);
        bytes[t->type] += t->data_bytes;
    }
    for (tensor_type type = 0; type < TENSOR_TYPE_COUNT; type++) {
        char key[32];
        (void)snprintf(key, sizeof key, "%s_bytes", tensor_type_name(type));
        if (bytes[type] > 0) put_count(in, part, key, bytes[type]);
    }
}

/* What a start would say of the files. */
static void put_notes(inspection *in, json_t *part, const weights_notes *n)
{
    if (n->copied_bytes > 0) put_count(in, part, "copied_bytes", n->copied_bytes);
    if (n->n_expanded > 0) {
        put_count(in, part, "expanded_to_f32", n->n_expanded);
        put_count(in, part, "expanded_bytes", n->expanded_bytes);
    }
    if (n->n_unused > 0) {
        put_count(in, part, "unused_tensors",
                  n->n_unused); /* of layers for several tokens at once */
        put_count(in, part, "unused_bytes", n->unused_bytes);
    }
    if (n->n_unknown == 0) return;
    put_count(in, part, "unknown_tensors", n->n_unknown);
    put(in, part, "first_unknown", text_new(n->first_unknown));
}

/* Names, shapes and types are those that the family asks for. */
static void check_names(inspection *in, json_t *part)
{
    err_info info = {0};
    model_weights weights;
    const err_t err = model_weights_find(in->request->dir, model_family_find(in->about.family),
                                         &in->about, &weights, &info);
    if (err != ERR_OK) {
        put_fault(in, part, err, info.message);
        return;
    }
    put_notes(in, part, &weights.notes);
    model_weights_deinit(&weights);
}

static void put_weights(inspection *in)
{
    err_info info = {0};
    json_t *const part = part_new(in, "weights");
    const err_t err = tensor_files_open(in->request->dir, &in->files, &info);
    if (err != ERR_OK) {
        put_fault(in, part, err, info.message);
        return;
    }
    put_count(in, part, "tensors", tensor_count(in->files));
    put_count(in, part, "bytes", tensor_files_bytes(in->files));
    put_types(in, part);
    if (in->has_config) check_names(in, part);
}

static void put_bad_tensor(inspection *in, json_t *list, const tensor *t, const tensor_faults *f)
{
    json_t *const bad = json_object();
    put(in, bad, "tensor", text_new(t->name));
    put_count(in, bad, "nan", f->n_nan);
    put_count(in, bad, "inf", f->n_inf);
    put_count(in, bad, "first_at", f->first);
    if (json_array_append_new(list, bad) != 0) in->is_whole = false;
}

static void put_check(inspection *in)
{
    json_t *const part = part_new(in, "check");
    uint64_t n_bad = 0, n_nan = 0, n_inf = 0;
    put(in, part, "bad", json_array());
    for (size_t i = 0; i < tensor_count(in->files); i++) {
        const tensor *const t = tensor_at(in->files, i);
        tensor_faults faults;
        tensor_scan(in->request->check, t, &faults);
        if (faults.n_nan + faults.n_inf == 0) continue;
        n_nan += faults.n_nan;
        n_inf += faults.n_inf;
        if (n_bad++ < FAULTS_SHOWN_MAX)
            put_bad_tensor(in, json_object_get(part, "bad"), t, &faults);
        (void)err_set(in->first, ERR_BAD_MODEL,
                      "tensor %.100s: %" PRIu64 " NaN and %" PRIu64
                      " Inf, the first is value %" PRIu64,
                      t->name, faults.n_nan, faults.n_inf, faults.first);
    }
    put_count(in, part, "bad_tensors", n_bad);
    put_count(in, part, "nan", n_nan);
    put_count(in, part, "inf", n_inf);
    err_info info = {0};
    const err_t err = tensor_files_unchanged(in->files, &info);
    if (err != ERR_OK) put_fault(in, part, err, info.message);
}

/* ---- text ---------------------------------------------------------------------------------------- */

static void put_chat(inspection *in, const tokenizer *t)
{
    err_info info = {0};
    chat_template *chat = NULL;
    json_t *const part = part_new(in, "chat_template");
    const err_t err = chat_template_open(in->request->dir, NULL, t, &chat, &info);
    const char *const fault = err == ERR_OK ? chat_template_fault(chat) : info.message;
    put(in, part, "renders", json_boolean(fault == NULL));
    if (fault != NULL) put(in, part, "fault", text_new(fault)); /* it completes nevertheless */
    if (err == ERR_OK) chat_template_close(chat);
}

static void put_tokenizer(inspection *in)
{
    err_info info = {0};
    tokenizer *t = NULL;
    json_t *const part = part_new(in, "tokenizer");
    err_t err = tokenizer_open(in->request->dir, &t, &info);
    if (err == ERR_OK && in->has_config) err = tokenizer_check_vocab(t, in->about.n_vocab, &info);
    if (err != ERR_OK) put_fault(in, part, err, info.message);
    if (t == NULL) return;
    put(in, part, "kind", json_string(tokenizer_kind(t)));
    put_count(in, part, "tokens", tokenizer_n_vocab(t));
    put(in, part, "bos", json_integer(tokenizer_bos(t)));
    put(in, part, "eos", json_integer(tokenizer_eos(t)));
    put(in, part, "adds_bos", json_boolean(tokenizer_adds_bos(t)));
    put_chat(in, t);
    tokenizer_close(t);
}

/* ---- memory -------------------------------------------------------------------------------------- */

static err_t plan_memory_of(const inspection *in, uint64_t n_tokens, plan_weights *weights,
                            plan_cache *cache, err_info *info)
{
    const inspect_request *const r = in->request;
    plan_kv_shape shape;
    TRY(plan_weights_of(&in->about, weights, info));
    err_t err = plan_kv_shape_init(&in->about, r->dir, &shape, info);
    const plan_cache_input input = {.config = r->kv,
                                    .shape = &shape.shape,
                                    .n_tokens = (uint32_t)n_tokens,
                                    .n_seqs = r->n_seqs,
                                    .n_step_tokens =
                                        r->n_step_tokens > r->n_seqs ? r->n_step_tokens : r->n_seqs,
                                    .n_ranks = 1};
    if (err == ERR_OK) err = plan_cache_of(&input, cache, info);
    plan_kv_shape_deinit(&shape);
    return err;
}

static void put_memory(inspection *in)
{
    err_info info = {0};
    plan_weights weights;
    plan_cache cache;
    json_t *const part = part_new(in, "memory");
    const uint32_t n_tokens =
        in->request->n_context > 0 ? in->request->n_context : in->about.n_positions;
    const err_t err = plan_memory_of(in, n_tokens, &weights, &cache, &info);
    if (err != ERR_OK) {
        put_fault(in, part, err, info.message);
        return;
    }
    uint64_t n_moe = in->about.n_layers - layers_of(&in->about, model_layer_is_dense);
    const uint64_t weight_bytes =
        weights.replicated_bytes + n_moe * in->about.n_experts * weights.expert_bytes;
    const uint64_t kv_bytes = cache.page_bytes + cache.section_bytes + cache.ring_bytes +
                              cache.table_bytes + cache.descriptor_bytes + cache.staging_bytes;
    put_count(in, part, "context_tokens", n_tokens);
    put_count(in, part, "sequences", in->request->n_seqs);
    put_count(in, part, "weights_bytes", weight_bytes);
    put_count(in, part, "kv_token_bytes", cache.token_bytes);
    put_count(in, part, "kv_bytes", kv_bytes);
    put_count(in, part, "total_bytes", weight_bytes + kv_bytes);
}

/* ---- the whole ----------------------------------------------------------------------------------- */

static void print_value(FILE *out, const char *key, const json_t *value)
{
    static const char suffix[] = "bytes";
    const size_t n_key = strlen(key), n_suffix = sizeof suffix - 1;
    if (json_is_integer(value)) {
        const json_int_t n = json_integer_value(value);
        fprintf(out, "%" JSON_INTEGER_FORMAT, n);
        if (n_key >= n_suffix && strcmp(key + n_key - n_suffix, suffix) == 0 && n >= 1 << 20)
            fprintf(out, "  (%.2f GiB)", (double)n / (1 << 30));
    } else if (json_is_string(value)) {
        fputs(json_string_value(value), out);
    } else {
        (void)json_dumpf(value, out, JSON_ENCODE_ANY | JSON_REAL_PRECISION(9));
    }
    fputc('\n', out);
}

static void print_part(FILE *out, const char *name, const json_t *part)
{
    const char *key;
    json_t *value;
    if (!json_is_object(part)) {
        fprintf(out, "%s: ", name);
        print_value(out, name, part);
        return;
    }
    fprintf(out, "\n%s\n", name);
    json_object_foreach((json_t *)(uintptr_t)part, key, value)
    {
        fprintf(out, "  %-24s ", key);
        print_value(out, key, value);
    }
}

static err_t print(const inspection *in, FILE *out, err_info *info)
{
    const char *name;
    json_t *part;
    if (!in->is_whole) return err_set(info, ERR_NO_MEMORY, "inspect: out of memory");
    if (in->request->is_json) {
        if (json_dumpf(in->root, out, JSON_INDENT(2) | JSON_REAL_PRECISION(12)) == 0)
            fputc('\n', out);
    } else {
        json_object_foreach(in->root, name, part) print_part(out, name, part);
    }
    if (fflush(out) == 0 && !ferror(out)) return ERR_OK;
    return err_set(info, ERR_IO, "inspect: the output cannot be written");
}

err_t inspect_model(const inspect_request *request, FILE *out, err_info *info)
{
    err_info first = {0};
    inspection in = {.request = request, .root = json_object(), .is_whole = true, .first = &first};
    put(&in, in.root, "model", text_new(request->dir));
    put_config(&in);
    put_weights(&in);
    put_tokenizer(&in);
    if (in.has_config) put_memory(&in);
    if (in.files != NULL && request->check != NULL) put_check(&in);
    const err_t err = print(&in, out, info);
    tensor_files_close(in.files);
    json_decref(in.root);
    TRY(err);
    return first.code == ERR_OK ? ERR_OK : err_set(info, first.code, "%s", first.message);
}
