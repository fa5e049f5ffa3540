# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0

"""Abuse: well-behaved streaming clients while others do what they should not. Measures memory and what the first ones notice.

    .venv/bin/python tests/e2e/abuse.py [ATTACK=COUNT ...] [--seconds S] [--clients N] [--nibble FILE]

Prints JSON: for every attack of attacks.py the server's resident memory before, at most and after, and throughput and
time to first token of the clients with the attack by those without it, measured right before. Every answer must be what
it is undisturbed. For idle=5000 the limit of open files (`ulimit -Hn`) must be above 5,100 for the server and for this
script each; where it is lower, fewer are open, and "seen" says how many.
"""
import argparse
import contextlib
import http.client
import json
import pathlib
import ssl
import statistics
import subprocess
import sys
import threading
import time
import urllib.parse

from nibble_server import ROOT, Server

ATTACKS = pathlib.Path(__file__).with_name("attacks.py")
MODEL = "stories-llama"
KEY = "key-of-the-tests"
MEBIBYTE = 1 << 20
# How many are held, or how many times a second it is done.
COUNTS = {"idle": 5000, "idle_grpc": 1000, "half_headers": 500, "half_bodies": 200, "slow_readers": 8, "pipelining": 32,
          "half_grpc_messages": 100, "idle_http2": 1000, "slow_grpc_readers": 8, "watchers": 20, "churn": 500, "vanishing": 50,
          "bad_utf8": 200, "tls_garbage": 200, "wrong_keys": 200, "big_headers": 20, "big_bodies": 5, "deep_json": 5,
          "big_grpc_messages": 5, "grpc_gzip": 5, "rapid_reset": 20, "grpc_garbage": 100}


