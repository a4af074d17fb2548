/* service/cli_eval_settings.h - what `pikv eval` is asked to do, read and checked as a whole before
 * anything runs.
 *
 *   --compare "CONFIG;CONFIG;..."   one row each; CONFIG is name=value,name=value with the names of the kv settings, with or
 *                                   without their "kv-", over what the command line says; a part without
 *                                   = goes on with the value before it. Empty or `default`: the
 *                                   command line's own. Without the flag: one row of that kind. */
#ifndef SERVICE_CLI_EVAL_SETTINGS_H
#define SERVICE_CLI_EVAL_SETTINGS_H

#include "service/cli_parts.h"
#include "service/eval/eval_compare.h"

enum { EVAL_ROWS_MAX = 128 };

typedef struct eval_config {
    char *text, *tasks, *contexts, *compare, *against, *json; /* NULL: not given */
    uint32_t window, n_windows_max, n_samples, n_distance_tokens, n_seqs, n_step_tokens;
    uint64_t seed;
} eval_config;

typedef struct eval_setting_row {
    char *name; /* as written, without blanks around; "default" if empty */
    kv_config kv;
} eval_setting_row;

typedef struct eval_settings {
    eval_config eval;
    cli_parts_config parts;
    kv_config kv; /* of the command line */
    cfg_binding bindings[3];
    cli_settings command;
    eval_plan plan; /* its text is read later */
    eval_setting_row rows[EVAL_ROWS_MAX];
    uint32_t n_rows;
} eval_settings;

/* The struct must not move until the deinit, which also takes one that has failed halfway. With --help only
 * parts.help is meant. ERR_BAD_CONFIG and ERR_NOT_FOUND are mistakes in the command. */
err_t eval_settings_init(eval_settings *s, int argc, char **argv, char *const *environment,
                         err_info *info) MUST_CHECK;
void eval_settings_deinit(eval_settings *s);

#endif
