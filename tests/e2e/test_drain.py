# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0

"""The end of a server under load: drained, at once, killed; and the next one on the same ports.

Its one rank is a process that is held, so that answers are in progress for as long as a test wants."""
import contextlib
import http.client
import json
import re
import signal
import threading
import time

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from nibble_server import Server
from ranks import HOLDABLE, MODEL, alive, held, in_progress, rank_processes, wait_until
from test_grpc import api  # noqa: F401, a fixture

TOKENS = 160


class HttpStream(threading.Thread):
    """One streaming completion, byte by byte: a connection that ends within an answer is an error, as it is for any client."""

    def __init__(self, server, index):
        super().__init__(daemon=True)
        self.connection, self.index = server.connection(timeout=120), index
        self.delivered = threading.Event()
        self.tokens, self.finish, self.failure = None, None, None
        self.start()

    def run(self):
        data = b""
        try:
            self.connection.request("POST", "/v1/completions", json.dumps(
                {"model": MODEL, "prompt": f"Once upon a time {self.index}", "max_tokens": TOKENS, "ignore_eos": True,
                 "stream": True, "stream_options": {"include_usage": True}}), {"Content-Type": "application/json"})
            response = self.connection.getresponse()
            assert response.status == 200, response.read()
            while block := response.read1(65536):
                data += block
                self.delivered.set()
        except (http.client.HTTPException, OSError, AssertionError) as failure:
            self.failure = failure
        self.delivered.set()
        for event in re.findall(rb"data: (\{.*\})\n", data):
            event = json.loads(event)
            self.tokens = (event.get("usage") or {}).get("completion_tokens", self.tokens)
            for choice in event["choices"]:
                self.finish = choice["finish_reason"] or self.finish


class GrpcStream(threading.Thread):
    """One Generate call, read to its end."""

    def __init__(self, api, channel, index, max_tokens=TOKENS):
        super().__init__(daemon=True)
        self.api, self.delivered = api, threading.Event()
        self.tokens, self.finish, self.code, self.retry_ms = 0, None, None, None
        request = api.messages.GenerateRequest(text=f"The little dog {index}", sampling=api.messages.SamplingParams(
            max_tokens=max_tokens, ignore_eos=True, seed=index))
        self.call = api.services.NibbleStub(channel).Generate(request, timeout=120)
        self.start()

    def run(self):
        try:
            for response in self.call:
                self.tokens += len(response.token_ids)
                self.finish = response.finish_reason or self.finish
                self.delivered.set()
            self.code = grpc.StatusCode.OK
        except grpc.RpcError as error:
            self.code = error.code()
            self.retry_ms = dict(error.trailing_metadata() or ()).get("retry-after-ms")
        self.delivered.set()


def load(server, api, channel, count):
    """As many streams over HTTP as over gRPC, each of which has delivered some of its answer, or all."""
    streams = [HttpStream(server, index) for index in range(count)], [GrpcStream(api, channel, index) for index in range(count)]
    for stream in streams[0] + streams[1]:
        assert stream.delivered.wait(60)
    return streams


