#!/usr/bin/env python3
# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0
"""Tests the benchmarks' rows of gpu_check.sh with a program in nibble's place that prints what it is told."""
import json
import os
import pathlib
import signal
import subprocess
import tempfile
import time
import unittest

CHECK = pathlib.Path(__file__).with_name("gpu_check.sh")
TEXT = CHECK.with_name("gpu_check_text.sh")

# bench decode ... -> the file decode.json beside it; without one of what has aims it fails. A codec of one row is how a
# device is looked for.
NIBBLE = """#!/bin/sh
here=$(dirname "$0")
case $1 in --version) echo "nibble 0"; exit ;; esac
for last; do :; done
case "$*" in
  *"--rows 1 "*)
    [ ! -f "$here/probe.error" ] || { cat "$here/probe.error" >&2; exit 1; }
    cat "$here/probe" >"$last"; exit ;;
esac
echo "$*" >>"$here/calls"
[ ! -f "$here/$2.error" ] || { cat "$here/$2.error" >&2; exit 1; }
[ ! -f "$here/$2.json" ] || cat "$here/$2.json" >"$last"
[ ! -f "$here/$2.late" ] || exit 124
case $1/$2 in
  serve/*) echo $$ >"$here/server"; exec sleep 60 ;;
  bench/gemm | bench/decode | bench/prefill) [ -f "$here/$2.json" ] ;;
esac
"""


# Tests of which some were skipped, for the reasons given.
def some_skipped(*reasons):
    text = "".join(f"[ RUN      ] T.t\nx_test.cc:33: Skipped\n{reason}\n\n[  SKIPPED ] T.t (0 ms)\n" for reason in reasons)
    return f"#!/bin/sh\ncat <<'TEXT'\n{text}[  PASSED  ] 9 tests.\n[  SKIPPED ] {len(reasons)} tests, listed below:\nTEXT\n"


SLOW_TEST = """#!/bin/sh
echo "[ RUN      ] Slow.Test"
echo $$ >"$(dirname "$0")/slow"
exec sleep 60
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
echo "========= ERROR SUMMARY: 0 errors"
"""
NO_SANITIZER = """#!/bin/sh
echo "========= COMPUTE-SANITIZER"
echo '========= Error: Device not supported. Please refer to the "Supported Devices" section of the sanitizer documentation'
echo "[  PASSED  ] 3 tests."
"""


def gemm(shape, variant, m, share, times, us):
    return {"shape": shape, "variant": variant, "m": m, "median_us": us, "share_of_read": share, "times_bf16": times,
            "times_bf16_of": "bf16-cublaslt"}


def document(results, sm=90, **members):
    return {"bench": "b", "peaks": {"read_gb_per_s": 1.0}, "device": {"name": "x", "sm": sm, "num_devices": 1}, **members,
            "results": results}


