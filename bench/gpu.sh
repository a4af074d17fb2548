#!/bin/sh
# What waits for an NVIDIA GPU, in one command, in a folder that tools/bundle.sh has made (or in a checkout with a built
# preset cuda): the twins of the CUDA ops against their reference, under compute-sanitizer as well where it is installed, the
# golden model, the loss of `pikv eval` on the GPU beside the CPU's, and `pikv bench`.
#
#   bench/gpu.sh [OUT]      default: $OUT, or gpu-results; writes OUT/gpu.md, OUT/gpu.json and a log of each step
#
# A step that fails or is skipped is said so and does not stop the others; the exit status is 0 if none failed.
# SANITIZE=0 leaves compute-sanitizer out.
set -u
cd "$(dirname "$0")/.." || exit 2
out=${1:-${OUT:-gpu-results}}
bin=bin
[ -d "$bin" ] || bin=build/cuda
[ ! -d lib ] || export LD_LIBRARY_PATH="$PWD/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
mkdir -p "$out"
n_failed=0
: >"$out/steps"

# step NAME COMMAND...: its log is OUT/NAME.log
step() {
    name=$1
    shift
    begin=$(date +%s)
    "$@" >"$out/$name.log" 2>&1
    code=$?
    case $code in
    0) state=passed ;;
    77) state=skipped ;;
    *)
        state=failed
        n_failed=$((n_failed + 1))
        ;;
    esac
    printf '%s %s %s\n' "$name" "$state" "$(($(date +%s) - begin))" | tee -a "$out/steps"
}

gpu=$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null | head -n 1)
echo "GPU: ${gpu:-none}"

for twin in "$bin"/test_*_gpu; do
    step "$(basename "$twin")" "$twin"
done
if [ "${SANITIZE:-1}" = 1 ] && command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck; do
        for twin in "$bin"/test_cuda_*_gpu; do
            step "$(basename "$twin").$tool" env CK_FORK=no compute-sanitizer --tool "$tool" --error-exitcode 1 "$twin"
        done
    done
fi
if [ -n "$gpu" ]; then
    for device in cpu cuda; do
        step "eval.$device" "$bin/pikv" eval models/storyteller --text README.md --window 256 --device "$device" \
            --compare "default;compression=int8;compression=int4" --json "$out/eval.$device.json"
        step "bench.$device" "$bin/pikv" bench models/storyteller --device "$device" --json --rounds 2
    done
fi

{
    echo "# On ${gpu:-no GPU}, $(date -u +%Y-%m-%d)"
    echo
    echo "| step | state | seconds |"
    echo "|---|---|---:|"
    awk '{ printf "| %s | %s | %s |\n", $1, $2, $3 }' "$out/steps"
} >"$out/gpu.md"
awk -v gpu="${gpu:-}" 'BEGIN { printf "{\"gpu\": \"%s\", \"steps\": [", gpu }
    { printf "%s{\"name\": \"%s\", \"state\": \"%s\", \"seconds\": %s}", (NR > 1 ? ", " : ""), $1, $2, $3 }
    END { print "]}" }' "$out/steps" >"$out/gpu.json"
rm "$out/steps"
echo "written: $out/gpu.md, $out/gpu.json; failed: $n_failed"
[ "$n_failed" = 0 ]
