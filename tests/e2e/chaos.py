# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0

"""Chaos: streaming clients while ranks and nodes are killed, stopped and cut off. Nobody may notice but the log.

    ./dev chaos [ROUNDS] [--seed N] [--network loopback] ...

Two nodes with two ranks each. As root, where `ip netns` works, the nodes are network namespaces and the link between
them is cut too; elsewhere they share an address. After every round: every stream said, token by token, what
it says undisturbed (greedy and seeded), no KV block is held, all ranks are there once, nothing is left in /dev/shm.
"""
import argparse
import ctypes
import os
import pathlib
import random
import shutil
import signal
import subprocess
import time

from nibble_server import ROOT, Server
from ranks import (SECRET, Node, free_port, group_is_whole, rank_processes, requests, run_streams, shm_names, wait_until)

RANKS, RANK_TIMEOUT = 4, 1


class Loopback:
    """Both nodes at one address."""

    master, wrap, can_cut = "127.0.0.1", (), False

    def close(self):
        pass


class Namespaces:
    """Two hosts made of network namespaces; this process, with the clients and node 0, moves into the first."""

    master, can_cut = "10.77.0.1", True
    script = ROOT / "bench" / "network_namespaces.sh"

    def __init__(self):
        self.prefix = f"nc{os.getpid()}"
        self.environment = {**os.environ, "NAMESPACE_PREFIX": self.prefix}
        self.wrap = ("env", f"NAMESPACE_PREFIX={self.prefix}", self.script, "run", 1)
        self.origin = open("/proc/self/ns/net")
        self._do("up", 2, "1gbit")
        with open(f"/run/netns/{self.prefix}-0") as namespace:
            self._enter(namespace)

    def _enter(self, namespace):
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0) != 0:
            raise OSError(ctypes.get_errno(), "setns")

    def _do(self, *arguments):
        subprocess.run([str(self.script), *map(str, arguments)], env=self.environment, check=True, capture_output=True,
                       text=True)

    def cut(self):
        self._do("cut", 1)

    def mend(self):
        self._do("restore", 1)

    def close(self):
        self._enter(self.origin)  # `down` ends what is inside
        self._do("down")