@contextlib.contextmanager
def held_load(server, api, channel, count):
    """Inside, half of these streams, if not more, are in progress."""
    http_streams, grpc_streams = load(server, api, channel, count // 2)
    with held(rank_processes(server.process.pid).values()):
        http_streams += [HttpStream(server, index) for index in range(count // 2, count)]
        grpc_streams += [GrpcStream(api, channel, index) for index in range(count // 2, count)]
        wait_until(lambda: in_progress(server) >= count, server.log)
        yield http_streams, grpc_streams


def finished(http_streams, grpc_streams):
    for stream in http_streams:
        stream.join(60)
        assert (stream.failure, stream.tokens, stream.finish) == (None, TOKENS, "length")
    for stream in grpc_streams:
        stream.join(60)
        assert (stream.code, stream.tokens) == (grpc.StatusCode.OK, TOKENS)


def start(nibble, *options, **more):
    return Server(nibble, "--max-num-seqs", 64, "--max-model-len", 512, *HOLDABLE, *options, **more)


def test_64_streams_are_finished_and_nothing_new_is_taken(nibble, api):  # noqa: F811
    server = start(nibble, "--shutdown-timeout", 600)
    with grpc.insecure_channel(server.grpc_address) as channel:
        with held_load(server, api, channel, 32) as streams:
            server.process.send_signal(signal.SIGTERM)
            status, answer, _ = wait_until(lambda: (now := server.request("GET", "/health"))[0] != 200 and now, server.log)
            assert (status, answer["status"]) == (503, "draining")
            assert server.request("GET", "/health/live")[0] == 200
            for path in ("/v1/completions", "/v1/models", "/tokenize"):
                status, answer, headers = server.request("POST" if path != "/v1/models" else "GET", path,
                                                         {"model": MODEL, "prompt": "x"} if path != "/v1/models" else None)
                assert status == 503 and int(headers["Retry-After"]) > 0, (path, status)
                assert headers["Connection"] == "close"  # the next one goes elsewhere
            late = GrpcStream(api, channel, 0)
            late.join(60)
            assert (late.code, late.retry_ms) == (grpc.StatusCode.UNAVAILABLE, "5000")
            health = health_pb2_grpc.HealthStub(channel)
            wait_until(lambda: health.Check(health_pb2.HealthCheckRequest(), timeout=60).status == 2, server.log)
            assert server.metric("nibble:health_state", state="draining") == 1
        finished(*streams)
    with server:
        server.process.wait(60)
    assert "all requests are finished" in server.log()


def taken_during_the_drain_delay(nibble, seconds):
    """False if that was not long enough to see it."""
    server = start(nibble, "--drain-delay", seconds)
    connection = server.connection()
    connection.request("GET", "/version")
    assert connection.getresponse().read()
    asked = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    try:
        wait_until(lambda: f"SIGTERM: not ready; requests are taken for another {seconds} s" in server.log(), server.log)
        wait_until(lambda: server.request("GET", "/health/ready")[0] == 503, server.log)
        status, answer, headers = server.post("/v1/completions", {"model": MODEL, "prompt": "Once", "max_tokens": 4})
        # A kept connection is used once more, and ends with that.
        connection.request("GET", "/v1/models")
        kept = connection.getresponse()
        kept.read()
    except OSError:  # the server is gone
        assert time.monotonic() - asked >= seconds, server.log()
        status = None
    with server:
        server.process.wait(60 + seconds)
    if time.monotonic() - asked < seconds:
        raise AssertionError(f"the delay was shorter than {seconds} s")
    if status != 200 or kept.status != 200:
        return False
    assert answer["usage"]["completion_tokens"] == 4 and headers["Connection"] == "close"
    assert kept.headers["Connection"] == "close"
    return True


def test_requests_are_taken_during_the_drain_delay(nibble):
    assert any(taken_during_the_drain_delay(nibble, seconds) for seconds in (3, 12, 48))


def drained_after_a_repeated_signal(nibble, api):
    """None if the repetitions took so long that they may have been signals of their own."""
    server = start(nibble, "--shutdown-timeout", 600)
    with grpc.insecure_channel(server.grpc_address) as channel:
        with held_load(server, api, channel, 4) as streams:
            began = time.monotonic()
            for _ in range(20):  # the kernel makes one of those that wait together
                server.process.send_signal(signal.SIGTERM)
                time.sleep(0.001)
            if time.monotonic() - began > 0.9:
                server.process.kill()
                return None
        finished(*streams)
    with server:
        server.process.wait(60)
    return "all requests are finished" in server.log()


def test_a_signal_that_comes_twice_at_once_is_one(nibble, api):  # noqa: F811
    """`timeout` sends it to its child and to the group."""
    assert next(filter(lambda drained: drained is not None, (drained_after_a_repeated_signal(nibble, api) for _ in range(5))))


def test_a_second_signal_cuts_off_at_once(nibble, api):  # noqa: F811
    server = start(nibble, "--shutdown-timeout", 600)
    ranks = rank_processes(server.process.pid)
    with grpc.insecure_channel(server.grpc_address) as channel:
        with held_load(server, api, channel, 8) as (http_streams, grpc_streams):
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: "a second signal stops at once" in server.log(), server.log)
            server.process.send_signal(signal.SIGINT)
            assert server.process.wait(60) == 128 + signal.SIGINT
            wait_until(lambda: not any(alive(pid) for pid in ranks.values()), "its rank is left")
        for stream in http_streams + grpc_streams:
            stream.join(60)
            assert not stream.is_alive()
        assert all(stream.failure is not None for stream in http_streams[4:])
        assert all(stream.code == grpc.StatusCode.UNAVAILABLE for stream in grpc_streams[4:])


def test_killed_under_load_and_started_again(nibble, api):  # noqa: F811
    """Clients see an error and not the end of an answer; the next server has the ports at once and counts from zero."""
    server = start(nibble)
    ports = ("--port", server.url.rsplit(":", 1)[1], "--grpc-port", server.grpc_address.rsplit(":", 1)[1])
    with grpc.insecure_channel(server.grpc_address) as channel:
        with held_load(server, api, channel, 32) as (http_streams, grpc_streams):
            server.process.kill()
            server.process.wait()
            again = start(nibble, ports=ports)
        assert (again.url, again.grpc_address) == (server.url, server.grpc_address)
        for stream in http_streams:
            stream.join(60)
            assert not stream.is_alive()
            if stream.failure is None:
                assert (stream.tokens, stream.finish) == (TOKENS, "length")  # it was done before
            else:
                assert isinstance(stream.failure, (http.client.IncompleteRead, ConnectionError)), repr(stream.failure)
                assert stream.finish is None
        for stream in grpc_streams:
            stream.join(60)
            assert stream.code in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE), stream.code
        assert all(stream.failure is not None for stream in http_streams[16:])
        assert all(stream.code == grpc.StatusCode.UNAVAILABLE for stream in grpc_streams[16:])
    with again, grpc.insecure_channel(again.grpc_address) as channel:
        finished(*load(again, api, channel, 8))
        assert again.wait_until_idle() == (0, 0, 0)
        # What clients got and what the server counts are the same.
        assert again.metric("vllm:request_success_total", finished_reason="length") == 16
        assert again.metric("vllm:request_success_total") == 16
        assert again.metric("vllm:generation_tokens_total") == 16 * TOKENS
        assert again.metric("http_requests_total", handler="/v1/completions") == 8
        assert again.metric("http_requests_total", handler="/v1/completions", status="200") == 8
        assert again.metric("vllm:e2e_request_latency_seconds_count") == 16
        assert again.metric("vllm:time_to_first_token_seconds_count") == 16