DECODE = [{"batch": b, "context": 1024, "tokens_per_s": 100.5 * b, "step_median_ms": 4.0, "device_ms": 3.5, "gaps_ms": -0.1,
           "host_ms": 0.5, "share_of_roofline": 0.75,
           "ops": [{"op": "norm+quantize", "us": 1.0, "share_of_step": 0.02},
                   {"op": "qkv", "us": 7.0, "share_of_step": 0.3, "share_of_roofline": 0.1}]}
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

    def start(self, folder, *steps, one_device=False, devices=1, programs=None, sm=90, environment=None, **documents):
        (folder / "bin").mkdir()
        smi = "#!/bin/sh\necho index\necho '0, a device, 9.0, x'\necho '1, a device, 9.0, x'\n"
        probe = document([], device={"name": "a device", "sm": sm, "num_devices": devices})
        (folder / "bin" / "probe").write_text(json.dumps(probe, indent=2))
        for program, text in {"bin/nibble": NIBBLE, "nvidia-smi": smi, **(programs or {})}.items():
            (folder / program).parent.mkdir(parents=True, exist_ok=True)
            (folder / program).write_text(text)
            (folder / program).chmod(0o755)
        if one_device:
            (folder / "bin" / "allreduce.error").write_text(
                "nibble: error: --device cuda: an all-reduce is timed between devices: at least 2 are needed, this host has 1\n")
        for bench, content in documents.items():
            (folder / "bin" / f"{bench}.json").write_text(json.dumps(content, indent=2))
        return subprocess.Popen(
            ["bash", CHECK, "--bin", folder / "bin", "--models", folder / "models", "--out", folder / "out", *steps],
            env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", **(environment or {})}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            # Of whoever runs the tests in the background, it may be ignored, and stays so.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))

    def read(self, folder):
        calls = folder / "bin" / "calls"
        self.calls = calls.read_text() if calls.exists() else ""
        results = json.loads((folder / "out" / "results.json").read_text())
        self.state = results["state"]
        self.aims = {row["name"]: (row["result"], row["note"]) for row in results["rows"] if row["step"] == "aims"}
        self.rows = {row["name"]: row["result"] for row in results["rows"]}
        self.notes = {row["name"]: row["note"] for row in results["rows"]}

    def check(self, *steps, **given):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            with self.start(folder, *steps, **given) as process:
                self.stdout, stderr = process.communicate()
            self.assertEqual(stderr, "")
            self.read(folder)
        return process.returncode

    # What it says where it runs nothing.
    def refusal(self, *steps, **given):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            with self.start(folder, *steps, **given) as process:
                _, stderr = process.communicate()
            self.assertEqual(process.returncode, 2, stderr)
            self.assertFalse((folder / "out" / "results.json").exists())
        return stderr.replace(name, "FOLDER")

    def test_products_are_compared_with_what_is_aimed_at(self):
        self.assertEqual(self.check("bench", gemm=document(GEMM)), 3)
        self.assertEqual(self.aims["8b-gate-up W4A8 M<=16"], ("ok", "0.65 of the measured bandwidth (aim: 0.65)"))
        self.assertEqual(self.aims["8b-gate-up W4A8 M=64"], ("missed", "2.4 x cuBLASLt bf16 (aim: 2.5)"))
        # The better form counts, and 10.5 is more than 9.
        self.assertEqual(self.aims["8b-gate-up W4A8 M=256..512"], ("ok", "1.6 x cuBLASLt bf16 (aim: 1.5)"))
        self.assertEqual(self.aims["8b-gate-up W4A8 M=512 over float scales"][0], "ok")
        self.assertEqual(self.aims["mixtral-down W4A8 M<=16"][0], "skip")
        self.assertNotIn("mixtral-down W4A8 M=64", self.aims)

    def test_a_missed_aim_is_no_failure(self):
        self.assertEqual(self.check("bench", gemm=document(GEMM[:-1])), 4)
        self.assertEqual(self.state, "missed")
        self.assertEqual([name for name, result in self.rows.items() if result == "missed"], ["8b-gate-up W4A8 M=64"])

    def test_other_devices_fail_nothing(self):
        self.assertEqual(self.check("bench", gemm=document(GEMM[:-1], sm=80)), 0)
        self.assertEqual(self.aims["8b-gate-up W4A8 M=64"], ("n/a", "2.4 x cuBLASLt bf16 (aim: 2.5 on sm_90)"))

    def test_without_cublaslt_nothing_is_compared_with_it(self):
        own = [{**row, "times_bf16_of": "bf16"} for row in GEMM[:-1]]
        self.assertEqual(self.check("bench", gemm=document(own, cublaslt="not found")), 3)
        self.assertEqual(self.aims["8b-gate-up W4A8 M<=16"][0], "ok")
        self.assertEqual(self.aims["8b-gate-up W4A8 M=64"][0], "skip")

    def test_the_worst_codec_counts(self):
        self.assertEqual(self.check("bench", gemm=document([]), codec=document(CODEC)), 4)
        self.assertEqual(self.aims["codec encode"], ("ok", "0.85 of the measured bandwidth, least: int4 g32 (aim: 0.8)"))
        self.assertEqual(self.aims["codec decode"][0], "ok")
        self.assertEqual(self.aims["codec reduce"][0], "missed")
        self.assertEqual(self.aims["codec fixed cost"], ("ok", "5.5 us, most: int4 g32 (aim: 6)"))

    def test_attention_is_told_at_its_worst(self):
        self.assertEqual(self.check("bench", gemm=document([]), attention=document(ATTENTION)), 0)
        self.assertEqual(self.aims["attention decode bfloat16"],
                         ("ok", "least: 0.6 of the measured bandwidth (8b batch 1 context 1024), 1.0 x flashinfer"))
        self.assertEqual(self.aims["attention prefill bfloat16"],
                         ("ok", "least: 0.25 of the bf16 peak (8b batch 1 context 1024), 0.8 x flashinfer"))

    def test_the_best_algorithm_of_a_sum_counts(self):
        self.assertEqual(self.check("bench", gemm=document([]), allreduce=document(SUMS)), 4)
        self.assertEqual(self.aims["all-reduce int4 fixed cost"], ("ok", "3.5 us more than bf16 at 4096 bytes (aim: 6)"))
        self.assertEqual(self.aims["all-reduce int3 fixed cost"][0], "missed")
        self.assertEqual(self.aims["all-reduce int4 of 1048576 bytes"], ("ok", "2.5 x bf16, 3 x NCCL"))

    def test_without_nccl_nothing_is_compared_with_it(self):
        left_out = {"nccl": "libnccl.so.2: not found", "auto": "nothing is measured where bytes travel by host"}
        self.check("bench", gemm=document([]), allreduce=document(SUMS, left_out=left_out))
        self.assertEqual(self.aims["all-reduce nccl"], ("skip", "libnccl.so.2: not found"))
        self.assertNotIn("all-reduce auto", self.aims)
        self.assertIn("all-reduce int4 fixed cost", self.aims)

    def test_cases_that_failed_are_told(self):
        rows = [{"batch": 128, "context": 1024, "error": "RESOURCE_EXHAUSTED: no memory"}]
        self.assertEqual(self.check("models", decode=document(DECODE + rows), prefill=document(PREFILL)), 1)
        self.assertEqual(self.aims["decode batch 128 context 1024"], ("FAIL", "RESOURCE_EXHAUSTED: no memory"))
        self.assertEqual(self.aims["decode batch 16 context 1024"][0], "ok")

    def test_one_device_cannot_sum(self):
        self.assertEqual(self.check("bench", gemm=document([]), one_device=True), 0)
        self.assertEqual(self.rows["bench-allreduce"], "n/a")

    def test_steps_are_told(self):
        self.assertEqual(self.check("models", decode=document(DECODE), prefill=document(PREFILL)), 3)
        self.assertIn("decode random:llama-3-8b --quantization w4a8 --batch 1,16,64,128 --context 1024 --device cuda --save", self.calls)
        self.assertIn("prefill random:llama-3-8b --quantization w4a8 --prompt 2048 --device cuda --save", self.calls)
        self.assertEqual(self.aims["decode batch 16 context 1024"],
                         ("ok", "1608.0 tokens/s, 0.75 of roofline; of 4.0 ms device 3.5 (gaps -0.1), host 0.5"))
        self.assertEqual(self.aims["decode batch 16 context 1024 by op"],
                         ("n/a", "shares of the step: norm+quantize 0.02, qkv 0.3 (0.1 of roofline)"))
        self.assertEqual(self.aims["beside decode batch 128 of 8B"][1].split(";")[0], "12864.0 tokens/s")
        # No ops: a skip, and the figures there are.
        self.assertEqual(self.aims["prefill of 2048"][0], "skip")

    def test_a_benchmark_that_fails_has_no_aims(self):
        self.assertEqual(self.check("bench", "models", decode=document(DECODE)), 1)
        self.assertEqual(self.rows["bench-gemm"], "FAIL")
        self.assertEqual(self.rows["bench-prefill-random-8b"], "FAIL")
        self.assertEqual(len(self.aims), 7)

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
        self.assertEqual(self.aims["70b-gate-up W4A8 M<=16"], ("missed", "0.7 of the measured bandwidth (aim: 0.75)"))

    def test_published_figures_stand_beside_ours_and_fail_nothing(self):
        rows = GEMM[:-1] + [gemm("8b-gate-up", "w8a8", 64, 0.1, 1, 4), gemm("8b-gate-up", "w8a8-cublaslt", 64, 0.1, 1, 7)]
        rows += [gemm("8b-gate-up", "w8a8", m, 0.1, 1, 10) for m in (1, 16, 512)]
        rows += [gemm(f"8b-{name}", "w4a8-folded", 256, 0.2, 2, us) for name, us in (("qkv", 1), ("o", 2), ("down", 4))]
        self.check("bench", gemm=document(rows))
        self.assertEqual(self.aims["beside 8b-gate-up M<=16"], ("n/a", "5 us at most, 0.65 of 3.35 TB/s is 28"))
        self.assertEqual(self.aims["beside 8b-gate-up M=64"][1].split(" us")[0], "5")
        self.assertEqual(self.aims["beside 8b-gate-up M<=64 over W8A8"],
                         ("n/a", "0.8 x the better W8A8 at least, aimed at: 1.6"))
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

    def test_two_ranks_need_two_devices_that_nibble_sees(self):
        serve = {"bin/nibble": NIBBLE.replace("serve/*)", "none)"), "models/stories-x/config.json": "{}"}
        for devices, result in (1, "n/a"), (2, "FAIL"):  # there is no server here
            self.check("text", devices=devices, programs=serve)
            self.assertEqual(self.rows["stories-x-two-ranks"], result)
        self.assertIn("serve", self.calls)

    def test_where_there_is_a_device_no_test_may_see_none(self):
        reasons = ["no CUDA device: the driver (for CUDA 13.1) shows no device"] * 2 + ["cublasLt.h is not on this host"]
        self.assertEqual(self.check("tests", programs={"bin/a_gpu_test": some_skipped(*reasons)}), 1)
        self.assertEqual(self.rows["a_gpu_test"], "FAIL")
        self.assertEqual(self.notes["a_gpu_test"], f"3 skipped, though there is a GPU: {reasons[0]} (2); {reasons[2]} (1)")

    @unittest.skipIf(os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/nvidia0"), "there is a driver")
    def test_without_a_device_no_program_is_ok_that_skipped(self):
        programs = {"nvidia-smi": "#!/bin/sh\nexit 9\n", "bin/a_gpu_test": some_skipped("no CUDA device"), "bin/b_gpu_test": GPU_TEST}
        self.assertEqual(self.check("--without-gpu", "tests", programs=programs), 3)
        self.assertEqual(self.rows, {"a_gpu_test": "skip", "b_gpu_test": "ok"})
        self.assertEqual(self.notes["a_gpu_test"], "9 passed, 1 skipped: no CUDA device (1)")

    def test_why_tests_were_skipped_is_told(self):
        wgmma = some_skipped("wgmma is of sm_90, this is sm_80")
        self.assertEqual(self.check("tests", sm=80, programs={"bin/a_gpu_test": wgmma}), 0)
        self.assertEqual(self.notes["a_gpu_test"], "9 passed, 1 skipped: wgmma is of sm_90, this is sm_80 (1)")
        self.assertEqual(self.check("tests", sm=90, programs={"bin/a_gpu_test": wgmma}), 1)

    def test_a_device_that_nibble_cannot_see_is_told_first(self):
        error = "nibble: error: UNAVAILABLE: --device cuda: no CUDA device: the driver is for CUDA 12.8\n"
        self.assertEqual(self.refusal(programs={"bin/probe.error": error}), f"gpu-check: no GPU that nibble can use: {error}")
        self.assertIn("(CUDA_VISIBLE_DEVICES is '')",
                      self.refusal(programs={"bin/probe.error": error}, environment={"CUDA_VISIBLE_DEVICES": ""}))

    @unittest.skipIf(os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/nvidia0"), "there is a driver")
    def test_what_nvidia_smi_says_is_told(self):
        smi = "#!/bin/sh\necho 'Failed to initialize NVML: Driver/library version mismatch'\nexit 18\n"
        self.assertIn("nvidia-smi: Failed to initialize NVML: Driver/library version mismatch", self.refusal(programs={"nvidia-smi": smi}))

    def test_kernels_that_do_not_run_fail_and_the_rest_goes_on(self):
        programs = {"bin/probe.error": "nibble: error: INTERNAL: an illegal instruction\n", "bin/a_gpu_test": GPU_TEST}
        self.assertEqual(self.check("tests", programs=programs), 1)
        self.assertEqual(self.rows, {"what nibble sees": "FAIL", "a_gpu_test": "ok"})

    def test_a_sanitizer_that_cannot_attach_is_one_row(self):
        programs = {"bin/a_gpu_test": GPU_TEST, "bin/b_gpu_test": GPU_TEST, "compute-sanitizer": NO_SANITIZER}
        self.assertEqual(self.check("memcheck", programs=programs), 3)
        self.assertEqual(self.rows, {"what nibble sees": "ok", "compute-sanitizer": "skip"})
        self.assertIn("cannot attach here: Device not supported.", self.notes["compute-sanitizer"])

    def test_a_sanitizer_that_saw_nothing_has_checked_nothing(self):
        programs = {"bin/a_gpu_test": GPU_TEST, "compute-sanitizer": GPU_TEST}
        self.assertEqual(self.check("racecheck", programs=programs), 3)
        self.assertEqual(self.rows["a_gpu_test"], "skip")

    def test_the_pack_brings_what_the_machine_lacks(self):
        nibble = """#!/bin/sh
case $(cat "$(dirname "$0")/needs") in
  compiler) case $LD_LIBRARY_PATH in *lib-compiler*) ;; *) exit 1 ;; esac ;;
  linker) [ -n "$LINKED" ] || exit 1 ;;
esac
""" + NIBBLE
        program = """#!/bin/sh
{ echo "linked '$LINKED' paths '$LD_LIBRARY_PATH'"; [ -z "$NIBBLE_RANK_PROGRAM" ] || "$NIBBLE_RANK_PROGRAM" bench rank; } \
  >>"$(dirname "$0")/calls"
echo "[  PASSED  ] 3 tests."
"""
        linker = '#!/bin/sh\nexport LD_LIBRARY_PATH=$2 LINKED=yes\nshift 2\nexec "$@"\n'
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            for path, text in {"gpu-check": CHECK.read_text(), TEXT.name: TEXT.read_text(), "bin/nibble": nibble, "bin/a_gpu_test": program,
                               "glibc/ld-linux-x86-64.so.2": linker, "lib/x": "", "lib-compiler/x": "",
                               "bin/probe": json.dumps(document([]), indent=2), "nvidia-smi": "#!/bin/sh\necho index\n"}.items():
                (folder / path).parent.mkdir(exist_ok=True)
                (folder / path).write_text(text)
                (folder / path).chmod(0o755)
            told = {}
            for needs in "nothing", "compiler", "linker":
                (folder / "bin" / "needs").write_text(needs)
                (folder / "bin" / "calls").unlink(missing_ok=True)
                done = subprocess.run(["bash", folder / "gpu-check", "--out", folder / "out", "tests"], capture_output=True, text=True,
                                      env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "LD_LIBRARY_PATH": ""}, check=False)
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
                told[needs] = (folder / "bin" / "calls").read_text().replace(name, "")
        self.assertRegex(told["nothing"], r"^linked '' paths '/lib(:(?!/lib-compiler)[^']*)?'\n$")
        self.assertRegex(told["compiler"], r"^linked '' paths '/lib:/lib-compiler[^']*'\n$")
        # What starts ranks starts them through the linker.
        self.assertRegex(told["linker"], r"^linked 'yes' paths '/glibc:/lib:/lib-compiler[^']*'\nbench rank\n$")

    # Until it is there.
    def wait_for(self, path):
        end = time.monotonic() + 60
        while not (path.exists() and path.read_text().strip()) and time.monotonic() < end:
            time.sleep(0.01)
        return int(path.read_text())

    def test_it_ends_when_told_with_all_it_started_and_keeps_what_it_knows(self):
        programs = {"bin/a_gpu_test": GPU_TEST, "bin/b_gpu_test": SLOW_TEST, "models/stories-x/config.json": "{}"}
        for number, step, started in (signal.SIGINT, "tests", "slow"), (signal.SIGTERM, "tests", "slow"), (signal.SIGTERM, "text", "server"):
            with self.subTest(number=number, step=step), tempfile.TemporaryDirectory() as name:
                folder = pathlib.Path(name)
                with self.start(folder, step, programs=programs) as process:
                    pid = self.wait_for(folder / "bin" / started)
                    process.send_signal(number)
                    stdout, _ = process.communicate(timeout=60)
                self.assertEqual(process.returncode, 128 + number)
                self.assertIn("INTERRUPTED", stdout)
                self.assertRaises(ProcessLookupError, os.kill, pid, 0)
                self.read(folder)
                self.assertEqual(self.state, "interrupted")
                self.assertEqual(self.rows, {"what nibble sees": "ok", **({"a_gpu_test": "ok"} if step == "tests" else {})})

    # 124 is what `timeout` says.
    def test_rows_before_a_time_limit_count(self):
        programs = {"bin/gemm.late": "", "bin/a_gpu_test": '#!/bin/sh\necho "[ RUN      ] Slow.Test"\nexit 124\n'}
        self.assertEqual(self.check("bench", "tests", gemm=document(GEMM[:-1], sm=80), programs=programs), 3)
        self.assertEqual(self.rows["bench-gemm"], "incomplete")
        self.assertEqual(self.notes["bench-gemm"], "past its limit of 1800 s: 12 rows so far, in bench-gemm.json")
        self.assertEqual(self.aims["8b-gate-up W4A8 M<=16"][0], "ok")
        self.assertEqual(self.rows["a_gpu_test"], "incomplete")
        self.assertEqual(self.notes["a_gpu_test"],
                         "past its limit of 300 s, in Slow.Test: slow, or hangs; see tests-a_gpu_test.log")

    def test_a_failure_before_a_time_limit_is_one(self):
        program = '#!/bin/sh\necho "[  FAILED  ] A.B (3 ms)"\nexit 124\n'
        self.assertEqual(self.check("tests", programs={"bin/a_gpu_test": program}), 1)

    def test_the_whole_run_has_a_limit(self):
        self.assertEqual(self.check("tests", "--time", "1", programs={"bin/a_gpu_test": SLOW_TEST}), 3)
        self.assertEqual(self.rows["a_gpu_test"], "incomplete")

    def test_earlier_results_are_removed(self):
        stale = {"out/results.json": "stale", "out/bench-gemm.json": "stale", "out/mine.txt": "mine", "bin/a_gpu_test": GPU_TEST}
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            with self.start(folder, "tests", programs=stale) as process:
                process.communicate()
            self.read(folder)
            self.assertFalse((folder / "out" / "bench-gemm.json").exists())
            self.assertTrue((folder / "out" / "mine.txt").exists())

    def test_a_folder_that_cannot_be_written(self):
        self.assertEqual(self.refusal("--out", "/proc/self/status/out"),
                         "gpu-check: cannot write to /proc/self/status/out: --out names another folder\n")

    def test_libraries_are_looked_for(self):
        with tempfile.TemporaryDirectory() as name:
            (pathlib.Path(name) / "libnccl.so.2").touch()
            program = '#!/bin/sh\necho "$LD_LIBRARY_PATH" >>"$(dirname "$0")/calls"\necho "[  PASSED  ] 3 tests."\n'
            self.check("tests", "--libraries", name, programs={"bin/a_gpu_test": program})
            self.assertIn(f"NCCL: {name}\n", self.stdout)
            self.assertIn(name, self.calls.strip().split(":"))
        self.check("tests", programs={"bin/a_gpu_test": GPU_TEST})
        self.assertRegex(self.stdout, "cuBLASLt: (/|no libcublasLt.so.13 found; --libraries FOLDER names where it lies)")

    def test_a_library_of_python_s_packages(self):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name, "lib/python3.11/site-packages/nvidia/nccl/lib")
            folder.mkdir(parents=True)
            (folder / "libnccl.so.2").touch()
            self.check("tests", programs={"bin/a_gpu_test": GPU_TEST}, environment={"VIRTUAL_ENV": name})
            self.assertRegex(self.stdout, f"NCCL: ({folder}|/)")


if __name__ == "__main__":
    unittest.main()