class Chaos:
    def __init__(self, nibble, network, clients=16, max_tokens=300, seed=1, all_reduce="none"):
        self.nibble, self.network, self.random = nibble, network, random.Random(seed)
        self.bodies = list(requests(clients, max_tokens))
        self.names_before = shm_names()
        self.options = ("--tensor-parallel-size", RANKS, "--nnodes", 2, "--master-addr", network.master,
                        "--master-port", free_port(network.master), "--dtype", "float32", "--all-reduce",
                        all_reduce, "--rank-timeout", RANK_TIMEOUT, "--rank-threads", 1)
        self.node = self.join()
        self.server = Server(nibble, *self.options, environment={"NIBBLE_CLUSTER_SECRET": SECRET})
        self.undisturbed = run_streams(self.server, self.bodies)
        assert all(tokens == max_tokens for _, tokens, _ in self.undisturbed), self.undisturbed

    def join(self):
        return Node(self.nibble, *self.options, "--node-rank", 1, wrap=map(str, self.network.wrap))

    def ranks(self):
        return {**rank_processes(self.server.process.pid), **rank_processes(self.node.process.pid)}

    def actions(self):
        ranks = [(f"{name} rank {rank}", lambda rank=rank, number=number: os.kill(self.ranks()[rank], number))
                 for rank in range(RANKS) for name, number in (("kill", signal.SIGKILL), ("stop", signal.SIGSTOP))]
        nodes = [("kill node 1", self.kill_node), ("stop node 1 for a while", self.stop_node)]
        links = [("cut the network", self.cut_network)] * 3 if self.network.can_cut else []
        return ranks + nodes * 2 + links

    def kill_node(self):
        self.node.process.kill()
        self.node.process.wait()
        self.node = self.join()

    def stop_node(self):
        self.node.process.send_signal(signal.SIGSTOP)
        time.sleep(3 * RANK_TIMEOUT)
        self.node.process.send_signal(signal.SIGCONT)

    def cut_network(self):
        self.network.cut()
        time.sleep(3 * RANK_TIMEOUT)
        self.network.mend()

    def round(self):
        """One disturbance, drawn by chance; returns what it was."""
        name, disturb = self.random.choice(self.actions())
        characters = self.random.choice((1, 100, 300))  # of every answer, when it happens
        formations = self.server.metric("nibble:group_formations_total")

        def disturb_and_see():
            disturb()
            wait_until(lambda: self.server.metric("nibble:group_formations_total") > formations, f"{name}: nothing happened")

        results = run_streams(self.server, self.bodies, disturb_and_see, characters)
        for body, result, expected in zip(self.bodies, results, self.undisturbed):
            assert result == expected, f"{name}: {body}: {difference(result, expected)}\n{self.server.log()}"
        self.check(name)
        return name

    def check(self, name):
        def state():
            return f"{name}: ranks {self.ranks()}, /dev/shm {shm_names()}\n{self.server.log()}\n{self.node.log()}"

        wait_until(lambda: group_is_whole(self.server, RANKS), state)
        wait_until(lambda: sorted(self.ranks()) == list(range(RANKS)), state)
        wait_until(lambda: shm_names() <= self.names_before, state)
        assert self.server.wait_until_idle() == (0, 0, 0), state()
        for reason in ("abort", "error"):
            assert self.server.metric("vllm:request_success_total", finished_reason=reason) == 0, state()

    def kill(self):
        """Whatever is left of it."""
        for process in (self.server.process, self.node.process):
            process.kill()
            process.wait()

    def close(self):
        with self.server:
            pass  # the nodes end with it
        wait_until(lambda: self.node.process.poll() is not None, self.node.log)
        self.node.end()
        wait_until(lambda: shm_names() <= self.names_before, shm_names)


def difference(result, expected):
    if result[1:] != expected[1:]:
        return f"{result[1:]}, undisturbed {expected[1:]}"
    at = next(i for i, (a, b) in enumerate(zip(result[0] + "\0", expected[0] + "\0")) if a != b)
    return f"from character {at} {result[0][at:at + 60]!r}, undisturbed {expected[0][at:at + 60]!r}"


def make_network(kind):
    if kind == "loopback" or (kind == "auto" and (os.getuid() != 0 or shutil.which("ip") is None)):
        return Loopback()
    try:
        return Namespaces()
    except (OSError, subprocess.CalledProcessError) as error:
        if kind == "namespaces":
            raise
        print(f"no network namespaces here, so no network is cut: {getattr(error, 'stderr', None) or error}", flush=True)
        return Loopback()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("rounds", nargs="?", default=20, type=int)
    parser.add_argument("--nibble", default=ROOT / "build" / "release" / "bin" / "nibble", type=pathlib.Path)
    parser.add_argument("--clients", default=16, type=int)
    parser.add_argument("--network", default="auto", choices=("auto", "namespaces", "loopback"))
    parser.add_argument("--all-reduce", default="none", help="one that is named: with auto, answers depend on the batch")
    parser.add_argument("--seed", default=None, type=int, help="of what happens (default: drawn, and printed)")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(1 << 32)
    network = make_network(arguments.network)
    print(f"{arguments.clients} clients, network {type(network).__name__.lower()}, seed {seed}", flush=True)
    try:
        chaos = Chaos(arguments.nibble.resolve(), network, clients=arguments.clients, seed=seed,
                      all_reduce=arguments.all_reduce)
        try:
            for index in range(arguments.rounds):
                started = time.monotonic()
                name = chaos.round()
                print(f"round {index + 1} of {arguments.rounds}: {name}: all streams whole, "
                      f"{time.monotonic() - started:.1f} s", flush=True)
            chaos.close()
        finally:
            chaos.kill()
    finally:
        network.close()
    print("nothing lost, nothing left")


if __name__ == "__main__":
    main()
