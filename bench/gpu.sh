#!/bin/sh
# What waits for an NVIDIA GPU, in one command, in a folder that tools/bundle.sh has made (or in a checkout with a built
# preset cuda): the twins of the CUDA ops against their reference, under compute-sanitizer as well where it is installed, the
# golden model, the loss of `pikv eval` under every codec on the GPU beside the CPU's, the HTTP suite and the same prompt
# through transformers where $PYTHON (python3) has what they import, and `pikv bench`, of the default model and, with
# weights made up, in the shapes of bench/shapes.
#
#   bench/gpu.sh [OUT]      default: $OUT, or gpu-results; writes OUT/gpu.md, OUT/gpu.json and a log of each step
#
# A step that fails or is skipped is said so and does not stop the others; the exit status is 0 if none failed.
# SANITIZE=0 leaves compute-sanitizer out; SHAPES lists other folders with a config.json, SHAPES_SECONDS is when no further
# one is begun (1200); DEVICE=cpu tries all that on a machine without a GPU.
set -u
cd "$(dirname "$0")/.." || exit 2
out=${1:-${OUT:-gpu-results}}
bin=bin
[ -d "$bin" ] || bin=build/cuda
[ ! -d lib ] || export LD_LIBRARY_PATH="$PWD/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
mkdir -p "$out"
rm -f "$out/transformers.json" "$out/eval.log"
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

# with_modules NAMES ARGUMENTS...: skipped where $PYTHON cannot import them
with_modules() {
    "${PYTHON:-python3}" -c "import $1" || return 77
    shift
    "${PYTHON:-python3}" "$@"
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
codecs="fp8 int8 int4 int2 prune think svd pikv"
# shellcheck disable=SC2086 # the list is meant to be split
settings="default$(printf ';compression=%s' $codecs);routing=topk,routing-k=0.25;routing=certified"
if [ -n "$gpu" ]; then
    for device in cpu cuda; do
        step "eval.$device" "$bin/pikv" eval models/storyteller --text README.md --window 512 --device "$device" \
            --compare "$settings" --json "$out/eval.$device.json"
        step "bench.$device" "$bin/pikv" bench models/storyteller --device "$device" --json --rounds 2
    done
    step eval "${PYTHON:-python3}" bench/gpu_eval.py "$out/eval.cpu.json" "$out/eval.cuda.json"
    export PIKV_BIN="$PWD/$bin/pikv" PIKV_TEST_DEVICE=cuda
    for suite in api chat kv kv_map errors metrics lifecycle; do
        step "http.$suite" with_modules pytest,requests -m pytest -q -p no:cacheprovider "tests/http/test_$suite.py"
    done
    step http.storm with_modules requests tests/http/storm.py --seconds 15 --clients 32
fi
if [ -n "$gpu" ] || [ "${DEVICE:-cuda}" = cpu ]; then
    step transformers "${PYTHON:-python3}" bench/gpu_transformers.py "$bin/pikv" models/storyteller \
        --device "${DEVICE:-cuda}" --json "$out/transformers.json"
fi

# cell SHAPE CONTEXT SETTING BATCHES FLAGS...: batches that do not fit are left out, the largest first
cell() {
    shape=$1 context=$2 setting=$3 batches=$4
    shift 4
    json=$out/cell.$(basename "$shape").$context.$setting.json
    if [ $(($(date +%s) - shapes_begin)) -gt "${SHAPES_SECONDS:-1200}" ]; then
        echo "not run: out of time" >"$json"
        return
    fi
    while ! "$bin/pikv" bench "$shape" --load-format dummy --device "${DEVICE:-cuda}" --json --rounds 2 \
        --batches "$batches" --context-tokens "$context" --max-num-batched-tokens 2048 --prompt-tokens 512 \
        --kv-cache-memory-bytes "$(kv_bytes "$shape" "$context" "$batches")" "$@" >"$json" 2>&1; do
        case $batches in *,*) batches=${batches%,*} ;; *) return ;; esac
    done
}

# Of the longest list's sequences, with a tenth more for what a slab holds in reserve.
kv_bytes() {
    python3 - "$1/config.json" "$2" "${3##*,}" <<'PY'
import json, sys
c, context, batch = json.load(open(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])
head_dim = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
token = c["num_hidden_layers"] * c["num_key_value_heads"] * head_dim * 2 * 2
print(int((batch + 1) * (context + 1024) * token * 1.1) + (256 << 20))
PY
}

if [ -n "$gpu" ] || [ "${DEVICE:-cuda}" = cpu ]; then
    shapes_begin=$(date +%s)
    for shape in ${SHAPES:-bench/shapes/*}; do
        cell "$shape" 1024 full 1,8,64
        cell "$shape" 4096 full 1,8,64
        for setting in full topk8 int4; do
            case $setting in
            full) flags= ;;
            topk8) flags="--kv-routing topk --kv-routing-k 0.125" ;;
            int4) flags="--kv-compression int4" ;;
            esac
            # shellcheck disable=SC2086 # the flags are meant to be split
            cell "$shape" "${LONG:-32768}" $setting 1,8,16 $flags
        done
    done
fi

{
    echo "# On ${gpu:-no GPU}, $(date -u +%Y-%m-%d)"
    echo
    echo "| step | state | seconds |"
    echo "|---|---|---:|"
    awk '{ printf "| %s | %s | %s |\n", $1, $2, $3 }' "$out/steps"
    if [ -f "$out/eval.log" ]; then
        printf '\nLosses on the GPU beside the CPU:\n\n'
        grep '^|' "$out/eval.log"
    fi
    if [ -f "$out/transformers.json" ]; then
        printf '\nThe same prompt through transformers, with the same weights:\n\n'
        grep '^|' "$out/transformers.log"
    fi
    python3 bench/gpu_table.py "$out"
} >"$out/gpu.md"
awk -v gpu="${gpu:-}" 'BEGIN { printf "{\"gpu\": \"%s\", \"steps\": [", gpu }
    { printf "%s{\"name\": \"%s\", \"state\": \"%s\", \"seconds\": %s}", (NR > 1 ? ", " : ""), $1, $2, $3 }
    END { print "]}" }' "$out/steps" >"$out/gpu.json"
rm "$out/steps"
echo "written: $out/gpu.md, $out/gpu.json; failed: $n_failed"
[ "$n_failed" = 0 ]
