/* service/eval/eval_progress.c - see eval_progress.h. */
#include "service/eval/eval_progress.h"

#include "base/clock.h"

#include <assert.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    DRAW_NS = 100000000, /* between two drawings on a terminal */
    BAR_CELLS = 20,      /* the line stays within 80 columns */
    LINE_BYTES = 128
};

/* ---- signals --------------------------------------------------------------------------------------- */

void eval_signals_hold(eval_signals *s)
{
    static const int numbers[] = {SIGINT, SIGTERM};
    *s = (eval_signals){.is_held = true};
    sigemptyset(&s->waited);
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        struct sigaction action;
        sigaction(numbers[i], NULL, &action);
        /* A blocked signal is not dropped for being ignored: we would hear what nobody should. */
        if (action.sa_handler != SIG_IGN) sigaddset(&s->waited, numbers[i]);
    }
    sigprocmask(SIG_BLOCK, &s->waited, &s->before);
}

bool eval_signals_poll(eval_signals *s)
{
    static const struct timespec at_once = {0};
    if (!s->is_held || s->is_caught) return s->is_caught;
    if (sigtimedwait(&s->waited, NULL, &at_once) < 0) return false;
    s->is_caught = true;
    sigprocmask(SIG_SETMASK, &s->before, NULL);
    return true;
}

void eval_signals_release(eval_signals *s)
{
    if (!s->is_held) return;
    eval_signals_poll(s);
    s->is_held = false;
    sigprocmask(SIG_SETMASK, &s->before, NULL);
}

/* ---- progress -------------------------------------------------------------------------------------- */

void eval_progress_init(eval_progress *p, FILE *out, uint32_t n_rows, eval_signals *signals)
{
    assert(n_rows > 0);
    *p = (eval_progress){.out = out,
                         .is_terminal = isatty(fileno(out)) == 1,
                         .n_rows = n_rows,
                         .share = 1,
                         .signals = signals,
                         .start_ns = clock_mono_ns()};
}

static int format_line(const eval_progress *p, double share, char line[LINE_BYTES])
{
    const double seconds = clock_seconds_since(p->start_ns);
    int n = snprintf(line, LINE_BYTES, "%3d %%", (int)(share * 100));
    if (p->n_rows > 1) {
        n += snprintf(line + n, (size_t)(LINE_BYTES - n), ", configuration %u of %u", p->row + 1,
                      p->n_rows);
    }
    n += snprintf(line + n, (size_t)(LINE_BYTES - n), ", %.0f s", seconds);
    if (share > 0.02 && share < 1) {
        n += snprintf(line + n, (size_t)(LINE_BYTES - n), ", about %.0f s left",
                      seconds * (1 - share) / share);
    }
    return n;
}

/* A carriage return and blanks instead of escape sequences: every terminal knows them. */
static void draw(eval_progress *p, double share)
{
    char line[LINE_BYTES], bar[BAR_CELLS + 1];
    const uint64_t now_ns = clock_mono_ns();
    if (p->shown_ns > 0 && now_ns - p->shown_ns < DRAW_NS) return;
    p->shown_ns = now_ns;
    const int n_full = (int)(share * BAR_CELLS);
    for (int i = 0; i < BAR_CELLS; i++)
        bar[i] = i < n_full ? '#' : '.';
    bar[BAR_CELLS] = '\0';
    format_line(p, share, line);
    const int n = fprintf(p->out, "\r[%s] %s", bar, line) - 1;
    if (p->n_drawn > n) fprintf(p->out, "%*s", p->n_drawn - n, "");
    p->n_drawn = n;
    fflush(p->out);
}

static void write_tenths(eval_progress *p, double share)
{
    char line[LINE_BYTES];
    const int tenths = (int)(share * 10 + 1e-9);
    if (tenths <= p->tenths) return;
    p->tenths = tenths;
    format_line(p, share, line);
    fprintf(p->out, "pikv eval: %s\n", line);
}

bool eval_progress_show(void *progress, double done)
{
    eval_progress *p = progress;
    const double share = p->begin + p->share * done;
    if (p->is_terminal) {
        draw(p, share);
    } else {
        write_tenths(p, share);
    }
    return p->signals != NULL && eval_signals_poll(p->signals);
}

void eval_progress_clear(eval_progress *p)
{
    if (p->n_drawn == 0) return;
    fprintf(p->out, "\r%*s\r", p->n_drawn, "");
    fflush(p->out);
    p->n_drawn = 0;
}
