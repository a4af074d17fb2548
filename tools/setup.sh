#!/bin/sh
# Installs what is missing, by Debian package name: `setup.sh run` for building and serving,
# `setup.sh eval` for reading compressed text as well, `setup.sh results` for Python too, `setup.sh test` for the
# tests, `setup.sh mpi` for preset mpi and its tests, `setup.sh image` for docker/test.sh. Does nothing, quickly,
# when everything is there.
set -eu
cd "$(dirname "$0")/.."

run_packages="gcc g++ libc6-dev cmake ninja-build pkg-config
    libmicrohttpd-dev libjansson-dev libcjson-dev libsentencepiece-dev libyaml-dev libsodium-dev
    libpcre2-dev libutf8proc-dev"
mpi_packages="libopenmpi-dev openmpi-bin"
test_packages="ccache xz-utils check clang clang-format libclang-rt-14-dev universal-ctags
    python3 python3-venv prometheus curl procps iproute2 chromium"
image_packages="buildah debootstrap debian-archive-keyring wget ca-certificates python3 iproute2 util-linux"

missing_of() {
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q ' installed$' || echo "$package"
    done
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

case "${1:-}" in
run) packages=$run_packages ;;
eval) packages="$run_packages xz-utils" ;;
results) packages="$run_packages python3" ;;
test) packages="$run_packages $test_packages" ;;
mpi) packages="$run_packages $test_packages $mpi_packages" ;;
image) packages=$image_packages ;;
*) echo "usage: $0 run|eval|results|test|mpi|image" >&2; exit 2 ;;
esac

# shellcheck disable=SC2086 # the list is meant to be split
missing=$(missing_of $packages)
if [ -n "$missing" ]; then
    echo "installing:" $missing
    as_root apt-get -o DPkg::Lock::Timeout=300 update -qq
    # shellcheck disable=SC2086
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq \
        --no-install-recommends $missing
fi

# Clients that the tests drive the server with, in a virtual environment of their own.
if [ "$1" = test ] && ! cmp -s tests/requirements.txt .venv/installed.txt; then
    python3 -m venv .venv
    .venv/bin/pip install --quiet --disable-pip-version-check -r tests/requirements.txt
    cp tests/requirements.txt .venv/installed.txt
fi
