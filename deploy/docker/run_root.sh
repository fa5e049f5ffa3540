#!/usr/bin/env bash
# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0
#
# run_root.sh ROOT [--bind SOURCE:TARGET]... -- PROGRAM ARGUMENTS...
#
# Runs PROGRAM in ROOT, an image's root, as a container runtime would with the chart's security context: ROOT is read-only,
# the user is the image's, without capabilities, and new privileges cannot be had. Writable are /tmp, /dev/shm and
# the cache folder, in memory. SOURCE is seen at TARGET, a folder of ROOT, read-only too. Network and host name are this
# machine's. Needs root.
set -euo pipefail
if [ "${NIBBLE_RUN_ROOT:-}" != inside ]; then
  export NIBBLE_RUN_ROOT=inside
  # What starts this may end it with SIGTERM: it goes to the program, which exec puts in the place of each shell.
  exec unshare --mount --propagation private -- "${BASH_SOURCE[0]}" "$@"
fi
unset NIBBLE_RUN_ROOT

root=$(cd "$1" && pwd)
shift
binds=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  [ "$1" = --bind ] || { echo "run_root.sh: unknown option $1" >&2; exit 2; }
  binds+=("$2")
  shift 2
done
shift

owner=$(stat -c %u:%g "$root/var/cache/nibble")
mount --bind "$root" "$root"
mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$root/sys"
mount -t tmpfs -o nosuid,mode=755 tmpfs "$root/dev"
mkdir "$root/dev/shm"
for device in null zero full random urandom; do
  : >"$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
mount -t tmpfs -o nosuid,nodev,mode=1777 tmpfs "$root/dev/shm"
mount -t tmpfs -o nosuid,nodev,mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o "nosuid,nodev,mode=700,uid=${owner%:*},gid=${owner#*:}" tmpfs "$root/var/cache/nibble"
for bind in "${binds[@]}"; do
  mount --bind "${bind%%:*}" "$root${bind#*:}"
  mount -o remount,bind,ro "$root${bind#*:}"
done
mount -o remount,bind,ro,nosuid,nodev "$root"
exec env -i PATH=/usr/bin HOME=/var/lib/nibble XDG_CACHE_HOME=/var/cache/nibble ${FORCE_ISA:+FORCE_ISA="$FORCE_ISA"} \
  "$(command -v setpriv)" --no-new-privs "$(command -v chroot)" --userspec="$owner" --groups= "$root" "$@"
