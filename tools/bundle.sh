#!/bin/sh
# Makes a folder that runs where no package can be installed: what bench/gpu.sh needs there, with the shared libraries
# that its programs want, but those of the system's C library.
#
#   tools/bundle.sh [BUILD] [FOLDER]      default: build/cuda (preset cuda, built when it is not) and build/bundle
#
# There: FOLDER/bench/gpu.sh
set -eu
cd "$(dirname "$0")/.."
build=${1:-build/cuda}
to=${2:-build/bundle}
[ "$build" != build/cuda ] || tools/build.sh cuda

rm -rf "$to"
mkdir -p "$to/bin" "$to/lib" "$to/bench" "$to/tests/golden" "$to/models"
cp "$build/pikv" "$build"/test_*_gpu "$to/bin/"
cp -r bench/gpu.sh bench/gpu_*.py bench/shapes "$to/bench/"
cp README.md "$to/"
cp -r models/storyteller "$to/models/"
cp -r tests/golden/*/ "$to/tests/golden/"
cp -r tests/http "$to/tests/"

# The C library and the loader belong to the machine; the driver's library is its own, too.
for program in "$to"/bin/*; do
    ldd "$program" | awk '$2 == "=>" && $3 ~ /^\// { print $3 }'
done | sort -u | while read -r library; do
    case $(basename "$library") in
    libc.so.* | libm.so.* | libpthread.so.* | libdl.so.* | librt.so.* | libcuda.so.*) ;;
    *) cp -L "$library" "$to/lib/" ;;
    esac
done
du -sh "$to"
