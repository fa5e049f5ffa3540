#!/usr/bin/env python3
# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0
"""Measures nibble beside llama.cpp and openvino-genai on one model, and prints the ratios as JSON.

Rounds are interleaved: in each one every engine measures every case once, in a process of its own, so that what the
machine does meanwhile hits all alike; medians are compared. Cases: decode (one sequence from an empty context),
prefill-512, prefill-2048, batch-8, batch-32 (sequences that decode together behind 64 tokens each).

    python3 bench/compare_peers.py --results runs.jsonl --threads 1,2 --rounds 3 \\
        --nibble build/release/bin/nibble --model CHECKPOINT \\
        --llama-bin llama.cpp/build/bin --gguf model-q4_0.gguf \\
        --openvino-python VENV/bin/python --openvino-model model-q4_0.gguf

Measurements are appended to --results; without an engine the script only summarizes that file. --busy-core N repeats
the cases while a foreign process computes on core N without pause. bench/README.md says how the peers are made.
"""
import argparse
import collections
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

CASES = ("decode", "prefill-512", "prefill-2048", "batch-8", "batch-32")
DECODE_TOKENS = 32
BATCH_CONTEXT, BATCH_TOKENS = 64, 16
NIBBLE = "nibble"


def number(case):
    return int(case.split("-")[1])


def nibble_command(options, case, threads):
    command = [options.nibble, "bench", "prefill" if case.startswith("prefill") else "decode", options.model, "--threads",
               threads, "--repetitions", 1, *options.nibble_option]
    if case.startswith("prefill"):
        return command + ["--prompt", number(case)]
    if case == "decode":
        return command + ["--batch", 1, "--context", 0, "--steps", DECODE_TOKENS]
    return command + ["--batch", number(case), "--context", BATCH_CONTEXT, "--steps", BATCH_TOKENS]


def nibble_result(output):
    return json.loads(output)["results"][0]["tokens_per_s"]


def llama_command(options, case, threads):
    tool = pathlib.Path(options.llama_bin)
    if case.startswith("batch"):
        count = number(case)
        return [tool / "llama-batched-bench", "-m", options.gguf, "-c", count * (BATCH_CONTEXT + BATCH_TOKENS) + 64, "-npp",
                BATCH_CONTEXT, "-ntg", BATCH_TOKENS, "-npl", count, "-t", threads, "-tb", threads, "--output-format", "jsonl"]
    prompt, generated = (number(case), 0) if case.startswith("prefill") else (0, DECODE_TOKENS)
    return [tool / "llama-bench", "-m", options.gguf, "-p", prompt, "-n", generated, "-t", threads, "-r", 1, "-o", "json"]


def llama_result(output):
    if output.lstrip().startswith("["):
        return json.loads(output)[0]["avg_ts"]
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return lines[-1]["speed_tg"]


def openvino_command(options, case, threads):
    return [options.openvino_python, pathlib.Path(__file__).with_name("openvino_bench.py"), options.openvino_model, "--case",
            case, "--threads", threads]


def openvino_result(output):
    return json.loads(output.splitlines()[-1])["tokens_per_s"]


ENGINES = {
    NIBBLE: (nibble_command, nibble_result),
    "llama.cpp": (llama_command, llama_result),
    "openvino-genai": (openvino_command, openvino_result),
}


def measure(options, engine, case, threads):
    make_command, read_result = ENGINES[engine]
    command = [str(part) for part in options.wrap.split() + make_command(options, case, threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stderr[-2000:]}")
    return read_result(done.stdout)


class BusyCore:
    """A process that computes on one core and never waits."""

    def __init__(self, core):
        self.process = core is not None and subprocess.Popen(
            [sys.executable, "-c", f"import os; os.sched_setaffinity(0, {{{core}}})\nwhile True: pass"])
        if self.process:
            time.sleep(0.5)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process:
            self.process.kill()
            self.process.wait()


def run(options, engines):
    with open(options.results, "a", encoding="utf-8") as results, BusyCore(options.busy_core):
        for _ in range(options.rounds):
            for threads in options.threads:
                for case in options.cases:
                    for engine in engines:
                        row = {"engine": engine, "case": case, "threads": threads, "busy": options.busy_core is not None,
                               "gomp_spincount": os.environ.get("GOMP_SPINCOUNT"),
                               "tokens_per_s": measure(options, engine, case, threads)}
                        results.write(json.dumps(row) + "\n")
                        results.flush()
                        print(row, file=sys.stderr)


def summarize(path):
    samples = collections.defaultdict(list)
    with open(path, encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            samples[row["case"], row["threads"], row["busy"], row["engine"]].append(row["tokens_per_s"])
    medians = {key: statistics.median(values) for key, values in samples.items()}
    summary = []
    for case, threads, busy in sorted({key[:3] for key in medians}, key=lambda key: (key[2], key[1], CASES.index(key[0]))):
        row = {"case": case, "threads": threads, "busy_core": busy, "tokens_per_s": {}, "runs": {}, "nibble_over": {}}
        for engine in ENGINES:
            median = medians.get((case, threads, busy, engine))
            if median is None:
                continue
            row["tokens_per_s"][engine] = round(median, 2)
            row["runs"][engine] = len(samples[case, threads, busy, engine])
            own = medians.get((case, threads, busy, NIBBLE))
            if engine != NIBBLE and own is not None:
                row["nibble_over"][engine] = round(own / median, 2)
            free = medians.get((case, threads, False, engine))
            if busy and free is not None:
                row.setdefault("share_of_free_machine", {})[engine] = round(median / free, 2)
        summary.append(row)
    return summary


def numbers(text):
    return [int(part) for part in text.split(",")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", required=True, help="file of measurements, appended to")
    parser.add_argument("--threads", type=numbers, default=[1, 2], help="comma-separated (default: 1,2)")
    parser.add_argument("--cases", type=lambda text: text.split(","), default=list(CASES), help=f"of {','.join(CASES)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--busy-core", type=int, help="keep this core busy with a foreign process")
    parser.add_argument("--wrap", default="", help="command put before every measurement, such as 'taskset -c 0,1'")
    parser.add_argument("--nibble", help="the nibble binary")
    parser.add_argument("--model", help="model directory for nibble")
    parser.add_argument("--nibble-option", action="append", default=[], help="passed on, such as --head-quantization=int8")
    parser.add_argument("--llama-bin", help="folder with llama-bench and llama-batched-bench")
    parser.add_argument("--gguf", help="model file for llama.cpp")
    parser.add_argument("--openvino-python", help="Python with openvino-genai")
    parser.add_argument("--openvino-model", help="model for it: a folder of OpenVINO files or a GGUF file")
    options = parser.parse_args()
    unknown = set(options.cases) - set(CASES)
    if unknown:
        parser.error(f"--cases {','.join(sorted(unknown))}: want some of {','.join(CASES)}")
    engines = []
    for engine, program, model in ((NIBBLE, options.nibble, options.model), ("llama.cpp", options.llama_bin, options.gguf),
                                   ("openvino-genai", options.openvino_python, options.openvino_model)):
        if bool(program) != bool(model):
            parser.error(f"{engine} needs both its program and its model")
        if program:
            engines.append(engine)
    if engines:
        run(options, engines)
    print(json.dumps(summarize(options.results), indent=2))


if __name__ == "__main__":
    main()
