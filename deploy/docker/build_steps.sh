#!/usr/bin/env bash
# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0
#
# What the Dockerfile runs, one verb a RUN, so that a test can run the same without a container engine:
#
#   build_steps.sh packages cpu|cuda                 installs what building needs, in Debian 12, as root
#   build_steps.sh build cpu|cuda                    builds nibble alone, without tests: build/image-KIND/bin/nibble
#   build_steps.sh cuda-libraries DEST               NCCL and cuBLASLt, which nibble opens at run time, and NVRTC, which
#                                                    cuBLASLt opens, of pinned wheels
#   build_steps.sh root KIND BINARY DEST [LIBRARIES] the image's root file system: BINARY, the Debian libraries that it
#                                                    loads or opens, and of LIBRARIES those of CUDA; needs no network
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source_root=$(cd "$here/../.." && pwd)

# Whom nibble runs as. Names are for people: nothing looks them up. The chart's podSecurityContext has the same.
readonly USER_ID=65532
# Opened by name at run time, not linked: ranks on several hosts. Only its TCP transport is used, which is in the library
# itself, so that its modules and those of network cards stay out.
readonly OPENED_LIBRARIES=(libucp.so.0)

fail() {
  echo "build_steps.sh: $*" >&2
  exit 1
}

check_kind() { case $1 in cpu | cuda) ;; *) fail "'$1' is no kind of image: want cpu or cuda" ;; esac; }

packages() {
  check_kind "$1"
  cd "$source_root"
  ./dev setup build
  if [ "$1" = cuda ]; then ./dev setup cuda; fi
}

build() {
  check_kind "$1"
  cd "$source_root"
  local options=(--preset release -B "build/image-$1")
  if [ "$1" = cuda ]; then
    # The compiler of `packages cuda`, or the machine's.
    local nvcc=$source_root/build/cuda-toolkit/nvidia/cu13/bin/nvcc
    export CUDACXX=${CUDACXX:-$([ -x "$nvcc" ] && echo "$nvcc" || command -v nvcc)}
    options=(--preset cuda -B "build/image-$1" -D "NIBBLE_CUDA_ARCHITECTURES=${NIBBLE_CUDA_ARCHITECTURES:-80-real;90a-real}"
      -D NIBBLE_SIMT=OFF)
  fi
  export CCACHE_BASEDIR=$source_root CCACHE_NOHASHDIR=1
  # It ends here where something of the kind cannot be had, as the headers of FlashInfer for CUDA: no image is slower in silence.
  cmake "${options[@]}"
  cmake --build "build/image-$1" --target nibble -j "${JOBS:-$(nproc)}"
  strip "build/image-$1/bin/nibble"
}

cuda_libraries() {
  local dest=$1 work
  work=$(mktemp -d)
  python3 -m venv "$work/venv"
  "$work/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile --no-deps --require-hashes \
    --target "$work/wheels" -r "$here/cuda_libraries.txt"
  mkdir -p "$dest/lib" "$dest/licenses"
  cp "$work/wheels/nvidia/nccl/lib/libnccl.so.2" "$work"/wheels/nvidia/cu13/lib/lib{cublasLt.so.13,nvrtc.so.13} \
    "$work"/wheels/nvidia/cu13/lib/libnvrtc-builtins.so.13.* "$dest/lib/"
  local folder
  for folder in "$work"/wheels/nvidia_{nccl_cu13,cublas,cuda_nvrtc}-*.dist-info; do
    mkdir -p "$dest/licenses/$(basename "$folder" .dist-info)"
    find "$folder" -iname '*licen*' -type f -exec cp {} "$dest/licenses/$(basename "$folder" .dist-info)/" \;
  done
  rm -rf "$work"
}

# Paths of the shared libraries that FILES need, the loader among them.
libraries_of() {
  local listed
  listed=$(ldd "$@") || fail "ldd $*: $listed"
  if grep 'not found' <<<"$listed" >&2; then fail "libraries are missing"; fi
  awk '$2 == "=>" && $3 ~ /^\// {print $3} $1 ~ /^\// && $2 !~ /=>/ {print $1}' <<<"$listed" | grep -v ':$' | sort -u
}

# Names of the Debian packages that FILES are of.
packages_of() {
  local file real found
  # Since /usr was merged, dpkg may know a file by its path without /usr.
  found=$(for file in "$@"; do real=$(readlink -f "$file"); printf '%s\n' "$real" "${real#/usr}"; done |
    xargs dpkg-query -S 2>/dev/null || true)
  for file in "$@"; do
    real=$(readlink -f "$file")
    sed 's|.*: ||; s|^/usr||' <<<"$found" | grep -xF "${real#/usr}" >/dev/null || fail "$file is of no Debian package"
  done
  cut -d: -f1 <<<"$found" | sort -u
}

