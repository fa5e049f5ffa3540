#!/usr/bin/env python3
# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0
"""Where the CPU time of a serving nibble goes while clients stream, by perf.

    python3 bench/profile_server.py build/release/bin/nibble CHECKPOINT --streams 16 --seconds 20 -- --threads 2

Starts `nibble serve` (with the options behind --), keeps --streams chat requests streaming, records the server alone
with perf once all of them decode, and prints the shares of its samples as JSON: kernels (arithmetic of the model and
of sampling), the step around them, scheduler, HTTP, detokenizer, the operating system, and what is left with its
largest symbols. Needs perf and a binary that is not stripped.
"""
import argparse
import collections
import http.client
import json
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time

# The first that matches a demangled symbol decides; `dso` is what a symbol without a name falls to.
GROUPS = (
    ("kernels", re.compile(r"nibble::kernels::|nibble::engine::(DecoderModel|Linear|ActivationBuffer|\(anonymous "
                           r"namespace\)::CopyRow)|avx512vnni::|avx2::|amx::")),
    ("thread pool", re.compile(r"nibble::ThreadPool::")),
    ("sampling", re.compile(r"nibble::engine::(FindBest|Sample|.*Sampl|.*TopTokens|.*Logprobs|Philox|.*Draw)")),
    ("scheduler", re.compile(r"nibble::engine::(Scheduler|BlockPool|BlockTable|BuildStepPlan|EngineLoop|Engine|PlanChecker|"
                             r"LocalExecutor|.*StepThread)")),
    ("detokenizer", re.compile(r"nibble::engine::(.*Decoder|OutputProcessor|StopMatcher|Tokenizer|.*TokenText)")),
    ("http", re.compile(r"nibble::server::|boost::|nlohmann::|fmt::|prometheus::|absl::|grpc")),
)
PROMPT = "Tell me a long story about the sea, the wind and the people who live beside them. "


class Stream(threading.Thread):
    """One client: a streaming request after the other until told to stop."""

    def __init__(self, index, port, stopping):
        super().__init__(daemon=True)
        self.index, self.port, self.stopping = index, port, stopping
        self.tokens = 0
        self.error = None

    def run(self):
        try:
            while not self.stopping.is_set():
                self.request()
        except (OSError, http.client.HTTPException) as error:
            if not self.stopping.is_set():
                self.error = error

    def request(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        body = {"model": "profiled", "stream": True, "max_tokens": 400, "ignore_eos": True, "temperature": 0.0,
                "messages": [{"role": "user", "content": f"{self.index}. {PROMPT}"}]}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise http.client.HTTPException(f"{answer.status}: {answer.read(1000)!r}")
        while not self.stopping.is_set():
            line = answer.readline()
            if not line:
                break
            self.tokens += line.startswith(b"data: {")
        connection.close()


def start_server(options):
    command = [options.nibble, "serve", options.model, "--port", "0", "--grpc-port", "-1", "--served-model-name", "profiled",
               *options.serve_options]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    log = []
    for line in server.stderr:
        log.append(line)
        port = re.search(r"http://[^:/\s]+:(\d+)", line)
        if port:
            threading.Thread(target=server.stderr.read, daemon=True).start()
            return server, int(port.group(1))
    sys.exit("nibble serve did not start:\n" + "".join(log[-20:]))


def wait_until_all_stream(streams, seconds=300):
    deadline = time.monotonic() + seconds
    while not all(stream.tokens > 2 for stream in streams):
        errors = [stream.error for stream in streams if stream.error]
        if errors or time.monotonic() > deadline:
            sys.exit(f"not all streams began: {errors}")
        time.sleep(0.1)


def record(pid, seconds, path):
    """perf's samples of the process."""
    recorder = subprocess.Popen(["perf", "record", "-q", "-F", "997", "-o", path, "-p", str(pid)], stderr=subprocess.DEVNULL)
    time.sleep(seconds)
    recorder.send_signal(signal.SIGINT)
    recorder.wait()


def classify(path):
    report = subprocess.run(["perf", "report", "-i", path, "--stdio", "-q", "--no-children", "-g", "none", "-F",
                             "overhead,dso,sym", "-t", "\t", "--percent-limit", "0"],
                            check=True, capture_output=True, text=True).stdout
    shares, rest = collections.Counter(), []
    for line in report.splitlines():
        fields = [field.strip() for field in line.split("\t")]
        if len(fields) != 3 or not fields[0].endswith("%"):
            continue
        share, library, symbol = float(fields[0][:-1]), fields[1], fields[2]
        group = next((name for name, pattern in GROUPS if pattern.search(symbol)), None)
        if group is None and symbol.startswith("[k]"):
            group = "operating system"
        if group is None:
            group = "rest"
            rest.append((share, f"{library} {symbol}"))
        shares[group] += share
    return shares, sorted(rest, reverse=True)[:8]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nibble")
    parser.add_argument("model")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=20.0)
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options = parser.parse_args(sys.argv[1:end])
    options.serve_options = sys.argv[end + 1:]
    server, port = start_server(options)
    stopping = threading.Event()
    streams = [Stream(index, port, stopping) for index in range(options.streams)]
    try:
        for stream in streams:
            stream.start()
        wait_until_all_stream(streams)
        before, start = sum(stream.tokens for stream in streams), time.monotonic()
        with tempfile.NamedTemporaryFile(suffix=".perf") as file:
            record(server.pid, options.seconds, file.name)
            tokens = sum(stream.tokens for stream in streams) - before
            seconds = time.monotonic() - start
            stopping.set()
            shares, rest = classify(file.name)
    finally:
        stopping.set()
        server.kill()
        server.wait()
    total = sum(shares.values())
    print(json.dumps({
        "streams": options.streams, "seconds": round(seconds, 1), "tokens_per_s": round(tokens / seconds, 1),
        "share": {name: round(share / total, 4) for name, share in shares.most_common()},
        "largest_of_rest": [f"{share:.2f} % {name}" for share, name in rest]}, indent=2))


if __name__ == "__main__":
    main()
