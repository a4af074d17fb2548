/* service/eval/eval_progress.h - how far a long run is, and the wish to end it.
 *
 * On a terminal one line is drawn over and over; elsewhere a line is written each time another tenth is
 * done, and no more often. All of it goes to the stream given (stderr): reports alone go to standard
 * output.
 *
 * Signals. Between eval_signals_hold and eval_signals_release SIGINT and SIGTERM are blocked and looked
 * for between steps, so no flag and no handler are needed. The first one asks the run to stop; from then
 * on they are unblocked, and a second one kills as usual. A signal that was ignored when the program
 * began stays ignored (nohup). Threads: the caller's alone; the threads of the pool block all signals
 * anyway. */
#ifndef SERVICE_EVAL_EVAL_PROGRESS_H
#define SERVICE_EVAL_EVAL_PROGRESS_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

typedef struct eval_signals {
    sigset_t waited; /* blocked by us */
    sigset_t before; /* the mask to go back to */
    bool is_held, is_caught;
} eval_signals;

void eval_signals_hold(eval_signals *s);
/* True from the first signal on. */
bool eval_signals_poll(eval_signals *s);
/* A signal that came after the last poll is caught here too, so it cannot kill before the report is out. */
void eval_signals_release(eval_signals *s);

typedef struct eval_progress {
    FILE *out;
    bool is_terminal;
    uint32_t row, n_rows; /* the present one and all; set by the caller */
    double begin, share;  /* of the present work in the whole, from 0 to 1; set by the caller */
    eval_signals *signals;
    uint64_t start_ns, shown_ns;
    int tenths;  /* shown so far, without a terminal */
    int n_drawn; /* characters of the line on the terminal */
} eval_progress;

void eval_progress_init(eval_progress *p, FILE *out, uint32_t n_rows, eval_signals *signals);
/* For eval_options: `done` of the present work, from 0 to 1. True: stop. */
bool eval_progress_show(void *progress, double done);
void eval_progress_clear(eval_progress *p); /* wipes the line off a terminal */

#endif
