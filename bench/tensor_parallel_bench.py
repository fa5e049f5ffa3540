#!/usr/bin/env python3
# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0
"""Time to first token of long prompts with tensor parallelism over several hosts, by --all-reduce, as JSON.

    python3 bench/tensor_parallel_bench.py build/release/bin/nibble random-wide --hosts 2 --rate 1gbit \\
        --all-reduce none,int8,int4,auto

The hosts are network namespaces of this machine whose links have the rate (network_namespaces.sh; needs root), with one
rank each. For every --all-reduce option in turn `nibble serve` is started on every host, and one client on host 0 sends
prompts of random token ids, one at a time: TTFT is the time of a request for one token. Then it measures what further
tokens of a short prompt take. MODEL is made (make_random_checkpoint.py --shape wide, needs numpy; then W4A8) when not there.
--rounds repeats all of it, so that what disturbs the machine for a while does not hit one option alone.
"""
import argparse
import ctypes
import http.client
import json
import os
import pathlib
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time

BENCH = pathlib.Path(__file__).resolve().parent
HEAD = "10.77.0.1"
HTTP = ("127.0.0.1", 8000)  # of host 0
START_SECONDS = 40
SHORT_PROMPT = 8
SPECIAL_TOKENS = 256  # at the end of the vocabulary


class Hosts:
    """Network namespaces. This process moves into the first, where node 0 and the client are."""

    def __init__(self, count, rate):
        self.prefix = f"tp{os.getpid()}"
        self.environment = {**os.environ, "NAMESPACE_PREFIX": self.prefix}
        self.count, self.rate = count, rate
        self.origin = open("/proc/self/ns/net", encoding="utf-8")

    def __enter__(self):
        self._script("up", self.count, self.rate)
        with open(f"/run/netns/{self.prefix}-0", encoding="utf-8") as namespace:
            self._enter(namespace)
        return self

    def __exit__(self, *_):
        self._enter(self.origin)  # `down` ends what is inside
        self._script("down")

    def start(self, host, command, log, environment):
        return subprocess.Popen([BENCH / "network_namespaces.sh", "run", str(host), *map(str, command)],
                                stdout=log, stderr=log, env={**self.environment, **environment})

    def _script(self, *arguments):
        subprocess.run([BENCH / "network_namespaces.sh", *map(str, arguments)], env=self.environment, check=True)

    @staticmethod
    def _enter(namespace):
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0) != 0:
            raise OSError(ctypes.get_errno(), "setns")


