#!/bin/sh
# Fails if a C source is not formatted as .clang-format says.
set -u
cd "${1:-$(dirname "$0")/..}" || exit 1
find base kernels kvcache model web service bench tests \( -name '*.c' -o -name '*.h' -o -name '*.cc' \
    -o -name '*.cu' -o -name '*.cuh' \) |
    xargs clang-format --dry-run --Werror
