#!/bin/sh
# Measures the scores of models/storyteller/README.md again: eval.sh PIKV MODEL_DIR [CORPUS_DIR]
#
# CORPUS_DIR holds the held-out text, valid.txt or valid.txt.xz; without it the tasks run alone. SAMPLES questions are
# asked per task and context, at lengths of CONTEXTS tokens.
set -eu
pikv=${1:?usage: eval.sh PIKV MODEL_DIR [CORPUS_DIR]}
model=${2:?usage: eval.sh PIKV MODEL_DIR [CORPUS_DIR]}
corpus=${3:-}
samples=${SAMPLES:-400}
contexts=${CONTEXTS:-512,1024,2048}

text=$(mktemp)
trap 'rm -f "$text"' EXIT
trap 'exit 130' INT TERM

if [ -z "$corpus" ]; then
    echo "no CORPUS given, so no text is scored: the tasks run alone (make eval CORPUS=DIR with valid.txt[.xz] in it)"
else
    # Lines that only part the books are not text.
    if [ -f "$corpus/valid.txt" ]; then
        sed '/^<|book|>$/d' "$corpus/valid.txt" >"$text"
    elif [ -f "$corpus/valid.txt.xz" ]; then
        xz -dc "$corpus/valid.txt.xz" | sed '/^<|book|>$/d' >"$text"
    fi
    if [ ! -s "$text" ]; then
        echo "eval.sh: neither $corpus/valid.txt nor $corpus/valid.txt.xz holds text" >&2
        exit 1
    fi
    echo "== held-out text"
    "$pikv" eval "$model" --text "$text" --window 512
    "$pikv" eval "$model" --text "$text" --window 2048
fi
echo "== facts 1500 tokens back"
"$pikv" eval "$model" --tasks lookup --context 2048 --distance 1500 --samples "$samples" --seed 1
echo "== all tasks"
"$pikv" eval "$model" --tasks lookup,multi,chain,overwrite,count --context "$contexts" --samples "$samples" --seed 1
