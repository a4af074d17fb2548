#!/bin/sh
# Builds the `cpu` image without a daemon or a registry, and tries it: docker/test.sh [--keep]
#
# The base is made by debootstrap and stripped as Debian's slim images are; buildah builds on it under chroot isolation;
# docker/check_image.py then runs the image as its own configuration says: process 1 of its own namespaces, its user, no
# capabilities, a root file system that is read-only. Packages come from where apt of this machine has them from. Takes some
# minutes and 2 GB, which are gone afterwards (--keep leaves the image, and says where).
set -eu
cd "$(dirname "$0")/.."

keep=no
case "${1:-}" in
'') ;;
--keep) keep=yes ;;
*) echo "usage: $0 [--keep]" >&2; exit 2 ;;
esac
tools/setup.sh image
if [ "$(id -u)" != 0 ]; then exec sudo docker/test.sh "$@"; fi
if ! unshare --mount --pid --ipc --uts --fork true; then
    echo "docker/test.sh: new mount and process namespaces are not allowed here" >&2
    exit 1
fi

release=bookworm
work=$(mktemp -d "${TMPDIR:-/var/tmp}/pikv-image.XXXXXX")
mkdir "$work/tmp"
export TMPDIR="$work/tmp"
say() { printf '== %s: %s\n' "$(date +%T)" "$*"; }

driver=overlay
images() {
    buildah --root "$work/storage" --runroot "$work/run" --storage-driver "$driver" "$@"
}

# Without --keep nothing is left, whatever has failed. Never into what is still mounted.
clean_up() {
    images umount --all >/dev/null 2>&1 || true
    if [ $keep = yes ]; then
        echo "kept: buildah --root $work/storage --runroot $work/run --storage-driver $driver images"
        return
    fi
    images rm --all >/dev/null 2>&1 || true
    awk -v at="$work/" 'index($2, at) == 1 { print $2 }' /proc/mounts | sort -r | while read -r at; do
        umount "$at" || true
    done
    rm -rf --one-file-system "$work"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# ---- the base -----------------------------------------------------------------------------------

# `URI SUITE`, one a line, of what apt of this machine knows of this release.
host_sources() {
    # shellcheck disable=SC2016 # $(...) is apt's
    apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(COMPONENT)' 'Identifier: Packages' |
        awk -v release=$release '($2 == release || index($2, release "-") == 1) && $3 == "main" { print $1, $2 }' |
        sort -u
}

# Proxies and the like, which are needed to get anything, from here and from inside.
copy_apt_settings() {
    apt-config dump Acquire | grep -E '^Acquire::(Retries|Check-[A-Za-z-]*|https?::[A-Za-z:.-]*) ' |
        grep -v Auto-Detect >"$1/etc/apt/apt.conf.d/90host" || true
    if grep -q '^deb https:' "$1/etc/apt/sources.list"; then
        cp /etc/ssl/certs/ca-certificates.crt "$1/etc/ssl/certs/"
    fi
}

# What Debian's slim images leave out, now and of packages to come, and the caches.
slim() {
    mkdir -p "$1/etc/dpkg/dpkg.cfg.d"
    for folder in doc groff info linda lintian locale man; do
        echo "path-exclude /usr/share/$folder/*"
        find "$1/usr/share/$folder" -mindepth 1 ! -type d ! -name copyright -delete 2>/dev/null || true
        find "$1/usr/share/$folder" -mindepth 1 -type d -empty -delete 2>/dev/null || true
    done >"$1/etc/dpkg/dpkg.cfg.d/docker"
    echo 'path-include /usr/share/doc/*/copyright' >>"$1/etc/dpkg/dpkg.cfg.d/docker"
    rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/* "$1"/var/cache/debconf/*-old "$1"/var/log/*
}

make_base() {
    sources=$(host_sources)
    mirror=$(echo "$sources" | awk -v release=$release '$2 == release { print $1; exit }')
    include=
    case "$sources" in *https:*) include=--include=ca-certificates ;; esac
    eval "$(apt-config shell proxy Acquire::http::Proxy)"
    if [ -n "${proxy:-}" ] && [ "$proxy" != DIRECT ]; then export http_proxy="$proxy"; fi
    say "base: $release from ${mirror:-debootstrap\'s own mirror}"
    # shellcheck disable=SC2086 # an empty word is none
    debootstrap --variant=minbase $include $release "$work/base" $mirror >"$work/debootstrap.log" ||
        { tail -n 20 "$work/debootstrap.log" >&2; exit 1; }
    if [ -n "$sources" ]; then
        echo "$sources" | while read -r uri suite; do echo "deb $uri $suite main"; done >"$work/base/etc/apt/sources.list"
    fi
    copy_apt_settings "$work/base"
    slim "$work/base"
}

# The kernel may refuse an overlay on this file system; copies are slower, and always possible.
choose_driver() {
    trial=$(images from scratch 2>/dev/null) && images mount "$trial" >/dev/null 2>&1 || driver=vfs
    images rm --all >/dev/null 2>&1 || true
    say "storage: $driver"
}

import_base() {
    container=$(images from scratch)
    folder=$(images mount "$container")
    cp -a "$work/base/." "$folder/"
    images umount "$container" >/dev/null
    images config --cmd bash --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
    images commit --quiet --rm "$container" "$1" >/dev/null
    rm -rf "$work/base"
}

# ---- the image ----------------------------------------------------------------------------------

build() {
    # HEALTHCHECK is known to Docker's format of images alone.
    images build --isolation chroot --format docker --pull-never --target cpu --file docker/Dockerfile \
        --build-arg DEBIAN_IMAGE="$1" --build-arg REVISION="$(git rev-parse HEAD 2>/dev/null || true)" \
        --tag "$2" . >"$work/build.log" 2>&1 || { tail -n 60 "$work/build.log" >&2; exit 1; }
}

check() {
    container=$(images from --pull-never "$1")
    folder=$(images mount "$container")
    images inspect --type image "$1" >"$work/image.json"
    images run --isolation chroot "$container" -- pikv --version
    set -- python3 docker/check_image.py "$work/image.json" "$folder" \
        --stored-bytes "$(images images --json "$1" | sed -n 's/.*"size": "\([0-9.]* [A-Za-z]*\)".*/\1/p' | head -n 1)"
    if unshare --net true 2>/dev/null; then
        # shellcheck disable=SC2016 # $@ is the inner shell's
        unshare --net sh -c 'ip link set lo up && exec "$@"' sh "$@"
    else
        say "no network namespace is allowed here: the server gets free ports of this machine"
        "$@" --host-network
    fi
}

choose_driver
make_base
import_base localhost/pikv-base:$release
say "build"
build localhost/pikv-base:$release localhost/pikv:cpu
say "check"
check localhost/pikv:cpu
say "passed"
