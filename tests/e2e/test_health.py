# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0

"""What probes are told: while the model loads, when a step hangs, when a rank is lost, on a port of their own."""
import os
import signal
import subprocess
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from nibble_server import STORIES, Server
from ranks import HEAD, MODEL, SECRET, Node, Stream, alive, free_port, held, in_progress, rank_processes, wait_until

NOT_SERVING, SERVING = health_pb2.HealthCheckResponse.NOT_SERVING, health_pb2.HealthCheckResponse.SERVING


def health(server, path="/health"):
    """(HTTP status, state, reason)"""
    status, answer, headers = server.request("GET", path)
    assert (status == 503) == ("Retry-After" in headers), headers
    return status, answer["status"], answer["reason"]


def grpc_health(server, service=""):
    with grpc.insecure_channel(server.grpc_address) as channel:
        return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status


def test_ready(server):
    for path in ("/health", "/health/ready", "/health/live"):
        assert health(server, path) == (200, "ready", "requests are served")
    for service in ("", "nibble.v1.Nibble"):  # it is asked for every 100 ms
        wait_until(lambda: grpc_health(server, service) == SERVING, server.log)
    assert server.metric("nibble:health_state", state="ready") == 1
    assert server.metric("nibble:health_state") == 1  # one of them
    assert server.metric("nibble:ready") == 1


def test_ports_are_open_while_the_model_loads(nibble):
    """A head that waits for its node has no model yet, for as long as the test likes."""
    options = ("--tensor-parallel-size", 2, "--nnodes", 2, "--master-addr", HEAD, "--master-port", free_port(HEAD))
    server = Server(nibble, *options, "--health-port", 0, environment={"NIBBLE_CLUSTER_SECRET": SECRET},
                    wait=False)
    try:
        server.wait_for_ports()
        status, state, reason = wait_until(
            lambda: (now := health(server)) and "waiting for 1 node" in now[2] and now, server.log)
        assert (status, state) == (503, "loading")
        assert health(server, "/health/live")[:2] == (200, "loading")
        for method, path in (("GET", "/v1/models"), ("POST", "/v1/completions"), ("POST", "/tokenize")):
            status, answer, headers = server.request(method, path, {} if method == "POST" else None)
            assert status == 503 and int(headers["Retry-After"]) > 0, (path, status)
            assert "loading" in answer["error"]["message"]
        assert grpc_health(server) == grpc_health(server, "nibble.v1.Nibble") == NOT_SERVING
        assert server.metric("nibble:health_state", state="loading") == 1
        assert server.metric("nibble:rank_up") == 0
        assert "vllm:num_requests_running" not in server.request("GET", "/metrics")[1]
        with Node(nibble, *options, "--node-rank", 1):
            server.wait_for_banner()
            assert health(server)[:2] == (200, "ready")
            wait_until(lambda: grpc_health(server) == SERVING, server.log)
            answer = server.post("/v1/completions", {"model": MODEL, "prompt": "Once", "max_tokens": 4})[1]
            assert answer["usage"]["completion_tokens"] == 4
            # Who was refused is counted as well.
            assert server.metric("http_requests_total", handler="/v1/completions", status="503") == 1
            with server:
                pass
    finally:
        server.process.kill()


def test_a_signal_while_loading_ends_at_once(nibble):
    options = ("--tensor-parallel-size", 2, "--nnodes", 2, "--master-addr", HEAD, "--master-port", free_port(HEAD))
    server = Server(nibble, *options, environment={"NIBBLE_CLUSTER_SECRET": SECRET}, wait=False)
    server.wait_for_ports()
    server.process.terminate()
    assert server.process.wait(60) == 128 + signal.SIGTERM


def test_the_health_port_has_nothing_else(nibble):
    with Server(nibble, "--health-port", 0) as server:
        own = server.url
        server.url = server.health_url
        for path in ("/health", "/health/ready", "/health/live"):
            assert health(server, path)[0] == 200
        for path in ("/", "/metrics", "/v1/models", "/version"):
            assert server.request("GET", path)[0] == 404, path
        assert server.post("/v1/completions", {"model": MODEL, "prompt": "x"})[0] == 404
        server.url = own


@pytest.fixture(scope="module")
def patient_pair(nibble):
    """Two ranks whose group takes half a minute to notice that one stands still."""
    with Server(nibble, "--tensor-parallel-size", 2, "--rank-timeout", 30, "--step-timeout", 1) as server:
        yield server


