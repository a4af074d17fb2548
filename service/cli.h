/* service/cli.h - the subcommands of `pikv`. main.c picks one by the first word.
 *
 * Each takes the words after its name, prints what it has to say, and returns the exit code: success, a
 * failure while running, or a mistake in the command. `environment` is main's; nothing below reads
 * variables by itself. SIGINT, SIGTERM and SIGHUP arrive blocked in `serve` only. */
#ifndef SERVICE_CLI_H
#define SERVICE_CLI_H

enum { CLI_EXIT_OK = 0, CLI_EXIT_FAILED = 1, CLI_EXIT_USAGE = 2 };

int cli_serve(int argc, char **argv, char *const *environment);
int cli_generate(int argc, char **argv, char *const *environment);
int cli_bench(int argc, char **argv, char *const *environment);
int cli_healthcheck(int argc, char **argv, char *const *environment);

#endif
