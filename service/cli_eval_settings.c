/* service/cli_eval_settings.c - see cli_eval_settings.h. */
#include "service/cli_eval_settings.h"

#include "base/check.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

enum {
    SHOWN_BYTES_MAX = 40, /* of a refused word */
    NAME_BYTES_MAX = 96,  /* longer names match nothing */
    VALUE_BYTES_MAX = 256
};

static const cfg_field eval_fields[] = {
    CFG_TEXT(eval_config, text, "text", NULL, "FILE", "score this text"),
    CFG_NUM32(eval_config, window, "window", EVAL_WINDOW_MIN, EVAL_CONTEXT_MAX, "512",
              "tokens of a piece of the text; its second half is scored"),
    CFG_NUM32(eval_config, n_windows_max, "max-windows", 0, 4294967295.0, "0",
              "pieces at most, spread over the text; 0: all"),
    CFG_TEXT(eval_config, tasks, "tasks", NULL, "LIST",
             "ask questions of these kinds, listed below"),
    CFG_TEXT(eval_config, contexts, "context", NULL, "LIST",
             "tokens of a question with its passage; 512 unless given"),
    CFG_NUM32(eval_config, n_samples, "samples", 1, 1000000, "100",
              "questions of each task and context"),
    CFG_NUM32(eval_config, n_distance_tokens, "distance", 0, EVAL_CONTEXT_MAX, "0",
              "tokens between the asked fact and the question; 0: any"),
    CFG_NUM64(eval_config, seed, "seed", 0, 9007199254740992.0, "1", "of the questions"),
    CFG_TEXT(eval_config, against, "against", NULL, "FILE",
             "compare with the logits of a reference, a safetensors file"),
    CFG_TEXT(eval_config, compare, "compare", NULL, "CONFIGS",
             "a row for each \"NAME=VALUE,...;...\" of KV settings"),
    CFG_TEXT(eval_config, json, "json", NULL, "FILE", "write the rows as JSON too"),
    CFG_NUM32(eval_config, n_seqs, "batch", 1, 4096, "16", "sequences at once"),
    CFG_NUM32(eval_config, n_step_tokens, "max-num-batched-tokens", 1, 65536, "512",
              "tokens of one step"),
};

static const cfg_table eval_config_table = {.title = "Evaluation",
                                            .fields = eval_fields,
                                            .n_fields = sizeof eval_fields / sizeof eval_fields[0]};

static const cfg_alias aliases[] = {{"-t", "threads"}, {"-h", "help"}, {NULL, NULL}};

/* A part of a list; not terminated. */
typedef struct word {
    const char *bytes;
    size_t n_bytes;
} word;

/* The part up to the separator or the end, without blanks around; *rest moves behind it and is NULL after the last. */
static word next_word(const char **rest, char separator)
{
    const char *begin = *rest, *end = strchrnul(begin, separator);
    *rest = *end != '\0' ? end + 1 : NULL;
    while (begin < end && isspace((unsigned char)*begin))
        begin++;
    while (end > begin && isspace((unsigned char)end[-1]))
        end--;
    return (word){begin, (size_t)(end - begin)};
}

/* The part up to a comma, and on over commas whose next part sets nothing: a value may be a list. */
static word next_pair(const char **rest)
{
    word pair = next_word(rest, ',');
    while (*rest != NULL) {
        const char *behind = *rest;
        const word next = next_word(&behind, ',');
        if (next.n_bytes == 0 || memchr(next.bytes, '=', next.n_bytes) != NULL) break;
        pair.n_bytes = (size_t)(next.bytes + next.n_bytes - pair.bytes);
        *rest = behind;
    }
    return pair;
}

static int shown_bytes(word w)
{
    return (int)min_size(w.n_bytes, SHOWN_BYTES_MAX);
}

/* NUL-terminated; false if it does not fit. */
static bool copy_word(word w, char *out, size_t out_bytes)
{
    if (w.n_bytes >= out_bytes) return false;
    memcpy(out, w.bytes, w.n_bytes);
    out[w.n_bytes] = '\0';
    return true;
}

/* ---- tasks and contexts ---------------------------------------------------------------------------- */

static err_t refuse_task(word w, err_info *info)
{
    char names[128] = "";
    for (size_t i = 0; eval_tasks[i] != NULL; i++) {
        const size_t used = strlen(names);
        snprintf(names + used, sizeof names - used, "%s%s", i > 0 ? ", " : "",
                 eval_task_name(eval_tasks[i]));
    }
    return err_set(info, ERR_BAD_CONFIG, "tasks: \"%.*s\" is none of %s", shown_bytes(w), w.bytes,
                   names);
}

