/* service/main.c - `pikv`: picks a command by the first word.
 *
 * The environment is read here and handed on; nothing below calls getenv. */
#include "service/cli.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const struct {
    const char *name;
    int (*run)(int argc, char **argv, char *const *environment);
    const char *help;
} commands[] = {
    {"serve", cli_serve, "serve a model over HTTP"},
    {"generate", cli_generate, "complete one prompt on the terminal"},
    {"bench", cli_bench, "measure speed"},
    {"eval", cli_eval, "measure quality, and what the KV cache costs"},
    {"inspect", cli_inspect, "say what a model's folder holds, and whether it can be served"},
    {"plan", cli_plan, "work out memory and speed of a model from its config.json"},
    {"healthcheck", cli_healthcheck, "ask a running server whether it is ready"},
};
enum { N_COMMANDS = sizeof commands / sizeof commands[0] };

static void print_help(FILE *out)
{
    fprintf(out, "pikv %s: a server for mixture-of-experts language models\n\n", PIKV_VERSION);
    for (size_t i = 0; i < N_COMMANDS; i++)
        fprintf(out, "  pikv %-12s %s\n", commands[i].name, commands[i].help);
    fprintf(out, "\n  pikv COMMAND --help   the flags of a command\n"
                 "  pikv --version        the version\n");
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        print_help(stderr);
        return CLI_EXIT_USAGE;
    }
    /* A file over the limit of the system is to be an error of the write: see kvcache/tier/tier_file.h. */
    signal(SIGXFSZ, SIG_IGN);
    const char *word = argv[1];
    if (strcmp(word, "--version") == 0) {
        printf("pikv %s\n", PIKV_VERSION);
        return 0;
    }
    if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0) {
        print_help(stdout);
        return 0;
    }
    for (size_t i = 0; i < N_COMMANDS; i++) {
        if (strcmp(commands[i].name, word) == 0)
            return commands[i].run(argc - 2, argv + 2, environ);
    }
    fprintf(stderr, "pikv: unknown command \"%.40s\"; see pikv --help\n", word);
    return CLI_EXIT_USAGE;
}
