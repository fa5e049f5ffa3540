#!/usr/bin/env python3
# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0
"""Tests count_opcodes.py on cubins that are made here."""
import pathlib
import struct
import tempfile
import unittest

import count_opcodes

IMMA, WGMMA, FADD = 0x237, 0xDF1, 0x221


def cubin(arch, kernels, abi=7):
    """An ELF of device code: {kernel: [opcode, ...]}."""
    names = b"\0.shstrtab\0" + b"".join(f".text.{kernel}\0".encode() for kernel in kernels)
    body = b"".join(struct.pack("<QQ", 0xABC000 | op, 0x237) for ops in kernels.values() for op in ops)
    headers = [struct.pack("<IIQQQQIIQQ", *[0] * 10)]
    headers.append(struct.pack("<IIQQQQIIQQ", 1, 3, 0, 0, 64, len(names), 0, 0, 1, 0))
    at, name = 64 + len(names), len(b"\0.shstrtab\0")
    for kernel, ops in kernels.items():
        headers.append(struct.pack("<IIQQQQIIQQ", name, 1, 6, 0, at, 16 * len(ops), 0, 0, 16, 0))
        at += 16 * len(ops)
        name += len(f".text.{kernel}") + 1
    flags = arch << 8 if abi >= 8 else arch
    ident = b"\x7fELF\x02\x01\x01\x33" + bytes([abi]) + bytes(7)
    header = ident + struct.pack("<HHIQQQIHHHHHH", 2, 190, 1, 0, 0, at, flags, 64, 0, 0, 64, len(headers), 1)
    return header + names + body + b"".join(headers)


class CountOpcodesTest(unittest.TestCase):

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def problems(self, table, *objects):
        kernels = {}
        for i, data in enumerate(objects):
            path = self.folder / f"{i}.cu.o"
            path.write_bytes(b"host code" + count_opcodes.FATBIN_MAGIC + data)
            kernels.update(count_opcodes.count(path))
        path = self.folder / "table"
        path.write_text(table)
        return count_opcodes.check(kernels, count_opcodes.read_table(path), path.name)

    def test_counts_per_kernel_and_architecture(self):
        both = cubin(80, {"Gemm": [IMMA, FADD, IMMA], "Norm": [FADD]}) + cubin(90, {"Gemm": [WGMMA]}, abi=8)
        self.assertEqual(self.problems("80 imma 2 ^Gemm$\n90 wgmma_s8 1 Gemm  # a comment\n", both), [])

    def test_a_kernel_that_lost_its_instructions_is_named(self):
        problems = self.problems("80 imma 3 Gemm", cubin(80, {"Gemm": [IMMA, FADD, IMMA]}))
        self.assertEqual(problems, ["sm_80 Gemm: 2 imma instructions, want 3 or more"])

    def test_every_kernel_of_a_pattern_counts(self):
        problems = self.problems("80 imma 1 Gemm", cubin(80, {"GemmA": [IMMA]}), cubin(80, {"GemmB": [FADD]}))
        self.assertEqual(problems, ["sm_80 GemmB: 0 imma instructions, want 1 or more"])

    def test_a_kernel_that_is_gone_is_a_problem(self):
        self.assertEqual(self.problems("80 imma 1 Gemm", cubin(80, {"Norm": [FADD]})),
                         ["table:1: sm_80 has no kernel Gemm"])

    def test_a_kernel_that_need_not_be_there_counts_if_it_is(self):
        table = "80 imma 1? Gemm"
        self.assertEqual(self.problems(table, cubin(80, {"Norm": [FADD]})), [])
        self.assertIn("0 imma", self.problems(table, cubin(80, {"Gemm": [FADD]}))[0])

    def test_architectures_that_were_not_built_are_not_asked_for(self):
        self.assertEqual(self.problems("80 imma 1 Gemm\n90 imma 1 Norm", cubin(90, {"Norm": [IMMA]})), [])

    def test_where_no_row_applies_nothing_was_checked(self):
        self.assertEqual(self.problems("80 imma 1 Gemm", cubin(89, {"Gemm": [IMMA]})),
                         ["table: no row applies to what was built: sm_89"])
        self.assertIn("no kernels", self.problems("80 imma 1 Gemm", cubin(80, {}))[0])

    def test_the_upper_half_of_an_instruction_is_no_opcode(self):
        problems = self.problems("80 imma 1 Gemm", cubin(80, {"Gemm": [FADD]}))
        self.assertIn("0 imma", problems[0])

    def test_compressed_code_is_refused(self):
        with self.assertRaisesRegex(count_opcodes.Cubin, "compressed"):
            self.problems("80 imma 1 Gemm", b"...")

    def test_tables_are_checked(self):
        for line in ("80 imma Gemm", "80 fma 1 Gemm"):
            with self.assertRaises(count_opcodes.Cubin):
                self.problems(line, cubin(80, {"Gemm": [IMMA]}))


if __name__ == "__main__":
    unittest.main()
