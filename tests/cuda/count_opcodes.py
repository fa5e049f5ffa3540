#!/usr/bin/env python3
# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0
"""Counts the tensor-core instructions of the kernels in objects that nvcc made, and compares them with a table.

A kernel that lost its tensor-core instructions is right and slow: no test of results finds it, least of all without a
GPU. Usage: count_opcodes.py FOLDER [--table FILE] [--list]. Exits 1 and lists every kernel that has too few.
"""
import argparse
import collections
import pathlib
import re
import struct
import sys

# The low 12 bits of an instruction of 16 bytes, which sm_80 and sm_90 share.
OPCODES = {
    "imma": 0x237,  # mma.sync of 8-bit integers
    "hmma": 0x23C,  # mma.sync of bfloat16 and float16
    "wgmma_s8": 0xDF1,  # wgmma of 8-bit integers, the first operand in registers
    "wgmma_bf16": 0xDF0,  # wgmma of bfloat16, the same
}
EM_CUDA = 190
FATBIN_MAGIC = b"\x50\xed\x55\xba"


class Cubin(Exception):
    """What cannot be read."""


def sections(elf):
    """Yields (name, bytes) of a cubin that starts at the first byte of `elf`."""
    shoff, = struct.unpack_from("<Q", elf, 40)
    shentsize, shnum, shstrndx = struct.unpack_from("<HHH", elf, 58)
    headers = [struct.unpack_from("<IIQQQQ", elf, shoff + i * shentsize) for i in range(shnum)]
    names = headers[shstrndx][4]
    for name, kind, _, _, offset, size in headers:
        end = elf.index(b"\0", names + name)
        # SHT_NOBITS has no bytes in the file.
        yield elf[names + name:end].decode(), b"" if kind == 8 else elf[offset:offset + size]


def cubins(data):
    """Yields (architecture, ELF) of every cubin in the bytes of an object."""
    at = data.find(b"\x7fELF\x02\x01")
    while at >= 0:
        if at + 64 <= len(data) and struct.unpack_from("<H", data, at + 18)[0] == EM_CUDA:
            flags, = struct.unpack_from("<I", data, at + 48)
            # The architecture is in other bits of newer files (ABI version 8).
            arch = (flags >> 8) & 0xFFFF if data[at + 8] >= 8 else flags & 0xFF
            yield arch & 0xFF, data[at:]
        at = data.find(b"\x7fELF\x02\x01", at + 1)


def count(path):
    """{(architecture, kernel): Counter of opcodes} of one object."""
    data = path.read_bytes()
    kernels = {}
    found = False  # a source of host code alone has a cubin without kernels
    for arch, elf in cubins(data):
        found = True
        for name, code in sections(elf):
            if name.startswith(".text."):
                words = code[0:len(code) - len(code) % 16]
                counter = collections.Counter(w & 0xFFF for w in struct.unpack(f"<{len(words) // 8}Q", words)[::2])
                kernels[arch, name[len(".text."):]] = counter
    if not found and FATBIN_MAGIC in data:
        raise Cubin(f"{path}: device code that cannot be read: compressed (--compress-mode=none), or PTX alone")
    return kernels


def read_table(path):
    """Lines of: architecture, opcode name, least count, pattern of mangled kernel names. With a `?` after the count
    there need not be such a kernel."""
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        line = line.split("#")[0].strip()
        if not line:
            continue
        fields = line.split(None, 3)
        if len(fields) != 4 or fields[1] not in OPCODES:
            raise Cubin(f"{path}:{number}: want: architecture opcode count pattern")
        least = int(fields[2].removesuffix("?"))
        rows.append((int(fields[0]), fields[1], least, fields[2].endswith("?"), re.compile(fields[3]), number))
    return rows


def names(architectures):
    return ", ".join(f"sm_{arch}" for arch in sorted(architectures))


def check(kernels, table, path):
    problems = []
    built = {arch for arch, _ in kernels}
    if not built & {row[0] for row in table}:
        problems.append(f"{path}: no row applies to what was built: {names(built) or 'no kernels'}")
    for arch, opcode, least, is_optional, pattern, number in table:
        if arch not in built:
            continue
        found = [(name, ops) for (a, name), ops in kernels.items() if a == arch and pattern.search(name)]
        if not found and not is_optional:
            problems.append(f"{path}:{number}: sm_{arch} has no kernel {pattern.pattern}")
        for name, ops in found:
            has = ops[OPCODES[opcode]]
            if has < least:
                problems.append(f"sm_{arch} {name}: {has} {opcode} instructions, want {least} or more")
    return problems


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path, help="a build folder, or one object")
    parser.add_argument("--table", type=pathlib.Path, default=pathlib.Path(__file__).with_name("opcodes.txt"))
    parser.add_argument("--list", action="store_true", help="print what all kernels have")
    args = parser.parse_args()
    objects = [args.folder] if args.folder.is_file() else sorted(args.folder.rglob("*.cu.o"))
    kernels = {}
    try:
        for path in objects:
            kernels.update(count(path))
        if args.list:
            for (arch, kernel), ops in sorted(kernels.items()):
                has = {name: ops[code] for name, code in OPCODES.items() if ops[code]}
                print(f"sm_{arch} {sum(ops.values()):6} instructions {has} {kernel}")
            return 0
        table = read_table(args.table)
        problems = check(kernels, table, args.table.name)
        built = {arch for arch, _ in kernels}
        with_rows = {row[0] for row in table}
        print(f"count_opcodes: checked: {names(built & with_rows) or 'nothing'}; "
              f"built, without rows: {names(built - with_rows) or 'none'}; "
              f"rows, not built: {names(with_rows - built) or 'none'}")
    except (Cubin, struct.error, ValueError, OSError) as error:
        problems = [str(error)]
    if not objects:
        problems = [f"no *.cu.o in {args.folder}"]
    for problem in problems:
        print(f"count_opcodes: {problem}", file=sys.stderr)
    print(f"count_opcodes: {len(kernels)} kernels in {len(objects)} objects, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
