/* service/cli.h - the subcommands of `pikv`. main.c picks one by the first word.
 *
 * Each takes the words after its name, prints what it has to say, and returns the exit code: success, a
 * failure while running, or a mistake in the command. `environment` is main's; nothing below reads
 * variables by itself. `serve` blocks SIGINT, SIGTERM and SIGHUP from its beginning to its end, `eval`
 * the first two while it measures. */
#ifndef SERVICE_CLI_H
#define SERVICE_CLI_H

enum {
    CLI_EXIT_OK = 0,
    CLI_EXIT_FAILED = 1,
    CLI_EXIT_USAGE = 2,
    CLI_EXIT_INTERRUPTED = 130 /* what shells say for SIGINT; the report is out */
};

int cli_serve(int argc, char **argv, char *const *environment);
int cli_generate(int argc, char **argv, char *const *environment);
int cli_bench(int argc, char **argv, char *const *environment);
int cli_eval(int argc, char **argv, char *const *environment);
int cli_inspect(int argc, char **argv, char *const *environment);
int cli_plan(int argc, char **argv, char *const *environment);
int cli_healthcheck(int argc, char **argv, char *const *environment);

#endif
