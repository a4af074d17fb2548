#!/bin/sh
# Runs comm_mpi_rank under mpirun: comm_mpi.sh BINARY N_RANKS. Skipped where there is no mpirun.
set -u
binary=$1
n_ranks=$2
if ! command -v mpirun >/dev/null; then
    echo "no mpirun here"
    exit 77
fi
root=
[ "$(id -u)" != 0 ] || root=--allow-run-as-root
work=$(mktemp)
trap 'rm -f "$work"' EXIT INT TERM
status=0

# run N_MIN N_MAX ARGUMENT...: so many lines must say "kept".
run() {
    n_min=$1
    n_max=$2
    shift 2
    # shellcheck disable=SC2086 # empty or one word
    timeout 600 mpirun $root --oversubscribe -np "$n_ranks" "$binary" "$@" >"$work" 2>&1
    left=$?
    n_kept=$(grep -c '^kept' "$work")
    if [ "$n_kept" -lt "$n_min" ] || [ "$n_kept" -gt "$n_max" ] || grep -q 'not kept' "$work"; then
        echo "$n_ranks ranks: $* kept $n_kept, not $n_min to $n_max" >&2
        cat "$work" >&2
        status=1
    fi
}

run 9 9
if [ "$left" != 0 ]; then
    echo "mpirun left with $left" >&2
    status=1
fi
for ending in an_abort_wakes_all_and_says_why a_rank_that_does_not_come_is_named \
    calls_of_other_sizes_are_noticed other_calls_are_noticed; do
    # mpirun ends the last rank when the others leave: it may be gone before it says so.
    run "$((n_ranks - 1))" "$n_ranks" "$ending"
    if [ "$left" = 0 ]; then # a group that failed must not look as if it had not
        echo "$n_ranks ranks: $ending: mpirun left with 0" >&2
        status=1
    fi
done
exit $status
