/* service/cli_serve.c - the words of `pikv serve` and `pikv healthcheck`. See cli.h. */
#include "base/log.h"
#include "service/cli.h"
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
        code = run(&settings);
    }
    server_settings_deinit(&settings);
    return code;
}

int cli_healthcheck(int argc, char **argv, char *const *environment)
{
    err_info info = {0};
    server_settings settings;
    if (asks_for_help(argc, argv)) {
        printf("pikv healthcheck [flags]: 0 if the server of these settings is ready, else 1.\n"
               "Takes the flags, variables and file of `pikv serve`.\n");
        return 0;
    }
    const err_t err = server_settings_load(&settings, argc, argv, environment, &info);
    const int code =
        err == ERR_OK ? server_healthcheck(&settings) : refuse("healthcheck", err, &info);
    server_settings_deinit(&settings);
    return code;
}