class Clients:
    """Streams in a closed loop, whose every answer is compared with what it was without abuse."""

    def __init__(self, server, count=4, max_tokens=32, headers=None):
        self.server, self.max_tokens = server, max_tokens
        self.headers = {"Content-Type": "application/json", **(headers or {})}
        self.prompts = [f"Once upon a time there were {index}" for index in range(count)]
        self.expected = [self.ask(prompt)[0] for prompt in self.prompts]
        self.failures = []

    def connection(self):
        parts = urllib.parse.urlsplit(self.server.url)
        if parts.scheme == "https":
            context = ssl._create_unverified_context()  # pylint: disable=protected-access
            return http.client.HTTPSConnection(parts.hostname, parts.port, timeout=60, context=context)
        return http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)

    def ask(self, prompt):
        """(text, seconds to the first token) of one stream."""
        started, first, text = time.monotonic(), None, ""
        connection = self.connection()
        body = {"model": MODEL, "prompt": prompt, "max_tokens": self.max_tokens, "temperature": 0, "ignore_eos": True,
                "stream": True}
        connection.request("POST", "/v1/completions", json.dumps(body), self.headers)
        response = connection.getresponse()
        if response.status != 200:
            raise AssertionError(f"{response.status}: {response.read()[:300]!r}")
        for line in response:
            if line.startswith(b"data: {"):
                event = json.loads(line[len(b"data: "):])
                if "error" in event:
                    raise AssertionError(event)
                first = first or time.monotonic()
                text += event["choices"][0]["text"]
        connection.close()
        return text, first - started

    def loop(self, index, deadline, first_tokens):
        while time.monotonic() < deadline:
            try:
                text, seconds = self.ask(self.prompts[index])
            except Exception as failure:  # told by run()
                self.failures.append(repr(failure))
                return
            if text != self.expected[index]:
                self.failures.append(f"{text!r}, undisturbed {self.expected[index]!r}")
            first_tokens.append(seconds)

    def run(self, seconds):
        """Tokens a second, and the times to the first token."""
        first_tokens, started = [], time.monotonic()
        threads = [threading.Thread(target=self.loop, args=(index, started + seconds, first_tokens))
                   for index in range(len(self.prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        return len(first_tokens) * self.max_tokens / (time.monotonic() - started), first_tokens


def resident_bytes(server):
    status = pathlib.Path(f"/proc/{server.process.pid}/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmRSS:"))


class Memory(threading.Thread):
    """The most resident memory seen while this watches."""

    def __init__(self, server):
        super().__init__(daemon=True)
        self.server, self.most, self.ended = server, resident_bytes(server), threading.Event()
        self.start()

    def run(self):
        while not self.ended.wait(0.02):
            self.most = max(self.most, resident_bytes(self.server))


@contextlib.contextmanager
def attack(server, name, count):
    """While inside, the attack is under way; the dictionary that is given gets what it saw, and the memory."""
    ports = [urllib.parse.urlsplit(server.url).port, int(server.grpc_address.rsplit(":", 1)[1])]
    command = [sys.executable, str(ATTACKS), name, *map(str, (count, *ports))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    memory = Memory(server)
    result = {"rss_before_mib": round(memory.most / MEBIBYTE, 1)}
    try:
        assert process.stdout.readline() == "under way\n", f"{name} did not begin"
        yield result
        output, _ = process.communicate("end\n", timeout=60)
        result["seen"] = json.loads(output)
    finally:
        process.kill()
        process.wait()
        memory.ended.set()
        memory.join()
    result["rss_peak_mib"] = round(memory.most / MEBIBYTE, 1)


def settle(server):
    """MiB of memory once it stays: what an attack leaves."""
    before = None
    for _ in range(20):
        now = resident_bytes(server)
        if before is not None and abs(now - before) < MEBIBYTE:
            break
        before = now
        time.sleep(0.1)
    return round(resident_bytes(server) / MEBIBYTE, 1)


def p(share, values):
    return statistics.quantiles(values, n=100, method="inclusive")[round(share * 100) - 1] if len(values) > 1 else values[0]


def measure(server, clients, name, count, seconds):
    quiet_rate, quiet_first = clients.run(seconds)
    with attack(server, name, count) as result:
        if name == "slow_readers":  # what is not read, not the work for it
            server.wait_until_idle()
        rate, first = clients.run(seconds)
    result["rss_after_mib"] = settle(server)
    return {"attack": name, "count": count, **result, "errors_of_clients": len(clients.failures),
            "tokens_per_s": round(rate), "tokens_per_s_ratio": round(rate / quiet_rate, 3),
            "ttft_p50_ms": round(p(0.5, first) * 1e3, 2), "ttft_p50_ratio": round(p(0.5, first) / p(0.5, quiet_first), 2),
            "ttft_p99_ms": round(p(0.99, first) * 1e3, 2), "ttft_p99_ratio": round(p(0.99, first) / p(0.99, quiet_first), 2)}


def measure_all(arguments, counts, key):
    options = () if key is None else ("--api-key", key)
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    results = []
    with Server(arguments.nibble.resolve(), "--quantization", "w4a8", "--threads", 1, *options) as server:
        clients = Clients(server, arguments.clients, headers=headers)
        clients.run(1)
        for name, count in counts.items():
            results.append(measure(server, clients, name, count, arguments.seconds))
            assert not clients.failures, clients.failures[:3]
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("attacks", nargs="*", default=list(COUNTS), metavar="ATTACK[=COUNT]")
    parser.add_argument("--seconds", default=3, type=float, help="of each part, without and with the attack")
    parser.add_argument("--clients", default=4, type=int)
    parser.add_argument("--nibble", default=ROOT / "build" / "release" / "bin" / "nibble", type=pathlib.Path)
    arguments = parser.parse_args()
    counts = {name: int(count or COUNTS[name]) for name, _, count in (text.partition("=") for text in arguments.attacks)}
    results = []
    for is_keyed in (False, True):
        names = [name for name in counts if (name == "wrong_keys") == is_keyed]
        if names:
            results += measure_all(arguments, {name: counts[name] for name in names}, KEY if is_keyed else None)
    json.dump({"clients": arguments.clients, "seconds": arguments.seconds, "attacks": results}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