static err_t read_tasks(const char *list, eval_plan *plan, err_info *info)
{
    while (list != NULL) {
        const word w = next_word(&list, ',');
        const eval_task *task = eval_task_find(w.bytes, w.n_bytes);
        if (task == NULL) return refuse_task(w, info);
        for (uint32_t i = 0; i < plan->n_tasks; i++) {
            if (plan->tasks[i] != task) continue;
            return err_set(info, ERR_BAD_CONFIG, "tasks: %s is named twice", eval_task_name(task));
        }
        assert(plan->n_tasks < EVAL_TASKS_MAX); /* each once, and there are fewer */
        plan->tasks[plan->n_tasks++] = task;
    }
    return ERR_OK;
}

static err_t read_context(word w, uint32_t *out, err_info *info)
{
    char text[24];
    uint64_t n;
    if (!copy_word(w, text, sizeof text) || cfg_parse_u64(text, &n) != ERR_OK) {
        return err_set(info, ERR_BAD_CONFIG, "context: \"%.*s\" is not a number", shown_bytes(w),
                       w.bytes);
    }
    if (n < EVAL_CONTEXT_MIN || n > EVAL_CONTEXT_MAX) {
        return err_set(info, ERR_BAD_CONFIG, "context: %s is outside [%d, %d]", text,
                       EVAL_CONTEXT_MIN, EVAL_CONTEXT_MAX);
    }
    *out = (uint32_t)n;
    return ERR_OK;
}

static err_t read_contexts(const char *list, eval_plan *plan, err_info *info)
{
    while (list != NULL) {
        uint32_t n_tokens = 0;
        TRY(read_context(next_word(&list, ','), &n_tokens, info));
        for (uint32_t i = 0; i < plan->n_contexts; i++) {
            if (plan->contexts[i] != n_tokens) continue;
            return err_set(info, ERR_BAD_CONFIG, "context: %u is named twice", n_tokens);
        }
        if (plan->n_contexts == EVAL_CONTEXTS_MAX) {
            return err_set(info, ERR_BAD_CONFIG, "context: more than %d lengths",
                           EVAL_CONTEXTS_MAX);
        }
        plan->contexts[plan->n_contexts++] = n_tokens;
    }
    return ERR_OK;
}

static err_t check_distance(const eval_plan *plan, err_info *info)
{
    if (plan->n_distance_tokens == 0) return ERR_OK;
    if (plan->n_tasks == 0)
        return err_set(info, ERR_BAD_CONFIG, "distance: it is for --tasks, and there are none");
    for (uint32_t i = 0; i < plan->n_tasks; i++) {
        if (eval_task_takes_distance(plan->tasks[i])) continue;
        return err_set(info, ERR_BAD_CONFIG,
                       "distance: the questions of %s do not hang on one fact, so there is no "
                       "distance to it",
                       eval_task_name(plan->tasks[i]));
    }
    return ERR_OK;
}

static err_t make_plan(const eval_config *e, eval_plan *plan, err_info *info)
{
    *plan = (eval_plan){.window = e->window,
                        .n_windows_max = e->n_windows_max,
                        .n_samples = e->n_samples,
                        .n_distance_tokens = e->n_distance_tokens,
                        .seed = e->seed};
    if (e->text == NULL && e->tasks == NULL && e->against == NULL) {
        return err_set(info, ERR_BAD_CONFIG,
                       "nothing to do: give --text FILE, --tasks LIST or --against FILE");
    }
    if (e->contexts != NULL && e->tasks == NULL)
        return err_set(info, ERR_BAD_CONFIG, "context: it is for --tasks, and there are none");
    if (e->n_seqs > e->n_step_tokens) {
        return err_set(info, ERR_BAD_CONFIG, "batch: %u is beyond max-num-batched-tokens, %u",
                       e->n_seqs, e->n_step_tokens);
    }
    if (e->tasks != NULL) {
        TRY(read_tasks(e->tasks, plan, info));
        TRY(read_contexts(e->contexts != NULL ? e->contexts : "512", plan, info));
    }
    return check_distance(plan, info);
}

/* ---- rows of --compare ----------------------------------------------------------------------------- */

/* Pages shared between sequences would be counted once and read by many; so eval never shares. */
static err_t refuse_prefix_caching(const kv_config *kv, const char *where, err_info *info)
{
    if (!kv->prefix_caching) return ERR_OK;
    return err_set(info, ERR_BAD_CONFIG,
                   "%senable-prefix-caching: bytes are measured without it, it cannot be turned on",
                   where);
}

/* The name of the field that is meant, with or without "kv-" in front; an unknown one as it is. */
static const char *field_name(const cfg_binding *binding, const char name[NAME_BYTES_MAX])
{
    char prefixed[NAME_BYTES_MAX + sizeof "kv-"];
    if (cfg_find(binding, 1, name, NULL) != NULL) return name;
    snprintf(prefixed, sizeof prefixed, "kv-%s", name);
    const cfg_field *field = cfg_find(binding, 1, prefixed, NULL);
    return field != NULL ? field->name : name;
}

static err_t refuse_in(uint32_t row, const char *what, word w, err_info *info)
{
    return err_set(info, ERR_BAD_CONFIG, "compare: config %u: \"%.*s\" %s", row + 1, shown_bytes(w),
                   w.bytes, what);
}

