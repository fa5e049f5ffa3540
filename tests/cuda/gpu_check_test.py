#!/usr/bin/env python3
# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0
"""Tests the benchmarks' rows of gpu_check.sh with a program in nibble's place that prints what it is told."""
import json
import os
import pathlib
import subprocess
import tempfile
import unittest

CHECK = pathlib.Path(__file__).with_name("gpu_check.sh")

# bench decode ... -> the file decode.json beside it; without one it fails.
NIBBLE = """#!/bin/sh
here=$(dirname "$0")
case $1 in --version) echo "nibble 0"; exit ;; esac
case "$*" in *--help*) ls "$here/$2".* >/dev/null 2>&1 && echo "--device"; exit 0 ;; esac
echo "$*" >>"$here/calls"
[ ! -f "$here/$2.error" ] || { cat "$here/$2.error" >&2; exit 1; }
exec cat "$here/$2.json"
"""


GPU_TEST = """#!/bin/sh
echo "$(basename "$0") '$CUDA_MODULE_LOADING' $*" >>"$(dirname "$0")/calls"
echo "[  PASSED  ] 3 tests."
"""

# Runs the program, and says what the tool says of one that writes where it may not.
SANITIZER = """#!/bin/sh
echo "sanitizer $*" >>"$(dirname "$0")/bin/calls"
case "$*" in
  *b_gpu_test*) cat <<'TEXT'
========= COMPUTE-SANITIZER
[  PASSED  ] 3 tests.
========= Invalid __global__ write of size 4 bytes
=========     at Kernel(int*)+0x50
=========     Address 0x7f0000000004 is out of bounds
========= ERROR SUMMARY: 1 error
TEXT
    exit 9 ;;
esac
echo "[  PASSED  ] 3 tests."
"""

def gemm(shape, variant, m, share, times, us):
    return {"shape": shape, "variant": variant, "m": m, "median_us": us, "share_of_read": share, "times_bf16": times}


def document(results, sm=90, **members):
    return {"bench": "b", "peaks": {"read_gb_per_s": 1.0}, "device": {"name": "x", "sm": sm}, **members, "results": results}


DECODE = [{"batch": b, "context": 1024, "tokens_per_s": 100.5 * b, "step_median_ms": 4.0, "device_ms": 3.5, "gaps_ms": -0.1,
           "host_ms": 0.5, "share_of_roofline": 0.75, "ops": [{"op": "qkv", "us": 7.0, "share_of_roofline": 0.1}]}
          for b in (1, 16, 128)]
PREFILL = [{"prompt": 2048, "tokens_per_s": 9000.0, "median_ms": 200.0, "share_of_int8_peak": 0.5}]
GEMM = [
    gemm("8b-gate-up", "bf16-cublaslt", 1, 0.9, 1, 10), gemm("8b-gate-up", "w4a8-float", 512, 0.1, 1, 30),
    gemm("8b-gate-up", "w4a8-folded", 1, 0.7, 3, 5), gemm("8b-gate-up", "w4a8-integer", 1, 0.6, 3, 6),
    gemm("8b-gate-up", "w4a8-folded", 16, 0.65, 3, 5), gemm("8b-gate-up", "w4a8-integer", 16, 0.64, 3, 6),
    gemm("8b-gate-up", "w4a8-folded", 64, 0.2, 2.4, 5), gemm("8b-gate-up", "w4a8-integer", 64, 0.2, 2.3, 6),
    gemm("8b-gate-up", "w4a8-folded", 256, 0.2, 1.4, 9), gemm("8b-gate-up", "w4a8-integer", 256, 0.2, 1.6, 9),
    gemm("8b-gate-up", "w4a8-folded", 512, 0.2, 10.5, 20), gemm("8b-gate-up", "w4a8-integer", 512, 0.2, 9, 15),
    gemm("mixtral-down", "w4a8-folded", 16, None, None, 0),
]
CODEC = [{"codec": "int4 g32", "encode_share_of_read": 0.85, "decode_share_of_read": 0.9, "reduce_share_of_read": 0.79,
          "fixed_us": 5.5},
         {"codec": "int8 g128", "encode_share_of_read": 0.95, "decode_share_of_read": 0.8, "reduce_share_of_read": 0.9}]