# Where scanners look for the packages of an image without dpkg, and what their licences ask for.
describe_package() {
  local package=$1 root=$2
  mkdir -p "$root/var/lib/dpkg/status.d" "$root/usr/share/doc/$package"
  dpkg-query -s "$package" >"$root/var/lib/dpkg/status.d/$package"
  # Some packages share the folder of another.
  cp -L "/usr/share/doc/$package/copyright" "$root/usr/share/doc/$package/copyright"
}

root() {
  local kind=$1 binary=$2 dest=$3 cuda=${4:-}
  check_kind "$kind"
  [ -x "$binary" ] || fail "$binary is not there: build it first"
  [ ! -e "$dest" ] || fail "$dest is there already"
  local files=("$binary") opened path
  for opened in "${OPENED_LIBRARIES[@]}"; do
    path=$(ldconfig -p | awk -v name="$opened" '$1 == name && !found {print $NF; found = 1}')
    [ -n "$path" ] || fail "$opened is not installed"
    files+=("$path")
  done
  local libraries
  libraries=$(libraries_of "${files[@]}" ${cuda:+"$cuda"/lib/*})
  mapfile -t libraries < <({ echo "$libraries"; printf '%s\n' "${files[@]:1}"; } | sort -u)
  [ ${#libraries[@]} -gt 1 ] || fail "no libraries were found"

  local packages
  packages=$(packages_of "${libraries[@]}")
  mapfile -t packages <<<"$packages"
  if ! diff -u --label runtime_packages.txt --label "what $binary loads" <(grep -v '^#' "$here/runtime_packages.txt") \
      <(printf '%s\n' "${packages[@]}") >&2; then
    fail "the binary's libraries are of other packages than runtime_packages.txt says: if that is meant, change the file"
  fi

  # /models is where a model is mounted.
  mkdir -p "$dest"/{etc,models,usr/bin,usr/lib/x86_64-linux-gnu,usr/lib64,dev,proc,sys,var/cache/nibble,var/lib/nibble}
  ln -s usr/lib "$dest/lib"
  ln -s usr/lib64 "$dest/lib64"
  local library
  for path in "${libraries[@]}"; do
    library=$(basename "$path")
    case $library in
      ld-linux*) cp -L "$path" "$dest/usr/lib64/$library" ;;
      *) cp -L "$path" "$dest/usr/lib/x86_64-linux-gnu/$library" ;;
    esac
  done
  for path in "${packages[@]}"; do describe_package "$path" "$dest"; done
  install -m 755 "$binary" "$dest/usr/bin/nibble"
  install -D -m 644 "$source_root/LICENSE" "$dest/usr/share/doc/nibble/copyright"

  printf 'root:x:0:0:root:/:/sbin/nologin\nnibble:x:%d:%d:nibble:/var/lib/nibble:/sbin/nologin\n' $USER_ID $USER_ID >"$dest/etc/passwd"
  printf 'root:x:0:\nnibble:x:%d:\n' $USER_ID >"$dest/etc/group"
  echo 'hosts: files dns' >"$dest/etc/nsswitch.conf"
  cp /etc/os-release /etc/debian_version "$dest/etc/"
  mkdir -m 1777 "$dest/tmp"
  if [ "$(id -u)" = 0 ]; then chown $USER_ID:$USER_ID "$dest"/var/{cache,lib}/nibble; fi

  if [ "$kind" = cuda ]; then
    # NVIDIA's hooks put the driver's libraries where Debian has them (/etc/debian_version says so), or name their folder in a
    # file of their own, and write the cache.
    mkdir "$dest/etc/ld.so.conf.d"
    echo 'include /etc/ld.so.conf.d/*.conf' >"$dest/etc/ld.so.conf"
    echo /usr/lib/x86_64-linux-gnu >"$dest/etc/ld.so.conf.d/x86_64-linux-gnu.conf"
    [ -z "$cuda" ] || cp "$cuda"/lib/* "$dest/usr/lib/x86_64-linux-gnu/"
    [ -z "$cuda" ] || cp -r "$cuda"/licenses/* "$dest/usr/share/doc/"
  fi
  find "$dest" -perm /6000 | grep . >&2 && fail "files with set-user-id or set-group-id"
  echo "$dest: $(du -sm "$dest" | cut -f1) MiB, ${#libraries[@]} libraries of ${#packages[@]} packages" >&2
}

verb=${1:-}
[ $# -gt 0 ] && shift
case $verb in
  packages | build) [ $# = 1 ] || fail "want: $verb cpu|cuda"; "$verb" "$1" ;;
  cuda-libraries) [ $# = 1 ] || fail "want: cuda-libraries DEST"; cuda_libraries "$1" ;;
  root) [ $# = 3 ] || [ $# = 4 ] || fail "want: root cpu|cuda BINARY DEST [LIBRARIES]"; root "$@" ;;
  *) sed -n '5,12p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
esac