/* One "name=value" over the row's settings. `seen` has a bit for each field that the CONFIG has named. */
static err_t set_pair(eval_settings *s, uint32_t row, word pair, uint64_t *seen, err_info *info)
{
    char text[VALUE_BYTES_MAX], name[NAME_BYTES_MAX], value[VALUE_BYTES_MAX];
    err_info cause = {0};
    const cfg_binding binding = {&kv_config_table, &s->rows[row].kv};
    if (!copy_word(pair, text, sizeof text)) return refuse_in(row, "is too long", pair, info);
    const char *rest = text;
    const bool is_named = copy_word(next_word(&rest, '='), name, sizeof name);
    if (!is_named || rest == NULL) return refuse_in(row, "is not name=value", pair, info);
    const bool fits = copy_word(next_word(&rest, '\0'), value, sizeof value);
    assert(fits); /* as the whole did */
    const char *known = field_name(&binding, name);
    if (cfg_set(&binding, 1, known, value, &cause) != ERR_OK)
        return err_set(info, ERR_BAD_CONFIG, "compare: config %u: %s", row + 1, cause.message);
    const cfg_field *field = cfg_find(&binding, 1, known, NULL);
    const uint64_t bit = UINT64_C(1) << (field - kv_config_table.fields);
    if ((*seen & bit) != 0) return refuse_in(row, "is set for the second time", pair, info);
    *seen |= bit;
    return ERR_OK;
}

static err_t read_row(eval_settings *s, uint32_t row, word config, err_info *info)
{
    char where[48];
    eval_setting_row *out = &s->rows[row];
    const bool is_default = config.n_bytes == 0 || (config.n_bytes == strlen("default") &&
                                                    memcmp(config.bytes, "default", 7) == 0);
    out->name = is_default ? strdup("default") : strndup(config.bytes, config.n_bytes);
    if (out->name == NULL) return err_set(info, ERR_NO_MEMORY, "compare: out of memory");
    if (cfg_copy(&kv_config_table, &s->kv, &out->kv) != ERR_OK)
        return err_set(info, ERR_NO_MEMORY, "compare: out of memory");
    if (is_default) return ERR_OK;
    uint64_t seen = 0;
    const char *rest = out->name;
    while (rest != NULL)
        TRY(set_pair(s, row, next_pair(&rest), &seen, info));
    snprintf(where, sizeof where, "compare: config %u: ", row + 1);
    return refuse_prefix_caching(&out->kv, where, info);
}

static err_t read_rows(eval_settings *s, err_info *info)
{
    assert(kv_config_table.n_fields <= 64); /* the bits of `seen` */
    const char *rest = s->eval.compare != NULL ? s->eval.compare : "";
    while (rest != NULL) {
        if (s->n_rows == EVAL_ROWS_MAX)
            return err_set(info, ERR_BAD_CONFIG, "compare: more than %d configs", EVAL_ROWS_MAX);
        const word config = next_word(&rest, ';');
        s->n_rows++; /* first, so that a row that fails halfway is freed */
        TRY(read_row(s, s->n_rows - 1, config, info));
    }
    return ERR_OK;
}

/* ---- all of it ------------------------------------------------------------------------------------- */

err_t eval_settings_init(eval_settings *s, int argc, char **argv, char *const *environment,
                         err_info *info)
{
    *s = (eval_settings){0};
    s->bindings[0] = (cfg_binding){&eval_config_table, &s->eval};
    s->bindings[1] = (cfg_binding){&cli_parts_config_table, &s->parts};
    s->bindings[2] = (cfg_binding){&kv_config_table, &s->kv};
    s->command = (cli_settings){
        .command = "eval",
        .usage = "pikv eval [MODEL_DIR] [--text FILE] [--tasks LIST] [--against FILE] [flags]",
        .bindings = s->bindings,
        .n_bindings = sizeof s->bindings / sizeof s->bindings[0],
        .aliases = aliases};
    const err_t err = cfg_defaults(s->bindings, s->command.n_bindings);
    if (err != ERR_OK) return err_set(info, err, "%s", err_sentence(err));
    s->kv.prefix_caching = false; /* so that a wish for it can be told from its default */
    TRY(cli_settings_read(&s->command, argc, argv, environment, info));
    if (s->parts.help) return ERR_OK;
    TRY(refuse_prefix_caching(&s->kv, "", info));
    TRY(make_plan(&s->eval, &s->plan, info));
    return read_rows(s, info);
}

void eval_settings_deinit(eval_settings *s)
{
    for (uint32_t i = 0; i < s->n_rows; i++) {
        const cfg_binding binding = {&kv_config_table, &s->rows[i].kv};
        cfg_deinit(&binding, 1);
        free(s->rows[i].name);
    }
    cfg_deinit(s->bindings, s->command.n_bindings);
    *s = (eval_settings){0};
}