ATTENTION = [{"backend": b, "phase": p, "dtype": "bfloat16", "shape": "8b", "sequences": s, "context": 1024, "median_us": 10.0,
              "share_of_read": r, "share_of_peak": r / 2, **({"times_flashinfer": t} if t else {})}
             for b, p, s, r, t in [("flashinfer", "decode", 1, 0.1, None), ("nibble", "decode", 1, 0.6, 1.25),
                                   ("nibble", "decode", 16, 0.9, 1.0), ("nibble", "prefill", 1, 0.5, 0.8)]]
SUMS = [{"bytes": n, "op": o, "codec": c, "median_us": u}
        for n, o, c, u in [(4096, "sum", "nccl", 12.0), (4096, "sum", "bf16", 5.0), (4096, "sum", "bf16", 9.0),
                           (4096, "sum", "int4", 8.5), (4096, "sum+norm", "int4", 1.0), (4096, "sum", "int3", 15.0),
                           (1048576, "sum", "nccl", 60.0), (1048576, "sum", "bf16", 50.0), (1048576, "sum", "int4", 20.0)]]


class GpuCheckTest(unittest.TestCase):

    def check(self, *steps, one_device=False, devices=1, programs=None, **documents):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            (folder / "bin").mkdir()
            smi = "#!/bin/sh\necho index\n" + "echo a device\n" * devices
            for program, text in {"bin/nibble": NIBBLE, "nvidia-smi": smi, **(programs or {})}.items():
                (folder / program).parent.mkdir(parents=True, exist_ok=True)
                (folder / program).write_text(text)
                (folder / program).chmod(0o755)
            if one_device:
                (folder / "bin" / "allreduce.error").write_text(
                    "nibble: error: --device cuda: an all-reduce is timed between devices: at least 2 are needed, this host has 1\n")
            for bench, content in documents.items():
                (folder / "bin" / f"{bench}.json").write_text(json.dumps(content, indent=2))
            done = subprocess.run(["bash", CHECK, "--bin", folder / "bin", "--models", folder / "models", "--out", folder / "out",
                                   *steps], env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
                                  capture_output=True, text=True, check=False)
            self.assertEqual(done.stderr, "")
            calls = folder / "bin" / "calls"
            self.calls = calls.read_text() if calls.exists() else ""
            results = json.loads((folder / "out" / "results.json").read_text())
        self.aims = {row["name"]: (row["result"], row["note"]) for row in results["rows"] if row["step"] == "aims"}
        self.rows = {row["name"]: row["result"] for row in results["rows"]}
        self.notes = {row["name"]: row["note"] for row in results["rows"]}
        return done.returncode

    def test_products_are_compared_with_what_is_aimed_at(self):
        self.assertEqual(self.check("bench", gemm=document(GEMM)), 1)
        self.assertEqual(self.aims["8b-gate-up W4A8 M<=16"], ("ok", "0.65 of the measured bandwidth (aim: 0.65)"))
        self.assertEqual(self.aims["8b-gate-up W4A8 M=64"], ("FAIL", "2.4 x cuBLASLt bf16 (aim: 2.5)"))
        # The better form counts, and 10.5 is more than 9.
        self.assertEqual(self.aims["8b-gate-up W4A8 M=256..512"], ("ok", "1.6 x cuBLASLt bf16 (aim: 1.5)"))
        self.assertEqual(self.aims["8b-gate-up W4A8 M=512 over float scales"][0], "ok")
        self.assertEqual(self.aims["mixtral-down W4A8 M<=16"][0], "skip")
        self.assertNotIn("mixtral-down W4A8 M=64", self.aims)

    def test_other_devices_fail_nothing(self):
        self.assertEqual(self.check("bench", gemm=document(GEMM[:-1], sm=80)), 0)
        self.assertEqual(self.aims["8b-gate-up W4A8 M=64"], ("n/a", "2.4 x cuBLASLt bf16 (aim: 2.5 on sm_90)"))

    def test_without_cublaslt_nothing_is_compared_with_it(self):
        self.assertEqual(self.check("bench", gemm=document(GEMM[:-1], cublaslt="not found")), 3)
        self.assertEqual(self.aims["8b-gate-up W4A8 M<=16"][0], "ok")
        self.assertEqual(self.aims["8b-gate-up W4A8 M=64"][0], "skip")

    def test_the_worst_codec_counts(self):
        self.assertEqual(self.check("bench", gemm=document([]), codec=document(CODEC)), 1)
        self.assertEqual(self.aims["codec encode"], ("ok", "0.85 of the measured bandwidth, least: int4 g32 (aim: 0.8)"))
        self.assertEqual(self.aims["codec decode"][0], "ok")
        self.assertEqual(self.aims["codec reduce"][0], "FAIL")
        self.assertEqual(self.aims["codec fixed cost"], ("ok", "5.5 us, most: int4 g32 (aim: 6)"))

    def test_attention_is_told_at_its_worst(self):
        self.assertEqual(self.check("bench", gemm=document([]), attention=document(ATTENTION)), 0)
        self.assertEqual(self.aims["attention decode bfloat16"],
                         ("ok", "least: 0.6 of the measured bandwidth (8b batch 1 context 1024), 1.0 x flashinfer"))
        self.assertEqual(self.aims["attention prefill bfloat16"],
                         ("ok", "least: 0.25 of the bf16 peak (8b batch 1 context 1024), 0.8 x flashinfer"))

    def test_the_best_algorithm_of_a_sum_counts(self):
        self.assertEqual(self.check("bench", gemm=document([]), allreduce=document(SUMS)), 1)
        self.assertEqual(self.aims["all-reduce int4 fixed cost"], ("ok", "3.5 us more than bf16 at 4096 bytes (aim: 6)"))
        self.assertEqual(self.aims["all-reduce int3 fixed cost"][0], "FAIL")
        self.assertEqual(self.aims["all-reduce int4 of 1048576 bytes"], ("ok", "2.5 x bf16, 3 x NCCL"))

    def test_one_device_cannot_sum(self):
        self.assertEqual(self.check("bench", gemm=document([]), one_device=True), 0)
        self.assertEqual(self.rows["bench-allreduce"], "n/a")

    def test_steps_are_told(self):
        self.assertEqual(self.check("models", decode=document(DECODE), prefill=document(PREFILL)), 3)
        self.assertIn("decode random:llama-3-8b --quantization w4a8 --batch 1,16,64,128 --context 1024 --device cuda", self.calls)
        self.assertIn("prefill random:llama-3-8b --quantization w4a8 --prompt 2048 --device cuda", self.calls)
        self.assertEqual(self.aims["decode batch 16 context 1024"],
                         ("ok", "1608.0 tokens/s, 0.75 of roofline; of 4.0 ms device 3.5 (gaps -0.1), host 0.5"))
        self.assertEqual(self.aims["beside decode batch 128 of 8B"][1].split(";")[0], "12864.0 tokens/s")
        # No ops: a skip, and the figures there are.
        self.assertEqual(self.aims["prefill of 2048"][0], "skip")

    def test_a_benchmark_that_fails_has_no_aims(self):
        self.assertEqual(self.check("bench", "models", decode=document(DECODE)), 1)
        self.assertEqual(self.rows["bench-gemm"], "FAIL")
        self.assertEqual(self.rows["bench-prefill-random-8b"], "FAIL")
        self.assertEqual(len(self.aims), 4)

    def test_a_product_that_failed_is_said_beside_the_others(self):
        bad = [{"shape": "8b-o", "variant": "w4a8-folded", "error": "INTERNAL: 8b-o cannot"},
               {"shape": "8b-gate-up", "variant": "bf16-cublaslt", "m": 64, "error": "INTERNAL: 64 cannot"}]
        self.assertEqual(self.check("bench", gemm=document(GEMM[:-1] + bad, sm=80)), 1)
        self.assertEqual(self.rows["bench-gemm"], "ok")
        self.assertEqual(self.aims["8b-o w4a8-folded"], ("FAIL", "INTERNAL: 8b-o cannot"))
        self.assertEqual(self.aims["8b-gate-up bf16-cublaslt M=64"], ("FAIL", "INTERNAL: 64 cannot"))
        self.assertEqual(self.aims["8b-gate-up W4A8 M<=16"][0], "ok")

    def test_seventy_billion_have_a_bar_of_their_own(self):
        rows = [gemm("70b-gate-up", "w4a8-folded", m, 0.7, 3, 90) for m in (1, 16)]
        self.check("bench", gemm=document(rows))
        self.assertEqual(self.aims["70b-gate-up W4A8 M<=16"], ("FAIL", "0.7 of the measured bandwidth (aim: 0.75)"))

    def test_published_figures_stand_beside_ours_and_fail_nothing(self):
        rows = GEMM[:-1] + [gemm("8b-gate-up", "w8a8", 64, 0.1, 1, 4), gemm("8b-gate-up", "w8a8-cublaslt", 64, 0.1, 1, 7)]
        rows += [gemm("8b-gate-up", "w8a8", m, 0.1, 1, 10) for m in (1, 16, 512)]
        rows += [gemm(f"8b-{name}", "w4a8-folded", 256, 0.2, 2, us) for name, us in (("qkv", 1), ("o", 2), ("down", 4))]
        self.check("bench", gemm=document(rows))
        self.assertEqual(self.aims["beside 8b-gate-up M<=16"], ("ok", "5 us at most, 0.65 of 3.35 TB/s is 28"))
        self.assertEqual(self.aims["beside 8b-gate-up M=64"][1].split(" us")[0], "5")
        self.assertEqual(self.aims["beside 8b-gate-up M<=64 over W8A8"],
                         ("ok", "0.8 x the better W8A8 at least, aimed at: 1.6"))
        self.assertEqual(self.aims["beside 8b layer M=256"][1].split(" us")[0], "16")
        self.assertNotIn("beside 8b-qkv M=64", self.aims)

    def test_ranks_that_wait_for_each_other_load_kernels_first(self):
        programs = {"bin/a_gpu_test": GPU_TEST, "bin/b_gpu_test": GPU_TEST, "bin/b_gpu_test.peers": "Peers.*\n"}
        self.assertEqual(self.check("tests", programs=programs), 0)
        self.assertEqual(self.calls, "a_gpu_test '' \nb_gpu_test 'EAGER' \n")

    def test_sanitizers_say_what_they_found(self):
        programs = {"bin/a_gpu_test": GPU_TEST, "bin/b_gpu_test": GPU_TEST, "bin/b_gpu_test.peers": "Peers.*\n",
                    "compute-sanitizer": SANITIZER}
        self.assertEqual(self.check("memcheck", "racecheck", programs=programs), 1)
        memcheck, race = [line for line in self.calls.splitlines() if "b_gpu_test" in line]
        self.assertIn("--tool memcheck --report-api-errors no --error-exitcode 9", memcheck)
        self.assertIn("--tool racecheck --error-exitcode 9", race)
        for line in memcheck, race:
            self.assertTrue(line.endswith("b_gpu_test --gtest_filter=-Peers.*"), line)
        self.assertEqual(self.rows["Peers.*"], "n/a")
        self.assertEqual(self.rows["a_gpu_test"], "ok")
        self.assertEqual(self.notes["b_gpu_test"],
                         "exit status 9; 0 failed; Invalid __global__ write of size 4 bytes;"
                         "Address 0x7f0000000004 is out of bounds, see racecheck-b_gpu_test.log")

    def test_two_ranks_need_two_devices(self):
        for devices, result in (1, "n/a"), (2, "FAIL"):  # there is no server here
            self.check("text", devices=devices, programs={"models/stories-x/config.json": "{}"})
            self.assertEqual(self.rows["stories-x-two-ranks"], result)
        self.assertIn("serve", self.calls)


if __name__ == "__main__":
    unittest.main()
