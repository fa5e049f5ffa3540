#!/usr/bin/env bash
# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0
#
# gpu_pack.sh BIN PACK: packs the GPU tests and nibble of BIN with the libraries that a bare machine lacks, the bundled
# models, the tests' fixtures and gpu-check into PACK (.tar.zst), and checks its size. ./dev gpu-pack calls it.
set -euo pipefail
bin=$1 pack=$2
limit=$((60 << 20))
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
folder=$work/nibble-gpu
mkdir -p "$folder"/{bin,lib,lib-compiler,glibc,models,tests/fixtures/data}

for program in "$bin/nibble" "$bin"/*_gpu_test; do
  strip -o "$folder/bin/$(basename "$program")" "$program"
  # "name => path (address)"; the driver's libraries are opened at run time and are the machine's.
  ldd "$program" | awk '$2 == "=>" && $3 ~ /^\// {print $3}'
done | sort -u | while read -r library; do
  case $(basename "$library") in
    libstdc++.so.* | libgcc_s.so.*) to=$folder/lib-compiler ;;
    libc.so.* | libm.so.* | libdl.so.* | librt.so.* | libpthread.so.* | libresolv.so.*) to=$folder/glibc ;;
    *) to=$folder/lib ;;
  esac
  echo "$library" >>"$work/libraries"
  strip -o "$to/$(basename "$library")" "$library" 2>/dev/null || cp -L "$library" "$to/"
done
cp "$bin"/*_gpu_test.peers "$folder/bin/"
cp -L /lib64/ld-linux-x86-64.so.2 "$folder/glibc/"
# What tests open beside themselves.
for module in libfake_cublaslt.so libfake_nccl_gpu.so; do strip -o "$folder/bin/$module" "$bin/$module"; done
# Where the source tree has them: NIBBLE_TEST_DATA is the pack.
for model in models/stories-llama models/stories-mixtral; do
  mkdir "$folder/$model"
  cp "$root/$model"/{*.json,model.safetensors} "$folder/$model/"
done
cp -r "$root"/tests/fixtures/{models,quantized} "$folder/tests/fixtures/"
find "$folder/tests/fixtures" -type f ! -name '*.json' ! -name '*.safetensors' -delete
cp "$root/tests/fixtures/data/generated_stories.txt" "$folder/tests/fixtures/data/"
cp "$root/tests/cuda/gpu_check.sh" "$folder/gpu-check"
cp "$root"/tests/cuda/{gpu_check_text.sh,gpu_targets.awk} "$folder/"
cp "$root/LICENSE" "$folder/"
# Licences: of the libraries, by the distribution's packages; of what the programs have in them of the CUDA toolkit (its
# runtime and CCCL) and of FlashInfer, whose wheel has another version of CCCL.
mkdir "$folder/licenses"
license() {  # license NAME FILES...: those that there are
  local name=$1 file has=
  shift
  for file in "$@"; do
    [ -f "$file" ] || continue
    mkdir -p "$folder/licenses/$name"
    cp -L "$file" "$folder/licenses/$name/"
    has=1
  done
  [ -n "$has" ] || { echo "gpu-pack: no licence of $name" >&2; exit 1; }
}
while read -r library; do
  # A package owns the path before or after the merge of /lib into /usr/lib.
  package=$(dpkg-query -S "$library" "$(readlink -f "$library")" "/usr$library" 2>/dev/null | head -1 | cut -d: -f1) || true
  license "${package:-$library}" "/usr/share/doc/$package/copyright"
done < <(sort -u "$work/libraries"; echo /lib64/ld-linux-x86-64.so.2)
compiler=$(sed -n 's/^CMAKE_CUDA_COMPILER:[A-Z]*=//p' "$bin/../CMakeCache.txt")
toolkit=$(realpath "$(dirname "$compiler")/..")
for part in cccl runtime; do
  # Of NVIDIA's installers, and of its packages for Python in either layout.
  license "cuda-$part" "$toolkit/EULA.txt" "$toolkit/$part/LICENSE" "$toolkit"/dist-info/nvidia_cuda_$part-*/licenses/* \
    "$toolkit"/../../nvidia_cuda_$part-*.dist-info/licenses/*
done
if [ -d "$bin/../flashinfer" ]; then license flashinfer "$bin"/../flashinfer/*.dist-info/licenses/*; fi
cat >"$folder/README" <<'TEXT'
nibble's GPU tests and benchmarks. On a machine with an NVIDIA GPU (Ampere or later) and a driver for CUDA 13 (580 or
later):

    ./gpu-check          # everything; ./gpu-check --help

What it prints last is a table; results.json and all logs are in ./gpu-check-out. A machine that is lent for minutes:
first ./gpu-check --time 540 tests, then text, bench, models, each with an --out of its own; take all of those folders
home. nibble's CUDA code was compiled for sm_80 and sm_90a and tested in an emulator; it has not yet run on a GPU, and
this is the command that will check it.

Libraries: lib has what nibble links, lib-compiler the compiler's (used where the machine's are older than GCC 12's),
glibc a C library (used, with its linker, where the machine's is older than 2.34). gpu-check chooses. cuBLASLt and NCCL are
the machine's: --libraries FOLDER names where they lie, if they are neither in the toolkit nor in Python's packages.
TEXT
# Tests link the same kernels: a window over everything finds them again. Its size is told, so that unpacking takes
# as much memory as the content and not 2 GiB.
tar -C "$work" --sort=name --owner=0 --group=0 --mtime=@0 -cf "$work/pack.tar" nibble-gpu
compress() { zstd -q -f -T0 -19 --long=31 --stream-size="$1"; }
compress "$(stat -c %s "$work/pack.tar")" <"$work/pack.tar" >"$pack"
size=$(stat -c %s "$pack")
echo "$pack: $((size >> 20)) MiB ($(du -sm "$folder" | cut -f1) MiB unpacked, by tar -I 'zstd -d --long=31' -xf)"
if [ "$size" -gt "$limit" ]; then
  echo "gpu-pack: $size bytes, the limit is $limit. MiB unpacked and packed alone:" >&2
  for part in bin/nibble bin lib lib-compiler glibc models tests; do
    bytes=$(tar -C "$folder" -cf - "$part" | wc -c)
    packed=$(tar -C "$folder" -cf - "$part" | compress "$bytes" | wc -c)
    printf '  %-12s %5d %5d\n' "$part" $((bytes >> 20)) $((packed >> 20)) >&2
  done
  exit 1
fi
