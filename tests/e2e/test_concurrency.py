# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0

"""Many clients at once: continuous batching, vanishing clients, batch invariance through the API."""
import json
import socket
import threading
import urllib.parse

from nibble_server import Server

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


def test_64_streams_share_steps(server, client):
    tokens_before = server.metric("vllm:generation_tokens_total")
    steps_before = server.metric("vllm:iteration_tokens_total_count")

    def stream(index):
        chunks = client.completions.create(model=MODEL, prompt=f"Story number {index}:", max_tokens=48, seed=index,
                                           stream=True, extra_body={"ignore_eos": True})
        finish = None
        for chunk in chunks:
            finish = chunk.choices[0].finish_reason or finish
        return finish

    assert run_parallel(stream, 64) == ["length"] * 64
    tokens = server.metric("vllm:generation_tokens_total") - tokens_before
    steps = server.metric("vllm:iteration_tokens_total_count") - steps_before
    assert tokens == 64 * 48
    assert tokens / steps > 4, f"{tokens} tokens in {steps} steps: not batched"
    assert server.wait_until_idle() == (0, 0, 0)


def test_an_answer_does_not_depend_on_the_batch(server, client):
    """The same seeded request alone and among 31 others: same text, same log probabilities."""

    def ask(seed):
        choice = client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=40, seed=seed,
                                           temperature=0.9, logprobs=2).choices[0]
        return choice.text, choice.logprobs.token_logprobs

    alone = ask(5)
    together = run_parallel(lambda index: ask(5 if index == 13 else 100 + index), 32)
    assert together[13] == alone


def vanish(server, stream):
    """Sends a long request, waits for its first bytes when it streams, and closes the socket."""
    parts = urllib.parse.urlsplit(server.url)
    body = json.dumps({"model": MODEL, "prompt": "Once", "max_tokens": 1900, "ignore_eos": True, "stream": stream})
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
    # Cancelled, not finished: those admitted ended as aborts, long before the 190,000 tokens they had asked for.
    assert server.metric("vllm:request_success_total", finished_reason="abort") - aborted >= 50
    assert server.metric("vllm:generation_tokens_total") - generated < 95_000
    assert client.completions.create(model=MODEL, prompt="Once", max_tokens=3).usage.completion_tokens == 3


def test_a_full_queue_answers_429(nibble):
    with Server(nibble, "--max-num-seqs", 1, "--max-queued-requests", 2) as small:

        def ask(_):
            return small.post("/v1/completions", {"model": MODEL, "prompt": "Once", "max_tokens": 200, "ignore_eos": True})

        answers = run_parallel(ask, 16)
        statuses = [status for status, _, _ in answers]
        assert set(statuses) == {200, 429}, statuses
        refused = next(answer for answer in answers if answer[0] == 429)
        assert int(refused[2]["Retry-After"]) >= 1
        assert "2" in refused[1]["error"]["message"]  # the limit


def test_a_small_cache_preempts_and_still_answers_the_same(nibble, exact_client):
    """Six long answers in a cache for two: preemption by recomputation changes nothing a client sees."""

    def ask(ask_client, seed):
        return ask_client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=200, seed=seed,
                                             temperature=0.9, extra_body={"ignore_eos": True}).choices[0].text

    import openai
    expected = [ask(exact_client, seed) for seed in range(6)]
    kv_bytes_per_token = 4 * 2 * 4 * 64 * 4  # layers, keys and values, KV heads, head_dim, float32
    with Server(nibble, "--dtype", "float32", "--max-model-len", 256, "--kv-cache-memory-bytes",
                512 * kv_bytes_per_token, "--no-enable-prefix-caching") as small:
        small_client = openai.OpenAI(base_url=small.url + "/v1", api_key="none", max_retries=0, timeout=120)
        assert run_parallel(lambda seed: ask(small_client, seed), 6) == expected
        assert small.metric("vllm:num_preemptions_total") > 0
        assert small.wait_until_idle() == (0, 0, 0)
