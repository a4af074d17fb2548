#!/bin/sh
# How fast the release build decodes a model that does not fit in the caches, beside the read bandwidth that
# the machine has in the same run (see service/cli_bench_measure.h for how bytes are counted).
#
#   bench/decode.sh                     this checkout
#   bench/decode.sh PATH_TO_PIKV        the same, interleaved with another binary (an older commit), as a ratio
#
# The weights are dummies of Mixtral's shape, 1.58 GB in bf16; 3 GB of free memory are enough. Settings:
# ROUNDS (3), STEPS (16), BATCHES (1,8,32), THREADS (0: all), MODEL_DIR (a real model instead of the dummy),
# PIKV (a binary that is already built, instead of the release build).
set -eu
cd "$(dirname "$0")/.."
other=${1:-}
rounds=${ROUNDS:-3}

pikv=${PIKV:-build/release/pikv}
[ -n "${PIKV:-}" ] || tools/build.sh release >/dev/null

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM
load_format=auto
model=${MODEL_DIR:-}
if [ -z "$model" ]; then
    load_format=dummy
    model=$work
    cat >"$work/config.json" <<'JSON'
{
  "architectures": ["MixtralForCausalLM"],
  "model_type": "mixtral",
  "vocab_size": 32000,
  "hidden_size": 1024,
  "intermediate_size": 3584,
  "num_hidden_layers": 8,
  "num_attention_heads": 16,
  "num_key_value_heads": 4,
  "head_dim": 64,
  "num_local_experts": 8,
  "num_experts_per_tok": 2,
  "max_position_embeddings": 4096,
  "rope_theta": 1000000.0,
  "sliding_window": null,
  "rms_norm_eps": 1e-05,
  "hidden_act": "silu",
  "tie_word_embeddings": false,
  "bos_token_id": 1,
  "eos_token_id": 2,
  "torch_dtype": "bfloat16"
}
JSON
fi

# run BINARY ROUNDS EXTRA...
run() {
    binary=$1
    n_rounds=$2
    shift 2
    "$binary" bench "$model" --load-format "$load_format" --rounds "$n_rounds" \
        --steps "${STEPS:-16}" --batches "${BATCHES:-1,8,32}" --threads "${THREADS:-0}" "$@"
}

echo "machine: $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1), $(nproc) processors," \
    "$(awk '/^MemTotal/ { printf "%.0f GB", $2 * 1.024e-6 }' /proc/meminfo)"
echo "date:    $(date -u +%Y-%m-%dT%H:%M:%SZ)"
echo "commit:  $(git describe --always --dirty 2>/dev/null || echo unknown)"

if [ -z "$other" ]; then
    run "$pikv" "$rounds"
    exit
fi

# Alternating single rounds: both meet the same moods of the machine. The best of each counts.
round=0
while [ "$round" -lt "$rounds" ]; do
    run "$pikv" 1 --json | sed 's/^/this /' >>"$work/lines"
    run "$other" 1 --json | sed 's/^/other /' >>"$work/lines"
    round=$((round + 1))
done
awk '
function field(name,    at) {
    at = index($0, "\"" name "\":")
    return at == 0 ? "" : substr($0, at + length(name) + 3) + 0
}
/"device"/ { if (field("bandwidth_bytes_per_second") > bandwidth) bandwidth = field("bandwidth_bytes_per_second")
             if (field("peak_resident_bytes") > peak[$1]) peak[$1] = field("peak_resident_bytes") }
/"case"/ {
    name = /"decode"/ ? "decode " field("batch") : "prompt " field("tokens")
    if (!(name in seen)) { seen[name] = 1; order[n++] = name }
    speed = field("tokens_per_second")
    if (speed > best[$1, name]) {
        best[$1, name] = speed
        if (/"decode"/)
            rate[$1, name] = (field("weight_bytes_per_step") + field("kv_bytes_per_step")) / field("step_seconds")
    }
}
END {
    printf "read bandwidth %.2f GB/s; peak RSS %.3f GB (this), %.3f GB (other)\n", bandwidth * 1e-9,
        peak["this"] * 1e-9, peak["other"] * 1e-9
    printf "%-12s %14s %14s %8s %8s\n", "case", "this tokens/s", "other", "ratio", "bound"
    for (i = 0; i < n; i++) {
        name = order[i]
        ratio = best["other", name] > 0 ? best["this", name] / best["other", name] : 0
        printf "%-12s %14.1f %14.1f %8.3f", name, best["this", name], best["other", name], ratio
        if (("this", name) in rate) printf " %7.1f%%", 100 * rate["this", name] / bandwidth
        print ""
    }
}' "$work/lines"
