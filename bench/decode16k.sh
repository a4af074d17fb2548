#!/bin/sh
# How fast the release build decodes long contexts when the KV cache is read in part or encoded, beside reading all of it:
# tokens/s, the ratio to full, bytes of a step, and the speed that these bytes allow at the bandwidth measured in the
# same run (bench/decode_long.c says how).
#
#   bench/decode16k.sh
#
# A Mixtral of random weights: 8 layers, width 1024, 16 heads, 8 KV heads of 128, 8 experts of 1024, top 2. Settings:
# CONTEXT (16384 tokens), BATCH (4), STEPS (8), ROUNDS (5), THREADS (0: all). All settings of the cache are held at once.
set -eu
cd "$(dirname "$0")/.."
context=${CONTEXT:-16384}
batch=${BATCH:-4}

# Per token: bf16 twice (full, routed with boxes), int8 and int4; then weights, the probe's buffer and room.
need_mb=$((context * batch * 32 * (1024 + 1050 + 560 + 330) / 1024 / 1024 + 2000))
have_mb=$(awk '/^MemAvailable/ { printf "%d", $2 / 1024 }' /proc/meminfo)
if [ "$have_mb" -lt "$need_mb" ]; then
    echo "decode16k.sh: $need_mb MB are needed and $have_mb are free: set CONTEXT or BATCH lower" >&2
    exit 1
fi
tools/build.sh release >/dev/null

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
cat >"$work/config.json" <<JSON
{
  "architectures": ["MixtralForCausalLM"],
  "model_type": "mixtral",
  "vocab_size": 32000,
  "hidden_size": 1024,
  "intermediate_size": 1024,
  "num_hidden_layers": 8,
  "num_attention_heads": 16,
  "num_key_value_heads": 8,
  "head_dim": 128,
  "num_local_experts": 8,
  "num_experts_per_tok": 2,
  "max_position_embeddings": $((context + 4096)),
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

echo "machine: $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1), $(nproc) processors," \
    "$(awk '/^MemTotal/ { printf "%.0f GB", $2 * 1.024e-6 }' /proc/meminfo), load $(cut -d' ' -f1 /proc/loadavg)"
echo "date:    $(date -u +%Y-%m-%dT%H:%M:%SZ)"
echo "commit:  $(git describe --always --dirty 2>/dev/null || echo unknown)"
build/release/bench_decode_long "$work" "$context" "$batch" "${STEPS:-8}" "${ROUNDS:-5}" "${THREADS:-0}"