def test_a_step_that_hangs_is_a_stall(patient_pair):
    server = patient_pair
    assert health(server)[0] == 200  # idle for however long
    rank = rank_processes(server.process.pid)[1]
    os.kill(rank, signal.SIGSTOP)
    try:
        time.sleep(1.5)
        assert health(server)[:2] == (200, "ready")  # nothing to do: nothing hangs
        stream = Stream(server, {"prompt": "Once", "max_tokens": 8})
        status, state, reason = wait_until(lambda: (now := health(server))[0] != 200 and now, server.log)
        assert (status, state) == (503, "stalled") and "no step has ended" in reason, reason
        assert health(server, "/health/live")[:2] == (200, "stalled")  # the group will mend itself
        wait_until(lambda: grpc_health(server) == NOT_SERVING, server.log)
        assert server.metric("nibble:health_state", state="stalled") == 1
        assert server.metric("nibble:step_age_seconds") > 1
        wait_until(lambda: "health: stalled" in server.log(), server.log)
    finally:
        os.kill(rank, signal.SIGCONT)
    assert stream.result()[2] is not None
    wait_until(lambda: health(server)[0] == 200, server.log)
    wait_until(lambda: "health: ready again, after stalled" in server.log(), server.log)


def test_a_lost_rank_is_a_broken_group(patient_pair):
    server = patient_pair
    ranks = rank_processes(server.process.pid)
    with held([ranks[1]]):  # the group is not formed again meanwhile
        os.kill(ranks[0], signal.SIGKILL)
        status, state, reason = wait_until(lambda: (now := health(server))[0] != 200 and now, server.log)
        assert (status, state) == (503, "broken") and "rank 0" in reason, reason
        assert health(server, "/health/live")[:2] == (200, "broken")
    seen = set()
    wait_until(lambda: seen.add((now := health(server))[1]) or now[0] == 200, server.log)
    assert seen <= {"ready", "broken"}


def test_an_engine_that_cannot_be_stopped_does_not_hold_the_process(nibble):
    server = Server(nibble, "--tensor-parallel-size", 2, "--rank-timeout", 120, "--shutdown-timeout", 0)
    ranks = rank_processes(server.process.pid)
    with held([ranks[1]]):
        Stream(server, {"prompt": "Once", "max_tokens": 1000, "ignore_eos": True})
        wait_until(lambda: in_progress(server) == 1, server.log)
        server.process.terminate()
        assert server.process.wait(90) == 1
        assert "has not stopped within 15 s" in server.log()
        wait_until(lambda: not any(alive(pid) for pid in ranks.values()), ranks)


START_ERRORS = [
    (["--kv-cache-memory-bytes", "1000"], "the KV cache does not fit", "try: --kv-cache-memory-bytes "),
    (["--kv-cache-memory-bytes", "1000000"], "the KV cache does not fit", "try: --max-model-len "),
    (["--tensor-parallel-size", "3"], "3", "2"),
    (["--chat-template", "/no/such/file"], "--chat-template /no/such/file cannot be used", "try: leaving the option out"),
    (["--chat-template", str(STORIES / "config.json")], "a user's message is not in what it makes of it", "try: another file"),
    (["--nnodes", "2", "--tensor-parallel-size", "2", "--master-addr", "127.0.0.1", "--cluster-secret-file", "/no/such/file"],
     "could not trust each other", "try: openssl rand"),
    (["--health-port", "70000"], "--health-port is 70000", "want -1 to 65535"),
    (["--step-timeout", "0"], "--step-timeout is 0", "want 1 to 86400"),
]


@pytest.mark.parametrize("arguments, happened, remedy", START_ERRORS)
def test_start_errors_say_what_would_do(nibble, arguments, happened, remedy):
    result = subprocess.run([str(nibble), "serve", str(STORIES), "--port", "0", "--grpc-port", "0", *arguments],
                            capture_output=True, text=True, timeout=60)
    assert result.returncode == 1, result.stderr
    assert happened in result.stderr and remedy in result.stderr, result.stderr
    if arguments[0] in ("--chat-template", "--nnodes"):  # nobody was told that there is a server
        assert "listening" not in result.stderr, result.stderr


@pytest.mark.parametrize("option", ["--kv-cache-memory-bytes", "--max-model-len"])
def test_what_a_start_error_suggests_starts(nibble, option):
    base = [] if option == "--kv-cache-memory-bytes" else ["--kv-cache-memory-bytes", "1000000"]
    first = base or ["--kv-cache-memory-bytes", "1000"]
    result = subprocess.run([str(nibble), "serve", str(STORIES), "--port", "0", "--grpc-port", "0", *first],
                            capture_output=True, text=True, timeout=60)
    line = next(line for line in result.stderr.splitlines() if f"try: {option} " in line)
    with Server(nibble, *base, option, line.split()[2]) as server:
        assert health(server)[0] == 200


def test_ports_that_are_taken(nibble, server):
    for option, port in (("--port", server.url.rsplit(":", 1)[1]), ("--grpc-port", server.grpc_address.rsplit(":", 1)[1]),
                         ("--health-port", server.url.rsplit(":", 1)[1])):
        ports = {"--port": "0", "--grpc-port": "-1", **{option: port}}
        result = subprocess.run([str(nibble), "serve", str(STORIES), *(word for pair in ports.items() for word in pair)],
                                capture_output=True, text=True, timeout=60)
        assert result.returncode == 1, result.stderr
        assert f"{option} {port} cannot be opened" in result.stderr and "in use" in result.stderr, result.stderr
        assert f"  try: {option} with another number" in result.stderr
