#!/usr/bin/env bash
# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0
#
# image_test.sh [--debian FOLDER] cpu|cuda: makes what `docker build` would make, without a container engine, and leaves the
# image's root in build/image-test/root-KIND.
#
# The base image is a Debian of debootstrap; in it the COPY and RUN lines of the Dockerfile's stages source and build-KIND are
# done in their order, as they stand there, on the files that Dockerfile.dockerignore lets through. Needs root, debootstrap,
# and a Debian mirror (DEBIAN_MIRROR).
# Compilers write objects into the cache of this user, and take them from there (LANG is part of what ccache compares).
# --debian names a root of an earlier run, to which nothing is installed that is there already.
set -euo pipefail
if [ "${NIBBLE_IMAGE_TEST:-}" != inside ]; then
  # Mounts below end with this process.
  NIBBLE_IMAGE_TEST=inside exec unshare --mount --propagation private -- "${BASH_SOURCE[0]}" "$@"
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../.."
work=$PWD/build/image-test
debian=
if [ "${1:-}" = --debian ]; then debian=$(cd "$2" && pwd); shift 2; fi
kind=${1:-}
case $kind in cpu | cuda) ;; *) echo "image_test.sh: want cpu or cuda" >&2; exit 2 ;; esac
say() { printf '==> %s\n' "$*" >&2; }

if [ -z "$debian" ]; then
  debian=$work/debian
  rm -rf "$debian"
  mkdir -p "$debian"
  say "debootstrap"
  debootstrap --variant=minbase bookworm "$debian" "${DEBIAN_MIRROR:-http://deb.debian.org/debian}" >"$work/debootstrap.log" 2>&1 ||
    { tail -20 "$work/debootstrap.log" >&2; exit 1; }
  # As in the base image, where apt finds security updates too.
  echo "deb ${DEBIAN_SECURITY_MIRROR:-http://deb.debian.org/debian-security} bookworm-security main" >>"$debian/etc/apt/sources.list"
fi

say "copying the source that Dockerfile.dockerignore lets through"
context=$work/context
rm -rf "$debian/src" "$debian/image" "$debian/cuda" "$context"
mkdir "$debian/src" "$context"
mapfile -t through < <(sed -n 's/^!//p' "$here/Dockerfile.dockerignore")
mapfile -t kept_out < <(sed -n '/^[^!#]/s/^/:(exclude,glob)/p' "$here/Dockerfile.dockerignore" | grep -vxF ':(exclude,glob)**')
git ls-files -co --exclude-standard -z -- "${through[@]}" "${kept_out[@]}" | xargs -0 cp --parents -t "$context"

mount -t proc proc "$debian/proc"
mount --rbind /dev "$debian/dev"
cp -L /etc/resolv.conf "$debian/etc/resolv.conf"
mkdir -p "$debian/ccache" "${CCACHE_DIR:-$HOME/.cache/ccache}"
mount --bind "${CCACHE_DIR:-$HOME/.cache/ccache}" "$debian/ccache"

# copy SOURCE... TARGET, as the Dockerfile's COPY: of a folder what is in it; /src is the working directory.
copy() {
  local target=$debian/src/${!#} source
  mkdir -p "$target"
  for source in "${@:1:$#-1}"; do
    if [ -d "$context/$source" ]; then source=$source/.; fi
    cp -a "$context/$source" "$target"
  done
}

# The stages' lines without what is BuildKit's. ARGs have their defaults.
mapfile -t steps < <(awk -v stage="build-$kind" '
  $1 == "FROM" {inside = ($4 == "source" || $4 == stage)}
  inside && ($1 == "COPY" || $1 == "RUN") {gsub(/--mount=[^ ]+ +/, ""); print}' "$here/Dockerfile")
for step in "${steps[@]}"; do
  say "$step"
  read -ra words <<<"$step"
  case ${words[0]} in
    COPY) copy "${words[@]:1}" ;;
    RUN) chroot "$debian" env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive CCACHE_DIR=/ccache \
      ${LANG:+LANG="$LANG"} ${JOBS:+JOBS="$JOBS"} sh -c "cd /src && ${step#RUN }" ;;
  esac
done
rm -rf "$work/root-$kind"
cp -a "$debian/image" "$work/root-$kind"
say "the image's root: $work/root-$kind"
