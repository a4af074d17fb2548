#!/bin/sh
# Runs the whole model over ranks of mpirun: golden_mpi.sh BINARY N_RANKS. Skipped where there is no mpirun.
set -eu
binary=$1
n_ranks=$2
if ! command -v mpirun >/dev/null; then
    echo "no mpirun here"
    exit 77
fi
root=
[ "$(id -u)" != 0 ] || root=--allow-run-as-root
# shellcheck disable=SC2086 # empty or one word
said=$(CK_FORK=no timeout 1500 mpirun $root --oversubscribe -np "$n_ranks" "$binary" 2>&1) || {
    echo "$said"
    exit 1
}
echo "$said"
[ "$(echo "$said" | grep -c 'is done$')" = "$n_ranks" ]