class Nodes:
    """`nibble serve` on every host, until __exit__."""

    def __init__(self, options, hosts, all_reduce, folder):
        self.options, self.hosts, self.folder = options, hosts, folder
        self.command = [
            options.nibble, "serve", options.model, "--nnodes", hosts.count, "--tensor-parallel-size", hosts.count,
            "--master-addr", HEAD, "--cluster-secret-file", folder / "secret", "--all-reduce", all_reduce, "--rank-threads",
            options.rank_threads, "--no-enable-prefix-caching", "--served-model-name", "measured",
            "--max-num-batched-tokens", max(2048, options.prompt), "--max-num-seqs", 1, *options.serve_options]
        self.processes = []

    def __enter__(self):
        try:
            for host in range(self.hosts.count):
                listen = ["--host", HTTP[0], "--port", HTTP[1], "--grpc-port", -1] if host == 0 else []
                with open(self.log_path(host), "w", encoding="utf-8") as log:
                    self.processes.append(self.hosts.start(host, [*self.command, "--node-rank", host, *listen], log,
                                                           {"XDG_CACHE_HOME": str(self.folder / "cache")}))
            self.wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for process in self.processes:  # node 0 first: the others end with it
            process.terminate()
        deadline = time.monotonic() + 10
        for process in self.processes:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def log_path(self, host):
        return self.folder / f"node{host}.log"

    def wait_until_ready(self):
        deadline = time.monotonic() + START_SECONDS
        while True:
            ended = [host for host, process in enumerate(self.processes) if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                host = ended[0] if ended else 0
                sys.exit(f"node {host} did not start:\n{self.log_path(host).read_text()[-3000:]}")
            try:
                if self.request("GET", "/health")[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.05)

    def request(self, method, path, body=None):
        connection = http.client.HTTPConnection(*HTTP, timeout=60)
        try:
            connection.request(method, path, body and json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def seconds_of(self, prompt, max_tokens):
        start = time.monotonic()
        status, answer = self.request("POST", "/v1/completions", {
            "model": "measured", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True})
        seconds = time.monotonic() - start
        usage = json.loads(answer).get("usage", {}) if status == 200 else {}
        if (usage.get("prompt_tokens"), usage.get("completion_tokens")) != (len(prompt), max_tokens):
            sys.exit(f"a prompt of {len(prompt)} tokens for {max_tokens} more was answered {status}: {answer[:1000]!r}")
        return seconds

    def choice_for(self, message_bytes):
        """What the server says it does with a message of so many bytes, as bf16."""
        text = self.request("GET", "/metrics")[1].decode()
        choices = [dict(re.findall(r'(\w+)="([^"]*)"', line)) for line in text.splitlines()
                   if line.startswith("nibble:all_reduce_info{")]
        if not choices:
            sys.exit("no nibble:all_reduce_info among the metrics")
        bounded = [(float(choice["up_to_bytes"]), choice) for choice in choices]  # "+Inf" too
        choice = min((pair for pair in bounded if message_bytes <= pair[0]), key=lambda pair: pair[0])[1]
        return f"{choice['algorithm']} {choice['codec']}"


def sent_bytes():
    """By this host, since it exists."""
    text = pathlib.Path("/proc/self/net/dev").read_text(encoding="utf-8")
    return int(re.search(r"eth0:\s*(.*)", text).group(1).split()[8])


def foreign_seconds():
    """CPU time that others than this process's descendants and the kernel's threads have used, since the start."""
    tick = os.sysconf("SC_CLK_TCK")
    user, nice, system, _, _, irq, softirq = map(int, pathlib.Path("/proc/stat").read_text(encoding="utf-8").split()[1:8])
    times, children = {}, {}
    for folder in pathlib.Path("/proc").iterdir():
        try:
            fields = (folder / "stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
        except OSError:
            continue  # no process, or it ended meanwhile
        if folder.name.isdigit():
            times[int(folder.name)] = sum(map(int, fields[11:15]))  # children that ended included
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    own, rest = 0, [os.getpid(), 2]  # 2: the parent of kernel threads, which carry the packets
    while rest:
        pid = rest.pop()
        own += times.get(pid, 0)
        rest += children.get(pid, [])
    return (user + nice + system + irq + softirq - own) / tick


class Measurement:
    """Times while the machine does nothing else: what was taken beside other work is taken again."""

    def __init__(self, options):
        self.options = options
        self.disturbed = 0

    def repeat(self, run):
        """The results of `run`, which returns seconds first."""
        results = []
        while len(results) < self.options.repetitions:
            before, start = foreign_seconds(), time.monotonic()
            result = run()
            share = (foreign_seconds() - before) / (time.monotonic() - start)
            if share <= self.options.foreign_cpu or self.disturbed >= 3 * self.options.repetitions:
                results.append(result)
            else:
                self.disturbed += 1
        return results


def measure(options, nodes, config, rng):
    """The times of one run of the servers."""
    tokens = range(SPECIAL_TOKENS, config["vocab_size"] - SPECIAL_TOKENS)
    measurement = Measurement(options)

    def prompt(length):
        return rng.choices(tokens, k=length)

    def first_token():
        before = sent_bytes()
        return nodes.seconds_of(prompt(options.prompt), 1), sent_bytes() - before

    def further_token():
        first = nodes.seconds_of(prompt(SHORT_PROMPT), 1)
        return (nodes.seconds_of(prompt(SHORT_PROMPT), 1 + options.decode) - first) / options.decode

    first_token()  # memory is touched, connections have found their rate
    seconds, sent = zip(*measurement.repeat(first_token))
    row = {"ttft_s": list(seconds), "sent_bytes": list(sent)}
    row["token_s"] = measurement.repeat(further_token) if options.decode > 0 else []
    row["disturbed"] = measurement.disturbed
    row["choice"] = nodes.choice_for(2 * options.prompt * config["hidden_size"])
    return row


def run(options, config):
    """{all-reduce option: [row of each round]}"""
    rng = random.Random(1)
    rows = {}
    with tempfile.TemporaryDirectory(prefix="nibble-tp-") as folder, Hosts(options.hosts, options.rate) as hosts:
        folder = pathlib.Path(folder)
        (folder / "secret").write_text("the secret of a measurement\n", encoding="utf-8")
        (folder / "secret").chmod(0o600)
        for _ in range(options.rounds):
            for all_reduce in options.all_reduce:
                with Nodes(options, hosts, all_reduce, folder) as nodes:
                    row = measure(options, nodes, config, rng)
                rows.setdefault(all_reduce, []).append(row)
                print(f"{all_reduce}: TTFT {' '.join(f'{s:.3f}' for s in row['ttft_s'])} s, token "
                      f"{' '.join(f'{1e3 * s:.2f}' for s in row['token_s'])} ms, {row['disturbed']} taken again",
                      file=sys.stderr)
    return rows


def summarize(options, config, rows):
    all_reduces = 2 * config["num_hidden_layers"] - 1  # the last layer computes one row; and one of the embeddings
    results = []
    for all_reduce, rounds in rows.items():
        every = {name: [value for row in rounds for value in row[name]] for name in ("ttft_s", "sent_bytes", "token_s")}
        results.append({
            "all_reduce": all_reduce, "choice": sorted({row["choice"] for row in rounds}), "runs": len(every["ttft_s"]),
            "taken_again": sum(row["disturbed"] for row in rounds), "ttft_s": round(statistics.median(every["ttft_s"]), 4),
            "best_ttft_s": round(min(every["ttft_s"]), 4),
            "tokens_per_s": round(1 / statistics.median(every["token_s"]), 1) if every["token_s"] else None,
            "sent_bytes_per_all_reduce": round(statistics.median(every["sent_bytes"]) / all_reduces)})
    reference = next((row for row in results if row["all_reduce"] == "none"), None)
    for row in results if reference else []:
        row["ttft_over"] = round(reference["ttft_s"] / row["ttft_s"], 3)
        row["best_ttft_over"] = round(reference["best_ttft_s"] / row["best_ttft_s"], 3)
    return {"hosts": options.hosts, "rate": options.rate, "prompt_tokens": options.prompt,
            "rank_threads": options.rank_threads, "all_reduces": all_reduces,
            "bf16_bytes_per_all_reduce": 2 * options.prompt * config["hidden_size"], "results": results}


def make_model(options):
    """Random weights in W4A8, which ranks load in no time."""
    with tempfile.TemporaryDirectory(prefix="nibble-tp-") as folder:
        plain = pathlib.Path(folder) / "plain"
        for command in ((sys.executable, BENCH / "make_random_checkpoint.py", "--shape", "wide", "--output", plain),
                        (options.nibble, "quantize", plain, "--output", options.model)):
            made = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
            if made.returncode != 0:
                sys.exit(f"{options.model} could not be made")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nibble", type=pathlib.Path)
    parser.add_argument("model", type=pathlib.Path, help="checkpoint; made when it is not there")
    parser.add_argument("--hosts", type=int, default=2, help="with one rank each (default: 2)")
    parser.add_argument("--rate", default="1gbit", help="of every link, or none (default: 1gbit)")
    parser.add_argument("--all-reduce", type=lambda text: text.split(","), default=["none", "int4"],
                        help="comma-separated (default: none,int4)")
    parser.add_argument("--prompt", type=int, default=1024, help="tokens (default: 1024)")
    parser.add_argument("--decode", type=int, default=32, help="tokens behind a short prompt; 0: none (default: 32)")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--rank-threads", type=int, default=1)
    parser.add_argument("--foreign-cpu", type=float, default=0.2,
                        help="a time beside which other processes used more CPUs than this is taken again (default: 0.2)")
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options = parser.parse_args(sys.argv[1:end])
    options.serve_options = sys.argv[end + 1:]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that hosts are removed
    if not options.model.exists():
        make_model(options)
    options.nibble, options.model = options.nibble.resolve(), options.model.resolve()
    config = json.loads((options.model / "config.json").read_text(encoding="utf-8"))
    print(json.dumps(summarize(options, config, run(options, config)), indent=2))


if __name__ == "__main__":
    main()
