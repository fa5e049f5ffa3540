# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0

"""Ranks and nodes as the tests of failures see them: processes, what they leave, streams that must not notice."""
import contextlib
import json
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import threading
import time

from nibble_server import STORIES, Server

MODEL = "stories-llama"
SECRET = "a secret of the tests"
HEAD = "127.0.0.1"
# Of a server with one rank: it is a process that the test can hold(), for as long as it likes.
HOLDABLE = ("--distributed-executor-backend", "mp", "--rank-timeout", 3600, "--step-timeout", 3600)


def wait_until(condition, what, seconds=60):
    """The first true value of condition(), which is asked for `seconds`; those in which this process stood still do not count."""
    for _ in range(50 * seconds):
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"after {seconds} s: {what() if callable(what) else what}")


def rank_processes(pid):
    """{rank: pid} of the ranks that process `pid` has started and that still run."""
    ranks = {}
    for folder in pathlib.Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            state, parent = re.match(r".*\) (\S) (\d+)", (folder / "stat").read_text(), re.S).groups()
            command = (folder / "cmdline").read_bytes().split(b"\0")
        except (OSError, AttributeError):
            continue  # it ended meanwhile
        if int(parent) == pid and state != "Z" and b"rank" in command:
            ranks[int(command[command.index(b"--rank") + 1])] = int(folder.name)
    return ranks


def alive(pid):
    try:
        return " Z " not in pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def shm_names():
    """What nibble has in /dev/shm now, unit tests left out. Other servers on this machine may have names: compare sets."""
    names = {path.name for path in pathlib.Path("/dev/shm").iterdir()}
    return {name for name in names if name.startswith("nibble") and not name.startswith("nibble.test-")}


