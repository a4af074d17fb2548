#!/bin/sh
# Microseconds per collective, for local, tcp and - where there is mpirun - mpi, by ranks and bytes: the
# best of ROUNDS (3) runs, in turn. RANKS (2 4 8), PRESET (mpi where there is mpirun, else release).
set -eu
cd "$(dirname "$0")/.."
transports="local tcp"
preset=release
if command -v mpirun >/dev/null; then
    transports="local tcp mpi"
    preset=mpi
fi
preset=${PRESET:-$preset}
[ -f "build/$preset/build.ninja" ] || cmake --preset "$preset" >/dev/null
cmake --build "build/$preset" --target bench_comm >/dev/null
bench=build/$preset/bench_comm
root=
[ "$(id -u)" != 0 ] || root=--allow-run-as-root
work=$(mktemp)
trap 'rm -f "$work"' EXIT INT TERM

echo "machine: $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1), $(nproc) processors"
echo "date:    $(date -u +%Y-%m-%dT%H:%M:%SZ)"
echo "commit:  $(git describe --always --dirty 2>/dev/null || echo unknown)"
echo "load:    $(cut -d' ' -f1-3 /proc/loadavg) before"
round=0
while [ "$round" -lt "${ROUNDS:-3}" ]; do
    for n_ranks in ${RANKS:-2 4 8}; do
        for transport in $transports; do
            # shellcheck disable=SC2086 # empty or one word
            case $transport in
            mpi) mpirun $root --oversubscribe -np "$n_ranks" "$bench" mpi >>"$work" ;;
            *) "$bench" "$transport" "$n_ranks" >>"$work" ;;
            esac
        done
    done
    round=$((round + 1))
done
echo "load:    $(cut -d' ' -f1-3 /proc/loadavg) after"

awk -v transports="$transports" '
{
    name = $3 " " $4 " " $2
    if (!(name in seen)) { seen[name] = 1; order[n++] = name }
    if (!((name, $1) in best) || $5 + 0 < best[name, $1]) best[name, $1] = $5 + 0
}
END {
    n_transports = split(transports, columns, " ")
    printf "| collective | bytes | ranks |"
    for (t = 1; t <= n_transports; t++) printf " %s, us |", columns[t]
    printf "\n|---|---:|---:|"
    for (t = 1; t <= n_transports; t++) printf "---:|"
    print ""
    for (i = 0; i < n; i++) {
        split(order[i], part, " ")
        printf "| %s | %s | %s |", part[1], part[2], part[3]
        for (t = 1; t <= n_transports; t++) printf " %.1f |", best[order[i], columns[t]]
        print ""
    }
}' "$work"
