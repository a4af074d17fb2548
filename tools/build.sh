#!/bin/sh
# Configures (once) and builds one preset: build.sh release
set -eu
cd "$(dirname "$0")/.."
preset=${1:?usage: build.sh PRESET}
[ -f "build/$preset/build.ninja" ] || cmake --preset "$preset" >/dev/null
cmake --build "build/$preset"
