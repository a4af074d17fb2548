/* service/cli_serve.c - the words of `pikv serve` and `pikv healthcheck`. See cli.h. */
#include "base/log.h"
#include "service/cli.h"
#include "service/process_words.h"
#include "service/rank_group.h"
#include "service/server.h"
#include "service/signal_watch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool asks_for_help(int argc, char **argv)
{
    for (int i = 0; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) return true;
    }
    return false;
}

static bool has_key_argument(int argc, char **argv)
{
    for (int i = 0; i < argc; i++) {
        if (strncmp(argv[i], "--api-key", 9) == 0 && (argv[i][9] == '\0' || argv[i][9] == '=')) {
            return true;
        }
    }
    return false;
}

static int refuse(const char *command, err_t err, const err_info *info)
{
    fprintf(stderr, "pikv %s: %s\n", command,
            info->code != ERR_OK ? info->message : err_sentence(err));
    return err == ERR_NO_MEMORY ? CLI_EXIT_FAILED : CLI_EXIT_USAGE;
}

/* What comes out is a file for --config; so it may neither ask for printing nor name a file. */
static void print_settings(server_settings *settings)
{
    free(settings->serve.config_file);
    settings->serve.config_file = NULL;
    settings->serve.print_config = false;
    server_settings_print(settings, stdout);
}

/* Nobody has set them: said in case that one of them was meant to be a setting. */
static void log_service_links(char *const *environment)
{
    const char *first = NULL;
    size_t n_links = 0;
    for (char *const *variable = environment; *variable != NULL; variable++) {
        if (!cfg_is_service_link(*variable)) continue;
        if (first == NULL) first = *variable;
        n_links++;
    }
    if (n_links == 0) return;
    log_info("server",
             "ignored variables=%zu first=\"%.80s\": they are Kubernetes' own, of a Service whose"
             " name begins with pikv; enableServiceLinks: false in the pod leaves them out",
             n_links, first);
}

static int run(const server_settings *settings)
{
    if (settings->serve.check) return server_check(settings);
    return settings->place.rank == 0 ? server_run(settings) : rank_follow(settings);
}

int cli_serve(int argc, char **argv, char *const *environment)
{
    err_info info = {0};
    server_settings settings;
    if (asks_for_help(argc, argv)) {
        printf("pikv serve [DIR] [flags]: serves a model over HTTP.\n\n");
        server_settings_print_help(stdout);
        return 0;
    }
    signal_watch_block();
    const err_t err = server_settings_load(&settings, argc, argv, environment, &info);
    int code = 0;
    if (err != ERR_OK) {
        code = refuse("serve", err, &info);
    } else if (settings.serve.print_config) {
        print_settings(&settings);
    } else {
        log_init(&(log_config){.stream = stderr,
                               .level = (log_level)settings.serve.log_level,
                               .format = (log_format)settings.serve.log_format});
        if (has_key_argument(argc, argv)) {
            log_warn("server", "--api-key is visible to everybody in the list of processes;"
                               " --api-key-file and PIKV_API_KEY are not");
        }
        log_service_links(environment);
        code = run(&settings);
    }
    server_settings_deinit(&settings);
    return code;
}

static int check_health(int argc, char **argv, char *const *environment)
{
    err_info info = {0};
    server_settings settings;
    const err_t err = server_settings_load(&settings, argc, argv, environment, &info);
    const int code =
        err == ERR_OK ? server_healthcheck(&settings) : refuse("healthcheck", err, &info);
    server_settings_deinit(&settings);
    return code;
}

/* With the words behind "serve" of process `pid`. */
static int check_health_of(const char *pid, char *const *environment)
{
    err_info info = {0};
    process_words words;
    const err_t err = process_words_init(&words, pid, &info);
    if (err != ERR_OK) {
        const int code = refuse("healthcheck", err, &info);
        return err == ERR_IO ? CLI_EXIT_FAILED : code;
    }
    int code = CLI_EXIT_FAILED;
    if (words.argc >= 2 && strcmp(words.argv[1], "serve") == 0) {
        code = check_health(words.argc - 2, words.argv + 2, environment);
    } else {
        fprintf(stderr, "pikv healthcheck: process %s is no `pikv serve`\n", pid);
    }
    process_words_deinit(&words);
    return code;
}

int cli_healthcheck(int argc, char **argv, char *const *environment)
{
    if (asks_for_help(argc, argv)) {
        printf("pikv healthcheck [flags]: 0 if the server of these settings is ready, else 1.\n"
               "Takes the flags, variables and file of `pikv serve`.\n\n"
               "pikv healthcheck --pid N: with the flags that process N, a `pikv serve`, has got:\n"
               "1 in a container. The variables are those of the check itself.\n");
        return 0;
    }
    if (argc == 2 && strcmp(argv[0], "--pid") == 0) return check_health_of(argv[1], environment);
    return check_health(argc, argv, environment);
}
