#!/bin/sh
# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0

# isa_symbols_test.sh BUILD_DIR [NM]
#
# Sources compiled for a higher instruction set (*_avx2.cc, *_avx512vnni.cc, *_amx.cc) must not define
# weak symbols: an inline function or template emitted there may be the copy that the linker keeps for
# the whole program, which then dies on an older CPU. Checks every such object that the build tree has
# (V, W and u in nm's words).
set -eu
build=$1
nm=${2:-nm}
objects=$(find "$build" -name '*_avx2.cc.o' -o -name '*_avx512vnni.cc.o' -o -name '*_amx.cc.o')
if [ -z "$objects" ]; then
  echo "no objects of instruction-set sources in $build" >&2
  exit 1
fi
failed=0
for object in $objects; do
  # Lower-case w and v are references without a definition; lower-case u is a unique definition.
  # DW.ref.* is a pointer to the exception personality, no code.
  weak=$("$nm" -C "$object" | grep -E '^[0-9a-fA-F]+ [VWu] ' | grep -v ' DW\.ref\.' || true)
  if [ -n "$weak" ]; then
    echo "$object defines weak symbols:" >&2
    echo "$weak" >&2
    failed=1
  fi
done
echo "checked $(echo "$objects" | wc -l) objects"
exit $failed