def free_port(host="127.0.0.1"):
    """One that is still free when it is bound later: not of those that the system deals out."""
    lowest = int(pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, random.SystemRandom().randrange(min(10_000, lowest // 2), lowest)))
            return probe.getsockname()[1]


@contextlib.contextmanager
def held(pids):
    """Inside, these processes stand still: what a rank has begun stays in progress, however fast the machine is."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def in_progress(server):
    """Sequences that the engine has and has not finished."""
    return server.metric("vllm:num_requests_running") + server.metric("vllm:num_requests_waiting")


def group_is_whole(server, size):
    return server.request("GET", "/health")[0] == 200 and server.metric("nibble:rank_up") == size


class Node:
    """`nibble serve --node-rank k`, k > 0."""

    def __init__(self, binary, *options, model=STORIES, secret=SECRET, wrap=()):
        command = [*wrap, str(binary), "serve", str(model), *map(str, options)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
                                        env={**os.environ, "NIBBLE_CLUSTER_SECRET": secret})
        self.lines = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line)

    def log(self):
        return "".join(self.lines)

    def end(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise AssertionError("the node did not end after SIGTERM:\n" + self.log())
        self._reader.join(60)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()


class Cluster:
    """Node 0 and node 1; `size` has the options of ranks and nodes."""

    def __init__(self, nibble, size, *options, secret=SECRET, head_options=(), environment=None, model=STORIES):
        self.nibble, self.secret, self.model = nibble, secret, model
        self.options = (*size, "--master-port", free_port(HEAD), *options)
        self.node = self.join()
        try:
            self.server = Server(nibble, *self.options, *head_options, model=model,
                                 environment={"NIBBLE_CLUSTER_SECRET": secret, **(environment or {})})
        except BaseException:
            print(self.node.log())
            self.node.process.kill()
            raise

    def join(self, *options, **changes):
        return Node(self.nibble, *self.options, "--node-rank", 1, *options,
                    **{"secret": self.secret, "model": self.model, **changes})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            with self.server:
                pass
            # The head says goodbye.
            wait_until(lambda: self.node.process.poll() is not None, self.node.log)
            self.node.end()
            assert self.node.process.returncode == 0, self.node.log()
        finally:
            self.node.process.kill()


def refused(node):
    """What a node that is turned away says."""
    wait_until(lambda: node.process.poll() is not None, node.log)
    node.end()
    assert node.process.returncode == 1, node.log()
    return node.log()


class Stream(threading.Thread):
    """One streaming completion, read to its end. `delivered` is set once some of the answer was there."""

    def __init__(self, server, body, delivered_bytes=1):
        super().__init__(daemon=True)
        self.server, self.delivered_bytes = server, delivered_bytes
        self.body = {"model": MODEL, "stream": True, "stream_options": {"include_usage": True}, **body}
        self.delivered = threading.Event()
        self.text, self.finish, self.tokens, self.error, self.failure = "", None, None, None, None
        self.start()

    def run(self):
        try:
            self._read()
        except Exception as failure:  # asserted on by result()
            self.failure = failure
        self.delivered.set()

    def _read(self):
        connection = self.server.connection(timeout=120)
        connection.request("POST", "/v1/completions", json.dumps(self.body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            self.error = {"status": response.status, **json.loads(response.read())["error"]}
            return
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[len(b"data: "):])
            if "error" in event:
                self.error = event["error"]
                return
            if event.get("usage"):
                self.tokens = event["usage"]["completion_tokens"]
            for choice in event["choices"]:
                self.text += choice["text"]
                self.finish = choice["finish_reason"] or self.finish
            if len(self.text) >= self.delivered_bytes:
                self.delivered.set()
        connection.close()

    def result(self, seconds=120):
        """(text, tokens, why it ended); fails when the stream did."""
        self.join(seconds)
        assert not self.is_alive(), f"a stream hangs after {len(self.text)} characters: {self.body}"
        assert self.failure is None and self.error is None, f"{self.failure or self.error}, after {self.text[-80:]!r}"
        return self.text, self.tokens, self.finish


def requests(count, max_tokens):
    """Bodies of different requests, greedy and seeded in turn."""
    starts = ("Once upon a time", "The little dog", "In the garden", "A brave girl")
    for index in range(count):
        body = {"prompt": f"{starts[index % 4]} {index}", "max_tokens": max_tokens, "ignore_eos": True}
        yield {**body, "temperature": 0} if index % 2 == 0 else {**body, "temperature": 0.9, "seed": index}


class Client(threading.Thread):
    """Asks the same again and again until it is `over`, and once at least."""

    def __init__(self, server, body, over, delivered_bytes):
        super().__init__(daemon=True)
        self.server, self.body, self.over, self.delivered_bytes = server, body, over, delivered_bytes
        self.streams = [self._ask()]
        self.start()

    def _ask(self):
        return Stream(self.server, self.body, self.delivered_bytes)

    def run(self):
        while True:
            self.streams[-1].join()
            if self.over.is_set() or self.streams[-1].finish is None:
                return
            self.streams.append(self._ask())

    def result(self):
        self.join(120)
        results = {stream.result() for stream in self.streams}
        assert len(results) == 1, f"one request, several answers: {results}"
        return results.pop()


def run_streams(server, bodies, disturb=None, delivered_bytes=200):
    """Results of all streams. disturb() is called once each of them has delivered so much; until it returns, every client asks again
    when its answer is complete, so that answers are in progress meanwhile on a machine of any speed."""
    over = threading.Event()
    if disturb is None:
        over.set()  # one answer each
    clients = []
    try:
        clients = [Client(server, body, over, delivered_bytes) for body in bodies]
        if disturb is not None:
            for client in clients:
                assert client.streams[0].delivered.wait(60)
            disturb()
    finally:
        over.set()
    return [client.result() for client in clients]


def kill_at_work(server, ranks, rank, clients):
    """Kills the process ranks()[rank] in the midst of a step, while so many clients wait; again, where all that the step had was new and
    nothing of it is lost. Returns how many times."""
    recomputed = server.metric("nibble:recomputed_sequences_total")
    for kills in range(1, 100):
        losses = server.metric("nibble:rank_losses_total", rank=rank, reason="killed")
        pid = ranks()[rank]
        with held([pid]):
            wait_until(lambda: in_progress(server) >= clients, server.log)
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: server.metric("nibble:rank_losses_total", rank=rank, reason="killed") == losses + 1, server.log)
        wait_until(lambda: ranks().get(rank, pid) != pid and server.request("GET", "/health")[0] == 200, server.log)
        if server.metric("nibble:recomputed_sequences_total") > recomputed:
            return kills
    raise AssertionError("nothing was ever in progress")
