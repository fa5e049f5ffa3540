# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0

"""Many clients at once: continuous batching, vanishing clients, batch invariance through the API."""
import json
import socket
import threading
import urllib.parse

from nibble_server import Server
from ranks import held

MODEL = "stories-llama"


def run_parallel(function, count):
    """Results of function(0..count-1), each on a thread of its own; the first exception is raised."""
    results, errors = [None] * count, []

    def call(index):
        try:
            results[index] = function(index)
        except Exception as error:  # raised again below, in the test's thread
            errors.append(error)

    threads = [threading.Thread(target=call, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    if errors:
        raise errors[0]
    return results


def send(server, **body):
    """The connection of a completion that was sent; read with its getresponse()."""
    connection = server.connection(timeout=120)
    connection.request("POST", "/v1/completions", json.dumps({"model": MODEL, **body}), {"Content-Type": "application/json"})
    return connection


def send_at_once(server, bodies):
    """The same for many, which the server, standing still meanwhile, sees together: however fast it is, it has them all before it has
    answered one."""
    with held([server.process.pid]):
        return [send(server, **body) for body in bodies]


def test_64_streams_share_steps(server):
    tokens_before = server.metric("vllm:generation_tokens_total")
    steps_before = server.metric("vllm:iteration_tokens_total_count")
    connections = send_at_once(server, [{"prompt": f"Story number {index}:", "max_tokens": 48, "seed": index, "stream": True,
                                         "ignore_eos": True} for index in range(64)])
    for connection in connections:
        assert connection.getresponse().read().count(b'"finish_reason":"length"') == 1
    tokens = server.metric("vllm:generation_tokens_total") - tokens_before
    steps = server.metric("vllm:iteration_tokens_total_count") - steps_before
    assert tokens == 64 * 48
    assert tokens / steps > 4, f"{tokens} tokens in {steps} steps: not batched"
    assert server.wait_until_idle() == (0, 0, 0)


def test_an_answer_does_not_depend_on_the_batch(server):
    """The same seeded request alone and among 31 others: same text, same log probabilities."""

    def body(seed):
        return {"prompt": "Once upon a time", "max_tokens": 40, "seed": seed, "temperature": 0.9, "logprobs": 2}

    def answer(connection):
        choice = json.loads(connection.getresponse().read())["choices"][0]
        return choice["text"], choice["logprobs"]["token_logprobs"]

    alone = answer(send(server, **body(5)))
    together = send_at_once(server, [body(5 if index == 13 else 100 + index) for index in range(32)])
    assert [answer(connection) for connection in together][13] == alone


def vanish(server, stream):
    """Sends a request for eight long answers, waits for its first bytes when it streams, and closes the socket."""
    parts = urllib.parse.urlsplit(server.url)
    body = json.dumps({"model": MODEL, "prompt": "Once", "max_tokens": 1900, "ignore_eos": True, "stream": stream, "n": 8})
    with socket.create_connection((parts.hostname, parts.port), timeout=60) as connection:
        connection.sendall((f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                            f"Content-Length: {len(body)}\r\n\r\n{body}").encode())
        if stream:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")


def test_100_vanishing_clients_leave_nothing_behind(server, client):
    aborted = server.metric("vllm:request_success_total", finished_reason="abort")
    generated = server.metric("vllm:generation_tokens_total")
    run_parallel(lambda index: vanish(server, stream=index % 2 == 0), 100)
    assert server.wait_until_idle() == (0, 0, 0)
    # Cancelled, not finished: those admitted ended as aborts, long before the 1,520,000 tokens they had asked for.
    assert server.metric("vllm:request_success_total", finished_reason="abort") - aborted >= 200
    assert server.metric("vllm:generation_tokens_total") - generated < 760_000
    assert client.completions.create(model=MODEL, prompt="Once", max_tokens=3).usage.completion_tokens == 3


def test_a_full_queue_answers_429(nibble):
    with Server(nibble, "--max-num-seqs", 1, "--max-queued-requests", 2) as small:
        connections = send_at_once(small, [{"prompt": "Once", "max_tokens": 1000, "ignore_eos": True}] * 48)
        answers = [connection.getresponse() for connection in connections]
        assert {answer.status for answer in answers} == {200, 429}
        refused = next(answer for answer in answers if answer.status == 429)
        assert int(refused.headers["Retry-After"]) >= 1
        assert "2" in json.loads(refused.read())["error"]["message"]  # the limit


def test_a_small_cache_preempts_and_still_answers_the_same(nibble, exact_server):
    """Six long answers in a cache for two: preemption by recomputation changes nothing a client sees."""
    bodies = [{"prompt": "Once upon a time", "max_tokens": 200, "seed": seed, "temperature": 0.9, "ignore_eos": True}
              for seed in range(6)]

    def text(connection):
        return json.loads(connection.getresponse().read())["choices"][0]["text"]

    expected = [text(send(exact_server, **body)) for body in bodies]
    kv_bytes_per_token = 4 * 2 * 4 * 64 * 4  # layers, keys and values, KV heads, head_dim, float32
    with Server(nibble, "--dtype", "float32", "--max-model-len", 256, "--kv-cache-memory-bytes",
                512 * kv_bytes_per_token, "--no-enable-prefix-caching") as small:
        assert [text(connection) for connection in send_at_once(small, bodies)] == expected
        assert small.metric("vllm:num_preemptions_total") > 0
        assert small.wait_until_idle() == (0, 0, 0)
